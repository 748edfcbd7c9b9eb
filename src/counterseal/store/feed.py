"""Feed: one pub/sub connection for all listeners of a store, with reconnect.

The connection is made for the first subscription and let go with the last. Each subscription has a bounded queue of its
own: a slow reader is cut off and holds nobody up. A silent server is asked by PING every few seconds; a lost connection
is replaced with full-jitter back-off, every channel is asked for again, and each subscription is told by a `Gap`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from counterseal.core.errors import CountersealError, StoreUnavailable, SubscriberTooSlow
from counterseal.store.base import Gap, Message, Subscription
from counterseal.store.route import Route
from counterseal.store.target import Target

_QUIET = 5.0
_ANSWER_WITHIN = 1.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


class Inbox(Subscription):
    """One listener's messages, bounded."""

    def __init__(self, feed: Listening, channels: Sequence[str], *, limit: int) -> None:
        if not channels:
            raise ValueError("expected at least one channel to listen to")
        if limit < 1:
            raise ValueError("expected room for at least one message")
        self.channels = tuple(dict.fromkeys(channels))
        self._feed = feed
        self._limit = limit
        self._queue: asyncio.Queue[Message | Gap | None] = asyncio.Queue()
        self._end: CountersealError | None = None

    async def __aenter__(self) -> AsyncIterator[Message | Gap]:
        await self._feed.add(self)
        return self._messages()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._feed.remove(self)

    def put(self, item: Message | Gap) -> None:
        """Hand in a message. One too many ends the subscription: what is queued is still read, then it raises."""
        if self._end is not None:
            return
        if self._queue.qsize() >= self._limit:
            self.end(SubscriberTooSlow(f"more than {self._limit} messages were waiting to be read"))
            return
        self._queue.put_nowait(item)

    def end(self, error: CountersealError) -> None:
        """Let the reader have what is queued, then raise this."""
        if self._end is None:
            self._end = error
            self._queue.put_nowait(None)

    async def _messages(self) -> AsyncIterator[Message | Gap]:
        while True:
            item = await self._queue.get()
            if item is None:
                if self._end is not None:
                    raise self._end
                return
            yield item


class PubSub(Protocol):
    """What is used of redis-py's `PubSub`, whose own annotations leave its arguments open."""

    async def subscribe(self, *channels: str) -> object: ...

    async def unsubscribe(self, *channels: str) -> object: ...

    async def ping(self) -> object: ...

    async def get_message(self, *, timeout: float) -> dict[str, Any] | None: ...

    async def aclose(self) -> None: ...


class Listening(Protocol):
    """What an `Inbox` needs of whoever fills it."""

    async def add(self, inbox: Inbox) -> None:
        """Start to deliver. Returns when every channel is confirmed."""
        ...

    async def remove(self, inbox: Inbox) -> None:
        """Stop to deliver, and let channels go that nobody else listens to."""
        ...


