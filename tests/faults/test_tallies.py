"""Tallies under every fault: a count may be lost where its outcome is unknown, and is never there twice."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest

from counterseal.core.errors import StoreUnavailable
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.tallies import Tallies
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.relay import Relay
from support.servers import Server
from support.stores import store_on, travel
from support.waiting import eventually

KEYS = Keys()
SHORT = timedelta(milliseconds=300)
pytestmark = pytest.mark.every_loop


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
async def relay(shared: Server) -> AsyncIterator[Relay]:
    async with Relay(shared) as relay:
        yield relay
    shared.flush()


@asynccontextmanager
async def connected(
    url: str, *, timeout: timedelta = timedelta(seconds=5), **bounds
) -> AsyncIterator[NativeStore]:
    options = LinkOptions(connect_timeout=timedelta(seconds=5), command_timeout=timeout, **bounds)
    async with NativeStore(FixedRoute(parse_redis_url(url).template), options) as store:
        yield store


def tallies_on(store: Store, *, period: timedelta = timedelta(hours=1)) -> Tallies:
    return Tallies(store, key=lambda hour: KEYS.tallies("test", hour), ttl=timedelta(days=2), period=period)


async def stored(server: Server) -> dict[str, float]:
    """What the server has of this hour, asked for on a connection of its own."""
    async with store_on(server) as store:
        return next(reversed((await tallies_on(store).read(2)).values()))


async def test_what_is_counted_while_redis_is_down_is_kept_and_sent_when_it_is_back():
    with Server() as server:
        async with connected(server.url) as store:
            tallies = tallies_on(store, period=timedelta(milliseconds=20))
            server.kill()
            await eventually(lambda: not store.available)
            for _ in range(100):
                tallies.add("hits")
            await tallies.flush()
            with pytest.raises(StoreUnavailable):
                await tallies.read(1)
            tallies.add("hits")
            server.start()
            await eventually(lambda: not tallies._running, within=15)
            assert await stored(server) == {"hits": 101}
            assert tallies.totals == {"hits": 101}
            await tallies.close()


async def test_a_flush_that_was_not_answered_in_time_is_not_repeated(shared: Server, relay: Relay):
    async with connected(relay.url, timeout=SHORT) as store:
        tallies = tallies_on(store)
        async with store_on(shared) as other:
            first = tallies_on(other)
            first.add("first")
            await first.close()  # the server knows the script now
        relay.hold()  # of the answers: what is sent arrives
        tallies.add("hits", 5)
        await tallies.flush()
        assert await stored(shared) == {"first": 1, "hits": 5}
        relay.release()
        await eventually(lambda: store.available, within=10)
        await tallies.flush()
        assert await stored(shared) == {"first": 1, "hits": 5}
        assert tallies.totals == {"hits": 5}
        await tallies.close()


async def test_a_flush_that_was_surely_not_sent_is_repeated(shared: Server, relay: Relay):
    async with connected(relay.url, timeout=SHORT, max_inflight_bytes=1) as store:
        tallies = tallies_on(store)
        relay.hold()
        holding = asyncio.ensure_future(store.command("ECHO", "x" * 100))
        await asyncio.sleep(0)
        tallies.add("hits", 5)
        await tallies.flush()  # finds no room
        relay.release()
        with suppress(StoreUnavailable):
            await holding

        async def counted() -> bool:
            await tallies.flush()
            return await stored(shared) == {"hits": 5}

        await eventually(counted, within=10)
        await tallies.flush()
        assert await stored(shared) == {"hits": 5}
        await tallies.close()


async def test_however_often_the_connection_is_cut_nothing_is_counted_twice(shared: Server, relay: Relay):
    chance = random.Random(7)
    for turn in range(30):
        # A store of its own each time, because one that is cut again and again connects ever later.
        async with connected(relay.url) as store:
            tallies = tallies_on(store)
            tallies.add("hits")
            flushing = asyncio.create_task(tallies.flush())
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
            relay.cut(reset=bool(turn % 2))
            await flushing
            await eventually(lambda store=store: store.available)
            tallies.add("hits")
            await tallies.close()
    counts = await stored(shared)
    assert 30 <= counts["hits"] <= 60


async def test_closing_sends_what_is_left_and_waits_for_what_is_on_its_way(shared: Server, relay: Relay):
    async with connected(relay.url) as store:
        tallies = tallies_on(store, period=timedelta(milliseconds=1))
        relay.hold()
        tallies.add("hits", 5)
        await eventually(tallies._flushing.locked)
        tallies.add("hits", 1)
        closing = asyncio.create_task(tallies.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        relay.release()
        await closing
        assert await stored(shared) == {"hits": 6}
        tallies.add("hits", 1)
        assert tallies.totals == {"hits": 7}
        assert not [task for task in asyncio.all_tasks() if "counted" in task.get_name()]


async def test_hours_of_an_outage_are_kept_apart_and_forgotten_when_redis_would_have_forgotten_them():
    with Server() as server:
        async with connected(server.url) as store:
            tallies = tallies_on(store)
            server.kill()
            await eventually(lambda: not store.available)
            for _ in range(100):
                tallies.add("hits")
                await tallies.flush()
                travel(store, timedelta(hours=1))
            assert 47 <= len(tallies._waiting) <= 49
            server.start()
            await eventually(lambda: store.available, within=10)
            await tallies.flush()
            hours = list((await tallies.read(49)).values())
            assert hours[-2] == {"hits": 1}
            assert 47 <= hours.count({"hits": 1}) <= 49
            await tallies.close()
