"""Entry: a cached value as it is stored, with what decides whether it still counts.

`1:<id> <generation> <fresh_ms> <load_ms>`, then a space and `<tag>=<generation>` for each tag, and after a line break
the JSON text of the value. All but the tags have fixed places, of 16, 16, 13 and 9 characters, so that most reads need
no parsing. The id is new with every write. A tombstone, `1:<id>` and a line break, stands for a value that was
invalidated: whoever loaded before it finds another id than it saw, and its late fill is refused. Scripts read the id by
its place.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import msgspec

from counterseal.core.codec import without_schema
from counterseal.core.errors import CodecError

ID_BEGIN: Final = 2
ID_END: Final = 18
GENERATION_BEGIN: Final = 19
GENERATION_END: Final = 35
FRESH_BEGIN: Final = 36
FRESH_END: Final = 49
LOAD_BEGIN: Final = 50
LOAD_END: Final = 59
TEXT_BEGIN: Final = 60
"""Where the text begins when there are no tags."""

_LONGEST_LOAD_MS: Final = 999_999_999
NO_ID: Final = b""
"""The id that is seen where nothing is stored."""


class Entry(msgspec.Struct, frozen=True):
    """A stored value. `fresh_ms` is when it ends, by the store's clock; `load_ms` how long it took to load."""

    generation: bytes
    fresh_ms: int
    load_ms: int
    tags: tuple[bytes, ...]
    text: bytes


def new_id() -> str:
    """An id for a write, or a generation: never given twice."""
    return secrets.token_hex(8)


def id_of(data: bytes | None) -> bytes:
    """What stands where the id stands, in whatever is stored."""
    return NO_ID if data is None else data[ID_BEGIN:ID_END]


def pack(text: bytes, *, generation: bytes, fresh_ms: int, load_ms: int, tags: Iterable[bytes]) -> bytes:
    """The bytes to store for the JSON text of a value. Tags are made by `tagged`."""
    head = b"1:%b %b %013d %09d" % (
        new_id().encode(),
        generation,
        fresh_ms,
        min(load_ms, _LONGEST_LOAD_MS),
    )
    return b" ".join((head, *tags)) + b"\n" + text


def tombstone() -> bytes:
    """The bytes to store for a value that was invalidated."""
    return b"1:%b\n" % new_id().encode()


def tagged(tag: str, generation: bytes) -> bytes:
    """A tag with the generation that it had when the value was written."""
    return quote(tag, safe="").encode() + b"=" + generation


def is_plain(data: bytes) -> bool:
    """Whether this is a value without tags, as far as its places tell: everything is where it should be."""
    return data[LOAD_END:TEXT_BEGIN] == b"\n" and data.startswith(b"1:")


def tag_names(data: bytes) -> list[bytes]:
    """The names of the tags of a stored value, as they stand there; none of anything else that is stored."""
    line = data.find(b"\n", LOAD_END)
    fields = data[LOAD_END:line].split(b" ") if line > 0 else []
    return [name for name, equals, _ in (field.partition(b"=") for field in fields) if equals]


def unpack(data: bytes, *, key: str) -> Entry | None:
    """What is stored; None for a tombstone. Raises `CodecError` naming `key`."""
    head, line, text = data.partition(b"\n")
    fields = head.split(b" ")
    try:
        if line and fields[0].startswith(b"1:") and len(fields[0]) == ID_END:
            if len(fields) == 1 and not text:
                return None
            return Entry(fields[1], int(fields[2]), int(fields[3]), tuple(fields[4:]), text)
    except (IndexError, ValueError):
        pass
    without_schema(data, key=key)
    raise CodecError("a stored value can't be read: it has no head", key=key)
