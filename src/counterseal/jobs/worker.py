"""Worker: takes jobs out of queues, runs their tasks, and never holds a job that it has lost.

One loop leases and hands results in: what ended since its last turn and what there is room for go to Redis in one round
trip. Between turns it waits for a message, for the end of a job, or for the moment at which something is due.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from counterseal.core.background import Background, full_jitter, wait_for_event
from counterseal.core.errors import CodecError, ConfigurationError, StoreError
from counterseal.jobs.leases import keep_leases
from counterseal.jobs.listener import Listener
from counterseal.jobs.parking import Parking
from counterseal.jobs.probe import probe
from counterseal.jobs.run import Middleware
from counterseal.jobs.scripts import LEASED_AT_ONCE, Batch, Queue, Result
from counterseal.jobs.service import by_name
from counterseal.jobs.slots import Slots, Source
from counterseal.jobs.task import DEFAULT_QUEUE, Task
from counterseal.jobs.tracing import Tracing
from counterseal.jobs.types import PROBE
from counterseal.jobs.worker_counts import WorkerCounts
from counterseal.store.base import Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

LEASE: Final = timedelta(seconds=15)
POLL: Final = timedelta(seconds=5)
REST_POLL: Final = timedelta(seconds=12)
"""Over REST, where each look is a request: with those of a scheduler they are no more than one in 5 s.

