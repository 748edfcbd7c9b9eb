"""Feed: one pub/sub connection for all listeners of a store, with reconnect.

The connection is made for the first subscription and let go with the last. Each subscription has a bounded queue of its
own: a slow reader is cut off and holds nobody up. A silent server is asked by PING every few seconds; a lost connection
is replaced with full-jitter back-off, every channel is asked for again, and each subscription is told by a `Gap` once
its channels are confirmed: what is published after the `Gap` arrives.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from counterseal.core.background import apart, end, full_jitter
from counterseal.core.errors import (
    CommandError,
    CountersealError,
    StoreError,
    StoreUnavailable,
    SubscriberTooSlow,
)
from counterseal.store.base import Gap, Message, Subscription
from counterseal.store.link import FIRST_PAUSE_S, LONGEST_PAUSE_S
from counterseal.store.route import Route
from counterseal.store.target import Target

logger = logging.getLogger(__name__)

_QUIET = 5.0
_ANSWER_WITHIN = 1.0


class Inbox(Subscription):
    """One listener's messages, bounded."""

    def __init__(
        self,
        feed: Listening,
        channels: Sequence[str],
        *,
        limit: int,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        if not channels:
            raise ValueError("expected at least one channel to listen to")
        if limit < 1:
            raise ValueError("expected room for at least one message")
        self.channels = tuple(dict.fromkeys(channels))
        self._feed = feed
        self._limit = limit
        self._on_loss = on_loss
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

    def lose(self) -> None:
        """The connection is known to be lost; a `Gap` follows when it is back."""
        if self._on_loss is not None and self._end is None:
            try:
                self._on_loss()
            except Exception:
                logger.exception("who was told of a lost pub/sub connection failed")

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


class _Session:
    """One connection: how often it was asked for a channel without having confirmed, and whether it ever confirmed.

    Commands are written one at a time, and none while the connection is closed: redis-py can't do two things at once.
    """

    def __init__(self, target: Target) -> None:
        self._client = _client(target)
        self._pubsub = cast("PubSub", self._client.pubsub())  # pyright: ignore[reportUnknownMemberType]
        self._writing = asyncio.Lock()
        self._closed = False
        self.asked: Counter[str] = Counter()
        self.well = False

    def ask(self, channels: Sequence[str]) -> Coroutine[Any, Any, None]:
        """Ask for channels. They count as asked for from the call on, before anything is sent."""
        self.asked.update(channels)
        return self._write(self._pubsub.subscribe, *channels)

    def leave(self, channels: Sequence[str]) -> Coroutine[Any, Any, None]:
        """Let channels go."""
        return self._write(self._pubsub.unsubscribe, *channels)

    def ping(self) -> Awaitable[object]:
        """Have the server say something."""
        return self._write(self._pubsub.ping)

    def next(self, within: float) -> Awaitable[dict[str, Any] | None]:
        """What arrives next; None when nothing does within so many seconds."""
        return self._pubsub.get_message(timeout=within)

    async def close(self) -> None:
        """Let the connection go, after what is being written, if that does not take too long."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_WITHIN), self._writing:
                pass
        try:
            await self._pubsub.aclose()
        finally:
            await self._client.aclose()

    async def _write(self, command: Callable[..., Awaitable[object]], *channels: str) -> None:
        async with self._writing:
            if self._closed:
                raise StoreUnavailable("the connection to Redis was lost")
            try:
                await command(*channels)
            except RuntimeError as error:  # by which uvloop says that the transport is closed
                raise StoreUnavailable("the connection to Redis was lost") from error


class Feed:
    """Pub/sub over the native protocol, by redis-py, on a connection of its own.

    One reader task owns the connection. What redis-py does runs there or in a task of its own, so that a caller's
    cancellation is never lost in it.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self._inboxes: dict[str, set[Inbox]] = {}
        self._confirmed: dict[str, asyncio.Future[StoreError | None]] = {}
        self._missed: set[Inbox] = set()
        self._session: _Session | None = None
        self._reader: asyncio.Task[None] | None = None
        self._open = False

    def open(self) -> None:
        """Let subscriptions begin from now on."""
        self._open = True

    def subscribe(
        self, channels: Sequence[str], *, limit: int, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        """A subscription that begins when it is entered."""
        return Inbox(self, channels, limit=limit, on_loss=on_loss)

    async def add(self, inbox: Inbox) -> None:
        try:
            await self._begin(inbox)
        except BaseException:
            await self.remove(inbox)
            raise

    async def remove(self, inbox: Inbox) -> None:
        gone: list[str] = []
        self._missed.discard(inbox)
        for channel in inbox.channels:
            listeners = self._inboxes.get(channel)
            if listeners is not None:
                listeners.discard(inbox)
                if not listeners:
                    del self._inboxes[channel]
                    self._confirmed.pop(channel, None)
                    gone.append(channel)
        if not self._inboxes:
            await self._stop()
        elif gone and self._session is not None:
            with suppress(StoreUnavailable):
                await _apart(self._session.leave(gone))

    async def close(self) -> None:
        """End every subscription and the connection."""
        self._open = False
        for inbox in self._all():
            inbox.end(StoreUnavailable("the store is closed"))
        self._inboxes.clear()
        self._missed.clear()
        for confirmed in self._confirmed.values():
            if not confirmed.done():
                confirmed.set_result(StoreUnavailable("the store is closed"))
        self._confirmed.clear()
        await self._stop()

    async def _begin(self, inbox: Inbox) -> None:
        """Ask for the channels that nobody listens to yet, and wait until all of them are confirmed."""
        if not self._open:
            raise StoreUnavailable("the store is not open")
        loop = asyncio.get_running_loop()
        new = [channel for channel in inbox.channels if channel not in self._inboxes]
        for channel in inbox.channels:
            self._inboxes.setdefault(channel, set()).add(inbox)
        for channel in new:
            self._confirmed[channel] = loop.create_future()
        waiting = [self._confirmed[channel] for channel in inbox.channels]
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="counterseal: pub/sub")
        elif self._session is not None and new:
            # When this fails the connection is lost: the reader sees that too, and asks for them on the next.
            with suppress(StoreUnavailable):
                await _apart(self._session.ask(new))
        _, late = await asyncio.wait(waiting, timeout=2 * _ANSWER_WITHIN)
        if late:
            raise StoreUnavailable("Redis did not confirm the subscription in time")
        for confirmed in waiting:
            if (refused := confirmed.result()) is not None:
                raise refused

    async def _stop(self) -> None:
        reader, self._reader = self._reader, None
        self._session = None
        if reader is not None:
            await end((reader,))

    def _all(self) -> set[Inbox]:
        return {inbox for inboxes in self._inboxes.values() for inbox in inboxes}

    # -- the reader's task ---------------------------------------------------------------------------------------

    async def _read(self) -> None:
        attempt = 0
        while self._inboxes:
            session: _Session | None = None
            try:
                async with self._connected() as session:
                    await self._deliver_until_lost(session)
            except Exception as error:
                if not isinstance(error, (RedisError, OSError, CountersealError)):
                    logger.exception("the pub/sub connection met an unexpected error")
                well = session is not None and session.well
                if well:
                    attempt = 0
                if not well or isinstance(error, NoPermissionError):
                    self._refuse_waiting(error)
                attempt += 1
                await asyncio.sleep(full_jitter(attempt, first=FIRST_PAUSE_S, longest=LONGEST_PAUSE_S))

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[_Session]:
        """A connection that was asked for every channel."""
        session = _Session(await self._route.resolve())
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                await session.ask(tuple(self._inboxes))
                self._session = session
                # Whoever came while this connected found no connection to ask on.
                if late := [channel for channel in self._inboxes if channel not in session.asked]:
                    await session.ask(late)
            yield session
        finally:
            if self._session is session:
                self._session = None
            with suppress(StoreUnavailable):
                await _apart(session.close())

    def _note_loss(self) -> None:
        """Who was listening has missed something. Every channel has to be confirmed anew."""
        lost = [
            inbox
            for inbox in self._all() - self._missed
            if all(self._confirmed[channel].done() for channel in inbox.channels)
        ]
        self._missed.update(lost)
        loop = asyncio.get_running_loop()
        for channel, confirmed in self._confirmed.items():
            if confirmed.done():
                self._confirmed[channel] = loop.create_future()
        for inbox in lost:
            inbox.lose()

    def _refuse_waiting(self, error: Exception) -> None:
        """No connection could be made, or its user may not listen: refuse those who wait to be let in."""
        loop = asyncio.get_running_loop()
        for channel, confirmed in self._confirmed.items():
            confirmed.set_result(_refusal(error))
            self._confirmed[channel] = loop.create_future()

    async def _deliver_until_lost(self, session: _Session) -> None:
        try:
            await self._deliver(session)
        except Exception:
            if session.well:
                self._note_loss()  # before the connection is let go, which takes time
            raise

    async def _deliver(self, session: _Session) -> None:
        """Take what arrives until the connection is lost, or silent although it was asked."""
        asked = False
        while True:
            item = await session.next(_ANSWER_WITHIN if asked else _QUIET)
            if item is None:
                if asked:
                    raise StoreUnavailable("Redis has been silent for too long")
                await session.ping()
            elif item["type"] == "subscribe":
                self._confirm(session, cast("bytes", item["channel"]).decode())
            elif item["type"] == "message":
                message = Message(cast("bytes", item["channel"]).decode(), cast("bytes", item["data"]))
                for inbox in self._inboxes.get(message.channel, ()):
                    inbox.put(message)
            asked = item is None

    def _confirm(self, session: _Session, channel: str) -> None:
        """A channel is listened to. Let those in who wait for it; tell of the gap whoever has all channels back."""
        if not session.asked[channel]:
            # redis-py has replaced the connection by itself, and what was published in between is lost.
            raise StoreUnavailable("the connection was replaced unseen")
        session.well = True
        session.asked[channel] -= 1
        confirmed = self._confirmed.get(channel)
        if session.asked[channel] or confirmed is None:
            return
        if not confirmed.done():
            confirmed.set_result(None)
        for inbox in tuple(self._missed):
            if all(self._confirmed[name].done() for name in inbox.channels):
                self._missed.discard(inbox)
                inbox.put(Gap(inbox.channels))


def _refusal(error: Exception) -> StoreError:
    if isinstance(error, NoPermissionError):
        return CommandError(f"NOPERM {error}")  # redis-py keeps the word for itself
    return StoreUnavailable("Redis can't be listened to")


async def _apart(asking: Coroutine[Any, Any, object]) -> None:
    try:
        await apart(asking)
    except (RedisError, OSError) as error:
        raise StoreUnavailable("Redis can't be listened to") from error


class _Once(Retry):
    """No second try. redis-py's own would, even without retries, connect again before it tells of a failure."""

    async def call_with_retry(
        self, do: Callable[[], Awaitable[Any]], *rest: object, **options: object
    ) -> Any:
        return await do()


def _client(target: Target) -> Redis:
    """A redis-py client for one connection, which neither retries nor waits for long."""
    options: dict[str, Any] = {
        "db": target.database,
        "username": target.username,
        "password": target.password.get_secret_value() if target.password else None,
        "socket_connect_timeout": _ANSWER_WITHIN,
        "retry": _Once(NoBackoff(), 0),
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
