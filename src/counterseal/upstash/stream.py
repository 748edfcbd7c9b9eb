"""Stream: subscriptions over server-sent events.

Each event is `data: subscribe,<channel>,<count>` or `data: message,<channel>,<data>` and an empty line; a line end in
a message begins another `data: ` line. Comments keep the connection open and tell of lost messages; clients skip them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

from counterseal.core.errors import StoreError
from counterseal.store.base import Gap, Message, Store
from counterseal.upstash.commands import CommandPolicy
from counterseal.upstash.exchange import Exchange
from counterseal.upstash.request import Fault

KEEP_ALIVE = b": keepalive\n\n"
GAP = b": gap\n\n"
"""Messages may have been lost: the server's own connection broke and is back."""

_QUEUE = 100_000
_LAST_WORD = 1.0
_KEYSPACE = re.compile(r"^(__key(?:space|event)@)(\d+)(__:)")


class Streams:
    """All streams of one server. Each ends when its client goes, lags by more than `max_lag` bytes, or on `close`."""

    def __init__(
        self, store: Store, policy: CommandPolicy, *, database: int, keep_alive: float, max_lag: int
    ) -> None:
        self._store = store
        self._policy = policy
        self._database = database
        self._keep_alive = keep_alive
        self._max_lag = max_lag
        self._open: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def count(self) -> int:
        """How many streams are open."""
        return len(self._open)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """End every stream, and refuse new ones. Each sends its last bytes and lets its subscription go."""
        self._closed = True
        for task in self._open:
            task.cancel()

    async def subscribe(
        self, exchange: Exchange, names: Sequence[bytes], *headers: tuple[bytes, bytes]
    ) -> Fault | None:
        """Serve a stream of these channels until it ends. Returns a `Fault` when it can't begin."""
        channels = self._channels(names)
        if isinstance(channels, Fault):
            return channels
        async with self._store.subscribe(*channels, limit=_QUEUE) as messages:
            outbox = _Outbox(self._max_lag)
            for count, name in enumerate(channels.values(), start=1):
                outbox.put(_event(b"subscribe,%b,%d" % (name, count)))
            await exchange.start_stream(*headers)
            if exchange.method == "HEAD":
                await exchange.send_piece(b"", last=True)
                return None
            await self._serve(exchange, outbox, _fill(outbox, messages, channels))
        return None

    def _channels(self, names: Sequence[bytes]) -> dict[str, bytes] | Fault:
        """The server's name of each channel with the client's. Keyspace channels carry the index of a database."""
        if not names:
            return Fault("ERR wrong number of arguments for 'subscribe' command")
        channels: dict[str, bytes] = {}
        for name in names:
            try:
                channel = name.decode()
            except UnicodeDecodeError:
                return Fault("ERR a channel's name must be UTF-8")
            keyspace = _KEYSPACE.match(channel)
            if self._policy.is_reserved(name) or (keyspace and keyspace[2] != "0"):
                return Fault("NOPERM this user has no permissions to access the channel")
            if keyspace:
                channel = f"{keyspace[1]}{self._database}{keyspace[3]}{channel[keyspace.end() :]}"
            channels[channel] = name
        return channels

    async def _serve(self, exchange: Exchange, outbox: _Outbox, fill: asyncio.Task[None]) -> None:
        send = asyncio.create_task(self._send(exchange, outbox))
        gone = asyncio.create_task(exchange.gone())
        self._open.add(fill)
        try:
            await asyncio.wait((fill, send, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(fill)
            left = gone.done()
            for task in (fill, send, gone):
                task.cancel()
            await asyncio.gather(fill, send, gone, return_exceptions=True)
        if not left:
            await _say_farewell(exchange)

    async def _send(self, exchange: Exchange, outbox: _Outbox) -> None:
        while True:
            await exchange.send_piece(await outbox.take(self._keep_alive) or KEEP_ALIVE)


class _Outbox:
    """Events that wait for the client to read, bounded in bytes. What waits leaves in one piece."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: list[bytes] = []
        self._size = 0
        self._filled = asyncio.Event()

    def put(self, event: bytes) -> bool:
        """Add an event. False when more waits than may."""
        self._events.append(event)
        self._size += len(event)
        self._filled.set()
        return self._size <= self._limit

    async def take(self, patience: float) -> bytes:
        """All that waits; nothing when there is none for `patience` seconds."""
        if not self._events:
            try:
                async with asyncio.timeout(patience):
                    await self._filled.wait()
            except TimeoutError:
                return b""
        events, self._events = self._events, []
        self._size = 0
        self._filled.clear()
        return b"".join(events)


def _fill(
    outbox: _Outbox, messages: AsyncIterator[Message | Gap], channels: dict[str, bytes]
) -> asyncio.Task[None]:
    async def fill() -> None:
        try:
            async for message in messages:
                if isinstance(message, Gap):
                    room = outbox.put(GAP)
                else:
                    room = outbox.put(_event(b"message,%b,%b" % (channels[message.channel], message.data)))
                if not room:
                    return
        except StoreError:
            return

    return asyncio.create_task(fill())


async def _say_farewell(exchange: Exchange) -> None:
    """End the answer, unless the client reads so slowly that even that has to wait."""
    try:
        async with asyncio.timeout(_LAST_WORD):
            await exchange.send_piece(b"", last=True)
    except TimeoutError:
        return


def _event(text: bytes) -> bytes:
    return b"data: %b\n\n" % text.replace(b"\n", b"\ndata: ")
