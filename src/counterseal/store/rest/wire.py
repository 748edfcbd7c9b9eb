"""How commands become requests of Upstash's REST protocol, and what its answers say.

A command travels as a JSON array of texts. Bytes that are not UTF-8 cannot stand in JSON, and the protocol encodes
nothing on the way in, so such a command travels alone in the path form: its largest binary argument as the raw body,
those before it percent-encoded in the path, those after it in the query.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import quote

import msgspec

from counterseal.core.errors import CommandError, StoreUnavailable
from counterseal.store.wire import Argument, Command, Reply, error_reply

MAX_TARGET_BYTES = 8000
"""The longest path and query that a command may make; servers refuse much longer ones."""

_encoder = msgspec.json.Encoder()


class Item(msgspec.Struct):
    """One command's answer: a result, else an error."""

    result: Any = msgspec.UNSET
    error: str | None = None


_item = msgspec.json.Decoder(Item)
_items = msgspec.json.Decoder(list[Item])


def encode_row(command: Command) -> bytes | None:
    """A command as a JSON array; None when one of its arguments is not text.

    Raises `TypeError` for an argument that is not text, bytes or a number.
    """
    texts: list[str] = []
    for argument in command:
        if isinstance(argument, str):
            texts.append(argument)
        elif isinstance(argument, bytes):
            try:
                texts.append(argument.decode())
            except UnicodeDecodeError:
                return None
        else:
            texts.append(_number(argument))
    try:
        return _encoder.encode(texts)
    except UnicodeEncodeError as fault:
        raise TypeError("a command's text must be encodable as UTF-8 (it has a lone surrogate)") from fault


def path_form(command: Command) -> tuple[str, bytes]:
    """A command with binary arguments: path and query below the base URL, and the body.

    Raises `CommandError` when they would be too long, or can't be said in this form.
    """
    parts = [_bytes(argument) for argument in command]
    at = max(range(1, len(parts)), key=lambda place: (_is_binary(parts[place]), len(parts[place])))
    before, after = parts[:at], parts[at + 1 :]
    segments = [quote(part, safe="").replace(".", "%2E") for part in before]
    path = "/" + "/".join(segments) + ("/" if not before[-1] else "")
    pairs = [
        "=".join(quote(part, safe="") for part in after[place : place + 2])
        for place in range(0, len(after), 2)
    ]
    target = path + ("?" + "&".join(pairs) if pairs else "")
    if len(target) > MAX_TARGET_BYTES:
        raise CommandError(
            f"ERR over REST only one binary argument may be long: the others take more than {MAX_TARGET_BYTES} bytes"
        )
    if "" in pairs or b"_token" in after[::2]:
        raise CommandError("ERR over REST these arguments can't follow a binary one")
    return target, parts[at]


def decode_item(body: bytes) -> Reply:
    """The answer to one command. An error is returned. Raises `StoreUnavailable` for what is no such answer."""
    try:
        return _reply(_item.decode(body))
    except _UNREADABLE as fault:
        raise _unreadable() from fault


def decode_items(body: bytes, count: int) -> list[Reply]:
    """The answers to `count` commands, errors among them. Raises `StoreUnavailable` for what is no such answer."""
    try:
        replies = [_reply(item) for item in _items.decode(body)]
    except _UNREADABLE as fault:
        raise _unreadable() from fault
    if len(replies) != count:
        raise StoreUnavailable("the Redis REST service answered another number of commands than was asked")
    return replies


def decode_error(body: bytes) -> str | None:
    """The error of an answer; None when there is none."""
    try:
        return _item.decode(body).error
    except _UNREADABLE:
        return None


_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def _unreadable() -> StoreUnavailable:
    return StoreUnavailable("the Redis REST service sent an answer that can't be understood")


def _reply(item: Item) -> Reply:
    if item.error is not None:
        return error_reply(item.error)
    return _decode(item.result)


def _decode(value: Any) -> Reply:
    """Undo base64 at every depth. `OK` alone is never encoded, and is not what any encoding looks like."""
    if isinstance(value, str):
        if value == "OK":
            return b"OK"
        try:
            return a2b_base64(value, strict_mode=True) if value else b""
        except Base64Error as fault:
            raise ValueError("not base64") from fault
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, list):
        return [_decode(part) for part in cast("Sequence[Any]", value)]
    raise ValueError("not a shape of RESP2")


def _number(argument: object) -> str:
    if isinstance(argument, float):
        return repr(argument)
    if isinstance(argument, int) and not isinstance(argument, bool):
        return str(argument)
    raise TypeError("a part of a command must be text, bytes or a number")


def _bytes(argument: Argument) -> bytes:
    if isinstance(argument, bytes):
        return argument
    return argument.encode() if isinstance(argument, str) else _number(argument).encode()


def _is_binary(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return True
    return False
