"""Outage: since when what Redis holds may lack revocations, and what makes it good again.

While Redis does not answer, revocations go to the database alone. When it is back with the copies that it had, a
revoked session would be alive in it. So a process that has missed Redis reads no copy from it before everything that
was revoked meanwhile has been written there as well: since a minute before the outage, for a copy that was checked
longer ago than that asks the database by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from counterseal.core.background import end
from counterseal.core.errors import StoreUnavailable

BEFORE_MS: Final = 60_000
"""How long before an outage was noticed revocations may be missing."""

PATIENCE_S: Final = 0.05
"""How long a replay is waited for. Who does not find it at its end asks the database."""

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


class Outage:
    """One process' view. It begins as an outage: what happened before the process started is not known either."""

    def __init__(self, now_ms: Callable[[], int], replay: Callable[[int], Awaitable[None]]) -> None:
        self._now_ms = now_ms
        self._replay = replay
        self._since_ms: int | None = now_ms()
        self._lost = 0
        self._ending: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self._failures = 0
        self._not_before_s = 0.0

    @property
    def lasts(self) -> bool:
        """Whether nothing that Redis holds may be believed yet."""
        return self._since_ms is not None

    def begin(self) -> None:
        """Redis did not answer, or its connection was lost."""
        self._lost += 1
        if self._since_ms is None:
            self._since_ms = self._now_ms()

    async def end(self, *, patience_s: float = PATIENCE_S) -> None:
        """Write to Redis what was revoked meanwhile, so that it may be believed. All who ask share one replay.

        Raises what the replay raises, and `StoreUnavailable` when it has not ended `patience_s` after it began; it goes
        on then.
        """
        clock = asyncio.get_running_loop().time
        ending = self._ending
        if ending is None or ending.done():
            if clock() < self._not_before_s:
                raise StoreUnavailable(
                    "what was revoked while Redis was away could not be written to it just now"
                )
            ending = asyncio.create_task(self._end(), name="counterseal: replay revocations")
            ending.add_done_callback(_look_at)
            self._ending, self._began_s = ending, clock()
        await asyncio.wait([ending], timeout=max(0.0, self._began_s + patience_s - clock()))
        if not ending.done() or ending.cancelled():
            raise StoreUnavailable("what was revoked while Redis was away is still being written to it")
        ending.result()

    async def close(self) -> None:
        """End a replay that is under way. Safe to call twice."""
        if self._ending is not None:
            await end([self._ending])

    async def _end(self) -> None:
        while (since_ms := self._since_ms) is not None:
            lost = self._lost
            try:
                await self._replay(since_ms - BEFORE_MS)
            except BaseException:
                self._failures += 1
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10))
                self._not_before_s = asyncio.get_running_loop().time() + pause_s
                raise
            self._failures = 0
            if lost == self._lost:  # else it was lost again, and what was revoked since is not there
                self._since_ms = None


def _look_at(ending: asyncio.Task[None]) -> None:
    """Nobody may be left who asked for it."""
    if not ending.cancelled():
        ending.exception()
