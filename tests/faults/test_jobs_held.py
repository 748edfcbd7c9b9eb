"""What a worker holds: what it runs, never twice, never for longer than it lives, no more than fits a reply."""

from __future__ import annotations

import asyncio
import math
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Job, State
from counterseal.jobs.options import Flow, Priority
from counterseal.jobs.scripts import Batch, Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import Task, task
from counterseal.jobs.worker import Worker
from counterseal.store.base import Gap, Store, Subscription
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.servers import Server
from support.stores import store_on, travel
from support.subscriptions import Messages, Through
from support.waiting import eventually

KEYS = Keys()
PREFIX = KEYS.jobs_prefix("default")
LEASE_MS = 15_000
LONG = timedelta(minutes=10)
SHORT = timedelta(milliseconds=100)
PATIENT = LinkOptions(connect_timeout=timedelta(seconds=5), command_timeout=timedelta(seconds=5))


@task(name="nothing")
async def nothing(context: JobContext) -> None:
    """Ends at once."""


@task(name="late")
async def late(context: JobContext) -> None:
    """What only the newer release knows."""


def gated() -> tuple[asyncio.Event, Task[[], None]]:
    """A task whose jobs run until the event is set."""
    gate = asyncio.Event()

    @task(name="gated")
    async def waits(context: JobContext) -> None:
        await gate.wait()

    return gate, waits


def worker_on(store: Store, *tasks: Task[Any, Any], **options: Any) -> Worker:
    return Worker(store, keys=KEYS, tasks=tasks or (nothing,), **options)


@pytest.fixture
async def store(valkey: Server) -> AsyncIterator[NativeStore]:
    async with store_on(valkey) as store:
        yield store


@pytest.fixture
def jobs(store: NativeStore) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[nothing, late])


@pytest.fixture
def queue(store: NativeStore) -> Queue:
    return Queue(store, KEYS, "default")


async def the(jobs: Jobs, identifier: str) -> Job:
    job = await jobs.get(identifier)
    assert job is not None
    return job


async def state(jobs: Jobs, identifier: str) -> State:
    return (await the(jobs, identifier)).state


async def counted(jobs: Jobs, kind: str, name: str) -> int:
    return getattr((await jobs.stats())[kind], name)


async def idle(store: Store) -> list[str]:
    """The workers that jobs may be sent to."""
    members = await store.command("SMEMBERS", f"{PREFIX}:idle")
    assert isinstance(members, list)
    return [str(member, "utf-8").split()[0] for member in members if isinstance(member, bytes)]


def identity(worker: Any) -> str:
    """What the engine knows a worker by."""
    return worker._identity


# -- what fits ---------------------------------------------------------------------------------------------------------


async def test_jobs_whose_arguments_are_longer_than_a_reply_together_run_all(
    store: NativeStore, jobs: Jobs
) -> None:
    lengths: list[int] = []

    @task(name="long")
    async def long(context: JobContext, text: str) -> None:
        lengths.append(len(text))

    for _ in range(10):
        await jobs.enqueue_many([long.call("x" * 1_000_000) for _ in range(8)])
    async with worker_on(store, long, concurrency=100) as worker:
        await eventually(lambda: worker.counts.completed == 80)
    assert lengths == [1_000_000] * 80
    assert worker.counts.leased == 80


async def test_a_queue_is_leased_one_by_one_only_while_it_has_large_jobs(
    store: NativeStore, jobs: Jobs, queue: Queue
) -> None:
    @task(name="long")
    async def long(context: JobContext, text: str) -> None: ...

    async def is_careful() -> bool:
        return await store.command("HEXISTS", KEYS.jobs_queue("default"), "large") == 1

    async def lease(call: int) -> Batch:
        return await queue.lease(room=10, worker="w", call=str(call), lease_ms=LEASE_MS)

    made = await jobs.enqueue(long, "x" * 100_000)
    (held,) = (await lease(1)).jobs
    await lease(2)
    assert await is_careful()  # it may go back to its lane
    await queue.finish([Result(held.part, held.token, "failed", 60_000, 0, b"[]")])
    await lease(3)
    assert not await is_careful()
    assert len(await jobs.retry_dead(made.id)) == 1
    assert await is_careful()
    assert len((await lease(4)).jobs) == 1


async def test_large_jobs_of_a_flow_that_is_held_up_are_leased_one_by_one_when_it_goes_on(
    store: NativeStore, jobs: Jobs, queue: Queue
) -> None:
    @task(name="long")
    async def long(context: JobContext, text: str) -> None: ...

    flow = Flow("f", rate=7, period=timedelta(minutes=1))
    await jobs.enqueue_many([long.using(flow=flow).call("x" * 900_000) for _ in range(14)])
    leased: list[int] = []
    for call in range(1, 7):
        if call == 4:
            travel(store, timedelta(minutes=1))
        held = (await queue.lease(room=100, worker="w", call=str(call), lease_ms=LEASE_MS)).jobs
        leased.append(len(held))
        if held:
            await queue.finish([Result(one.part, one.token, "completed", 60_000, 0, b"") for one in held])
    assert leased == [5, 2, 0, 5, 2, 0]


