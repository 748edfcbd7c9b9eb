"""Faults of Redis, of tasks and of those who end a worker: no job is lost, none is held up, none counts wrongly."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from counterseal.core.errors import StoreError
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Job, State
from counterseal.jobs.options import Flow
from counterseal.jobs.retry import Fixed
from counterseal.jobs.run import Next
from counterseal.jobs.scripts import Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import Task, task
from counterseal.jobs.worker import Worker
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.valkey import NativeStore
from support.job_workers import none_pending
from support.relay import Relay
from support.servers import Server
from support.stores import native_store, store_on
from support.waiting import eventually

KEYS = Keys()
PREFIX = KEYS.jobs_prefix("default")
SOON = timedelta(milliseconds=20)
BRISK = LinkOptions(connect_timeout=timedelta(seconds=1), command_timeout=timedelta(milliseconds=300))

Gate = asyncio.Event


@task(name="note", retry=Fixed(attempts=3, pause=SOON))
async def note(context: JobContext, number: int) -> int:
    return number


@task(name="endless", retry=Fixed(attempts=3, pause=SOON))
async def endless(context: JobContext) -> None:
    await asyncio.Event().wait()


def worker_on(store: Store, *tasks: Task[Any, Any], **options: Any) -> Worker:
    given = {"poll": timedelta(milliseconds=100), "concurrency": 10, **options}
    return Worker(store, keys=KEYS, tasks=tasks or (note,), **given)


def jobs_on(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[note, endless])


async def running(jobs: Jobs, many: int) -> bool:
    return sum(queue.running for queue in await jobs.queues()) == many


@pytest.fixture
async def store(valkey: Server) -> AsyncIterator[NativeStore]:
    async with store_on(valkey) as store:
        yield store


@pytest.fixture
def jobs(store: NativeStore) -> Jobs:
    return jobs_on(store)


async def the(jobs: Jobs, identifier: str) -> Job:
    job = await jobs.get(identifier)
    assert job is not None
    return job


# -- Redis -------------------------------------------------------------------------------------------------------------


async def test_jobs_whose_lease_call_got_no_answer_run_again_at_once_and_uncounted(
    valkey: Server, jobs: Jobs, relays: Callable[..., Awaitable[Relay]]
) -> None:
    relay = await relays(valkey)
    patient = LinkOptions(connect_timeout=timedelta(seconds=30), command_timeout=timedelta(seconds=30))
    async with native_store(relay, options=patient) as far:
        await jobs.enqueue(note, -1)
        async with worker_on(far):  # connects, and the server has the scripts
            await eventually(lambda: none_pending(jobs, "note", 1))
        made = [one.id for one in await jobs.enqueue_many([note.call(number) for number in range(8)])]
        relay.hold()
        async with worker_on(far):
            await eventually(lambda: running(jobs, 8))
            relay.cut()
            relay.release()
            await eventually(lambda: none_pending(jobs, "note", 9))
        for identifier in made:
            job = await the(jobs, identifier)
            assert (job.state, job.attempt, job.lost) == (State.COMPLETED, 1, 0)


async def test_a_lease_call_that_comes_after_it_was_recalled_leases_nothing(
    store: NativeStore, jobs: Jobs
) -> None:
    queue = Queue(store, KEYS, "default")
    await jobs.enqueue(note, 1)
    assert await queue.recall(worker="w", call="7") == 0
    assert (await queue.lease(room=5, worker="w", call="7", lease_ms=15_000)).jobs == []
    assert len((await queue.lease(room=5, worker="w", call="8", lease_ms=15_000)).jobs) == 1
    assert await queue.recall(worker="w", call="8") == 1
    assert await queue.recall(worker="w", call="8") == 0


@pytest.mark.parametrize("refusal", ["OOM", "READONLY", "NOREPLICAS"])
async def test_jobs_go_on_when_a_server_that_refused_writes_takes_them_again(
    servers: Callable[..., Server], refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers()
    begin, finish = {
        "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        "NOREPLICAS": (
            ("CONFIG", "SET", "min-replicas-to-write", "1"),
            ("CONFIG", "SET", "min-replicas-to-write", "0"),
        ),
    }[refusal]
    gate = Gate()

    @task(name="gated")
    async def gated(context: JobContext) -> None:
        await gate.wait()

    async with native_store(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[gated])
        async with worker_on(store, gated) as worker:
            made = [one.id for one in await jobs.enqueue_many([gated.call() for _ in range(30)])]
            await eventually(lambda: running(jobs, 10))
            server.execute(*begin)
            gate.set()
            with pytest.raises(StoreError):
                await jobs.enqueue(gated)
            await eventually(lambda: "can't be leased or handed in" in caplog.text)
            assert worker.counts.completed == 0
            server.execute(*finish)
            await eventually(lambda: none_pending(jobs, "gated", 30))
        assert [(await the(jobs, identifier)).attempt for identifier in made] == [1] * 30
        assert worker.counts.refused == 0


async def test_results_wait_for_redis_within_the_slots(
    valkey: Server, jobs: Jobs, relays: Callable[..., Awaitable[Relay]]
) -> None:
    began: list[int] = []
    gate = Gate()

    @task(name="note")
    async def slow(context: JobContext, number: int) -> None:
        began.append(number)
        await gate.wait()

    relay = await relays(valkey)
    async with native_store(relay, options=BRISK) as far, worker_on(far, slow, concurrency=4):
        await jobs.enqueue_many([note.call(number) for number in range(12)])
        await eventually(lambda: len(began) == 4)
        relay.refuse()
        relay.cut()
        gate.set()
        await eventually(lambda: not far.available)
        assert len(began) == 4
        await relay.accept()
        await eventually(lambda: none_pending(jobs, "note", 12))
    assert sorted(began) == list(range(12))


async def test_a_record_that_somebody_deleted_is_counted_and_told_and_holds_up_no_other(
    valkey: Server, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    await jobs.pause()
    plain = [one.id for one in await jobs.enqueue_many([note.call(number) for number in range(20)])]
    due = await jobs.enqueue(note.using(delay=timedelta(milliseconds=50)), 20)
    in_flow = [
        (await jobs.enqueue(note.using(flow=Flow("f", parallelism=1)), number)).id for number in (30, 31)
    ]
    for identifier in (plain[3], due.id, in_flow[0]):
        valkey.execute("DEL", f"{PREFIX}:job:{identifier.partition('.')[2]}")
    valkey.execute("SET", f"{PREFIX}:job:{plain[5].partition('.')[2]}", "pbroken")
    async with store_on(valkey) as store, worker_on(store):
        await jobs.resume()
        rest = [one for one in plain if one not in (plain[3], plain[5])] + in_flow[1:]

        async def done() -> bool:
            return {(await the(jobs, one)).state for one in rest} == {State.COMPLETED}

        await eventually(done)
        await eventually(lambda: gone(jobs, 4))
    assert "had no record any more" in caplog.text
    valkey.execute("DEL", f"{PREFIX}:job:{plain[5].partition('.')[2]}")


async def gone(jobs: Jobs, many: int) -> bool:
    return sum(queue.gone for queue in await jobs.queues()) == many


async def test_the_entries_of_a_queue_may_be_deleted_and_its_jobs_still_run(
    valkey: Server, jobs: Jobs
) -> None:
    await jobs.enqueue(note.using(delay=timedelta(milliseconds=300)), 1)
    made = await jobs.enqueue(endless)
    async with store_on(valkey) as store:
        async with worker_on(store, endless, lease=timedelta(seconds=1), grace=timedelta(0)) as first:
            await eventually(lambda: running(jobs, 1))
            valkey.execute("DEL", f"{PREFIX}:state")
            await eventually(lambda: first.running == 0 or first.counts.leased > 1)

        @task(name="endless")
        async def brief(context: JobContext) -> int:
            return context.token

        async with worker_on(store, note, brief):
            await eventually(lambda: completed(jobs, made.id))
    assert (await the(jobs, made.id)).result > 1_000_000  # type: ignore[operator]


async def completed(jobs: Jobs, identifier: str) -> bool:
    return (await the(jobs, identifier)).state is State.COMPLETED


# -- the end of a worker ----------------------------------------------------------------------------------------------


async def test_a_worker_that_ends_finishes_what_it_can_and_hands_the_rest_back_at_once(
    store: NativeStore, jobs: Jobs
) -> None:
    gate = Gate()

    @task(name="note")
    async def gated(context: JobContext, number: int) -> int:
        await gate.wait()
        return number

    worker = worker_on(store, gated, endless, concurrency=4, grace=timedelta(seconds=3))
    async with worker:
        stuck = [(await jobs.enqueue(endless)).id for _ in range(2)]
        short = [(await jobs.enqueue(note, number)).id for number in range(2)]
        await eventually(lambda: running(jobs, 4))
        waiting = [one.id for one in await jobs.enqueue_many([note.call(number) for number in range(50)])]
        closing = asyncio.create_task(worker.close())
        await asyncio.sleep(0)
        gate.set()
        await eventually(lambda: completed(jobs, short[1]))
        assert not closing.done()
        await closing
    for identifier in short:
        assert (await the(jobs, identifier)).state is State.COMPLETED
    for identifier in (*stuck, *waiting):
        job = await the(jobs, identifier)
        assert (job.state, job.attempt, job.lost) == (State.QUEUED, 0, 0)
    stats = await jobs.stats()
    assert (stats["note"].completed, stats["note"].queued, stats["endless"].queued) == (2, 50, 2)
    assert stats["note"].running == stats["endless"].running == 0


async def test_a_worker_without_grace_hands_back_what_has_not_taken_its_first_step(
    store: NativeStore, jobs: Jobs
) -> None:
    made = [one.id for one in await jobs.enqueue_many([endless.call() for _ in range(10)])]
    worker = worker_on(store, endless, grace=timedelta(0))
    seen: list[int] = []
    begin = worker._slots.run

    def run(source: Any, leased: Any) -> None:
        begin(source, leased)
        if len(seen) == 0:
            seen.append(worker.running)
            for one in worker._slots.runs():
                one.end("drain")

    worker._slots.run = run  # type: ignore[method-assign]
    async with worker:
        await eventually(lambda: worker.counts.leased >= 10)
    assert seen == [1]
    for identifier in made:
        job = await the(jobs, identifier)
        assert (job.state, job.attempt, job.lost) == (State.QUEUED, 0, 0)


async def test_a_worker_ends_in_time_though_redis_stands_still(valkey: Server, jobs: Jobs) -> None:
    async with native_store(valkey, options=BRISK) as store:
        worker = worker_on(store, endless, grace=timedelta(milliseconds=300))
        async with worker:
            await jobs.enqueue_many([endless.call() for _ in range(20)])
            await eventually(lambda: running(jobs, 10))
            valkey.freeze()
            loop = asyncio.get_running_loop()
            began = loop.time()
            await worker.close()
            assert loop.time() - began < 15
        valkey.thaw()


# -- tasks ------------------------------------------------------------------------------------------------------------


async def outcome(store: Store, one: Task[Any, Any], *, within: float = 20, **options: Any) -> Job:
    """What became of a job of a task that is run once."""
    jobs = Jobs(store, keys=KEYS, tasks=[one])
    async with worker_on(store, one, **options) as worker:
        made = await jobs.enqueue(one)
        job = await jobs.wait(made.id, timedelta(seconds=within))
        assert job is not None
        await eventually(lambda: worker.running == 0)
    return job


@pytest.mark.parametrize(
    "fault", [asyncio.CancelledError(), SystemExit(3), BaseExceptionGroup("many", [SystemExit(1)]), OSError()]
)
@pytest.mark.parametrize("plain", [False, True])
async def test_whatever_a_task_raises_ends_its_job_and_not_its_worker(
    store: NativeStore, fault: BaseException, plain: bool
) -> None:
    if plain:

        @task(name="raises", retry=0)
        def raises(context: JobContext) -> None:
            raise fault
    else:

        @task(name="raises", retry=0)
        async def raises(context: JobContext) -> None:
            raise fault

    job = await outcome(store, raises)
    assert job.state is State.FAILED
    assert job.failure is not None
    assert job.failure.error == type(fault).__name__


async def test_what_a_middleware_raises_is_what_the_job_fails_with(store: NativeStore) -> None:
    @task(name="fine", retry=0)
    async def fine(context: JobContext) -> None: ...

    async def refuses(context: JobContext, call: Next) -> Any:
        raise LookupError

    job = await outcome(store, fine, middleware=[refuses])
    assert job.failure is not None
    assert job.failure.error == "LookupError"


async def test_a_plain_function_that_took_too_long_keeps_its_slot_and_counts_as_timed_out(
    store: NativeStore, jobs: Jobs
) -> None:
    go, begun = threading.Event(), threading.Event()

    @task(name="slow", retry=0, timeout=timedelta(milliseconds=50))
    def slow(context: JobContext) -> str:
        begun.set()
        assert context.wait_cancelled(timedelta(seconds=20))
        go.wait(20)
        return "late"

    async with worker_on(store, slow, concurrency=1) as worker:
        own = Jobs(store, keys=KEYS, tasks=[slow])
        first, second = await own.enqueue(slow), await own.enqueue(slow)
        await eventually(begun.is_set)
        await eventually(lambda: worker.running == 1)
        assert (await the(jobs, second.id)).state in (State.QUEUED, State.RUNNING)
        go.set()
        job = await own.wait(first.id, timedelta(seconds=20))
    assert job is not None
    assert job.failure is not None
    assert (job.state, job.failure.error) == (State.FAILED, "TimeoutError")


async def test_a_job_that_was_cancelled_does_not_run_again_though_its_task_raised_something_else(
    store: NativeStore, jobs: Jobs
) -> None:
    begun: list[str] = []

    @task(name="stubborn", retry=Fixed(attempts=5, pause=SOON))
    async def stubborn(context: JobContext) -> None:
        begun.append(context.id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError from None

    own = Jobs(store, keys=KEYS, tasks=[stubborn])
    async with worker_on(store, stubborn):
        made = await own.enqueue(stubborn)
        await eventually(lambda: begun)
        assert await own.cancel(made.id, "enough") is State.RUNNING
        job = await own.wait(made.id, timedelta(seconds=20))
    assert job is not None
    assert (job.state, job.reason, len(begun)) == (State.CANCELLED, "enough", 1)


async def test_a_job_that_was_to_be_cancelled_is_when_its_worker_hands_it_back(
    store: NativeStore, jobs: Jobs
) -> None:
    queue = Queue(store, KEYS, "default")
    made = await jobs.enqueue(note, 1)
    (leased,) = (await queue.lease(room=1, worker="w", call="1", lease_ms=15_000)).jobs
    assert await jobs.cancel(made.id, "enough") is State.RUNNING

    assert await queue.finish([Result(leased.part, leased.token, "queued", 0, 0, b"")]) == [True]
    job = await the(jobs, made.id)
    assert (job.state, job.reason) == (State.CANCELLED, "enough")


async def test_a_worker_that_ends_leaves_no_task_and_no_timer_behind(store: NativeStore, jobs: Jobs) -> None:
    before = asyncio.all_tasks()
    worker = worker_on(store, endless, concurrency=2, grace=timedelta(0))
    async with worker:
        await jobs.enqueue_many([endless.call() for _ in range(8)])
        await eventually(lambda: worker.counts.leased >= 2)
    assert worker._slots._stale is None
    assert worker.running == 0
    await eventually(lambda: not {one for one in asyncio.all_tasks() - before if not one.done()})


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
