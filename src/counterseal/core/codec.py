"""Codec: JSON values to bytes and back, exactly.

What is stored is a schema version, a colon and JSON text: `1:{"a":[1,2.0]}`. A value that can't be written exactly is
refused before a byte leaves, with the path to the fault; bytes that can't be read are an error that names their key.
Values never appear in a message, only their types.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any, Final, TypeAlias, TypeVar, cast

import msgspec

from counterseal.core.errors import CodecError

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
"""What `decode` gives back and `encode` takes: these types exactly, none of their subclasses."""

MAX_DEPTH: Final = 256
"""How many lists and objects may lie inside one another."""

FIRST_SCHEMA: Final = frozenset({1})

_T = TypeVar("_T")

_PLAIN: Final = frozenset({str, int, bool, type(None)})
_LONG_INTEGER: Final = 640  # digits; Python converts shorter ones whatever limit the program has set
_LONG_INTEGER_BITS: Final = 2048  # surely fewer digits than that
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|-?[0-9]{%d,}+(?![0-9.eE])' % _LONG_INTEGER)
_PATH_SHOWN: Final = 120

_encode = msgspec.json.Encoder().encode


def encode(value: object, *, schema: int = 1) -> bytes:
    """The bytes that stand for a JSON value: the schema version and its text.

    `value` is made of dict with str keys, list, str, int of any size, finite float, bool and None. Anything else
    (subclasses, tuples, NaN, infinities, lone surrogates), nesting deeper than `MAX_DEPTH` and a value that contains
    itself raise `CodecError` with the path.
    """
    return b"%d:%b" % (schema, to_text(value))


def decode(data: bytes, *, key: str, schemas: Collection[int] = FIRST_SCHEMA) -> JsonValue:
    """The value that `encode` was given: equal, and of the same types.

    Raises `CodecError` naming `key` when the bytes are not JSON or their schema version is not one of `schemas`.
    """
    return from_text(without_schema(data, key=key, schemas=schemas), key=key)


def decode_as(data: bytes, kind: type[_T], *, key: str, schemas: Collection[int] = FIRST_SCHEMA) -> _T:
    """The stored value as a `kind`: whatever type msgspec decodes, checked on the way.

    Raises `CodecError` naming `key` as `decode` does, and when the value does not fit `kind`.
    """
    return from_text_as(without_schema(data, key=key, schemas=schemas), kind, key=key)


def to_text(value: object) -> bytes:
    """The JSON text of a value without a schema version, checked as `encode` checks it."""
    try:
        if _is_exact(value, MAX_DEPTH):
            return _encode(value)
    except (ValueError, RecursionError):
        pass  # a lone surrogate, an integer too long for msgspec, or too deep: found again below, with its path
    try:
        return _encode(_with_long_integers(value, "$", MAX_DEPTH))
    except RecursionError as fault:
        raise CodecError("the value is nested too deeply for the stack of its caller") from fault


def without_schema(data: bytes, *, key: str, schemas: Collection[int] = FIRST_SCHEMA) -> bytes:
    """What follows the schema version of stored bytes. Raises `CodecError` naming `key` when it is not one of these."""
    version, colon, text = data.partition(b":") if data[1:2] != b":" else (data[:1], b":", data[2:])
    if not (colon and version.isdigit() and len(version) < 10):
        raise CodecError("a stored value does not begin with a schema version", key=key)
    if int(version) not in schemas:
        known = ", ".join(map(str, sorted(schemas)))
        raise CodecError(
            f"a stored value has schema version {int(version)}; this release reads {known}", key=key
        )
    return text


def from_text(text: bytes, *, key: str) -> JsonValue:
    """The value of a JSON text, as `decode` reads it. Raises `CodecError` naming `key`."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as fault:
        if not _out_of_range(fault):
            raise _unreadable(fault, key) from fault
    try:
        return _long_decoder.decode(_TOKEN.sub(_marked, text))
    except (msgspec.MsgspecError, ValueError, RecursionError) as fault:
        raise _unreadable(fault, key) from fault