# -- what a worker keeps from others -----------------------------------------------------------------------------------


async def test_jobs_behind_a_worker_that_is_full_run_where_there_is_room(
    valkey: Server, store: NativeStore, jobs: Jobs
) -> None:
    gate, waits = gated()
    async with store_on(valkey) as other, worker_on(store, nothing, waits, grace=SHORT) as full:
        await jobs.enqueue_many([nothing.call() for _ in range(200)])
        await eventually(lambda: full.counts.completed == 200)  # it takes jobs for short ones now
        made = await jobs.enqueue_many([*[waits.call()] * 10, nothing.call(), nothing.call()])
        await eventually(lambda: full.running == 10)
        async with worker_on(other, nothing, waits, poll=LONG) as free:
            await eventually(lambda: free.counts.completed == 2)
            assert [await state(jobs, one.id) for one in made[10:]] == [State.COMPLETED] * 2
            assert identity(full) not in await idle(store)
            for more in range(5):  # nor is one that comes alone sent to it
                await eventually(lambda: in_idle(store, free))
                await jobs.enqueue(nothing)
                await eventually(lambda more=more: free.counts.completed == 3 + more)
            assert free.counts.completed == 7
            assert full.running == 10
            gate.set()
            await eventually(lambda: full.counts.completed == 210)


async def in_idle(store: Store, worker: Worker) -> bool:
    return identity(worker) in await idle(store)


async def is_in(jobs: Jobs, identifier: str, wanted: State) -> bool:
    return await state(jobs, identifier) == wanted


async def test_a_worker_that_is_full_holds_no_job_that_it_does_not_run(
    store: NativeStore, jobs: Jobs
) -> None:
    gate, waits = gated()
    async with worker_on(store, nothing, waits, grace=SHORT) as full:
        await jobs.enqueue_many([nothing.call() for _ in range(200)])
        await eventually(lambda: full.counts.completed == 200)
        await jobs.enqueue_many([*[waits.call()] * 10, nothing.call(), nothing.call()])
        await eventually(lambda: full.running == 10)
        leased: list[int] = []

        async def at_rest() -> bool:
            # Two jobs wait in the queue, and it is so at many looks in turn: none is taken again.
            leased.append(full.counts.leased if await counted(jobs, "nothing", "queued") == 2 else -1)
            return len(leased) > 30 and set(leased[-30:]) == {leased[-1]} != {-1}

        await eventually(at_rest)
        gate.set()
        await eventually(lambda: full.counts.completed == 212)


async def test_a_job_sent_to_a_worker_that_closes_is_run_or_goes_back_to_its_queue(
    valkey: Server, store: NativeStore, jobs: Jobs
) -> None:
    found: Counter[State] = Counter()
    async with store_on(valkey) as other:
        sender = Jobs(other, keys=KEYS, tasks=[nothing])
        for number in range(100):
            by = jobs if number % 2 else sender
            worker = worker_on(store)
            async with worker:
                await eventually(lambda worker=worker: in_idle(store, worker))
                sending = asyncio.create_task(by.enqueue(nothing))
                for _ in range(
                    number // 2 % 4
                ):  # turns of the event loop, so that each order of the two comes up
                    await asyncio.sleep(0)
            job = await the(jobs, (await sending).id)
            found[job.state] += 1
            assert job.lost == 0
        assert found[State.RUNNING] == 0, found
        assert set(found) <= {State.QUEUED, State.COMPLETED}
    assert await store.command("ZCARD", f"{PREFIX}:running") == 0


async def test_a_parked_job_is_left_alone_until_a_worker_that_knows_it_has_room(
    valkey: Server, store: NativeStore, jobs: Jobs
) -> None:
    gate, waits = gated()

    async def parked() -> bool:
        return (await the(jobs, made.id)).parked

    async with worker_on(store, nothing):
        made = await jobs.enqueue(late)
        await eventually(parked)
    await jobs.enqueue(waits)
    async with store_on(valkey) as other, worker_on(other, late, waits, concurrency=1, poll=SHORT) as new:
        await eventually(lambda: new.running == 1)
        async with worker_on(store, nothing, poll=SHORT) as old:
            await eventually(lambda: old._sources[0].calls > 5)
            assert await parked()
            assert old.counts.leased == 0
        gate.set()
        await eventually(lambda: is_in(jobs, made.id, State.COMPLETED))


