"""Kind: one sort of cached value, with its lifetime and what it must never hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, cast

import msgspec

from counterseal.core.codec import to_raw
from counterseal.core.errors import CodecError, ConfigurationError
from counterseal.core.settings import CACHE_TTL_PREFIX

LONGEST_TTL: Final = timedelta(days=7)
"""A generation must outlive every value that was written under it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of cached value. `refused` are names of members that no value of this kind may have, at any depth."""

    name: str
    ttl: timedelta
    refused: frozenset[str] = frozenset()

    def text(self, value: object) -> msgspec.Raw:
        """The JSON text of a value of this kind.

        Raises `CodecError` with the path when it is not an object, not JSON, or has a member that this kind refuses.
        """
        if type(value) is not dict:
            raise CodecError(f"{self.name} takes an object, and a {type(value).__name__} came", path="$")
        raw = to_raw(cast("object", value))
        if self.refused:
            self._check_members(cast("object", value), "$")
        return raw

    def _check_members(self, value: object, path: str) -> None:
        if isinstance(value, dict):
            for name, member in cast("dict[object, object]", value).items():
                if name in self.refused:
                    raise CodecError(f"{self.name} never holds a member named {name}", path=path)
                self._check_members(member, f"{path}.{name}")
        elif isinstance(value, list):
            for index, item in enumerate(cast("list[object]", value)):
                self._check_members(item, f"{path}[{index}]")


USER_PROFILES: Final = Kind("user_profile", timedelta(minutes=15))
DOCUMENTS: Final = Kind("document", timedelta(minutes=5))
TOTP_CONFIGS: Final = Kind(
    "totp_config", timedelta(minutes=30), frozenset({"secret", "backup_codes", "last_step"})
)
DOMAIN_SETTINGS: Final = Kind("domain_settings", timedelta(hours=1))
NOTIFICATION_PREFERENCES: Final = Kind("notification_preferences", timedelta(hours=1))

KINDS: Final = (USER_PROFILES, DOCUMENTS, TOTP_CONFIGS, DOMAIN_SETTINGS, NOTIFICATION_PREFERENCES)
"""The kinds of a document-signing application: user id, document id, user id, domain, user id."""


def configured(kinds: Iterable[Kind], ttls: Mapping[str, timedelta]) -> dict[str, Kind]:
    """Kinds by name, with the lifetimes of the settings.

    Raises `ConfigurationError` for a lifetime of a kind that nobody declared, a kind declared twice, and a lifetime
    beyond `LONGEST_TTL`.
    """
    faults: list[str] = []
    chosen: dict[str, Kind] = {}
    for kind in kinds:
        if kind.name in chosen:
            faults.append(f"the cache kind {kind.name} is declared twice")
        chosen[kind.name] = replace(kind, ttl=ttls.get(kind.name, kind.ttl))
    known = ", ".join(sorted(chosen))
    faults.extend(
        f"{CACHE_TTL_PREFIX}{name.upper()}: no cache kind has this name; the kinds are {known}"
        for name in sorted(set(ttls) - set(chosen))
    )
    faults.extend(
        f"{CACHE_TTL_PREFIX}{kind.name.upper()}: expected a duration from 1ms to {LONGEST_TTL.days}d"
        for kind in chosen.values()
        if not timedelta(milliseconds=1) <= kind.ttl <= LONGEST_TTL
    )
    if faults:
        raise ConfigurationError(faults)
    return chosen