def from_text_as(text: bytes, kind: type[_T], *, key: str) -> _T:
    """The value of a JSON text as a `kind`, as `decode_as` reads it. Raises `CodecError` naming `key`."""
    try:
        return cast("_T", _decoder(kind).decode(text))
    except (msgspec.MsgspecError, ValueError, RecursionError) as fault:
        if not _out_of_range(fault):
            raise _unreadable(fault, key) from fault
    try:
        return msgspec.convert(from_text(text, key=key), kind)
    except msgspec.ValidationError as fault:
        raise _unreadable(fault, key) from fault


def _is_exact(value: object, depth: int) -> bool:
    """Whether only the types of JSON occur. The hot path: it knows no path and does not look into text."""
    kind: type[object] = type(value)
    if kind is dict:
        mapping = cast("dict[object, object]", value)
        for name in mapping:
            if type(name) is not str:
                return False
        items: Iterable[object] = mapping.values()
    elif kind is list:
        items = cast("list[object]", value)
    else:
        return kind in _PLAIN or (kind is float and isfinite(cast("float", value)))
    if not depth:
        return False
    for item in items:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is float:
            if not isfinite(cast("float", item)):
                return False
        elif (kind is not dict and kind is not list) or not _is_exact(item, depth - 1):
            return False
    return True


def _with_long_integers(value: object, path: str, depth: int) -> object:
    """The value with long integers as raw text. Raises `CodecError` for the first part that is not JSON."""
    kind: type[object] = type(value)
    if kind is dict or kind is list:
        if not depth:
            raise _refused(
                f"lists and objects lie more than {MAX_DEPTH} deep, or the value contains itself", path
            )
        if kind is list:
            items = cast("list[object]", value)
            return [
                _with_long_integers(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(items)
            ]
        return {
            _name(name, path): _with_long_integers(item, _step(path, name), depth - 1)
            for name, item in cast("dict[object, object]", value).items()
        }
    if kind is int:
        number = cast("int", value)
        return (
            number if number.bit_length() < _LONG_INTEGER_BITS else msgspec.Raw(str(Decimal(number)).encode())
        )
    if kind is str:
        if not _is_unicode(cast("str", value)):
            raise _refused("text has a lone surrogate, which is no Unicode character", path)
    elif kind is float:
        if not isfinite(cast("float", value)):
            raise _refused("a number is not finite, and JSON has no word for that", path)
    elif kind not in _PLAIN:
        raise _refused(f"{kind.__module__}.{kind.__qualname__} is not a type of JSON", path)
    return value


def _name(name: object, path: str) -> str:
    if type(name) is not str:
        raise _refused(f"an object has a key of type {type(name).__qualname__}, expected str", path)
    if not _is_unicode(name):
        raise _refused("an object has a key with a lone surrogate, which is no Unicode character", path)
    return name


def _step(path: str, name: object) -> str:
    plain = isinstance(name, str) and name.isidentifier()
    return f"{path}.{name}" if plain else f"{path}[{name!r}]"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(message: str, path: str) -> CodecError:
    return CodecError(message, path=path if len(path) <= _PATH_SHOWN else f"{path[:_PATH_SHOWN]}…")


def _marked(token: re.Match[bytes]) -> bytes:
    # msgspec hands numbers with an exponent to `_number` as text, where an integer this long is read exactly.
    found = token[0]
    return found if found.startswith(b'"') else found + b"e0"


def _number(text: str) -> int | float:
    if len(text) >= _LONG_INTEGER and text.endswith("e0"):
        return int(Decimal(text[:-2]))
    number = float(text)
    if not isfinite(number):
        raise ValueError("Number out of range")
    return number


_long_decoder: Final = msgspec.json.Decoder(float_hook=_number)


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _out_of_range(fault: Exception) -> bool:
    return isinstance(fault, msgspec.ValidationError) and str(fault).startswith("Integer value out of range")


def _unreadable(fault: Exception, key: str) -> CodecError:
    if isinstance(fault, RecursionError):
        return CodecError("a stored value is nested too deeply to be read", key=key)
    if isinstance(fault, UnicodeDecodeError):
        return CodecError("a stored value is not UTF-8", key=key)
    reason, _, path = str(fault).partition(" - at ")
    if reason.startswith("Invalid"):
        reason = reason.partition(" value")[0] + " value"  # what follows is the value itself
    return CodecError(f"a stored value can't be read: {reason}", key=key, path=path.strip("`") or None)
