"""Looks: what is stored of a kind, in Redis or near, and what it is worth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Final, Generic

import msgspec

from counterseal.cache.entry import (
    FRESH_BEGIN,
    FRESH_END,
    GENERATION_BEGIN,
    GENERATION_END,
    LOAD_BEGIN,
    LOAD_END,
    NO_ID,
    TEXT_BEGIN,
    Entry,
    id_of,
    is_plain,
    tag_names,
    unpack,
)
from counterseal.cache.generations import Generations, settled
from counterseal.cache.kind import Kind, T
from counterseal.cache.near import Held, NearKind, Ticket
from counterseal.cache.result import Result, Source
from counterseal.cache.shape import UNDECODED, Shape
from counterseal.cache.stats import Counters
from counterseal.core.errors import CodecError, ConfigurationError
from counterseal.store.base import Store
from counterseal.store.keys import Keys, escape
from counterseal.store.wire import Reply, raised

_MS: Final = timedelta(milliseconds=1)
_MANY: Final = 500
_MANY_BYTES: Final = 32 * 2**20


ABSENT: Final = "*"
"""Stands in `Look.under` for a generation that there is not."""

_ABSENT: Final = ABSENT.encode()


class Look(msgspec.Struct, frozen=True):
    """What was found of a value: the id that was seen, under which generations, at what time, and what counts.

    `entry` is what is stored and not invalidated, however old; `fresh` whether it is within its lifetime; `fault` is
    why what is stored can't be read.
    """

    seen: bytes
    under: str
    at_ms: int
    entry: Entry | None
    fresh: bool
    fault: CodecError | None


class Unsettled(Enum):
    """What a quick look at stored bytes leaves open."""

    UNSETTLED = 0


UNSETTLED: Final = Unsettled.UNSETTLED


class Looks(Generic[T]):
    """Reads the values of one kind and judges them. Counts what was found."""

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        kind: Kind[T],
        shape: Shape[T],
        generations: Generations,
        counters: Counters,
        near: NearKind | None,
        listen: Callable[[], None],
    ) -> None:
        self.near = near
        self.generation_key = keys.cache_generation(kind.name)
        self._store = store
        self._now_ms = store.clock.now_ms
        self._tags = keys.cache_tags()
        self._prefix = keys.cache_values(kind.name)
        self._kind = kind
        self._shape = shape
        self._generations = generations
        self._counters = counters
        self._add, self._hits, self._bytes_read = counters.add, counters.hits, counters.bytes_read
        self._decode = shape.decode
        self._near_ms = kind.near // _MS if kind.near is not None else 0
        self._listen = listen
        self._stale_ms = max(kind.stale_while_revalidate, kind.stale_if_error) // _MS

    def key(self, identifier: str) -> str:
        """The key of a value. Raises `ConfigurationError` for what is no identifier."""
        try:
            escaped = escape(identifier)
        except (AttributeError, TypeError, UnicodeEncodeError):
            escaped = ""
        if not escaped:
            came = type(identifier).__name__ if identifier else "an empty one"
            raise ConfigurationError(
                f"identifier of {self._kind.name}: expected text of at least one character; came: {came}"
            )
        return f"{self._prefix}{{{escaped}}}"

    def read(self, text: bytes, identifier: str) -> T | None:
        """The value of a text. Raises `CodecError` naming the key."""
        return self._shape.read(text, self.key(identifier))

    async def look(self, identifier: str, tags: tuple[str, ...]) -> Look:
        """What is stored, and whether it counts. `tags` are read along with it. One round trip; two for other tags."""
        key = self.key(identifier)
        ticket = self._begin(identifier)
        look: Look | None = None
        try:
            reading = self._generations.read(self.generation_key)
            marks = {escape(tag).encode(): self._generations.read(self._tags + escape(tag)) for tag in tags}
            at_ms = self._now_ms()
            data = await self._store.command("GET", key)
            return (look := await self.judge(data, reading, marks, key=key, at_ms=at_ms))
        finally:
            self._end(identifier, ticket, look)

    async def find_many(self, identifiers: Sequence[str]) -> dict[str, T | None]:
        """The values that are there and fresh, by identifier. One round trip; two when some have tags."""
        tickets = [self._begin(identifier) for identifier in identifiers]
        looks: Sequence[Look | None] = [None] * len(identifiers)
        found: dict[str, T | None] = {}
        try:
            reading = self._generations.read(self.generation_key)
            at_ms = self._now_ms()
            keys = [self.key(identifier) for identifier in identifiers]
            replies = await self._fetch(keys)
            if self.near is None:
                quick = [self.quick(reply, reading, 0) for reply in replies]
            else:
                quick = [UNSETTLED] * len(replies)
            # Their tags are read together, and each once.
            marks = {
                name: self._generations.read(self._tags + name.decode())
                for name in dict.fromkeys(
                    name for reply in replies if isinstance(reply, bytes) for name in tag_names(reply)
                )
            }
            looks = [
                await self.judge(reply, reading, marks, key=key, at_ms=at_ms) if value is UNSETTLED else None
                for value, key, reply in zip(quick, keys, replies, strict=True)
            ]
        finally:
            for identifier, ticket, look in zip(identifiers, tickets, looks, strict=True):
                self._end(identifier, ticket, look)
        for identifier, value, look in zip(identifiers, quick, looks, strict=True):
            if value is not UNSETTLED:
                found[identifier] = value
            elif look is not None and (result := self.found(look, identifier)).source is Source.HIT:
                found[identifier] = result.value
        return found

    async def _fetch(self, keys: Sequence[str]) -> list[Reply]:
        """What is stored under keys. One round trip."""
        if self._store.server.mode == "cluster":
            return [raised(reply) for reply in await self._store.pipeline([("GET", key) for key in keys])]
        # One reply has room for all of them, however long each may be.
        many = max(1, min(_MANY, _MANY_BYTES // self._kind.max_value_bytes))
        parts = [keys[first : first + many] for first in range(0, len(keys), many)]
        replies = await self._store.pipeline([("MGET", *part) for part in parts])
        return [reply for part in replies for reply in _listed(part)]

    def quick(self, data: Reply, reading: asyncio.Future[Reply], loads_ahead: int) -> T | Unsettled | None:
        """The value of most reads, straight away; `UNSETTLED` where anything is not as usual, for `judge` to say.

        It is not as usual either within so many load times before the end, when a new value may be due.
        """
        if not (isinstance(data, bytes) and is_plain(data) and reading.done()):
            return UNSETTLED
        if data[GENERATION_BEGIN:GENERATION_END] != reading.result():
            return UNSETTLED
        try:
            left_ms = int(data[FRESH_BEGIN:FRESH_END]) - self._now_ms()
            if left_ms <= 0 or (loads_ahead and left_ms < loads_ahead * int(data[LOAD_BEGIN:LOAD_END])):
                return UNSETTLED
            value = self._decode(data[TEXT_BEGIN:])
        except UNDECODED:
            return UNSETTLED
        self._add(self._hits)
        self._add(self._bytes_read, len(data) - TEXT_BEGIN)
        return value

    async def judge(
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
        current = generation if isinstance(generation, bytes) else _ABSENT
        others = [(name, await settled(mark)) for name, mark in marks.items()]
        under = b",".join(
            (
                current,
                *(b"%b=%b" % (name, mark if isinstance(mark, bytes) else _ABSENT) for name, mark in others),
            )
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

    def found(self, look: Look, identifier: str) -> Result[T]:
        """The result of a look. Raises what can't be read."""
        if look.fault is not None:
            raise look.fault
        entry = look.entry
        if entry is not None and (look.fresh or self.is_stale(look, self._stale_ms)):
            value = self.read(entry.text, identifier)
            if look.fresh or self.may_be_stale(value):
                self._add(self._hits if look.fresh else self._counters.stale)
                self._add(self._bytes_read, len(entry.text))
                return Result(True, value, Source.HIT if look.fresh else Source.STALE)
        self._add(self._counters.misses)
        return Result(False, None, Source.MISS)

    def may_be_stale(self, value: T | None) -> bool:
        """Whether a value may be handed out after its lifetime, as far as its kind lets it tell."""
        judge = self._kind.may_be_stale
        return judge is None or value is None or judge(value)

    def is_stale(self, look: Look, window_ms: int) -> bool:
        """Whether a value that has ended is still within a window."""
        return look.entry is not None and self._now_ms() < look.entry.fresh_ms + window_ms

    async def _are_current(
        self, tags: tuple[bytes, ...], marks: Mapping[bytes, asyncio.Future[Reply]]
    ) -> bool:
        pairs = [(name, generation) for name, _, generation in (tag.partition(b"=") for tag in tags)]
        readings = [
            marks[name] if name in marks else self._generations.read(self._tags + name.decode())
            for name, _ in pairs
        ]
        found = [await settled(reading) for reading in readings]
        return found == [generation for _, generation in pairs]

    # -- near ----------------------------------------------------------------------------------------------------

    def take(self, identifier: str, near: NearKind) -> Held | None:
        """What is near of a value and counts."""
        held = near.held.get(identifier)
        if held is None or self._now_ms() >= held.quick_until_ms:
            held = near.take(identifier, self._now_ms())
            if held is None:
                return None
        held.asked = True
        self._add(self._counters.near)
        return held

    def held_value(self, held: Held, identifier: str) -> T | None:
        """The value of what is near: a new object, unless nobody can change it."""
        if self._shape.immutable:
            return held.kept
        try:
            return self._shape.decode(held.kept)
        except UNDECODED:
            return self.read(held.kept, identifier)

    def _begin(self, identifier: str) -> Ticket | None:
        if self.near is None:
            return None
        self._listen()
        return self.near.begin(identifier)

    def _end(self, identifier: str, ticket: Ticket | None, look: Look | None) -> None:
        """Take what was read into memory, unless it changed while it was read."""
        if self.near is None or ticket is None or not self.near.end(identifier, ticket):
            return
        if look is None or look.entry is None or not look.fresh:
            return
        entry = look.entry
        try:
            kept = self.read(entry.text, identifier) if self._shape.immutable else entry.text
        except CodecError:
            return  # whoever asked is told
        self.near.put(
            identifier,
            kept,
            text_bytes=len(entry.text),
            until_ms=min(entry.fresh_ms, look.at_ms + self._near_ms),
            tags=[tag.partition(b"=")[0] for tag in entry.tags],
        )

    def forget(self, identifiers: Iterable[str]) -> None:
        """Forget what is near of some values, and take in no read of them that is under way."""
        if self.near is not None:
            for identifier in identifiers:
                self.near.changed(identifier)


def _listed(reply: Reply) -> list[Reply]:
    found = raised(reply)
    if not isinstance(found, list):
        raise CodecError("the answer to MGET is no list")
    return found
