"""Breaker: after a few failures close together calls are refused at once, until a probe finds the target well.

Three failures within 10 s open it for 2 s; every failed probe doubles that, up to 30 s, with ±20 % of jitter so that
many processes do not come back in step. One probe at a time runs, made by the store itself: no caller pays for it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from counterseal.core.background import wait_for_event
from counterseal.core.clock import Clock, SystemClock
from counterseal.core.errors import CommandError, CountersealError


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and for how long."""

    failures: int = 3
    window: timedelta = timedelta(seconds=10)
    first_wait: timedelta = timedelta(seconds=2)
    longest_wait: timedelta = timedelta(seconds=30)
    jitter: float = 0.2


class Breaker:
    """Counts failures and refuses calls while it is open. `refusing` is read before every call and costs nothing."""

    def __init__(
        self,
        policy: BreakerPolicy | None = None,
        *,
        clock: Clock | None = None,
        draw: Callable[[], float] = random.random,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.policy = policy or BreakerPolicy()
        self.refusing = False
        self.opened = 0
        """How often it has opened."""
        self._clock = clock or SystemClock()
        self._draw = draw
        self._on_change = on_change
        self._failures: deque[int] = deque(maxlen=self.policy.failures)
        self._wait = self.policy.first_wait
        self._open = asyncio.Event()
        self._closed = asyncio.Event()

    def failed(self) -> None:
        """One call failed for lack of an answer. Opens the breaker when it is the last of too many."""
        if self.refusing:
            return
        now = self._clock.steady_ns() // 1_000_000
        self._failures.append(now)
        window_ms = self.policy.window.total_seconds() * 1000
        if len(self._failures) == self.policy.failures and now - self._failures[0] <= window_ms:
            self.refusing = True
            self.opened += 1
            self._closed.clear()
            self._open.set()
            if self._on_change is not None:
                self._on_change()

    def close(self) -> None:
        """The target answers: allow calls again and forget the failures."""
        was_open, self.refusing = self.refusing, False
        self._failures.clear()
        self._wait = self.policy.first_wait
        self._open.clear()
        self._closed.set()
        if was_open and self._on_change is not None:
            self._on_change()

    def next_wait(self) -> timedelta:
        """How long to stay open before the next probe; doubles from call to call until the breaker closes."""
        wait = self._wait
        self._wait = min(wait * 2, self.policy.longest_wait)
        return wait * (1 + self.policy.jitter * (2 * self._draw() - 1))

    async def watch(self, probe: Callable[[], Awaitable[object]]) -> None:
        """Run for as long as the store is open: whenever the breaker opens, wait and probe until a probe succeeds."""
        while True:
            await self._open.wait()
            if await wait_for_event(self._closed, self.next_wait().total_seconds()):
                continue
            try:
                await probe()
            except CommandError:
                pass  # refused, but answered
            except CountersealError:
                continue
            self.close()
