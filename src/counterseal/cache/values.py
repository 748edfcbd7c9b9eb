"""KindCache: the cached values of one kind."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Generic, overload

from counterseal.cache.entry import Entry, pack, tagged
from counterseal.cache.flights import Cargo, Flights
from counterseal.cache.function import CachedFunction, Key, Loading, P, decorate
from counterseal.cache.generations import Generations, bump
from counterseal.cache.kind import Kind, T
from counterseal.cache.looks import UNSETTLED, Look, Looks
from counterseal.cache.near import NearKind
from counterseal.cache.result import Result, Source
from counterseal.cache.scripts import GRACE_MS, LONGEST_LOAD_MS, Slot
from counterseal.cache.shape import NOTHING, Shape
from counterseal.cache.stats import Counters
from counterseal.core.errors import CodecError, ConfigurationError, StoreError
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.tallies import Tallies
from counterseal.store.wire import Command, raised

logger = logging.getLogger(__name__)

JITTER: Final = 0.1
"""A lifetime is its kind's, give or take so much."""

GRACE: Final = timedelta(milliseconds=GRACE_MS)

_MS: Final = timedelta(milliseconds=1)
_COMPLAIN_EVERY_S: Final = 10.0
_MOST_LOADS_AHEAD: Final = 20
"""Beyond so many load times before the end, the odds of an early refresh are below one in a hundred million."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a warm-up did: how many values were loaded, were there already, and could not be loaded."""

    loaded: int
    present: int
    failed: int


