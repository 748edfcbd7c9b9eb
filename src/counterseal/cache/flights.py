"""Flights: loads of missing values, one for each value over all processes, and one in each process without Redis.

Who finds a value missing asks for its lease. One gets it, loads, and fills; the others of its process wait for the same
task, and those of other processes are told when it is done. A lease that is not prolonged ends after five seconds, and
the next one loads. A flight is shared only by callers who saw the same state of the value, so nobody who comes after an
invalidation gets what was loaded before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from counterseal.cache.entry import new_id
from counterseal.cache.looks import ABSENT, Look
from counterseal.cache.result import Source
from counterseal.cache.scripts import LEASE_MS, LONGEST_LOAD_MS, Granted, Slot, Waiting
from counterseal.cache.wakes import Wakes
from counterseal.core.background import end, wait_for_event
from counterseal.core.errors import StoreError, StoreUnavailable

logger = logging.getLogger(__name__)

DEGRADED_LOADS: Final = 64
"""So many loads at once go on without Redis, in one process: an outage is not to become the database's."""

_PROLONG_EVERY_S: Final = LEASE_MS / 1000 / 3
_LOOK_AGAIN_S: Final = 1.0

Loader = Callable[[str], Awaitable[Any]]


class Loaded(msgspec.Struct, frozen=True):
    """The text of a value that a flight brought, where it came from, and whether it is in the cache now."""

    text: bytes
    source: Source
    kept: bool = True


