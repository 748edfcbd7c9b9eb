"""Chain: the text and the hash of an audit entry, and what is wrong with entries that were changed.

Every entry holds the hash of the one before it in its stream, so an entry can't be changed, moved or taken out of the
middle without a trace. A tail that was cut off, and a stream that was hashed anew from end to end, are not found here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from json.encoder import encode_basestring as quoted
from typing import Final, cast

import msgspec

from counterseal.core.codec import JsonValue, to_text
from counterseal.core.errors import CodecError

ACTION: Final = "action"
"""The member of every body that says what happened; hashed with the rest."""

FIRST_PREV: Final = bytes(32)
"""What the first entry of a stream has instead of the hash of its predecessor."""

MAX_DEPTH: Final = 64
"""How many lists and objects may lie inside one another in a body."""

_LARGEST_INTEGER: Final = 2**53 - 1
_LITERALS: Final = {None: "null", True: "true", False: "false"}


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of a stream. `seq` counts from 1; `body` is the very text that was hashed."""

    stream: str
    seq: int
    hash: bytes
    prev: bytes
    at: datetime
    action: str
    body: str


class Flaw(StrEnum):
    """What shows that an entry is not what was written."""

    GAP = "gap"  # it is not the successor of the entry before it
    PREV = "prev"  # it does not hold the hash of the entry before it
    HASH = "hash"  # its own hash is not that of its stream, number, time and body
    ACTION = "action"  # its action is not the one in its body


@dataclass(frozen=True, slots=True)
class BrokenEntry:
    """The first entry of a stream that is not what was written, and how that shows."""

    stream: str
    seq: int
    flaw: Flaw


class _Body(msgspec.Struct):
    action: str


_read_body: Final = msgspec.json.Decoder(_Body).decode


def canonical_text(value: Mapping[str, JsonValue]) -> str:
    """The one JSON text of an object, as RFC 8785 has it: members sorted by UTF-16, nothing escaped that need not be.

    Takes what the codec takes, less floats, and integers below 2**53 only: beyond that readers of JSON do not agree on
    what they read. Raises `CodecError` with the path to the fault.
    """
    text = _canonical(dict(value), "$", MAX_DEPTH)
    try:
        text.encode()
    except UnicodeEncodeError:
        to_text(dict(value))  # says where the lone surrogate is
        raise
    return text


def hash_entry(stream: str, seq: int, prev: bytes, at: datetime, body: str) -> bytes:
    """SHA-256 of the stream, the number, the hash before it in hex, the time and the body, a line each.

    Only the stream may hold a line feed of its own, and it comes first: no two entries have the same lines.
    """
    lines = f"{stream}\n{seq}\n{prev.hex()}\n{timestamp(at)}\n{body}"
    return hashlib.sha256(lines.encode()).digest()


def timestamp(at: datetime) -> str:
    """An aware time as it is hashed: UTC with six decimals and `Z`."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def commitment_of(salt: bytes, value: str) -> bytes:
    """SHA-256 of salt and value: what stands in a body for a value that can be erased."""
    return hashlib.sha256(salt + value.encode()).digest()


def verify_entries(entries: Iterable[AuditEntry]) -> BrokenEntry | None:
    """Recompute whole streams, each from its first entry; None when every entry is what was written.

    The entries of a stream come in order; streams may be mixed. Answers the first broken entry that comes.
    """
    heads: dict[str, tuple[int, bytes]] = {}
    for entry in entries:
        seq, last = heads.get(entry.stream, (0, FIRST_PREV))
        if flaw := _flaw(entry, seq + 1, last):
            return BrokenEntry(entry.stream, entry.seq, flaw)
        heads[entry.stream] = (entry.seq, entry.hash)
    return None


def _flaw(entry: AuditEntry, seq: int, prev: bytes) -> Flaw | None:
    if entry.seq != seq:
        return Flaw.GAP
    if entry.prev != prev:
        return Flaw.PREV
    if entry.hash != hash_entry(entry.stream, entry.seq, entry.prev, entry.at, entry.body):
        return Flaw.HASH
    try:
        same = _read_body(entry.body).action == entry.action
    except msgspec.MsgspecError:
        same = False
    return None if same else Flaw.ACTION


def _canonical(value: object, path: str, depth: int) -> str:
    kind: type[object] = type(value)
    if kind is str:
        return quoted(cast("str", value))
    if value is None or kind is bool:
        return _LITERALS[cast("bool | None", value)]
    if kind is int:
        if abs(cast("int", value)) > _LARGEST_INTEGER:
            raise CodecError("an integer of an audit entry is 2**53 or more", path=path)
        return str(value)
    if not depth:
        raise CodecError(f"lists and objects of an audit entry lie more than {MAX_DEPTH} deep", path=path)
    if kind is list:
        items = cast("list[object]", value)
        texts = [_canonical(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(items)]
        return f"[{','.join(texts)}]"
    if kind is dict:
        members = cast("dict[object, object]", value)
        names = _names(members, path)
        # Of ASCII the order is the same, and found at once.
        names.sort(key=None if "".join(names).isascii() else _utf16)
        texts = [f"{quoted(name)}:{_member(members[name], path, name, depth)}" for name in names]
        return f"{{{','.join(texts)}}}"
    if kind is float:
        raise CodecError("an audit entry has a float, which has more than one text", path=path)
    raise CodecError(f"{kind.__module__}.{kind.__qualname__} is not a type of JSON", path=path)


def _member(value: object, path: str, name: str, depth: int) -> str:
    return quoted(value) if type(value) is str else _canonical(value, f"{path}.{name}", depth - 1)


def _names(members: dict[object, object], path: str) -> list[str]:
    for name in members:
        if type(name) is not str:
            raise CodecError(
                f"an object has a key of type {type(name).__qualname__}, expected str", path=path
            )
    return cast("list[str]", list(members))


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")
