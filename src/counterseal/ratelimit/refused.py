"""Refused: which identifiers each limiter refuses most, by the hour, bounded."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from counterseal.core.background import Background
from counterseal.core.errors import StoreError
from counterseal.ratelimit.scripts import MOST_REFUSED, add_refused
from counterseal.store.base import Store
from counterseal.store.keys import RATE_LIMIT_COUNTS_TTL, Keys
from counterseal.store.wire import raised

logger = logging.getLogger(__name__)

PERIOD: Final = timedelta(seconds=10)
_MOST_COUNTED: Final = 10_000
_HOUR: Final = timedelta(hours=1)


class Ranking:
    """The refusals of one limiter since the last flush."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.counts: dict[str, int] = {}
        self._begin = begin

    def add(self, identifier: str) -> None:
        """Count a refusal. No round trip."""
        try:
            self.counts[identifier] += 1
        except KeyError:
            if len(self.counts) < _MOST_COUNTED:
                self.counts[identifier] = 1
            self._begin()

    def take(self) -> dict[str, int]:
        """What was counted, of which nothing is left here."""
        counts, self.counts = self.counts, {}
        return counts


class Refused:
    """Counts refusals in memory and adds them to Redis every few seconds.

    In memory up to 10,000 identifiers of a limiter are counted between two flushes, and in Redis the 500 most refused
    of each hour are kept. So somebody who is refused seldom may be missing, and a count may be too low; it is never
    too high.
    """

    def __init__(self, store: Store, *, keys: Keys, period: timedelta = PERIOD) -> None:
        self._store = store
        self._keys = keys
        self._period_s = period.total_seconds()
        self._rankings: dict[str, Ranking] = {}
        self._background = Background()
        self._running = False
        self._closed = False
        self._flushing = asyncio.Lock()

    def of(self, name: str) -> Ranking:
        """Where the refusals of a limiter are counted."""
        return self._rankings.setdefault(name, Ranking(self._begin))

    async def flush(self) -> None:
        """Send what was counted. One round trip for each limiter, all at once. A fault of Redis is not raised."""
        async with self._flushing:
            if not self._store.available:
                return
            counted = {name: ranking.take() for name, ranking in self._rankings.items() if ranking.counts}
            hour = _hour_of(self._store.now_ms())
            await asyncio.gather(*(self._send(name, hour, counts) for name, counts in counted.items()))

    async def top(self, name: str, count: int, hours: int) -> list[tuple[str, int]]:
        """The identifiers refused most often in the last hours, with how often, most first. One round trip."""
        now_ms = self._store.now_ms()
        keys = [
            self._keys.rate_limit_refused(name, _hour_of(now_ms - back * 3_600_000)) for back in range(hours)
        ]
        async with self._flushing:
            replies = await self._store.pipeline(
                [("ZRANGE", key, 0, MOST_REFUSED - 1, "REV", "WITHSCORES") for key in keys]
            )
            total: Counter[str] = Counter(self.of(name).counts)
        for reply in replies:
            flat = raised(reply)
            parts = [part for part in (flat if isinstance(flat, list) else []) if isinstance(part, bytes)]
            for identifier, score in zip(parts[::2], parts[1::2], strict=True):
                total[identifier.decode("utf-8", "replace")] += round(float(score))
        return sorted(total.items(), key=lambda found: (-found[1], found[0]))[:count]

    async def close(self) -> None:
        """Send what was counted last. At most one round trip for each limiter. Safe to call twice."""
        self._closed = True
        await self._background.close()
        await self.flush()

    def _begin(self) -> None:
        if not self._running and not self._closed:
            self._running = True
            self._background.keep("count the refused", self._run)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            await self.flush()

    async def _send(self, name: str, hour: str, counts: dict[str, int]) -> None:
        most = dict(Counter(counts).most_common(MOST_REFUSED))
        try:
            await add_refused(self._store, self._keys.rate_limit_refused(name, hour), most)
        except StoreError as error:
            logger.warning("who was refused lately may not have been counted: %s", error)


def checked_hours(hours: int) -> int:
    """A number of hours that is kept. Raises `ValueError`."""
    most = RATE_LIMIT_COUNTS_TTL // _HOUR
    if not 1 <= hours <= most:
        raise ValueError(f"hours: expected 1 to {most}; came: {hours}")
    return hours


def _hour_of(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H")
