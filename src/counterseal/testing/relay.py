"""Relay: stands between a client and a server, counts what passes, and hurts it on demand."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from pathlib import Path
from types import TracebackType
from typing import Self, cast

_DATA_SEGMENTS_IN = 152  # the offset of tcpi_data_segs_in in Linux' struct tcp_info


class Relay:
    """A TCP relay on loopback, inside the event loop of the test: `async with Relay(server.socket) as relay`.

    It goes to a port of 127.0.0.1, or to a Unix socket. A fault concerns what happens from its call on; counts begin at
    the start.
    """

    def __init__(
        self, target: int | Path, *, port: int | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.port = port or _free_port()
        """Where it listens on 127.0.0.1."""
        self.connections = 0
        """How many were taken."""
        self.chunks_in = 0
        """How many reads brought something from clients. Several writes may arrive in one read."""
        self.bytes_in = 0
        self.bytes_out = 0
        """Of replies, as far as they were passed on."""
        self.cuts = 0
        """How many connections were ended by `cut` and `cut_after`."""
        self.held = False
        self._target = target
        self._tls = tls
        self._links: set[_Link] = set()
        self._listener: asyncio.Server | None = None
        self._allowance: int | None = None
        self._past_segments = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        return len(self._links)

    @property
    def segments_in(self) -> int:
        """How many TCP segments with data came from clients, as the kernel counts them (Linux only).

        A write of up to 64 KB is one segment, and the kernel puts writes together only when about ten are under way
        unconfirmed. So one write shows 1, and a hundred writes show 10 at the least. Over TLS the handshake counts too.
        """
        return self._past_segments + sum(link.segments for link in self._links)

    def cut(self, *, reset: bool = False) -> None:
        """End all connections now: in order (FIN), or with RST when `reset` is true."""
        for link in tuple(self._links):
            self.cuts += 1
            link.abort(reset=reset)

    def cut_after(self, count: int) -> None:
        """Pass on `count` more bytes of replies, on whichever connection; then end the one whose reply is next.

        Happens once. Whatever belongs to the bytes passed on still arrives.
        """
        self._allowance = count

    def hold(self) -> None:
        """Keep replies back, unread. Commands still pass, and the server runs them."""
        self.held = True
        self._flow()

    def release(self) -> None:
        """Let go the replies that were held, in order."""
        self.held = False
        self._flow()

    def refuse(self) -> None:
        """Refuse new connections: nobody listens on the port any more. Those that stand are left alone."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Take new connections: at the start, and again after `refuse`."""
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                lambda: _Client(self), "127.0.0.1", self.port, reuse_address=True, ssl=self._tls
            )

    async def close(self) -> None:
        """End everything. Safe to call twice."""
        self.refuse()
        for link in tuple(self._links):
            link.abort()
        async with asyncio.timeout(5):
            await self._empty.wait()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def dial(self, link: _Link) -> None:
        """For a link: connect it to the server."""
        loop = asyncio.get_running_loop()
        if isinstance(self._target, Path):
            await loop.create_unix_connection(lambda: _Upstream(link), str(self._target))
        else:
            await loop.create_connection(lambda: _Upstream(link), "127.0.0.1", self._target)

    def add(self, link: _Link) -> None:
        """For a link: count it in."""
        self.connections += 1
        self._links.add(link)
        self._empty.clear()

    def remove(self, link: _Link) -> None:
        """For a link: both its ends are closed."""
        if link in self._links:
            self._links.remove(link)
            self._past_segments += link.segments
        if not self._links:
            self._empty.set()

    def allow(self, data: bytes) -> tuple[bytes, bool]:
        """For a link: what of these replies may pass, and whether the connection ends then."""
        if self._allowance is None:
            return data, False
        if len(data) <= self._allowance:
            self._allowance -= len(data)
            return data, False
        passed, self._allowance = data[: self._allowance], None
        self.cuts += 1
        return passed, True

    def _flow(self) -> None:
        for link in tuple(self._links):
            link.flow()


class _Link:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, relay: Relay, client: asyncio.Transport) -> None:
        self.client_full = False
        self.segments = 0
        self._relay = relay
        self._client = client
        self._server: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._late: list[bytes] = []
        self._paused = False
        self._open = {"client", "dialling"}
        relay.add(self)
        self._dialling = asyncio.get_running_loop().create_task(self._dial())

    def commands(self, data: bytes) -> None:
        """From the client to the server."""
        self._relay.chunks_in += 1
        self._relay.bytes_in += len(data)
        self._count_segments()
        if self._server is None:
            self._early.append(data)
        else:
            self._server.write(data)

    def replies(self, data: bytes) -> None:
        """From the server to the client."""
        if self._paused:
            self._late.append(data)
            return
        passed, cut = self._relay.allow(data)
        self._relay.bytes_out += len(passed)
        self._client.write(passed)
        if cut:
            self._client.close()
            self._leave_server()

    def flow(self) -> None:
        """Read the server's replies, or leave them where they are."""
        if self._server is None or self._server.is_closing():
            return
        paused = self._relay.held or self.client_full
        if paused != self._paused:
            self._paused = paused
            if paused:
                self._server.pause_reading()
            else:
                self._server.resume_reading()
        if not paused and self._late:
            late, self._late = b"".join(self._late), []
            self.replies(late)

    def commands_flow(self, flowing: bool) -> None:
        """Read the client's commands, or leave them until the server has taken those before."""
        if self._client.is_closing():
            return
        if flowing:
            self._client.resume_reading()
        else:
            self._client.pause_reading()

    def abort(self, *, reset: bool = False) -> None:
        """End both connections at once."""
        if reset:
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._client.abort()
        self._leave_server()

    def server_made(self, server: asyncio.Transport) -> None:
        """The server took the connection."""
        self._server = server
        self._open.add("server")
        if self._client.is_closing():
            server.abort()
            return
        for data in self._early:
            server.write(data)
        self._early.clear()
        self.flow()

    def server_lost(self) -> None:
        """The server ended it: so does the relay, when the client has what came before."""
        self._client.close()
        self._lost("server")

    def client_lost(self) -> None:
        """The client ended it, or a fault did."""
        self._leave_server()
        self._lost("client")

    async def _dial(self) -> None:
        try:
            await self._relay.dial(self)
        except OSError:
            self._client.abort()
        finally:
            self._lost("dialling")

    def _leave_server(self) -> None:
        # A dial under way is not cancelled, as a loop may then forget to tell of the end: what it makes is aborted.
        if self._server is not None:
            self._server.abort()

    def _lost(self, end: str) -> None:
        self._open.discard(end)
        if not self._open:
            self._relay.remove(self)

    def _socket(self) -> socket.socket:
        return cast("socket.socket", self._client.get_extra_info("socket"))

    def _count_segments(self) -> None:
        if hasattr(socket, "TCP_INFO"):
            info = self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            self.segments = struct.unpack_from("I", info, _DATA_SEGMENTS_IN)[0]


class _Client(asyncio.Protocol):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link = _Link(self._relay, cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._link.commands(data)

    def pause_writing(self) -> None:
        self._link.client_full = True
        self._link.flow()

    def resume_writing(self) -> None:
        self._link.client_full = False
        self._link.flow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.client_lost()


class _Upstream(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link.server_made(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._link.replies(data)

    def pause_writing(self) -> None:
        self._link.commands_flow(flowing=False)

    def resume_writing(self) -> None:
        self._link.commands_flow(flowing=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.server_lost()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
