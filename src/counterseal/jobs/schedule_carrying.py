"""ScheduleCarrying: has QStash know the schedules for as long as it is entered, with no scheduler in the process."""

from __future__ import annotations

import asyncio
import logging
import random
from types import TracebackType
from typing import Final, Self

from counterseal.core.background import Background, full_jitter
from counterseal.core.errors import CarrierUnavailable, StoreError
from counterseal.jobs.schedule_code import SEEN_EVERY_MS, ScheduleCode
from counterseal.jobs.schedules import Schedules
from counterseal.store.base import Store

logger = logging.getLogger(__name__)

_FIRST_S: Final = 1.0
_LOOK_S: Final = 60.0
_FULL_MS: Final = 3_600_000


class ScheduleCarrying:
    """Brings the schedules of the code to the store, and what QStash can carry of them to QStash.

    It begins when it is entered, which needs neither Redis nor QStash, looks again every minute, and asks QStash every
    hour what it has. What fails is told of once, and tried again after pauses of up to a minute.
    """

    def __init__(self, store: Store, *, schedules: Schedules) -> None:
        self._store = store
        self._schedules = schedules
        self._code = ScheduleCode(schedules)
        self._full_ms = 0
        self._turn = asyncio.Lock()
        self._background = Background()

    async def __aenter__(self) -> Self:
        self._code.begin()
        self._background.keep("have QStash carry schedules", self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._background.close()

    async def look(self, *, full: bool = False) -> int:
        """One turn; how many schedules QStash carries. Two round trips to Redis when nothing is to be told.

        Raises `StoreError`, and `CarrierUnavailable` once everything was tried.
        """
        async with self._turn:
            return await self._look(full=full)

    async def _look(self, *, full: bool) -> int:
        await self._code.reconcile()
        claim = await self._schedules.entries.claim(
            lease_ms=0, most=0, seen_every_ms=SEEN_EVERY_MS, sets=self._code.names
        )
        if self._code.compare(claim.sets, self._store.now_ms()):
            await self._code.reconcile()
        now_ms = self._store.now_ms()
        full = full or now_ms >= self._full_ms
        if full:
            self._full_ms = 0  # until it has gone well
        carried = await self._schedules.carry(passed_over=self._code.held_back, full=full)
        if full:
            self._full_ms = now_ms + _FULL_MS
        return carried

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self.look()
                failures = 0
                pause_s = _LOOK_S * random.uniform(0.7, 1)  # noqa: S311 - spreads load, hides nothing
            except (StoreError, CarrierUnavailable) as fault:
                failures += 1
                if failures == 1:
                    logger.warning("schedules are brought to QStash later: %s", fault)
                pause_s = full_jitter(failures, first=_FIRST_S, longest=_LOOK_S)
            except TimeoutError:
                pause_s = _FIRST_S  # the next turn goes on, once it has noted that the code is in use
            await asyncio.sleep(pause_s)
