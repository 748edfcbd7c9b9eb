"""LiveHash under every fault: a copy is never emptied by an outage, and comes to what Redis has afterwards."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from counterseal.core.errors import StoreUnavailable
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.live import LiveHash
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.relay import Relay
from support.servers import Server
from support.stores import native_store, store_on
from support.waiting import eventually

KEYS = Keys()
SELDOM = timedelta(hours=1)
SOON = timedelta(milliseconds=50)
PATIENT = LinkOptions(command_timeout=timedelta(seconds=5), connect_timeout=timedelta(seconds=5))
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
async def connected(url: str) -> AsyncIterator[NativeStore]:
    async with NativeStore(FixedRoute(parse_redis_url(url).template), PATIENT) as store:
        yield store


@asynccontextmanager
async def live_on(store: Store, *, period: timedelta = SELDOM) -> AsyncIterator[LiveHash]:
    live = LiveHash(store, key=KEYS.live("test"), channel=KEYS.live_channel("test"), period=period)
    await live.ready()
    try:
        yield live
    finally:
        await live.close()


def listeners(server: Server) -> int:
    return int(server.execute("PUBSUB", "NUMSUB", KEYS.live_channel("test"))[1])


async def test_a_change_during_an_outage_is_there_when_it_ends_long_before_the_period_does(
    shared: Server, relay: Relay
):
    async with (
        store_on(shared) as near,
        connected(relay.url) as far,
        live_on(near) as writer,
        live_on(far) as reader,
    ):
        await eventually(lambda: listeners(shared) == 2)
        for turn in range(3):
            relay.refuse()
            relay.cut()
            await eventually(lambda: not far.available)
            await writer.set("a", b"%d" % turn)
            await relay.accept()
            await eventually(lambda turn=turn: reader.entries == {"a": b"%d" % turn}, within=15)
            await eventually(lambda: listeners(shared) == 2, within=15)


async def test_the_copy_stays_while_redis_is_dead_and_follows_it_when_it_is_back():
    with Server(appendonly=True) as server:
        async with store_on(server) as store, live_on(store, period=SOON) as live:
            await live.set("a", b"1")
            server.kill()
            await eventually(lambda: not store.available)
            with pytest.raises(StoreUnavailable):
                await live.set("b", b"1")
            with pytest.raises(StoreUnavailable):
                await live.remove("a")
            assert live.entries == {"a": b"1"}
            server.start()
            await eventually(lambda: store.available, within=15)
            assert live.entries == {"a": b"1"}
            await live.set("b", b"1")
            assert live.entries == {"a": b"1", "b": b"1"}
            server.flush()
            await eventually(lambda: live.entries == {})


async def test_who_begins_while_redis_is_dead_has_nothing_and_reads_when_it_is_back():
    with Server(appendonly=True) as server:
        async with store_on(server) as store:
            async with live_on(store) as live:
                await live.set("a", b"1")
            server.kill()
            await eventually(lambda: not store.available)
            async with live_on(store, period=SOON) as late:
                assert late.entries == {}
                server.start()
                await eventually(lambda: late.entries == {"a": b"1"}, within=15)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_a_write_whose_outcome_is_unknown_is_in_every_copy_or_in_none(
    shared: Server, relay: Relay, turns: int
):
    async with (
        store_on(shared) as near,
        connected(relay.url) as far,
        live_on(near, period=SOON) as reader,
        live_on(far, period=SOON) as writer,
    ):
        writing = asyncio.create_task(writer.set("a", b"1"))
        for _ in range(turns):
            await asyncio.sleep(0)
        relay.cut()
        await asyncio.gather(writing, return_exceptions=True)
        await eventually(lambda: far.available)

        async def agreed() -> bool:
            value = await near.command("HGET", KEYS.live("test"), "a")
            return reader.entries.get("a") == writer.entries.get("a") == value

        await eventually(agreed, within=15)


async def test_a_user_without_channels_hears_of_changes_by_the_period(shared: Server, relay: Relay):
    with Server(acl=("app on >secret ~* resetchannels +@all",)) as server:
        async with (
            native_store(server, user="app", password="secret") as one,
            native_store(server, user="app", password="secret") as two,
            live_on(one, period=SOON) as writer,
            live_on(two, period=SOON) as reader,
        ):
            await writer.set("a", b"1")
            await eventually(lambda: reader.entries == {"a": b"1"})
            await writer.remove("a")
            await eventually(lambda: reader.entries == {})


async def test_a_frozen_server_holds_no_reader_up(shared: Server, relay: Relay):
    with Server() as server:
        async with store_on(server) as store, live_on(store) as live:
            await live.set("a", b"1")
            server.freeze()
            for _ in range(3):
                await live.ready()
                assert live.entries == {"a": b"1"}
            server.thaw()
            await live.set("a", b"2")
            assert live.entries == {"a": b"2"}
