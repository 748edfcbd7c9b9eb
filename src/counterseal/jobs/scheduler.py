"""Scheduler: makes the jobs of schedules when they are due, one for each tick, however many schedulers run.

A turn takes three round trips, whatever is due: schedules are held for some seconds, their jobs are enqueued, and their
next times are noted. The id of a job comes from its tick, so whoever dies in between, the next one repeats it without
harm: a scheduler that takes over makes no second job, and one that comes too late notes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from counterseal.core.background import Background, full_jitter, wait_for_event
from counterseal.core.complaints import Complaints
from counterseal.core.errors import (
    CarrierUnavailable,
    CommandError,
    CountersealError,
    StoreError,
    StoreUnavailable,
)
from counterseal.jobs.schedule import Due, due
from counterseal.jobs.schedule_code import SEEN_EVERY_MS, ScheduleCode
from counterseal.jobs.schedule_entries import Entry
from counterseal.jobs.schedule_job import call_of
from counterseal.jobs.schedules import Schedules
from counterseal.jobs.task import Call
from counterseal.store.base import Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

LEASE: Final = timedelta(seconds=5)
LOOK: Final = timedelta(seconds=60)
LOOK_UNTOLD: Final = timedelta(seconds=5)
LOOK_UNTOLD_REST: Final = timedelta(seconds=12)
"""Less than the least grace of a schedule."""
REFUSED: Final = timedelta(minutes=2)
"""Who may not listen asks again no more often than twice in this time."""

TAKE_BACK: Final = timedelta(seconds=2.5)
"""So long ticks wait, once a minute, for schedules to be taken back from QStash. `LOOK_UNTOLD_REST` and this are less
than the least grace."""

_OVERLAP: Final = timedelta(minutes=15)
_AT_ONCE: Final = 100
_MS: Final = timedelta(milliseconds=1)

_Ready = tuple[Entry, Due, int]


class Scheduler:
    """Makes the jobs of schedules for as long as it is entered: `async with seal.scheduler()`.

    First it reconciles what is stored with the code. Then it sleeps until something is due; a message tells it that
    schedules have changed. By itself it looks every 60 s, and while it can't hear messages every 5 s, over REST every
    12 s: that is what it costs when nothing is due. A schedule that can't be read, or whose jobs are refused, is told
    of in the log and keeps no other one up. While Redis is away it waits.
    """

    def __init__(self, store: Store, *, keys: Keys, schedules: Schedules) -> None:
        self._store = store
        self._schedules = schedules
        self._entries = schedules.entries
        self._channel = keys.schedules_changed()
        self._code = ScheduleCode(schedules)
        self._take_back_ms: int | None = 0
        """When to see whether QStash carries what it is to carry no more; None when it does not."""
        self._watch_until_ms = 0
        self._complaints = Complaints(logger)
        self._background = Background()
        self._wake = asyncio.Event()
        self._listening = False

    async def __aenter__(self) -> Self:
        self._code.begin()
        self._take_back_ms = 0
        self._background.keep("listen to changes of schedules", self._listen)
        self._background.keep("make the jobs of schedules", self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Make no more jobs. What is cut off half-way another scheduler repeats, or this one. Safe to call twice."""
        await self._background.close()

    async def look(self) -> timedelta:
        """One turn: reconcile when that is to be done, make the jobs of all that is due; the time until the next one.

        Raises `StoreError` when Redis does not answer, or refuses.
        """
        await self._code.reconcile()
        await self._take_back()
        next_ms: list[int] = []
        while True:
            claim = await self._entries.claim(
                lease_ms=LEASE // _MS, most=_AT_ONCE, seen_every_ms=SEEN_EVERY_MS, sets=self._code.names
            )
            if self._code.compare(claim.sets, self._store.now_ms()):
                self._wake.set()
            next_ms += await self._fire(claim.entries)
            if len(claim.entries) < _AT_ONCE:
                break
        if claim.next_ms is not None:
            next_ms.append(claim.next_ms)
        untold = LOOK_UNTOLD_REST if self._store.kind == "rest" else LOOK_UNTOLD
        most = LOOK if self._listening else untold
        if not next_ms:
            return most
        return max(timedelta(0), min(most, (min(next_ms) - self._store.now_ms()) * _MS))

    async def _run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                pause_s = (await self.look()).total_seconds()
                failures = 0
            except StoreError as fault:
                failures += 1
                if failures == 1:
                    logger.warning("the jobs of schedules can't be made: %s", fault)
                pause_s = full_jitter(failures, longest=LOOK_UNTOLD.total_seconds())
            await wait_for_event(self._wake, pause_s)

    async def _listen(self) -> None:
        failures = 0
        while True:
            longest = LOOK_UNTOLD
            try:
                async with self._store.subscribe(self._channel, on_loss=self._lose) as messages:
                    failures = 0
                    self._listening = True
                    self._wake.set()
                    async for _ in messages:
                        self._listening = True
                        self._wake.set()
            except StoreError as fault:
                failures += 1
                if isinstance(fault, CommandError):
                    longest = REFUSED
            finally:
                self._listening = False
            await asyncio.sleep(full_jitter(failures + 1, longest=longest.total_seconds()))

    def _lose(self) -> None:
        self._listening = False
        self._wake.set()

    async def _take_back(self) -> None:
        """Take back what QStash carries, when it is to carry no more: at the start, then as long as some turn up.

        Processes that still have the former carrier in their settings hand theirs over again.
        """
        now_ms = self._store.now_ms()
        if not self._schedules.gives_back or self._take_back_ms is None or now_ms < self._take_back_ms:
            return
        self._take_back_ms = now_ms + LOOK // _MS
        try:
            async with asyncio.timeout(TAKE_BACK.total_seconds()):
                had = await self._schedules.carry()
        except (CarrierUnavailable, TimeoutError) as fault:
            why = str(fault) or "it takes long"
            self._complaints.tell("schedules can't all be taken back from QStash yet: %s", why, now_ms=now_ms)
            return
        if had:
            self._watch_until_ms = now_ms + _OVERLAP // _MS
        elif now_ms >= self._watch_until_ms:
            self._take_back_ms = None

    # -- ticks -----------------------------------------------------------------------------------------------------

    async def _fire(self, entries: Sequence[Entry]) -> list[int]:
        """Make the jobs of schedules that are held, and note it. When they are due again."""
        now_ms = self._store.now_ms()
        ready: list[_Ready] = []
        calls: list[list[Call[Any]]] = []
        for entry in entries:
            # A tick takes a millisecond to reckon: who else runs in this process gets its turn in between.
            await asyncio.sleep(0)
            try:
                ticks, jobs = self._jobs_of(entry, now_ms)
            except Exception as fault:  # noqa: BLE001 - whatever is wrong with one schedule, the others go on
                self._refuse(entry, str(fault) or type(fault).__name__, now_ms)
                continue
            ready.append((entry, ticks, now_ms))
            calls.append(jobs)
        made = await self._enqueue(ready, calls)
        if made:
            await self._entries.advance(
                [
                    (
                        entry,
                        max(entry.last_ms, now),
                        ticks.ticks[-1] if ticks.ticks else entry.fired_ms,
                        ticks.next_ms,
                    )
                    for entry, ticks, now in made
                ]
            )
        again = [ticks.next_ms for _, ticks, _ in made]
        return [*again, now_ms + LEASE // _MS] if len(made) < len(entries) else again

    def _jobs_of(self, entry: Entry, now_ms: int) -> tuple[Due, list[Call[Any]]]:
        if entry.schedule is None:
            raise CountersealError(entry.fault)
        ticks = due(entry.schedule, entry.last_ms, now_ms)
        return ticks, [call_of(entry.schedule, tick) for tick in ticks.ticks]

    async def _enqueue(self, ready: list[_Ready], calls: list[list[Call[Any]]]) -> list[_Ready]:
        """Those whose jobs are there now. All leave together; when something is refused, one schedule after another."""
        try:
            await self._schedules.enqueue([call for jobs in calls for call in jobs])
        except StoreUnavailable:
            raise
        except CountersealError:
            pass
        else:
            return ready
        made: list[_Ready] = []
        for (entry, ticks, now_ms), jobs in zip(ready, calls, strict=True):
            try:
                await self._schedules.enqueue(jobs)
            except StoreUnavailable:
                raise
            except CountersealError as fault:
                self._refuse(entry, str(fault), now_ms)
            else:
                made.append((entry, ticks, now_ms))
        return made

    def _refuse(self, entry: Entry, fault: str, now_ms: int) -> None:
        self._complaints.tell(
            "no jobs of the schedule %s can be made: %s", entry.id, fault, now_ms=now_ms, about=entry.id
        )
