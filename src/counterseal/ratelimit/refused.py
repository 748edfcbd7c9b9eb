"""Refused: which identifiers each limiter refuses most, by the hour, bounded."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Final

from counterseal.core.background import Background
from counterseal.core.errors import StoreBusy, StoreError
from counterseal.ratelimit.scripts import MOST_REFUSED, add_refused
from counterseal.store.base import Store
from counterseal.store.keys import RATE_LIMIT_COUNTS_TTL, Keys
from counterseal.store.tallies import hour_of
from counterseal.store.wire import raised

logger = logging.getLogger(__name__)

PERIOD: Final = timedelta(seconds=10)
_MOST_COUNTED: Final = 10_000
_MOST_HOURS: Final = 24
_HOUR_MS: Final = 3_600_000


class Ranking:
    """The refusals of one limiter, by the hour in which they were counted, that have not been sent yet."""

    def __init__(self, now_ms: Callable[[], int], begin: Callable[[], None]) -> None:
        self.counts: dict[str, int] = {}
        """Of the hour of the first one."""
        self._hour = ""
        self._waiting: dict[str, dict[str, int]] = {}
        self._now_ms = now_ms
        self._begin = begin

    def add(self, identifier: str) -> None:
        """Count a refusal. No round trip."""
        try:
            self.counts[identifier] += 1
        except KeyError:
            if not self.counts:
                self._hour = hour_of(self._now_ms())
            if len(self.counts) < _MOST_COUNTED:
                self.counts[identifier] = 1
            self._begin()

    def settle(self) -> None:
        """End the hour of what was counted, if it is over. Of one that waits the most refused are kept."""
        if self.counts and self._hour != hour_of(self._now_ms()):
            self._set_aside()

    def take(self) -> dict[str, dict[str, int]]:
        """What was counted, by hour; nothing is left here."""
        if self.counts:
            self._set_aside()
        waiting, self._waiting = self._waiting, {}
        return waiting

    def put_back(self, hour: str, counts: Mapping[str, int]) -> None:
        """What could not be sent."""
        together = Counter(self._waiting.get(hour, {}))
        together.update(counts)
        self._waiting[hour] = dict(together.most_common(MOST_REFUSED))
        for oldest in sorted(self._waiting)[:-_MOST_HOURS]:
            del self._waiting[oldest]

    def within(self, hours: Iterable[str]) -> Counter[str]:
        """What was counted in these hours."""
        total: Counter[str] = Counter()
        for hour in hours:
            total.update(self._waiting.get(hour, {}))
            if hour == self._hour:
                total.update(self.counts)
        return total

    def _set_aside(self) -> None:
        counts, self.counts = self.counts, {}
        self.put_back(self._hour, counts)


class Refused:
    """Counts refusals in memory and adds them to Redis every few seconds, and at the end of each hour.

    In memory up to 10,000 identifiers of a limiter are counted between two flushes, and of each hour the 500 most
    refused are kept, here while Redis is away (of the last 24 hours) and there. So somebody who is refused seldom may
    be missing, and a count may be too low; it is never too high.
    """

    def __init__(self, store: Store, *, keys: Keys, period: timedelta = PERIOD) -> None:
        self._store = store
        self._keys = keys
        self._period_ms = period // timedelta(milliseconds=1)
        self._rankings: dict[str, Ranking] = {}
        self._background = Background()
        self._running = False
        self._closed = False
        self._flushing = asyncio.Lock()

    def of(self, name: str) -> Ranking:
        """Where the refusals of a limiter are counted."""
        ranking = self._rankings.get(name)
        if ranking is None:
            ranking = self._rankings[name] = Ranking(self._store.now_ms, self._begin)
        return ranking

    async def flush(self) -> None:
        """Send what was counted. One round trip for all limiters together. A fault of Redis is not raised."""
        async with self._flushing:
            if not self._store.available:
                for ranking in self._rankings.values():
                    ranking.settle()
                return
            await asyncio.gather(
                *(
                    self._send(name, hour, counts)
                    for name, ranking in self._rankings.items()
                    for hour, counts in ranking.take().items()
                )
            )

    async def top(self, name: str, count: int, hours: int) -> list[tuple[str, int]]:
        """The identifiers refused most often in the last hours, with how often, most first. One round trip."""
        now_ms = self._store.now_ms()
        names = [hour_of(now_ms - back * _HOUR_MS) for back in range(hours)]
        async with self._flushing:
            replies = await self._store.pipeline(
                [
                    (
                        "ZRANGE",
                        self._keys.rate_limit_refused(name, hour),
                        0,
                        MOST_REFUSED - 1,
                        "REV",
                        "WITHSCORES",
                    )
                    for hour in names
                ]
            )
            total = self.of(name).within(names)
        for reply in replies:
            flat = raised(reply)
            parts = [part for part in (flat if isinstance(flat, list) else []) if isinstance(part, bytes)]
            for identifier, score in zip(parts[::2], parts[1::2], strict=True):
                total[identifier.decode("utf-8", "replace")] += round(float(score))
        return sorted(total.items(), key=lambda found: (-found[1], found[0]))[:count]

    def open(self) -> None:
        """Let the background work again, after a close. No round trip."""
        self._closed = False

    async def close(self) -> None:
        """Send what was counted last. At most one round trip. Safe to call twice."""
        self._closed = True
        async with self._flushing:  # what is on its way arrives before the loop that sent it ends
            await self._background.close()
            self._running = False
        await self.flush()

    def _begin(self) -> None:
        if not self._running and not self._closed:
            self._running = True
            self._background.keep("count the refused", self._run)

    async def _run(self) -> None:
        while True:
            left_ms = _HOUR_MS - self._store.now_ms() % _HOUR_MS
            await asyncio.sleep(min(self._period_ms, left_ms) / 1000)
            await self.flush()

    async def _send(self, name: str, hour: str, counts: Mapping[str, int]) -> None:
        try:
            await add_refused(self._store, self._keys.rate_limit_refused(name, hour), counts)
        except StoreBusy:  # nothing was sent
            self.of(name).put_back(hour, counts)
        except StoreError as error:
            logger.warning("who was refused lately may not have been counted: %s", error)


def checked_hours(hours: int) -> int:
    """A number of hours that is kept. Raises `ValueError`."""
    most = RATE_LIMIT_COUNTS_TTL // timedelta(hours=1)
    if not 1 <= hours <= most:
        raise ValueError(f"hours: expected 1 to {most}; came: {hours}")
    return hours