class Feed:
    """Pub/sub over the native protocol, by redis-py, on a connection of its own."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._inboxes: dict[str, set[Inbox]] = {}
        self._confirmed: dict[str, asyncio.Future[None]] = {}
        self._client: Redis | None = None
        self._pubsub: PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    def subscribe(self, channels: Sequence[str], *, limit: int) -> Subscription:
        """A subscription that begins when it is entered."""
        return Inbox(self, channels, limit=limit)

    async def add(self, inbox: Inbox) -> None:
        async with self._changing:
            new = [channel for channel in inbox.channels if channel not in self._inboxes]
            for channel in inbox.channels:
                self._inboxes.setdefault(channel, set()).add(inbox)
            try:
                await self._begin(new)
            except BaseException:
                self._forget(inbox)
                raise

    async def remove(self, inbox: Inbox) -> None:
        async with self._changing:
            gone = self._forget(inbox)
            if not self._inboxes:
                await self._stop()
            elif gone and self._pubsub is not None:
                try:
                    await self._pubsub.unsubscribe(*gone)
                except (RedisError, OSError):
                    return

    async def close(self) -> None:
        """End every subscription and the connection."""
        for inbox in self._all():
            inbox.end(StoreUnavailable("the store is closed"))
        self._inboxes.clear()
        await self._stop()

    def _forget(self, inbox: Inbox) -> list[str]:
        gone: list[str] = []
        for channel in inbox.channels:
            listeners = self._inboxes.get(channel)
            if listeners is None:
                continue
            listeners.discard(inbox)
            if not listeners:
                del self._inboxes[channel]
                self._confirmed.pop(channel, None)
                gone.append(channel)
        return gone

    async def _begin(self, channels: list[str]) -> None:
        loop = asyncio.get_running_loop()
        for channel in channels:
            self._confirmed[channel] = loop.create_future()
        waiting = [self._confirmed[channel] for channel in channels]
        if self._reader is None:
            await self._connect(channels)
            self._reader = asyncio.create_task(self._read(), name="counterseal: pub/sub")
        elif self._pubsub is not None and channels:
            try:
                await self._pubsub.subscribe(*channels)
            except (RedisError, OSError) as error:
                raise StoreUnavailable("Redis can't be listened to") from error
        try:
            async with asyncio.timeout(_ANSWER_WITHIN * 2):
                await asyncio.gather(*waiting)
        except TimeoutError as error:
            raise StoreUnavailable("Redis did not confirm the subscription in time") from error

    async def _connect(self, channels: Iterable[str]) -> None:
        target = await self._route.resolve()
        client = _client(target)
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                pubsub = cast("PubSub", client.pubsub())  # pyright: ignore[reportUnknownMemberType]
                await pubsub.subscribe(*channels)
        except TimeoutError as error:
            await client.aclose()
            raise StoreUnavailable("Redis did not answer in time") from error
        except (RedisError, OSError) as error:
            await client.aclose()
            raise StoreUnavailable("Redis can't be listened to") from error
        self._client, self._pubsub = client, pubsub

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        pubsub, self._pubsub = self._pubsub, None
        try:
            if pubsub is not None:
                await pubsub.aclose()
            if client is not None:
                await client.aclose()
        except (RedisError, OSError):
            return

    async def _stop(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await self._disconnect()
        for confirmed in self._confirmed.values():
            if not confirmed.done():
                confirmed.set_exception(StoreUnavailable("the store is closed"))
        self._confirmed.clear()

    def _all(self) -> set[Inbox]:
        return {inbox for inboxes in self._inboxes.values() for inbox in inboxes}

    def _tell_gap(self) -> None:
        """Tell those who were listening before; who is only being added has missed nothing."""
        for inbox in self._all():
            if all(self._confirmed[channel].done() for channel in inbox.channels):
                inbox.put(Gap(inbox.channels))

    async def _read(self) -> None:
        attempt = 0
        while True:
            try:
                if self._pubsub is None:
                    await self._connect(list(self._inboxes))
                    self._tell_gap()
                attempt = 0
                await self._deliver()
            except (RedisError, OSError, CountersealError):
                await self._disconnect()
                longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
                attempt = min(attempt + 1, 16)
                await asyncio.sleep(random.random() * longest)  # noqa: S311 - spreads reconnects, protects nothing

    async def _deliver(self) -> None:
        """Take what arrives until the connection is lost, or silent although it was asked."""
        asked = False
        while True:
            pubsub = self._pubsub
            if pubsub is None:
                return
            wait = _ANSWER_WITHIN if asked else _QUIET
            item = await pubsub.get_message(timeout=wait)
            if item is None:
                if asked:
                    raise StoreUnavailable("Redis has been silent for too long")
                await pubsub.ping()
                asked = True
                continue
            asked = False
            self._dispatch(item)

    def _dispatch(self, item: dict[str, Any]) -> None:
        if item["type"] not in ("message", "subscribe"):
            return
        channel = cast("bytes", item["channel"]).decode()
        if item["type"] == "subscribe":
            confirmed = self._confirmed.get(channel)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(None)
            return
        message = Message(channel, cast("bytes", item["data"]))
        for inbox in self._inboxes.get(channel, ()):
            inbox.put(message)


def _client(target: Target) -> Redis:
    """A redis-py client for one connection, which neither retries nor waits for long."""
    options: dict[str, Any] = {
        "db": target.database,
        "username": target.username,
        "password": target.password.get_secret_value() if target.password else None,
        "socket_connect_timeout": _ANSWER_WITHIN,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "max_connections": 1,
    }
    if target.path is not None:
        pool = ConnectionPool(connection_class=UnixDomainSocketConnection, path=target.path, **options)
    elif target.tls is not None:
        options.update(target.tls.options)
        pool = ConnectionPool(connection_class=SSLConnection, host=target.host, port=target.port, **options)
    else:
        pool = ConnectionPool(connection_class=RedisConnection, host=target.host, port=target.port, **options)
    return Redis.from_pool(pool)
