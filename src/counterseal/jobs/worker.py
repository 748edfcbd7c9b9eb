"""Worker: takes jobs out of a queue, runs their handlers, and never holds a job that it has lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Final, Self, TypeAlias

from counterseal.core.background import Background, full_jitter, wait_for_event
from counterseal.core.codec import JsonValue, decode
from counterseal.core.errors import CountersealError, StoreError
from counterseal.jobs.job import State
from counterseal.jobs.scripts import Lease, Queue
from counterseal.jobs.service import DEFAULT_QUEUE
from counterseal.jobs.types import PROBE, check_type
from counterseal.store.base import Gap, Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

_LET_GO_S: Final = 1.0  # for handing back the jobs that are cut off


@dataclass(frozen=True, slots=True)
class Task:
    """What a handler is given. The same job may come again, with a higher `attempt`, when a worker was lost."""

    id: str
    type: str
    attempt: int
    payload: JsonValue


Handler: TypeAlias = Callable[[Task], Awaitable[None]]
"""Does the work of one job. Returning means completed, raising means failed."""


async def do_nothing(task: Task) -> None:
    """The handler of `probe`."""


class Worker:
    """Runs jobs for as long as it is entered: `async with Worker(store, keys=keys, handlers={...})`.

    It leases only types that it has a handler for, up to `concurrency` jobs at once; `probe` it handles itself. A lease
    lasts `lease` and is prolonged three times in that time, so the jobs of a worker that died are taken over when it
    has passed. An idle worker is woken by a message and looks by itself every `poll`. While Redis is away it waits.

    Leaving takes no more jobs, waits up to `grace` for those under way, and hands the rest back to the queue.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        handlers: Mapping[str, Handler] | None = None,
        queue: str = DEFAULT_QUEUE,
        concurrency: int = 10,
        lease: timedelta = timedelta(seconds=10),
        poll: timedelta = timedelta(seconds=5),
        grace: timedelta = timedelta(seconds=5),
    ) -> None:
        self._store = store
        self._queue = Queue(store, keys, queue)
        self._channel = keys.jobs_wake(queue)
        self._handlers = {PROBE: do_nothing, **(handlers or {})}
        self._types = [check_type(name) for name in self._handlers]
        self._wanted = frozenset(name.encode() for name in self._types)
        self._concurrency = concurrency
        self._lease = lease
        self._poll_s = poll / timedelta(seconds=1)
        self._grace_s = grace / timedelta(seconds=1)
        self._background = Background()
        self._consumer: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[None], Lease] = {}
        self._wake = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        self._closing = False
        self._background.keep("listen for jobs", self._listen)
        self._background.keep("prolong leases", self._prolong)
        self._consumer = self._background.keep("lease jobs", self._consume)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace_s
        try:
            if self._consumer is not None:
                # Not cancelled: jobs that are being leased would be held by nobody for as long as the lease lasts.
                await asyncio.wait([self._consumer], timeout=self._grace_s)
            if self._running:
                await asyncio.wait(list(self._running), timeout=max(0, deadline - loop.time()))
        finally:
            await self._cut_off()
            await self._background.close()

    async def _cut_off(self) -> None:
        """Cancel what still runs. Each job has a moment to go back to its queue."""
        rest = list(self._running)
        if not rest:
            return
        logger.warning("%d jobs were not done within the grace period and go back to their queue", len(rest))
        for running in rest:
            running.cancel()
        _, stuck = await asyncio.wait(rest, timeout=_LET_GO_S)
        for running in stuck:
            running.cancel()

    async def _consume(self) -> None:
        failures = 0
        while not self._closing:
            self._wake.clear()
            pause = self._poll_s
            try:
                await self._lease_some()
                failures = 0
            except StoreError as fault:
                failures += 1
                if failures == 1:
                    logger.warning("jobs can't be leased: %s", fault)
                pause = full_jitter(failures, longest=self._poll_s)
            if not self._closing:
                await wait_for_event(self._wake, pause)

    async def _lease_some(self) -> None:
        """Lease as many jobs as there is room for. The end of one makes room and wakes the loop."""
        room = self._concurrency - len(self._running)
        if room <= 0:
            return
        order = random.sample(self._types, len(self._types))
        leases = await self._queue.lease(order, count=room, lease=self._lease)
        for lease in leases:
            running = asyncio.create_task(self._work(lease), name=f"counterseal: job {lease.id}")
            self._running[running] = lease
            running.add_done_callback(self._worked)

    def _worked(self, running: asyncio.Task[None]) -> None:
        self._running.pop(running, None)
        self._wake.set()

    async def _work(self, lease: Lease) -> None:
        error: str | None = None
        try:
            payload = decode(lease.payload, key=f"job {lease.id}")
            await self._handlers[lease.type](Task(lease.id, lease.type, lease.attempt, payload))
            state = State.COMPLETED
        except asyncio.CancelledError:
            task = asyncio.current_task()
            asked = task is not None and task.cancelling() > 0
            state, error = (State.QUEUED, None) if asked else (State.FAILED, "CancelledError")
        except Exception as fault:
            logger.exception("job %s of type %s failed", lease.id, lease.type)
            state, error = State.FAILED, _sentence(fault)
        await self._finish(lease, state, error)

    async def _finish(self, lease: Lease, state: State, error: str | None) -> None:
        """Hand the result in. While Redis is away it tries again, for as long as the lease may still be held."""
        failures = 0
        give_up = asyncio.get_running_loop().time() + self._lease / timedelta(seconds=1)
        while True:
            try:
                kept = await self._queue.finish(lease, state, error=error)
            except StoreError as fault:
                failures += 1
                if asyncio.get_running_loop().time() > give_up:
                    logger.warning("the result of job %s was lost, so it runs again: %s", lease.id, fault)
                    return
                await asyncio.sleep(full_jitter(failures, longest=1))
            else:
                if not (kept or failures):
                    logger.warning(
                        "the result of job %s of type %s was refused: its lease had run out",
                        lease.id,
                        lease.type,
                    )
                return

    async def _prolong(self) -> None:
        pause_s = self._lease / timedelta(seconds=3)
        while True:
            await asyncio.sleep(pause_s)
            leases = list(self._running.values())
            if not leases:
                continue
            try:
                lost = await self._queue.extend(leases, lease=self._lease)
            except StoreError:
                continue
            for running, lease in list(self._running.items()):
                if lease.id in lost and lease in leases:
                    logger.warning("job %s of type %s was lost: its lease had run out", lease.id, lease.type)
                    running.cancel()

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                async with self._store.subscribe(self._channel) as messages:
                    failures = 0
                    self._wake.set()
                    async for message in messages:
                        if isinstance(message, Gap) or message.data in self._wanted:
                            self._wake.set()
            except StoreError as fault:
                failures += 1
                if failures == 1:
                    logger.warning(
                        "new jobs can't be listened for, so they are looked for every %g s: %s",
                        self._poll_s,
                        fault,
                    )
            await asyncio.sleep(full_jitter(failures + 1, longest=self._poll_s))


def _sentence(fault: Exception) -> str:
    """What is kept of a failure. The text of a foreign error may hold anything, so only its name is."""
    name = type(fault).__name__
    return f"{name}: {fault}" if isinstance(fault, CountersealError) else name
