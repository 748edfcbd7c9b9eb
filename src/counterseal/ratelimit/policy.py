"""Policy: a limiter as it is declared: its name, its limits, and what it does without Redis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol, cast, runtime_checkable

from counterseal.core.errors import ConfigurationError
from counterseal.ratelimit.decision import Decision
from counterseal.ratelimit.identifier import checked_text
from counterseal.ratelimit.limit import Limit

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class WithoutRedis(StrEnum):
    """What a limiter does while Redis does not answer."""

    OPEN = "open"
    """Each process counts for itself, and allows its share of the limit."""
    CLOSED = "closed"
    """Everything is refused."""


@runtime_checkable
class Elsewhere(Protocol):
    """Counts for a limiter while Redis does not answer, as in a database. Each call has 2 seconds.

    `name` is that of the limiter. What takes longer, or raises, is a refusal, and nothing is given back.
    """

    async def charge(self, name: str, identifier: str, cost: int) -> Decision | None:
        """Decide, and charge `cost` if it is allowed. None when it can't be told: then the call is refused."""
        ...

    async def refund(self, name: str, identifier: str, cost: int) -> bool:
        """Give back what `charge` has charged, as for a code that was right; whether that was done."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """A limiter: `Policy("uploads", (Limit(10, timedelta(seconds=1)), Limit(1000, timedelta(days=1))))`.

    Limits of one policy are charged together, all or none, for one identifier, in one round trip. They have one
    algorithm and different periods. `plans` has the limits of those who have another plan. Raises `ConfigurationError`
    with field, expectation and value.
    """

    name: str
    limits: tuple[Limit, ...]
    without_redis: WithoutRedis | Elsewhere = WithoutRedis.OPEN
    plans: Mapping[str, tuple[Limit, ...]] = field(default_factory=dict[str, tuple[Limit, ...]])

    def __post_init__(self) -> None:
        name = cast("object", self.name)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"policy.name: expected 1 to 64 letters, digits, '_', '-' or '.'; came: {name!r}"
            )
        object.__setattr__(self, "limits", checked_limits("policy.limits", self.limits))
        without = cast("object", self.without_redis)
        if not isinstance(without, (WithoutRedis, Elsewhere)):
            raise ConfigurationError(
                f"policy.without_redis: expected open, closed or an Elsewhere; came: {without!r}"
            )
        plans = {
            checked_plan("policy.plans", plan): checked_limits(f"policy.plans[{plan!r}]", limits)
            for plan, limits in self.plans.items()
        }
        object.__setattr__(self, "plans", MappingProxyType(plans))


def checked_limits(where: str, limits: Limit | Iterable[Limit]) -> tuple[Limit, ...]:
    """Limits that can be charged together. Raises `ConfigurationError` that says `where` they can't."""
    given = cast("tuple[object, ...]", (limits,) if isinstance(limits, Limit) else tuple(limits))
    checked = tuple(limit for limit in given if isinstance(limit, Limit))
    if not checked or len(checked) < len(given):
        kinds = ", ".join(type(limit).__name__ for limit in given) or "none"
        raise ConfigurationError(f"{where}: expected one Limit or several; came: {kinds}")
    algorithms = list(dict.fromkeys(limit.algorithm for limit in checked))
    if len(algorithms) > 1:
        raise ConfigurationError(
            f"{where}: expected one algorithm for limits charged together; came: {', '.join(algorithms)}"
        )
    periods = [str(limit.per) for limit in checked]
    if len(set(periods)) < len(periods):
        raise ConfigurationError(f"{where}: expected a different period for each; came: {', '.join(periods)}")
    return checked


def checked_plan(where: str, plan: object) -> str:
    """The name of a plan: text of 1 to 1024 bytes. Raises `ConfigurationError`."""
    if not isinstance(plan, str) or not plan:
        raise ConfigurationError(f"{where}: expected the name of a plan; came: {plan!r}")
    return checked_text(where, plan)


def _minutes(name: str, count: int, minutes: int, without_redis: WithoutRedis) -> Policy:
    return Policy(name, (Limit(count, timedelta(minutes=minutes)),), without_redis)


POLICIES: Final = (
    _minutes("api", 100, 1, WithoutRedis.OPEN),
    _minutes("auth", 10, 1, WithoutRedis.CLOSED),
    _minutes("corporate_admin", 50, 1, WithoutRedis.OPEN),
    _minutes("email", 20, 60, WithoutRedis.OPEN),
    _minutes("pdf_generation", 5, 1, WithoutRedis.OPEN),
    _minutes("totp", 5, 5, WithoutRedis.CLOSED),
    _minutes("verification", 30, 1, WithoutRedis.OPEN),
)
"""The limiters that are always there. An application's policy of the same name takes the place of one."""
