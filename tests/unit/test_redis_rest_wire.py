"""What the REST client sends and understands, against what the REST server reads."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterseal.core.errors import CommandError, ScriptMissing, StoreUnavailable
from counterseal.store.rest.wire import (
    MAX_TARGET_BYTES,
    decode_error,
    decode_item,
    decode_items,
    encode_row,
    path_form,
)
from counterseal.store.wire import Reply, pack
from counterseal.upstash.reply import encode_error, encode_result
from counterseal.upstash.request import Fault, path_command, path_segments, query_items, read_command


def read_path_form(command: list[bytes]) -> list[bytes]:
    """A command in the path form, read as the server does."""
    target, body = path_form(command)
    path, _, query = target.encode().partition(b"?")
    read = path_command(path_segments(path), body, query_items(query))
    return [part if isinstance(part, bytes) else part.encode("latin-1") for part in read]


def test_numbers_are_sent_as_the_native_protocol_sends_them() -> None:
    command = ("ZADD", "k", 1, 1.5, -0.0, 1e300, float("inf"), 10**25, "text", b"bytes")
    row = encode_row(command)
    assert row is not None
    read = read_command(row)
    assert not isinstance(read, Fault)
    assert pack(command) == pack(read)


def test_what_cannot_be_an_argument_is_a_type_error() -> None:
    for argument in (None, True, [], {}, object()):
        with pytest.raises(TypeError):
            encode_row(("SET", "k", argument))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="surrogate"):
        encode_row(("SET", "k", "\ud800"))


def test_bytes_that_are_not_utf8_have_no_row() -> None:
    assert encode_row(("SET", "k", b"\xff")) is None
    assert encode_row(("SET", "k", "\x00😀".encode())) is not None


@given(
    st.lists(st.binary(max_size=20), min_size=1, max_size=6).filter(lambda parts: b"_token" not in parts),
    st.binary(max_size=30).map(lambda data: data + b"\xff"),
    st.lists(st.binary(min_size=1, max_size=8), max_size=5),
)
def test_binary_arguments_in_the_path_form_are_read_back(
    before: list[bytes], binary: bytes, after: list[bytes]
) -> None:
    command = [b"SET", *before, binary, *after]
    if b"_token" in after[::2]:
        with pytest.raises(CommandError, match="over REST"):
            path_form(command)
    else:
        assert read_path_form(command) == command


@pytest.mark.parametrize(
    "command",
    [
        [b"SET", b"k", b"\xff\x00/?&=#%+ "],
        [b"SET", b"", b"\xff"],
        [b"SET", b"..", b"\xff", b"EX", b"100", b"NX"],
        [b"SET", b"a/b c+d", b"\xff", b"KEEPTTL"],
        [b"HSET", b"h", b"\xfe", b"\xff\xff\xff", b"\xfd", b""],
    ],
)
def test_awkward_binary_commands_are_read_back(command: list[bytes]) -> None:
    assert read_path_form(command) == command


def test_the_longest_binary_argument_is_the_body_and_the_others_must_be_short() -> None:
    target, body = path_form(["HSET", "h", b"\xfe", b"\xff" * 1_000_000])
    assert len(body) == 1_000_000
    assert target == "/HSET/h/%FE"
    with pytest.raises(CommandError, match="only one binary argument may be long"):
        path_form(["HSET", "h", b"\xfe", b"\xff" * 9000, b"\xfd", b"\xff" * MAX_TARGET_BYTES])


@pytest.mark.parametrize("after", [[b"_token", b"x"], [b""], [b"a", b"b", b""]])
def test_what_a_query_cannot_say_is_refused(after: list[bytes]) -> None:
    with pytest.raises(CommandError, match="can't follow a binary one"):
        path_form([b"SET", b"k", b"\xff", *after])


@pytest.mark.parametrize(
    "reply",
    [
        None,
        0,
        2**63 - 1,
        b"",
        b"OK",
        b"PONG",
        b"null",
        b"\xff\x00",
        [],
        [b"OK", None, 1, [b"x", [b"\xff", []]]],
    ],
)
def test_a_reply_comes_back_as_it_was(reply: Reply) -> None:
    assert decode_item(encode_result(reply, base64=True)) == reply
    assert decode_items(b"[%b]" % encode_result(reply, base64=True), 1) == [reply]


def test_errors_are_told_apart() -> None:
    failed = decode_item(encode_error("WRONGTYPE no"))
    assert isinstance(failed, CommandError)
    assert (failed.kind, str(failed)) == ("WRONGTYPE", "WRONGTYPE no")
    assert isinstance(
        decode_item(encode_error("NOSCRIPT No matching script. Please use EVAL.")), ScriptMissing
    )
    assert decode_error(b'{"error":"EOF"}') == "EOF"
    assert decode_error(b'{"result":1}') is None
    assert decode_error(b"<html>") is None


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>no</html>", b"{}", b"[]", b'{"result":"plain text"}', b'{"result":"abc"}', b'{"result":1.5}',
     b'{"result":true}', b'{"result":{"a":1}}', b'{"result":[["\xff"]]}',
     b'{"result":' + b"[" * 5000 + b"]" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_answer_is_unavailable_and_not_a_value(body: bytes) -> None:
    with pytest.raises(StoreUnavailable, match="can't be understood"):
        decode_item(body)


def test_another_number_of_answers_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match="another number"):
        decode_items(b'[{"result":1}]', 2)


@given(st.recursive(st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(), st.lists, max_leaves=20))
def test_any_reply_comes_back_as_it_was(reply: Reply) -> None:
    assert decode_item(encode_result(reply, base64=True)) == reply
    text = json.loads(encode_result(reply, base64=False))
    assert text.keys() == {"result"}


def test_ok_is_understood_encoded_and_plain_at_any_depth() -> None:
    encoded = b64encode(b"OK").decode()
    assert decode_item(b'{"result":["OK","%b"]}' % encoded.encode()) == [b"OK", b"OK"]
