"""KindCache: the cached values of one kind."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Generic, overload

from counterseal.cache.entry import (
    FRESH_BEGIN,
    FRESH_END,
    GENERATION_BEGIN,
    GENERATION_END,
    NO_ID,
    Entry,
    id_of,
    pack,
    tagged,
    text_at,
    unpack,
)
from counterseal.cache.flights import Cargo, Flights, Look, landed
from counterseal.cache.function import CachedFunction, Key, Loading, P, decorate
from counterseal.cache.generations import Generations, bump, settled
from counterseal.cache.kind import Kind, T
from counterseal.cache.near import Held, NearKind, Ticket
from counterseal.cache.result import Result, Source
from counterseal.cache.scripts import GRACE_MS, LONGEST_LOAD_MS, Slot
from counterseal.cache.shape import NOTHING, UNDECODED, Shape
from counterseal.core.errors import CodecError, StoreError
from counterseal.store.base import Store
from counterseal.store.keys import Keys, escape
from counterseal.store.tallies import Tallies
from counterseal.store.wire import Command, Reply, raised

logger = logging.getLogger(__name__)

JITTER: Final = 0.1
"""A lifetime is its kind's, give or take so much."""

GRACE: Final = timedelta(milliseconds=GRACE_MS)

_MS: Final = timedelta(milliseconds=1)
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
        near: NearKind | None = None,
        listen: Callable[[], None] | None = None,
    ) -> None:
        self.kind = kind
        self.ttl = kind.ttl
        """The lifetime of what is written from now on: the kind's, unless it was changed at run time."""
        self._store = store
        self._now_ms = store.clock.now_ms
        self._keys = keys
        self._shape = Shape(kind)
        self._generations = generations
        self._generation_key = keys.cache_generation(kind.name)
        self._prefix = keys.cache_values(kind.name)
        self._flights = flights
        self._near = near
        self._near_ms = kind.near // _MS if kind.near is not None else 0
        self._listen = listen
        self._add = tallies.add
        self._swr_ms = kind.stale_while_revalidate // _MS
        self._sie_ms = kind.stale_if_error // _MS
        self._hits, self._nears, self._misses, self._stales, self._loads, self._degraded = (
            f"{kind.name}:{what}" for what in ("hits", "near", "misses", "stale", "loads", "degraded")
        )
        self._load_ms, self._bytes_in, self._bytes_out = (
            f"{kind.name}:{what}" for what in ("load_ms", "bytes_read", "bytes_written")
        )

    # -- reading -------------------------------------------------------------------------------------------------

    async def get(self, identifier: str) -> T | None:
        """The value of an identifier, equal to what was set, or None. One round trip; two for a value with tags.

        No round trip for a value that is near. Raises `CodecError` naming the key when what is stored can't be read.
        """
        near = self._near
        if near is not None:
            held = near.held.get(identifier)
            if held is None or held.cells or self._now_ms() >= held.until_ms:
                held = self._take(identifier, near)
                if held is None:
                    return _fresh(await self._find(identifier))
            else:
                held.asked = True
                self._add(self._nears)
            return held.kept if self._shape.immutable else self._held_value(held, identifier)
        # The way of most calls, written out; what is not as usual is left to `_judge`.
        key = f"{self._prefix}{{{escape(identifier)}}}"
        reading = self._generations.read(self._generation_key)
        data = await self._store.command("GET", key)
        if (
            isinstance(data, bytes)
            and reading.done()
            and (begin := text_at(data))
            and data[GENERATION_BEGIN:GENERATION_END] == reading.result()
        ):
            try:
                if int(data[FRESH_BEGIN:FRESH_END]) > self._now_ms():
                    value = self._shape.decode(data[begin:])
                    self._add(self._hits)
                    self._add(self._bytes_in, len(data))
                    return value
            except UNDECODED:
                pass
        at_ms = self._now_ms()
        return _fresh(self._found(await self._judge(data, reading, {}, key=key, at_ms=at_ms), identifier))

    async def find(self, identifier: str) -> Result[T]:
        """The value of an identifier and where it came from: hit, near, stale or miss.

        A stale value has ended, within the windows of its kind. One round trip; two for a value with tags; none for
        one that is near. Raises as `get` does.
        """
        if self._near is not None:
            held = self._take(identifier, self._near)
            if held is not None:
                return Result(True, self._held_value(held, identifier), Source.NEAR)
        return await self._find(identifier)

    async def get_many(self, identifiers: Iterable[str]) -> dict[str, T | None]:
        """The values that are there, by identifier. One round trip; two when some have tags. Raises as `get` does."""
        found: dict[str, T | None] = {}
        missing: list[str] = []
        for identifier in dict.fromkeys(identifiers):
            held = None if self._near is None else self._take(identifier, self._near)
            if held is None:
                missing.append(identifier)
            else:
                found[identifier] = self._held_value(held, identifier)
        if not missing:
            return found
        tickets = [self._begin(identifier) for identifier in missing]
        looks: list[Look | None] = [None] * len(missing)
        try:
            reading = self._generations.read(self._generation_key)
            at_ms = self._now_ms()
            replies = await self._store.pipeline([("GET", self._key(identifier)) for identifier in missing])
            judged = [
                self._judge(raised(reply), reading, {}, key=self._key(identifier), at_ms=at_ms)
                for identifier, reply in zip(missing, replies, strict=True)
            ]
            looks = list(await asyncio.gather(*judged))
        finally:
            for identifier, ticket, look in zip(missing, tickets, looks, strict=True):
                self._end(identifier, ticket, look)
        for identifier, look in zip(missing, looks, strict=True):
            if look is not None:
                result = self._found(look, identifier)
                if result.source is Source.HIT:
                    found[identifier] = result.value
        return found

    # -- loading -------------------------------------------------------------------------------------------------

    async def get_or_load(
        self, identifier: str, loader: Callable[[str], Awaitable[T | None]], *, tags: Iterable[str] = ()
    ) -> T | None:
        """The value of an identifier, loaded when it is missing. One round trip when it is there, else at most six.

        See `find_or_load`, which also says where it came from.
        """
        return (await self.find_or_load(identifier, loader, tags=tags)).value

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
        one of this kind; one that is too large is logged and not kept.

        One round trip when it is there, two when it has tags that were not named here; none when it is near; at most
        six when it is missing.
        """
        if self._near is not None:
            held = self._take(identifier, self._near)
            if held is not None:
                return Result(True, self._held_value(held, identifier), Source.NEAR)
        names = tuple(dict.fromkeys(tags))
        try:
            look = await self.look(identifier, names)
        except StoreError as error:
            logger.warning("%s is loaded without the cache: %s", self.kind.name, error)
            return await self._board(identifier, loader, names, None)
        if look.fault is not None:
            logger.warning("a stored value of %s is loaded anew: %s", self.kind.name, look.fault)
        elif look.entry is not None:
            result = await self._usable(look, look.entry, identifier, loader, names)
            if result is not None:
                return result
        self._add(self._misses)
        try:
            return await self._board(identifier, loader, names, look)
        except Exception as error:
            if look.entry is None or isinstance(error, CodecError) or not self._is_stale(look, self._sie_ms):
                raise
            logger.warning("%s is answered stale, because its loader failed", self.kind.name, exc_info=error)
            self._add(self._stales)
            return Result(True, self._read(look.entry.text, identifier), Source.STALE)

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

        `progress` is called with how many are done and how many there are. One round trip, then at most five for
        every value that is missing. Raises `StoreUnavailable` when Redis does not answer at the beginning.
        """
        wanted = list(dict.fromkeys(identifiers))
        names = tuple(tags)
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
            return decorate(self, loading, key=key, tags=tuple(tags))

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
        generation, marks = await self.generations(tuple(dict.fromkeys(tags)))
        commands: list[Command] = []
        for identifier, text in texts.items():
            self._flights.part_with(self.kind.name, identifier)
            fresh_ms, ttl = self._lifetime(text)
            data = pack(text, generation=generation, fresh_ms=fresh_ms, load_ms=0, tags=marks)
            commands.append(("SET", self._key(identifier), data, "PX", ttl // _MS))
            self._add(self._bytes_out, len(data))
        try:
            await self._write(commands)
        finally:
            self._forget_near(texts)

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
            self._forget_near(wanted)
        return sum(gone)

    async def clear(self) -> None:
        """Forget every value of the kind, however many there are: its generation changes. One round trip."""
        channel = self._keys.cache_changed() if self.kind.near is not None else None
        try:
            await bump(self._store, self._generation_key, channel=channel)
        finally:
            if self._near is not None:
                self._near.clear()

    # -- what a flight asks --------------------------------------------------------------------------------------

    def slot(self, identifier: str) -> Slot:
        """The atomic calls for one value."""
        return Slot(self._store, self._keys, self.kind.name, identifier, self.kind.near is not None)

    async def look(self, identifier: str, tags: tuple[str, ...]) -> Look:
        """What is stored, and whether it counts. `tags` are read along with it. One round trip; two for other tags."""
        key = self._key(identifier)
        ticket = self._begin(identifier)
        look: Look | None = None
        try:
            reading = self._generations.read(self._generation_key)
            marks = {escape(tag).encode(): self._generations.read(self._keys.cache_tag(tag)) for tag in tags}
            at_ms = self._now_ms()
            data = await self._store.command("GET", key)
            return (look := await self._judge(data, reading, marks, key=key, at_ms=at_ms))
        finally:
            self._end(identifier, ticket, look)

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
        if (cargo.text == NOTHING and self.kind.negative_ttl is None) or not self._fits(cargo.text):
            await slot.release(cargo.token)
            return False
        fresh_ms, ttl = self._lifetime(cargo.text)
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
            self._add(self._bytes_out, len(data))
        return kept

    def count_load(self, took_ms: int) -> None:
        """Note a load."""
        self._add(self._loads)
        self._add(self._load_ms, took_ms)

    # -- within --------------------------------------------------------------------------------------------------

    async def _find(self, identifier: str) -> Result[T]:
        return self._found(await self.look(identifier, ()), identifier)

    def _found(self, look: Look, identifier: str) -> Result[T]:
        """The result of a look. Raises what can't be read."""
        if look.fault is not None:
            raise look.fault
        entry = look.entry
        if entry is None or not (look.fresh or self._is_stale(look, max(self._swr_ms, self._sie_ms))):
            self._add(self._misses)
            return Result(False, None, Source.MISS)
        self._add(self._hits if look.fresh else self._stales)
        self._add(self._bytes_in, len(entry.text))
        if not look.fresh:
            return Result(True, self._read(entry.text, identifier), Source.STALE)
        return Result(True, self._read(entry.text, identifier), Source.HIT)

    async def _judge(
        self,
        data: Reply,
        reading: asyncio.Future[Reply],
        marks: Mapping[bytes, asyncio.Future[Reply]],
        *,
        key: str,
        at_ms: int,
    ) -> Look:
        """What a stored value is worth under the generations that are current."""
        generation = await settled(reading)
        current = generation if isinstance(generation, bytes) else b"-"
        under = b",".join(
            [
                current,
                *[
                    mark if isinstance(mark := await settled(each), bytes) else b"-"
                    for each in marks.values()
                ],
            ]
        )
        if not isinstance(data, bytes):
            return Look(NO_ID, under.decode(), at_ms, None, False, None)
        fault: CodecError | None = None
        entry: Entry | None = None
        try:
            entry = unpack(data, key=key)
        except CodecError as unreadable:
            fault = unreadable
        if entry is not None and (
            entry.generation != current or (entry.tags and not await self._are_current(entry.tags, marks))
        ):
            entry = None
        fresh = entry is not None and self._now_ms() < entry.fresh_ms
        return Look(id_of(data), under.decode(), at_ms, entry, fresh, fault)

    async def _are_current(
        self, tags: tuple[bytes, ...], marks: Mapping[bytes, asyncio.Future[Reply]]
    ) -> bool:
        pairs = [(name, generation) for name, _, generation in (tag.partition(b"=") for tag in tags)]
        readings = [
            marks[name] if name in marks else self._generations.read(self._keys.cache_tags() + name.decode())
            for name, _ in pairs
        ]
        found = [await settled(reading) for reading in readings]
        return found == [generation for _, generation in pairs]

    async def _usable(
        self,
        look: Look,
        entry: Entry,
        identifier: str,
        loader: Callable[[str], Awaitable[T | None]],
        tags: tuple[str, ...],
    ) -> Result[T] | None:
        """The stored value as an answer, perhaps refreshed in the background; None when a new one is needed."""
        fresh = look.fresh
        if not fresh and not self._is_stale(look, self._swr_ms):
            return None
        try:
            value = self._read(entry.text, identifier)
        except CodecError as fault:
            logger.warning("a stored value of %s is loaded anew: %s", self.kind.name, fault)
            return None
        if (not fresh or self._is_due(entry)) and not self._flights.is_under_way(self.slot(identifier)):
            flight = self._flights.board(self, identifier, loader, tags, look)
            flight.add_done_callback(self._note_refresh)
        self._add(self._hits if fresh else self._stales)
        self._add(self._bytes_in, len(entry.text))
        return Result(True, value, Source.HIT if fresh else Source.STALE)

    async def _board(
        self,
        identifier: str,
        loader: Callable[[str], Awaitable[T | None]],
        tags: tuple[str, ...],
        look: Look | None,
    ) -> Result[T]:
        loaded = await landed(self._flights.board(self, identifier, loader, tags, look))
        if loaded.source is Source.DEGRADED:
            self._add(self._degraded)
        # Each caller reads the text for itself: what one changes nobody else sees.
        return Result(True, self._read(loaded.text, identifier), loaded.source)

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

    def _is_stale(self, look: Look, window_ms: int) -> bool:
        """Whether a value that has ended is still within a window."""
        return look.entry is not None and self._now_ms() < look.entry.fresh_ms + window_ms

    def _lifetime(self, text: bytes) -> tuple[int, timedelta]:
        """When a value that is written now ends, and how long Redis keeps it."""
        ttl = self.ttl if text != NOTHING or self.kind.negative_ttl is None else self.kind.negative_ttl
        spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, hides nothing
        fresh = max(ttl * spread, _MS)
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

    def _key(self, identifier: str) -> str:
        return f"{self._prefix}{{{escape(identifier)}}}"

    def _read(self, text: bytes, identifier: str) -> T | None:
        return self._shape.read(text, self._key(identifier))

    # -- near ----------------------------------------------------------------------------------------------------

    def _take(self, identifier: str, near: NearKind) -> Held | None:
        held = near.held.get(identifier)
        if held is None or held.cells or self._now_ms() >= held.until_ms:
            held = near.take(identifier, self._now_ms())
            if held is None:
                return None
        held.asked = True
        self._add(self._nears)
        return held

    def _held_value(self, held: Held, identifier: str) -> T | None:
        if self._shape.immutable:
            return held.kept
        try:
            return self._shape.decode(held.kept)
        except UNDECODED:
            return self._read(held.kept, identifier)

    def _begin(self, identifier: str) -> Ticket | None:
        if self._near is None:
            return None
        if self._listen is not None:
            self._listen()
        return self._near.begin(identifier)

    def _end(self, identifier: str, ticket: Ticket | None, look: Look | None) -> None:
        """Take what was read into memory, unless it changed while it was read."""
        if self._near is None or ticket is None or not self._near.end(identifier, ticket):
            return
        if look is None or look.entry is None or not look.fresh:
            return
        entry = look.entry
        try:
            kept = self._read(entry.text, identifier) if self._shape.immutable else entry.text
        except CodecError:
            return  # whoever asked is told
        self._near.put(
            identifier,
            kept,
            text_bytes=len(entry.text),
            until_ms=min(entry.fresh_ms, look.at_ms + self._near_ms),
            tags=[tag.partition(b"=")[0] for tag in entry.tags],
        )

    def _forget_near(self, identifiers: Iterable[str]) -> None:
        if self._near is not None:
            for identifier in identifiers:
                self._near.changed(identifier)


def _fresh(result: Result[T]) -> T | None:
    return None if result.source is Source.STALE else result.value
