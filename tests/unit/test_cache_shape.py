"""Values become text and come back equal and typed, or are refused with their kind and the place of the fault."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest

from counterseal.cache.kind import Kind
from counterseal.cache.shape import NOTHING, Shape
from counterseal.core.errors import CodecError, ConfigurationError, ValueTooLarge

HOUR = timedelta(hours=1)


class Colour(enum.Enum):
    RED = "red"


class Inner(msgspec.Struct):
    tags: set[str]


class Team(msgspec.Struct):
    name: str
    size: int
    inner: Inner | None = None


class Frozen(msgspec.Struct, frozen=True):
    at: datetime
    price: Decimal
    parts: tuple[str, ...]
    colour: Colour = Colour.RED


class FrozenWithList(msgspec.Struct, frozen=True):
    parts: list[str]


class Chain(msgspec.Struct, frozen=True):
    next: Chain | None = None


class ChainWithDict(msgspec.Struct, frozen=True):
    next: ChainWithDict | None = None
    more: dict[str, int] = {}


@dataclasses.dataclass
class Point:
    x: int
    y: float


@dataclasses.dataclass(frozen=True)
class FrozenPoint:
    x: int
    names: frozenset[str]


class Row(TypedDict):
    id: UUID
    day: date


class Pair(NamedTuple):
    left: int
    right: tuple[str, int]


class LoosePair(NamedTuple):
    left: int
    right: list[int]


def shape_of(kind: Any, **options: Any) -> Shape[Any]:
    return Shape(Kind("team", HOUR, type=kind, **options))


EAST = timezone(timedelta(hours=5, minutes=30))
UUID_1 = UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Team, Team("é😀", 2**40, Inner({"a", "b"}))),
        (Frozen, Frozen(datetime(2026, 11, 24, 9, 0, 0, 123, tzinfo=EAST), Decimal("1.10"), ("a",))),
        (Point, Point(-1, 1e300)),
        (FrozenPoint, FrozenPoint(1, frozenset({"a", "b"}))),
        (Row, {"id": UUID_1, "day": date(2026, 11, 24)}),
        (Pair, Pair(1, ("a", 2))),
        (list[int], [0, -1, 2**63, 2**64, 12345678901234567890123, 10**400, 10**1000]),
        (dict[str, Any], {"a": [1, None, 1.5, {"b": True}]}),
        (dict[int, str], {1: "a"}),
        (set[int], {1, 2, 3}),
        (datetime, datetime(2026, 11, 24, tzinfo=UTC)),
        (datetime, datetime(2026, 11, 24, 1, 2, 3)),  # noqa: DTZ001 - comes back without a zone too
        (date, date(1, 1, 1)),
        (timedelta, timedelta(days=1, microseconds=1)),
        (Decimal, Decimal("0.1000")),
        (UUID, UUID_1),
        (bytes, b"\x00\xff"),
        (str, ""),
        (int, -(2**100)),
        (float, 0.1),
        (bool, False),
        (Colour, Colour.RED),
        (Literal["a", 1], "a"),
        (tuple[int, ...], (1, 2)),
        (int | str, "1"),
    ],
    ids=lambda part: getattr(part, "__name__", None),
)
def test_a_typed_value_comes_back_equal_and_of_its_type(kind: Any, value: Any) -> None:
    shape = shape_of(kind)
    back = shape.read(shape.write(value), "k")
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [None, {}, {"a": 10**5000, "b": [1, 1.0, "1", True, None]}])
def test_a_kind_without_a_type_takes_a_json_object_or_none(value: Any) -> None:
    shape = Shape(Kind("team", HOUR))
    assert shape.read(shape.write(value), "k") == value


def test_none_is_one_text_whatever_the_type() -> None:
    for kind in (None, Team, int, int | None):
        shape = shape_of(kind)
        assert shape.write(None) == NOTHING
        assert shape.read(NOTHING, "k") is None


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (float, float("nan"), r"\$"),
        (list[float], [1.0, float("nan")], r"\$\[1\]"),
        (list[float | None], [float("inf")], r"\$"),
        (dict[str, Any], {"a": {"b": float("nan")}}, r"\$"),
        (dict[str, Any], {"a": {"b": (1, 2)}}, r"\$"),
        (dict[str, Any], {"a": [object()]}, r"\$\.a\[0\]"),
        (Decimal, Decimal("NaN"), r"\$"),
        (Team, Team("a", "many"), r"\$\.size"),  # type: ignore[arg-type]
        (Team, Team("a", 1, Inner({1})), r"\$\.inner\.tags"),  # type: ignore[arg-type]
        (Team, {"name": "a", "size": 1}, r"\$"),
        (Team, "text", r"\$"),
        (Point, Point(1, 2 + 3j), r"\$\.y"),  # type: ignore[arg-type]
        (Row, {"id": UUID_1, "day": date(2026, 1, 1), "more": 1}, r"\$"),
        (Row, {"id": UUID_1}, r"\$"),
        (list[int], [1, True], r"\$\[1\]"),
        (list[int], (1, 2), r"\$"),
        (int, True, r"\$"),
        (str, "a\ud800", r"\$"),
        (set[tuple[int, ...]], [[1], [1]], r"\$"),
        (set[list[int]], [[1]], r"\$"),
        (frozenset[Team], [Team("a", 1)], r"\$"),
    ],
)
def test_what_would_not_come_back_equal_is_refused_with_its_kind_and_place(
    kind: Any, value: Any, path: str
) -> None:
    with pytest.raises(CodecError, match=rf"^team: .* at {path}") as fault:
        shape_of(kind).write(value)
    assert fault.value.path is not None


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([], "$"),
        ("text", "$"),
        (1, "$"),
        ({"a": {1: 2}}, "$.a"),
        ({"a": [{"b": {1, 2}}]}, "$.a[0].b"),
        ({"a": float("inf")}, "$.a"),
        ({"a": b"bytes"}, "$.a"),
        ({"a": "\udfff"}, "$.a"),
        ({"a": UUID_1}, "$.a"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_kind_and_place(value: Any, path: str) -> None:
    with pytest.raises(CodecError) as fault:
        Shape(Kind("team", HOUR)).write(value)
    assert fault.value.path == path
    assert str(fault.value).startswith("team: ")
    assert str(fault.value).count(" at $") == 1


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (None, b"[1]"), (None, b'"a"'), (None, b"1"), (None, b"{"), (None, b""), (None, b"\xff"),
        (Team, b'{"name":1,"size":1}'), (Team, b"{}"), (list[int], b"[1.5]"), (set[list[int]], b"[[1]]"),
    ],
)  # fmt: skip
def test_a_stored_text_that_does_not_fit_is_an_error_that_names_the_key(kind: Any, text: bytes) -> None:
    with pytest.raises(CodecError) as fault:
        shape_of(kind).read(text, "cs:cache:team:{1}")
    assert fault.value.key == "cs:cache:team:{1}"


def test_a_value_is_as_long_as_its_kind_allows_and_no_longer() -> None:
    for kind, value, longer in [
        (None, {"a": "x" * 12}, {"a": "x" * 13}),
        (str, "é" * 9, "é" * 9 + "x"),
    ]:
        shape = shape_of(kind, max_value_bytes=20)
        assert len(shape.write(value)) == 20
        with pytest.raises(
            ValueTooLarge, match="team takes values of at most 20 bytes of JSON; this one has 21"
        ):
            shape.write(longer)
        assert shape.read(shape.text(longer), "k") == longer


@pytest.mark.parametrize("name", ["secret", "backup_codes"])
@pytest.mark.parametrize(
    "place",
    [
        lambda name: {name: 1},
        lambda name: {"a": {name: None}},
        lambda name: {"a": [1, [{"b": {name: 1}}]]},
    ],
)
def test_a_member_that_a_kind_refuses_is_refused_at_any_depth(
    name: str, place: Callable[[str], dict[str, Any]]
) -> None:
    refused = frozenset({"secret", "backup_codes"})
    for kind in (None, dict[str, Any]):
        shape = shape_of(kind, refused=refused)
        with pytest.raises(CodecError, match=f"team never holds a member named {name}"):
            shape.write(place(name))
        assert shape.write({"a": name, "b": [name]})


@pytest.mark.parametrize(
    ("kind", "immutable"),
    [
        (Frozen, True), (Pair, True), (FrozenPoint, True), (Chain, True), (int, True), (str | None, True),
        (tuple[int, ...], True), (tuple[str, Frozen], True), (frozenset[str], True), (datetime, True),
        (Decimal, True), (UUID, True), (bytes, True), (Colour, True), (Literal["a"], True),
        (Team, False), (FrozenWithList, False), (ChainWithDict, False), (Point, False), (Row, False),
        (LoosePair, False), (list[int], False), (dict[str, int], False), (set[int], False), (bytearray, False),
        (tuple[list[int], ...], False), (tuple[int, dict[str, int]], False), (Frozen | list[int], False),
        (Any, False), (None, False), (msgspec.Raw, False),
    ],
    ids=str,
)  # fmt: skip
def test_one_object_is_shared_only_where_nobody_can_change_it(kind: Any, immutable: bool) -> None:
    assert shape_of(kind).immutable is immutable


@pytest.mark.parametrize("kind", [set[int] | list[int], Team | Point, dict[str, int] | Team])
def test_a_type_that_can_not_be_decoded_is_refused_with_the_kind(kind: Any) -> None:
    with pytest.raises(
        ConfigurationError, match="Kind team: type: expected a type that msgspec decodes; came: "
    ):
        shape_of(kind)
