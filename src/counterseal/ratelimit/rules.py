"""Rules: which limits hold for whom: those that are declared, and those that were changed while it runs.

The changes are entries of a live hash: a field that says for whom, and JSON that says what.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final, TypeAlias
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

_LIST: Final = "list"

_Place: TypeAlias = tuple[str, str | None, str | None]
"""For whom limits are set: the name of a limiter, with a plan or an identifier or neither."""


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
    return f"{_LIST}:{escape(who)}"


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
        self._limits: dict[_Place, tuple[Limit, ...]] = {}
        self._lists = Lists()

    def update(self, entries: Mapping[str, bytes]) -> None:
        """Take over the entries of the live hash: those that have changed since the last time.

        One that can't be read is logged, once, and does not count.
        """
        raw = self._raw
        changed = [(field, value) for field, value in entries.items() if raw.get(field) != value]
        gone = [field for field in raw if field not in entries]
        for field in gone:
            del raw[field]
            self._drop(field)
        for field, value in changed:
            if field in raw:
                self._drop(field)
            raw[field] = value
            self._take(field, value)

    def limits(self, policy: Policy, identifier: str | None, plan: str | None) -> tuple[Limit, ...]:
        """The limits that hold: the identifier's own, else the plan's, else everybody's; changed ones go first."""
        name, changed = policy.name, self._limits
        if identifier is not None and (own := changed.get((name, None, identifier))):
            return own
        if plan is not None and (of_plan := changed.get((name, plan, None)) or policy.plans.get(plan)):
            return of_plan
        return changed.get((name, None, None)) or policy.limits

    def every_limit(self, policy: Policy, identifier: str) -> set[Limit]:
        """Whatever limits an identifier may have been charged by, whichever plan it has."""
        every = {*policy.limits, *(limit for limits in policy.plans.values() for limit in limits)}
        for (name, _, own), limits in self._limits.items():
            if name == policy.name and own in {None, identifier}:
                every.update(limits)
        return every

    def knows_plan(self, policy: Policy, plan: str) -> bool:
        """Whether a plan has limits of its own."""
        return plan in policy.plans or (policy.name, plan, None) in self._limits

    def listed(self, who: str) -> Reason | None:
        """`DENIED`, `EXEMPT` or None."""
        return self._lists.find(who)

    @property
    def lists(self) -> dict[str, Reason]:
        """Everybody who is listed."""
        return dict(self._lists.entries)

    def _take(self, field: str, value: bytes) -> None:
        try:
            if (who := _listed_of(field)) is not None:
                self._lists.add(who, _LISTED[decode_as(value, str, key=field)])
            elif (place := _place_of(field)) is not None:
                written = decode_as(value, list[_Written], key=field)
                self._limits[place] = checked_limits("limits", [_limit(limit) for limit in written])
            else:
                logger.warning("a rate limit that was set is of a kind that this release does not know")
        except (CodecError, ConfigurationError, KeyError, ValueError, OverflowError) as fault:
            kind = type(fault).__name__
            logger.warning("a rate limit that was set can't be read and does not count: %s", kind)

    def _drop(self, field: str) -> None:
        with suppress(ConfigurationError, ValueError):
            if (who := _listed_of(field)) is not None:
                self._lists.remove(who)
            elif (place := _place_of(field)) is not None:
                self._limits.pop(place, None)


def _listed_of(field: str) -> str | None:
    """Who is listed by a field; None when it is not one of a list. Raises when nobody can be listed so."""
    kind, _, escaped = field.partition(":")
    if kind != _LIST:
        return None
    who = _unescaped(escaped)
    if canonical(who) != who:
        raise ValueError("expected who is listed in the one spelling that is kept")
    return who


def _place_of(field: str) -> _Place | None:
    """For whom a field sets limits; None when it is not one of limits. Raises when it can't be read."""
    match field.split(":"):
        case ["limits", name]:
            return _unescaped(name), None, None
        case ["limits", name, "plan", plan]:
            return _unescaped(name), _unescaped(plan), None
        case ["limits", name, "identifier", identifier]:
            return _unescaped(name), None, _unescaped(identifier)
        case _:
            return None


def _unescaped(text: str) -> str:
    plain = unquote(text)
    if escape(plain) != text:
        raise ValueError("expected text in the one spelling that is kept")
    return plain


def _limit(written: _Written) -> Limit:
    return Limit(
        written.count,
        timedelta(milliseconds=written.per_ms),
        Algorithm(written.algorithm),
        written.burst,
    )
