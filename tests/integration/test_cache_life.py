"""The life of cached values over two processes: refreshed early or late by one load, lifetimes changed, all counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from counterseal.cache.entry import Entry, unpack
from counterseal.cache.kind import Kind
from counterseal.cache.result import Source
from counterseal.cache.service import Cache
from counterseal.cache.stats import KindStats
from counterseal.core.errors import ConfigurationError, UnknownName
from counterseal.store import live
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on, travel
from support.waiting import eventually

KEYS = Keys()
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
EAGER = Kind("eager", HOUR)
CALM = Kind("calm", HOUR, early_refresh=False)
SLOW = Kind("slow", MINUTE, stale_while_revalidate=HOUR)
NEAR = Kind("near", HOUR, near=HOUR)
LOAD_S = 0.05


@asynccontextmanager
async def process(server: Server) -> AsyncIterator[tuple[Store, Cache]]:
    async with (
        store_on(server) as store,
        Cache(store, keys=KEYS, kinds=[EAGER, CALM, SLOW, NEAR]) as cache,
    ):
        yield store, cache


class Loader:
    """A loader that takes some time, and counts its calls."""

    def __init__(self, value: object = None) -> None:
        self.calls = 0
        self.value = value

    async def __call__(self, identifier: str) -> object:
        self.calls += 1
        ends = time.monotonic() + LOAD_S
        await eventually(lambda: time.monotonic() >= ends)
        return {"n": self.calls} if self.value is None else self.value


async def stored(store: Store, kind: str, identifier: str) -> Entry:
    key = KEYS.cache_value(kind, identifier)
    data = await store.command("GET", key)
    assert isinstance(data, bytes)
    entry = unpack(data, key=key)
    assert entry is not None
    return entry


async def travel_to_end(stores: list[Store], kind: str, identifier: str, *, left_ms: int) -> None:
    """Move the clocks to so long before the end of a value."""
    entry = await stored(stores[0], kind, identifier)
    for store in stores:
        travel(store, timedelta(milliseconds=entry.fresh_ms - left_ms - store.now_ms()))


@pytest.mark.parametrize(
    "case",
    [
        (EAGER, 1e-9, 800, True),
        (EAGER, 1e-9, 60_000, False),
        (EAGER, 0.9999999, 800, False),
        (CALM, 1e-9, 800, False),
    ],
    ids=["near its end", "long before", "not this caller", "not this kind"],
)
async def test_a_value_is_loaded_anew_shortly_before_it_ends_and_once_over_all_processes(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, case: tuple[Kind, float, int, bool]
) -> None:
    kind, chance, left_ms, refreshed = case
    monkeypatch.setattr("counterseal.cache.values.random.random", lambda: chance)
    async with process(valkey) as (store, cache), process(valkey) as (second, other):
        loader = Loader()
        caches = (cache.of(kind), other.of(kind))
        await caches[0].get_or_load("k", loader)
        assert (await stored(store, kind.name, "k")).load_ms >= LOAD_S * 1000 - 1
        await travel_to_end([store, second], kind.name, "k", left_ms=left_ms)
        found = await asyncio.gather(*(values.find_or_load("k", loader) for values in caches * 20))
        assert {(answer.source, answer.value["n"]) for answer in found} == {(Source.HIT, 1)}

        async def is_new() -> bool:
            return await caches[1].get("k") == {"n": 2}

        if refreshed:
            await eventually(is_new)
            assert (
                await stored(store, kind.name, "k")
            ).fresh_ms > store.now_ms() + HOUR.total_seconds() * 800
        assert loader.calls == (2 if refreshed else 1)


async def test_an_ended_value_is_handed_out_by_all_processes_while_one_loads(valkey: Server) -> None:
    async with process(valkey) as (store, cache), process(valkey) as (second, other):
        loader = Loader()
        caches = (cache.of(SLOW), other.of(SLOW))
        await caches[0].get_or_load("k", loader)
        await travel_to_end([store, second], "slow", "k", left_ms=-1)
        found = await asyncio.gather(*(values.find_or_load("k", loader) for values in caches * 20))
        assert {(answer.source, answer.value["n"]) for answer in found} == {(Source.STALE, 1)}

        async def is_new() -> bool:
            return [await values.get("k") for values in caches] == [{"n": 2}] * 2

        await eventually(is_new)
        assert loader.calls == 2
        await travel_to_end([store, second], "slow", "k", left_ms=-HOUR // timedelta(milliseconds=1) - 1)
        assert (await caches[0].find("k")).source is Source.MISS
        assert (await caches[1].find_or_load("k", loader)).source is Source.LOADED


async def test_a_refresh_that_fails_leaves_the_value_and_is_tried_again(valkey: Server) -> None:
    async with process(valkey) as (store, cache):
        values = cache.of(SLOW)
        await values.set("k", {"n": 1})
        await travel_to_end([store], "slow", "k", left_ms=-1)
        calls = 0

        async def fail(_: str) -> dict[str, object]:
            nonlocal calls
            calls += 1
            raise RuntimeError("no database")

        async def is_tried_again() -> bool:
            found = await values.find_or_load("k", fail)
            assert (found.source, found.value) == (Source.STALE, {"n": 1})
            return calls >= 3

        await eventually(is_tried_again)


async def test_a_changed_lifetime_is_heard_of_by_other_processes_and_outlives_them(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(valkey) as (store, cache), process(valkey) as (_, other):
        await eventually(lambda: valkey.execute("PUBSUB", "NUMSUB", KEYS.live_channel("cache-ttl"))[1] == 2)
        await cache.set_ttl("eager", MINUTE)
        assert cache.of(EAGER).ttl == MINUTE
        # By message: the look at the version comes every five seconds only.
        await eventually(lambda: other.of(EAGER).ttl == MINUTE, within=live_period_s() * 0.8)
        await other.of(EAGER).set("k", {"n": 1})
        left_ms = (await stored(store, "eager", "k")).fresh_ms - store.now_ms()
        assert 0.9 * 60_000 - 5_000 < left_ms <= 1.1 * 60_000
        async with process(valkey) as (_, third):
            assert third.of(EAGER).ttl == MINUTE
            assert third.of(CALM).ttl == HOUR
        await other.set_ttl("eager", None)
        await eventually(lambda: cache.of(EAGER).ttl == HOUR, within=live_period_s() * 0.8)
        for name, ttl, fault in [
            ("eagre", HOUR, UnknownName), ("eager", timedelta(0), ConfigurationError),
            ("eager", timedelta(days=8), ConfigurationError),
        ]:  # fmt: skip
            with pytest.raises(fault):
                await cache.set_ttl(name, ttl)
        await store.command("HSET", KEYS.live("cache-ttl"), "calm", "much", "", "unread")
        async with process(valkey) as (_, third):
            assert third.of(CALM).ttl == HOUR


def live_period_s() -> float:
    """How often a live hash is compared when no message came."""
    defaults = live.LiveHash.__init__.__kwdefaults__
    return defaults["period"].total_seconds()


async def test_everything_is_counted_by_kind_and_once(valkey: Server) -> None:
    async with process(valkey) as (store, cache), process(valkey) as (_, other):
        loader = Loader({"n": 1})
        slow, near, calm = cache.of(SLOW), cache.of(NEAR), cache.of(CALM)
        await calm.set("a", {"n": 1})
        size = len(b'{"n":1}')
        await calm.get("a")
        await calm.find("a")
        await calm.get_many(["a", "none"])
        await calm.get_or_load("a", loader)
        await calm.get("none")
        await calm.find_or_load("b", loader)
        counted = cache.totals["calm"]
        assert (counted.hits, counted.misses, counted.loads, counted.near) == (4, 3, 1, 0)
        assert counted.load_ms >= LOAD_S * 1000 - 1
        assert counted.bytes_written == 2 * size
        assert counted.bytes_read == 4 * size
        assert counted.hit_rate == 4 / 7

        await near.set("a", {"n": 1})

        async def is_near() -> bool:
            return (await near.find("a")).source is Source.NEAR

        await eventually(is_near)
        before = cache.totals["near"]
        await near.get("a")
        await near.get_many(["a"])
        await near.find_or_load("a", loader)
        assert cache.totals["near"].near == before.near + 3
        assert cache.totals["near"].hits == before.hits

        await slow.set("a", {"n": 1})
        await travel_to_end([store], "slow", "a", left_ms=-1)
        assert (await slow.find("a")).source is Source.STALE
        assert cache.totals["slow"].stale == 1
        assert cache.totals["document"] == KindStats()
        assert cache.totals["document"].hit_rate is None

        await other.of(CALM).get("a")
        (hour,) = [
            stats for stats in (await cache.stats(2))["calm"].values() if stats != KindStats()
        ]  # what this process has counted counts at once
        assert hour.hits == 4
        await cache.close()
        await other.close()
    async with process(valkey) as (_, third):
        hours = await third.stats(3)
        assert set(hours) == {kind.name for kind in third.kinds}
        calm_hours = list(hours["calm"].values())
        assert len(calm_hours) == 3
        assert sum(each.hits for each in calm_hours) == 5
        assert sum(each.misses for each in calm_hours) == 3
        with pytest.raises(ValueError, match="hours: expected at least 1"):
            await third.stats(0)


async def test_the_same_hit_counts_the_same_bytes_whichever_way_it_was_read(valkey: Server) -> None:
    async with process(valkey) as (_, cache):
        calm = cache.of(CALM)
        await calm.set("a", {"text": "x" * 100})
        reads: list[int] = []
        for read in (calm.get, calm.find, many_of(calm), loaded_of(calm)):
            before = cache.totals["calm"].bytes_read
            await read("a")
            reads.append(cache.totals["calm"].bytes_read - before)
        assert len(set(reads)) == 1, reads


def many_of(values):
    async def read(identifier: str) -> object:
        return await values.get_many([identifier])

    return read


def loaded_of(values):
    async def read(identifier: str) -> object:
        return await values.find_or_load(identifier, Loader())

    return read
