"""Request: what an HTTP request asks for, from its path, query and body to the arguments of commands.

| JSON | argument |
| --- | --- |
| string | its text; a lone surrogate becomes the three bytes that stand for it |
| number | its literal text: `1.10`, `1E400` and integers of any length arrive unchanged |
| `true`, `false` | the words `true`, `false` |
| `null`, array, object | refused |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Never, TypeAlias, cast
from urllib.parse import unquote_to_bytes

import msgspec

Arguments: TypeAlias = list[str | bytes]
"""A command: its name, always text, then its arguments."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request, or one item of it, can't be run: the text that the client gets."""

    text: str


EMPTY_BODY = Fault("EOF")
NOT_AN_ARRAY = Fault("expected JSON array")
EMPTY_COMMAND = Fault("ERR empty command")
UNREADABLE_COMMAND = Fault("ERR failed to parse command")
EMPTY_PIPELINE = Fault("ERR empty pipeline request")
EMPTY_ITEM = Fault("ERR empty pipeline command")
UNREADABLE_PIPELINE = Fault("ERR failed to parse pipeline request")
NULL_ARGUMENT = Fault("ERR null args are not supported")


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


_texts = msgspec.json.Decoder(list[str])
_rows = msgspec.json.Decoder(list[list[str]])
_literal = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_refuse_constant)


def read_command(body: bytes) -> Arguments | Fault:
    """The one command of a body."""
    try:
        command = _texts.decode(body)
    except (msgspec.MsgspecError, ValueError):
        return _read_command(body)
    return cast("Arguments", command) if command else EMPTY_COMMAND


def read_pipeline(body: bytes) -> list[Arguments | Fault] | Fault:
    """The commands of a body. A fault inside one of them stands in its place; a fault of the whole is returned."""
    try:
        rows = _rows.decode(body)
    except (msgspec.MsgspecError, ValueError):
        return _read_pipeline(body)
    if not rows:
        return EMPTY_PIPELINE
    return cast("list[Arguments | Fault]", rows) if all(rows) else EMPTY_ITEM


def path_segments(path: bytes) -> list[bytes]:
    """The parts of a raw path below the mount, decoded to bytes. Slashes before it, and one after it, do not count."""
    path = path.lstrip(b"/")
    if path.endswith(b"/"):
        path = path[:-1]
    if not path:
        return []
    parts = path.split(b"/")
    return [unquote_to_bytes(part) if b"%" in part else part for part in parts]


def query_items(query: bytes) -> list[tuple[bytes, bytes | None]]:
    """Names and values of a query string, in order, decoded to bytes. A name without `=` has no value."""
    items: list[tuple[bytes, bytes | None]] = []
    for piece in query.split(b"&"):
        if piece:
            name, found, value = piece.replace(b"+", b" ").partition(b"=")
            items.append((unquote_to_bytes(name), unquote_to_bytes(value) if found else None))
    return items


def path_command(
    segments: Sequence[bytes], body: bytes, query: Sequence[tuple[bytes, bytes | None]]
) -> Arguments:
    """The command of a path: its parts, then the body as one argument, then the query's names and values."""
    arguments: Arguments = [segments[0].decode("latin-1"), *segments[1:]]
    if body:
        arguments.append(body)
    for name, value in query:
        arguments.append(name)
        if value is not None:
            arguments.append(value)
    return arguments


def _read_command(body: bytes) -> Arguments | Fault:
    parsed = _parse(body, UNREADABLE_COMMAND)
    if isinstance(parsed, Fault):
        return parsed
    return _arguments(parsed) if parsed else EMPTY_COMMAND


def _read_pipeline(body: bytes) -> list[Arguments | Fault] | Fault:
    parsed = _parse(body, UNREADABLE_PIPELINE)
    if isinstance(parsed, Fault):
        return parsed
    if not parsed:
        return EMPTY_PIPELINE
    rows: list[Arguments | Fault] = []
    for row in parsed:
        if not isinstance(row, list):
            return UNREADABLE_PIPELINE
        if not row:
            return EMPTY_ITEM
        rows.append(_arguments(cast("list[Any]", row)))
    return rows


def _parse(body: bytes, unreadable: Fault) -> list[Any] | Fault:
    """Read JSON with its numbers as they stand."""
    try:
        text = body.decode()
        if not text.strip():
            return EMPTY_BODY
        parsed: Any = _literal.decode(text)
    except (ValueError, RecursionError):
        return unreadable
    return cast("list[Any]", parsed) if isinstance(parsed, list) else NOT_AN_ARRAY


def _arguments(row: list[Any]) -> Arguments | Fault:
    arguments: Arguments = []
    for value in row:
        if isinstance(value, str):
            arguments.append(value if value.isascii() else value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, bool):
            arguments.append("true" if value else "false")
        elif value is None:
            return NULL_ARGUMENT
        else:
            bracket = "[" if isinstance(value, list) else "{"
            return Fault(f'ERR unsupported arg type: "{bracket}": json.Delim')
    if isinstance(arguments[0], bytes):
        arguments[0] = arguments[0].decode("utf-8", "replace")
    return arguments
