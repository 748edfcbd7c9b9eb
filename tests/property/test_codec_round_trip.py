"""The codec over values nobody thought of: every JSON value comes back, everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from counterseal.core.codec import decode, encode
from counterseal.core.errors import CodecError
from support.exact import same

KEY = "cs:cache:documents:{1}"

awkward = st.sampled_from(
    [
        "1e3",
        "007",
        "null",
        "true",
        "12345678901234567890",
        "\x00",
        "😀",
        '"',
        "\\",
        "[object Object]",
        "NaN",
        "1:",
    ]
)
text = st.text() | awkward
long = st.sampled_from([2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**19])
longer = st.integers(4290, 6000).map(lambda digits: 7 - 10**digits)
integers = st.integers() | long | longer
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=40)

strangers = st.sampled_from(
    [
        (),
        (1,),
        float("nan"),
        float("inf"),
        b"",
        "\udc80",
        {1: 1},
        {None: 1},
        {"\ud800": 1},
        {1},
        1j,
        object(),
        range(2),
    ]
)


def wrapped(value: object, way: list[int]) -> object:
    for step in way:
        value = {f"k{step}": value} if step % 2 else [None] * step + [value]
    return value


@given(values)
@example([1, 1.0, True, -0.0, 0.0, 0, False, None, "1"])
@example({"id": 12345678901234567890, "007": "1e3"})
def test_every_json_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    assert same(decode(encode(value), key=KEY), value)


@given(strangers, st.lists(st.integers(0, 5), max_size=6))
def test_a_stranger_anywhere_in_a_value_is_refused_with_its_path(stranger: object, way: list[int]) -> None:
    with pytest.raises(CodecError) as fault:
        encode(wrapped(stranger, way))
    expected = "$" + "".join(f".k{step}" if step % 2 else f"[{step}]" for step in reversed(way))
    assert fault.value.path == expected


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"1:" + tail))
@settings(max_examples=300)
def test_any_bytes_are_a_value_or_a_codec_error(data: bytes) -> None:
    try:
        value = decode(data, key=KEY)
    except CodecError:
        return
    assert same(decode(encode(value), key=KEY), value)