async def parked_by_hand(jobs: Jobs, queue: Queue, *tasks: Task[[], None]) -> list[str]:
    """Jobs as a worker leaves them that does not know their tasks."""
    made = [one.id for one in await jobs.enqueue_many([one.call() for one in tasks])]
    held = (await queue.lease(room=len(made), worker=secrets.token_hex(4), call="1", lease_ms=LEASE_MS)).jobs
    assert len(held) == len(made)
    why = b'["Parked","unknown task",""]'
    assert all(await queue.finish([Result(one.part, one.token, "parked", 1, 0, why) for one in held]))
    return made


async def test_a_job_that_another_release_parked_again_does_not_wait_for_a_worker_that_knows_it(
    store: NativeStore, jobs: Jobs, queue: Queue
) -> None:
    gate, waits = gated()
    (unknown,) = await parked_by_hand(jobs, queue, nothing)
    async with worker_on(store, late, waits, concurrency=1, poll=timedelta(minutes=1)) as worker:
        await eventually(lambda: worker.leased_at is not None)
        await jobs.enqueue(waits)
        await eventually(lambda: worker.running == 1)
        (made,) = await parked_by_hand(jobs, queue, late)
        assert (
            await jobs.delete_dead(unknown) == 1
        )  # as many are parked as before: their number does not tell
        gate.set()
        await eventually(lambda: is_in(jobs, made, State.COMPLETED))


async def test_what_a_worker_puts_back_it_leases_before_one_of_another_release_does(
    store: NativeStore, jobs: Jobs, queue: Queue
) -> None:
    made = await parked_by_hand(jobs, queue, *[late] * 60)
    async with worker_on(store, nothing, concurrency=50) as other, worker_on(store, late, concurrency=5):
        for identifier in made:
            await eventually(lambda one=identifier: is_in(jobs, one, State.COMPLETED))
        # The first time the server does not have the script yet, so it came a round trip later.
        assert other.counts.leased <= 5
    assert await counted(jobs, "late", "retrying") == await counted(jobs, "late", "queued") == 0


class CountingQueue(Queue):
    """Counts how often parked jobs were asked for."""

    asked: ClassVar[list[int]] = []

    async def unpark(self, known: Mapping[str, int], *, count: int) -> int:
        self.asked.append(count)
        return await Queue.unpark(self, known, count=count)


async def test_a_worker_that_can_run_no_parked_job_asks_for_none_until_another_one_is_parked(
    store: NativeStore, jobs: Jobs, queue: Queue
) -> None:
    CountingQueue.asked.clear()
    await parked_by_hand(jobs, queue, nothing)
    worker = worker_on(store, late, poll=timedelta(milliseconds=20))
    source = worker._sources[0]
    source.queue = CountingQueue(store, KEYS, "default")
    async with worker:
        await eventually(lambda: CountingQueue.asked and source.parking.due_at == math.inf)
        asked, calls = len(CountingQueue.asked), source.calls
        assert asked <= 3
        await eventually(lambda: source.calls > calls + 20)
        assert len(CountingQueue.asked) == asked


# -- what stands twice, or for nothing ---------------------------------------------------------------------------------


async def leases(queue: Queue, call: int, room: int = 10) -> Batch:
    return await queue.lease(room=room, worker="w", call=str(call), lease_ms=LEASE_MS)


@pytest.mark.parametrize(
    "again",
    [
        nothing.using(id="a"),
        nothing.using(id="a", priority=Priority.HIGH),
        nothing.using(id="a", flow=Flow("tenant", parallelism=3)),
    ],
    ids=["same lane", "other priority", "flow"],
)
async def test_one_call_leases_a_job_once_though_it_has_two_places(
    store: NativeStore, jobs: Jobs, queue: Queue, again: Task[[], None]
) -> None:
    first = again if again.options.flow else nothing.using(id="a")
    assert (await jobs.enqueue(first)).created
    await jobs.cancel("default.a")
    await store.command("DEL", f"{PREFIX}:job:a")  # as its expiry does
    assert (await jobs.enqueue(again)).created
    await jobs.enqueue(again.using(id="b"))
    found = (await leases(queue, 1)).jobs
    found += (await leases(queue, 2)).jobs
    assert sorted(leased.part for leased in found) == ["a", "b"]
    assert [leased.token for leased in found] == [b"1"] * 2
    assert await counted(jobs, "nothing", "running") == 2
    done = [Result(leased.part, leased.token, "completed", 60_000, 1, b"") for leased in found]
    assert await queue.finish(done) == [True, True]
    assert (await leases(queue, 3)).jobs == []
    counts = (await jobs.stats())["nothing"]
    assert (counts.queued, counts.running, counts.completed, counts.cancelled) == (0, 0, 2, 1)
    if again.options.flow:
        assert await store.command("HGET", f"{PREFIX}:flow:tenant", "running") == b"0"


