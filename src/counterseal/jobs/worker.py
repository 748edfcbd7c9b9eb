"""Worker: takes jobs out of queues, runs their tasks, and never holds a job that it has lost.

One loop leases and hands results in: what ended since its last turn and what there is room for go to Redis in one round
trip. Between turns it waits for a message, for the end of a job, or for the moment at which something is due.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import secrets
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from counterseal.core.background import Background, full_jitter, wait_for_event
from counterseal.core.errors import ConfigurationError, StoreError
from counterseal.jobs.context import JobContext
from counterseal.jobs.run import Middleware, Run
from counterseal.jobs.scripts import Batch, Leased, Queue, Result
from counterseal.jobs.service import by_name
from counterseal.jobs.task import DEFAULT_QUEUE, Task, task
from counterseal.jobs.threads import Threads
from counterseal.jobs.tracing import Tracing
from counterseal.jobs.types import PROBE
from counterseal.store.base import Gap, Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

LEASE: Final = timedelta(seconds=15)
POLL: Final = timedelta(seconds=5)
REST_POLL: Final = timedelta(seconds=6)
"""Over REST, where each look is a request: with a scheduler's it stays below one in 5 s."""

_SENDING: Final = frozenset({"embedded", "native", "sentinel"})
_LET_GO_S: Final = 1.0  # for handing back the jobs that are cut off
_MOST_AHEAD: Final = 100
_AHEAD_S: Final = 0.02
"""So long a job may wait for its turn in a worker that leased it ahead."""
_AGAIN_S: Final = 0.1
"""So soon a worker that ends tries again to hand in."""
_STALE_S: Final = 0.1
"""What has waited so long in a worker goes back to its queue, for others."""
_LONGEST_UNPARK_PAUSE_S: Final = 60.0
_UNPARKED_AT_ONCE: Final = 100
_RESULTS_AT_ONCE: Final = 500
_MOST_BYTES: Final = 4 * 2**20


@task(name=PROBE, retry=0, timeout=timedelta(seconds=10))
async def probe(context: JobContext) -> None:
    """Does nothing."""


@dataclass(slots=True)
class WorkerCounts:
    """What a worker has done since it was made. Plain integers, changed by one event loop only."""

    leased: int = 0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    parked: int = 0
    handed_back: int = 0
    refused: int = 0
    """Results that came too late: the job had been given to another worker."""


@dataclass(slots=True)
class _Source:
    """One queue that a worker takes jobs from."""

    queue: Queue
    weight: int
    ahead: deque[Leased] = field(default_factory=deque[Leased])
    """Leased, and not begun."""
    results: list[Result] = field(default_factory=list[Result])
    running: dict[str, Run] = field(default_factory=dict[str, Run])
    calls: int = 0
    lost_call: str = ""
    """A lease call whose answer did not come: what it leased nobody knows of."""
    refused: bool = False
    """Whether results could not be handed in: nothing is leased before they are."""
    parked: int = -1
    unpark_at: float = 0.0
    unpark_pause_s: float = 0.0
    recalled: str = ""
    """A job that was sent here and given back unseen."""
    unparking: asyncio.Task[None] | None = None


