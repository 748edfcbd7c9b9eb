"""NativeStore: one server over its own protocol, found by a fixed address, by Sentinel, or started here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from counterseal.core.clock import Clock
from counterseal.core.errors import CommandError, ConfigurationError, ScriptMissing, StoreUnavailable
from counterseal.store.base import ServerInfo, Store, Subscription
from counterseal.store.clock import StoreClock
from counterseal.store.feed import Feed
from counterseal.store.guard import PLAIN, check, check_queued
from counterseal.store.link import Link, LinkOptions
from counterseal.store.replication import Replication
from counterseal.store.route import Route
from counterseal.store.scripts import Script
from counterseal.store.tracking import Tracking
from counterseal.store.wire import Argument, Command, Reply


class NativeStore(Store):
    """A `Store` over one multiplexed connection; `command` is one round trip shared with its turn of the loop."""

    def __init__(
        self,
        route: Route,
        options: LinkOptions | None = None,
        *,
        kind: str = "native",
        clock: Clock | None = None,
    ) -> None:
        super().__init__(clock=clock)
        self.kind = kind
        self.link = Link(route, options, counts=self.counts)
        self._feed = Feed(route)
        self._trackings: set[Tracking] = set()
        self._replication: Replication | None = None

    @property
    def server(self) -> ServerInfo:
        return self.link.server

    @property
    def description(self) -> str:
        return self.link.route.description

    @property
    def available(self) -> bool:
        return self.link.available

    async def _connect(self) -> None:
        await self.link.open()
        self._check_mode()
        await read_first_time(self.clock, self._time)
        self._feed.open()

    async def _disconnect(self) -> None:
        await self._feed.close()
        if self._replication is not None:
            await self._replication.close()
            self._replication = None
        await asyncio.gather(*(tracking.close() for tracking in self._trackings))
        await self.link.close()

    def command(self, *arguments: Argument) -> Awaitable[Reply]:
        if arguments[0] not in PLAIN:
            check(arguments)
        return self.link.send(arguments)

    def pipeline(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        for command in commands:
            if command[0] not in PLAIN:
                check(command)
        return self.link.send_many(commands)

    def transaction(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        for command in commands:
            check_queued(command)
        return self.link.send_transaction(commands)

    async def run(self, script: Script, **arguments: Argument | Sequence[Argument]) -> Reply:
        count, bound = script.bind(arguments)
        try:
            return await self.link.send(("EVALSHA", script.sha, count, *bound))
        except ScriptMissing:
            return await self.link.send(("EVAL", script.source, count, *bound))

    async def run_in_order(self, script: Script, *arguments: Argument) -> Reply:
        try:
            return await self.link.send(("EVALSHA", script.sha, len(script.keys), *arguments))
        except ScriptMissing:
            return await self.link.send(("EVAL", script.source, len(script.keys), *arguments))

    async def block(self, *arguments: Argument, timeout: timedelta) -> Reply:
        if not self.link.available:
            raise StoreUnavailable("Redis is not available")
        connection = await self.link.dedicated(timeout)
        try:
            return await connection.send(arguments)
        finally:
            connection.abort("the blocking call is over")

    async def replicated(self, key: str, *, witnesses: Sequence[str], replicas: int) -> bool:
        if not self.link.available:
            raise StoreUnavailable("Redis is not available")
        if self._replication is None:
            self._replication = Replication(self.link)
        return await self._replication.confirmed(key, witnesses=witnesses, replicas=replicas)

    def subscribe(
        self, *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        return self._feed.subscribe(channels, limit=limit, on_loss=on_loss)

    def track(
        self, *prefixes: str, on_change: Callable[[str | None], None], on_loss: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        return Tracking(self.link, prefixes, on_change=on_change, on_loss=on_loss, among=self._trackings)

    def _check_mode(self) -> None:
        if self.server.mode == "cluster":
            raise ConfigurationError(
                "REDIS_URL: expected redis+cluster://host:port; came: one node of a Cluster alone"
            )

    async def _time(self) -> tuple[int, int]:
        return read_time(await self.link.send(("TIME",)))


async def read_first_time(clock: StoreClock, time: Callable[[], Awaitable[tuple[int, int]]]) -> None:
    """Take a clock's first reading. A server that refuses it is a `ConfigurationError`."""
    try:
        await clock.read(time)
    except CommandError as error:  # what passes by itself is StoreUnavailable
        raise ConfigurationError(
            f"REDIS_URL: expected a user who may run TIME; the server answered {error.kind}"
        ) from error


def read_time(reply: Reply) -> tuple[int, int]:
    """Seconds and microseconds from the reply of TIME."""
    if isinstance(reply, list) and len(reply) == 2:
        seconds, micros = reply
        if isinstance(seconds, bytes) and isinstance(micros, bytes):
            return int(seconds), int(micros)
    raise StoreUnavailable("Redis told no time")
