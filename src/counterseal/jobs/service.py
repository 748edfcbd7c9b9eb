"""Jobs: accepts work, and tells what has become of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import uuid4

from counterseal.core.background import end, wait_for_event
from counterseal.core.codec import JsonValue, encode
from counterseal.core.errors import CommandError
from counterseal.jobs.job import Job, JobStats, State, read_job, read_stats
from counterseal.jobs.scripts import Queue
from counterseal.jobs.types import PROBE, TYPES, check_type
from counterseal.store.base import Gap, Message, Store
from counterseal.store.keys import Keys
from counterseal.store.wire import Reply, raised

DEFAULT_QUEUE: Final = "default"

_LOOK_AGAIN_S: Final = 1.0  # should a message get lost; the message itself comes within a millisecond


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """A `probe` job that was sent through the queue: the state it reached in time, and after how many milliseconds.

    `state` is None when somebody removed the job meanwhile.
    """

    id: str
    state: State | None
    ms: int


class Jobs:
    """One queue, from the side that puts work in. A `Worker` takes it out.

    It has no task of its own. Every call raises `StoreUnavailable` when Redis does not answer.
    """

    def __init__(self, store: Store, *, keys: Keys, queue: str = DEFAULT_QUEUE) -> None:
        self._store = store
        self._keys = keys
        self._queue = Queue(store, keys, queue)

    async def enqueue(self, task: str, payload: JsonValue) -> str:
        """Accept a job and return its id. One round trip; the job is safe when this returns.

        Raises `UnknownName` for a type that nobody declared and `CodecError` for a payload that is not JSON. A job
        of a type that no worker handles waits.
        """
        identifier = uuid4().hex
        await self._enqueue(identifier, task, payload)
        return identifier

    async def get(self, identifier: str) -> Job | None:
        """A job by its id; None when there is none, or it ended more than 7 days ago. One round trip."""
        key = self._keys.job(self._queue.name, identifier)
        fields = _fields(await self._store.command("HGETALL", key))
        return read_job(identifier, fields, key=key) if fields else None

    async def stats(self) -> dict[str, JobStats]:
        """The statistics of every type of job, in the order of `TYPES`. One round trip."""
        keys = {task: self._keys.jobs_stats(self._queue.name, task) for task in TYPES}
        replies = await self._store.pipeline([("HGETALL", key) for key in keys.values()])
        return {
            task: read_stats(_fields(raised(reply)), key=key)
            for (task, key), reply in zip(keys.items(), replies, strict=True)
        }

    async def can_access(self) -> bool:
        """Whether the jobs that wait and those that run can be read. One round trip."""
        name = self._queue.name
        replies = await self._store.pipeline(
            [
                ("ZCARD", self._keys.jobs_running(name)),
                *(("LLEN", self._keys.jobs_ready(name, task)) for task in TYPES),
            ]
        )
        return not any(isinstance(reply, CommandError) for reply in replies)

    async def run_probe(self, timeout: timedelta = timedelta(seconds=5)) -> ProbeRun:
        """Send a `probe` job through the queue and wait for its end, at most for `timeout`.

        Without a worker its state is still `queued`, and it runs when one comes. About four round trips.
        """
        identifier = uuid4().hex
        started = time.perf_counter()
        deadline = started + timeout / timedelta(seconds=1)
        async with self._store.subscribe(self._keys.jobs_done(self._queue.name)) as messages:
            await self._enqueue(identifier, PROBE, None)
            state = await self._ended(identifier, messages, deadline)
        return ProbeRun(identifier, state, round((time.perf_counter() - started) * 1000))

    async def _enqueue(self, identifier: str, task: str, payload: JsonValue) -> None:
        await self._queue.enqueue(identifier, check_type(task), encode(payload))

    async def _ended(
        self, identifier: str, messages: AsyncIterator[Message | Gap], deadline: float
    ) -> State | None:
        told = asyncio.Event()
        listening = asyncio.create_task(_tell(told, messages, identifier), name="counterseal: wait for a job")
        try:
            while True:
                told.clear()
                job = await self.get(identifier)
                left = deadline - time.perf_counter()
                if job is None or job.state.terminal or left <= 0:
                    return job.state if job else None
                await wait_for_event(told, min(left, _LOOK_AGAIN_S))
        finally:
            await end((listening,))


async def _tell(told: asyncio.Event, messages: AsyncIterator[Message | Gap], identifier: str) -> None:
    async for message in messages:
        if isinstance(message, Gap) or message.data == identifier.encode():
            told.set()


def _fields(reply: Reply) -> dict[bytes, bytes]:
    flat = [part for part in (reply if isinstance(reply, list) else []) if isinstance(part, bytes)]
    return dict(zip(flat[::2], flat[1::2], strict=True))
