"""Subscriptions under every fault: nothing is lost unsaid, comes twice or out of order, and nothing stays behind."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest

from counterseal.core.errors import CommandError, StoreUnavailable, SubscriberTooSlow
from counterseal.store import feed
from counterseal.store.base import Gap, Message
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.relay import Relay
from support.servers import Server
from support.waiting import eventually

PATIENT = LinkOptions(command_timeout=timedelta(seconds=5), connect_timeout=timedelta(seconds=5))
GAP = Gap(("channel",))
pytestmark = pytest.mark.every_loop


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
async def relay(shared: Server) -> AsyncIterator[Relay]:
    async with Relay(shared) as relay:
        yield relay


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[NativeStore]:
    async with NativeStore(FixedRoute(parse_redis_url(url).template), PATIENT) as store:
        yield store


async def take(messages: AsyncIterator[Message | Gap], count: int = 1) -> list[Message | Gap]:
    async with asyncio.timeout(10):
        return [await anext(messages) for _ in range(count)]


def of(*texts: object) -> list[Message | Gap]:
    return [Message("channel", f"{text}".encode()) for text in texts]


# -- lost connections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_after_a_cut_comes_a_gap_and_then_what_is_published_from_then_on(
    shared: Server, relay: Relay, reset: bool
):
    async with connected(relay.url) as store, store.subscribe("channel") as messages:
        for turn in range(5):
            shared.execute("PUBLISH", "channel", turn)
            assert await take(messages) == of(turn)
            relay.cut(reset=reset)
            assert await take(messages) == [GAP]
            # At once, before this loop has passed on anything: who was told of the gap misses nothing any more.
            for number in range(10):
                shared.execute("PUBLISH", "channel", number)
            assert await take(messages, 10) == of(*range(10))


async def test_a_cut_in_the_middle_of_a_message_passes_no_part_of_it_on(shared: Server, relay: Relay):
    async with connected(relay.url) as store, store.subscribe("channel") as messages:
        for count in (1, 15, 40, 60):
            relay.cut_after(count)
            shared.execute("PUBLISH", "channel", "0123456789" * 10)
            assert await take(messages) == [GAP]
            await eventually(lambda: store.available)
            shared.execute("PUBLISH", "channel", "whole")
            assert await take(messages) == of("whole")


async def test_a_gap_names_the_channels_of_its_subscription(relay: Relay):
    async with connected(relay.url) as store, store.subscribe("a", "b") as both, store.subscribe("b") as one:
        relay.cut()
        assert await take(both) == [Gap(("a", "b"))]
        assert await take(one) == [Gap(("b",))]


async def test_a_subscription_that_comes_with_the_cut_hides_it_from_nobody(shared: Server, relay: Relay):
    async with connected(relay.url) as store, store.subscribe("channel") as messages:
        for number in range(10):
            relay.cut()

            async def enter(number: int = number) -> None:
                async with store.subscribe(f"other {number}"):
                    pass

            entering = [asyncio.create_task(enter()) for _ in range(3)]
            outcomes = await asyncio.gather(*entering, return_exceptions=True)
            assert all(outcome is None or isinstance(outcome, StoreUnavailable) for outcome in outcomes), (
                outcomes
            )
            assert await take(messages) == [GAP]
            shared.execute("PUBLISH", "channel", number)
            assert await take(messages) == of(number)


async def test_a_restarted_server_is_listened_to_again():
    with Server() as server:
        async with connected(server.url) as store, store.subscribe("channel") as messages:
            for end in (server.kill, server.stop):
                end()
                server.start()
                assert await take(messages) == [GAP]
                server.execute("PUBLISH", "channel", "after")
                assert await take(messages) == of("after")


async def test_a_frozen_server_is_noticed_and_listened_to_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed, "_QUIET", 0.2)
    monkeypatch.setattr(feed, "_ANSWER_WITHIN", 0.3)
    with Server() as server:
        async with (
            Relay(server) as relay,
            connected(relay.url) as store,
            store.subscribe("channel") as messages,
        ):
            taken = relay.connections
            server.freeze()
            await eventually(lambda: relay.connections > taken, within=3)
            server.thaw()
            assert await take(messages) == [GAP]
            server.execute("PUBLISH", "channel", "after")
            assert await take(messages) == of("after")


async def test_a_quiet_server_is_not_taken_for_a_dead_one(
    shared: Server, relay: Relay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed, "_QUIET", 0.02)
    async with connected(relay.url) as store, store.subscribe("channel") as messages:
        received = relay.bytes_out
        await eventually(lambda: relay.bytes_out > received + 100)  # several answers to PING
        shared.execute("PUBLISH", "channel", "first")
        assert await take(messages) == of("first")
        assert relay.connections == 2


async def is_refused(store: NativeStore, channel: str) -> bool:
    try:
        async with store.subscribe(channel):
            return False
    except StoreUnavailable:
        return True


# -- a user who may not listen -------------------------------------------------------------------------------------


async def test_who_may_not_listen_is_told_so_and_the_others_go_on(servers: Callable[..., Server]):
    server = servers()
    server.execute("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "resetchannels", "&channel")
    async with connected(f"redis://limited:secret@127.0.0.1:{server.port}/0") as store:
        for _ in range(3):
            with pytest.raises(CommandError) as refused:
                await store.subscribe("another").__aenter__()
            assert refused.value.kind == "NOPERM"
        async with store.subscribe("channel") as messages:
            with pytest.raises(CommandError):
                await store.subscribe("channel", "another").__aenter__()
            server.execute("PUBLISH", "channel", "after")
            assert await take(messages) == of("after")  # and no gap before it


async def test_a_refusal_reaches_who_waits_though_who_asked_has_gone(servers: Callable[..., Server]):
    server = servers()
    server.execute("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "resetchannels", "&channel")
    async with (
        connected(f"redis://limited:secret@127.0.0.1:{server.port}/0") as store,
        store.subscribe("channel"),
    ):
        first = asyncio.create_task(store.subscribe("another").__aenter__())
        second = asyncio.create_task(store.subscribe("another").__aenter__())
        await asyncio.sleep(0)  # both have begun, and no answer can have come
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(CommandError):
            await second


# -- being told of a loss at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_who_asked_is_told_of_each_loss_once_before_the_gap(shared: Server, relay: Relay, reset: bool):
    order: list[object] = []
    async with (
        connected(relay.url) as store,
        store.subscribe("channel", on_loss=lambda: order.append("lost")) as messages,
    ):
        for _ in range(5):
            relay.cut(reset=reset)
            order += await take(messages)
        shared.execute("PUBLISH", "channel", "after")
        assert await take(messages) == of("after")
    assert order == ["lost", GAP] * 5


async def test_who_asked_is_told_while_there_is_no_connection_and_once_however_long_that_takes(
    shared: Server, relay: Relay
):
    losses: list[str] = []
    async with (
        connected(relay.url) as store,
        store.subscribe("channel", on_loss=lambda: losses.append("one")) as messages,
        store.subscribe("channel", "other", on_loss=lambda: losses.append("both")),
        store.subscribe("other"),
    ):
        relay.refuse()
        relay.cut()
        await eventually(lambda: losses)
        for _ in range(3):
            assert await is_refused(store, "a third")
        assert sorted(losses) == ["both", "one"]
        await relay.accept()
        assert await take(messages) == [GAP]
        assert sorted(losses) == ["both", "one"]


async def test_a_connection_lost_again_before_its_gap_is_one_loss(shared: Server, relay: Relay):
    losses: list[int] = []
    async with (
        connected(relay.url) as store,
        store.subscribe("a", "b", on_loss=lambda: losses.append(1)) as messages,
    ):
        relay.cut_after(0)
        shared.execute("PUBLISH", "a", "never passed on")
        relay.cut()
        await eventually(lambda: losses)
        assert await take(messages) == [Gap(("a", "b"))]
        assert losses == [1]


async def test_a_killed_server_is_a_loss_at_once_while_it_is_still_dead():
    losses: list[int] = []
    with Server() as server:
        async with (
            connected(server.url) as store,
            store.subscribe("channel", on_loss=lambda: losses.append(1)) as messages,
        ):
            server.kill()
            await eventually(lambda: losses == [1])
            server.start()
            assert await take(messages) == [GAP]
            assert losses == [1]


async def test_a_frozen_server_is_a_loss_before_it_is_thawed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed, "_QUIET", 0.2)
    monkeypatch.setattr(feed, "_ANSWER_WITHIN", 0.3)
    losses: list[int] = []
    with Server() as server:
        async with (
            connected(server.url) as store,
            store.subscribe("channel", on_loss=lambda: losses.append(1)) as messages,
        ):
            server.freeze()
            await eventually(lambda: losses)
            server.thaw()
            assert await take(messages) == [GAP]
            assert losses == [1]


async def test_one_who_fails_when_told_of_a_loss_takes_nothing_from_anybody(
    shared: Server, relay: Relay, caplog: pytest.LogCaptureFixture
):
    def fail() -> None:
        raise RuntimeError("of its own")

    async with (
        connected(relay.url) as store,
        store.subscribe("channel", on_loss=fail) as failing,
        store.subscribe("channel") as other,
    ):
        relay.cut()
        assert await take(failing) == await take(other) == [GAP]
        shared.execute("PUBLISH", "channel", "after")
        assert await take(failing) == await take(other) == of("after")
    assert "of its own" in caplog.text


async def test_closing_the_store_and_leaving_are_no_losses(shared: Server, relay: Relay):
    losses: list[int] = []
    async with connected(relay.url) as store:
        async with store.subscribe("channel", on_loss=lambda: losses.append(1)):
            pass
        async with store.subscribe("channel", on_loss=lambda: losses.append(1)) as messages:
            await store.close()
            with pytest.raises(StoreUnavailable):
                await take(messages)
    assert losses == []


# -- outages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["channel", "another"])
async def test_who_enters_during_an_outage_is_refused_and_the_others_go_on(
    shared: Server, relay: Relay, channel: str
):
    async with connected(relay.url) as store, store.subscribe("channel") as messages:
        relay.refuse()
        relay.cut()
        await eventually(lambda: is_refused(store, channel))  # the cut has been noticed
        assert [await is_refused(store, channel) for _ in range(3)] == [True] * 3
        await relay.accept()
        assert await take(messages) == [GAP]
        shared.execute("PUBLISH", "channel", "after")
        assert await take(messages) == of("after")
        async with store.subscribe(channel):
            pass


@pytest.mark.parametrize("channel", ["channel", "another"])
async def test_who_enters_just_before_the_outage_ends_hears_everything_from_then_on_and_of_no_gap(
    channel: str,
):
    with Server() as server:
        async with (
            Relay(server) as relay,
            connected(relay.url) as store,
            store.subscribe("channel") as messages,
        ):
            server.freeze()
            relay.cut()
            await eventually(lambda: relay.connections == 4)  # both connections are being made again
            late = store.subscribe(channel)
            entering = asyncio.create_task(late.__aenter__())
            await asyncio.sleep(0)
            assert not entering.done()
            server.thaw()
            heard = await entering
            server.execute("PUBLISH", channel, "x")
            assert await take(heard) == [Message(channel, b"x")]
            await late.__aexit__(None, None, None)
            assert await take(messages) == [GAP]


async def test_who_leaves_during_an_outage_takes_nothing_from_the_others(shared: Server, relay: Relay):
    async with connected(relay.url) as store, store.subscribe("channel") as messages:
        async with store.subscribe("another"):
            relay.refuse()
            relay.cut()
            await eventually(lambda: is_refused(store, "a third"))
        await relay.accept()
        assert await take(messages) == [GAP]
        shared.execute("PUBLISH", "channel", "after")
        assert await take(messages) == of("after")


async def test_who_is_refused_can_enter_once_the_server_is_back(relay: Relay):
    async with connected(relay.url) as store:
        relay.refuse()
        with pytest.raises(StoreUnavailable):
            async with store.subscribe("channel"):
                pass
        await relay.accept()
        async with store.subscribe("channel"):
            pass
        await eventually(lambda: relay.open_connections == 1)


# -- subscribers that come and go ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside another"])
async def test_one_who_is_cancelled_while_entering_leaves_nothing_behind(
    shared: Server, relay: Relay, alone: bool
):
    async with connected(relay.url) as store, AsyncExitStack() as stack:
        if not alone:
            messages = await stack.enter_async_context(store.subscribe("channel"))
        before = asyncio.all_tasks()

        async def listen(number: int) -> None:
            async with store.subscribe(f"victim {number}"):
                await asyncio.Event().wait()

        for turns in range(25):
            victim = asyncio.create_task(listen(turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            victim.cancel()
            with pytest.raises(asyncio.CancelledError):
                await victim
        await eventually(lambda: relay.open_connections == (1 if alone else 2))
        await eventually(lambda: shared.execute("PUBSUB", "CHANNELS", "victim*") == [])
        await eventually(lambda: asyncio.all_tasks() - before == set())
        if not alone:
            shared.execute("PUBLISH", "channel", "after")
            assert await take(messages) == of("after")


async def test_two_hundred_subscribers_share_one_connection(shared: Server, relay: Relay):
    async with connected(relay.url) as store:
        async with AsyncExitStack() as stack:
            entered = await asyncio.gather(
                *(
                    stack.enter_async_context(store.subscribe(f"channel {number % 20}", "channel"))
                    for number in range(200)
                )
            )
            assert relay.connections == 2
            shared.execute("PUBLISH", "channel", "to all")
            for number in range(20):
                shared.execute("PUBLISH", f"channel {number}", number)
            for place, messages in enumerate(entered):
                own = Message(f"channel {place % 20}", f"{place % 20}".encode())
                assert await take(messages, 2) == [*of("to all"), own]
            assert shared.execute("PUBSUB", "NUMSUB", "channel")[1] == 1
        await eventually(lambda: relay.open_connections == 1)


async def test_with_the_last_subscriber_the_connection_goes_and_with_the_next_it_comes(
    shared: Server, relay: Relay
):
    async with connected(relay.url) as store:
        for turn in range(3):
            assert relay.connections == 1 + turn
            async with store.subscribe("channel") as messages:
                assert relay.connections == 2 + turn
                shared.execute("PUBLISH", "channel", turn)
                assert await take(messages) == of(turn)
            await eventually(lambda: relay.open_connections == 1)
        assert shared.execute("PUBSUB", "CHANNELS") == []


async def test_a_slow_subscriber_is_cut_off_after_what_it_was_sent_and_holds_nobody_up(
    shared: Server, relay: Relay
):
    async with (
        connected(relay.url) as store,
        store.subscribe("channel", limit=100) as slow,
        store.subscribe("channel", limit=5000) as quick,
    ):
        shared.client.pipeline([("PUBLISH", "channel", number) for number in range(5000)])
        assert await take(quick, 5000) == of(*range(5000))
        assert await take(slow, 100) == of(*range(100))
        with pytest.raises(SubscriberTooSlow):
            await take(slow)
        with pytest.raises(StopAsyncIteration):
            await take(slow)


async def test_a_gap_too_many_cuts_a_slow_subscriber_off(relay: Relay):
    async with (
        connected(relay.url) as store,
        store.subscribe("channel", limit=2) as slow,
        store.subscribe("channel") as quick,
    ):
        for _ in range(3):
            relay.cut()
            assert await take(quick) == [GAP]
        assert await take(slow, 2) == [GAP, GAP]
        with pytest.raises(SubscriberTooSlow):
            await take(slow)


async def test_subscribers_that_come_and_go_while_connections_are_cut_leave_nothing_behind(
    shared: Server, relay: Relay
):
    chance = random.Random(20)
    channels = ("a", "b", "c")

    async def come_and_go() -> None:
        for _ in range(10):
            try:
                async with store.subscribe(*chance.sample(channels, chance.randint(1, 3))):
                    for _ in range(chance.randint(0, 5)):
                        await asyncio.sleep(0)
            except StoreUnavailable:
                await asyncio.sleep(0)

    async def cut() -> None:
        while True:
            reached = relay.chunks_in
            await eventually(lambda reached=reached: relay.chunks_in > reached + 10)
            relay.cut()

    async with connected(relay.url) as store:
        cutting = asyncio.create_task(cut())
        async with asyncio.timeout(30):
            await asyncio.gather(*(come_and_go() for _ in range(20)))
        cutting.cancel()
        await asyncio.gather(cutting, return_exceptions=True)
        await eventually(lambda: shared.execute("PUBSUB", "CHANNELS") == [])
        await eventually(lambda: relay.open_connections == 1)
        async with store.subscribe("a") as messages:
            shared.execute("PUBLISH", "a", "x")
            assert await take(messages) == [Message("a", b"x")]


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_closing_the_store_ends_every_iterator_after_what_had_arrived(shared: Server, relay: Relay):
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack, connected(relay.url) as store:
        read = await stack.enter_async_context(store.subscribe("channel"))
        waiting = await stack.enter_async_context(store.subscribe("channel"))
        shared.execute("PUBLISH", "channel", "last")
        assert await take(waiting) == of("last")
        end = asyncio.create_task(take(waiting))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await end
        assert await take(read) == of("last")
        with pytest.raises(StoreUnavailable, match="closed"):
            await take(read)
    await eventually(lambda: relay.open_connections == 0)
    assert asyncio.all_tasks() - before == set()


@pytest.mark.parametrize("turns", [1, 3, 8, 20])
async def test_closing_the_store_refuses_who_is_just_entering(relay: Relay, turns: int):
    before = asyncio.all_tasks()
    async with connected(relay.url) as store:
        entering = asyncio.create_task(store.subscribe("channel").__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        if not entering.done():
            await store.close()
            with pytest.raises(StoreUnavailable):
                await take(await entering)
    await eventually(lambda: relay.open_connections == 0)
    assert asyncio.all_tasks() - before == set()
