"""Messages: what is published arrives, in order and byte for byte, the same over every connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from counterseal.core.errors import StoreUnavailable, SubscriberTooSlow
from counterseal.store.base import Gap, Message, Store
from support.backends import Backend
from support.waiting import eventually

PAYLOADS = {
    "empty": b"",
    "text": b"words",
    "emoji": "😀".encode(),
    "NUL": b"a\x00b",
    "a line end": b"a\nb",
    "line ends": b"\n\r\n\n",
    "what ends an event": b"data: x\n\ndata: y\n\n",
    "a carriage return": b"a\rb\r",
    "commas": b"message,other,data",
    "20 KB": b"0123456789" * 2000,
}
DEADLINE = 10


async def take(messages: AsyncIterator[Message | Gap], count: int) -> list[Message | Gap]:
    """The next messages, within a bounded time."""
    async with asyncio.timeout(DEADLINE):
        return [await anext(messages) for _ in range(count)]


async def test_a_subscriber_gets_what_is_published_from_then_on_in_order(store: Store):
    await store.command("PUBLISH", "channel", "before")
    async with store.subscribe("channel") as messages:
        for number in range(100):
            await store.command("PUBLISH", "channel", number)
        await store.pipeline([("PUBLISH", "channel", number) for number in range(100, 200)])
        received = await take(messages, 200)
    assert received == [Message("channel", b"%d" % number) for number in range(200)]


async def test_a_message_arrives_byte_for_byte(store: Store):
    async with store.subscribe("channel") as messages:
        for name, payload in PAYLOADS.items():
            await store.command("PUBLISH", "channel", payload)
            assert await take(messages, 1) == [Message("channel", payload)], name


async def test_a_message_that_is_no_text_arrives_byte_for_byte(store: Store):
    async with store.subscribe("channel") as messages:
        for payload in (b"\xff\xfe", bytes(range(256))):
            await store.command("PUBLISH", "channel", payload)
            assert await take(messages, 1) == [Message("channel", payload)]


async def test_every_subscriber_of_a_channel_gets_every_message(store: Store):
    async with store.subscribe("channel") as first, store.subscribe("channel", "other") as second:
        for number in range(20):
            await store.command("PUBLISH", "channel", number)
        expected = [Message("channel", b"%d" % number) for number in range(20)]
        assert await take(first, 20) == expected
        assert await take(second, 20) == expected


async def test_a_subscriber_of_several_channels_gets_their_messages_and_no_others(store: Store):
    channels = ("plain", "with:colon {and} more", "a,b", "a", "канал", "a/b?c#d%41.", "..")
    async with store.subscribe(*channels) as messages, store.subscribe("a") as one:
        await store.command("PUBLISH", "unheard", "x")
        for channel in channels:
            await store.command("PUBLISH", channel, f"on {channel}")
        expected = {Message(channel, f"on {channel}".encode()) for channel in channels}
        assert set(await take(messages, len(channels))) == expected
        assert await take(one, 1) == [Message("a", b"on a")]


async def test_a_channel_named_twice_is_listened_to_once(store: Store):
    async with store.subscribe("channel", "channel") as messages:
        await store.command("PUBLISH", "channel", 1)
        await store.command("PUBLISH", "channel", 2)
        assert await take(messages, 2) == [Message("channel", b"1"), Message("channel", b"2")]


async def test_no_channel_and_no_room_are_refused(store: Store):
    with pytest.raises(ValueError, match="channel"):
        store.subscribe()
    with pytest.raises(ValueError, match="room"):
        store.subscribe("channel", limit=0)


async def test_a_slow_subscriber_is_cut_off_and_holds_nobody_up(store: Store):
    async with store.subscribe("channel") as quick, store.subscribe("channel", limit=10) as slow:
        for number in range(50):
            await store.command("PUBLISH", "channel", number)
        expected = [Message("channel", b"%d" % number) for number in range(50)]
        assert await take(quick, 50) == expected
        assert await take(slow, 10) == expected[:10]
        with pytest.raises(SubscriberTooSlow, match="more than 10 messages"):
            await take(slow, 1)
        await store.command("PUBLISH", "channel", "after")
        assert await take(quick, 1) == [Message("channel", b"after")]


async def test_leaving_unsubscribes(backend: Backend, store: Store):
    async with store.subscribe("stays") as stays:
        async with store.subscribe("goes", "stays"):
            await eventually(lambda: backend.subscribers("goes") == 1)
        await eventually(lambda: backend.subscribers("goes") == 0)
        await store.command("PUBLISH", "stays", "still")
        assert await take(stays, 1) == [Message("stays", b"still")]
    await eventually(lambda: backend.subscribers("stays") == 0)


async def test_a_channel_can_be_left_and_listened_to_again(backend: Backend, store: Store):
    async with store.subscribe("other"):
        for number in range(5):
            async with store.subscribe("channel") as messages:
                await store.command("PUBLISH", "channel", number)
                assert await take(messages, 1) == [Message("channel", b"%d" % number)]


async def test_a_subscriber_that_is_cancelled_while_it_waits_leaves_no_subscription(
    backend: Backend, store: Store
):
    entered = asyncio.Event()

    async def listen() -> None:
        async with store.subscribe("channel") as messages:
            entered.set()
            await anext(messages)

    listening = asyncio.create_task(listen())
    await entered.wait()
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    await eventually(lambda: backend.subscribers("channel") == 0)
    async with store.subscribe("channel") as messages:
        await store.command("PUBLISH", "channel", "x")
        assert await take(messages, 1) == [Message("channel", b"x")]


async def test_a_lost_connection_is_told_at_once_and_then_by_a_gap(backend: Backend, store: Store):
    order: list[object] = []
    async with store.subscribe("channel", on_loss=lambda: order.append("lost")) as messages:
        for number in range(3):
            for node in backend.nodes:
                for line in node.execute("CLIENT", "LIST", "TYPE", "PUBSUB").decode().splitlines():
                    described = dict(part.split("=", 1) for part in line.split(" "))
                    if not described["name"].startswith("sentinel"):
                        node.execute("CLIENT", "KILL", "ID", described["id"])
            order += await take(messages, 1)
            await store.command("PUBLISH", "channel", number)
            assert await take(messages, 1) == [Message("channel", b"%d" % number)]
    assert order == ["lost", Gap(("channel",))] * 3


async def test_messages_cross_from_one_store_to_another(backend: Backend, store: Store):
    async with backend.store() as other, store.subscribe("channel") as messages:
        await other.command("PUBLISH", "channel", "hello")
        assert await take(messages, 1) == [Message("channel", b"hello")]


async def test_closing_the_store_ends_its_subscriptions(backend: Backend):
    async with backend.store() as store, store.subscribe("channel") as messages:
        await store.command("PUBLISH", "channel", "last")
        assert await take(messages, 1) == [Message("channel", b"last")]
        waiting = asyncio.ensure_future(take(messages, 1))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await waiting
    await eventually(lambda: backend.subscribers("channel") == 0)
