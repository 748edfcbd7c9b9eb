"""StoreClock: the server's time, kept between readings by this machine's steady counter.

All processes judge windows, leases and expiries by one clock, whatever their own clocks say.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

from counterseal.core.background import wait_for_event
from counterseal.core.clock import Clock, SystemClock
from counterseal.core.errors import CountersealError

MAX_AGE = timedelta(seconds=10)
"""A reading is never older than this while the server answers."""

_QUICK_MS = 20


class StoreClock:
    """Milliseconds since 1970 by the server. Before the first reading it follows this machine's wall clock."""

    def __init__(self, machine: Clock | None = None) -> None:
        self._machine = machine or SystemClock()
        self._steady_ns = self._machine.steady_ns
        self._offset_ms = self._machine.wall_ms() - self._steady_ns() // 1_000_000
        self._travelled_ms = 0
        self._ahead_ms = self._offset_ms
        """How far the time that is told is ahead of the steady counter."""
        self._old_from_ms = sys.maxsize
        """From when on, by the steady counter, the last reading is too old."""
        self._quick_ms = _QUICK_MS
        """A round trip that takes no longer is as quick as they are here."""
        self._stale = asyncio.Event()

    def now_ms(self) -> int:
        """The server's time now. A reading that has grown too old (the machine slept) asks for a new one."""
        steady_ms = self._steady_ns() // 1_000_000
        if steady_ms >= self._old_from_ms:
            self._stale.set()
        return steady_ms + self._ahead_ms

    @property
    def skew_ms(self) -> int:
        """How far this machine's wall clock is ahead of the server's, in milliseconds."""
        return self._machine.wall_ms() - (self._steady_ns() // 1_000_000 + self._offset_ms)

    def travel(self, by: timedelta) -> None:
        """Move this clock forward. For tests: what is stored and judged against this clock ages without waiting."""
        self._travelled_ms += _ms(by)
        self._ahead_ms = self._offset_ms + self._travelled_ms

    async def read(self, time: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """Take a reading. `time` answers TIME: seconds and microseconds. Half the round trip is taken as its age.

        A round trip that is slow, as they are here, is made once more, and the quicker one counts: its age is better
        known.
        """
        quickest: int | None = None
        for _ in range(2):
            before = self._steady_ns() // 1_000_000
            seconds, micros = await time()
            after = self._steady_ns() // 1_000_000
            if quickest is None or after - before < quickest:
                quickest = after - before
                self._offset_ms = seconds * 1000 + micros // 1000 - (before + after) // 2
                self._ahead_ms = self._offset_ms + self._travelled_ms
                self._old_from_ms = after + _ms(MAX_AGE) + 1
            if quickest <= self._quick_ms:
                break
        self._quick_ms = max(_QUICK_MS, 3 * (quickest or 0) // 2)
        self._stale.clear()

    async def keep(self, time: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """Run for as long as the store is open: read every 10 s, and at once when a reading turns out to be old."""
        pause = _ms(MAX_AGE) / 1000 * 0.9
        while True:
            await wait_for_event(self._stale, pause)
            try:
                await self.read(time)
            except CountersealError:
                self._stale.clear()
                await asyncio.sleep(1)


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
