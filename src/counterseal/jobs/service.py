"""Jobs: accepts work, tells what has become of it, and rules the queues. A `Worker` does the work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, ParamSpec, TypeVar, cast

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.codec import JsonValue, to_text
from counterseal.core.errors import (
    ArgumentInvalid,
    CodecError,
    CommandError,
    ConfigurationError,
    UnknownName,
    ValueTooLarge,
)
from counterseal.database.outbox import OutboxJob, add_job
from counterseal.jobs.carrier import Carrier, Taking
from counterseal.jobs.dead_letters import AT_ONCE, delete_letters, retry_letters
from counterseal.jobs.intake import Intake, Parts
from counterseal.jobs.job import Job, State, is_queue_name, job_id, read_job, split_job_id
from counterseal.jobs.listing import Listing
from counterseal.jobs.options import NO_OPTIONS, Options, Priority, changed, write_extra
from counterseal.jobs.probe import ProbeRun, run_probe
from counterseal.jobs.scripts import Queue
from counterseal.jobs.statistics import JobStats, Quantiles, QueueStats, Throughput
from counterseal.jobs.tally import Tally
from counterseal.jobs.task import DEFAULT_KEEP, DEFAULT_QUEUE, Call, Task
from counterseal.jobs.tracing import Tracing
from counterseal.jobs.types import KNOWN, TYPES
from counterseal.jobs.watch import JobEvent, JobUpdate, Watch
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.wire import Argument

P = ParamSpec("P")
R = TypeVar("R")

MAX_PAYLOAD: Final = 2**20
OUTBOX_KIND: Final = "job"

_MS: Final = timedelta(milliseconds=1)
_PRIORITIES: Final = {priority: str(int(priority)) for priority in Priority}


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The outcome of `enqueue`: the id of the job, and whether it was made now.

    When it was not, the id is that of the job with the same id, deduplication id or unique key.
    """

    id: str
    created: bool


