"""Values in the memory of a process, over every connection: what is near, and that what changed is near no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest

from counterseal.cache.kind import Kind
from counterseal.cache.result import Source
from counterseal.cache.service import Cache
from counterseal.cache.values import KindCache
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.backends import Backend, all_but, cluster, native, only, rest
from support.stores import travel
from support.waiting import eventually

KEYS = Keys()
HOUR = timedelta(hours=1)
BOUND = timedelta(seconds=30)


class Point(msgspec.Struct, frozen=True):
    x: int
    names: tuple[str, ...]


TEAM = Kind("team", HOUR, near=BOUND, owner="user")
POINT = Kind("point", HOUR, type=Point, near=BOUND)
BARE = Kind("bare", HOUR)
KINDS = (TEAM, POINT, BARE)


@pytest.fixture
async def cache(store: Store) -> AsyncIterator[Cache]:
    async with Cache(store, keys=KEYS, kinds=KINDS) as cache:
        yield cache


@pytest.fixture
async def other(backend: Backend) -> AsyncIterator[Cache]:
    """The cache of another process."""
    async with backend.store() as store, Cache(store, keys=KEYS, kinds=KINDS) as cache:
        yield cache


async def come_near(values: KindCache, *identifiers: str) -> None:
    """Read until these are answered from memory."""
    for identifier in identifiers:

        async def is_near(identifier: str = identifier) -> bool:
            return (await values.find(identifier)).source is Source.NEAR

        await eventually(is_near)


async def seen(values: KindCache, identifier: str, expected: object) -> None:
    """Read until a value is what it is to be. Nothing is asked of how long that takes but that it is not the bound."""

    async def is_seen() -> bool:
        return await values.get(identifier) == expected

    await eventually(is_seen)


async def change(cache: Cache, how: str) -> object:
    """Change the value `t` in one of the ways there are; what it is then."""
    team = cache.of(TEAM)
    match how:
        case "set":
            await team.set("t", {"n": 2})
            return {"n": 2}
        case "set to None":
            await team.set("t", None)
        case "set_many":
            await team.set_many({"t": {"n": 2}, "u": {"n": 3}})
            return {"n": 2}
        case "invalidate":
            assert await team.invalidate("t") is True
        case "invalidate_many":
            assert await team.invalidate_many(["x", "t"]) == 1
        case "clear":
            await team.clear()
        case "clear everything":
            await cache.clear()
        case "tag":
            await cache.invalidate_tags("a b=c")
        case _:
            await cache.invalidate_user("t")
    return None


WAYS = (
    "set", "set to None", "set_many", "invalidate", "invalidate_many", "clear", "clear everything", "tag", "user",
)  # fmt: skip


async def test_a_value_is_near_once_it_was_read_and_costs_no_round_trip_then(
    cache: Cache, store: Store
) -> None:
    team = cache.of(TEAM)
    await team.set("t", {"n": 1})
    await team.set("none", None)
    assert (await team.find("t")).source is Source.HIT
    await come_near(team, "t", "none")
    before = store.counts.commands
    assert await team.get("t") == {"n": 1}
    assert await team.get("none") is None
    found = await team.find("none")
    assert (found.found, found.value, found.source) == (True, None, Source.NEAR)
    assert await team.get_many(["t", "none"]) == {"t": {"n": 1}, "none": None}
    assert (await team.find_or_load("t", never)).source is Source.NEAR
    assert store.counts.commands == before
    assert cache.near_bytes > 0


async def test_a_kind_that_does_not_ask_for_it_is_never_near(cache: Cache) -> None:
    await cache.of(BARE).set("b", {"n": 1})
    for _ in range(3):
        assert (await cache.of(BARE).find("b")).source is Source.HIT
    assert cache.near_bytes == 0


@pytest.mark.parametrize("how", WAYS)
async def test_what_another_process_changes_is_seen_at_once(cache: Cache, other: Cache, how: str) -> None:
    team = cache.of(TEAM)
    await team.set("t", {"n": 1}, tags=["a b=c"])
    await come_near(team, "t")
    expected = await change(other, how)
    await seen(team, "t", expected)
    assert await team.get("t") == expected


@pytest.mark.parametrize("how", WAYS)
async def test_what_this_process_changes_is_seen_when_the_call_returns(cache: Cache, how: str) -> None:
    team = cache.of(TEAM)
    await team.set("t", {"n": 1}, tags=["a b=c"])
    await come_near(team, "t")
    expected = await change(cache, how)
    assert await team.get("t") == expected


@all_but(cluster)  # where what was published by several nodes arrives in any order
async def test_a_change_of_one_value_leaves_the_others_near(cache: Cache, other: Cache) -> None:
    team, point = cache.of(TEAM), cache.of(POINT)
    await team.set_many({"1": {"n": 1}, "2": {"n": 2}, "{2}": {"n": 3}}, tags=["all"])
    await point.set("2", Point(1, ("a",)))
    await come_near(team, "1", "2", "{2}")
    await come_near(point, "2")
    await other.of(TEAM).set("2", {"n": 20}, tags=["all"])
    await seen(team, "2", {"n": 20})
    for values, identifier in [(team, "1"), (team, "{2}"), (point, "2")]:
        assert (await values.find(identifier)).source is Source.NEAR
    await other.of(TEAM).invalidate("{2}")
    await seen(team, "{2}", None)
    await other.invalidate_tags("another")
    await other.of(TEAM).clear()
    await seen(team, "1", None)
    assert (await point.find("2")).source is Source.NEAR


async def test_what_another_process_loads_replaces_a_near_none(cache: Cache, other: Cache) -> None:
    team = cache.of(TEAM)
    await team.set("t", None)
    await come_near(team, "t")
    await other.of(TEAM).invalidate("t")

    async def load(_: str) -> dict[str, object]:
        return {"n": 1}

    await other.of(TEAM).get_or_load("t", load)
    await seen(team, "t", {"n": 1})


async def test_what_another_process_loads_anew_replaces_the_former_value(
    backend: Backend, cache: Cache
) -> None:
    team = cache.of(TEAM)
    await team.set("t", {"n": 1})
    await come_near(team, "t")

    async def load(_: str) -> dict[str, object]:
        return {"n": 2}

    async with backend.store() as store, Cache(store, keys=KEYS, kinds=KINDS) as other:
        travel(store, 2 * HOUR)  # there the value has ended
        assert await other.of(TEAM).get_or_load("t", load) == {"n": 2}
    await seen(team, "t", {"n": 2})


async def test_a_change_of_a_value_that_was_handed_out_changes_nobody_elses(cache: Cache) -> None:
    team = cache.of(TEAM)
    await team.set("t", {"list": [1, {"deep": 1}]})
    await come_near(team, "t")
    for take in (team.get, lambda _: one_of_many(team), lambda _: found_in(team), lambda _: loaded(team)):
        value = await take("t")
        assert value == {"list": [1, {"deep": 1}]}
        value["list"][1]["deep"] = 2
        value["more"] = True
    assert await team.get("t") == {"list": [1, {"deep": 1}]}


async def test_an_immutable_value_is_one_object_for_everybody(cache: Cache) -> None:
    point = cache.of(POINT)
    await point.set("p", Point(1, ("a", "b")))
    await come_near(point, "p")
    first = await point.get("p")
    assert first == Point(1, ("a", "b"))
    assert await point.get("p") is first
    assert (await point.find("p")).value is first
    assert (await point.get_many(["p"]))["p"] is first
    assert await point.get_or_load("p", never) is first


async def test_nothing_near_is_older_than_its_kind_allows(cache: Cache, store: Store) -> None:
    team = cache.of(TEAM)
    await team.set("t", {"n": 1}, tags=["x"])
    await team.set("u", {"n": 1})
    for identifier in ("t", "u"):
        await come_near(team, identifier)
        travel(store, BOUND - timedelta(seconds=5))
        assert (await team.find(identifier)).source is Source.NEAR
        travel(store, timedelta(seconds=6))
        assert (await team.find(identifier)).source is Source.HIT


async def test_nothing_near_outlives_its_own_lifetime(store: Store) -> None:
    short = Kind("short", timedelta(seconds=10), near=HOUR)
    async with Cache(store, keys=KEYS, kinds=[short]) as cache:
        values = cache.of(short)
        await values.set("s", {"n": 1})
        await come_near(values, "s")
        travel(store, timedelta(seconds=12))
        assert await values.get("s") is None


@all_but(cluster, rest)  # of what others do there nobody tells
async def test_an_emptied_server_leaves_nothing_near(backend: Backend, cache: Cache) -> None:
    team = cache.of(TEAM)
    await team.set("t", {"n": 1})
    await come_near(team, "t")
    for node in backend.nodes:
        node.execute("FLUSHALL", "SYNC")
    await seen(team, "t", None)


@only(native)
async def test_what_is_near_is_bounded_by_bytes_and_what_is_asked_for_stays(backend: Backend) -> None:
    kind = Kind("big", HOUR, near=HOUR)
    async with backend.store() as store, Cache(store, keys=KEYS, kinds=[kind], near_bytes=100_000) as cache:
        big = cache.of(kind)
        await big.set_many({str(number): {"text": "x" * 1000} for number in range(500)})
        await come_near(big, "0")
        for number in range(1, 500):
            await big.get(str(number))
            assert cache.near_bytes <= 100_000
            assert (await big.find("0")).source is Source.NEAR  # asked for since the hand last passed
        sources = [(await big.find(str(number))).source for number in (1, 2, 3)]
        assert sources == [Source.HIT] * 3
        assert cache.near_bytes > 90_000
        await big.set("huge", {"text": "x" * 200_000})
        assert (await big.find("huge")).source is Source.HIT
        assert (await big.find("huge")).source is Source.HIT
        assert (await big.find("0")).source is Source.NEAR
        await big.clear()
        assert cache.near_bytes == 0


@all_but(cluster, rest)
async def test_where_the_server_tells_of_changes_one_connection_of_each_process_asks_it(
    backend: Backend, cache: Cache
) -> None:
    await cache.of(TEAM).set("t", {"n": 1})
    await come_near(cache.of(TEAM), "t")
    assert len(tracking(backend)) == 1
    await cache.close()
    await eventually(lambda: tracking(backend) == [])


async def test_a_closed_cache_keeps_nothing_near(cache: Cache) -> None:
    await cache.of(TEAM).set("t", {"n": 1})
    await come_near(cache.of(TEAM), "t")
    await cache.close()
    assert cache.near_bytes == 0


async def test_two_processes_that_change_and_read_at_random_end_with_the_same_value(
    cache: Cache, other: Cache
) -> None:
    both = (cache.of(TEAM), other.of(TEAM))
    for values in both:
        await values.set("t", {"n": -1})
        await come_near(values, "t")

    async def write(turn: int) -> None:
        await both[turn % 2].set("t", {"n": turn})

    async def read(values: KindCache) -> None:
        for _ in range(30):
            await values.get("t")
            await asyncio.sleep(0)

    for start in range(0, 40, 10):
        await asyncio.gather(*(write(start + turn) for turn in range(10)), *(read(values) for values in both))
        async with asyncio.timeout(5):
            while True:
                mine, theirs = [await values.get("t") for values in both]
                if mine == theirs:
                    break
        final = {"n": 1000 + start}
        await both[0].set("t", final)
        assert await both[0].get("t") == final
        await seen(both[1], "t", final)


def tracking(backend: Backend) -> list[str]:
    return [
        line
        for node in backend.nodes
        for line in node.execute("CLIENT", "LIST").decode().splitlines()
        if "B" in dict(part.split("=", 1) for part in line.split(" "))["flags"]
    ]


async def never(_: str) -> None:
    raise AssertionError("loaded")


async def one_of_many(values: KindCache) -> dict:
    return (await values.get_many(["t"]))["t"]


async def found_in(values: KindCache) -> dict:
    return (await values.find("t")).value


async def loaded(values: KindCache) -> dict:
    return await values.get_or_load("t", never)
