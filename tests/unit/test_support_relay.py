"""The kit's relay: passes everything on, counts it, and fails in the ways it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Flavour
from support.relay import Relay, TlsRelay
from support.servers import Server
from support.waiting import eventually

Relays = Callable[..., Awaitable[Relay]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"


@asynccontextmanager
async def _connected(relay: Relay, **options: Any) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_it_passes_commands_and_replies_on(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG
        assert (relay.connections, relay.open_connections) == (1, 1)
        assert (relay.bytes_in, relay.bytes_out) == (len(PING), len(PONG))
    await eventually(lambda: relay.open_connections == 0)
    assert relay.connections == 1


async def test_a_server_with_only_a_socket_can_stand_behind_it(
    servers: Callable[..., Server], relays: Relays
) -> None:
    relay = await relays(servers(port=0))
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG


async def test_a_large_reply_passes_whole_although_nobody_reads_it_at_first(
    valkey: Server, relays: Relays
) -> None:
    size = 20 << 20
    valkey.execute("SET", "cs:large", bytes(size), "PX", 60_000)
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        writer.write(b"*2\r\n$3\r\nGET\r\n$8\r\ncs:large\r\n")
        head = f"${size}\r\n".encode()
        assert await reader.readexactly(len(head)) == head
        assert relay.bytes_out < size
        assert await reader.readexactly(size) == bytes(size)


async def test_a_hundred_commands_in_one_write_are_one_segment(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        writer.write(PING * 100)
        await reader.readexactly(len(PONG) * 100)
        assert (relay.chunks_in, relay.segments_in) == (1, 1)
    await eventually(lambda: relay.open_connections == 0)
    assert relay.segments_in == 1


async def test_a_hundred_writes_are_told_from_one_although_they_arrive_together(
    valkey: Server, relays: Relays
) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        for _ in range(100):
            writer.write(PING)
        await reader.readexactly(len(PONG) * 100)
        assert relay.segments_in >= 10


async def test_cut_ends_every_connection(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (first, _), _connected(relay) as (second, _):
        await eventually(lambda: relay.open_connections == 2)
        relay.cut()
        assert await first.read() == await second.read() == b""
        assert relay.cuts == 2
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG


async def test_cut_can_reset(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, _):
        await eventually(lambda: relay.open_connections == 1)
        relay.cut(reset=True)
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_cut_after_ends_the_connection_in_the_middle_of_a_reply(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        await reader.readexactly(len(PONG))
        relay.cut_after(len(PONG) + 3)
        writer.write(PING * 2)
        assert await reader.read() == PONG + PONG[:3]
        assert relay.cuts == 1
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG


async def test_cut_after_nothing_lets_the_command_run_and_loses_its_reply(
    valkey: Server, relays: Relays
) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        relay.cut_after(0)
        writer.write(b"*5\r\n$3\r\nSET\r\n$5\r\ncs:it\r\n$1\r\n1\r\n$2\r\nPX\r\n$5\r\n60000\r\n")
        assert await reader.read() == b""
    assert valkey.execute("GET", "cs:it") == b"1"


async def test_held_replies_come_in_order_when_they_are_released(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        relay.hold()
        for number in range(5):
            writer.write(
                f"*5\r\n$3\r\nSET\r\n$4\r\ncs:{number}\r\n$1\r\n1\r\n$2\r\nPX\r\n$5\r\n60000\r\n".encode()
            )
            writer.write(f"*2\r\n$4\r\nECHO\r\n$1\r\n{number}\r\n".encode())
        await eventually(lambda: valkey.execute("DBSIZE") == 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.03)
        relay.release()
        expected = b"".join(f"+OK\r\n$1\r\n{number}\r\n".encode() for number in range(5))
        assert await reader.readexactly(len(expected)) == expected


async def test_a_connection_made_while_replies_are_held_is_held_too(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey)
    relay.hold()
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.03)
        relay.release()
        assert await reader.readexactly(len(PONG)) == PONG


async def test_refuse_leaves_old_connections_and_accept_lets_new_ones_in(
    valkey: Server, relays: Relays
) -> None:
    relay = await relays(valkey)
    async with _connected(relay) as (reader, writer):
        relay.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG
    await relay.accept()
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        assert await reader.readexactly(len(PONG)) == PONG


async def test_a_server_that_is_gone_ends_the_connection(
    servers: Callable[..., Server], relays: Relays
) -> None:
    server = servers()
    relay = await relays(server)
    async with _connected(relay) as (reader, writer):
        writer.write(PING)
        await reader.readexactly(len(PONG))
        server.kill()
        assert await reader.read() == b""
    async with _connected(relay) as (reader, _):
        assert await reader.read() == b""


async def test_a_good_certificate_is_taken_under_both_names(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey, tls="good")
    assert isinstance(relay, TlsRelay)
    assert relay.url == f"rediss://localhost:{relay.port}/0"
    context = ssl.create_default_context(cafile=relay.ca_file)
    for name in ("localhost", "127.0.0.1"):
        async with _connected(relay, ssl=context, server_hostname=name) as (reader, writer):
            writer.write(PING)
            assert await reader.readexactly(len(PONG)) == PONG


@pytest.mark.parametrize(
    ("flavour", "complaint"), [("expired", "certificate has expired"), ("wrong_host", "Hostname mismatch")]
)
async def test_a_bad_certificate_is_refused_for_its_fault(
    valkey: Server, relays: Relays, flavour: Flavour, complaint: str
) -> None:
    relay = await relays(valkey, tls=flavour)
    assert isinstance(relay, TlsRelay)
    context = ssl.create_default_context(cafile=relay.ca_file)
    with pytest.raises(ssl.SSLCertVerificationError, match=complaint):
        await asyncio.open_connection("127.0.0.1", relay.port, ssl=context, server_hostname="localhost")


async def test_a_good_certificate_is_refused_by_who_does_not_know_its_authority(
    valkey: Server, relays: Relays
) -> None:
    relay = await relays(valkey, tls="good")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        await asyncio.open_connection(
            "127.0.0.1", relay.port, ssl=ssl.create_default_context(), server_hostname="localhost"
        )


async def test_faults_work_over_tls_too(valkey: Server, relays: Relays) -> None:
    relay = await relays(valkey, tls="good")
    assert isinstance(relay, TlsRelay)
    context = ssl.create_default_context(cafile=relay.ca_file)
    async with _connected(relay, ssl=context, server_hostname="localhost") as (reader, writer):
        relay.hold()
        writer.write(PING)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.03)
        relay.cut_after(3)
        relay.release()
        assert await reader.read() == PONG[:3]


async def test_close_removes_the_folder_of_the_certificates(valkey: Server) -> None:
    async with TlsRelay(valkey) as relay:
        folder = Path(relay.ca_file).parent
        assert folder.exists()
    assert not folder.exists()
