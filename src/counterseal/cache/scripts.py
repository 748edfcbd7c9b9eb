"""The atomic operations of the cache, one typed call for each file in `lua/`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from counterseal.cache.entry import tombstone
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.scripts import load_script

LEASE_MS: Final = 5_000
"""A loader that died is replaced after so long; one that lives prolongs its lease."""

LONGEST_LOAD_MS: Final = 60_000
"""What took longer to load is not kept: nobody could know whether it was invalidated meanwhile."""

GRACE_MS: Final = 2 * LONGEST_LOAD_MS
"""What was written or invalidated stays at least so long, for late fills to find it."""

_CLAIM: Final = load_script("counterseal.cache", "claim")
_PROLONG: Final = load_script("counterseal.cache", "prolong")
_FILL: Final = load_script("counterseal.cache", "fill")
_RELEASE: Final = load_script("counterseal.cache", "release")
_INVALIDATE: Final = load_script("counterseal.cache", "invalidate")


@dataclass(frozen=True, slots=True)
class Granted:
    """This caller loads."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Something was written or invalidated since the caller looked: look again."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Somebody else loads; the lease ends in so many milliseconds unless it is prolonged."""

    left_ms: int


Claim = Granted | Changed | Waiting


@dataclass(frozen=True, slots=True)
class Slot:
    """The calls for one value. Each is one round trip and raises `StoreUnavailable` when Redis does not answer.

    `publishes` is whether changes are told to the processes that keep the kind in their memory.
    """

    store: Store
    keys: Keys
    kind: str
    identifier: str
    publishes: bool

    async def claim(self, token: str, *, seen: bytes, under: str) -> Claim:
        """Ask for the lease to load what is missing."""
        reply = await self.store.run(
            _CLAIM,
            value=self.value,
            lease=self.lease,
            token=token,
            seen=seen,
            under=under,
            now_ms=self.store.now_ms(),
            lease_ms=LEASE_MS,
            ttl_ms=LEASE_MS + GRACE_MS,
        )
        if isinstance(reply, int):
            return Waiting(reply)
        return Granted() if reply == b"load" else Changed()

    async def prolong(self, token: str) -> bool:
        """Keep the lease for longer. False when it is held no more."""
        reply = await self.store.run(
            _PROLONG,
            lease=self.lease,
            token=token,
            now_ms=self.store.now_ms(),
            lease_ms=LEASE_MS,
            ttl_ms=LEASE_MS + GRACE_MS,
        )
        return reply == 1

    async def fill(self, token: str, data: bytes, *, seen: bytes, ttl: timedelta, before_ms: int) -> bool:
        """Store what was loaded and give the lease back. False when it is not kept because it came too late."""
        reply = await self.store.run(
            _FILL,
            value=self.value,
            lease=self.lease,
            token=token,
            seen=seen,
            data=data,
            ttl_ms=ttl // timedelta(milliseconds=1),
            before_ms=before_ms,
            loaded=self.keys.cache_loaded(),
            changed=self._changed,
        )
        return reply == 1

    async def release(self, token: str) -> None:
        """Give the lease back without a value."""
        await self.store.run(
            _RELEASE, value=self.value, lease=self.lease, token=token, loaded=self.keys.cache_loaded()
        )

    async def invalidate(self) -> bool:
        """Put a tombstone in the place of the value; whether there was one."""
        reply = await self.store.run(
            _INVALIDATE,
            value=self.value,
            lease=self.lease,
            tombstone=tombstone(),
            ttl_ms=GRACE_MS,
            loaded=self.keys.cache_loaded(),
            changed=self._changed,
        )
        return reply == 1

    @property
    def value(self) -> str:
        """The key of the value."""
        return self.keys.cache_value(self.kind, self.identifier)

    @property
    def lease(self) -> str:
        """The key of its lease."""
        return self.keys.cache_lease(self.kind, self.identifier)

    @property
    def _changed(self) -> str:
        return self.keys.cache_changed() if self.publishes else ""
