"""The cache over values and calls that nobody thought of, on a real server, held against a dict."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from counterseal.cache.kind import Kind
from counterseal.cache.result import Source
from counterseal.cache.service import Cache
from counterseal.cache.values import KindCache
from counterseal.core.errors import CodecError
from counterseal.store.keys import Keys
from support.exact import same
from support.servers import Server
from support.stores import store_on

KEYS = Keys()
HOUR = timedelta(hours=1)
BARE = Kind("bare", HOUR, owner="user")
NEAR = Kind("near", HOUR, near=HOUR, owner="user")
ANY = Kind("any_value", HOUR, type=Any)
PACE = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

awkward = st.sampled_from(
    ["1e3", "007", "null", "12345678901234567890", "\x00", "😀", '"', "\\", "1:", "\n", " "]
)
text = st.text() | awkward
long = st.sampled_from([2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**19])
longer = st.integers(4290, 6000).map(lambda digits: 7 - 10**digits)
integers = st.integers() | long | longer
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)
objects = st.dictionaries(text, values, max_size=6)


class Desk:
    """Two processes with a cache each, on a loop of its own."""

    def __init__(self, runner: asyncio.Runner, caches: list[Cache]) -> None:
        self._runner = runner
        self.caches = caches

    def run(self, work: Coroutine[None, None, None]) -> None:
        self._runner.run(work)


@pytest.fixture
def desk(valkey: Server) -> Iterator[Desk]:
    stack = AsyncExitStack()

    async def begin() -> list[Cache]:
        stores = [await stack.enter_async_context(store_on(valkey)) for _ in range(2)]
        return [
            await stack.enter_async_context(Cache(store, keys=KEYS, kinds=[BARE, NEAR, ANY]))
            for store in stores
        ]

    with asyncio.Runner() as runner:
        yield Desk(runner, runner.run(begin()))
        runner.run(stack.aclose())


@given(identifier=text.filter(bool), value=objects, tags=st.lists(text, max_size=3))
@example(identifier="}{", value={"": 10**19}, tags=["a b=c\n", "="])
@PACE
def test_every_json_object_comes_back_the_same_whichever_way_it_is_read(
    desk: Desk, identifier: str, value: dict[str, Any], tags: list[str]
) -> None:
    async def never(_: str) -> None:
        raise AssertionError("loaded")

    async def check() -> None:
        for kind in (BARE, NEAR):
            writer, reader = (cache.of(kind) for cache in desk.caches)
            await writer.set(identifier, value, tags=tags)
            read = [
                await writer.get(identifier),
                await reader.get_or_load(identifier, never, tags=tags),
                (await reader.find(identifier)).value if kind is BARE else value,
                (await writer.get_many([identifier]))[identifier],
            ]
            assert all(same(each, value) for each in read)
            for tag in tags[:1]:
                await desk.caches[0].invalidate_tags(tag)
                assert (await writer.find(identifier)).source is Source.MISS

    desk.run(check())


@given(value=values)
@PACE
def test_every_json_value_comes_back_equal_from_a_kind_that_takes_any(desk: Desk, value: Any) -> None:
    async def check() -> None:
        kept = desk.caches[0].of(ANY)
        await kept.set("v", value)
        found = await desk.caches[1].of(ANY).find("v")
        assert (found.found, found.value) == (True, value)

    try:
        desk.run(check())
    except CodecError as fault:
        assert "is not JSON" in str(fault)  # noqa: PT017 - an integer of more digits than Python writes


IDS = ("1", "2", "u:3")
TAGS = ("t", "user:1")
calls = st.one_of(
    st.tuples(
        st.just("set"), st.sampled_from(IDS), st.integers(0, 9), st.lists(st.sampled_from(TAGS), max_size=2)
    ),
    st.tuples(st.just("set_none"), st.sampled_from(IDS)),
    st.tuples(
        st.just("load"), st.sampled_from(IDS), st.integers(0, 9), st.lists(st.sampled_from(TAGS), max_size=2)
    ),
    st.tuples(st.just("invalidate"), st.sampled_from(IDS)),
    st.tuples(st.just("invalidate_many"), st.lists(st.sampled_from(IDS), max_size=3)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("tag"), st.sampled_from(TAGS)),
    st.tuples(st.just("user"), st.sampled_from(IDS)),
)
turns = st.lists(st.tuples(st.sampled_from([0, 1]), calls), max_size=12)


class Model:
    """What is kept, as a dict: the value and its tags."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Any, list[str]]] = {}

    def apply(self, call: tuple[Any, ...]) -> None:
        match call:
            case ("set", identifier, number, tags):
                self.kept[identifier] = ({"n": number}, tags)
            case ("set_none", identifier):
                self.kept[identifier] = (None, [])
            case ("load", identifier, number, tags):
                self.kept.setdefault(identifier, ({"n": number}, tags))
            case ("invalidate", identifier):
                self.kept.pop(identifier, None)
            case ("invalidate_many", identifiers):
                for identifier in identifiers:
                    self.kept.pop(identifier, None)
            case ("clear",):
                self.kept.clear()
            case ("tag", tag):
                self.kept = {name: entry for name, entry in self.kept.items() if tag not in entry[1]}
            case ("user", identifier):
                self.kept.pop(identifier, None)
                self.apply(("tag", f"user:{identifier}"))

    @property
    def values(self) -> dict[str, Any]:
        return {identifier: value for identifier, (value, _) in self.kept.items()}


async def do(cache: Cache, kept: KindCache[Any], call: tuple[Any, ...]) -> None:
    match call:
        case ("set", identifier, number, tags):
            await kept.set(identifier, {"n": number}, tags=tags)
        case ("set_none", identifier):
            await kept.set(identifier, None)
        case ("load", identifier, number, tags):

            async def load(_: str) -> dict[str, Any]:
                return {"n": number}

            await kept.get_or_load(identifier, load, tags=tags)
        case ("invalidate", identifier):
            await kept.invalidate(identifier)
        case ("invalidate_many", identifiers):
            await kept.invalidate_many(identifiers)
        case ("clear",):
            await kept.clear()
        case ("tag", tag):
            await cache.invalidate_tags(tag)
        case (_, identifier):
            await cache.invalidate_user(identifier)


@given(turns=turns, near=st.booleans())
@PACE
def test_any_calls_of_two_processes_leave_what_a_dict_would_have(
    desk: Desk, turns: list[tuple[int, tuple[Any, ...]]], near: bool
) -> None:
    kind = NEAR if near else BARE

    async def check() -> None:
        model = Model()
        await desk.caches[0].clear()
        await agree(desk, kind, model)
        for who, call in turns:
            cache = desk.caches[who]
            await do(cache, cache.of(kind), call)
            model.apply(call)
            # Who made the change sees it at once, and everybody does who keeps nothing in memory.
            for reader in [cache] if near else desk.caches:
                assert await reader.of(kind).get_many(IDS) == model.values
                for identifier in IDS:
                    assert await reader.of(kind).get(identifier) == model.values.get(identifier)
            await agree(desk, kind, model)

    desk.run(check())


async def agree(desk: Desk, kind: Kind[Any], model: Model) -> None:
    """Return when both processes have heard of everything."""
    async with asyncio.timeout(5):
        for cache in desk.caches:
            while await cache.of(kind).get_many(IDS) != model.values:
                await asyncio.sleep(0)
