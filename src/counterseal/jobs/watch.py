"""Watch: what becomes of jobs, live."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from counterseal.core.background import end, wait_for_event
from counterseal.core.errors import CodecError, SubscriberTooSlow
from counterseal.jobs.job import Job, Progress, job_id, moment, split_job_id
from counterseal.store.base import Gap, Message, Store
from counterseal.store.keys import Keys

_PUSHED: Final = frozenset({"embedded", "native"})
"""Connections on which no message gets lost unless a `Gap` says so."""
_LOOK_AGAIN_S: Final = 5.0
_MOST_WAITING: Final = 10_000
_BLOCK_MS: Final = 5_000
_POLL_S: Final = 1.0
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """Something that a job told: a progress, or a line of its log, or its end with the job as it is then.

    After a lost connection the first update tells of the job as it stands, so nothing of its state is missed.
    """

    progress: Progress | None = None
    line: str | None = None
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that became of a job.

    `what` is `enqueued`, `started`, `completed`, `failed`, `cancelled`, `retrying`, `parked`, or `queued` for one that
    its worker gave back.
    """

    position: str
    """What `since` takes to go on after the events of the same moment."""
    id: str
    what: str
    at: datetime


class Watch:
    """Follows jobs. `read` reads one by its id."""

    def __init__(self, store: Store, *, keys: Keys, read: Callable[[str], Awaitable[Job | None]]) -> None:
        self._store = store
        self._keys = keys
        self._read = read
        self._look_s = math.inf if store.kind in _PUSHED else _LOOK_AGAIN_S

    async def wait(self, identifier: str, timeout: timedelta) -> Job | None:
        """A job when it has ended, or as it is when the time is over.

        It is read at first, when its end is told, after a lost connection, and when the time is over: waiting costs no
        round trip. Over REST, Sentinel and a Cluster, where a message may get lost unseen, it is also read every 5 s.
        """
        ids = split_job_id(identifier)
        if ids is None:
            return None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout / timedelta(seconds=1)
        while True:
            try:
                return await self._until_ended(identifier, *ids, deadline=deadline, look_s=self._look_s)
            except SubscriberTooSlow:  # what was told meanwhile is seen by reading
                continue

    async def _until_ended(
        self, identifier: str, queue: str, part: str, *, deadline: float, look_s: float
    ) -> Job | None:
        loop = asyncio.get_running_loop()
        channel = f"{self._keys.jobs_prefix(queue)}:ended"
        async with self._store.subscribe(channel, limit=_MOST_WAITING) as messages:
            told = asyncio.Event()
            listening = asyncio.create_task(
                _tell(told, messages, part.encode()), name="counterseal: wait for a job"
            )
            try:
                while True:
                    told.clear()
                    job = await self._read(identifier)
                    left = deadline - loop.time()
                    if job is None or job.state.terminal or left <= 0:
                        return job
                    if listening.done():
                        await listening  # raises why nothing is told any more
                    await wait_for_event(told, min(left, look_s))
            finally:
                await end((listening,))

    async def updates(self, identifier: str) -> AsyncIterator[JobUpdate]:
        """What a job tells, until it has ended. Nothing when there is none.

        Over REST, Sentinel and a Cluster it is also read when nothing was told for 5 s, so its end is not missed.
        """
        ids = split_job_id(identifier)
        if ids is None:
            return
        live, part = self._keys.jobs_live(*ids), ids[1].encode()
        async with (
            self._store.subscribe(live, f"{self._keys.jobs_prefix(ids[0])}:ended") as messages,
            aclosing(_or_silence(messages, self._look_s)) as told,
        ):
            job = await self._read(identifier)
            if job is None:
                return
            yield JobUpdate(progress=job.progress, job=job)
            if job.state.terminal:
                return
            async for message in told:
                update = _update(message, live) if isinstance(message, Message) else None
                if update is not None:
                    yield update
                elif not isinstance(message, Message) or part in message.data.split():
                    job = await self._read(identifier)
                    if job is None:
                        return
                    if message is not None or job.state.terminal:
                        yield JobUpdate(progress=job.progress, job=job)
                    if job.state.terminal:
                        return

    async def events(self, queue: str, since: str) -> AsyncIterator[JobEvent]:
        """The events of a queue after a position."""
        key = f"{self._keys.jobs_prefix(queue)}:events"
        after = since
        if after == "$":
            last: Any = await self._store.command("XREVRANGE", key, "+", "-", "COUNT", 1)
            after = str(last[0][0].decode()) if last else "0"
        while True:
            reply: Any = await self._store.command("XRANGE", key, f"({after}", "+", "COUNT", _PAGE)
            if not reply:
                if self._store.kind == "rest":
                    await asyncio.sleep(_POLL_S)
                else:
                    await self._store.block(
                        "XREAD", "COUNT", 1, "BLOCK", _BLOCK_MS, "STREAMS", key, after,
                        timeout=timedelta(milliseconds=2 * _BLOCK_MS),
                    )  # fmt: skip
                continue
            for entry in reply:
                after = str(entry[0].decode())
                for event in _events(queue, after, entry[1]):
                    yield event


async def _or_silence(
    messages: AsyncIterator[Message | Gap], silence_s: float
) -> AsyncGenerator[Message | Gap | None]:
    """The messages, and None when none has come for so long."""
    if silence_s == math.inf:
        async for message in messages:
            yield message
        return
    coming: asyncio.Task[Message | Gap | None] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(messages), name="counterseal: watch a job")
            await asyncio.wait((coming,), timeout=silence_s)
            if not coming.done():
                yield None
                continue
            message, coming = coming.result(), None
            if message is None:
                return
            yield message
    finally:
        if coming is not None:
            await end((coming,))


async def _next(messages: AsyncIterator[Message | Gap]) -> Message | Gap | None:
    return await anext(messages, None)


async def _tell(told: asyncio.Event, messages: AsyncIterator[Message | Gap], part: bytes) -> None:
    try:
        async for message in messages:
            if isinstance(message, Gap) or (part in message.data and part in message.data.split()):
                told.set()
    finally:
        told.set()


def _update(message: Message, live: str) -> JobUpdate | None:
    if message.channel != live:
        return None
    try:
        if message.data[:1] == b"p":
            share, text, at_ms = msgspec.json.decode(message.data[1:], type=tuple[float, str, int])
            return JobUpdate(progress=Progress(share, text, moment(at_ms)))
        return JobUpdate(line=msgspec.json.decode(message.data[1:], type=tuple[int, str])[1])
    except msgspec.MsgspecError as fault:
        raise CodecError("what a job told can't be read", key=live) from fault


def _events(queue: str, position: str, fields: Any) -> list[JobEvent]:
    at = datetime.fromtimestamp(int(position.partition("-")[0]) / 1000, UTC)
    what, words = fields[0].decode(), fields[1].decode().split()
    if what == "enqueued":
        return [JobEvent(position, job_id(queue, part), what, at) for part in words]
    pairs = zip(words[::2], words[1::2], strict=True)
    if what == "started":
        return [JobEvent(position, job_id(queue, part), what, at) for part, _ in pairs]
    return [JobEvent(position, job_id(queue, part), outcome, at) for part, outcome in pairs]