async def cancel_many(store: Store, jobs: Jobs, number: int) -> None:
    """Put so many cancelled jobs into the queue."""
    made: list[str] = []
    for _ in range(0, number, 5000):
        made += [one.id for one in await jobs.enqueue_many([nothing.call() for _ in range(5000)])]
    for first in range(0, number, 1000):
        await asyncio.gather(*(jobs.cancel(identifier) for identifier in made[first : first + 1000]))
    assert await store.command("LLEN", f"{PREFIX}:ready:1") == number


async def test_a_job_behind_many_that_were_cancelled_runs_at_once_by_calls_of_bounded_length(
    store: NativeStore, jobs: Jobs, queue: Queue
) -> None:
    await cancel_many(store, jobs, 20_000)
    live = await jobs.enqueue(nothing)
    before = await length(store)
    for call in (1, 2):
        batch = await leases(queue, call, room=1)
        left = await length(store)
        assert 0 < before - left <= 5000
        assert batch.jobs == []
        assert batch.next_ms == 0  # there is more to look at
        before = left
    async with worker_on(store, nothing, concurrency=1, poll=LONG):
        await eventually(lambda: is_in(jobs, live.id, State.COMPLETED))


async def length(store: Store) -> int:
    found = await store.command("LLEN", f"{PREFIX}:ready:1")
    assert isinstance(found, int)
    return found


# -- what was recalled -------------------------------------------------------------------------------------------------


class InterruptedStore(NativeStore):
    """A store on a server in whose subscriptions something happens each time before they tell of a gap."""

    def __init__(self, server: Server) -> None:
        super().__init__(FixedRoute(parse_redis_url(server.url).template), PATIENT)
        self.gaps = 0

    async def before_gap(self) -> None:
        raise NotImplementedError

    def subscribe(
        self, *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        return Through(super().subscribe(*channels, limit=limit, on_loss=on_loss), self._told)

    async def _told(self, messages: Messages) -> Messages:
        async for message in messages:
            if isinstance(message, Gap):
                await self.before_gap()
            yield message


async def test_a_job_that_comes_right_after_a_gap_runs_once(
    valkey: Server, store: NativeStore, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, int]] = []

    @task(name="counting")
    async def counting(context: JobContext) -> None:
        runs.append((context.id, context.token))

    made: list[str] = []

    async def before_gap() -> None:
        # The worker is connected again, so the job is sent to it; it hears of the gap first, and looks for the job.
        made.append((await jobs.enqueue(counting)).id)

    async with InterruptedStore(valkey) as far:
        monkeypatch.setattr(far, "before_gap", before_gap)
        async with worker_on(far, counting, nothing) as worker:
            for gap in range(5):
                await eventually(lambda: in_idle(store, worker))
                valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")
                await eventually(lambda gap=gap: len(made) > gap)
                await eventually(lambda: is_in(jobs, made[-1], State.COMPLETED))
    assert [identifier for identifier, _ in runs] == made
    assert worker.counts.refused == 0
    assert await counted(jobs, "counting", "completed") == len(made)


# -- what one job leaves to the next -----------------------------------------------------------------------------------


async def test_what_a_job_sets_in_a_context_variable_is_not_seen_by_others(
    store: NativeStore, jobs: Jobs
) -> None:
    tenant: ContextVar[int | None] = ContextVar("tenant", default=None)
    seen: list[int | None] = []

    @task(name="tenants")
    async def tenants(context: JobContext, number: int) -> None:
        seen.append(tenant.get())
        tenant.set(number)

    @task(name="plain-tenants")
    def plain_tenants(context: JobContext, number: int) -> None:
        seen.append(tenant.get())
        tenant.set(number)

    await jobs.enqueue_many([tenants.call(number) for number in range(50)])
    async with worker_on(store, tenants, plain_tenants, concurrency=2) as worker:
        await eventually(lambda: worker.counts.completed == 50)
        await jobs.enqueue_many([plain_tenants.call(number) for number in range(50)])
        await eventually(lambda: worker.counts.completed == 100)
    assert seen == [None] * 100


FORKING = """
import os, sys
from counterseal.jobs.intake import Parts

parts = Parts(lambda: 1_700_000_000_000)  # the same millisecond for all: the moment tells nobody from another
parts.new()
children = []
for _ in range(2):
    out, into = os.pipe()
    if os.fork() == 0:
        with os.fdopen(into, "w") as told:
            told.write(" ".join(parts.new() for _ in range(2000)))
        os._exit(0)
    os.close(into)
    children.append(out)
print(" ".join(parts.new() for _ in range(2000)))
for out in children:
    with os.fdopen(out) as told:
        print(told.read())
    os.wait()
"""


def test_processes_that_were_forked_from_one_make_no_same_ids() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING], check=False, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    made = [line.split() for line in done.stdout.splitlines()]
    assert [len(of_one) for of_one in made] == [2000] * 3
    assert len({part for of_one in made for part in of_one}) == 6000