It is less than the lease, so that jobs of a worker that died are seen in time."""

_FIRST_LOOK_S: Final = 1.0
_LET_GO_S: Final = 1.0  # for handing back the jobs that are cut off
_AGAIN_S: Final = 0.1
"""So soon a worker that ends tries again to hand in."""
_RESULTS_AT_ONCE: Final = 500
_MOST_BYTES: Final = 4 * 2**20


class Worker:
    """Runs jobs for as long as it is entered: `async with Worker(store, keys=keys, tasks=[...])`.

    It leases what is in its queues, up to `concurrency` jobs at once; `probe` it can do by itself. A job of a task that
    it does not know is parked. A lease lasts `lease` and is prolonged three times in that time, so the jobs of a worker
    that died are taken over when it has passed. An idle worker is woken by a message, or when something is due, and
    looks by itself every `poll`; where it can't listen, after a second at first, then, while there is nothing to do,
    after longer and longer pauses up to `poll`. While Redis is away it waits. `queues` are names, or names with
    weights: of two queues that are never empty, one of weight 2 is asked first twice as often as one of weight 1.

    Leaving takes no more jobs, waits up to `grace` for those under way, and hands the rest back to their queues,
    uncounted as attempts.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        tasks: Iterable[Task[Any, Any]] = (),
        queues: Sequence[str] | Mapping[str, int] = (DEFAULT_QUEUE,),
        concurrency: int = 10,
        lease: timedelta = LEASE,
        poll: timedelta = POLL,
        grace: timedelta = timedelta(seconds=5),
        middleware: Sequence[Middleware] = (),
        name: str | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        if not queues:
            raise ConfigurationError("queues: expected at least one")
        if concurrency < 1:
            raise ConfigurationError("concurrency: expected at least 1")
        weights = dict(queues) if isinstance(queues, Mapping) else dict.fromkeys(queues, 1)
        if any(weight < 1 for weight in weights.values()):
            raise ConfigurationError("queues: expected weights of at least 1")
        known: dict[str, Task[Any, Any]] = {PROBE: probe, **by_name(tasks)}
        self.name = name or secrets.token_hex(8)
        """What people tell it from other workers by."""
        self.counts = WorkerCounts()
        self.leased_at: float | None = None
        """When a lease call was last answered, by the loop's clock."""
        self._identity = secrets.token_hex(8)  # of its calls, which count from 1
        self._lease_ms = lease // timedelta(milliseconds=1)
        self._poll_s = poll / timedelta(seconds=1)
        self._grace_s = grace / timedelta(seconds=1)
        self._wake = asyncio.Event()
        self._sources = [
            Source(Queue(store, keys, name), weight, Parking(known)) for name, weight in weights.items()
        ]
        self._slots = Slots(
            self._sources,
            concurrency=concurrency,
            tasks=known,
            middleware=middleware,
            now_ms=store.now_ms,
            tracing=tracing,
            wake=self._wake,
        )
        self._listener = Listener(
            store,
            self._slots,
            worker=self._identity,
            lease_ms=self._lease_ms,
            poll_s=self._poll_s,
            counts=self.counts,
            wake=self._wake,
        )
        self._background = Background()
        self._consumer: asyncio.Task[None] | None = None
        self._fruitless = 0
        """How many turns in a row have found no job."""
        self._left = False
        """Whether nobody sends a job here any more."""

    @property
    def queues(self) -> dict[str, int]:
        """The queues that it takes jobs from, with their weights."""
        return {source.queue.name: source.weight for source in self._sources}

    @property
    def concurrency(self) -> int:
        """How many jobs it runs at once."""
        return self._slots.concurrency

    @property
    def poll(self) -> timedelta:
        """How long it waits at most before it looks by itself."""
        return timedelta(seconds=self._poll_s)

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return self._slots.running

    async def __aenter__(self) -> Self:
        self._left = False
        self._slots.open()
        self._background.keep("listen for jobs", self._listener.listen)
        self._background.keep("prolong leases", lambda: keep_leases(self._slots, self._lease_ms))
        self._consumer = self._background.keep("lease jobs", self._consume)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Lease no more, finish within the grace, hand the rest back. Safe to call twice."""
        slots = self._slots
        if slots.closing:
            return
        slots.closing = True
        self._wake.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace_s
        try:
            await self._listener.leave()
            self._left = True
            for source in self._sources:
                slots.give_back(source)
            tasks = slots.under_way()
            while tasks and (left := deadline - loop.time()) > 0:
                await asyncio.wait(tasks, timeout=left)
                tasks = slots.under_way()
            for run in slots.runs():
                run.end("drain")
            if tasks:
                logger.warning(
                    "%d jobs were not done within the grace period and go back to their queue", len(tasks)
                )
                await asyncio.wait(tasks, timeout=_LET_GO_S)
            slots.leave_behind()
            if self._consumer is not None:
                # Not cancelled: nobody would hold what is being leased for as long as the lease lasts.
                self._wake.set()
                await asyncio.wait([self._consumer], timeout=max(_LET_GO_S, deadline - loop.time()))
        finally:
            await self._background.close()
            slots.close()

    # -- the loop --------------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        while True:
            self._wake.clear()
            leased = self.counts.leased
            pause = await self._turn()
            self._fruitless = 0 if self.counts.leased > leased else self._fruitless + 1
            pause = min(pause, self._patience_s())
            if self._slots.closing:
                if not self._left_over():
                    return
                pause = min(pause, _AGAIN_S)
            if pause > 0:
                await wait_for_event(self._wake, pause)

    def _patience_s(self) -> float:
        """How long it waits for a message before it looks by itself."""
        if self._listener.listening:
            return self._poll_s
        return min(self._poll_s, _FIRST_LOOK_S * 2 ** min(max(0, self._fruitless - 1), 10))

    def _left_over(self) -> bool:
        """Whether there is something to do before the loop may end."""
        if self._slots.runs() or not self._left:
            return True
        return any(source.failures < 3 and (source.results or source.lost_call) for source in self._sources)

    async def _turn(self) -> float:
        """Hand in what has ended and lease what there is room for. Seconds until something is due."""
        if len(self._sources) == 1:
            return await self._serve(self._sources[0], self._slots.room())
        pause, order = self._poll_s, self._order()
        # Results of those that follow leave in this turn too. Else a slot stays with the queue whose job had it.
        leaving = [0 if source.refused else len(source.results) for source in order]
        for place, source in enumerate(order):
            freed = sum(leaving[place + 1 :])
            pause = min(pause, await self._serve(source, self._slots.room() + freed))
        return pause

    async def _serve(self, source: Source, room: int) -> float:
        """One round trip with a queue, unless it rests after a failure, which keeps no other up."""
        loop = asyncio.get_running_loop()
        if source.failures and not self._slots.closing and (left := source.rests_until - loop.time()) > 0:
            return left
        try:
            pause = await self._exchange(source, room)
        except (StoreError, CodecError) as fault:
            source.failures += 1
            if source.failures == 1:
                logger.warning(
                    "jobs of the queue %s can't be leased or handed in: %s", source.queue.name, fault
                )
            # Its results are to come in before their leases have run out.
            pause = full_jitter(source.failures, longest=min(self._poll_s, self._lease_ms / 3000))
            source.rests_until = loop.time() + pause
        else:
            source.failures = 0
        return pause

    def _order(self) -> list[Source]:
        """The queues, at random by their weights."""
        return sorted(self._sources, key=lambda source: random.random() ** (1 / source.weight), reverse=True)  # noqa: S311

    async def _exchange(self, source: Source, room: int) -> float:
        """One round trip with a queue: results out, jobs in."""
        if source.lost_call:
            await source.queue.recall(worker=self._identity, call=source.lost_call)
            source.lost_call = ""
        results = _some(source.results)
        del source.results[: len(results)]
        if results and source.refused:  # else each failure would let in as many jobs again
            await self._hand_in(source, results)
            results, room = [], self._slots.room()
        # `room` was counted with these results, which leave now.
        room = 0 if self._slots.closing else room + len(results)
        if results and room > 0:
            # Both begin in one turn of the event loop, so they leave together.
            outcomes = await asyncio.gather(
                self._hand_in(source, results), self._lease(source, room), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            pause = outcomes[1] if isinstance(outcomes[1], float) else self._poll_s
            return 0.0 if source.results else pause
        if results:
            await self._hand_in(source, results)
        pause = await self._lease(source, room) if room > 0 else self._poll_s
        return 0.0 if source.results else pause

    async def _lease(self, source: Source, room: int) -> float:
        source.calls += 1
        call = str(source.calls)
        leasing = source.queue.lease(
            room=room,
            worker=self._identity,
            call=call,
            lease_ms=self._lease_ms,
            idle=self._slots.free() if self._listener.hears else -1,
        )
        try:
            if source.parking.due_at <= asyncio.get_running_loop().time():
                # Both begin in one turn of the event loop, so nobody leases in between.
                _, batch = await asyncio.gather(source.parking.put_back(source.queue, room), leasing)
            else:
                batch = await leasing
        except BaseException:
            source.lost_call = call
            raise
        self.leased_at = asyncio.get_running_loop().time()
        return self._begin(source, batch, room)

    def _begin(self, source: Source, batch: Batch, room: int) -> float:
        """Start what was leased, as far as there are slots. Seconds until the next look."""
        if batch.gone:
            logger.error(
                "%d jobs of the queue %s had no record any more: does the server evict keys, or was it deleted?",
                batch.gone,
                source.queue.name,
            )
        self.counts.leased += len(batch.jobs)
        source.ahead += batch.jobs
        if self._slots.closing:
            self._slots.give_back(source)
            return 0.0
        self._slots.start()
        pause = min(self._poll_s, source.parking.note(batch))
        if len(batch.jobs) >= min(room, LEASED_AT_ONCE):
            return 0.0 if self._slots.room() > 0 else pause
        return pause if batch.next_ms < 0 else min(pause, max(0.001, batch.next_ms / 1000))

    async def _hand_in(self, source: Source, results: list[Result]) -> None:
        try:
            kept = await source.queue.finish(results)
        except BaseException:
            source.results[:0] = results  # as long as nobody else has the job, it is this one that counts
            source.refused = True
            raise
        source.refused = False
        counts = self.counts
        for result, held in zip(results, kept, strict=True):
            if not held:
                counts.refused += 1
                logger.warning(
                    "the result of job %s.%s was refused: its lease had run out, and another worker has it."
                    " A task that blocks the event loop keeps leases from being prolonged",
                    source.queue.name,
                    result.part,
                )
            elif result.outcome == "completed":
                counts.completed += 1
            elif result.outcome == "queued":
                counts.handed_back += 1
            elif result.outcome == "retrying":
                counts.retried += 1
            else:
                setattr(counts, result.outcome, getattr(counts, result.outcome) + 1)


def _some(results: Sequence[Result]) -> list[Result]:
    """The first results, as many as one call of the script should have."""
    size = 0
    for position, result in enumerate(results[:_RESULTS_AT_ONCE]):
        size += len(result.text)
        if size > _MOST_BYTES:
            return list(results[: max(1, position)])
    return list(results[:_RESULTS_AT_ONCE])
