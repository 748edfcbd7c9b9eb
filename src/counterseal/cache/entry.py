"""Entry: a cached value as it is stored, with what decides whether it still counts.

`1:<id> <generation> <fresh_ms> <load_ms> <tag>=<generation>…` and, after a line break, the JSON text of the value. The
first three have fixed places, of 16, 16 and 13 characters. The id is new with every write. A tombstone, `1:<id>` and a
line break, stands where a value was invalidated: whoever loaded before it finds another id than it saw, and its late
fill is refused. A script reads the id by its place.
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
    head = b"1:%b %b %013d %d" % (new_id().encode(), generation, fresh_ms, load_ms)
    return b" ".join((head, *tags)) + b"\n" + text


def tombstone() -> bytes:
    """The bytes to store for a value that was invalidated."""
    return b"1:%b\n" % new_id().encode()


def tagged(tag: str, generation: bytes) -> bytes:
    """A tag with the generation that it had when the value was written."""
    return quote(tag, safe="").encode() + b"=" + generation


def text_at(data: bytes) -> int:
    """Where the text of a value without tags begins; 0 for anything else that is stored."""
    line = data.find(b"\n", FRESH_END)
    return 0 if line < 0 or not data.startswith(b"1:") or b"=" in data[FRESH_END:line] else line + 1


def tag_names(data: bytes) -> list[bytes]:
    """The names of the tags of a stored value, as they stand there; none of anything else that is stored."""
    line = data.find(b"\n", FRESH_END)
    fields = data[FRESH_END:line].split(b" ") if line > 0 else []
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
