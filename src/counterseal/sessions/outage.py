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

BEFORE_MS: Final = 60_000
"""How long before an outage was noticed revocations may be missing."""


class Outage:
    """One process' view. It begins as an outage: what happened before the process started is not known either."""

    def __init__(self, now_ms: Callable[[], int], replay: Callable[[int], Awaitable[None]]) -> None:
        self._now_ms = now_ms
        self._replay = replay
        self._since_ms: int | None = now_ms()
        self._lost = 0
        self._replaying = asyncio.Lock()

    @property
    def lasts(self) -> bool:
        """Whether nothing that Redis holds may be believed yet."""
        return self._since_ms is not None

    def begin(self) -> None:
        """Redis did not answer, or its connection was lost."""
        self._lost += 1
        if self._since_ms is None:
            self._since_ms = self._now_ms()

    async def end(self) -> None:
        """Write to Redis what was revoked meanwhile, so that it may be believed. Raises what the replay raises."""
        async with self._replaying:
            while (since_ms := self._since_ms) is not None:
                lost = self._lost
                await self._replay(since_ms - BEFORE_MS)
                if lost == self._lost:  # else it was lost again, and what was revoked since is not there
                    self._since_ms = None
