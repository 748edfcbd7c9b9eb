"""Subscriptions over server-sent events, raw: what is sent, when it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import pytest

from counterseal.upstash.app import RestLimits
from support.gateway import Gateway, gateway_on
from support.servers import Server
from support.waiting import eventually


@pytest.fixture
async def gateway(valkey: Server) -> AsyncIterator[Gateway]:
    async with gateway_on(valkey, database=0, reserved="cs:") as gateway:
        yield gateway


class Events:
    """An open stream, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._pieces = response.aiter_raw()
        self._rest = b""

    async def next(self) -> bytes:
        """The next event or comment, without the empty line that ends it."""
        async with asyncio.timeout(5):
            while b"\n\n" not in self._rest:
                self._rest += await anext(self._pieces)
        event, _, self._rest = self._rest.partition(b"\n\n")
        return event

    async def ended(self) -> bool:
        """Whether the server ends the stream in order, after whatever was on its way."""
        async with asyncio.timeout(5):
            async for _ in self._pieces:
                pass
        return True


@asynccontextmanager
async def stream(gateway: Gateway, path: str, method: str = "POST", **headers: str) -> AsyncIterator[Events]:
    async with (
        gateway.client(**headers) as client,
        client.stream(method, gateway.url + path, content=b"[]" if method == "POST" else b"") as response,
    ):
        assert response.status_code == 200
        yield Events(response)


async def test_a_subscription_is_confirmed_first_and_then_delivers(gateway: Gateway, valkey: Server) -> None:
    for method in ("POST", "GET"):
        async with stream(gateway, "/subscribe/chat/b%2Fc", method) as events:
            assert events.response.headers["content-type"] == "text/event-stream"
            assert events.response.headers["cache-control"] == "no-cache"
            assert events.response.headers["upstash-sync-token"]
            assert await events.next() == b"data: subscribe,chat,1"
            assert await events.next() == b"data: subscribe,b/c,2"
            assert valkey.execute("PUBLISH", "chat", "hello") == 1
            assert await events.next() == b"data: message,chat,hello"
            async with gateway.client() as http:
                assert (await http.post(f"{gateway.url}/publish/b%2Fc/x,y")).json() == {"result": 1}
            assert await events.next() == b"data: message,b/c,x,y"


async def test_messages_are_not_encoded_and_their_lines_are_events_lines(
    gateway: Gateway, valkey: Server
) -> None:
    async with stream(gateway, "/subscribe/c", **{"Upstash-Encoding": "base64"}) as events:
        assert await events.next() == b"data: subscribe,c,1"
        valkey.execute("PUBLISH", "c", b"a\nb\xff\x00\r\n")
        assert await events.next() == b"data: message,c,a\ndata: b\xff\x00\r\ndata: "


async def test_many_streams_share_one_connection_and_each_gets_every_message(
    gateway: Gateway, valkey: Server
) -> None:
    async with stream(gateway, "/subscribe/c") as first, stream(gateway, "/subscribe/c") as second:
        for events in (first, second):
            assert await events.next() == b"data: subscribe,c,1"
        assert valkey.execute("PUBSUB", "NUMSUB", "c") == [b"c", 1]
        for number in range(100):
            valkey.execute("PUBLISH", "c", str(number))
        for events in (first, second):
            for number in range(100):
                assert await events.next() == b"data: message,c,%d" % number


async def test_a_client_that_leaves_takes_its_subscription_along_within_a_second(
    gateway: Gateway, valkey: Server
) -> None:
    for method in ("POST", "GET"):
        async with stream(gateway, "/subscribe/c", method) as events:
            await events.next()
            assert gateway.app.stream_count == 1
        await eventually(lambda: gateway.app.stream_count == 0, within=1)
        await eventually(lambda: valkey.execute("PUBSUB", "NUMSUB", "c") == [b"c", 0], within=1)


async def test_a_quiet_stream_is_kept_open_by_comments(valkey: Server) -> None:
    limits = RestLimits(stream_keep_alive=timedelta(milliseconds=20))
    async with gateway_on(valkey, limits=limits) as gateway, stream(gateway, "/subscribe/c") as events:
        assert await events.next() == b"data: subscribe,c,1"
        assert await events.next() == b": keepalive"
        assert await events.next() == b": keepalive"
        valkey.execute("PUBLISH", "c", "x")
        await eventually(lambda: next_is(events, b"data: message,c,x"))


