"""KindStats: what the cache of a kind did, counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from counterseal.store.tallies import Tallies


@dataclass(frozen=True, slots=True)
class KindStats:
    """Counts of one kind. `hits` are answers from Redis, `near` from memory, `stale` after their lifetime.

    `misses` found nothing that counts, `loads` asked the loader, for `load_ms` milliseconds in all; `degraded` were
    answered by the loader without Redis. Bytes are those of the JSON texts that Redis gave and took.
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


class Counters:
    """What the cache of one kind counts, and the fields that it counts as."""

    __slots__ = (
        "add", "bytes_read", "bytes_written", "degraded", "hits", "load_ms", "loads", "misses", "near", "stale"
    )  # fmt: skip

    def __init__(self, tallies: Tallies, kind: str) -> None:
        self.add = tallies.add
        self.hits = f"{kind}:hits"
        self.near = f"{kind}:near"
        self.stale = f"{kind}:stale"
        self.misses = f"{kind}:misses"
        self.loads = f"{kind}:loads"
        self.load_ms = f"{kind}:load_ms"
        self.degraded = f"{kind}:degraded"
        self.bytes_read = f"{kind}:bytes_read"
        self.bytes_written = f"{kind}:bytes_written"


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
