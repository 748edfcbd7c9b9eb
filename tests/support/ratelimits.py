"""Rate limits for tests: a small model of every algorithm in plain arithmetic, and a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction

from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.limiter import Backing, Limiter
from counterseal.ratelimit.policy import Policy, WithoutRedis
from counterseal.ratelimit.refused import Refused
from counterseal.ratelimit.rules import Rules
from counterseal.store.base import Store
from counterseal.store.clock import StoreClock
from counterseal.store.keys import Keys
from counterseal.store.tallies import Tallies

KEYS = Keys()


class StillClock(StoreClock):
    """A store's clock that moves only when it is told to."""

    def __init__(self, at_ms: int) -> None:
        super().__init__()
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms

    def travel(self, by: timedelta) -> None:
        self.at_ms += by // timedelta(milliseconds=1)


@dataclass
class Model:
    """One limit, by the definition of its algorithm. It knows no formula for what the scripts reckon ahead."""

    limit: Limit
    last: int = 0
    charged: list[list[int]] = field(default_factory=list)
    """Time and cost of what was charged, oldest first."""
    debt: Fraction = Fraction(0)
    """Of the buckets: what is missing at `last`."""

    def now(self, at: int) -> int:
        return max(at, self.last)

    def used(self, at: int) -> Fraction:
        per = self.limit.per_ms
        match self.limit.algorithm:
            case Algorithm.FIXED_WINDOW:
                return Fraction(self._in_window(at // per))
            case Algorithm.SLIDING_WINDOW:
                to_come = Fraction(per - at % per, per)
                return self._in_window(at // per) + self._in_window(at // per - 1) * to_come
            case Algorithm.SLIDING_LOG:
                return Fraction(sum(cost for time, cost in self.charged if time + per > at))
            case Algorithm.TOKEN_BUCKET | Algorithm.GCRA:
                return max(Fraction(0), self.debt - Fraction((at - self.last) * self.limit.count, per))

    def room(self, at: int) -> Fraction:
        return self.limit.capacity - self.used(at)

    def charge(self, at: int, cost: int) -> None:
        self.debt = self.used(at) + cost
        self.charged.append([at, cost])
        self.last = at

    def refund(self, at: int, cost: int) -> None:
        per = self.limit.per_ms
        if self.limit.algorithm in {Algorithm.TOKEN_BUCKET, Algorithm.GCRA}:
            self.debt = max(Fraction(0), self.used(at) - cost)
            self.last = at if self.charged else 0
            return
        for entry in reversed(self.charged):
            if self.limit.algorithm is not Algorithm.SLIDING_LOG and entry[0] // per != at // per:
                break
            back = min(cost, entry[1])
            entry[1] -= back
            cost -= back
        if self.limit.algorithm is Algorithm.SLIDING_LOG:
            self.charged = [entry for entry in self.charged if entry[1]]
            self.last = self.charged[-1][0] if self.charged else 0
        elif self.charged and self.last // per == at // per:
            self.last = at

    def change(self, limit: Limit) -> None:
        """Go on under another limit with the same algorithm and period."""
        if self.limit.algorithm is Algorithm.TOKEN_BUCKET and self.charged:
            self.debt += limit.capacity - self.limit.capacity  # what is left stays, not what is used
        self.limit = limit

    def _in_window(self, index: int) -> int:
        return sum(cost for time, cost in self.charged if time // self.limit.per_ms == index)


@dataclass(frozen=True)
class Expected:
    """What a decision has to say."""

    success: bool
    limit: int
    remaining: int
    reset_ms: int
    retry_ms: int | None


class Models:
    """Limits that are charged together."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.clear()

    def clear(self) -> None:
        self.models = [Model(limit) for limit in self.limits]

    def now(self, at: int) -> int:
        return max(model.now(at) for model in self.models)

    def limit(self, at: int, cost: int, *, charge: bool = True) -> Expected:
        now = self.now(at)
        allowed = all(model.room(now) >= cost for model in self.models)
        if not allowed:
            waits = [_first(now, lambda t, m=model: m.room(t) >= cost) - now for model in self.models]
            which = waits.index(max(waits))
            return self._told(which, now, success=False, retry_ms=max(waits) + now - at)
        rooms = [model.room(now) for model in self.models]
        which = rooms.index(min(rooms))
        if charge:
            for model in self.models:
                model.charge(now, cost)
        return self._told(which, now, success=True, retry_ms=None)

    def change(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        for model, limit in zip(self.models, limits, strict=True):
            model.change(limit)

    def refund(self, at: int, cost: int) -> None:
        for model in self.models:
            model.refund(model.now(at), cost)

    def _told(self, which: int, now: int, *, success: bool, retry_ms: int | None) -> Expected:
        model = self.models[which]
        remaining = max(Fraction(0), model.room(now)).__floor__()
        return Expected(
            success, model.limit.capacity, remaining, _first(now, lambda t: model.used(t) == 0), retry_ms
        )


def _first(now: int, holds: Callable[[int], bool]) -> int:
    """The first millisecond from now on at which this holds, and from then on for ever."""
    if holds(now):
        return now
    step = 1
    while not holds(now + step):
        step *= 2
    low, high = now + step // 2, now + step
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@asynccontextmanager
async def backing_on(store: Store) -> AsyncIterator[Backing]:
    """What limiters need, without anything that listens: so nobody is blocked, and every call asks Redis."""

    async def begin() -> None: ...

    tallies = Tallies(store, key=lambda hour: KEYS.tallies("ratelimits", hour), ttl=timedelta(days=1))
    refused = Refused(store, keys=KEYS)
    yield Backing(store, KEYS, Rules(), tallies, refused, 1, begin, begun=True)
    await refused.close()
    await tallies.close()


def limiter_on(backing: Backing, name: str, *limits: Limit) -> Limiter:
    """A limiter of these limits."""
    return Limiter(Policy(name, limits), backing=backing, without_redis=WithoutRedis.OPEN)
