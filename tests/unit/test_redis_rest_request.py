"""What a Redis REST request says: JSON to arguments, raw paths and queries to bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterseal.upstash.request import (
    Fault,
    path_command,
    path_segments,
    query_items,
    read_command,
    read_pipeline,
)


def sent(body: bytes) -> list[bytes]:
    """The arguments of a command's body as the server gets them."""
    command = read_command(body)
    assert not isinstance(command, Fault), command
    return [part if isinstance(part, bytes) else part.encode() for part in command]


@pytest.mark.parametrize(
    "number",
    [
        b"1.10",
        b"1E400",
        b"12345678901234567890123",
        b"-0",
        b"1e3",
        b"9223372036854775808",
        b"0.1",
        b"-1",
        b"1.0",
    ],
)
def test_a_number_arrives_as_it_was_written(number: bytes) -> None:
    assert sent(b'["SET","k",%b]' % number) == [b"SET", b"k", number]


def test_texts_arrive_as_their_utf8() -> None:
    assert sent('["SET","ключ","\\u0000😀\\ud83d\\ude00"]'.encode()) == [
        b"SET", "ключ".encode(), "\x00😀😀".encode(),
    ]  # fmt: skip
    assert sent(b'["SET","k","\\ud800x",1]') == [b"SET", b"k", b"\xed\xa0\x80x", b"1"]
    assert sent(b' [ "GET" , "null" ] ') == [b"GET", b"null"]


def test_booleans_arrive_as_words() -> None:
    assert sent(b'["SET","k",true,false]') == [b"SET", b"k", b"true", b"false"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b"  \n", "EOF"),
        (b"[]", "ERR empty command"),
        (b"{}", "expected JSON array"),
        (b'"GET"', "expected JSON array"),
        (b"7", "expected JSON array"),
        (b"null", "expected JSON array"),
        (b'["GET","k"', "ERR failed to parse command"),
        (b'["GET","k"] x', "ERR failed to parse command"),
        (b'["SET","k",NaN]', "ERR failed to parse command"),
        (b'["SET","k",-Infinity]', "ERR failed to parse command"),
        (b'["SET","k","\xff"]', "ERR failed to parse command"),
        (b'["SET","k","a\x01"]', "ERR failed to parse command"),
        (b"[" * 100_000, "ERR failed to parse command"),
        (b'["SET","k",null]', "ERR null args are not supported"),
        (b'["SET","k",["a"]]', 'ERR unsupported arg type: "[": json.Delim'),
        (b'["SET","k",{"a":1}]', 'ERR unsupported arg type: "{": json.Delim'),
    ],
)
def test_a_body_that_is_no_command_says_why(body: bytes, text: str) -> None:
    assert read_command(body) == Fault(text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b"[]", "ERR empty pipeline request"),
        (b"[[]]", "ERR empty pipeline command"),
        (b'[["GET","k"],[]]', "ERR empty pipeline command"),
        (b'[["GET",1],[]]', "ERR empty pipeline command"),
        (b'["GET","k"]', "ERR failed to parse pipeline request"),
        (b'[["GET","k"]', "ERR failed to parse pipeline request"),
        (b"{}", "expected JSON array"),
    ],
)
def test_a_body_that_is_no_pipeline_says_why(body: bytes, text: str) -> None:
    assert read_pipeline(body) == Fault(text)


def test_a_fault_inside_one_command_of_a_pipeline_stays_there() -> None:
    assert read_pipeline(b'[["GET",1],["GET",null],["GET",[]],["GET","b"]]') == [
        ["GET", "1"],
        Fault("ERR null args are not supported"),
        Fault('ERR unsupported arg type: "[": json.Delim'),
        ["GET", "b"],
    ]


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        (b"", []),
        (b"/", []),
        (b"//", []),
        (b"/get/k", [b"get", b"k"]),
        (b"//get/k/", [b"get", b"k"]),
        (b"/set/a%2Fb/x", [b"set", b"a/b", b"x"]),
        (b"/set/%00%FF/+", [b"set", b"\x00\xff", b"+"]),
        (b"/set//x", [b"set", b"", b"x"]),
        (b"/set/k//", [b"set", b"k", b""]),
        (b"/get/%zz%2", [b"get", b"%zz%2"]),
    ],
)
def test_a_path_is_split_before_it_is_decoded(path: bytes, segments: list[bytes]) -> None:
    assert path_segments(path) == segments


def test_a_query_keeps_its_order_and_names_without_a_value() -> None:
    assert query_items(b"EX=100&NX&a+b=c%2Bd&&=v&EX=1") == [
        (b"EX", b"100"), (b"NX", None), (b"a b", b"c+d"), (b"", b"v"), (b"EX", b"1"),
    ]  # fmt: skip


def test_a_body_stands_between_path_and_query() -> None:
    assert path_command([b"set", b"k"], b"\xff\x00", [(b"EX", b"1"), (b"NX", None)]) == [
        "set", b"k", b"\xff\x00", b"EX", b"1", b"NX",
    ]  # fmt: skip
    assert path_command([b"\xffset", b"k"], b"", []) == ["ÿset", b"k"]


@given(st.lists(st.text(), min_size=1))
def test_any_texts_come_through_the_quick_way_and_the_slow_one(texts: list[str]) -> None:
    body = json.dumps(texts).encode()
    slow = json.dumps([*texts, 7]).encode()
    expected = [text.encode("utf-8", "surrogatepass") for text in texts]
    assert sent(body) == expected
    assert sent(slow)[1 : len(texts)] == expected[1:]
