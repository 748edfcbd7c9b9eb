"""Cache: what an application keeps at hand for a while, by kind and identifier."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from counterseal.cache.changes import Changes
from counterseal.cache.flights import Flights
from counterseal.cache.generations import Generations, bump
from counterseal.cache.kind import LONGEST_TTL, JsonObject, Kind, T, configured, is_ttl
from counterseal.cache.near import NearMemory
from counterseal.cache.probe import CacheProbe, exercise
from counterseal.cache.stats import KindStats, by_hour, by_kind
from counterseal.cache.values import KindCache
from counterseal.cache.wakes import Wakes
from counterseal.core.errors import ConfigurationError, UnknownName
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.live import LiveHash
from counterseal.store.tallies import Tallies

logger = logging.getLogger(__name__)

NEAR_BYTES: Final = 64 * 2**20
STATS_TTL: Final = timedelta(days=8)

_MS: Final = timedelta(milliseconds=1)


class Cache:
    """The kinds of an application, ready to use.

    `kinds` are the application's own, besides the five of every document-signing application or in their place; `ttls`
    are lifetimes by name that replace the declared ones; `near_bytes` bounds what is kept in this process's memory, for
    the kinds that ask for it. Raises `ConfigurationError` when they do not fit together.

    Use it as `async with`, or call `close`: it has tasks of its own as soon as something is loaded, counted or near.
    Lifetimes that were changed at run time are known once it was entered.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        kinds: Iterable[Kind[Any]] = (),
        ttls: Mapping[str, timedelta] | None = None,
        near_bytes: int = NEAR_BYTES,
    ) -> None:
        self._store = store
        self._keys = keys
        self._declared = configured(kinds, ttls or {})
        self._generations = Generations(store)
        self._wakes = Wakes(store, channel=keys.cache_loaded())
        self._flights = Flights(self._wakes)
        self._tallies = Tallies(store, key=lambda hour: keys.tallies("cache", hour), ttl=STATS_TTL)
        self._lifetimes = LiveHash(
            store,
            key=keys.live("cache-ttl"),
            channel=keys.live_channel("cache-ttl"),
            on_change=self._apply_lifetimes,
        )
        memory = NearMemory(near_bytes)
        near = {kind.name: memory.add(kind.name) for kind in self._declared.values() if kind.near is not None}
        self._changes = Changes(store, keys=keys, memory=memory)
        self._memory = memory
        self._kinds = {
            name: KindCache(
                store,
                keys=keys,
                kind=kind,
                generations=self._generations,
                flights=self._flights,
                tallies=self._tallies,
                near=near.get(name),
                listen=self._changes.begin,
            )
            for name, kind in self._declared.items()
        }

    async def __aenter__(self) -> Self:
        """Read the lifetimes that were changed at run time. One round trip; without Redis the declared ones hold."""
        self._flights.open()
        self._changes.open()
        self._tallies.open()
        await self._lifetimes.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End what is under way, and send what was counted. At most one round trip. Safe to call twice."""
        await self._flights.close()
        await self._wakes.close()
        await self._changes.close()
        await self._lifetimes.close()
        await self._tallies.close()

    # -- kinds ---------------------------------------------------------------------------------------------------

    @property
    def user_profiles(self) -> KindCache[JsonObject]:
        """User profiles by user id, 15 min."""
        return self._kinds["user_profile"]

    @property
    def documents(self) -> KindCache[JsonObject]:
        """Metadata of documents by document id, 5 min."""
        return self._kinds["document"]

    @property
    def totp_configs(self) -> KindCache[JsonObject]:
        """TOTP configurations by user id, 30 min; never a secret, a backup code or the last step."""
        return self._kinds["totp_config"]

    @property
    def domain_settings(self) -> KindCache[JsonObject]:
        """Settings of a domain, by domain, 1 h."""
        return self._kinds["domain_settings"]

    @property
    def notification_preferences(self) -> KindCache[JsonObject]:
        """What a user wants to be told of, by user id, 1 h."""
        return self._kinds["notification_preferences"]

    @property
    def kinds(self) -> tuple[Kind[Any], ...]:
        """All kinds, the five first, then the application's own in the order in which they were declared."""
        return tuple(self._declared.values())

    def kind(self, name: str) -> KindCache[Any]:
        """The values of one kind by its name. Raises `UnknownName` listing the known ones."""
        if name not in self._kinds:
            raise UnknownName(f"no cache kind is named {name!r}; known are {', '.join(sorted(self._kinds))}")
        return self._kinds[name]

    def of(self, kind: Kind[T]) -> KindCache[T]:
        """The values of one kind by its declaration, typed. Raises `UnknownName` listing the known ones."""
        return self.kind(kind.name)

    # -- invalidation over kinds ---------------------------------------------------------------------------------

    async def clear(self, name: str | None = None) -> None:
        """Forget every value of a kind, or of all kinds. One round trip, however many values there are.

        Nothing is searched or deleted: old values no longer count, and leave by their TTL.
        """
        caches = list(self._kinds.values()) if name is None else [self.kind(name)]
        await asyncio.gather(*(cache.clear() for cache in caches))

    async def invalidate_tags(self, *tags: str) -> None:
        """Forget every value that carries one of these tags. One round trip, however many values there are."""
        keys = [self._keys.cache_tag(tag) for tag in dict.fromkeys(tags)]
        try:
            await asyncio.gather(*(bump(self._store, self._keys, key) for key in keys))
        finally:
            for key in keys:
                self._memory.tag_changed(key.removeprefix(self._keys.cache_tags()).encode())

    async def invalidate_user(self, user_id: str) -> None:
        """Forget everything of a user: in every kind whose `owner` is a user, and what carries the tag `user:<id>`.

        One round trip.
        """
        await self._invalidate_owner("user", user_id)

    async def invalidate_domain(self, domain: str) -> None:
        """Forget everything of a domain: in every kind whose `owner` is a domain, and what carries `domain:<domain>`.

        One round trip.
        """
        await self._invalidate_owner("domain", domain)

    async def _invalidate_owner(self, owner: str, identifier: str) -> None:
        owned = [self._kinds[name] for name, kind in self._declared.items() if kind.owner == owner]
        await asyncio.gather(
            self.invalidate_tags(f"{owner}:{identifier}"), *(cache.invalidate(identifier) for cache in owned)
        )

    # -- lifetimes -----------------------------------------------------------------------------------------------

    async def set_ttl(self, name: str, ttl: timedelta | None) -> None:
        """Change the lifetime of a kind in every process, for what is written from now on; None takes that back.

        It outlives restarts and counts before the settings. One round trip. Raises `UnknownName`, and
        `ConfigurationError` for a lifetime that no kind may have.
        """
        self.kind(name)
        if ttl is None:
            await self._lifetimes.remove(name)
            return
        if not is_ttl(ttl):
            raise ConfigurationError(
                f"ttl of {name}: expected a duration from 1ms to {LONGEST_TTL.days}d; came: {ttl}"
            )
        await self._lifetimes.set(name, str(ttl // _MS).encode())

    def _apply_lifetimes(self) -> None:
        changed = self._lifetimes.entries
        for name, cache in self._kinds.items():
            written = changed.get(name, b"")
            ttl = timedelta(milliseconds=int(written)) if written.isdigit() and len(written) < 12 else None
            if written and (ttl is None or not is_ttl(ttl)):
                logger.warning("the lifetime of %s that was set at run time can't be read", name)
                ttl = None
            cache.ttl = ttl or cache.kind.ttl

    # -- statistics ----------------------------------------------------------------------------------------------

    async def stats(self, hours: int = 24) -> dict[str, dict[str, KindStats]]:
        """What the kinds did in the last hours, by kind and by hour (`2026-11-24T09`, UTC), in all processes.

        One round trip. Raises `StoreUnavailable`.
        """
        return by_hour(await self._tallies.read(hours), self._kinds)

    @property
    def totals(self) -> dict[str, KindStats]:
        """What the kinds did in this process since it started. No round trip."""
        return by_kind(self._tallies.totals, self._kinds)

    @property
    def near_bytes(self) -> int:
        """What is kept in this process's memory, in bytes as `near_bytes` counts them. No round trip."""
        return self._memory.bytes

    async def probe(self) -> CacheProbe:
        """Exercise the cache with a value of its own. Two round trips; raises for nothing that Redis answers."""
        return await exercise(self._store, keys=self._keys, generations=self._generations)
