"""Functions whose answers are kept: by their one argument or by a key, as functions, closures and methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from counterseal.cache.kind import Kind
from counterseal.cache.service import Cache
from counterseal.cache.values import KindCache
from counterseal.core.errors import ConfigurationError, UnknownName
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on

KEYS = Keys()
COUNTS = Kind("counts", timedelta(hours=1), type=list[int])


@pytest.fixture
async def cache(valkey: Server) -> AsyncIterator[Cache]:
    async with store_on(valkey) as store, Cache(store, keys=KEYS, kinds=[COUNTS]) as cache:
        yield cache


@pytest.fixture
def counts(cache: Cache) -> KindCache[list[int]]:
    return cache.of(COUNTS)


async def test_a_function_runs_once_for_its_argument_until_that_is_invalidated(
    counts: KindCache[list[int]],
) -> None:
    calls: list[str] = []

    @counts.cached
    async def digits(text: str) -> list[int] | None:
        """The digits of a text."""
        calls.append(text)
        return [int(digit) for digit in text if digit.isdigit()] or None

    assert (digits.__name__, digits.__doc__) == ("digits", "The digits of a text.")
    assert await asyncio.gather(*(digits("12") for _ in range(20))) == [[1, 2]] * 20
    assert await digits(text="12") == [1, 2]
    assert await digits("3") == [3]
    assert calls == ["12", "3"]
    assert await counts.get("12") == [1, 2]
    assert await digits.invalidate("12") is True
    assert await digits.invalidate("12") is False
    assert await digits("12") == [1, 2]
    assert calls == ["12", "3", "12"]
    assert [await digits("none") for _ in range(3)] == [None] * 3
    assert calls == ["12", "3", "12", "none"]


async def test_a_key_makes_an_identifier_of_any_arguments_and_tags_forget_the_answers(
    cache: Cache, counts: KindCache[list[int]]
) -> None:
    calls: list[tuple[int, int]] = []

    @counts.cached(key=lambda low, high=3: f"{low}-{high}", tags=["ranges"])
    async def between(low: int, high: int = 3) -> list[int]:
        calls.append((low, high))
        return list(range(low, high))

    assert await between(1) == await between(1, high=3) == await between(low=1) == [1, 2]
    assert await between(1, 2) == [1]
    assert calls == [(1, 3), (1, 2)]
    assert await between.invalidate(1, 2) is True
    await cache.invalidate_tags("ranges")
    assert await between(1) == [1, 2]
    assert calls == [(1, 3), (1, 2), (1, 3)]


async def test_a_method_is_one_of_its_instance(counts: KindCache[list[int]]) -> None:
    class Shelf:
        def __init__(self, height: int) -> None:
            self.height = height
            self.direct = counts.cached(self.plain)

        async def plain(self, identifier: str) -> list[int]:
            return [self.height, len(identifier)]

        @counts.cached(key=lambda _, identifier: identifier)
        async def shared(self, identifier: str) -> list[int]:
            return [self.height]

        @counts.cached(key=lambda self, row: f"{self.height}/{row}")
        async def own(self, row: int) -> list[int]:
            return [self.height, row]

    low, high = Shelf(1), Shelf(2)
    assert await low.own(5) == [1, 5]
    assert await high.own(5) == [2, 5]
    assert await high.own.invalidate(5) is True
    assert await low.shared("a") == [1]
    assert await high.shared("a") == [1]  # as the key says, which leaves the instance out
    assert await low.direct("abc") == [1, 3]
    assert await Shelf.own(low, 5) == [1, 5]


async def test_what_makes_no_identifier_is_refused_where_it_is_decorated(
    cache: Cache, counts: KindCache[list[int]]
) -> None:
    def sync(text: str) -> list[int]:
        return []

    async def none() -> list[int]:
        return []

    async def two(one: str, other: str) -> list[int]:
        return []

    async def many(*texts: str) -> list[int]:
        return []

    async def named(**texts: str) -> list[int]:
        return []

    async def may(text: str = "a") -> list[int]:
        return []

    async def method(self: object, text: str) -> list[int]:
        return []

    with pytest.raises(ConfigurationError, match="cached: expected an async function"):
        counts.cached(sync)  # type: ignore[call-overload]
    for function in (none, two, many, named, may, method):
        with pytest.raises(
            ConfigurationError, match=r"with one argument, the identifier; with others, .*key="
        ):
            counts.cached(function)  # type: ignore[arg-type]
        counts.cached(key=lambda *_, **__: "k")(function)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no cache kind is named 'count'"):
        cache.kind("count")


async def test_an_argument_that_is_no_identifier_is_refused_before_anything_is_loaded(
    counts: KindCache[list[int]],
) -> None:
    async def never(text: str) -> list[int]:
        raise AssertionError("loaded")

    for function in (counts.cached(never), counts.cached(key=lambda text: text)(never)):
        for wrong in (1, None, b"a"):
            with pytest.raises(TypeError, match=f"an identifier as str, and {type(wrong).__name__} came"):
                await function(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="and nothing came"):
        await counts.cached(never)()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="and str, str came"):
        await counts.cached(never)("a", "b")  # type: ignore[call-arg]
