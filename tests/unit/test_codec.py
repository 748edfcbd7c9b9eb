"""The codec: what it takes, what it refuses and where, and what it says of bytes that can't be read."""

from __future__ import annotations

import enum
import sys
import traceback
from collections import OrderedDict
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from counterseal.core.codec import (
    MAX_DEPTH,
    decode,
    decode_as,
    encode,
    from_text,
    from_text_as,
    to_text,
    without_schema,
)
from counterseal.core.errors import CodecError
from support.exact import same

KEY = "cs:cache:documents:{1}"


class Word(str):
    __slots__ = ()


class Colour(enum.IntEnum):
    RED = 1


class Person(msgspec.Struct):
    name: str
    age: int = 0


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 0.1,
        2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 12345678901234567890, 10**4299, 10**4300, -(10**5000) - 7,
        "", "1e3", "007", "null", "true", "[object Object]", "12345678901234567890", "\x00", "a\x00b", "\x7f\u2028",
        "😀", "é", "\ufffe", '"\\/', [], {}, [[], {}, [None]], {"": {"a.b": [1, 1.0, True]}, "😀": None},
        {"ids": [10**5000, {"9" * 5000: -(10**4500)}], "text": '"' + "1" * 5000 + "\\"},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_comes_back_equal_and_of_the_same_types(value: object) -> None:
    assert same(decode(encode(value), key=KEY), value)


def test_what_is_stored_is_the_schema_version_and_json_text() -> None:
    assert encode({"a": [1, 2.0, "é"]}) == '1:{"a":[1,2.0,"é"]}'.encode()
    assert encode(None, schema=12) == b"12:null"


def test_a_program_that_lowered_the_limit_of_digits_still_reads_long_integers() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        value = {"short": 10**600, "long": 10**700, "number": 1.5}
        assert decode(encode(value), key=KEY) == value
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ((1, 2), "$"),
        ({"a": [1, 2, 3, (4,)]}, "$.a[3]"),
        ({"a": {"b c": float("nan")}}, "$.a['b c']"),
        ([float("inf")], "$[0]"),
        (float("-inf"), "$"),
        ({"a": Word("x")}, "$.a"),
        ({Word("a"): 1}, "$"),
        ({1: 2}, "$"),
        ([{None: 1}], "$[0]"),
        ([Colour.RED], "$[0]"),
        (OrderedDict(a=1), "$"),
        ({"a": OrderedDict()}, "$.a"),
        ({"a": {1, 2}}, "$.a"),
        (b"bytes", "$"),
        ({"a": Decimal(1)}, "$.a"),
        (Person("x"), "$"),
        (["ok", "\ud800"], "$[1]"),
        ({"a": ["x\udfffy"]}, "$.a[0]"),
        ({"a": {"\ud83d": 1}}, "$.a"),
        ([10**5000, float("nan")], "$[1]"),
        ([object()], "$[0]"),
    ],
    ids=lambda part: part if isinstance(part, str) and part.isascii() else type(part).__name__,
)
def test_what_is_not_json_is_refused_with_its_path(value: object, path: str) -> None:
    with pytest.raises(CodecError) as fault:
        encode(value)
    assert fault.value.path == path
    assert f" at {path}" in str(fault.value)


def test_a_refusal_never_shows_the_value() -> None:
    with pytest.raises(CodecError) as fault:
        encode({"password": b"hunter2", "token": ("hunter2",)})
    assert "hunter2" not in str(fault.value)


def test_nesting_is_taken_to_the_bound_and_refused_beyond_it_naming_the_bound() -> None:
    assert decode(encode(nested(MAX_DEPTH)), key=KEY) == nested(MAX_DEPTH)
    with pytest.raises(CodecError, match=f"more than {MAX_DEPTH} deep") as fault:
        encode(nested(MAX_DEPTH + 1))
    assert (fault.value.path or "").startswith("$[0][0]")


def test_a_long_integer_at_the_bound_of_nesting_comes_back() -> None:
    value: object = 10**5000
    for _ in range(MAX_DEPTH):
        value = {"a": value}
    assert decode(encode(value), key=KEY) == value


def test_a_value_that_contains_itself_is_refused() -> None:
    ring: list[object] = []
    ring += [ring, ring]
    loop: dict[str, object] = {}
    loop["self"] = [loop]
    for value in (ring, loop):
        with pytest.raises(CodecError, match="contains itself"):
            encode(value)


