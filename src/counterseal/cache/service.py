"""Cache: what an application keeps at hand for a while, by kind and identifier."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from msgspec import Raw

from counterseal.cache.entry import pack, unpack
from counterseal.cache.kind import KINDS, Kind, configured
from counterseal.core.codec import JsonValue
from counterseal.core.errors import CodecError, CommandError, StoreError, UnknownName
from counterseal.store.base import Store
from counterseal.store.keys import CACHE_GENERATION_TTL, Keys
from counterseal.store.wire import raised

_GRACE_MS: Final = 60_000  # the entry's own time decides; the key's TTL only collects what nobody asks for
_GENERATION_S: Final = CACHE_GENERATION_TTL // timedelta(seconds=1)
_PROBE: Final = Kind("probe", timedelta(seconds=10))


@dataclass(frozen=True, slots=True)
class CacheProbe:
    """What a cache did with a value of its own: each is true when that operation ran and had its effect.

    `fault` is the first thing that went wrong, None when all three are true.
    """

    set: bool
    get: bool
    delete: bool
    fault: StoreError | CodecError | None = None


class KindCache:
    """The cached values of one kind. Absence is None, whether it never was, expired, or was cleared."""

    def __init__(self, store: Store, *, keys: Keys, kind: Kind) -> None:
        self.kind = kind
        self._store = store
        self._keys = keys
        self._generation_key = keys.cache_generation(kind.name)

    async def get(self, identifier: str) -> dict[str, JsonValue] | None:
        """The value of an identifier, equal to what was set, or None. One round trip.

        Raises `CodecError` naming the key when what is stored can't be read, and `StoreUnavailable`.
        """
        key = self._key(identifier)
        stored, generation = await asyncio.gather(
            self._store.command("GET", key), self._store.command("GET", self._generation_key)
        )
        if not (isinstance(stored, bytes) and isinstance(generation, bytes)):
            return None
        value = unpack(stored, generation=_text(generation), now_ms=self._store.now_ms(), key=key)
        if value is not None and not isinstance(value, dict):
            raise CodecError(f"a stored value of {self.kind.name} is not an object", key=key)
        return value

    async def set(self, identifier: str, value: Mapping[str, JsonValue]) -> None:
        """Keep a JSON object for the lifetime of the kind. Two round trips; three for the first of a kind.

        Raises `CodecError` with the path, before anything is written, when the value is not a JSON object or has a
        member that the kind refuses; and `StoreUnavailable`.
        """
        text = self.kind.text(value)
        generation = await self._current_generation()
        await self._store.command(*self._set_command(self._key(identifier), text, generation))

    async def invalidate(self, identifier: str) -> bool:
        """Forget one value; whether there was one. One round trip."""
        return await self._store.command("UNLINK", self._key(identifier)) == 1

    async def clear(self) -> None:
        """Forget every value of the kind, in one round trip however many there are: its generation changes."""
        await self._store.command(*self.clear_command())

    def clear_command(self) -> tuple[str | int, ...]:
        """The command that `clear` sends, for whoever clears several kinds in one round trip."""
        return "SET", self._generation_key, _new_generation(), "EX", _GENERATION_S

    async def probe(self) -> CacheProbe:
        """Write a value of its own under a new identifier, read it back, compare, delete it and see that it is gone.

        Two round trips. Never raises for what Redis answers: each operation is judged for itself.
        """
        key = self._key(secrets.token_hex(8))
        value: dict[str, JsonValue] = {"token": secrets.token_hex(16)}
        try:
            generation = await self._current_generation()
            written, read, deleted, left = await self._store.pipeline(
                [
                    self._set_command(key, self.kind.text(value), generation),
                    ("GET", key),
                    ("UNLINK", key),
                    ("EXISTS", key),
                ]
            )
        except StoreError as fault:
            return CacheProbe(set=False, get=False, delete=False, fault=fault)
        faults = [reply for reply in (written, read, deleted, left) if isinstance(reply, CommandError)]
        was_set = written == b"OK"
        expected = value if was_set else None
        found: JsonValue = None
        unreadable: CodecError | None = None
        if isinstance(read, bytes):
            try:
                found = unpack(read, generation=generation, now_ms=self._store.now_ms(), key=key)
            except CodecError as fault:
                unreadable = fault
        return CacheProbe(
            set=was_set,
            get=not isinstance(read, CommandError) and unreadable is None and found == expected,
            delete=deleted == int(was_set) and left == 0,
            fault=faults[0] if faults else unreadable,
        )

    async def _current_generation(self) -> str:
        """The generation to write under. One round trip; two when the kind has none yet."""
        current = await self._store.command("GETEX", self._generation_key, "EX", _GENERATION_S)
        if isinstance(current, bytes):
            return _text(current)
        fresh = _new_generation()
        # Somebody else may be first: then theirs counts.
        first = await self._store.command(
            "SET", self._generation_key, fresh, "NX", "GET", "EX", _GENERATION_S
        )
        return _text(first) if isinstance(first, bytes) else fresh

    def _set_command(self, key: str, value: Raw, generation: str) -> tuple[str | bytes | int, ...]:
        ttl_ms = self.kind.ttl // timedelta(milliseconds=1)
        data = pack(value, generation=generation, expires_ms=self._store.now_ms() + ttl_ms)
        return "SET", key, data, "PX", ttl_ms + _GRACE_MS

    def _key(self, identifier: str) -> str:
        return self._keys.cache_value(self.kind.name, identifier)


class Cache:
    """The kinds of an application, ready to use. It has no task and no connection of its own.

    `kinds` are the application's own, besides the five of every document-signing application; `ttls` are lifetimes by
    name that replace the declared ones. Raises `ConfigurationError` when the two do not fit together.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        kinds: Iterable[Kind] = (),
        ttls: Mapping[str, timedelta] | None = None,
    ) -> None:
        self._store = store
        self._kinds = {
            name: KindCache(store, keys=keys, kind=kind)
            for name, kind in configured((*KINDS, *kinds), ttls or {}).items()
        }
        self._probe = KindCache(store, keys=keys, kind=_PROBE)

    @property
    def user_profiles(self) -> KindCache:
        """User profiles by user id, 15 min."""
        return self._kinds["user_profile"]

    @property
    def documents(self) -> KindCache:
        """Metadata of documents by document id, 5 min."""
        return self._kinds["document"]

    @property
    def totp_configs(self) -> KindCache:
        """TOTP configurations by user id, 30 min; never a secret, a backup code or the last step."""
        return self._kinds["totp_config"]

    @property
    def domain_settings(self) -> KindCache:
        """Settings of a domain, by domain, 1 h."""
        return self._kinds["domain_settings"]

    @property
    def notification_preferences(self) -> KindCache:
        """What a user wants to be told of, by user id, 1 h."""
        return self._kinds["notification_preferences"]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds, in the order in which they were declared."""
        return tuple(cache.kind for cache in self._kinds.values())

    def kind(self, name: str) -> KindCache:
        """The values of one kind by its name. Raises `UnknownName` listing the known ones."""
        if name not in self._kinds:
            raise UnknownName(f"no cache kind is named {name!r}; known are {', '.join(sorted(self._kinds))}")
        return self._kinds[name]

    async def clear(self, name: str | None = None) -> None:
        """Forget every value of a kind, or of all kinds. One round trip, however many values there are.

        Nothing is searched or deleted: old values no longer count, and leave by their TTL.
        """
        caches = list(self._kinds.values()) if name is None else [self.kind(name)]
        for reply in await self._store.pipeline([cache.clear_command() for cache in caches]):
            raised(reply)

    async def probe(self) -> CacheProbe:
        """Exercise the cache with a value of its own. Two round trips; raises for nothing that Redis answers."""
        return await self._probe.probe()


def _text(generation: bytes) -> str:
    return generation.decode("ascii", "replace")


def _new_generation() -> str:
    return secrets.token_hex(8)