class KindCache(Generic[T]):
    """The cached values of one kind. Made by `Cache`, which owns what several kinds share.

    Absence is None, whether a value never was, ended, or was invalidated; `find` tells it from a None that was kept.
    Every call but `get_or_load`, `find_or_load` and `warm` raises `StoreUnavailable` when Redis does not answer: an
    outage is never taken for a miss. Tags are names under which values can be invalidated together.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        kind: Kind[T],
        generations: Generations,
        flights: Flights,
        tallies: Tallies,
        near: NearKind | None,
        listen: Callable[[], None],
    ) -> None:
        self.kind = kind
        self.ttl = kind.ttl
        """The lifetime of what is written from now on: the kind's, unless it was changed at run time."""
        self._store = store
        self._now_ms = store.clock.now_ms
        self._keys = keys
        self._shape = Shape(kind)
        self._generations = generations
        self._flights = flights
        self._counters = Counters(tallies, kind.name)
        self._add = tallies.add
        self._near = near
        self._looks = Looks(
            store,
            keys=keys,
            kind=kind,
            shape=self._shape,
            generations=generations,
            counters=self._counters,
            near=near,
            listen=listen,
        )
        self._generation_key = self._looks.generation_key
        self._near_held = None if near is None else near.held
        self._near_field = self._counters.near
        self._immutable = self._shape.immutable
        self._swr_ms = kind.stale_while_revalidate // _MS
        self._sie_ms = kind.stale_if_error // _MS
        self._complained_at = -math.inf

    # -- reading -------------------------------------------------------------------------------------------------

    async def get(self, identifier: str) -> T | None:
        """The value of an identifier, equal to what was set, or None. One round trip; two for a value with tags.

        No round trip for a value that is near. Raises `CodecError` naming the key when what is stored can't be read.
        """
        near_held = self._near_held
        if near_held is not None:
            held = near_held.get(identifier)
            # The way of most calls, written out.
            if held is None or self._now_ms() >= held.quick_until_ms:
                return _fresh(await self.find(identifier))
            held.asked = True
            self._add(self._near_field)
            return held.kept if self._immutable else self._looks.held_value(held, identifier)
        looks = self._looks
        key = looks.key(identifier)
        reading = self._generations.read(self._generation_key)
        data = await self._store.command("GET", key)
        quick = looks.quick(data, reading, 0)
        if quick is not UNSETTLED:
            return quick
        look = await looks.judge(data, reading, {}, key=key, at_ms=self._now_ms())
        return _fresh(looks.found(look, identifier))

    async def find(self, identifier: str) -> Result[T]:
        """The value of an identifier and where it came from: hit, near, stale or miss.

        A stale value has ended, within the windows of its kind. One round trip; two for a value with tags; none for
        one that is near. Raises as `get` does.
        """
        if self._near is not None:
            held = self._looks.take(identifier, self._near)
            if held is not None:
                return Result(True, self._looks.held_value(held, identifier), Source.NEAR)
        return self._looks.found(await self._looks.look(identifier, ()), identifier)

    async def get_many(self, identifiers: Iterable[str]) -> dict[str, T | None]:
        """The values that are there, by identifier. One round trip; two when some have tags; none when all are near.

        Raises as `get` does.
        """
        found: dict[str, T | None] = {}
        missing: list[str] = []
        for identifier in dict.fromkeys(identifiers):
            held = None if self._near is None else self._looks.take(identifier, self._near)
            if held is None:
                missing.append(identifier)
            else:
                found[identifier] = self._looks.held_value(held, identifier)
        if missing:
            found.update(await self._looks.find_many(missing))
        return found

    # -- loading -------------------------------------------------------------------------------------------------

    async def get_or_load(
        self, identifier: str, loader: Callable[[str], Awaitable[T | None]], *, tags: Iterable[str] = ()
    ) -> T | None:
        """The value of an identifier, loaded when it is missing.

        One round trip when it is there, none when it is near, else three; at most eight when the server knows neither
        the scripts nor a generation of the kind.

        See `find_or_load`, which also says where it came from.
        """
        if self._near is not None or tags:
            return (await self.find_or_load(identifier, loader, tags=tags)).value
        looks = self._looks
        at_ms = self._now_ms()
        key = looks.key(identifier)
        try:
            reading = self._generations.read(self._generation_key)
            data = await self._store.command("GET", key)
            quick = looks.quick(data, reading, _MOST_LOADS_AHEAD if self.kind.early_refresh else 0)
            if quick is not UNSETTLED:
                return quick
            look = await looks.judge(data, reading, {}, key=key, at_ms=at_ms)
        except StoreError as error:
            look = error
        return (await self._answer(look, identifier, loader, ())).value

    async def find_or_load(
        self, identifier: str, loader: Callable[[str], Awaitable[T | None]], *, tags: Iterable[str] = ()
    ) -> Result[T]:
        """The value of an identifier, and where it came from: loaded and kept when it is missing.

        One load goes on at a time over all processes; the others wait for it. What was loaded is not kept when the
        value, its kind or a tag was invalidated meanwhile, or when it took more than a minute. None is kept for the
        kind's `negative_ttl`. What `loader(identifier)` raises is raised to all who waited, and nothing is kept;
        within the kind's `stale_if_error` the ended value is the answer instead.

        Without Redis the loader answers (`degraded`): one load for a value in each process, at most 64 at once. A
        stored value that can't be read is logged and loaded anew. Raises `CodecError` when the loader's value is not
        one of this kind; one that is too large is logged and not kept. Raises `RuntimeError` when a loader asks for
        the value that it loads.

        One round trip when it is there, two when it has tags that were not named here; none when it is near; three when
        it is missing, but at most eight when the server knows neither the scripts nor a generation of the kind.
        """
        if self._near is not None:
            held = self._looks.take(identifier, self._near)
            if held is not None:
                return Result(True, self._looks.held_value(held, identifier), Source.NEAR)
        names = _sorted(tags)
        try:
            look = await self._looks.look(identifier, names)
        except StoreError as error:
            look = error
        return await self._answer(look, identifier, loader, names)

    async def warm(
        self,
        identifiers: Iterable[str],
        loader: Callable[[str], Awaitable[T | None]],
        *,
        tags: Iterable[str] = (),
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> Warmed:
        """Load what is missing of some values, so many at once. A failing load is logged and counted.

        `progress` is called with how many are done and how many there are. One round trip, then at most eight for
        every value that is missing, as a rule three. Raises `StoreUnavailable` when Redis does not answer at the
        beginning.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1; came: {concurrency}")
        wanted = list(dict.fromkeys(identifiers))
        names = _sorted(tags)
        present = await self.get_many(wanted)
        missing = [identifier for identifier in wanted if identifier not in present]
        done, failed = len(present), 0
        room = asyncio.Semaphore(concurrency)

        async def load(identifier: str) -> None:
            nonlocal done, failed
            async with room:
                try:
                    await self.find_or_load(identifier, loader, tags=names)
                except Exception:
                    failed += 1
                    logger.exception("a value of %s could not be loaded", self.kind.name)
            done += 1
            if progress is not None:
                progress(done, len(wanted))

        async with asyncio.TaskGroup() as group:
            for identifier in missing:
                group.create_task(load(identifier))
        return Warmed(loaded=len(missing) - failed, present=len(present), failed=failed)

    @overload
    def cached(self, function: Loading[P, T]) -> CachedFunction[P, T]: ...

    @overload
    def cached(
        self, *, key: Key | None = None, tags: Iterable[str] = ()
    ) -> Callable[[Loading[P, T]], CachedFunction[P, T]]: ...

    def cached(
        self,
        function: Loading[P, T] | None = None,
        *,
        key: Key | None = None,
        tags: Iterable[str] = (),
    ) -> Any:
        """Decorate an async function, so that its answers are kept: `@cache.kind("team").cached`.

        Its only argument is the identifier; with `key`, which makes an identifier of the arguments, it may have others.
        Calls cost what `get_or_load` costs; `invalidate(...)` of the decorated function takes the same arguments.
        """

        def decorated(loading: Loading[P, T]) -> CachedFunction[P, T]:
            return decorate(self, loading, key=key, tags=_sorted(tags))

        return decorated if function is None else decorated(function)

    # -- writing -------------------------------------------------------------------------------------------------

    async def set(self, identifier: str, value: T | None, *, tags: Iterable[str] = ()) -> None:
        """Keep a value for the lifetime of the kind. Two round trips; three for the first of a kind or tag.

        None is kept for the kind's `negative_ttl`. Raises `CodecError` with the path, before anything is written, when
        the value is not one of this kind, and `ValueTooLarge`.
        """
        await self.set_many({identifier: value}, tags=tags)

    async def set_many(self, values: Mapping[str, T | None], *, tags: Iterable[str] = ()) -> None:
        """Keep values by identifier. Two round trips; three for the first of a kind or tag. Raises as `set` does.

        When Redis goes away in the middle some may have been written.
        """
        texts = {identifier: self._shape.write(value) for identifier, value in values.items()}
        if self.kind.negative_ttl is None and NOTHING in texts.values():
            raise CodecError(f"{self.kind.name} has no negative_ttl, so it keeps no None", path="$")
        generation, marks = await self.generations(_sorted(tags))
        commands: list[Command] = []
        for identifier, text in texts.items():
            self._flights.part_with(self.kind.name, identifier)
            fresh_ms, ttl = self._lifetime(text, self._own_lifetime(values[identifier]))
            data = pack(text, generation=generation, fresh_ms=fresh_ms, load_ms=0, tags=marks)
            commands.append(("SET", self._looks.key(identifier), data, "PX", ttl // _MS))
            self._add(self._counters.bytes_written, len(text))
        try:
            await self._write(commands)
        finally:
            self._looks.forget(texts)

    async def invalidate(self, identifier: str) -> bool:
        """Forget one value; whether there was one. One round trip. A load that began before does not bring it back."""
        return await self.invalidate_many((identifier,)) == 1

    async def invalidate_many(self, identifiers: Iterable[str]) -> int:
        """Forget values; how many there were. One round trip."""
        wanted = list(dict.fromkeys(identifiers))
        for identifier in wanted:
            self._flights.part_with(self.kind.name, identifier)
        try:
            gone = await asyncio.gather(*(self.slot(identifier).invalidate() for identifier in wanted))
        finally:
            self._looks.forget(wanted)
        return sum(gone)

    async def clear(self) -> None:
        """Forget every value of the kind, however many there are: its generation changes. One round trip."""
        try:
            await bump(self._store, self._keys, self._generation_key)
        finally:
            if self._near is not None:
                self._near.clear()

    # -- what a flight asks --------------------------------------------------------------------------------------

    def slot(self, identifier: str) -> Slot:
        """The atomic calls for one value. Raises `ConfigurationError` for what is no identifier."""
        self._looks.key(identifier)
        return Slot(self._store, self._keys, self.kind.name, identifier, self.kind.near is not None)

    async def look(self, identifier: str, tags: tuple[str, ...]) -> Look:
        """What is stored, and whether it counts. One round trip; two when it has other tags than these."""
        return await self._looks.look(identifier, tags)

    async def generations(self, tags: tuple[str, ...]) -> tuple[bytes, tuple[bytes, ...]]:
        """What to write under: the kind's generation, and the tags with theirs. One round trip; two to make one."""
        first, *others = await self._generations.ensure(
            (self._generation_key, *(self._keys.cache_tag(tag) for tag in tags))
        )
        return first, tuple(tagged(tag, generation) for tag, generation in zip(tags, others, strict=True))

    def text(self, value: Any) -> bytes:
        """The text of a loaded value, checked but for its length."""
        return self._shape.text(value)

    async def keep(self, cargo: Cargo) -> bool:
        """Store what was loaded and give the lease back; whether it is kept. One round trip."""
        slot, look = cargo.slot, cargo.look
        own = None
        if self.kind.lives is not None:
            own = self._own_lifetime(self._looks.read(cargo.text, slot.identifier))
        if (
            (cargo.text == NOTHING and self.kind.negative_ttl is None)
            or (own is not None and own < _MS)
            or not self._fits(cargo.text)
        ):
            await slot.release(cargo.token)
            return False
        fresh_ms, ttl = self._lifetime(cargo.text, own)
        data = pack(
            cargo.text,
            generation=cargo.generation,
            fresh_ms=fresh_ms,
            load_ms=cargo.load_ms,
            tags=cargo.tags,
        )
        kept = await slot.fill(
            cargo.token, data, seen=look.seen, ttl=ttl, before_ms=look.at_ms + LONGEST_LOAD_MS
        )
        if kept:
            self._add(self._counters.bytes_written, len(cargo.text))
        return kept

    def count_load(self, took_ms: int) -> None:
        """Note a load."""
        self._add(self._counters.loads)
        self._add(self._counters.load_ms, took_ms)

    # -- within --------------------------------------------------------------------------------------------------

    async def _answer(
        self,
        look: Look | StoreError,
        identifier: str,
        loader: Callable[[str], Awaitable[T | None]],
        tags: tuple[str, ...],
    ) -> Result[T]:
        """What is answered after a look: the stored value, or a loaded one."""
        if isinstance(look, StoreError):
            self.complain(look)
            return await self._board(identifier, loader, tags, None)
        if look.fault is not None:
            logger.warning("a stored value of %s is loaded anew: %s", self.kind.name, look.fault)
        elif look.entry is not None:
            result = self._usable(look, look.entry, identifier, loader, tags)
            if result is not None:
                return result
        self._add(self._counters.misses)
        try:
            return await self._board(identifier, loader, tags, look)
        except Exception as error:
            if (
                look.entry is None
                or isinstance(error, CodecError)
                or not self._looks.is_stale(look, self._sie_ms)
            ):
                raise
            value = self._looks.read(look.entry.text, identifier)
            if not self._looks.may_be_stale(value):
                raise
            logger.warning("%s is answered stale, because its loader failed", self.kind.name, exc_info=error)
            self._add(self._counters.stale)
            return Result(True, value, Source.STALE)

    def _usable(
        self,
        look: Look,
        entry: Entry,
        identifier: str,
        loader: Callable[[str], Awaitable[T | None]],
        tags: tuple[str, ...],
    ) -> Result[T] | None:
        """The stored value as an answer, perhaps refreshed in the background; None when a new one is needed."""
        fresh = look.fresh
        if not fresh and not self._looks.is_stale(look, self._swr_ms):
            return None
        try:
            value = self._looks.read(entry.text, identifier)
        except CodecError as fault:
            logger.warning("a stored value of %s is loaded anew: %s", self.kind.name, fault)
            return None
        if not fresh and not self._looks.may_be_stale(value):
            return None
        if (not fresh or self._is_due(entry)) and not self._flights.is_under_way(self.slot(identifier)):
            flight = self._flights.refresh(self, identifier, loader, tags, look)
            flight.add_done_callback(self._note_refresh)
        self._add(self._counters.hits if fresh else self._counters.stale)
        self._add(self._counters.bytes_read, len(entry.text))
        return Result(True, value, Source.HIT if fresh else Source.STALE)

    async def _board(
        self,
        identifier: str,
        loader: Callable[[str], Awaitable[T | None]],
        tags: tuple[str, ...],
        look: Look | None,
    ) -> Result[T]:
        loaded = await self._flights.landed(self._flights.board(self, identifier, loader, tags, look))
        if loaded.source is Source.DEGRADED:
            self._add(self._counters.degraded)
        # Each caller reads the text for itself: what one changes nobody else sees.
        return Result(True, self._looks.read(loaded.text, identifier), loaded.source, loaded.kept)

    def complain(self, error: StoreError) -> None:
        """Log that Redis does not answer, once in a while however many ask."""
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            logger.warning("values of %s are loaded without the cache: %s", self.kind.name, error)

    def _note_refresh(self, flight: asyncio.Task[Any]) -> None:
        if not flight.cancelled() and (fault := flight.exception()) is not None:
            logger.warning("a value of %s could not be refreshed", self.kind.name, exc_info=fault)

    def _is_due(self, entry: Entry) -> bool:
        """Whether to load a new value before this one ends.

        The odds grow towards the end, the sooner the longer a load takes: `load x -ln(random) >= time left`, after
        Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
        """
        if not (self.kind.early_refresh and entry.load_ms):
            return False
        left_ms = entry.fresh_ms - self._now_ms()
        if left_ms > entry.load_ms * _MOST_LOADS_AHEAD:
            return False
        chance = random.random()  # noqa: S311 - spreads load, hides nothing
        return entry.load_ms * -math.log(chance or 1e-9) >= left_ms

    def _own_lifetime(self, value: T | None) -> timedelta | None:
        return None if self.kind.lives is None or value is None else self.kind.lives(value)

    def _lifetime(self, text: bytes, own: timedelta | None) -> tuple[int, timedelta]:
        """When a value that is written now ends, and how long Redis keeps it. `own` is its own lifetime, if any."""
        ttl = self.ttl if text != NOTHING or self.kind.negative_ttl is None else self.kind.negative_ttl
        spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, hides nothing
        fresh = max(ttl * spread if own is None else min(ttl * spread, own), _MS)
        window = max(self.kind.stale_while_revalidate, self.kind.stale_if_error)
        return self._now_ms() + fresh // _MS, fresh + window + GRACE

    def _fits(self, text: bytes) -> bool:
        if len(text) <= self.kind.max_value_bytes:
            return True
        logger.warning(
            "a loaded value of %s is not kept: it has %d bytes of JSON, and the kind takes %d",
            self.kind.name,
            len(text),
            self.kind.max_value_bytes,
        )
        return False

    async def _write(self, commands: list[Command]) -> None:
        if self.kind.near is None:
            for reply in await self._store.pipeline(commands):
                raised(reply)
            return
        # A change and its announcement are one: a process that heard too early would take the former value in again.
        channel = self._keys.cache_changed()
        for replies in await asyncio.gather(
            *(self._store.transaction([command, ("PUBLISH", channel, command[1])]) for command in commands)
        ):
            for reply in replies:
                raised(reply)


def _fresh(result: Result[T]) -> T | None:
    return None if result.source is Source.STALE else result.value


def _sorted(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in one order: callers with the same ones load together. Raises `ConfigurationError` for a single text."""
    if isinstance(tags, str):
        raise ConfigurationError("tags: expected several names, as ['user:1']; came: one text")
    return tuple(sorted(set(tags)))
