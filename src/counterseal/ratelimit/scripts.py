"""The atomic operations of the limiters: one call for each file in `lua/`.

Those that charge are called for every request, so their arguments are made once for each identifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from counterseal.core.errors import CodecError, ScriptMissing
from counterseal.ratelimit.limit import WITH_BURST, Algorithm, Limit
from counterseal.store.base import Store
from counterseal.store.keys import RATE_LIMIT_COUNTS_TTL, Keys, escape
from counterseal.store.scripts import Script, load_script
from counterseal.store.wire import Argument, Reply

_PACKAGE: Final = "counterseal.ratelimit"
_CHARGE: Final[Mapping[Algorithm, Script]] = MappingProxyType(
    {algorithm: load_script(_PACKAGE, algorithm.value) for algorithm in Algorithm}
)
_REFUND: Final[Mapping[Algorithm, Script]] = MappingProxyType(
    {algorithm: load_script(_PACKAGE, f"refund_{algorithm.value}") for algorithm in Algorithm}
)
_SCALED: Final = frozenset({Algorithm.SLIDING_WINDOW, Algorithm.TOKEN_BUCKET, Algorithm.GCRA})
_TURNS: Final[Mapping[Algorithm, int]] = MappingProxyType(
    {Algorithm.FIXED_WINDOW: 1, Algorithm.SLIDING_WINDOW: 2}
)
_RESET: Final = load_script(_PACKAGE, "reset")
_REFUSED: Final = load_script(_PACKAGE, "refused")

_COUNTS_TTL_S: Final = RATE_LIMIT_COUNTS_TTL // timedelta(seconds=1)
MOST_REFUSED: Final = 500
"""How many identifiers are kept of those that a limiter refused in an hour."""


@dataclass(frozen=True, slots=True)
class Charge:
    """One identifier's limits, charged together: the arguments of its call, all but the time and the cost.

    `store.command(*charge.head, now_ms, cost, *charge.tail)` charges. It answers a number when there is one limit and
    it allows, of which `allowed` makes what remains and when it is whole again; else the milliseconds to wait (0: it is
    allowed), the number of the limit that decides, what remains of it, and when it is whole again.
    """

    algorithm: Algorithm
    per_ms: int
    count: int
    full: int
    """The first limit's capacity, times its period."""
    unit: int
    """What a script's answer is divided by to be what remains."""
    turns: int
    """How many windows later it is whole again, for the algorithms that have windows."""
    keys: tuple[str, ...]
    head: tuple[Argument, ...]
    tail: tuple[str, ...]

    def allowed(self, now_ms: int, room: int) -> tuple[int, int]:
        """What remains of the only limit, and when it is whole again, by what its script answered."""
        if self.turns:
            return room // self.unit, (now_ms // self.per_ms + self.turns) * self.per_ms
        if self.unit == 1:
            return room, now_ms + self.per_ms
        return room // self.unit, now_ms - (room - self.full) // self.count

    async def retry(self, store: Store, now_ms: int, cost: int) -> Reply:
        """Charge on a server that does not know the script. One round trip."""
        source = _CHARGE[self.algorithm].source
        return await store.command("EVAL", source, *self.head[2:], now_ms, cost, *self.tail)

    async def peek(self, store: Store, now_ms: int, cost: int) -> list[int]:
        """What charging would answer. Nothing is charged. One round trip."""
        rest = (*self.head[2:], now_ms, -cost, *self.tail)
        script = _CHARGE[self.algorithm]
        try:
            reply = await store.command("EVALSHA", script.sha, *rest)
        except ScriptMissing:
            reply = await store.command("EVAL", script.source, *rest)
        return numbers(reply)

    async def refund(self, store: Store, now_ms: int, cost: int, *, channel: str, message: str) -> None:
        """Give back what was charged lately, and tell everybody. One round trip."""
        await store.run(
            _REFUND[self.algorithm],
            **{_names(self.algorithm): self.keys},
            now_ms=now_ms,
            cost=cost,
            channel=channel,
            message=message,
            limits=self.tail,
        )


def charge_of(keys: Keys, name: str, limits: Sequence[Limit], identifier: str) -> Charge:
    """The call by which an identifier is charged."""
    algorithm = limits[0].algorithm
    counted = counted_keys(keys, name, limits, identifier)
    tail: list[str] = []
    for limit in limits:
        tail += (str(limit.per_ms), str(limit.count))
        if algorithm in WITH_BURST:
            tail.append(str(limit.capacity))
    head = ("EVALSHA", _CHARGE[algorithm].sha, str(len(counted)), *counted)
    first = limits[0]
    return Charge(
        algorithm,
        first.per_ms,
        first.count,
        first.capacity * first.per_ms,
        first.per_ms if algorithm in _SCALED else 1,
        _TURNS.get(algorithm, 0),
        counted,
        head,
        tuple(tail),
    )


def counted_keys(keys: Keys, name: str, limits: Sequence[Limit], identifier: str) -> tuple[str, ...]:
    """Where it is kept what an identifier has used of these limits."""
    return tuple(keys.rate_limit(name, limit.algorithm.value, limit.per_ms, identifier) for limit in limits)


async def reset(store: Store, charged: Sequence[str], *, channel: str, message: str) -> None:
    """Forget what was charged, and tell everybody. One round trip."""
    await store.run(_RESET, charged=charged, channel=channel, message=message)


async def add_refused(store: Store, counts: str, refused: Mapping[str, int]) -> None:
    """Add to the counts of an hour, of which the highest are kept. One round trip."""
    pairs = [part for identifier, count in refused.items() for part in (count, identifier)]
    await store.run(_REFUSED, counts=counts, ttl_s=_COUNTS_TTL_S, most=MOST_REFUSED, refused=pairs)


def lift_message(name: str, identifier: str) -> str:
    """What is published when an identifier may be allowed earlier than it was told."""
    return f"{escape(name)}:{escape(identifier)}"


def numbers(reply: Reply) -> list[int]:
    """The numbers that a script answered."""
    if isinstance(reply, list):
        found = [part for part in reply if isinstance(part, int)]
        if len(found) == len(reply):
            return found
    raise CodecError("the answer of a rate limit can't be read")


def _names(algorithm: Algorithm) -> str:
    return _REFUND[algorithm].keys[0].removesuffix("...")
