"""Entry: a cached value as it is stored, with what decides whether it still counts."""

from __future__ import annotations

import msgspec

from counterseal.core.codec import JsonValue, decode_as, encode_record, from_raw


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """`1:["<generation>",<expires_ms>,<value>]`. It counts until then, and while its kind has that generation."""

    generation: str
    expires_ms: int
    value: msgspec.Raw


def pack(value: msgspec.Raw, *, generation: str, expires_ms: int) -> bytes:
    """The bytes to store for the JSON text of a value."""
    return encode_record(Entry(generation, expires_ms, value))


def unpack(data: bytes, *, generation: str, now_ms: int, key: str) -> JsonValue:
    """The value, or None when it has expired or its kind was cleared since. Raises `CodecError` naming `key`."""
    entry = decode_as(data, Entry, key=key)
    if entry.generation != generation or entry.expires_ms <= now_ms:
        return None
    return from_raw(entry.value, key=key)
