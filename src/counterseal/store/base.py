"""Store: the one interface to Redis, whichever connection stands behind it.

Values cross it as RESP2 shapes, the same over every connection: `bytes` for statuses and strings, `int`, `None`
and lists of these. `HGETALL` is a flat list. A command's error is raised; inside a pipeline it is that item's value.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from counterseal.core.background import Background
from counterseal.core.clock import Clock
from counterseal.store.clock import StoreClock
from counterseal.store.scripts import Script
from counterseal.store.wire import Argument, Command, Reply


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What answers at the other end, read when the store is opened.

    `product` is `valkey`, `redis` or `upstash`; `version` its own version, `(9, 1, 2)`, empty when it does not say;
    `mode` is `standalone` or `cluster`.
    """

    product: str
    version: tuple[int, ...]
    mode: str


@dataclass(slots=True)
class StoreCounts:
    """What a store has done since it was made; read by the metrics. Plain integers, changed by one event loop only."""

    commands: int = 0
    batches: int = 0
    timeouts: int = 0
    failures: int = 0
    reconnects: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody published on a channel. `data` is what they sent, byte for byte."""

    channel: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """The connection was lost and is back: messages published meanwhile on these channels did not arrive."""

    channels: tuple[str, ...]


class Subscription(ABC):
    """Messages of some channels, in the order in which each was published. Use it as `async with`.

    Entering returns once the server has confirmed every channel, so a message published afterwards arrives.
    It lives through lost connections: the iterator yields a `Gap`, then goes on. A subscriber that falls `limit`
    messages behind is cut off with `SubscriberTooSlow`, so that it holds nobody up.
    """

    @abstractmethod
    async def __aenter__(self) -> AsyncIterator[Message | Gap]: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(ABC):
    """One connection to Redis: native (single, Sentinel, Cluster), Upstash REST, or the embedded server.

    Use it as `async with`. Commands that concurrent tasks issue in one turn of the event loop leave together.
    Every call below raises `StoreUnavailable` (or its kinds `StoreTimeout`, `StoreBusy`) when Redis does not answer in
    time, before `open` and after `close`; a write that timed out may have run. Nothing is retried here.
    """

    kind: str
    """`embedded`, `native`, `sentinel`, `cluster` or `rest`."""

    now_ms: Callable[[], int]
    """The server's time in milliseconds since 1970, from its last reading (at most 10 s old). No round trip."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.counts = StoreCounts()
        self.clock = StoreClock(clock)
        self.now_ms = self.clock.now_ms
        self._background = Background()
        self._life = asyncio.Lock()
        self._connected = False

    @property
    @abstractmethod
    def server(self) -> ServerInfo:
        """What answers at the other end. Costs nothing; it was read by `open`."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Where the store is, for people: no user, no password, no token."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """False while the connection is down or the breaker is open: the next call would fail at once."""

    async def open(self) -> None:
        """Connect. Raises `ConfigurationError` when the server refuses or is too old, else `StoreUnavailable`.

        Safe to call twice, also at the same time. What fails half-way leaves nothing behind.
        """
        async with self._life:
            if self._connected:
                return
            try:
                await self._connect()
            except BaseException:
                await self._let_go()
                raise
            self._background.keep("read the clock", lambda: self.clock.keep(self._time))
            self._connected = True

    async def close(self) -> None:
        """Let go of every connection and task. Calls under way fail with `StoreUnavailable`. Safe to call twice."""
        async with self._life:
            self._connected = False
            await self._let_go()

    async def _let_go(self) -> None:
        await self._background.close()
        await self._disconnect()

    @abstractmethod
    async def _connect(self) -> None:
        """Connect, read what answers, and take the clock's first reading."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Let go of what `_connect` made, however far it came. Safe to call twice."""

    @abstractmethod
    async def _time(self) -> tuple[int, int]:
        """The server's time: seconds and microseconds. One round trip."""

    @abstractmethod
    def command(self, *arguments: Argument) -> Awaitable[Reply]:
        """Run one command: one round trip, shared with whatever else leaves in this turn of the loop.

        Raises `CommandError` when the server answers with an error. Commands that block are refused: see `block`.
        """

    @abstractmethod
    def pipeline(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        """Run commands in order in one round trip. Not atomic. A failing one leaves its `CommandError` in its place."""

    @abstractmethod
    def transaction(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        """Run commands as MULTI/EXEC in one write. Raises `TransactionAborted` when one is refused while queueing.

        A command that fails while it runs leaves its `CommandError` in its place; the others stand.
        """

    @abstractmethod
    async def run(self, script: Script, **arguments: Argument | Sequence[Argument]) -> Reply:
        """Run a script, its keys and arguments given by the names in its header. One round trip; two after NOSCRIPT."""

    async def run_in_order(self, script: Script, *arguments: Argument) -> Reply:
        """The same with keys and arguments in the order of the header, for a script that is run very often.

        It takes no sequence. The caller sees to their number.
        """
        return await self.run(script, **dict(zip((*script.keys, *script.args), arguments, strict=True)))

    @abstractmethod
    async def block(self, *arguments: Argument, timeout: timedelta) -> Reply:
        """Run a command that waits on the server (`BLPOP`, `XREAD … BLOCK`), on a connection of its own.

        `timeout` bounds the wait here and must exceed the one in the command. Over REST it raises `CommandError`.
        """

    @abstractmethod
    async def replicated(self, key: str, *, witnesses: Sequence[str], replicas: int) -> bool:
        """Whether what was written so far to the server of `key` is on at least so many of its replicas.

        Waits for them, at most twice as long as a command may take. `witnesses` are keys of the same slot that were
        written: where one of them is not known, as after a failover that lost it, the answer is no. `key` is written as
        a mark, for a minute. One round trip on a connection of its own, shared by all who ask meanwhile.

        Over REST it raises `CommandError`.
        """

    @abstractmethod
    def subscribe(
        self, *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        """Listen to channels: `async with store.subscribe("a") as messages: async for message in messages`.

        `limit` is how many messages may wait for a slow reader before it is cut off. `on_loss` is called as soon as the
        connection is known to be lost, once for each loss; the `Gap` follows when it is back. Entering raises
        `CommandError` for a user who may not listen.
        """

    @abstractmethod
    def track(
        self, *prefixes: str, on_change: Callable[[str | None], None], on_loss: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        """Hear from the server of every key that changes below these prefixes, whoever changes it: `async with`.

        `on_change` is called with each key, this process's own writes included; with None when everything may have
        changed. What changes in one turn of the server's loop comes together, each key once, in any order. Entering
        returns once the server has begun.

        `on_loss` is called as soon as the connection is known to be lost, or has been silent for a second although it
        was asked, and when the store is closed. It is replaced; then `on_change(None)` comes before any further key.

        Raises `CommandError` where this can't be had: over REST, on a Cluster, as a user who may not. Raises
        `StoreUnavailable` when Redis is down, `ValueError` without a prefix. Costs a connection and a PING a second.
        """

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
