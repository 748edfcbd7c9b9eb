"""RestFeed: subscriptions over server-sent events, one request for each, with reconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from urllib.parse import quote

from counterseal.core.background import end, full_jitter
from counterseal.core.errors import (
    CountersealError,
    ReplyTooLarge,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from counterseal.store.base import Gap, Message, StoreCounts, Subscription
from counterseal.store.feed import Inbox
from counterseal.store.rest.client import RestBounds, RestClient, patience

_GAP = b": gap"
_SILENCE = 45.0
"""Seconds without a word after which a service that sends comments is taken for gone: three of its keep-alives."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


class RestFeed:
    """Pub/sub over REST. Every subscription holds one request open."""

    def __init__(self, client: RestClient, bounds: RestBounds, *, counts: StoreCounts) -> None:
        self._client = client
        self._timeout = bounds.timeout.total_seconds()
        self._max_bytes = bounds.max_reply_bytes
        self._counts = counts
        self._listeners: dict[Inbox, asyncio.Task[None]] = {}

    def subscribe(
        self, channels: Sequence[str], *, limit: int, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        """A subscription that begins when it is entered."""
        return Inbox(self, channels, limit=limit, on_loss=on_loss)

    async def add(self, inbox: Inbox) -> None:
        """Begin to listen. Returns when every channel is confirmed."""
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listeners[inbox] = asyncio.create_task(
            self._listen(inbox, confirmed), name="counterseal: REST subscription"
        )
        try:
            async with patience(self._timeout * 2):
                await confirmed
        except TimeoutError as error:
            await self.remove(inbox)
            raise StoreTimeout("the Redis REST service did not confirm the subscription in time") from error
        except BaseException:
            await self.remove(inbox)
            raise

    async def remove(self, inbox: Inbox) -> None:
        """Let a subscription go."""
        listener = self._listeners.pop(inbox, None)
        if listener is not None:
            await end((listener,))

    async def close(self) -> None:
        """End every subscription."""
        for inbox in tuple(self._listeners):
            inbox.end(StoreUnavailable("the store is closed"))
            await self.remove(inbox)

    async def _listen(self, inbox: Inbox, confirmed: asyncio.Future[None]) -> None:
        """Deliver until the service refuses; a lost connection is replaced, with full-jitter back-off."""
        attempt = 0
        listening = False
        stream = _Stream(inbox.channels, max_bytes=self._max_bytes, confirm_within=self._timeout)
        target = "/subscribe/" + "/".join(
            quote(channel, safe="").replace(".", "%2E") for channel in inbox.channels
        )
        while True:
            try:
                async with self._client.stream(target) as pieces:
                    async for item in stream.items(pieces):
                        if item is not None:
                            if isinstance(item, Gap):  # the service's own connection was lost, and is back
                                inbox.lose()
                            inbox.put(item)
                            continue
                        attempt = 0
                        listening = True
                        if confirmed.done():
                            self._counts.reconnects += 1
                            inbox.put(Gap(inbox.channels))
                        else:
                            confirmed.set_result(None)
                lost: CountersealError = StoreUnavailable("the Redis REST service ended the stream")
            except StoreError as error:
                lost = error
            if listening:
                listening = False
                inbox.lose()
            if not confirmed.done():
                confirmed.set_exception(lost)
                return
            if not isinstance(lost, StoreUnavailable):
                inbox.end(lost)
                return
            attempt += 1
            await asyncio.sleep(full_jitter(attempt, first=_FIRST_PAUSE_S, longest=_LONGEST_PAUSE_S))


class _Stream:
    """Reads events: messages, gaps, and None once all channels are confirmed."""

    def __init__(self, channels: Sequence[str], *, max_bytes: int, confirm_within: float) -> None:
        self._channels = channels
        self._gap = Gap(tuple(channels))
        self._max_bytes = max_bytes
        self._confirm_within = confirm_within
        self._patience: float | None = None
        # A name may contain a comma: the longest that fits is meant.
        self._prefixes = [
            (b"message,%b," % channel.encode(), channel)
            for channel in sorted(channels, key=len, reverse=True)
        ]

    async def items(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[Message | Gap | None]:
        self._patience = self._confirm_within
        waiting = {b"subscribe,%b" % channel.encode() for channel in self._channels}
        data: list[bytes] = []
        size = 0
        async for line in self._lines(pieces):
            if line.startswith(b"data: "):
                data.append(line[6:])
                size += len(line)
                if size > self._max_bytes:
                    raise ReplyTooLarge(f"a message is larger than {self._max_bytes} bytes")
            elif line == _GAP:
                yield self._gap
            elif not line and data:
                event, data, size = b"\n".join(data), [], 0
                if waiting and event.startswith(b"subscribe,"):
                    waiting.discard(event.rpartition(b",")[0])
                    if not waiting:
                        self._patience = None
                        yield None
                elif (message := self._message(event)) is not None:
                    yield message

    async def _lines(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Lines without their ends. A service that sends comments is given up when it falls silent."""
        rest = b""
        while True:
            try:
                async with patience(self._patience):
                    piece = await anext(pieces, None)
            except TimeoutError as error:
                raise StoreUnavailable("the Redis REST service has been silent for too long") from error
            if piece is None:
                return
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > self._max_bytes:
                raise ReplyTooLarge(f"a message is larger than {self._max_bytes} bytes")
            for line in lines:
                if line.startswith(b":") and self._patience is None:
                    self._patience = _SILENCE
                yield line

    def _message(self, event: bytes) -> Message | None:
        for prefix, channel in self._prefixes:
            if event.startswith(prefix):
                return Message(channel, event[len(prefix) :])
        return None