class Worker:
    """Runs jobs for as long as it is entered: `async with Worker(store, keys=keys, tasks=[...])`.

    It leases what is in its queues, up to `concurrency` jobs at once; `probe` it can do by itself. A job of a task that
    it does not know is parked. A lease lasts `lease` and is prolonged three times in that time, so the jobs of a worker
    that died are taken over when it has passed. An idle worker is woken by a message, or when something is due, and
    looks by itself every `poll`. While Redis is away it waits. `queues` are names, or names with weights: of two queues
    that are never empty, one of weight 2 is asked first twice as often as one of weight 1.

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
        self._store = store
        self._tasks: dict[str, Task[Any, Any]] = {PROBE: probe, **by_name(tasks)}
        self._sources = [_Source(Queue(store, keys, name), weight) for name, weight in weights.items()]
        self._identity = secrets.token_hex(8)  # of its calls, which count from 1
        self._channels = {
            f"{source.queue.prefix}:{kind}": (source, kind)
            for source in self._sources
            for kind in ("wake", "control")
        }
        self._sent = {source.queue.sent_to(self._identity): source for source in self._sources}
        self._hears = False
        """Whether jobs may be sent to it."""
        self._concurrency = concurrency
        self._lease_ms = lease // timedelta(milliseconds=1)
        self._poll_s = poll / timedelta(seconds=1)
        self._grace_s = grace / timedelta(seconds=1)
        self._middleware = tuple(middleware)
        self._tracing = tracing
        self.name = name or secrets.token_hex(8)
        """What people tell it from other workers by."""
        self.counts = WorkerCounts()
        self.leased_at: float | None = None
        """When a lease call was last answered, by the loop's clock."""
        self._background = Background()
        self._consumer: asyncio.Task[None] | None = None
        self._threads: Threads | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._average_s = 1.0
        self._stale: asyncio.TimerHandle | None = None
        self._ends = 0
        self._none_ahead = False
        """Whether nothing is leased ahead: what was had to go back, and no job has ended since."""
        self._left = False
        """Whether nobody sends a job here any more."""
        self._within = contextvars.Context()

    @property
    def queues(self) -> dict[str, int]:
        """The queues that it takes jobs from, with their weights."""
        return {source.queue.name: source.weight for source in self._sources}

    @property
    def concurrency(self) -> int:
        """How many jobs it runs at once."""
        return self._concurrency

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return sum(len(source.running) for source in self._sources)

    async def __aenter__(self) -> Self:
        self._closing = self._left = False
        self._within = contextvars.copy_context()
        if any(not task.is_async for task in self._tasks.values()):
            self._threads = Threads(self._concurrency)
        self._background.keep("listen for jobs", self._listen)
        self._background.keep("prolong leases", self._prolong)
        self._consumer = self._background.keep("lease jobs", self._consume)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Lease no more, finish within the grace, hand the rest back. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace_s
        try:
            if self._hears:
                self._hears = False
                for source in self._sources:
                    with suppress(StoreError):
                        await source.queue.leave(self._identity, lease_ms=self._lease_ms)
                await self._look_for_sent()
            self._left = True
            for source in self._sources:
                self._give_back(source)
            tasks = self._tasks_under_way()
            while tasks and (left := deadline - loop.time()) > 0:
                await asyncio.wait(tasks, timeout=left)
                tasks = self._tasks_under_way()
            for run in self._runs():
                run.end("drain")
            if tasks:
                logger.warning(
                    "%d jobs were not done within the grace period and go back to their queue", len(tasks)
                )
                await asyncio.wait(tasks, timeout=_LET_GO_S)
            self._leave_behind()
            if self._consumer is not None:
                # Not cancelled: nobody would hold what is being leased for as long as the lease lasts.
                self._wake.set()
                await asyncio.wait([self._consumer], timeout=max(_LET_GO_S, deadline - loop.time()))
        finally:
            await self._background.close()
            for run in self._runs():
                run.abandon()
            if self._stale is not None:
                self._stale.cancel()
                self._stale = None
            if self._threads is not None:
                self._threads.shutdown()

    # -- the loop --------------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            pause = self._poll_s
            try:
                pause = min(pause, await self._turn())
                failures = 0
            except StoreError as fault:
                failures += 1
                if failures == 1:
                    logger.warning("jobs can't be leased or handed in: %s", fault)
                pause = full_jitter(failures, longest=self._poll_s)
                self._wake.clear()
            if self._closing:
                if not self._left_over(failures):
                    return
                pause = min(pause, _AGAIN_S)
            if pause > 0:
                await wait_for_event(self._wake, pause)

    def _left_over(self, failures: int) -> bool:
        """Whether there is something to do before the loop may end."""
        if self._runs() or not self._left:
            return True
        return bool(failures < 3 and any(source.results or source.lost_call for source in self._sources))

    async def _turn(self) -> float:
        """Hand in what has ended and lease what there is room for. Seconds until something is due."""
        if len(self._sources) == 1:
            return await self._exchange(self._sources[0], self._room())
        pause, order = self._poll_s, self._order()
        # Results of those that follow leave in this turn too. Else a slot stays with the queue whose job had it.
        leaving = [0 if source.refused else len(source.results) for source in order]
        for place, source in enumerate(order):
            freed = sum(leaving[place + 1 :])
            pause = min(pause, await self._exchange(source, self._room() + freed))
        return pause

    def _order(self) -> list[_Source]:
        """The queues, at random by their weights."""
        return sorted(self._sources, key=lambda source: random.random() ** (1 / source.weight), reverse=True)  # noqa: S311

    def _room(self) -> int:
        """How many jobs may be leased: for the free slots, and ahead of them when jobs are short."""
        if self._closing:
            return 0
        taken = sum(len(source.running) + len(source.ahead) + len(source.results) for source in self._sources)
        ahead = min(_MOST_AHEAD, int(_AHEAD_S * self._concurrency / max(self._average_s, 1e-6)))
        if self._none_ahead:
            ahead = 0
        return self._concurrency + ahead - taken

    async def _exchange(self, source: _Source, room: int) -> float:
        """One round trip with a queue: results out, jobs in."""
        if source.lost_call:
            await source.queue.recall(worker=self._identity, call=source.lost_call)
            source.lost_call = ""
        results = _some(source.results)
        del source.results[: len(results)]
        if results and source.refused:  # else each failure would let in as many jobs again
            await self._hand_in(source, results)
            results, room = [], self._room()
        # `room` was counted with these results, which leave now.
        room = 0 if self._closing else room + len(results)
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

    async def _lease(self, source: _Source, room: int) -> float:
        source.calls += 1
        call = str(source.calls)
        try:
            batch = await source.queue.lease(
                room=room,
                worker=self._identity,
                call=call,
                lease_ms=self._lease_ms,
                idle=self._free() if self._hears else -1,
            )
        except BaseException:
            source.lost_call = call
            raise
        self.leased_at = asyncio.get_running_loop().time()
        return self._begin(source, batch, room)

    def _begin(self, source: _Source, batch: Batch, room: int) -> float:
        """Start what was leased, as far as there are slots. Seconds until the next look."""
        if batch.gone:
            logger.error(
                "%d jobs of the queue %s had no record any more: does the server evict keys, or was it deleted?",
                batch.gone,
                source.queue.name,
            )
        self.counts.leased += len(batch.jobs)
        source.ahead += batch.jobs
        if self._closing:
            self._give_back(source)
            return 0.0
        self._start()
        if batch.parked:
            self._look_at_parked(source, batch.parked)
        if len(batch.jobs) >= min(room, 200):
            return 0.0 if self._room() > 0 else self._poll_s
        return self._poll_s if batch.next_ms < 0 else max(0.001, batch.next_ms / 1000)

    def _free(self) -> int:
        """How many slots nothing is leased for."""
        return max(0, self._concurrency - sum(len(one.running) + len(one.ahead) for one in self._sources))

    def _look_at_parked(self, source: _Source, parked: int) -> None:
        """Try to put parked jobs back: at once when their number is another one, else after longer and longer pauses.

        The number alone tells nothing: what was put back may have been parked again by a worker of another release.
        """
        now = asyncio.get_running_loop().time()
        if source.unparking is not None and not source.unparking.done():
            return
        if parked != source.parked:
            source.unpark_pause_s = self._poll_s
        elif now < source.unpark_at:
            return
        source.parked = parked
        source.unpark_at = now + source.unpark_pause_s
        source.unpark_pause_s = min(2 * source.unpark_pause_s, _LONGEST_UNPARK_PAUSE_S)
        source.unparking = self._background.keep("unpark jobs", lambda: self._unpark(source))

    def _start(self) -> None:
        """Begin jobs while there are slots."""
        free = self._concurrency - self.running
        for source in self._sources:
            while free > 0 and source.ahead:
                self._run(source, source.ahead.popleft())
                free -= 1
        if self._stale is None and any(source.ahead for source in self._sources):
            self._stale = asyncio.get_running_loop().call_later(_STALE_S, self._return_stale, self._ends)

    def _return_stale(self, ends: int) -> None:
        """Give back what has waited behind jobs that take longer than expected: none has ended meanwhile."""
        self._stale = None
        if self.running >= self._concurrency and ends == self._ends:
            for source in self._sources:
                self._give_back(source)
        elif any(source.ahead for source in self._sources):
            self._start()

    def _give_back(self, source: _Source) -> None:
        if not source.ahead:
            return
        # The first one goes to the front last.
        for leased in reversed(source.ahead):
            source.results.append(Result(leased.part, leased.token, "queued", 0, 0, b""))
        self._average_s = max(self._average_s, _STALE_S)
        self._none_ahead = True
        source.ahead.clear()
        self._wake.set()

    def _run(self, source: _Source, leased: Leased) -> None:
        run = Run(
            leased,
            queue=source.queue,
            task=self._tasks.get(leased.type),
            middleware=self._middleware,
            threads=self._threads,
            now_ms=self._store.now_ms,
            tracing=self._tracing,
        )
        source.running[leased.part] = run
        run.start(lambda: self._ended(source, run), self._within)

    def _ended(self, source: _Source, run: Run) -> None:
        if source.running.get(run.leased.part) is run:
            del source.running[run.leased.part]
        self._ends += 1
        self._none_ahead = False
        self._average_s += (run.seconds - self._average_s) * 0.2
        if run.result is not None:
            source.results.append(run.result)
        if not self._closing:
            if source.ahead:
                self._run(source, source.ahead.popleft())
            elif len(self._sources) > 1:
                self._start()
        self._wake.set()

    async def _hand_in(self, source: _Source, results: list[Result]) -> None:
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

    async def _unpark(self, source: _Source) -> None:
        """Give jobs another chance that were parked by a worker that did not know their task, or not its arguments."""
        for name, known in self._tasks.items():
            try:
                back = _UNPARKED_AT_ONCE
                while back == _UNPARKED_AT_ONCE:
                    back = await source.queue.unpark(name, known.schema, count=_UNPARKED_AT_ONCE)
                    if back:
                        source.unpark_pause_s = self._poll_s
            except StoreError:
                return

    # -- beside the loop -------------------------------------------------------------------------------------------

    async def _prolong(self) -> None:
        pause_s = self._lease_ms / 3000
        while True:
            await asyncio.sleep(pause_s)
            for source in self._sources:
                await self._prolong_of(source)

    async def _prolong_of(self, source: _Source) -> None:
        runs = list(source.running.values())
        ahead = list(source.ahead)
        leases = [*(run.leased for run in runs), *ahead]
        if not leases:
            return
        try:
            answers = await source.queue.extend(leases, lease_ms=self._lease_ms)
        except StoreError:
            return
        for run, answer in zip(runs, answers, strict=False):
            if run.over:
                continue
            if answer == "lost":
                logger.warning(
                    "job %s.%s of type %s was lost: its lease had run out",
                    source.queue.name, run.leased.part, run.leased.type,
                )  # fmt: skip
                run.end("lost")
            elif answer.startswith("cancel"):
                run.cancel(answer.partition(" ")[2])
        lost = {lease for lease, answer in zip(ahead, answers[len(runs) :], strict=True) if answer == "lost"}
        if lost:
            source.ahead = deque(leased for leased in source.ahead if leased not in lost)

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                async with self._store.subscribe(*self._channels, *self._sent, limit=10_000) as messages:
                    failures = 0
                    # On a Cluster the node that has the queue does not know who listens at another one.
                    self._hears = self._store.kind in _SENDING and not self._closing
                    self._wake.set()
                    async for message in messages:
                        if isinstance(message, Gap):
                            await self._look_for_sent()
                            self._wake.set()
                            continue
                        if (source := self._sent.get(message.channel)) is not None:
                            self._take(source, message.data)
                            continue
                        source, kind = self._channels[message.channel]
                        if kind == "wake":
                            self._wake.set()
                        else:
                            self._obey(source, message.data)
            except StoreError as fault:
                failures += 1
                if failures == 1:
                    logger.warning(
                        "new jobs can't be listened for, so they are looked for every %g s: %s",
                        self._poll_s,
                        fault,
                    )
            await asyncio.sleep(full_jitter(failures + 1, longest=self._poll_s))

    def _take(self, source: _Source, data: bytes) -> None:
        """Begin a job that was sent here."""
        leased = source.queue.sent(data)
        if leased.part in source.running or leased.part == source.recalled:
            return
        self.counts.leased += 1
        source.ahead.append(leased)
        if self._closing:
            self._give_back(source)
            return
        self._start()
        self._wake.set()

    async def _look_for_sent(self) -> None:
        """Give back a job that was sent while nothing was heard."""
        for source in self._sources:
            with suppress(StoreError):
                part = await source.queue.held(self._identity)
                known = {
                    *source.running,
                    *(job.part for job in source.ahead),
                    *(r.part for r in source.results),
                }
                if part is not None and part not in known:
                    source.recalled = part  # should it be on its way still, it is another worker's now
                    await source.queue.recall_sent(self._identity)

    def _leave_behind(self) -> None:
        """Hand back what can't be ended: a plain function goes on in its thread, until the process ends."""
        for source in self._sources:
            for run in list(source.running.values()):
                source.results.append(Result(run.leased.part, run.leased.token, "queued", 0, 0, b""))
                run.abandon()
                source.running.pop(run.leased.part, None)

    def _obey(self, source: _Source, order: bytes) -> None:
        """Cancel a job that runs here."""
        part, token, reason = (*order.split(b" ", 2), b"", b"")[:3]
        run = source.running.get(part.decode(errors="replace"))
        if run is not None and run.leased.token == token:
            run.cancel(reason.decode(errors="replace"))

    def _runs(self) -> list[Run]:
        return [run for source in self._sources for run in source.running.values()]

    def _tasks_under_way(self) -> list[asyncio.Task[None]]:
        return [run.running for run in self._runs() if run.running is not None and not run.running.done()]


def _some(results: Sequence[Result]) -> list[Result]:
    """The first results, as many as one call of the script should have."""
    size = 0
    for position, result in enumerate(results[:_RESULTS_AT_ONCE]):
        size += len(result.text)
        if size > _MOST_BYTES:
            return list(results[: max(1, position)])
    return list(results[:_RESULTS_AT_ONCE])
