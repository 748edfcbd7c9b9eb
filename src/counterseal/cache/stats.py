"""KindStats: what the cache of a kind did, counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KindStats:
    """Counts of one kind. `hits` are answers from Redis, `near` from memory, `stale` after their lifetime.

    `misses` found nothing that counts, `loads` asked the loader, for `load_ms` milliseconds in all; `degraded` were
    answered by the loader without Redis. Bytes are those of stored values, read and written.
    """

    hits: int = 0
    near: int = 0
    stale: int = 0
    misses: int = 0
    loads: int = 0
    load_ms: int = 0
    degraded: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def hit_rate(self) -> float | None:
        """The share of reads that were answered from memory or Redis, from 0 to 1; None when nothing was read."""
        answered = self.hits + self.near + self.stale
        asked = answered + self.misses
        return answered / asked if asked else None


def by_kind(counts: Mapping[str, float], kinds: Iterable[str]) -> dict[str, KindStats]:
    """Statistics from counts by `<kind>:<what>`."""
    found: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
    for field, amount in counts.items():
        kind, _, what = field.partition(":")
        if kind in found and what in KindStats.__dataclass_fields__:
            found[kind][what] = round(amount)
    return {kind: KindStats(**what) for kind, what in found.items()}


def by_hour(
    hours: Mapping[str, Mapping[str, float]], kinds: Iterable[str]
) -> dict[str, dict[str, KindStats]]:
    """Statistics by kind and hour from counts by hour."""
    names = list(kinds)
    found: dict[str, dict[str, KindStats]] = {kind: {} for kind in names}
    for hour, counts in hours.items():
        for kind, stats in by_kind(counts, names).items():
            found[kind][hour] = stats
    return found
