"""Link: a connection to one server that is kept up: introduced, watched, and replaced when it is lost.

A lost connection is replaced at once; when that fails, with full-jitter back-off from 50 ms to 2 s, for as long as the
link is open. Meanwhile calls fail at once with `StoreUnavailable`. Nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from counterseal.core.background import Background, full_jitter
from counterseal.core.errors import (
    CommandError,
    ConfigurationError,
    CountersealError,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from counterseal.store.base import ServerInfo, StoreCounts
from counterseal.store.breaker import Breaker, BreakerPolicy
from counterseal.store.connection import NO_ROOM, Bounds, Connection
from counterseal.store.route import Route
from counterseal.store.target import LOCAL_TIMEOUT, REMOTE_CONNECT_TIMEOUT, REMOTE_READ_TIMEOUT, Target
from counterseal.store.wire import NOT_NOW, Argument, Command, Reply

logger = logging.getLogger(__name__)

MINIMUM_VERSIONS = {"redis": (7, 0), "valkey": (7, 2)}
CLIENT_NAME = "counterseal"

Dialed = tuple[asyncio.Transport, Connection]

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
"""Between attempts to connect again: full jitter below a bound that doubles from the first to the longest."""

_STEADY_AFTER = 1.0
_DEAD_AFTER = 1.0
_PUNCTUAL = 0.005


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """What a link may take. Time-outs that are None follow the target: 50 ms on this machine, else 1 s and 250 ms."""

    connect_timeout: timedelta | None = None
    command_timeout: timedelta | None = None
    max_reply_bytes: int = 64 * 2**20
    max_inflight_bytes: int = 64 * 2**20
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)

    def bounds(self, target: Target) -> Bounds:
        read = self.command_timeout or (LOCAL_TIMEOUT if target.is_local else REMOTE_READ_TIMEOUT)
        return Bounds(read, self.max_reply_bytes, self.max_inflight_bytes)

    def connecting(self, target: Target) -> float:
        limit = self.connect_timeout or (LOCAL_TIMEOUT if target.is_local else REMOTE_CONNECT_TIMEOUT)
        return limit.total_seconds()


class Link:
    """One server's connection, for as long as the store is open."""

    def __init__(
        self,
        route: Route,
        options: LinkOptions | None = None,
        *,
        counts: StoreCounts | None = None,
        needs_primary: bool = True,
    ) -> None:
        self.route = route
        self.options = options or LinkOptions()
        self.counts = counts or StoreCounts()
        self.breaker = Breaker(self.options.breaker, on_change=self._on_breaker)
        self.server = ServerInfo("", (), "")
        self._needs_primary = needs_primary
        self._connection: Connection | None = None
        self._reason = "the store is not open"
        self._lost = asyncio.Event()
        self._background = Background()
        self._connected_at = 0.0
        self._attempt = 0
        self._dedicated: set[Connection] = set()
        self.send: Callable[[tuple[Argument, ...]], Awaitable[Reply]] = self._refuse
        """Issue one command: the own method of the connection while calls are let through, so it costs one call."""

    # -- calls ---------------------------------------------------------------------------------------------------

    def send_many(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        """Issue commands together."""
        return self._live().send_many(commands)

    def send_transaction(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        """Issue commands between MULTI and EXEC."""
        return self._live().send_transaction(commands)

    @property
    def available(self) -> bool:
        """Whether the next call would be sent."""
        return self._connection is not None and not self.breaker.refusing

    def _live(self) -> Connection:
        connection = self._connection
        if connection is None or self.breaker.refusing:
            raise self._refusal()
        return connection

    def _refuse(self, command: tuple[Argument, ...]) -> Awaitable[Reply]:
        raise self._refusal()

    def _rewire(self) -> None:
        connection = self._connection
        self.send = self._refuse if connection is None or self.breaker.refusing else connection.send

    def _refusal(self) -> StoreUnavailable:
        if self._connection is None:
            return StoreUnavailable(self._reason)
        return StoreUnavailable("Redis did not answer lately; calls are refused until it does")

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and introduce oneself, then keep the connection. Safe to call on an open link."""
        if self._connection is not None:
            return
        await self._connect()
        self.breaker.close()
        self._background.keep("keep the connection", self._keep)
        self._background.keep("probe", lambda: self.breaker.watch(self._probe))

    async def close(self) -> None:
        """Close the connection and let go of the route."""
        await self._background.close()
        connection, self._connection = self._connection, None
        self._rewire()
        self._reason = "the store is closed"
        for open_connection in (connection, *self._dedicated):
            if open_connection is not None:
                open_connection.abort(self._reason)
        await self.route.close()

    async def retire(self) -> None:
        """Close once what is under way has been answered, or is late."""
        with suppress(StoreError):
            await self.send(("PING",))
        await self.close()

    def renew(self, reason: str) -> None:
        """Give this connection up and make another."""
        if self._connection is not None:
            self._connection.abort(reason)

    async def dedicated(
        self,
        timeout: timedelta,
        *,
        on_lost: Callable[[Connection, str], None] | None = None,
        on_push: Callable[[Connection, list[Any]], None] | None = None,
    ) -> Connection:
        """A connection of its own, introduced. The caller closes it with `abort`.

        `timeout` is how long a command on it may take; connecting takes no longer than it does otherwise. With
        `on_push` it speaks RESP3, gives what the server sends unasked to that, and counts for nothing in `counts`.
        """

        def lost(connection: Connection, reason: str) -> None:
            self._dedicated.discard(connection)
            if on_lost is not None:
                on_lost(connection, reason)

        target = await self.route.resolve()
        connection = await self._dial(
            target, self.options.bounds(target), on_lost=lost, on_timeout=_nothing, on_push=on_push
        )
        self._dedicated.add(connection)
        try:
            await self._introduce(connection, target, protocol="2" if on_push is None else "3")
        except BaseException:
            connection.abort("the server did not accept the connection")
            raise
        connection.set_timeout(timeout)
        return connection

    async def _keep(self) -> None:
        while True:
            await self._lost.wait()
            if self._attempt:
                await asyncio.sleep(full_jitter(self._attempt, first=FIRST_PAUSE_S, longest=LONGEST_PAUSE_S))
            self._attempt += 1
            try:
                await self._connect()
            except CountersealError as error:
                self._reason = str(error)
                continue
            self.counts.reconnects += 1
            self.breaker.close()
            logger.info("Redis is connected again")

    async def _connect(self) -> None:
        target = await self.route.resolve()
        connection = await self._dial(
            target, self.options.bounds(target), on_lost=self._on_lost, on_timeout=self._on_timeout
        )
        try:
            self.server = await self._introduce(connection, target)
        except BaseException:
            connection.abort("the server did not accept the connection")
            raise
        self._lost.clear()
        self._connection = connection
        self._rewire()
        self._connected_at = asyncio.get_running_loop().time()
        if connection.closed:
            self._on_lost(connection, "the connection to Redis was lost")

    async def _dial(
        self,
        target: Target,
        bounds: Bounds,
        *,
        on_lost: Callable[[Connection, str], None],
        on_timeout: Callable[[], None],
        on_push: Callable[[Connection, list[Any]], None] | None = None,
    ) -> Connection:
        loop = asyncio.get_running_loop()
        counts = self.counts if on_push is None else StoreCounts()

        def make() -> Connection:
            return Connection(
                bounds,
                counts=counts,
                on_lost=on_lost,
                on_timeout=on_timeout,
                on_error=self._on_error,
                on_push=on_push,
            )

        limit = self.options.connecting(target)
        try:
            if target.path is not None:
                dialing = loop.create_unix_connection(make, target.path)
            else:
                dialing = loop.create_connection(
                    make, target.host, target.port, ssl=target.tls.context if target.tls else None
                )
            _, connection = await _within(limit, dialing)
        except ssl.SSLError as error:
            raise untrusted(error) from error
        except TimeoutError as error:
            raise StoreTimeout(
                f"Redis accepted no {'TLS ' if target.tls else ''}connection within {round(limit * 1000)} ms"
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"Redis can't be reached: {_cause(error)}") from error
        except ValueError as error:
            raise ConfigurationError(
                "REDIS_URL: expected a host that can be looked up; it is no host name"
            ) from error
        return connection

    async def _introduce(self, connection: Connection, target: Target, *, protocol: str = "2") -> ServerInfo:
        hello: list[str] = ["HELLO", protocol]
        if target.password is not None or target.username is not None:
            password = target.password.get_secret_value() if target.password else ""
            hello += ["AUTH", target.username or "default", password]
        hello += ["SETNAME", CLIENT_NAME]
        commands: list[Command] = [hello]
        if target.database:
            commands.append(("SELECT", target.database))
        try:
            first, *others = await connection.send_many(commands)
        except StoreUnavailable as error:
            if connection.closed and not connection.heard and target.tls is None:
                raise StoreUnavailable(
                    "Redis ended the connection without a word; if it expects TLS, REDIS_URL begins with rediss://"
                ) from error
            raise
        if isinstance(first, CommandError):
            raise _refused(first)
        for reply in others:
            if isinstance(reply, CommandError):
                raise ConfigurationError(
                    f"REDIS_URL: expected a database that the server has; it refused number {target.database}"
                )
        return self._understand(first)

    def _understand(self, hello: Reply | dict[bytes, Reply]) -> ServerInfo:
        if isinstance(hello, list):
            pairs = zip(hello[::2], hello[1::2], strict=False)
        else:
            pairs = hello.items() if isinstance(hello, dict) else ()  # in RESP3 it is a map
        said = {
            name.decode(): value.decode("utf-8", "replace")
            for name, value in pairs
            if isinstance(name, bytes) and isinstance(value, bytes)
        }
        product = said.get("server", "redis")
        version = tuple(int(part) for part in said.get("version", "").split(".") if part.isdecimal())
        if said.get("mode") == "sentinel":
            raise ConfigurationError(
                "REDIS_URL: expected a Redis server; came: a Sentinel, whose URL begins with redis+sentinel://"
            )
        least = MINIMUM_VERSIONS.get(product, (0,))
        if version and version < least:
            raise too_old(product, version)
        if self._needs_primary and said.get("role", "master") != "master":
            raise StoreUnavailable("the server is a replica, which takes no writes")
        return ServerInfo(product, version, said.get("mode", "standalone"))

    async def _probe(self) -> None:
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(self._reason)
        await connection.send(("PING",))

    # -- what a connection reports -------------------------------------------------------------------------------

    def _on_lost(self, connection: Connection, reason: str) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._rewire()
        self._reason = reason
        if asyncio.get_running_loop().time() - self._connected_at > _STEADY_AFTER:
            self._attempt = 0
        self.counts.failures += 1
        self._lost.set()
        logger.warning("Redis is not available: %s", reason)

    def _on_breaker(self) -> None:
        self._rewire()
        if self.breaker.refusing:
            logger.warning("Redis does not answer in time: calls are refused until it does")
        else:
            logger.info("Redis answers again: calls are let through")

    def _on_timeout(self) -> None:
        connection = self._connection
        if connection is None:
            return  # of an introduction: no call was failed
        self.breaker.failed()
        if connection.silent_for > _DEAD_AFTER:
            connection.abort("Redis has been silent for too long")

    def _on_error(self, error: CommandError) -> None:
        if error.kind == "READONLY" and self._needs_primary:
            asyncio.get_running_loop().call_soon(self.renew, "the server became a replica")


def too_old(product: str, version: tuple[int, ...]) -> ConfigurationError:
    """The error for a server below the least version."""
    least = " or ".join(
        f"{name.title()} {'.'.join(map(str, number))}" for name, number in MINIMUM_VERSIONS.items()
    )
    came = ".".join(map(str, version)) or "without HELLO"
    return ConfigurationError(f"REDIS_URL: expected {least} or newer; came: {product.title()} {came}")


def _refused(error: CommandError) -> CountersealError:
    """What a refused introduction means."""
    text = str(error)
    if error.kind == "WRONGPASS":
        return ConfigurationError(
            "REDIS_URL: expected a user and password that the server accepts; it refused them"
        )
    if error.kind == "NOAUTH":
        return ConfigurationError("REDIS_URL: expected the server's password; none is given")
    if "max number of clients" in text:
        return StoreUnavailable(NO_ROOM)
    if error.kind in NOT_NOW:
        return StoreUnavailable(f"Redis can't serve now ({error.kind})")
    if "unknown command" in text:
        return too_old("redis", ())
    return ConfigurationError(
        f"REDIS_URL: expected a server that lets counterseal in; it answered {error.kind}"
    )


async def _within(seconds: float, dialing: Coroutine[Any, Any, Dialed]) -> Dialed:
    """Wait for a connection. Time in which this loop itself stood still is not held against the server.

    A connection that comes although nobody waits for it any more is closed.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(dialing)
    try:
        while not task.done():
            started = loop.time()
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if not done and loop.time() - started < seconds + _PUNCTUAL:
                raise TimeoutError  # noqa: TRY301 - handled with every other way out
    except BaseException:
        task.cancel()
        task.add_done_callback(_discard)
        raise
    return task.result()


def _discard(task: asyncio.Task[Dialed]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()


def untrusted(error: ssl.SSLError) -> ConfigurationError:
    """The error for a server whose TLS or certificate can't be accepted."""
    cause = getattr(error, "verify_message", "") or error.reason or "a failed handshake"
    return ConfigurationError(f"REDIS_URL: expected a TLS server with a valid certificate; came: {cause}")


def _cause(error: OSError) -> str:
    """Why a server can't be reached, without its address."""
    if isinstance(error, socket.gaierror):
        return "the host name can't be resolved"
    return os.strerror(error.errno).lower() if error.errno else "none of its addresses answers"


def _nothing() -> None:
    return
