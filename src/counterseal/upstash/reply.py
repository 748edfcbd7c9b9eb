"""Reply: RESP2 shapes as the JSON that clients read.

With base64 every string is encoded, at every depth, except a top-level `OK`. Without it, bytes that are not UTF-8
become U+FFFD. Integers stay numbers, both kinds of nil are `null`, errors are never encoded.
"""

from __future__ import annotations

import os
import secrets
from binascii import b2a_base64
from typing import Any

import msgspec

from counterseal.core.errors import CommandError
from counterseal.store.wire import Reply

_OK = b'{"result":"OK"}'
_NULL = b'{"result":null}'


def _error_in_array(value: object) -> bytes:
    """An error inside an array is rendered as its text."""
    return str(value).encode("utf-8", "replace")


# msgspec writes bytes as base64, which is just what is asked for.
_as_base64 = msgspec.json.Encoder(enc_hook=_error_in_array)
_as_text = msgspec.json.Encoder()


def encode_result(reply: Reply, *, base64: bool) -> bytes:
    """`{"result": ...}`. Raises `RecursionError` for a reply that is nested too deeply to be written."""
    if isinstance(reply, bytes):
        if base64:
            return _OK if reply == b"OK" else b'{"result":"%b"}' % b2a_base64(reply, newline=False)
        return b'{"result":%b}' % _as_text.encode(reply.decode("utf-8", "replace"))
    if reply is None:
        return _NULL
    if isinstance(reply, int):
        return b'{"result":%d}' % reply
    return b'{"result":%b}' % (_as_base64.encode(reply) if base64 else _as_text.encode(_texts(reply)))


def encode_error(text: str) -> bytes:
    """`{"error": ...}`."""
    return b'{"error":%b}' % _as_text.encode(text.encode("utf-8", "replace").decode())


class SyncTokens:
    """The values of `Upstash-Sync-Token`: this start of the process, and a number that grows with every answer."""

    def __init__(self) -> None:
        self._start = f"{secrets.token_hex(6)}.{os.getpid()}.".encode()
        self._number = 0

    def next(self) -> bytes:
        """A token that was never given before."""
        self._number += 1
        return b"%b%d" % (self._start, self._number)


def _texts(reply: Reply) -> Any:
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "replace")
    if isinstance(reply, list):
        return [_texts(item) for item in reply]
    if isinstance(reply, CommandError):
        return str(reply)
    return reply