async def next_is(events: Events, expected: bytes) -> bool:
    return await events.next() == expected


async def test_a_client_that_does_not_read_is_cut_off_and_holds_nobody_up(valkey: Server) -> None:
    limits = RestLimits(stream_lag_bytes=100_000)
    async with gateway_on(valkey, limits=limits) as gateway:
        port = httpx.URL(gateway.url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(
            f"GET /redis/subscribe/c HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n\r\n".encode()
        )
        await eventually(lambda: gateway.app.stream_count == 1)
        await eventually(lambda: valkey.execute("PUBSUB", "NUMSUB", "c") == [b"c", 1])
        async with stream(gateway, "/subscribe/c") as other:
            assert await other.next() == b"data: subscribe,c,1"
            payload = "x" * 50_000

            async def cut_off() -> bool:
                valkey.execute("PUBLISH", "c", payload)
                assert await other.next() == b"data: message,c," + payload.encode()
                return gateway.app.stream_count == 1

            await eventually(cut_off, within=20)
        seen = b""
        async with asyncio.timeout(5):
            while not seen.endswith(b"\r\n0\r\n\r\n") and (piece := await reader.read(2**16)):
                seen = seen[-10:] + piece
        writer.close()


async def test_closing_ends_every_stream_in_order_and_refuses_new_ones(gateway: Gateway) -> None:
    async with stream(gateway, "/subscribe/c") as events:
        await events.next()
        gateway.app.close()
        assert await events.ended()
        assert gateway.app.stream_count == 0
    async with gateway.client() as http:
        answer = await http.post(f"{gateway.url}/subscribe/c")
        assert (answer.status_code, answer.json()) == (503, {"error": "ERR the server is stopping"})


async def test_a_lost_connection_to_the_server_is_told_by_a_comment(gateway: Gateway, valkey: Server) -> None:
    async with stream(gateway, "/subscribe/c") as events:
        await events.next()
        valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")
        assert await events.next() == b": gap"
        await eventually(lambda: valkey.execute("PUBLISH", "c", "x") == 1)
        assert await events.next() == b"data: message,c,x"


async def test_channels_of_others_are_refused(gateway: Gateway) -> None:
    async with gateway.client() as http:
        for path in ("cs:jobs", "mine/cs%3Ajobs", "__keyspace@1__:k", "__keyevent@15__:del"):
            answer = await http.post(f"{gateway.url}/subscribe/{path}")
            assert (answer.status_code, answer.json()["error"][:7]) == (400, "NOPERM ")
        answer = await http.post(f"{gateway.url}/subscribe/%FF")
        assert (answer.status_code, answer.json()) == (400, {"error": "ERR a channel's name must be UTF-8"})
        answer = await http.post(f"{gateway.url}/publish/cs:jobs/x")
        assert (answer.status_code, answer.json()["error"][:7]) == (400, "NOPERM ")


@pytest.mark.leaves_keys("the keys are the clients' own, as on the service")
async def test_keyspace_events_are_those_of_the_own_database(valkey: Server) -> None:
    valkey.execute("SELECT", 3)
    try:
        async with gateway_on(valkey, database=3) as gateway, gateway.client() as http:
            on = await http.post(
                gateway.url, content=json.dumps(["CONFIG", "SET", "notify-keyspace-events", "K$"])
            )
            assert on.json() == {"result": "OK"}
            async with stream(gateway, "/subscribe/__keyspace@0__:k") as events:
                assert await events.next() == b"data: subscribe,__keyspace@0__:k,1"
                await http.get(f"{gateway.url}/set/k/zero")
                valkey.execute("SET", "k", "three")
                assert await events.next() == b"data: message,__keyspace@0__:k,set"
            off = await http.post(
                gateway.url, content=json.dumps(["CONFIG", "SET", "notify-keyspace-events", ""])
            )
            assert off.json() == {"result": "OK"}
    finally:
        valkey.execute("SELECT", 0)


async def test_head_begins_no_stream(gateway: Gateway) -> None:
    async with gateway.client() as http:
        answer = await http.head(f"{gateway.url}/subscribe/c")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert gateway.app.stream_count == 0
