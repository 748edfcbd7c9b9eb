"""Rules: which limits hold for whom: those that are declared, and those that were changed while it runs.

The changes are entries of a live hash: a field that says for whom, and JSON that says what.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import unquote

import msgspec

from counterseal.core.codec import decode_as, encode
from counterseal.core.errors import CodecError, ConfigurationError
from counterseal.ratelimit.decision import Reason
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.lists import Lists, canonical
from counterseal.ratelimit.policy import Policy, checked_limits
from counterseal.store.keys import escape

logger = logging.getLogger(__name__)

_LISTED: Final = {"deny": Reason.DENIED, "allow": Reason.EXEMPT}

_Held = tuple[Limit, ...] | Reason | None


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    """A limit as it is written."""

    count: int
    per_ms: int
    algorithm: str
    burst: int | None = None


def limits_field(name: str, *, plan: str | None = None, identifier: str | None = None) -> str:
    """The field of a limiter's limits: for everybody, for a plan, or for one identifier."""
    if identifier is not None:
        return f"limits:{escape(name)}:identifier:{escape(identifier)}"
    if plan is not None:
        return f"limits:{escape(name)}:plan:{escape(plan)}"
    return f"limits:{escape(name)}"


def list_field(who: str) -> str:
    """The field of somebody on the deny or the allow list. `who` is canonical."""
    return f"list:{escape(who)}"


def write_limits(limits: Iterable[Limit]) -> bytes:
    """Limits as an entry holds them."""
    return encode(
        [
            {
                "count": limit.count,
                "per_ms": limit.per_ms,
                "algorithm": limit.algorithm.value,
                "burst": limit.burst,
            }
            for limit in limits
        ]
    )


def write_listed(reason: Reason) -> bytes:
    """A place on a list as an entry holds it."""
    return encode("deny" if reason is Reason.DENIED else "allow")


class Rules:
    """What holds now. Reading it asks nobody."""

    def __init__(self) -> None:
        self._raw: dict[str, bytes] = {}
        self._held: dict[str, _Held] = {}
        self._lists = Lists()

    def update(self, entries: Mapping[str, bytes]) -> None:
        """Take over the entries of the live hash. One that can't be read is logged, once, and does not count."""
        held: dict[str, _Held] = {}
        for field, value in entries.items():
            known = self._raw.get(field) == value
            held[field] = self._held[field] if known else _read(field, value)
        self._raw = dict(entries)
        self._held = held
        self._lists = Lists(
            (unquote(field.removeprefix("list:")), value)
            for field, value in held.items()
            if isinstance(value, Reason)
        )

    def limits(self, policy: Policy, identifier: str | None, plan: str | None) -> tuple[Limit, ...]:
        """The limits that hold: the identifier's own, else the plan's, else everybody's; changed ones go first."""
        name = policy.name
        if identifier is not None and (own := self._limits(limits_field(name, identifier=identifier))):
            return own
        if plan is not None:
            changed = self._limits(limits_field(name, plan=plan))
            if changed or plan in policy.plans:
                return changed or policy.plans[plan]
        return self._limits(limits_field(name)) or policy.limits

    def every_limit(self, policy: Policy, identifier: str) -> set[Limit]:
        """Whatever limits an identifier may have been charged by, whichever plan it has."""
        prefix = limits_field(policy.name, plan="")
        plans = {unquote(field.removeprefix(prefix)) for field in self._held if field.startswith(prefix)}
        every = {*self.limits(policy, identifier, None), *self.limits(policy, None, None), *policy.limits}
        for plan in (*plans, *policy.plans):
            every.update(self.limits(policy, None, plan))
            every.update(policy.plans.get(plan, ()))
        return every

    def knows_plan(self, policy: Policy, plan: str) -> bool:
        """Whether a plan has limits of its own."""
        return plan in policy.plans or bool(self._limits(limits_field(policy.name, plan=plan)))

    def listed(self, who: str) -> Reason | None:
        """`DENIED`, `EXEMPT` or None."""
        return self._lists.find(who)

    @property
    def lists(self) -> dict[str, Reason]:
        """Everybody who is listed."""
        return {
            unquote(field.removeprefix("list:")): value
            for field, value in self._held.items()
            if isinstance(value, Reason)
        }

    def _limits(self, field: str) -> tuple[Limit, ...] | None:
        held = self._held.get(field)
        return held if isinstance(held, tuple) else None


def _read(field: str, value: bytes) -> _Held:
    """What an entry says; None when that can't be read."""
    try:
        if field.startswith("list:"):
            who = unquote(field.removeprefix("list:"))
            if canonical(who) == who:
                return _LISTED[decode_as(value, str, key=field)]
        elif field.startswith("limits:"):
            written = decode_as(value, list[_Written], key=field)
            return checked_limits("limits", [_limit(limit) for limit in written])
    except (CodecError, ConfigurationError, KeyError, ValueError, OverflowError) as fault:
        logger.warning("a rate limit that was set can't be read and does not count: %s", type(fault).__name__)
        return None
    logger.warning("a rate limit that was set is of a kind that this release does not know")
    return None


def _limit(written: _Written) -> Limit:
    return Limit(
        written.count,
        timedelta(milliseconds=written.per_ms),
        Algorithm(written.algorithm),
        written.burst,
    )
