"""Tallies: what this process counts, added to Redis by the hour, in the background.

Counting is an addition in memory. Every few seconds, and at the end of each hour, what was counted goes to Redis in one
script. A script whose outcome is unknown is not repeated: a count may be too low after a fault, never too high.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from counterseal.core.background import Background
from counterseal.core.errors import CommandError, StoreBusy, StoreError
from counterseal.store.base import Store
from counterseal.store.scripts import load_script
from counterseal.store.wire import Argument, Reply, raised

logger = logging.getLogger(__name__)

MAX_FIELDS: Final = 1_000
OTHER: Final = "(other)"
"""What the fields beyond the first `MAX_FIELDS` are counted as: of a process, and of an hour."""

_HOUR_MS: Final = 3_600_000
_TALLY: Final = load_script("counterseal.store", "tally")


class Tallies:
    """Counts by field and hour, the same for every process; an hour begins on the server's clock, in UTC."""

    def __init__(
        self,
        store: Store,
        *,
        key: Callable[[str], str],
        ttl: timedelta,
        period: timedelta = timedelta(seconds=10),
    ) -> None:
        """`key` spells the key of an hour, given as `2026-11-24T09`; it lives for `ttl` after its first count."""
        self._store = store
        self._key = key
        self._ttl_s = ttl // timedelta(seconds=1)
        self._period_ms = period // timedelta(milliseconds=1)
        self._background = Background()
        self._flushing = asyncio.Lock()
        self._running = False
        self._closed = False
        self._hour = ""
        self._fresh: dict[str, float] = {}
        """Counted in `_hour`, and in nothing else yet."""
        self._settled: dict[str, float] = {}
        """Counted in all before `_fresh` began."""
        self._waiting: dict[str, dict[str, float]] = {}
        """Counted, by hour, and not yet on its way to Redis."""

    @property
    def totals(self) -> dict[str, float]:
        """What this process has counted since it started. A new dict. No round trip."""
        totals = self._settled.copy()
        for field, amount in self._fresh.items():
            totals[field] = totals.get(field, 0) + amount
        return totals

    def add(self, field: str, amount: float = 1) -> None:
        """Count. No round trip.

        The hour is that of the first count after the last flush, and flushes come at the end of each hour.
        """
        try:
            self._fresh[field] += amount
        except KeyError:
            self._begin(field, amount)

    async def flush(self) -> None:
        """Send what was counted, now. One round trip, none when there is nothing. A fault of Redis is not raised.

        While Redis is known to be unavailable what was counted is kept, for as long as its hour would be.
        """
        async with self._flushing:
            await self._flush()

    async def read(self, hours: int) -> dict[str, dict[str, float]]:
        """The counts of the last hours, newest last: of all processes, what this one has not sent included.

        An hour in which nothing was counted is empty. One round trip. Raises `StoreUnavailable`.
        """
        if hours < 1:
            raise ValueError(f"hours: expected at least 1; came: {hours}")
        async with self._flushing:  # what is on its way is counted neither twice nor not at all
            now_ms = self._store.now_ms()
            names = [hour_of(now_ms - ago * _HOUR_MS) for ago in reversed(range(hours))]
            replies = await self._store.pipeline([("HGETALL", self._key(name)) for name in names])
            self._take()
            return {
                name: _sum(_counts_of(reply), self._waiting.get(name, {}))
                for name, reply in zip(names, replies, strict=True)
            }

    def open(self) -> None:
        """Let the background work again, after a close. No round trip."""
        self._closed = False

    async def close(self) -> None:
        """Send what was counted last, and let the background go. At most one round trip. Safe to call twice."""
        self._closed = True
        async with self._flushing:  # what is on its way arrives before the loop that sent it ends
            await self._background.close()
            self._running = False
            await self._flush()

    def _begin(self, field: str, amount: float) -> None:
        """The first count of a field since the last flush, or of one too many."""
        known, fresh = self._settled, self._fresh
        if field not in known and len(known) >= MAX_FIELDS:
            field = OTHER
        known.setdefault(field, 0)
        if not fresh:
            self._hour = hour_of(self._store.now_ms())
        fresh[field] = fresh.get(field, 0) + amount
        if not self._running and not self._closed and not self._start():
            # Outside an event loop nothing is left in `_fresh`: the next count has to look for one again.
            self._take()

    def _start(self) -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._running = True
        self._background.keep("send what was counted", self._run)
        return True

    async def _run(self) -> None:
        """Flush until nothing is left; the next count starts it again."""
        while self._fresh or self._waiting:
            left_ms = _HOUR_MS - self._store.now_ms() % _HOUR_MS
            await asyncio.sleep(min(self._period_ms, left_ms) / 1000)
            await self.flush()
        self._running = False

    def _take(self) -> None:
        """Move what was counted to the hour that it was counted in."""
        fresh, self._fresh = self._fresh, {}
        if not fresh:
            return
        self._settled = _sum(self._settled, fresh)
        self._waiting[self._hour] = _sum(self._waiting.get(self._hour, {}), fresh)

    async def _flush(self) -> None:
        self._take()
        self._forget_old()
        if not self._waiting or not self._store.available:
            return
        waiting, self._waiting = self._waiting, {}
        await asyncio.gather(*(self._send(hour, counts) for hour, counts in waiting.items()))

    async def _send(self, hour: str, counts: Mapping[str, float]) -> None:
        pairs: list[Argument] = []
        for field, amount in counts.items():
            if math.isfinite(amount):
                pairs += (field, amount)
        try:
            await self._store.run(
                _TALLY, hour=self._key(hour), ttl_s=self._ttl_s, most=MAX_FIELDS, other=OTHER, pairs=pairs
            )
        except StoreBusy:  # nothing was sent
            self._waiting[hour] = _sum(self._waiting.get(hour, {}), counts)
        except CommandError as error:
            logger.warning("what was counted in an hour is lost: Redis answered %s", error.kind)
        except StoreError as error:
            logger.warning("what was counted lately may be lost: %s", error)

    def _forget_old(self) -> None:
        """Let go of hours that Redis would have let go of; they come one after another."""
        if self._waiting:
            oldest = hour_of(self._store.now_ms() - self._ttl_s * 1000)
            for hour in [hour for hour in self._waiting if hour < oldest]:
                del self._waiting[hour]


def hour_of(at_ms: int) -> str:
    """The hour of a time of the store's clock, as counts are kept by: `2026-11-24T09`, UTC."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H")


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    together = dict(one)
    for field, amount in other.items():
        together[field] = together.get(field, 0) + amount
    return together


def _counts_of(reply: Reply) -> dict[str, float]:
    flat = raised(reply)
    if not isinstance(flat, list):
        return {}
    return {
        field.decode("utf-8", "replace"): float(value)
        for field, value in zip(flat[::2], flat[1::2], strict=True)
        if isinstance(field, bytes) and isinstance(value, bytes)
    }
