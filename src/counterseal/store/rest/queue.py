"""RequestQueue: commands that wait for a request, and the bounds of what is under way.

What is issued in one turn of the event loop leaves as one request. While as many requests are under way as may be, what
is issued gathers, and leaves together with the next that is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from counterseal.core.background import end
from counterseal.core.errors import CommandError, StoreBusy, StoreError, StoreUnavailable
from counterseal.store.base import StoreCounts
from counterseal.store.breaker import Breaker
from counterseal.store.rest.client import RestBounds, RestClient, patience
from counterseal.store.rest.wire import decode_error, decode_item, decode_items
from counterseal.store.room import Room
from counterseal.store.wire import Reply, in_time

T = TypeVar("T")

MAX_COMMANDS = 1000
MAX_REQUEST_BYTES = 8 * 2**20
"""A request is closed at so many commands or bytes; the service takes 10 MB."""

_ANSWERED = frozenset((200, 400, 403, 404, 413, 429))
_BUSY = "too many requests are under way to Redis; nothing was sent"


class _Call:
    """Commands that wait for their request: one, whose reply is handed over, or several, as a list."""

    __slots__ = ("future", "issued_at", "rows", "single", "size")

    def __init__(
        self, rows: list[bytes], future: asyncio.Future[Any], issued_at: float, *, single: bool
    ) -> None:
        self.rows = rows
        self.size = sum(map(len, rows))
        self.future = future
        self.issued_at = issued_at
        self.single = single

    def succeed(self, replies: list[Reply]) -> None:
        if self.future.done():
            return
        if not self.single:
            self.future.set_result(replies)
        elif isinstance(replies[0], CommandError):
            self.future.set_exception(in_time(replies[0]))
        else:
            self.future.set_result(replies[0])

    def fail(self, error: StoreError) -> None:
        if not self.future.done():
            self.future.set_exception(type(error)(str(error)))


class RequestQueue:
    """Sends what is issued, in as few requests as it can. Usable between `open` and `close`."""

    def __init__(
        self, client: RestClient, bounds: RestBounds, *, breaker: Breaker, counts: StoreCounts
    ) -> None:
        self._client = client
        self._breaker = breaker
        self._counts = counts
        self._timeout = bounds.timeout.total_seconds()
        self._calls: deque[_Call] = deque()
        self._gathering = False
        self._slots = asyncio.Semaphore(bounds.max_requests)
        self._room = Room(bounds.max_inflight_bytes)
        self._running: set[asyncio.Task[Any]] = set()
        self._open = False

    @property
    def available(self) -> bool:
        """Whether the next call would be sent."""
        return self._open and not self._breaker.refusing

    def open(self) -> None:
        """Take calls from now on."""
        self._open = True

    async def close(self) -> None:
        """End the requests under way. Every call that waits fails with `StoreUnavailable`."""
        self._open = False
        await end(self._running)
        self._gathering = False
        while self._calls:
            call = self._calls.popleft()
            self._room.taken -= call.size
            call.fail(StoreUnavailable("the store is closed"))
        self._room.close("the store is closed")

    def issue(self, rows: list[bytes], *, single: bool) -> Awaitable[Any]:
        """Send encoded commands with whatever else leaves now: one reply, or a list that holds errors as items."""
        self._refuse_when_down()
        loop = asyncio.get_running_loop()
        call = _Call(rows, loop.create_future(), loop.time(), single=single)
        if self._room.full:
            return self._enqueue_with_room(call)
        return self._enqueue(call)

    async def post(self, target: str, body: bytes, *, commands: int) -> tuple[int, bytes]:
        """A request that nothing else shares, when its turn comes: the status and the body of its answer."""
        self._refuse_when_down()
        request = self._run(self._post(target, body, commands))
        try:
            return await request
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._open or (task is not None and task.cancelling()):
                raise
            raise StoreUnavailable("the store is closed") from None

    async def _post(self, target: str, body: bytes, commands: int) -> tuple[int, bytes]:
        if self._room.full:
            await self._room.wait(len(body), self._timeout)
        self._room.taken += len(body)
        try:
            try:
                async with patience(self._timeout):
                    await self._slots.acquire()
            except TimeoutError:
                raise StoreBusy(_BUSY) from None
            try:
                return await self._request(target, body, commands)
            finally:
                self._slots.release()
        finally:
            self._room.free(len(body))

    def _run(self, request: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin a request that `close` can end."""
        task = asyncio.create_task(request)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    # -- commands that gather ------------------------------------------------------------------------------------

    def _enqueue(self, call: _Call) -> asyncio.Future[Any]:
        self._room.taken += call.size
        self._calls.append(call)
        self._gather()
        return call.future

    async def _enqueue_with_room(self, call: _Call) -> Any:
        await self._room.wait(call.size, self._timeout)
        self._refuse_when_down()
        return await self._enqueue(call)

    def _gather(self) -> None:
        """See to it that somebody waits for a slot, to take what has gathered by then."""
        if not self._gathering:
            self._gathering = True
            self._run(self._send_batch())

    async def _send_batch(self) -> None:
        batch: list[_Call] = []
        had_to_wait = self._slots.locked()
        try:
            async with self._slots:
                self._gathering = False
                batch = self._take()
                if self._calls:
                    self._gather()
                await self._exchange(self._in_time(batch) if had_to_wait else batch)
        except asyncio.CancelledError:
            for call in batch:
                call.fail(StoreUnavailable("the store is closed"))
            raise
        finally:
            self._room.free(sum(call.size for call in batch))

    def _take(self) -> list[_Call]:
        batch: list[_Call] = []
        commands = size = 0
        while self._calls:
            call = self._calls[0]
            commands += len(call.rows)
            size += call.size
            if batch and (commands > MAX_COMMANDS or size > MAX_REQUEST_BYTES):
                break
            batch.append(self._calls.popleft())
        return batch

    def _in_time(self, batch: list[_Call]) -> list[_Call]:
        """The calls that did not wait for their request longer than they would for a reply; the others fail."""
        oldest = asyncio.get_running_loop().time() - self._timeout
        for call in batch:
            if call.issued_at < oldest:
                call.fail(StoreBusy(_BUSY))
        return batch

    async def _exchange(self, batch: list[_Call]) -> None:
        """Send a batch as one request and hand out its replies. Who gave up meanwhile is left out."""
        sent = [call for call in batch if not call.future.done()]
        if not sent:
            return
        rows = [row for call in sent for row in call.rows]
        try:
            self._refuse_when_down()
            replies = iter(await self._exchange_rows(rows))
        except StoreError as error:
            for call in sent:
                call.fail(error)
            return
        for call in sent:
            call.succeed([next(replies) for _ in call.rows])

    async def _exchange_rows(self, rows: list[bytes]) -> list[Reply]:
        if len(rows) == 1:
            _, body = await self._request("/", rows[0], 1)
            return [decode_item(body)]
        status, body = await self._request("/pipeline", b"[%b]" % b",".join(rows), len(rows))
        if status != 200:
            refused = decode_error(body) or ""
            return [CommandError(refused) for _ in rows]
        return decode_items(body, len(rows))

    async def _request(self, target: str, body: bytes, commands: int) -> tuple[int, bytes]:
        self._counts.commands += commands
        try:
            return await self._client.post(target, body, answered=_ANSWERED)
        except StoreUnavailable:
            self._counts.failures += 1
            self._breaker.failed()
            raise

    def _refuse_when_down(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is not open")
        if self._breaker.refusing:
            raise StoreUnavailable("Redis did not answer lately; calls are refused until it does")
