"""Replies as JSON: with base64 and without, at every depth."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest

from counterseal.core.errors import CommandError
from counterseal.store.wire import Reply
from counterseal.upstash.reply import SyncTokens, encode_error, encode_result


def b64(data: bytes) -> str:
    return b64encode(data).decode()


@pytest.mark.parametrize(
    ("reply", "plain", "encoded"),
    [
        (None, None, None),
        (7, 7, 7),
        (2**63 - 1, 2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63), -(2**63)),
        (b"", "", ""),
        (b"OK", "OK", "OK"),
        (b"PONG", "PONG", b64(b"PONG")),
        (b"null", "null", b64(b"null")),
        ('\x00😀"\\/'.encode(), '\x00😀"\\/', b64('\x00😀"\\/'.encode())),
        (b"\xff\xfea", "\ufffd\ufffda", b64(b"\xff\xfea")),
        ([b"OK", 1, None, [b"x", [b"\xff"]]], ["OK", 1, None, ["x", ["\ufffd"]]],
         [b64(b"OK"), 1, None, [b64(b"x"), [b64(b"\xff")]]]),
        ([], [], []),
        ([CommandError("ERR inside")], ["ERR inside"], [b64(b"ERR inside")]),
    ],
)  # fmt: skip
def test_a_reply_is_written_plain_and_in_base64(reply: Reply, plain: object, encoded: object) -> None:
    assert json.loads(encode_result(reply, base64=False)) == {"result": plain}
    assert json.loads(encode_result(reply, base64=True)) == {"result": encoded}


def test_an_error_is_never_encoded_and_always_text() -> None:
    assert json.loads(encode_error('ERR "quoted"\n\ufffd')) == {"error": 'ERR "quoted"\n\ufffd'}
    assert json.loads(encode_error("ERR \ud800")) == {"error": "ERR ?"}


@pytest.mark.parametrize("base64", [True, False])
def test_a_reply_nested_beyond_measure_is_an_error_of_its_own_kind(base64: bool) -> None:
    deep: Reply = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        encode_result(deep, base64=base64)


def test_no_two_sync_tokens_are_the_same() -> None:
    first, second = SyncTokens(), SyncTokens()
    assert len({tokens.next() for tokens in (first, second) for _ in range(100)}) == 200
