"""Kind: one sort of cached value, with its type, its lifetimes and what it must never hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Generic, Literal, TypeAlias, cast

from typing_extensions import TypeVar

from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import CACHE_TTL_PREFIX

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object. Its members are checked when it is written, not by the type checker: their types are invariant."""

T = TypeVar("T", default=JsonObject)

LONGEST_TTL: Final = timedelta(days=7)
"""A generation must outlive every value that was written under it."""

LONGEST_WINDOW: Final = timedelta(days=7)
MAX_VALUE_BYTES: Final = 2**20

_MS: Final = timedelta(milliseconds=1)
_NONE: Final = timedelta(0)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One sort of cached value: `Kind("team", timedelta(minutes=10), type=Team)`.

    `type` is whatever type msgspec decodes; without one a value is a JSON object.

    - `ttl`: how long a value is fresh, give or take 10 %, so that what was filled together does not end together.
    - `negative_ttl`: how long the loader's answer None is kept; None does not keep it.
    - `stale_while_revalidate`: how much longer a value is handed out while one caller loads a new one.
    - `stale_if_error`: how much longer a value is handed out when loading a new one fails.
    - `early_refresh`: load a new value shortly before the old one ends, the sooner the longer a load takes.
    - `near`: keep values in this process's memory, never longer than this; None keeps none.
    - `owner`: whose values these are when the identifier is a user's or a domain's: `invalidate_user` forgets them.
    - `refused`: names of members that no value may have, at any depth.
    - `lives`: tells a value's own lifetime where that is shorter than the kind's; of none at all it is not kept.
    - `may_be_stale`: tells whether a value may be handed out after its lifetime, within the windows of the kind.
    - `max_value_bytes`: the longest JSON text of a value; a longer one is refused, never cut.

    Raises `ConfigurationError` naming the kind, the field, what is expected and what came.
    """

    name: str
    ttl: timedelta
    type: type[T] | None = None
    negative_ttl: timedelta | None = timedelta(seconds=30)
    stale_while_revalidate: timedelta = _NONE
    stale_if_error: timedelta = _NONE
    early_refresh: bool = True
    near: timedelta | None = None
    owner: Literal["user", "domain"] | None = None
    refused: frozenset[str] = frozenset()
    max_value_bytes: int = MAX_VALUE_BYTES
    lives: Callable[[T], timedelta | None] | None = None
    may_be_stale: Callable[[T], bool] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(cast("object", self.name), str) and _NAME.fullmatch(self.name)):
            raise ConfigurationError(
                f"Kind.name: expected up to 64 small letters, digits and '_'; came: {self.name!r}"
            )
        self._check("ttl", self.ttl, _MS, LONGEST_TTL)
        self._check("stale_while_revalidate", self.stale_while_revalidate, _NONE, LONGEST_WINDOW)
        self._check("stale_if_error", self.stale_if_error, _NONE, LONGEST_WINDOW)
        if self.negative_ttl is not None:
            self._check("negative_ttl", self.negative_ttl, _MS, LONGEST_TTL)
        if self.near is not None:
            self._check("near", self.near, _MS, LONGEST_TTL)
        if self.owner not in {None, "user", "domain"}:
            raise self._fault("owner", "'user', 'domain' or None", self.owner)
        if not isinstance(cast("object", self.refused), frozenset):
            raise self._fault("refused", "a frozenset of names", self.refused)
        if not isinstance(cast("object", self.max_value_bytes), int) or self.max_value_bytes < 1:
            raise self._fault("max_value_bytes", "a whole number of at least 1", self.max_value_bytes)

    def _check(self, field: str, value: object, least: timedelta, most: timedelta) -> None:
        if not (isinstance(value, timedelta) and least <= value <= most):
            raise self._fault(field, f"a timedelta from {_written(least)} to {_written(most)}", value)

    def _fault(self, field: str, expected: str, came: object) -> ConfigurationError:
        shown = came if isinstance(came, timedelta) else repr(came)
        return ConfigurationError(f"Kind {self.name}: {field}: expected {expected}; came: {shown}")


USER_PROFILES: Final = Kind[JsonObject]("user_profile", timedelta(minutes=15), owner="user")
DOCUMENTS: Final = Kind[JsonObject]("document", timedelta(minutes=5))
TOTP_CONFIGS: Final = Kind[JsonObject](
    "totp_config",
    timedelta(minutes=30),
    owner="user",
    refused=frozenset({"secret", "backup_codes", "last_step"}),
)
DOMAIN_SETTINGS: Final = Kind[JsonObject]("domain_settings", timedelta(hours=1), owner="domain")
NOTIFICATION_PREFERENCES: Final = Kind[JsonObject](
    "notification_preferences", timedelta(hours=1), owner="user"
)

KINDS: Final = (USER_PROFILES, DOCUMENTS, TOTP_CONFIGS, DOMAIN_SETTINGS, NOTIFICATION_PREFERENCES)
"""The kinds of a document-signing application: user id, document id, user id, domain, user id."""


def configured(kinds: Iterable[Kind[Any]], ttls: Mapping[str, timedelta]) -> dict[str, Kind[Any]]:
    """The kinds of an application by name: the five, its own, and the lifetimes of the settings.

    A kind of its own with the name of one of the five replaces it, and refuses what that one refuses. Raises
    `ConfigurationError` for a lifetime of a kind that nobody declared, a kind declared twice, and a lifetime beyond
    `LONGEST_TTL`.
    """
    faults: list[str] = []
    shipped = {kind.name: kind for kind in KINDS}
    chosen: dict[str, Kind[Any]] = dict(shipped)
    own: set[str] = set()
    for kind in kinds:
        if kind.name in own:
            faults.append(f"the cache kind {kind.name} is declared twice")
        own.add(kind.name)
        refused = shipped[kind.name].refused if kind.name in shipped else frozenset[str]()
        chosen[kind.name] = replace(kind, refused=kind.refused | refused)
    known = ", ".join(sorted(chosen))
    faults.extend(
        f"{CACHE_TTL_PREFIX}{name.upper()}: no cache kind has this name; the kinds are {known}"
        for name in sorted(set(ttls) - set(chosen))
    )
    for name in set(ttls) & set(chosen):
        if is_ttl(ttls[name]):
            chosen[name] = replace(chosen[name], ttl=ttls[name])
        else:
            faults.append(
                f"{CACHE_TTL_PREFIX}{name.upper()}: expected a duration from 1ms to {LONGEST_TTL.days}d"
            )
    if faults:
        raise ConfigurationError(faults)
    return chosen


def is_ttl(ttl: timedelta) -> bool:
    """Whether a kind may have this lifetime."""
    return _MS <= ttl <= LONGEST_TTL


def _written(duration: timedelta) -> str:
    return f"{duration.days} days" if duration.days else f"{duration // _MS} ms"