class Place(Protocol):
    """What a flight needs of the cache of a kind."""

    def slot(self, identifier: str) -> Slot:
        """The calls for one value."""
        ...

    async def look(self, identifier: str, tags: tuple[str, ...]) -> Look:
        """Look what is stored."""
        ...

    async def generations(self, tags: tuple[str, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        """The generations to write under: the kind's, and the tags with theirs."""
        ...

    def text(self, value: Any) -> bytes:
        """The text of a loaded value, checked."""
        ...

    async def keep(self, cargo: Cargo) -> bool:
        """Store what was loaded and give the lease back; whether it is kept."""
        ...

    def count_load(self, took_ms: int) -> None:
        """Note a load for the statistics."""
        ...


@dataclass(frozen=True, slots=True)
class Cargo:
    """A loaded value on its way into the cache."""

    slot: Slot
    token: str
    look: Look
    generation: bytes
    tags: tuple[bytes, ...]
    text: bytes
    load_ms: int


@dataclass(frozen=True, slots=True)
class _Grant:
    token: str
    look: Look
    generation: bytes
    tags: tuple[bytes, ...]


class Flights:
    """The loads under way in this process, of all kinds."""

    def __init__(self, wakes: Wakes) -> None:
        self._wakes = wakes
        self._under_way: dict[tuple[str, str], dict[object, asyncio.Task[Loaded]]] = {}
        self._flying: set[asyncio.Task[Loaded]] = set()
        self._room = asyncio.Semaphore(DEGRADED_LOADS)

    def is_under_way(self, slot: Slot) -> bool:
        """Whether this process loads the value now."""
        return (slot.kind, slot.identifier) in self._under_way

    def board(
        self, place: Place, identifier: str, loader: Loader, tags: tuple[str, ...], look: Look | None
    ) -> asyncio.Task[Loaded]:
        """The flight for what was seen, begun when there is none. `look` is None when Redis did not answer.

        Wait for it with `landed`: whoever goes away takes it from nobody.
        """
        slot = place.slot(identifier)
        name = (slot.kind, identifier)
        variants = self._under_way.setdefault(name, {})
        variant = None if look is None else (look.seen, look.under)
        flight = variants.get(variant)
        if flight is None:
            flying = (
                self._fly(place, slot, loader, tags, look)
                if look is not None
                else self._degraded(place, slot, loader)
            )
            flight = asyncio.create_task(flying, name="counterseal: load a cached value")
            variants[variant] = flight
            self._flying.add(flight)
            flight.add_done_callback(lambda done: self._landed(name, variants, variant, done))
        return flight

    def part_with(self, kind: str, identifier: str) -> None:
        """Let nobody join the loads of a value any more: it has changed."""
        self._under_way.pop((kind, identifier), None)

    async def close(self) -> None:
        """End every load that is under way."""
        await end(self._flying)

    def _landed(
        self,
        name: tuple[str, str],
        variants: dict[object, asyncio.Task[Loaded]],
        variant: object,
        flight: asyncio.Task[Loaded],
    ) -> None:
        self._flying.discard(flight)
        variants.pop(variant, None)
        if not variants and self._under_way.get(name) is variants:
            del self._under_way[name]
        if not flight.cancelled():
            flight.exception()  # seen, even when nobody waits for it any more

    async def _fly(
        self, place: Place, slot: Slot, loader: Loader, tags: tuple[str, ...], look: Look
    ) -> Loaded:
        try:
            found = await self._wait_for_turn(place, slot, tags, look)
        except StoreError as error:
            logger.warning("%s is loaded without a lease: %s", slot.kind, error)
            return await self._degraded(place, slot, loader)
        if isinstance(found, Loaded):
            return found
        return await self._load(place, slot, loader, found)

    async def _wait_for_turn(
        self, place: Place, slot: Slot, tags: tuple[str, ...], look: Look
    ) -> Loaded | _Grant:
        """Get the lease, or the value that somebody else loaded meanwhile."""
        token = new_id()
        told: asyncio.Event | None = None
        if ABSENT in look.under:
            # Who comes a moment later sees the generations that this load makes, and must not take it for another's.
            await place.generations(tags)
            look = await place.look(slot.identifier, tags)
            if look.fresh and look.entry is not None:
                return Loaded(look.entry.text, Source.HIT)
        async with AsyncExitStack() as stack:
            while True:
                claim, (generation, tagged) = await asyncio.gather(
                    slot.claim(token, seen=look.seen, under=look.under), place.generations(tags)
                )
                if isinstance(claim, Granted):
                    return _Grant(token, look, generation, tagged)
                if isinstance(claim, Waiting):
                    if told is None:
                        # Asked again after this: what happened before the subscription was confirmed is seen then.
                        told = await stack.enter_async_context(self._wakes.listen(slot.value))
                        continue
                    await wait_for_event(told, min(claim.left_ms / 1000, _LOOK_AGAIN_S))
                    told.clear()
                look = await place.look(slot.identifier, tags)
                if look.fresh and look.entry is not None:
                    return Loaded(look.entry.text, Source.HIT)

    async def _load(self, place: Place, slot: Slot, loader: Loader, grant: _Grant) -> Loaded:
        look = grant.look
        began = time.monotonic()
        prolonging = asyncio.create_task(self._prolong(slot, grant), name="counterseal: hold a lease")
        try:
            text = place.text(await loader(slot.identifier))
        except BaseException:
            await end((prolonging,))
            with suppress(StoreError):
                await slot.release(grant.token)
            raise
        await end((prolonging,))
        load_ms = round((time.monotonic() - began) * 1000)
        place.count_load(load_ms)
        cargo = Cargo(slot, grant.token, look, grant.generation, grant.tags, text, load_ms)
        try:
            kept = await place.keep(cargo)
        except StoreError as error:
            logger.warning("a loaded value of %s could not be kept: %s", slot.kind, error)
            return Loaded(text, Source.DEGRADED, kept=False)
        if not kept:
            logger.debug(
                "a loaded value of %s was not kept: it changed meanwhile, or took too long", slot.kind
            )
        return Loaded(text, Source.LOADED, kept)

    async def _prolong(self, slot: Slot, grant: _Grant) -> None:
        """Hold the lease for as long as a load may take that is kept."""
        for _ in range(round(LONGEST_LOAD_MS / 1000 / _PROLONG_EVERY_S)):
            await asyncio.sleep(_PROLONG_EVERY_S)
            with suppress(StoreError):
                if not await slot.prolong(grant.token):
                    return

    async def _degraded(self, place: Place, slot: Slot, loader: Loader) -> Loaded:
        async with self._room:
            began = time.monotonic()
            text = place.text(await loader(slot.identifier))
            place.count_load(round((time.monotonic() - began) * 1000))
            return Loaded(text, Source.DEGRADED, kept=False)


async def landed(flight: asyncio.Task[Loaded]) -> Loaded:
    """What a flight brought. Raises what its loader raised. Whoever is cancelled here takes it from nobody."""
    if not flight.done():
        await asyncio.wait((flight,))
    if flight.cancelled():
        raise StoreUnavailable("the cache is closed")
    return flight.result()