class Jobs:
    """The job queues of one namespace. Every call raises `StoreUnavailable` when Redis does not answer.

    Jobs are safe when `enqueue` returns: they run at least once, whatever dies. It has no task of its own. With
    `min_replicas` every call that makes or changes something is a round trip longer, and so many replicas have it when
    it returns; else it raises `NotReplicated`, after at most twice the time that a command may take: it was written,
    but a failover may lose it.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        tasks: Iterable[Task[Any, Any]] = (),
        max_payload: int = MAX_PAYLOAD,
        min_replicas: int = 0,
        tracing: Tracing | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        if min_replicas and store.kind in ("rest", "embedded"):
            raise ConfigurationError(
                "COUNTERSEAL_MIN_REPLICAS: expected a REDIS_URL of a server with replicas, Sentinel or a Cluster, as"
                " nobody else can tell what replicas have; it is not set"
            )
        if min_replicas and carrier is not None:
            raise ConfigurationError(
                "COUNTERSEAL_MIN_REPLICAS: expected without a carrier, which accepts jobs without asking the replicas"
            )
        self._store = store
        self._min_replicas = min_replicas
        self._keys = keys
        self._tasks = by_name(tasks)
        self._max_payload = max_payload
        self._parts = Parts(store.now_ms)
        self._tracing = tracing
        self._add = self._accept if tracing is None else self._publish
        self._carrier = carrier
        self._intakes: dict[str, Taking] = {}
        self._listing = Listing(store, keys=keys)
        self._tally = Tally(store, keys=keys, types=(*TYPES, *self._tasks))
        self._watch = Watch(store, keys=keys, read=self.get)

    @property
    def tasks(self) -> Mapping[str, Task[Any, Any]]:
        """The tasks that were given, by name."""
        return self._tasks

    @property
    def min_replicas(self) -> int:
        """How many replicas have what was accepted; 0 when nobody asks."""
        return self._min_replicas

    @property
    def types(self) -> tuple[str, ...]:
        """The names of all types of jobs that are known here, with or without a task."""
        return tuple(dict.fromkeys((*TYPES, *self._tasks)))

    async def enqueue(self, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Enqueued:
        """Make a job of a task with these arguments. One round trip, shared with whatever is enqueued in this turn.

        Raises `ArgumentInvalid` when they do not fit the task, and `ValueTooLarge` when they are longer than the limit;
        nothing was written then. Options of a job are given by `task.using(...)`.
        """
        return await self._add(task.name, task.options, task.encode(args, kwargs), task)

    async def enqueue_many(self, calls: Sequence[Call[Any]]) -> list[Enqueued]:
        """Make many jobs, each from `task.call(...)`, in order. One round trip for all jobs of a queue.

        Raises as `enqueue`. When a call of many is lost half-way, others may have been accepted.
        """
        if self._tracing is None:
            return await self._accept_many(calls)
        queues, types = {_queue_of(call.options, call.task) for call in calls}, {call.type for call in calls}
        queue = queues.pop() if len(queues) == 1 else None
        kind = types.pop() if len(types) == 1 else None
        with self._tracing.publish(queue, kind, count=len(calls)) as publishing:
            return await self._accept_many(
                [replace(call, options=publishing.traced(call.options)) for call in calls]
            )

    async def _accept_many(self, calls: Sequence[Call[Any]]) -> list[Enqueued]:
        flat: dict[str, list[Argument]] = {}
        made: list[tuple[str, str]] = []
        for call in calls:
            queue, part, job, _ = self._job(call.type, call.options, call.args, call.task)
            flat.setdefault(queue, []).extend(job)
            made.append((queue, part))
        taken: dict[str, list[str]] = {}
        for queue, jobs in flat.items():
            taken[queue] = (await (await self._intake(queue)).add_many(jobs))[::-1]
        return [_enqueued(queue, part, taken[queue].pop()) for queue, part in made]

    async def enqueue_json(
        self, kind: str, args: JsonValue = None, options: Options = NO_OPTIONS
    ) -> Enqueued:
        """Make a job by the name of its type, with arguments as a JSON object by parameter. One round trip.

        Raises as `enqueue`, and `UnknownName` for a type that is not known here.
        """
        call = self.call_json(kind, args, options)
        return await self._add(call.type, call.options, call.args, call.task)

    def call_json(self, kind: str, args: JsonValue = None, options: Options = NO_OPTIONS) -> Call[Any]:
        """The same as a call for `enqueue_many`. No round trip."""
        if args is not None and not isinstance(args, dict):
            raise ArgumentInvalid("the arguments of a job are a JSON object, by parameter")
        task = self._tasks.get(kind)
        text = to_text(args or {})
        if task is not None:
            return Call(kind, options, task.encode_json(text), task)
        if kind not in KNOWN:
            raise UnknownName(f"no type of job is named {kind!r}; the types are {', '.join(self.types)}")
        return Call(kind, options, b"1:" + text)

    async def enqueue_in(
        self, connection: AsyncConnection, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> str:
        """Make a job in a transaction of the database: it is there when that was committed, and never else.

        Answers the id that the job will have. The outbox hands it to its queue after the commit, at least once and so
        that one job comes of it; `Outbox.wake` spares it the wait. One statement. Raises as `enqueue`.
        """
        return await self.add_in(connection, task.call(*args, **kwargs))

    async def add_in(self, connection: AsyncConnection, call: Call[Any], *, aggregate: str = "") -> str:
        """The same for a call. Jobs of one `aggregate` reach their queues in the order of their transactions."""
        if self._tracing is None:
            return await self._write_in(connection, call, call.options, aggregate)
        with self._tracing.publish(_queue_of(call.options, call.task), call.type) as publishing:
            identifier = await self._write_in(connection, call, publishing.traced(call.options), aggregate)
            publishing.made(identifier)
            return identifier

    async def _write_in(
        self, connection: AsyncConnection, call: Call[Any], options: Options, aggregate: str
    ) -> str:
        if options.id is None:
            options = changed(options, id=self._parts.new())
        queue, part, job, _ = self._job(call.type, options, call.args, call.task)
        _, kind, priority, args, extra = (_as_text(item) for item in job)
        await add_job(
            connection,
            OUTBOX_KIND,
            {"queue": queue, "part": part, "type": kind, "priority": priority, "args": args, "extra": extra},
            now_ms=self._store.now_ms(),
            dedupe_key=f"job:{queue}.{part}",
            aggregate=aggregate,
        )
        return job_id(queue, part)

    async def relay(self, job: OutboxJob) -> None:
        """Hand a job of the outbox to its queue: the handler of `OUTBOX_KIND`. Done twice it makes one job."""
        written = cast("Mapping[str, str]", job.payload)
        intake = await self._intake(written["queue"])
        await intake.add_many([written[name] for name in ("part", "type", "priority", "args", "extra")])

    async def get(self, identifier: str) -> Job | None:
        """A job by its id; None when there is none, or it has ended and is not kept any more. One round trip."""
        ids = split_job_id(identifier)
        if ids is None:
            return None
        (reply,) = await self._queue(ids[0]).read([ids[1]])
        return read_job(*ids, reply)

    async def logs(self, identifier: str) -> list[tuple[int, str]]:
        """The last 200 lines that a job has logged: milliseconds since 1970 and text. One round trip."""
        return await self._listing.logs(identifier)

    async def wait(self, identifier: str, timeout: timedelta = timedelta(seconds=30)) -> Job | None:
        """Wait until a job has ended, at most so long; the job as it is then. None when there is none.

        Two round trips, and none while it waits; over REST, Sentinel and a Cluster one every 5 s besides, should a
        message get lost.
        """
        return await self._watch.wait(identifier, timeout)

    async def result(self, identifier: str, task: Task[Any, R]) -> R:
        """The result of a job of this task that has completed. One round trip.

        Raises `UnknownName` when there is no such job, or it has not completed, and `CodecError` when the result does
        not fit the type that the task declares.
        """
        job = await self.get(identifier)
        if job is None or job.state is not State.COMPLETED:
            raise UnknownName(f"there is no result of the job {identifier!r}")
        try:
            return msgspec.convert(job.result, task.result_type, str_keys=True)
        except msgspec.ValidationError as fault:
            raise CodecError(f"the result of a job does not fit the task {task.name}") from fault

    def watch(self, identifier: str) -> AsyncIterator[JobUpdate]:
        """What becomes of a job, live: its progress and the lines of its log, and at last its end."""
        return self._watch.updates(identifier)

    def events(self, queue: str = DEFAULT_QUEUE, *, since: str = "$") -> AsyncIterator[JobEvent]:
        """What becomes of the jobs of a queue, in order, from the last 2,000 or so entries and live.

        `since` is the `position` of the last event that was seen, `0` for the oldest, `$` for those from now on.
        """
        return self._watch.events(_checked(queue), since)

    async def cancel(self, identifier: str, reason: str = "cancelled") -> State | None:
        """End a job: one that has not begun is cancelled at once, one that runs is asked to. One round trip.

        Answers `cancelled`, `running` when it was asked, the state of a job that has ended already, None when there is
        none. An async task that runs is cancelled; a plain function has to look. A task that returns all the same has
        completed.
        """
        ids = split_job_id(identifier)
        if ids is None:
            return None
        said = " ".join(reason.split())[:200] or "cancelled"
        queue = self._queue(ids[0])
        outcome = await queue.cancel(ids[1], said, keep_ms=DEFAULT_KEEP // _MS)
        if outcome is None:
            return None
        await self._confirm(queue)
        if outcome == "cancelled" and self._carrier is not None:
            await self._carrier.cancelled(self._queue(ids[0]), ids[1])
        return State.RUNNING if outcome == "asked" else State(outcome)

    async def pause(self, queue: str = DEFAULT_QUEUE) -> None:
        """Begin no more jobs of a queue. Those that run go on, and new ones are accepted. One round trip."""
        await self._register(_checked(queue))
        await self._store.command("HSET", self._keys.jobs_queue(queue), "paused", 1)
        await self._confirm(self._queue(queue))

    async def resume(self, queue: str = DEFAULT_QUEUE) -> None:
        """Begin jobs of a queue again. One round trip."""
        await self._store.pipeline(
            [("HDEL", self._keys.jobs_queue(_checked(queue)), "paused"), self._wake(queue)]
        )
        await self._confirm(self._queue(queue))

    async def set_parallelism(self, queue: str, parallelism: int | None) -> None:
        """How many jobs of a queue run at once, over all workers; None for no limit. One round trip.

        With 1 they run in order: a job that failed and runs again keeps its place, and the others wait for it.
        """
        key = self._keys.jobs_queue(_checked(queue))
        if parallelism is not None and not 1 <= parallelism <= 100_000:
            raise ConfigurationError("parallelism: expected a number from 1 to 100000, or none")
        await self._register(queue)
        change = (
            ("HDEL", key, "parallelism") if parallelism is None else ("HSET", key, "parallelism", parallelism)
        )
        await self._store.pipeline([change, self._wake(queue)])
        await self._confirm(self._queue(queue))

    async def list(
        self,
        *,
        queue: str | None = None,
        state: State | None = None,
        type: str | None = None,  # noqa: A002 - what it is called everywhere
        tag: str | None = None,
        parent: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs, those that run first, then those that wait, then those that ended lately, newest first.

        Looks at no more than 10,000 jobs of each kind in each queue.
        """
        return await self._listing.find(
            queue=queue, state=state, kind=type, tag=tag, parent=parent, limit=limit
        )

    async def dead(
        self,
        *,
        queue: str | None = None,
        type: str | None = None,  # noqa: A002
        error: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Dead letters and parked jobs, newest first; `error` is a part of what went wrong, in any case."""
        return await self._listing.dead(queue=queue, kind=type, error=error, limit=limit)

    async def retry_dead(self, *identifiers: str) -> list[Enqueued]:
        """Run dead letters again: of each a new job is made, with the same arguments and idempotency key.

        It has the other options of the letter too: policy, tags, flow, parent, a deadline that has not passed, and the
        unique key, when no other job holds it meanwhile. A delay and a deduplication id are dropped. A parked job goes
        back to its queue itself. Ids that are no dead letters are passed over, and so are letters whose options can't
        be read. Two round trips for every 200 of a queue.
        """
        made: list[Enqueued] = []
        for queue, parts in _by_queue(identifiers).items():
            calls = self._queue(queue)
            answers = await retry_letters(
                calls, parts, new_part=self._parts.new, min_replicas=self._min_replicas
            )
            if self._carrier is not None:
                for first in range(0, len(answers), AT_ONCE):
                    page = [part for _, part in answers[first : first + AT_ONCE]]
                    await self._carrier.carry_again(calls, page)
            made += [Enqueued(job_id(queue, part), created=part != letter) for letter, part in answers]
        return made

    async def delete_dead(self, *identifiers: str) -> int:
        """Remove dead letters with all that is known of them; a parked job is cancelled. How many there were.

        A round trip for every 200 of a queue.
        """
        gone = 0
        for queue, parts in _by_queue(identifiers).items():
            calls = self._queue(queue)
            gone += await delete_letters(
                calls, parts, "deleted from the dead letters", keep_ms=DEFAULT_KEEP // _MS
            )
            await self._confirm(calls)
        return gone

    async def unique(self, key: str, queue: str = DEFAULT_QUEUE) -> str | None:
        """The id of the job that holds a unique key; None when none does. One round trip."""
        part = await self._queue(_checked(queue)).holder(key)
        return None if part is None else job_id(queue, part)

    async def release_unique(self, key: str, identifier: str) -> bool:
        """Give a unique key back that this job holds, though it has not ended. Whether it held it. One round trip."""
        ids = split_job_id(identifier)
        return ids is not None and await self._queue(ids[0]).release(key, ids[1])

    async def stats(self) -> dict[str, JobStats]:
        """The statistics of every known type, in all queues together. Two round trips, whatever there is."""
        return await self._tally.stats()

    async def queues(self) -> list[QueueStats]:
        """What every queue holds now. Two round trips."""
        return await self._tally.queues()

    async def times(self, kind: str) -> tuple[Quantiles, Quantiles]:
        """How long jobs of a type have waited until they began, and run until they completed. Two round trips."""
        return await self._tally.times(kind)

    async def throughput(self, kind: str) -> Throughput:
        """How many jobs of a type have ended lately. Two round trips."""
        return await self._tally.throughput(kind)

    async def can_access(self) -> bool:
        """Whether the jobs that wait and those that run can be read. One round trip."""
        prefix = self._keys.jobs_prefix(DEFAULT_QUEUE)
        replies = await self._store.pipeline(
            [
                ("ZCARD", f"{prefix}:running"),
                ("HLEN", f"{prefix}:state"),
                *(("LLEN", f"{prefix}:ready:{priority}") for priority in range(3)),
            ]
        )
        return not any(isinstance(reply, CommandError) for reply in replies)

    async def run_probe(self, timeout: timedelta = timedelta(seconds=5)) -> ProbeRun:
        """Send a `probe` job through the queue and wait for its end, at most for `timeout`.

        Without a worker its state is still `queued`, and it runs when one comes. About four round trips.
        """
        return await run_probe(self, timeout)

    async def close(self) -> None:
        """Let jobs that are being accepted arrive. Safe to call twice."""
        for intake in self._intakes.values():
            await intake.close()

    async def _publish(
        self, kind: str, options: Options, args: bytes, task: Task[Any, Any] | None
    ) -> Enqueued:
        tracing = cast("Tracing", self._tracing)
        with tracing.publish(_queue_of(options, task), kind) as publishing:
            made = await self._accept(kind, publishing.traced(options), args, task)
            publishing.made(made.id, created=made.created)
            return made

    async def _accept(
        self, kind: str, options: Options, args: bytes, task: Task[Any, Any] | None
    ) -> Enqueued:
        queue, part, job, size = self._job(kind, options, args, task)
        intake = self._intakes.get(queue) or await self._intake(queue)
        return _enqueued(queue, part, await intake.add(job, size))

    def _job(
        self, kind: str, options: Options, args: bytes, task: Task[Any, Any] | None
    ) -> tuple[str, str, list[Argument], int]:
        """Queue and part of a job, the five arguments of the script, and about how long they are."""
        if len(args) > self._max_payload:
            raise ValueTooLarge(
                f"the arguments of a job of {kind} have {len(args)} bytes; the limit is {self._max_payload}"
            )
        queue = _queue_of(options, task)
        part = options.id or self._parts.new()
        priority = options.priority
        if priority is None:
            priority = Priority.NORMAL if task is None else task.priority
        extra = b"" if options is NO_OPTIONS else write_extra(options.stored(self._store.now_ms()))
        return queue, part, [part, kind, _PRIORITIES[priority], args, extra], len(args) + len(extra) + 100

    async def _intake(self, queue: str) -> Taking:
        intake = self._intakes.get(queue)
        if intake is None:
            await self._register(_checked(queue))
            calls = self._queue(queue)
            intake = self._intakes.setdefault(
                queue,
                Intake(calls, min_replicas=self._min_replicas)
                if self._carrier is None
                else self._carrier.taking(calls),
            )
        return intake

    async def _confirm(self, queue: Queue) -> None:
        """Wait until replicas have what was changed, when they are asked."""
        if self._min_replicas:
            await queue.confirm(replicas=self._min_replicas)

    async def _register(self, queue: str) -> None:
        """Have the queue found by whoever lists them."""
        await self._store.command("SADD", self._keys.jobs_queues(), queue)

    def _queue(self, name: str) -> Queue:
        return Queue(self._store, self._keys, name)

    def _wake(self, queue: str) -> tuple[str, str, str]:
        return ("PUBLISH", f"{self._keys.jobs_prefix(queue)}:wake", "")


def by_name(tasks: Iterable[Task[Any, Any]]) -> dict[str, Task[Any, Any]]:
    """Tasks by their names. Raises `ConfigurationError` when two have the same."""
    found: dict[str, Task[Any, Any]] = {}
    for task in tasks:
        if task.name in found:
            raise ConfigurationError(f"tasks: two are named {task.name}")
        found[task.name] = task
    return found


def _queue_of(options: Options, task: Task[Any, Any] | None) -> str:
    return options.queue or (DEFAULT_QUEUE if task is None else task.queue)


def _enqueued(queue: str, part: str, taken: str) -> Enqueued:
    return Enqueued(job_id(queue, taken or part), not taken)


def _by_queue(identifiers: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for identifier in identifiers:
        ids = split_job_id(identifier)
        if ids is not None:
            found.setdefault(ids[0], []).append(ids[1])
    return found


def _checked(queue: str) -> str:
    if not is_queue_name(queue):
        raise ConfigurationError("queue: expected 1 to 64 letters, digits, '_' or '-'")
    return queue


def _as_text(argument: Argument) -> str:
    return argument.decode() if isinstance(argument, bytes) else str(argument)
