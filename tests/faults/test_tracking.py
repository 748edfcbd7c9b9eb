"""Tracking under every fault: no change is missed unsaid, a loss is told at once, and nothing stays behind."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from counterseal.core.errors import CommandError, StoreUnavailable
from counterseal.store import tracking
from counterseal.store.base import Store
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute, SentinelRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.relay import Relay
from support.sentinel import SentinelGroup
from support.servers import Server
from support.stores import native_store, store_on
from support.waiting import eventually

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


class Heard:
    """What was told, in order: keys, None for everything, and "LOST"."""

    def __init__(self) -> None:
        self.told: list[str | None] = []

    def track(self, store: Store):
        return store.track("k:", on_change=self.told.append, on_loss=lambda: self.told.append("LOST"))

    async def takes(self, *expected: str | None, within: float = 10) -> None:
        """Wait for exactly this, then forget it."""
        await eventually(lambda: self.told == list(expected), within)
        self.told.clear()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[NativeStore]:
    async with NativeStore(FixedRoute(parse_redis_url(url).template), PATIENT) as store:
        yield store


def change(server: Server, *keys: object) -> None:
    server.client.pipeline([("SET", f"k:{key}", "x", "EX", 60) for key in keys])


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_after_a_cut_everything_counts_as_changed_before_any_key_is_told(
    shared: Server, relay: Relay, reset: bool
):
    heard = Heard()
    async with connected(relay.url) as store, heard.track(store):
        for turn in range(5):
            change(shared, turn)
            await heard.takes(f"k:{turn}")
            relay.cut(reset=reset)
            await heard.takes("LOST", None)
            change(shared, "at once")
            await heard.takes("k:at once")


async def test_a_loss_is_told_while_nothing_can_be_reached(shared: Server, relay: Relay):
    heard = Heard()
    async with connected(relay.url) as store, heard.track(store):
        relay.refuse()
        relay.cut()
        await heard.takes("LOST")
        change(shared, "unheard")
        await relay.accept()
        await heard.takes(None)
        change(shared, 1)
        await heard.takes("k:1")


async def test_changes_that_arrive_with_the_answer_come_after_the_change_of_everything(
    shared: Server, relay: Relay
):
    heard = Heard()
    writing = True

    async def write() -> None:
        async with store_on(shared) as writer:
            while writing:
                await writer.pipeline([("SET", "k:busy", "x", "EX", 60)] * 20)

    async with connected(relay.url) as store, heard.track(store):
        busy = asyncio.create_task(write())
        for _ in range(5):
            await eventually(lambda: heard.told[-1:] == ["k:busy"])
            heard.told.clear()
            relay.cut()
            await eventually(lambda: "LOST" in heard.told)
            await eventually(lambda: "k:busy" in heard.told[heard.told.index("LOST") :], within=10)
            after = heard.told[heard.told.index("LOST") :]
            assert after[:2] == ["LOST", None]
            assert set(after[2:]) == {"k:busy"}
        writing = False
        await busy


async def test_a_cut_in_the_middle_of_a_message_tells_no_wrong_key(shared: Server, relay: Relay):
    heard = Heard()
    async with connected(relay.url) as store, heard.track(store):
        for count in (1, 15, 30, 40):
            relay.cut_after(count)
            change(shared, "0123456789" * 10)
            await heard.takes("LOST", None)
            await eventually(lambda: store.available)


async def test_a_frozen_server_is_a_loss_within_two_seconds_and_is_heard_again(relay: Relay):
    heard = Heard()
    with Server() as server:
        async with connected(server.url) as store, heard.track(store):
            began = time.monotonic()
            server.freeze()
            await heard.takes("LOST")
            assert 0.9 < time.monotonic() - began < 4  # two seconds, and a slow machine
            server.thaw()
            await heard.takes(None)
            change(server, 1)
            await heard.takes("k:1")


async def test_a_killed_server_is_a_loss_at_once_and_is_heard_again_when_it_is_back():
    heard = Heard()
    with Server() as server:
        async with connected(server.url) as store, heard.track(store):
            for _ in range(2):
                server.kill()
                await heard.takes("LOST")
                server.start()
                await heard.takes(None)
                change(server, 1)
                await heard.takes("k:1")


async def test_emptying_the_server_is_a_change_of_everything(shared: Server, relay: Relay):
    heard = Heard()
    async with connected(relay.url) as store, heard.track(store):
        change(shared, 1)
        shared.execute("FLUSHALL")
        change(shared, 2)
        await heard.takes("k:1", None, "k:2")


async def test_twenty_thousand_changes_at_once_all_arrive(shared: Server, relay: Relay):
    heard = Heard()
    async with connected(relay.url) as store, heard.track(store):
        await asyncio.to_thread(change, shared, *range(20_000))
        await eventually(lambda: len(set(heard.told)) == 20_000, within=20)
    assert set(heard.told) == {f"k:{number}" for number in range(20_000)}


async def test_a_quiet_server_is_not_taken_for_a_dead_one(
    shared: Server, relay: Relay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracking, "_PING_EVERY_S", 0.02)
    heard = Heard()
    async with connected(relay.url) as store, heard.track(store):
        received, commands = relay.bytes_out, store.counts.commands
        await eventually(lambda: relay.bytes_out > received + 100)
        assert heard.told == []
        assert (relay.connections, store.counts.commands) == (2, commands)


async def test_a_loop_that_stood_still_is_no_loss(
    shared: Server, relay: Relay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracking, "_PING_EVERY_S", 0.02)
    monkeypatch.setattr(tracking, "_ANSWER_WITHIN", timedelta(milliseconds=200))
    heard = Heard()
    async with store_on(shared) as store, heard.track(store):
        for turn in range(3):
            await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251 - the loop is what has to stand still
            change(shared, turn)
            await heard.takes(f"k:{turn}")


async def test_a_server_that_has_become_a_replica_is_left_for_the_new_primary(sentinels: SentinelGroup):
    heard = Heard()
    address = parse_redis_url(sentinels.url)
    async with (
        NativeStore(SentinelRoute(address, timeout=5), PATIENT, kind="sentinel") as store,
        heard.track(store),
    ):
        change(sentinels.primary, 1)
        await heard.takes("k:1")
        primary = await sentinels.failover()
        await eventually(lambda: heard.told and heard.told[-1] is None, within=15)
        assert heard.told.count("LOST") >= heard.told.count(None) > 0
        heard.told.clear()
        await eventually(lambda: store.available, within=15)
        change(primary, 2)
        await eventually(lambda: heard.told[-1:] == ["k:2"])


async def test_a_user_who_may_not_is_refused_and_leaves_no_connection(relay: Relay):
    with Server(acl=("app on >secret ~* &* +@all -client|tracking",)) as server:
        async with native_store(server, user="app", password="secret") as store:
            heard = Heard()
            with pytest.raises(CommandError, match="NOPERM"):
                async with heard.track(store):
                    pass
            assert heard.told == []
            await eventually(lambda: store.link._dedicated == set())


async def test_while_redis_is_down_entering_is_refused(shared: Server, relay: Relay):
    async with connected(relay.url) as store:
        relay.refuse()
        relay.cut()
        await eventually(lambda: not store.available)
        with pytest.raises(StoreUnavailable):
            async with Heard().track(store):
                pass


async def test_one_who_fails_to_take_a_change_loses_it_and_hears_that_everything_changed(
    shared: Server, relay: Relay, caplog: pytest.LogCaptureFixture
):
    told: list[str | None] = []

    def on_change(key: str | None) -> None:
        told.append(key)
        if key == "k:bad" or told.count(None) == 1:
            told.append("failed")
            raise RuntimeError("of its own")

    def on_loss() -> None:
        told.append("LOST")
        raise RuntimeError("also of its own")

    async with connected(relay.url) as store, store.track("k:", on_change=on_change, on_loss=on_loss):
        change(shared, "bad")
        await eventually(lambda: told.count(None) == 2, within=10)
        change(shared, "good")
        await eventually(lambda: told[-1] == "k:good")
    assert told == ["k:bad", "failed", "LOST", None, "failed", "LOST", None, "k:good"]
    assert "also of its own" in caplog.text


@pytest.mark.parametrize("turns", [1, 3, 5, 8, 12])
async def test_closing_the_store_refuses_who_is_just_entering_or_tells_of_a_loss(
    shared: Server, relay: Relay, turns: int
):
    before = asyncio.all_tasks()
    heard = Heard()
    left = asyncio.Event()

    async def enter(store: Store) -> str:
        try:
            async with heard.track(store):
                await left.wait()
        except StoreUnavailable:
            return "refused"
        return "lost" if heard.told == ["LOST"] else f"told {heard.told}"

    async with connected(relay.url) as store:
        entering = asyncio.create_task(enter(store))
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.close()
        left.set()
        assert await entering in ("refused", "lost")
    await eventually(lambda: relay.open_connections == 0)
    await eventually(lambda: asyncio.all_tasks() - before == set())


async def test_cancelled_while_entering_it_leaves_nothing_behind(shared: Server, relay: Relay):
    async with connected(relay.url) as store:
        before = asyncio.all_tasks()

        async def enter() -> None:
            async with Heard().track(store):
                await asyncio.Event().wait()

        for turns in range(25):
            victim = asyncio.create_task(enter())
            for _ in range(turns):
                await asyncio.sleep(0)
            victim.cancel()
            with pytest.raises(asyncio.CancelledError):
                await victim
        await eventually(lambda: relay.open_connections == 1)
        await eventually(lambda: asyncio.all_tasks() - before == set())
