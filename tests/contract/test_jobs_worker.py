"""Workers over every connection: what runs, what is waited for, and what becomes of jobs when one goes away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from counterseal.core.errors import CodecError, StoreError, UnknownName
from counterseal.jobs.job import Job, State
from counterseal.jobs.service import DEFAULT_QUEUE, Jobs
from counterseal.jobs.types import EMAIL, NOTIFICATION, PROBE
from counterseal.jobs.worker import Task, Worker, do_nothing
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import native_store, store_on
from support.waiting import eventually

KEYS = Keys()
SOON = timedelta(seconds=10)
NEVER = timedelta(hours=1)


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS)


@pytest.fixture
async def plain(valkey: Server) -> AsyncIterator[Store]:
    """A store on one server, for what has nothing to do with its kind."""
    async with store_on(valkey) as store:
        yield store


def in_state(jobs: Jobs, identifier: str, state: State) -> Callable[[], Awaitable[Job | None]]:
    async def look() -> Job | None:
        job = await jobs.get(identifier)
        return job if job and job.state is state else None

    return look


async def test_a_probe_runs_through_the_queue_to_its_end(store: Store, jobs: Jobs) -> None:
    async with Worker(store, keys=KEYS):
        run = await jobs.run_probe(SOON)
    assert run.state is State.COMPLETED
    assert run.ms >= 0
    assert (await jobs.stats())[PROBE].completed == 1


async def test_a_probe_without_a_worker_says_that_it_is_still_queued(store: Store, jobs: Jobs) -> None:
    run = await jobs.run_probe(timedelta(milliseconds=50))
    assert run.state is State.QUEUED
    assert run.ms >= 50
    async with Worker(store, keys=KEYS):
        assert await eventually(in_state(jobs, run.id, State.COMPLETED))


async def test_an_idle_worker_is_woken_by_a_message_and_not_by_its_poll(store: Store, jobs: Jobs) -> None:
    async with Worker(store, keys=KEYS, poll=NEVER):
        assert (await jobs.run_probe(SOON)).state is State.COMPLETED  # perhaps found on its way in
        started = time.perf_counter()
        assert (await jobs.run_probe(SOON)).state is State.COMPLETED
        assert time.perf_counter() - started < 5


async def test_an_idle_worker_does_not_ask_again_and_again(plain: Store) -> None:
    jobs = Jobs(plain, keys=KEYS)
    async with Worker(plain, keys=KEYS, poll=NEVER):
        await jobs.run_probe(SOON)
        before = plain.counts.commands
        for _ in range(10):
            await jobs.run_probe(SOON)
        assert plain.counts.commands - before <= 10 * 8


async def test_a_job_that_no_message_tells_of_is_found_by_the_poll(plain: Store) -> None:
    jobs = Jobs(plain, keys=KEYS)
    async with Worker(plain, keys=KEYS, poll=timedelta(milliseconds=50)):
        await jobs.run_probe(SOON)
        await plain.command("SET", "elsewhere", "1", "PX", 1000)
        identifier = "unannounced"
        await plain.pipeline([
            ("HSET", KEYS.job(DEFAULT_QUEUE, identifier), "type", PROBE, "state", "queued", "payload", "1:null",
             "attempt", 0, "lost", 0, "queued_ms", plain.now_ms()),
            ("RPUSH", KEYS.jobs_ready(DEFAULT_QUEUE, PROBE), identifier),
        ])  # fmt: skip
        assert await eventually(in_state(jobs, identifier, State.COMPLETED))


async def test_a_handler_gets_its_job_and_its_return_or_error_is_the_outcome(
    store: Store, jobs: Jobs
) -> None:
    seen: list[Task] = []

    async def mail(task: Task) -> None:
        seen.append(task)
        if task.payload == "foreign":
            raise ValueError("the password is hunter2")
        if task.payload == "ours":
            raise CodecError("This can't be read.")

    async with Worker(store, keys=KEYS, handlers={EMAIL: mail}):
        good, foreign, ours = [
            await jobs.enqueue(EMAIL, payload) for payload in ({"n": 1.0}, "foreign", "ours")
        ]
        assert await eventually(in_state(jobs, good, State.COMPLETED))
        failed = await eventually(in_state(jobs, foreign, State.FAILED))
        told = await eventually(in_state(jobs, ours, State.FAILED))
    assert Task(good, EMAIL, 1, {"n": 1.0}) in seen
    assert failed is not None
    assert failed.error == "ValueError"
    assert told is not None
    assert told.error == "CodecError: This can't be read."


async def test_jobs_without_a_handler_wait_while_others_run(store: Store, jobs: Jobs) -> None:
    waiting = await jobs.enqueue(EMAIL, None)
    async with Worker(store, keys=KEYS):
        assert (await jobs.run_probe(SOON)).state is State.COMPLETED
    job = await jobs.get(waiting)
    assert job is not None
    assert job.state is State.QUEUED


async def test_a_handler_for_a_type_that_nobody_declared_is_refused(valkey: Server) -> None:
    async def handle(task: Task) -> None: ...

    with pytest.raises(UnknownName):
        Worker(native_store(valkey), keys=KEYS, handlers={"emial": handle})


async def test_no_more_jobs_run_at_once_than_asked_for_and_all_of_them_run(plain: Store) -> None:
    jobs = Jobs(plain, keys=KEYS)
    now, most = 0, 0
    seen: list[str] = []

    async def handle(task: Task) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await plain.command("PING")
        now -= 1
        seen.append(task.id)

    queued = {await jobs.enqueue(NOTIFICATION, number) for number in range(50)}
    async with Worker(plain, keys=KEYS, handlers={NOTIFICATION: handle}, concurrency=4, poll=NEVER):
        await eventually(lambda: len(seen) == 50, within=20)
    assert set(seen) == queued
    assert most == 4


async def test_leaving_waits_for_the_jobs_under_way_and_takes_no_more(plain: Store) -> None:
    jobs = Jobs(plain, keys=KEYS)
    begun, go = asyncio.Event(), asyncio.Event()

    async def handle(task: Task) -> None:
        begun.set()
        await go.wait()

    async with asyncio.timeout(20):
        async with Worker(plain, keys=KEYS, handlers={EMAIL: handle}, concurrency=1, grace=SOON):
            running = await jobs.enqueue(EMAIL, 1)
            await begun.wait()
            later = await jobs.enqueue(EMAIL, 2)
            asyncio.get_running_loop().call_later(0.1, go.set)
    assert (await jobs.get(running)).state is State.COMPLETED  # type: ignore[union-attr]
    assert (await jobs.get(later)).state is State.QUEUED  # type: ignore[union-attr]


async def test_a_job_that_is_not_done_within_the_grace_goes_back_to_its_queue(plain: Store) -> None:
    jobs = Jobs(plain, keys=KEYS)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handle(task: Task) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Worker(plain, keys=KEYS, handlers={EMAIL: handle}, grace=timedelta(milliseconds=20)):
        identifier = await jobs.enqueue(EMAIL, 1)
        await begun.wait()
    assert ended.is_set()
    job = await jobs.get(identifier)
    assert job is not None
    assert (job.state, job.lost) == (State.QUEUED, 0)


async def test_a_cancelled_owner_leaves_no_task_behind(plain: Store) -> None:
    jobs = Jobs(plain, keys=KEYS)
    begun = asyncio.Event()

    async def handle(task: Task) -> None:
        begun.set()
        await asyncio.Event().wait()

    worker = Worker(plain, keys=KEYS, handlers={EMAIL: handle}, grace=NEVER)

    async def own() -> None:
        async with worker:
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    owner = asyncio.create_task(own())
    identifier = await jobs.enqueue(EMAIL, 1)
    await begun.wait()
    owner.cancel()
    await eventually(lambda: worker._closing)
    owner.cancel()  # the first asks for an orderly end, which would take an hour; the second means now
    await asyncio.wait([owner], timeout=5)
    assert owner.cancelled()
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not {name for name in left if any(word in name for word in ("job", "lease", "listen"))}
    assert (await jobs.get(identifier)).state is State.QUEUED  # type: ignore[union-attr]


async def test_the_lease_of_a_long_job_is_prolonged(plain: Store) -> None:
    jobs = Jobs(plain, keys=KEYS)
    go = asyncio.Event()
    lease = timedelta(milliseconds=300)
    runs: list[int] = []

    async def handle(task: Task) -> None:
        runs.append(task.attempt)
        await go.wait()

    key = KEYS.jobs_running(DEFAULT_QUEUE)

    async def end_of_lease() -> float:
        reply = await plain.command("ZSCORE", key, identifier)
        return float(reply) if isinstance(reply, bytes) else 0

    quick = {"lease": lease, "poll": timedelta(milliseconds=50)}
    async with (
        Worker(plain, keys=KEYS, handlers={EMAIL: handle}, **quick),
        Worker(plain, keys=KEYS, handlers={EMAIL: handle}, **quick),
    ):
        identifier = await jobs.enqueue(EMAIL, 1)
        first = await eventually(end_of_lease)

        async def prolonged_past_its_end() -> bool:
            return plain.now_ms() > first + 600 and await end_of_lease() > first

        await eventually(prolonged_past_its_end)
        go.set()
        assert await eventually(in_state(jobs, identifier, State.COMPLETED))
    assert runs == [1]


async def test_a_handler_that_blocks_the_loop_past_its_lease_is_refused_and_named(
    plain: Store, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(plain, keys=KEYS)
    attempts: list[int] = []

    async def handle(task: Task) -> None:
        attempts.append(task.attempt)
        if task.attempt == 1:
            # What another worker does meanwhile: it finds the lease run out and puts the job back.
            valkey.execute("ZREM", KEYS.jobs_running(DEFAULT_QUEUE), task.id)
            valkey.execute("HSET", KEYS.job(DEFAULT_QUEUE, task.id), "state", "queued")
            valkey.execute("LPUSH", KEYS.jobs_ready(DEFAULT_QUEUE, EMAIL), task.id)

    with caplog.at_level(logging.WARNING):
        async with Worker(plain, keys=KEYS, handlers={EMAIL: handle}):
            identifier = await jobs.enqueue(EMAIL, 1)
            done = await eventually(in_state(jobs, identifier, State.COMPLETED))
    assert done is not None
    assert attempts == [1, 2]
    assert f"the result of job {identifier} of type email was refused" in caplog.text


async def test_a_handler_whose_lease_is_lost_is_cancelled(plain: Store, valkey: Server) -> None:
    jobs = Jobs(plain, keys=KEYS)
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(task: Task) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Worker(plain, keys=KEYS, handlers={EMAIL: handle}, lease=timedelta(milliseconds=100)):
        identifier = await jobs.enqueue(EMAIL, 1)
        await begun.wait()
        valkey.execute("HSET", KEYS.job(DEFAULT_QUEUE, identifier), "state", "cancelled")
        async with asyncio.timeout(10):
            await cancelled.wait()
    assert (await jobs.get(identifier)).state is State.CANCELLED  # type: ignore[union-attr]


async def test_a_worker_lives_through_the_restart_of_its_server(servers: Callable[..., Server]) -> None:
    server = servers(appendonly=True)
    async with native_store(server) as store:
        jobs = Jobs(store, keys=KEYS)
        begun, go = asyncio.Event(), asyncio.Event()

        async def handle(task: Task) -> None:
            begun.set()
            await go.wait()

        async with Worker(store, keys=KEYS, handlers={EMAIL: handle}, poll=timedelta(milliseconds=200)):
            identifier = await jobs.enqueue(EMAIL, 1)
            await begun.wait()
            server.stop()
            go.set()
            server.start()
            assert await eventually(in_state_after(jobs, identifier), within=20)
            await eventually(lambda: store.available, within=20)
            assert (await jobs.run_probe(SOON)).state is State.COMPLETED


def in_state_after(jobs: Jobs, identifier: str) -> Callable[[], Awaitable[bool]]:
    """Completed, asked of a server that may still be away."""

    async def look() -> bool:
        try:
            job = await jobs.get(identifier)
        except StoreError:
            return False
        return job is not None and job.state is State.COMPLETED

    return look


async def test_a_worker_may_begin_while_its_server_is_away(servers: Callable[..., Server]) -> None:
    server = servers()
    async with native_store(server) as store:
        jobs = Jobs(store, keys=KEYS)
        server.stop()
        async with Worker(store, keys=KEYS, poll=timedelta(milliseconds=200)):
            server.start()
            await eventually(lambda: store.available, within=20)
            assert (await jobs.run_probe(SOON)).state is State.COMPLETED


async def test_a_worker_that_may_not_listen_says_so_once_and_finds_its_jobs_by_looking(
    servers: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = servers(acl=["deaf on >secret ~* &* +@all -subscribe"])
    async with native_store(server, user="deaf", password="secret") as store:
        jobs = Jobs(store, keys=KEYS)
        async with Worker(store, keys=KEYS, handlers={EMAIL: do_nothing}, poll=timedelta(milliseconds=20)):
            await eventually(lambda: refusals(server) >= 3)
            identifier = await jobs.enqueue(EMAIL, {})
            await eventually(in_state(jobs, identifier, State.COMPLETED))
    assert caplog.text.count("new jobs can't be listened for") == 1


def refusals(server: Server) -> int:
    """How often a server has refused a command to somebody who may not use it."""
    return int(server.info("errorstats").get("errorstat_NOPERM", "count=0").removeprefix("count="))
