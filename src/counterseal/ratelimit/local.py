"""What this process remembers of the identifiers that it met: their calls, their local windows, their blocks.

Nothing here asks Redis. Memory is bounded: of those met longest ago nothing is remembered, and Redis is asked anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final, TypeAlias

from counterseal.ratelimit.decision import Decision
from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.scripts import Charge

MOST_SUBJECTS: Final = 10_000
"""How many identifiers a limiter remembers, for each plan."""

BLOCKED_WITHIN_MS: Final = 10_000
"""After so long a block is asked about again: the message that lifted it may have been lost."""

_MOST_BLOCKS: Final = 16

Block: TypeAlias = tuple[int, int, Decision]
"""Until when a call is refused here, when it may be allowed, and how it was refused. Times in milliseconds."""


class Window:
    """A sliding window of this process alone: what it allowed in the current period and in the previous one.

    What is used = current + previous * (the part of the current period that is still to come), as in
    `lua/sliding_window.lua`.
    """

    __slots__ = ("_current", "_index", "_per_ms", "_previous")

    def __init__(self, per_ms: int) -> None:
        self._per_ms = per_ms
        self._index = 0
        self._current = 0
        self._previous = 0

    def charge(self, now_ms: int, cost: int) -> None:
        """Count a call that was allowed. The hot path of every allowed call."""
        if now_ms // self._per_ms > self._index:
            self._turn(now_ms)
        self._current += cost

    def refund(self, now_ms: int, cost: int) -> None:
        """Give back what the current period has counted, at most."""
        self._turn(now_ms)
        self._current = max(0, self._current - cost)

    def clear(self) -> None:
        """Forget what was counted."""
        self._current = self._previous = 0

    def judge(self, now_ms: int, cost: int, count: int) -> tuple[int, int, int]:
        """Milliseconds until `cost` is allowed (0: it is), what remains of `count`, when it is whole again."""
        self._turn(now_ms)
        per, current, previous = self._per_ms, self._current, self._previous
        start = self._index * per
        now_ms = max(now_ms, start)
        left = start + per - now_ms
        room = (count - current) * per - previous * left
        if cost * per <= room:
            wait = 0
        elif cost > count:
            wait = per  # more than this process may allow by itself; Redis may be back by then
        elif current + cost <= count:
            wait = left - (count - current - cost) * per // previous
        else:
            wait = left + per - (count - cost) * per // current
        reset = start + 2 * per if current else start + per if previous else now_ms
        return wait, max(0, room // per), reset

    def _turn(self, now_ms: int) -> None:
        index = now_ms // self._per_ms
        if index > self._index:  # a clock that was set back leaves it as it is
            self._previous = self._current if index == self._index + 1 else 0
            self._current = 0
            self._index = index


class Subject:
    """One identifier under the limits that hold for it. Its attributes are read by the hot path."""

    __slots__ = (
        "blocks",
        "capacities",
        "charge",
        "fixed",
        "head",
        "limits",
        "most",
        "periods",
        "tail",
        "version",
        "windows",
    )

    def __init__(
        self, limits: Sequence[Limit], charge: Charge, *, fixed: Decision | None, version: int, warm: bool
    ) -> None:
        self.limits = tuple(limits)
        self.charge = charge
        self.head = charge.head
        self.tail = charge.tail
        self.fixed = fixed
        """What the deny or allow list says of it."""
        self.version = version
        self.capacities = tuple(limit.capacity for limit in limits)
        self.periods = tuple(limit.per for limit in limits)
        self.most = min(self.capacities)
        """No cost above it can ever be allowed."""
        self.windows = tuple(Window(limit.per_ms) for limit in limits) if warm else ()
        self.blocks: dict[int, Block] = {}
        """By cost."""

    def block(self, cost: int, now_ms: int, allowed_ms: int, refusal: Decision) -> None:
        """Refuse calls of this cost here until they may be allowed, for 10 seconds at most."""
        if len(self.blocks) >= _MOST_BLOCKS:
            self.blocks.clear()
        self.blocks[cost] = (min(allowed_ms, now_ms + BLOCKED_WITHIN_MS), allowed_ms, refusal)

    def lift(self) -> None:
        """It may be allowed earlier than was told."""
        self.blocks.clear()

    def inherit(self, other: Subject) -> None:
        """Go on with the windows of what was remembered under former limits, where the periods are the same."""
        known = {limit.per: window for limit, window in zip(other.limits, other.windows, strict=False)}
        self.windows = tuple(
            known.get(limit.per, window) for limit, window in zip(self.limits, self.windows, strict=False)
        )

    def judge(self, now_ms: int, cost: int, processes: int) -> tuple[int, int, int, int, timedelta]:
        """What the local windows say of a call: milliseconds to wait (0: allowed), this process's share of the limit
        that decides, what remains of it, when it is whole again, and its period. Nothing is counted."""
        waits: list[tuple[int, int, int, int, timedelta]] = []
        for limit, window in zip(self.limits, self.windows, strict=True):
            share = max(1, min(limit.count, limit.capacity) // processes)
            wait, remaining, reset = window.judge(now_ms, cost, share)
            waits.append((wait, share, remaining, reset, limit.per))
        return max(waits, key=lambda found: (found[0], -found[2]))


class Subjects:
    """The identifiers met lately: the young ones, and those of the generation before.

    When as many are young as may be, they become the old generation and the former one is forgotten: so one that is
    met again and again stays, and a hit costs one look-up.
    """

    __slots__ = ("_half", "_old", "young")

    def __init__(self, most: int = MOST_SUBJECTS) -> None:
        self._half = max(1, most // 2)
        self._old: dict[str, Subject] = {}
        self.young: dict[str, Subject] = {}
        """Read by the hot path; what is here has the limits that hold now."""

    def find(self, identifier: str) -> Subject | None:
        """One that was met lately."""
        return self.young.get(identifier) or self._old.get(identifier)

    def keep(self, identifier: str, subject: Subject) -> None:
        """Remember it as young."""
        if len(self.young) >= self._half:
            self._old, self.young = self.young, {}
        self.young[identifier] = subject

    def age(self) -> None:
        """Have everybody looked at again before they are used."""
        together = len(self._old) + len(self.young)
        self._old = {**self._old, **self.young} if together <= 2 * self._half else self.young
        self.young = {}

    def __iter__(self) -> Iterator[Subject]:
        yield from self.young.values()
        yield from self._old.values()

    def __len__(self) -> int:
        return len(self.young.keys() | self._old.keys())
