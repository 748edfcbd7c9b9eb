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
from contextvars import ContextVar
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
"""So many loads at once go on without Redis, in one process: an outage is not to become the database's.

Loads inside of these do not count, and a load that has waited for ten seconds goes on.
"""

_PROLONG_EVERY_S: Final = LEASE_MS / 1000 / 3
_LOOK_AGAIN_S: Final = 1.0
_LONGEST_WAIT_S: Final = 10.0

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

    def complain(self, error: StoreError) -> None:
        """Log that Redis did not answer, once in a while."""
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


_Chain = tuple[tuple[str, str, asyncio.Task[Any]], ...]

_chain: ContextVar[_Chain] = ContextVar("counterseal_loads", default=())
"""The loads that this code runs inside of, the outermost first: a loader may ask the cache for other values."""


class Flights:
    """The loads under way in this process, of all kinds."""

    def __init__(self, wakes: Wakes) -> None:
        self._closed = False
        self._wakes = wakes
        self._under_way: dict[tuple[str, str], dict[object, asyncio.Task[Loaded]]] = {}
        self._flying: set[asyncio.Task[Loaded]] = set()
        self._giving: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(DEGRADED_LOADS)

    def is_under_way(self, slot: Slot) -> bool:
        """Whether this process loads the value now."""
        return (slot.kind, slot.identifier) in self._under_way

    def refresh(
        self, place: Place, identifier: str, loader: Loader, tags: tuple[str, ...], look: Look
    ) -> asyncio.Task[Loaded]:
        """As `board`, for a load that nobody waits for, so that it is inside of no other."""
        outside = _chain.set(())
        try:
            return self.board(place, identifier, loader, tags, look)
        finally:
            _chain.reset(outside)

    def board(
        self, place: Place, identifier: str, loader: Loader, tags: tuple[str, ...], look: Look | None
    ) -> asyncio.Task[Loaded]:
        """The flight for what was seen, begun when there is none. `look` is None when Redis did not answer.

        Wait for it with `landed`: whoever goes away takes it from nobody. Raises `RuntimeError` inside of the load of
        the same value, also in a task that its loader has begun: it would wait for itself.
        """
        slot = place.slot(identifier)
        name = (slot.kind, identifier)
        inside = _inside()
        if name in inside:
            raise RuntimeError(f"the loader of a value of {slot.kind} asked for the value that it loads")
        variants = self._under_way.setdefault(name, {})
        # Who runs inside of a load does not wait for one that waits for room, which the outer one may hold.
        variant = bool(inside) if look is None else (look.seen, look.under)
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

    def open(self) -> None:
        """Begin anew after a close."""
        self._closed = False

    async def close(self) -> None:
        """End every load that is under way."""
        self._closed = True
        await end(self._flying)
        await end(self._giving)

    async def landed(self, flight: asyncio.Task[Loaded]) -> Loaded:
        """What a flight brought. Raises what its loader raised. Whoever is cancelled here takes it from nobody."""
        if not flight.done():
            await asyncio.wait((flight,))
        if not flight.cancelled():
            return flight.result()
        if self._closed:
            raise StoreUnavailable("the cache is closed")
        raise RuntimeError("the loader of a cached value was cancelled")

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
        token = new_id()
        try:
            found = await self._wait_for_turn(place, slot, tags, look, token)
        except StoreError as error:
            place.complain(error)
            # The lease may be ours all the same, when only its answer was late: nobody is to wait for it.
            self._give_back(slot, token)
            return await self._degraded(place, slot, loader)
        if isinstance(found, Loaded):
            return found
        return await self._load(place, slot, loader, found)

    async def _wait_for_turn(
        self, place: Place, slot: Slot, tags: tuple[str, ...], look: Look, token: str
    ) -> Loaded | _Grant:
        """Get the lease, or the value that somebody else loaded meanwhile."""
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
        prolonging = asyncio.create_task(self._prolong(slot, grant), name="counterseal: hold a lease")
        try:
            try:
                text, load_ms = await self._ask(place, slot, loader)
            finally:
                await end((prolonging,))
            cargo = Cargo(slot, grant.token, grant.look, grant.generation, grant.tags, text, load_ms)
            try:
                kept = await place.keep(cargo)
            except StoreError as error:
                place.complain(error)
                self._give_back(slot, grant.token)
                return Loaded(text, Source.DEGRADED, kept=False)
        except BaseException:
            with suppress(StoreError):
                await slot.release(grant.token)
            raise
        return Loaded(text, Source.LOADED, kept)

    async def _ask(self, place: Place, slot: Slot, loader: Loader) -> tuple[bytes, int]:
        """The text of what the loader answers, and the milliseconds that it took."""
        current = asyncio.current_task()
        if current is not None:
            _chain.set((*_chain.get(), (slot.kind, slot.identifier, current)))
        began = time.monotonic()
        text = place.text(await loader(slot.identifier))
        load_ms = round((time.monotonic() - began) * 1000)
        place.count_load(load_ms)
        return text, load_ms

    def _give_back(self, slot: Slot, token: str) -> None:
        """Give a lease back that may be held, without anybody waiting for that."""

        async def release() -> None:
            with suppress(StoreError):
                await slot.release(token)

        giving = asyncio.create_task(release(), name="counterseal: give a lease back")
        self._giving.add(giving)
        giving.add_done_callback(self._giving.discard)

    async def _prolong(self, slot: Slot, grant: _Grant) -> None:
        """Hold the lease for as long as a load may take that is kept."""
        for _ in range(round(LONGEST_LOAD_MS / 1000 / _PROLONG_EVERY_S)):
            await asyncio.sleep(_PROLONG_EVERY_S)
            with suppress(StoreError):
                if not await slot.prolong(grant.token):
                    return

    async def _degraded(self, place: Place, slot: Slot, loader: Loader) -> Loaded:
        """Load without Redis. Who runs inside of a load has the outer one's room; nobody waits for room for ever."""
        held = not _inside() and await self._enter()
        try:
            text, _ = await self._ask(place, slot, loader)
            return Loaded(text, Source.DEGRADED, kept=False)
        finally:
            if held:
                self._room.release()

    async def _enter(self) -> bool:
        """Wait for room among the loads without Redis; whether it was got before long."""
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S):
                await self._room.acquire()
        except TimeoutError:
            return False
        return True


def _inside() -> list[tuple[str, str]]:
    """The loads that the caller runs inside of and that go on, by kind and identifier."""
    return [(kind, identifier) for kind, identifier, flight in _chain.get() if not flight.done()]
