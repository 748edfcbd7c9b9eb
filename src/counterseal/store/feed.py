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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from counterseal.core.background import end, full_jitter, wait_for_event
from counterseal.core.errors import (
    CommandError,
    CountersealError,
    StoreError,
    StoreUnavailable,
    SubscriberTooSlow,
)
from counterseal.store.base import Gap, Message, Subscription
from counterseal.store.connection import Connection
from counterseal.store.link import FIRST_PAUSE_S, LONGEST_PAUSE_S, Link, LinkOptions
from counterseal.store.route import Route
from counterseal.store.wire import Reply, in_time

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


class Listening(Protocol):
    """What an `Inbox` needs of whoever fills it."""

    async def add(self, inbox: Inbox) -> None:
        """Start to deliver. Returns when every channel is confirmed."""
        ...

    async def remove(self, inbox: Inbox) -> None:
        """Stop to deliver, and let channels go that nobody else listens to."""
        ...


class _Session:
    """One connection: how often it was asked for a channel without having confirmed, and whether it ever confirmed."""

    def __init__(
        self, *, on_push: Callable[[_Session, list[Any]], None], on_lost: Callable[[_Session], None]
    ) -> None:
        self.asked: Counter[str] = Counter()
        self.well = False
        self._on_push = on_push
        self._on_lost = on_lost
        self._connection: Connection | None = None
        self._lost = asyncio.Event()

    async def open(self, link: Link) -> None:
        """Connect. Raises what `Link.dedicated` does."""
        self._connection = await link.dedicated(
            timedelta(seconds=_ANSWER_WITHIN), on_lost=self._note_loss, on_push=self._take
        )

    def ask(self, channels: Sequence[str]) -> asyncio.Future[list[Reply]]:
        """Ask for channels, at once; `_refusal_of` reads what comes after they are confirmed."""
        self.asked.update(channels)
        return self._issue("SUBSCRIBE", channels)

    def leave(self, channels: Sequence[str]) -> None:
        """Let channels go, at once."""
        with suppress(StoreUnavailable):
            self._issue("UNSUBSCRIBE", channels).add_done_callback(lambda asking: asking.exception())

    async def watch(self) -> None:
        """Ask for a sign of life now and then. Raises `StoreUnavailable` once the connection is lost or silent."""
        connection = self._opened()
        while not connection.closed and not await wait_for_event(self._lost, _QUIET):
            try:
                await connection.send(("PING",))
            except CommandError:
                continue  # refused, but answered
            except StoreUnavailable:
                self.close("Redis has been silent for too long")
        raise StoreUnavailable("the connection to Redis was lost")

    def close(self, reason: str = "nobody listens any more") -> None:
        """Let the connection go. Safe to call twice, and before it came."""
        if self._connection is not None:
            self._connection.abort(reason)

    def _opened(self) -> Connection:
        if self._connection is None:
            raise StoreUnavailable("there is no connection to Redis")
        return self._connection

    def _issue(self, name: str, channels: Sequence[str]) -> asyncio.Future[list[Reply]]:
        return self._opened().send_pushed((name, *channels))

    def _take(self, connection: Connection, push: list[Any]) -> None:
        try:
            self._on_push(self, push)
        except Exception:
            logger.exception("what arrived on the pub/sub connection could not be told")
            connection.abort("a message could not be told")

    def _note_loss(self, connection: Connection, reason: str) -> None:
        self._lost.set()
        self._on_lost(self)


class Feed:
    """Pub/sub over the native protocol, on a connection of its own that one task keeps.

    What arrives is put into the queues of its listeners as it is read.
    """

    def __init__(self, route: Route) -> None:
        within = timedelta(seconds=_ANSWER_WITHIN)
        self._link = Link(
            route, LinkOptions(connect_timeout=within, command_timeout=within), needs_primary=False
        )
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
            self._session.leave(gone)

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
            self._ask(self._session, new)
        _, late = await asyncio.wait(waiting, timeout=2 * _ANSWER_WITHIN)
        if late:
            raise StoreUnavailable("Redis did not confirm the subscription in time")
        for confirmed in waiting:
            if (refused := confirmed.result()) is not None:
                raise refused

    def _ask(self, session: _Session, channels: Sequence[str]) -> None:
        """Ask for more channels. Nobody waits for it, so that no cancellation hides from others what becomes of it."""
        with suppress(StoreUnavailable):  # the reader asks for them on the next one
            session.ask(channels).add_done_callback(partial(self._note_answer, session, channels))

    def _note_answer(
        self, session: _Session, channels: Sequence[str], asking: asyncio.Future[list[Reply]]
    ) -> None:
        """Where channels are refused, whoever waits for them is; others are not concerned."""
        if asking.exception() is not None:
            session.close()  # the reader asks for them on the next one
        elif (refusal := _refusal_of(asking.result())) is not None:
            session.asked.subtract(channels)
            self._refuse_waiting(refusal, channels)

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
            session = _Session(on_push=self._take, on_lost=self._note_end)
            try:
                await self._listen(session)
            except Exception as error:
                if not isinstance(error, CountersealError):
                    logger.exception("the pub/sub connection met an unexpected error")
                if session.well:
                    attempt = 0
                if not session.well or isinstance(error, CommandError):
                    self._refuse_waiting(error, tuple(self._confirmed))
                attempt += 1
                await asyncio.sleep(full_jitter(attempt, first=FIRST_PAUSE_S, longest=LONGEST_PAUSE_S))

    async def _listen(self, session: _Session) -> None:
        """Ask for every channel on a new connection, and keep it until it is lost. Raises what ended it."""
        try:
            await session.open(self._link)
            self._session = session  # whoever comes from now on asks on it
            if (refusal := _refusal_of(await session.ask(tuple(self._inboxes)))) is not None:
                raise refusal
            await session.watch()
        finally:
            session.close()
            if self._session is session:
                self._session = None

    def _note_end(self, session: _Session) -> None:
        """A connection was lost: at once whoever listened on it is told."""
        if self._session is session:
            self._session = None
            if session.well:
                self._note_loss()

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

    def _refuse_waiting(self, error: Exception, channels: Sequence[str]) -> None:
        """No connection could be made, or its user may not listen: refuse those who wait to be let in."""
        refusal = error if isinstance(error, CommandError) else StoreUnavailable("Redis can't be listened to")
        loop = asyncio.get_running_loop()
        for channel in channels:
            confirmed = self._confirmed.get(channel)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(refusal)
                self._confirmed[channel] = loop.create_future()

    def _take(self, session: _Session, push: list[Any]) -> None:
        """What the server sends unasked."""
        kind = push[0]
        if self._session is not session:
            return
        if kind == b"message":
            message = Message(push[1].decode(), push[2])
            for inbox in self._inboxes.get(message.channel, ()):
                inbox.put(message)
        elif kind == b"subscribe":
            self._confirm(session, push[1].decode())

    def _confirm(self, session: _Session, channel: str) -> None:
        """A channel is listened to. Let those in who wait for it; tell of the gap whoever has all channels back."""
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


def _refusal_of(replies: Sequence[Reply]) -> StoreError | None:
    """Why a SUBSCRIBE was refused, from its replies, of which the last one is of the PING; None when it was not."""
    return next((in_time(reply) for reply in replies[:-1] if isinstance(reply, CommandError)), None)