def test_a_caller_with_a_full_stack_gets_a_codec_error() -> None:
    def down(levels: int) -> bytes:
        return down(levels - 1) if levels else encode(nested(MAX_DEPTH))

    used = len(traceback.extract_stack())
    with pytest.raises(CodecError, match="stack of its caller"):
        down(sys.getrecursionlimit() - used - MAX_DEPTH // 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "schema version"),
        (b"{}", "schema version"),
        (b"null", "schema version"),
        (b":1", "schema version"),
        (b"x:1", "schema version"),
        ("²:1".encode(), "schema version"),
        (b"1:", "can't be read"),
        (b"1:{", "can't be read"),
        (b"1:[object Object]", "can't be read"),
        (b"1:1 2", "can't be read"),
        (b"1:NaN", "can't be read"),
        (b"1:1e400", "can't be read"),
        (b"1:[1e400," + b"1" * 5000 + b"]", "can't be read"),
        (b"1:[" + b"1" * 5000, "can't be read"),
        (b"1:" + b"1" * 5000 + b".0", "can't be read"),
        (b'1:"\xff"', "not UTF-8"),
        (b'1:"\xed\xa0\x80"', "not UTF-8"),
        (b'1:"\\ud800 x"', "can't be read"),
        (b"1:" + b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda part: ascii(part)[:24],
)
def test_bytes_that_cannot_be_read_are_an_error_that_names_the_key(data: bytes, reason: str) -> None:
    for read in (decode, lambda data, key: decode_as(data, Any, key=key)):
        with pytest.raises(CodecError, match=reason) as fault:
            read(data, key=KEY)
        assert fault.value.key == KEY
        assert KEY in str(fault.value)


def test_an_unknown_schema_is_an_error_that_names_the_key_and_the_version() -> None:
    stored = encode({"a": 1}, schema=7)
    with pytest.raises(CodecError, match="schema version 7; this release reads 1, 2") as fault:
        decode(stored, key=KEY, schemas={1, 2})
    assert fault.value.key == KEY
    assert decode(stored, key=KEY, schemas={7}) == {"a": 1}
    with pytest.raises(CodecError, match="schema version 7"):
        decode_as(stored, Person, key=KEY)


def test_typed_reading_gives_the_type_or_says_what_does_not_fit_and_where() -> None:
    assert decode_as(encode({"name": "Ada", "age": 36}), Person, key=KEY) == Person("Ada", 36)
    with pytest.raises(CodecError, match=r"Expected `int`, got `str` at \$\.age") as fault:
        decode_as(encode({"name": "Ada", "age": "36"}), Person, key=KEY)
    assert (fault.value.key, fault.value.path) == (KEY, "$.age")


def test_typed_reading_takes_long_integers_too() -> None:
    stored = encode({"name": "Ada", "age": 10**5000})
    assert decode_as(stored, Person, key=KEY).age == 10**5000
    with pytest.raises(CodecError) as fault:
        decode_as(encode({"name": 10**5000}), Person, key=KEY)
    assert (fault.value.key, fault.value.path) == (KEY, "$.name")


def test_typed_reading_never_shows_the_value() -> None:
    with pytest.raises(CodecError) as fault:
        decode_as(encode(["hunter2"]), list[Colour], key=KEY)
    assert "hunter2" not in str(fault.value)

    class Mode(enum.Enum):
        ON = "on"

    with pytest.raises(CodecError, match="Invalid enum value") as fault:
        decode_as(encode("hunter2"), Mode, key=KEY)
    assert "hunter2" not in str(fault.value)


def test_text_without_a_schema_is_checked_both_ways() -> None:
    value = {"id": 10**5000, "x": [1.0, None]}
    assert same(from_text(to_text(value), key=KEY), value)
    assert from_text_as(b'{"name":"Ada"}', Person, key=KEY) == Person("Ada")
    assert without_schema(b"1:null", key=KEY) == b"null"
    with pytest.raises(CodecError, match=r"at \$\.x"):
        to_text({"x": (1,)})
    for read in (from_text, without_schema):
        with pytest.raises(CodecError) as fault:
            read(b"nope", key=KEY)
        assert fault.value.key == KEY
