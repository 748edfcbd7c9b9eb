"""Connection: one socket to a server, shared by every task of the process.

What is issued in one turn of the event loop leaves in one write; replies come back in the order of the commands and are
handed out one by one. A caller that gave up (cancelled, timed out) leaves its place in that order behind, so its reply
is dropped when it comes and nobody else's is moved.

**Time-out.** A reply is late when its server has been silent for `timeout` since the command left; on a connection that
keeps answering, a command waits at most `PATIENCE` times as long. Before anybody is failed the socket is read once
more, and time in which this process's own event loop stood still does not count.

**Bounds.** At most `max_inflight_bytes` of commands are unanswered; further callers wait for room, up to the time-out.
A reply of more than `max_reply_bytes` ends the connection: its caller gets `ReplyTooLarge`, the others
`StoreUnavailable`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, cast

from hiredis import HiredisError, PushNotification, Reader

from counterseal.core.errors import (
    CommandError,
    ReplyTooLarge,
    StoreBusy,
    StoreTimeout,
    StoreUnavailable,
)
from counterseal.store.base import StoreCounts
from counterseal.store.room import Room
from counterseal.store.wire import Argument, Command, Reply, aborted, error_reply, in_time, pack, pack_tuple

PATIENCE = 10
"""How many time-outs a command waits at most on a connection that does answer, only not yet this command."""

NO_ROOM = "Redis takes no more connections"

_NOTHING = object()
_ONE_TURN = 0.001


@dataclass(frozen=True, slots=True)
class Bounds:
    """Time and memory that a connection may take."""

    timeout: timedelta
    max_reply_bytes: int = 64 * 2**20
    max_inflight_bytes: int = 64 * 2**20


class _Collector:
    """Stands in the order of replies for a run of commands, and gathers theirs.

    What is `pushed` has one reply more when it was refused: else the server answers it by what it sends unasked.
    """

    __slots__ = ("future", "left", "pushed", "replies")

    def __init__(self, future: asyncio.Future[list[Reply]], left: int, *, pushed: bool = False) -> None:
        self.future = future
        self.left = left
        self.pushed = pushed
        self.replies: list[Reply] = []

    def take(self, reply: Reply) -> bool:
        """Add the next reply. True when it was the last."""
        self.replies.append(reply)
        if self.pushed and isinstance(reply, CommandError) and not _is_of_ping(reply):
            return False  # that of the PING follows
        self.left -= 1
        if self.left:
            return False
        if not self.future.done():
            self.future.set_result(self.replies)
        return True


class _Batch:
    """What left in one turn: how many entries of the order are still open, its bytes, when it was issued."""

    __slots__ = ("expired", "issued_at", "left", "size")

    def __init__(self, left: int, size: int, issued_at: float) -> None:
        self.left = left
        self.size = size
        self.issued_at = issued_at
        self.expired = False


class Connection(asyncio.Protocol):
    """A connected socket. Made by `Link`, which replaces it when it is lost."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        counts: StoreCounts,
        on_lost: Callable[[Connection, str], None],
        on_timeout: Callable[[], None],
        on_error: Callable[[CommandError], None],
        on_push: Callable[[Connection, list[Any]], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._call_soon = self._loop.call_soon
        self._create_future: Callable[[], asyncio.Future[Reply]] = self._loop.create_future
        self._bounds = bounds
        self._timeout = bounds.timeout.total_seconds()
        self._room = Room(bounds.max_inflight_bytes)
        self._counts = counts
        self._on_lost = on_lost
        self._on_timeout = on_timeout
        self._on_error = on_error
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(
            protocolError=HiredisError, replyError=cast("Any", error_reply), notEnoughData=_NOTHING
        )
        self._pending: deque[asyncio.Future[Reply] | _Collector] = deque()
        self._out: list[bytes] = []
        self._batches: deque[_Batch] = deque()
        self._partial = 0
        self._reads = 0
        self._heard_at = self._loop.time()
        self._late = 0.0
        self._reported_at = float("-inf")
        self._sweep_at = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed: str | None = None
        self._too_large = False

    # -- issuing -------------------------------------------------------------------------------------------------

    def send(self, command: tuple[Argument, ...]) -> Awaitable[Reply]:
        """Issue one command. Raises `TypeError` at once for an argument that can't be sent."""
        try:
            packed = pack_tuple(command)
        except (TypeError, UnicodeEncodeError):
            packed = pack(command)
        room = self._room
        if room.taken >= room.limit or room.waiting:
            return self._send_with_room(packed)
        if self._closed is not None:
            raise StoreUnavailable(self._closed)
        future = self._create_future()
        out = self._out
        if not out:
            self._call_soon(self._flush)
        out.append(packed)
        room.taken += len(packed)
        self._pending.append(future)
        return future

    def send_many(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        """Issue commands together, in order, and gather their replies. Errors are items of the answer."""
        return self._issue_many([pack(command) for command in commands])

    def send_pushed(self, command: Command) -> asyncio.Future[list[Reply]]:
        """Issue a command whose answer is pushed, as that of SUBSCRIBE; done after what it caused was pushed.

        A PING goes with it, which is answered last. A command that is refused answers two: its error comes first.
        """
        if self._closed is not None:
            raise StoreUnavailable(self._closed)
        collector = _Collector(self._loop.create_future(), 1, pushed=True)
        self._append(pack(command) + pack(("PING",)), collector)
        return collector.future

    async def send_transaction(self, commands: Sequence[Command]) -> list[Reply]:
        """MULTI, the commands and EXEC in one write. Raises `TransactionAborted` with the first cause."""
        packed = [pack(("MULTI",)), *(pack(command) for command in commands), pack(("EXEC",))]
        return executed(await self._issue_many(packed))

    async def _issue_many(self, packed: list[bytes]) -> list[Reply]:
        if not packed:
            return []
        joined = b"".join(packed)
        if self._room.full:
            await self._wait_for_room(len(joined))
        if self._closed is not None:
            raise StoreUnavailable(self._closed)
        collector = _Collector(self._loop.create_future(), len(packed))
        self._append(joined, collector)
        self._counts.commands += len(packed) - 1
        return await collector.future

    async def _send_with_room(self, packed: bytes) -> Reply:
        await self._wait_for_room(len(packed))
        if self._closed is not None:
            raise StoreUnavailable(self._closed)
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._append(packed, future)
        return await future

    def _append(self, packed: bytes, entry: asyncio.Future[Reply] | _Collector) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._room.taken += len(packed)
        self._pending.append(entry)

    async def _wait_for_room(self, size: int) -> None:
        if self._closed is not None:
            raise StoreUnavailable(self._closed)
        try:
            await self._room.wait(size, self._timeout)
        except StoreBusy:
            # Nothing new is sent while it is full, so nothing new grows late: a silent server shows here only.
            if self.silent_for > self._timeout:
                self._report_timeout()
            raise

    def _flush(self) -> None:
        """Write what this turn issued, in one go."""
        out, transport = self._out, self._transport
        if not out or transport is None or self._closed is not None:
            return
        entries = len(out)
        data = out[0] if entries == 1 else b"".join(out)
        out.clear()
        now = self._loop.time()
        self._batches.append(_Batch(entries, len(data), now - self._late))
        counts = self._counts
        counts.commands += entries
        counts.batches += 1
        counts.bytes_out += len(data)
        transport.write(data)
        if self._sweeper is None:
            self._arm(now + self._timeout)

    # -- replies -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: PLR0912 - the hot loop stays in one function
        """Hand out the replies that are complete."""
        if self._closed is not None:
            return
        self._heard_at = self._loop.time() - self._late
        self._reads += 1
        self._counts.bytes_in += len(data)
        pending: deque[Any] = self._pending
        gets: Callable[[], Any] = self._reader.gets
        answered = 0
        complete = False
        try:
            self._reader.feed(data)
            while (reply := gets()) is not _NOTHING:
                complete = True
                if reply.__class__ is PushNotification:
                    if self._on_push is not None:
                        self._on_push(self, reply)
                        if self._closed is not None:
                            return
                    continue
                if not pending:
                    self.abort(NO_ROOM if _is_full(reply) else "Redis sent a reply that nothing asked for")
                    return
                entry = pending[0]
                if entry.__class__ is _Collector:
                    if isinstance(reply, CommandError):
                        self._on_error(reply)
                    if entry.take(reply):
                        pending.popleft()
                        answered += 1
                    continue
                pending.popleft()
                answered += 1
                if isinstance(reply, CommandError):
                    self._on_error(reply)
                    if not entry.done():
                        entry.set_exception(in_time(reply))
                elif not entry.done():
                    entry.set_result(reply)
        except HiredisError:
            self.abort("Redis sent something that is not its protocol")
            return
        # What follows the last complete reply in this read is left out: it is one read at most.
        self._partial = 0 if complete else self._partial + len(data)
        if self._partial > self._bounds.max_reply_bytes:
            self._too_large = True
            self.abort(
                f"the connection was closed because a reply exceeded {self._bounds.max_reply_bytes} bytes"
            )
            return
        if answered:
            self._settle(answered)

    def _settle(self, answered: int) -> None:
        """Book answered entries off their batches, and let those in who wait for room."""
        batches = self._batches
        freed = 0
        while answered and batches:
            batch = batches[0]
            if batch.left > answered:
                batch.left -= answered
                break
            answered -= batch.left
            freed += batch.size
            batches.popleft()
        if freed:
            self._room.free(freed)

    # -- time-outs -----------------------------------------------------------------------------------------------

    def _arm(self, at: float) -> None:
        self._sweep_at = at
        self._sweeper = self._loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        """Look whether the oldest command is late; what this loop's own delay took is not held against it."""
        self._sweeper = None
        now = self._loop.time()
        self._late += max(0.0, now - self._sweep_at)
        due = self._due()
        if due is None:
            return
        if due > now:
            self._arm(due)
            return
        self._sweep_at = now + _ONE_TURN
        self._sweeper = self._loop.call_at(self._sweep_at, self._expire)

    def _due(self) -> float | None:
        """When the oldest command that nobody has failed yet is late; None when there is none."""
        batch = next((batch for batch in self._batches if not batch.expired), None)
        return None if batch is None else self._due_of(batch)

    def _due_of(self, batch: _Batch) -> float:
        silence = max(batch.issued_at, self._heard_at) + self._timeout
        return min(silence, batch.issued_at + PATIENCE * self._timeout) + self._late

    def _expire(self) -> None:
        """One turn later, when the socket has been read: fail what is still late."""
        self._sweeper = None
        now = self._loop.time()
        self._fail_late(now)
        due = self._due()
        if due is not None:
            self._arm(max(due, now + _ONE_TURN))

    def _fail_late(self, now: float) -> None:
        entries = iter(self._pending)
        failed = 0
        for batch in self._batches:
            if self._due_of(batch) > now:
                break
            for entry in islice(entries, batch.left):
                if not batch.expired and self._fail_entry(entry):
                    failed += 1
            batch.expired = True
        if failed:
            self._counts.timeouts += failed
            self._report_timeout()

    def _report_timeout(self) -> None:
        """Tell the link, once in a time-out however many calls it failed."""
        now = self._loop.time()
        if now - self._reported_at >= self._timeout:
            self._reported_at = now
            self._on_timeout()

    def _fail_entry(self, entry: asyncio.Future[Reply] | _Collector) -> bool:
        future = _future_of(entry)
        if future.done():
            return False
        future.set_exception(StoreTimeout(f"Redis did not answer within {round(self._timeout * 1000)} ms"))
        return True

    @property
    def silent_for(self) -> float:
        """Seconds since this connection heard anything while something was due, else 0."""
        if not self._batches:
            return 0.0
        return self._loop.time() - self._late - max(self._heard_at, self._batches[0].issued_at)

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed is not None

    def set_timeout(self, timeout: timedelta) -> None:
        """Let what is issued from now on wait this long for its reply. Only while nothing is under way."""
        self._timeout = timeout.total_seconds()
        if self._sweeper is not None:
            self._sweeper.cancel()  # it looks when the former time-out would end
            self._sweeper = None

    @property
    def heard(self) -> bool:
        """Whether the server has ever sent anything."""
        return self._reads > 0

    def abort(self, reason: str) -> None:
        """Close at once. Everything under way fails with `StoreUnavailable` and this reason."""
        if self._closed is not None:
            return
        self._finish(reason)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish("the connection to Redis was lost")

    def _finish(self, reason: str) -> None:
        if self._closed is not None:
            return
        self._closed = reason
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        pending, self._pending = self._pending, deque()
        self._batches.clear()
        self._out.clear()
        for position, entry in enumerate(pending):
            future = _future_of(entry)
            if future.done():
                continue
            if position == 0 and self._too_large:
                future.set_exception(
                    ReplyTooLarge(f"the reply is larger than {self._bounds.max_reply_bytes} bytes")
                )
            else:
                future.set_exception(StoreUnavailable(reason))
        self._room.close(reason)
        self._on_lost(self, reason)


def _is_of_ping(error: CommandError) -> bool:
    """Whether it is the PING that this user may not run, which is an answer too."""
    return "'ping' command" in str(error)


def _is_full(reply: Reply) -> bool:
    """Whether this is what a server says to a connection too many, asked or not."""
    return isinstance(reply, CommandError) and "max number of clients" in str(reply)


def executed(replies: Sequence[Reply]) -> list[Reply]:
    """What a transaction answered, from the replies of MULTI to EXEC. Raises `TransactionAborted`."""
    done = replies[-1]
    if isinstance(done, list):
        return done
    refused = next((reply for reply in replies[1:] if isinstance(reply, CommandError)), None)
    raise aborted(refused or CommandError("ERR the transaction was not run"))


def _future_of(entry: asyncio.Future[Reply] | _Collector) -> asyncio.Future[Any]:
    return cast("asyncio.Future[Any]", entry.future if isinstance(entry, _Collector) else entry)
