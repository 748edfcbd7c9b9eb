"""Workers over every connection: what runs, what is told of it, and what a job may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from counterseal.core.errors import CodecError, CountersealError, NonRetryable, RetryLater, UnknownName
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Failure, Job, State
from counterseal.jobs.options import Flow
from counterseal.jobs.retry import Fixed, Formula, Listed
from counterseal.jobs.service import Jobs
from counterseal.jobs.statistics import JobStats
from counterseal.jobs.task import Task, task
from counterseal.jobs.types import EMAIL, PROBE, TYPES
from counterseal.jobs.worker import Worker
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.leaks import find_leaks
from support.servers import Server
from support.stores import store_on, travel
from support.waiting import eventually as waited

KEYS = Keys()
SOON = timedelta(seconds=20)
NEVER = timedelta(hours=1)
NOW = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Receipt:
    number: int
    sent_at: datetime
    by_address: dict[int, str]


@task()
async def send(context: JobContext, to: str) -> Receipt:
    return Receipt(7, datetime(2026, 11, 24, tzinfo=UTC), {1: to})


@task()
def count(context: JobContext, number: int) -> int:
    return number + 1


@pytest.fixture
async def plain(valkey: Server) -> AsyncIterator[Store]:
    """A store on one server, for what has nothing to do with its kind."""
    async with store_on(valkey) as store:
        yield store


async def eventually(condition: Callable[[], Any], within: float = 20) -> Any:
    """As the kit's, with the patience that a busy machine needs."""
    return await waited(condition, within)


def made(store: Store, *tasks: Task[Any, Any]) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=tasks)


def working(store: Store, *tasks: Task[Any, Any], **options: Any) -> Worker:
    return Worker(store, keys=KEYS, tasks=tasks, **options)


async def done(jobs: Jobs, identifier: str) -> Job:
    job = await jobs.wait(identifier, SOON)
    assert job is not None
    assert job.state.terminal, job
    return job


def in_state(jobs: Jobs, identifier: str, state: State) -> Callable[[], Awaitable[Job | None]]:
    async def look() -> Job | None:
        job = await jobs.get(identifier)
        return job if job and job.state is state else None

    return look


# -- over every connection ---------------------------------------------------------------------------------------------


async def test_a_probe_runs_through_the_queue_to_its_end(store: Store) -> None:
    jobs = made(store)
    async with working(store):
        run = await jobs.run_probe(SOON)
    assert run.state is State.COMPLETED
    assert (await jobs.stats())[PROBE].completed == 1


async def test_a_result_comes_back_in_the_type_that_the_task_declares(store: Store) -> None:
    jobs = made(store, send, count)
    async with working(store, send, count):
        sent, counted = await jobs.enqueue(send, "ada"), await jobs.enqueue(count, 41)
        assert (await done(jobs, sent.id)).state is State.COMPLETED
        assert (await done(jobs, counted.id)).result == 42
    assert await jobs.result(sent.id, send) == Receipt(7, datetime(2026, 11, 24, tzinfo=UTC), {1: "ada"})
    with pytest.raises(CodecError, match="does not fit the task send"):
        await jobs.result(counted.id, send)
    with pytest.raises(UnknownName, match="no result"):
        await jobs.result("default.x", send)


async def test_progress_and_log_are_told_live_and_the_end_last(store: Store) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @task()
    async def long(context: JobContext) -> None:
        begun.set()
        await go.wait()
        context.progress(0.5, "half")
        context.log("half of it")

    jobs = made(store, long)
    async with working(store, long):
        job = await jobs.enqueue(long)
        await begun.wait()
        seen: list[Any] = []
        async with asyncio.timeout(20):
            async for update in jobs.watch(job.id):
                if update.job is not None:
                    seen.append(update.job.state)
                elif update.progress is not None:
                    seen.append((update.progress.share, update.progress.message))
                else:
                    seen.append(update.line)
                go.set()
    assert seen == [State.RUNNING, (0.5, "half"), "half of it", State.COMPLETED]
    assert [text for _, text in await jobs.logs(job.id)] == ["half of it"]


async def test_what_becomes_of_jobs_can_be_followed_from_a_position(store: Store) -> None:
    jobs = made(store, count)
    async with working(store, count):
        first = await jobs.enqueue(count, 1)
        await done(jobs, first.id)
        events = jobs.events(since="0")
        seen = [await anext(events) for _ in range(3)]
        assert [(one.id, one.what) for one in seen] == [
            (first.id, "enqueued"), (first.id, "started"), (first.id, "completed"),
        ]  # fmt: skip
        waiting = asyncio.ensure_future(anext(events))
        second = await jobs.enqueue(count, 2)
        async with asyncio.timeout(20):
            assert (await waiting).id == second.id
        await events.aclose()  # type: ignore[attr-defined]
        later = jobs.events(since=seen[1].position)
        assert (await anext(later)).what == "completed"
        await later.aclose()  # type: ignore[attr-defined]
        await done(jobs, second.id)


async def test_a_running_job_is_cancelled_from_elsewhere_with_a_reason(store: Store) -> None:
    begun = asyncio.Event()
    told: list[str | None] = []

    @task()
    async def endless(context: JobContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.append(context.reason)

    jobs = made(store, endless)
    async with working(store, endless):
        job = await jobs.enqueue(endless)
        await begun.wait()
        assert await jobs.cancel(job.id, "withdrawn") is State.RUNNING
        ended = await done(jobs, job.id)
    assert (ended.state, ended.reason, told) == (State.CANCELLED, "withdrawn", ["withdrawn"])


# -- whatever the connection -------------------------------------------------------------------------------------------


async def test_an_idle_worker_is_woken_by_a_message_and_not_by_its_poll(plain: Store) -> None:
    jobs = made(plain)
    async with working(plain, poll=NEVER):
        await jobs.run_probe(SOON)
        assert (await jobs.run_probe(SOON)).state is State.COMPLETED  # SOON is long before NEVER


async def test_a_plain_function_sees_that_it_is_cancelled(plain: Store) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    @task()
    def patient(context: JobContext, returns: bool) -> str:
        loop.call_soon_threadsafe(begun.set)
        assert context.wait_cancelled(SOON)
        if not returns:
            raise RuntimeError("gave up")
        return "done all the same"

    jobs = made(plain, patient)
    async with working(plain, patient):
        for returns, state in ((False, State.CANCELLED), (True, State.COMPLETED)):
            begun.clear()
            job = await jobs.enqueue(patient, returns)
            await begun.wait()
            await jobs.cancel(job.id, "withdrawn")
            assert (await done(jobs, job.id)).state is state


async def test_each_job_runs_again_by_its_own_policy(plain: Store) -> None:
    attempts: dict[str, list[int]] = {}

    @task(retry=Fixed(3, NOW))
    async def flaky(context: JobContext, name: str) -> None:
        attempts.setdefault(name, []).append(context.attempt)
        raise OSError("the password is hunter2")

    jobs = made(plain, flaky)
    policies = {"task": None, "listed": Listed((NOW,)), "formula": Formula(4, "retried"), "none": 0}
    async with working(plain, flaky, poll=timedelta(seconds=1)):
        for name, policy in policies.items():
            job = await done(jobs, (await jobs.enqueue(flaky.using(retry=policy), name)).id)
            assert job.state is State.FAILED
            assert job.failure is not None
            assert (job.failure.error, job.failure.message) == ("OSError", "")
            assert "flaky, test_jobs_worker.py" in job.failure.where
    assert {name: len(found) for name, found in attempts.items()} == {
        "task": 3, "listed": 2, "formula": 4, "none": 1,
    }  # fmt: skip
    assert attempts["task"] == [1, 2, 3]
    assert (await jobs.stats())["flaky"].failures == 10


async def test_a_task_says_itself_whether_it_runs_again(plain: Store) -> None:
    @task(retry=5)
    async def decide(context: JobContext, better: bool) -> int:
        if context.attempt == 1 and better:
            raise RetryLater(pause=NOW)
        if not better:
            raise NonRetryable("no such address")
        return context.attempt

    jobs = made(plain, decide)
    async with working(plain, decide):
        assert (await done(jobs, (await jobs.enqueue(decide, True)).id)).result == 2
        job = await done(jobs, (await jobs.enqueue(decide, False)).id)
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert job.failure is not None
    assert job.failure.message == "no such address"


async def test_a_time_out_is_a_failed_run_and_a_deadline_the_end(plain: Store) -> None:
    @task(retry=0)
    async def endless(context: JobContext) -> None:
        await asyncio.Event().wait()

    jobs = made(plain, endless)
    short = timedelta(milliseconds=50)
    now = datetime.fromtimestamp(plain.now_ms() / 1000, UTC)
    async with working(plain, endless):
        timed = await jobs.enqueue(endless.using(timeout=short, retry=Listed((NOW,))))
        late = await jobs.enqueue(endless.using(deadline=now + timedelta(seconds=1), retry=5))
        past = await jobs.enqueue(endless.using(deadline=now - short))
        ends = {name: await done(jobs, one.id) for name, one in (("t", timed), ("l", late), ("p", past))}
    found = {name: (job.failure.error, job.attempt) for name, job in ends.items() if job.failure}
    assert found == {"t": ("TimeoutError", 2), "l": ("DeadlineExceeded", 1), "p": ("DeadlineExceeded", 1)}
    assert ends["p"].failure is not None
    assert "before the job began" in ends["p"].failure.message


async def test_what_a_plain_function_returns_after_its_timeout_or_deadline_does_not_count(
    plain: Store,
) -> None:
    @task(retry=0)
    def late(context: JobContext) -> str:
        assert context.wait_cancelled(SOON)
        return "too late"

    jobs = made(plain, late)
    now = datetime.fromtimestamp(plain.now_ms() / 1000, UTC)
    async with working(plain, late):
        timed = await jobs.enqueue(late.using(timeout=timedelta(milliseconds=50)))
        dated = await jobs.enqueue(late.using(deadline=now + timedelta(seconds=1)))
        ends = [await done(jobs, one.id) for one in (timed, dated)]
    assert [job.failure.error for job in ends if job.failure] == ["TimeoutError", "DeadlineExceeded"]
    assert [job.result for job in ends] == [None, None]


class Unspeakable(CountersealError):
    """Raises when it is to be told."""

    def __str__(self) -> str:
        raise RuntimeError("hunter2")


async def test_what_keeps_a_job_from_being_run_is_logged_by_name_and_place_alone(
    plain: Store, caplog: pytest.LogCaptureFixture
) -> None:
    @task(retry=0)
    async def breaks(context: JobContext) -> None:
        raise Unspeakable("hunter2")

    jobs = made(plain, breaks)
    async with working(plain, breaks):
        job = await done(jobs, (await jobs.enqueue(breaks)).id)
    assert job.failure is not None
    assert (job.state, job.failure.error, job.failure.message) == (State.FAILED, "RuntimeError", "")
    assert "can't be run: RuntimeError (in __str__" in caplog.text
    assert "hunter2" not in caplog.text


async def test_leaving_hands_back_what_is_not_done_within_the_grace(plain: Store) -> None:
    begun = asyncio.Event()

    @task()
    async def endless(context: JobContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    jobs = made(plain, endless)
    async with working(plain, endless, grace=timedelta(milliseconds=20), concurrency=1):
        running, waiting = await jobs.enqueue(endless), await jobs.enqueue(endless)
        await begun.wait()
    for one in (running, waiting):
        job = await jobs.get(one.id)
        assert job is not None
        assert (job.state, job.attempt, job.lost) == (State.QUEUED, 0, 0)
    assert [job.id for job in await jobs.list(state=State.QUEUED)] == [running.id, waiting.id]


async def test_no_more_jobs_run_at_once_than_asked_for_and_all_of_them_run(plain: Store) -> None:
    now, most, seen = 0, 0, 0

    @task()
    async def busy(context: JobContext) -> None:
        nonlocal now, most, seen
        now += 1
        most = max(most, now)
        await plain.command("PING")
        now -= 1
        seen += 1

    jobs = made(plain, busy)
    await jobs.enqueue_many([busy.call() for _ in range(50)])
    async with working(plain, busy, concurrency=4, poll=NEVER):
        await eventually(lambda: seen == 50)
    assert most == 4


async def test_a_strict_queue_runs_one_job_after_the_other_in_order_for_many_workers(plain: Store) -> None:
    order: list[int] = []
    failed: set[int] = set()

    @task(queue="strict", retry=Fixed(2, NOW))
    async def step(context: JobContext, number: int) -> None:
        if number % 3 == 0 and number not in failed:
            failed.add(number)
            raise RuntimeError
        order.append(number)

    jobs = made(plain, step)
    await jobs.set_parallelism("strict", 1)
    await jobs.enqueue_many([step.call(number) for number in range(20)])
    async with working(plain, step, queues=["strict"]), working(plain, step, queues=["strict"]):
        await eventually(lambda: len(order) == 20)
    assert order == list(range(20))


async def test_a_tenant_with_a_thousand_jobs_starves_neither_another_nor_plain_jobs(plain: Store) -> None:
    order: list[str] = []

    @task()
    async def work(context: JobContext, tenant: str) -> None:
        order.append(tenant)

    jobs = made(plain, work)
    big, small = work.using(flow=Flow("big")), work.using(flow=Flow("small"))
    await jobs.enqueue_many([big.call("big") for _ in range(1000)])
    await jobs.enqueue_many([small.call("small") for _ in range(3)])
    await jobs.enqueue_many([work.call("plain") for _ in range(3)])
    async with working(plain, work, concurrency=3):
        await eventually(lambda: len(order) == 1006)
    assert order[:9].count("small") == order[:9].count("plain") == 3


async def test_jobs_of_an_application_wait_for_the_release_that_has_their_handler(plain: Store) -> None:
    old = made(plain, count)
    waiting = await old.enqueue_json(EMAIL, {"to": "ada"})
    unknown = await made(plain, send).enqueue(send, "ada")
    async with working(plain):
        for one in (waiting, unknown):
            await eventually(in_state(old, one.id, State.RETRYING))
    reasons = {job.id: job.failure.message for job in await old.dead() if job.failure}
    assert reasons == {waiting.id: "no handler in this release", unknown.id: "unknown task"}

    @task(name=EMAIL)
    async def email(context: JobContext, to: str) -> str:
        return to

    async with working(plain, email, send):
        assert (await done(old, waiting.id)).result == "ada"
        job = await done(old, unknown.id)
    assert (job.state, job.attempt, await old.dead()) == (State.COMPLETED, 1, [])


async def test_three_releases_of_an_argument_run_each_others_jobs_once_they_can(plain: Store) -> None:
    seen: list[tuple[int, str]] = []

    @task(name="greet")
    async def first(context: JobContext, name: str) -> None:
        seen.append((1, name))

    @task(name="greet", schema=2, upgrades={1: lambda old: {"first": old["name"], "last": "?"}})
    async def second(context: JobContext, first: str, last: str) -> None:
        seen.append((2, f"{first} {last}"))

    @task(
        name="greet",
        schema=3,
        upgrades={
            1: lambda old: {"first": old["name"], "last": "?"},
            2: lambda old: {"full": f"{old['first']} {old['last']}"},
        },
    )
    async def third(context: JobContext, full: str) -> None:
        seen.append((3, full))

    jobs = made(plain)
    ids = [
        (await made(plain, first).enqueue(first, "Ada")).id,
        (await made(plain, second).enqueue(second, "Ada", "Byron")).id,
        (await made(plain, third).enqueue(third, "Ada Lovelace")).id,
    ]
    async with working(plain, first):
        await done(jobs, ids[0])
        for later in ids[1:]:
            await eventually(in_state(jobs, later, State.RETRYING))
    assert all(job.failure and "schema" in job.failure.message for job in await jobs.dead())
    async with working(plain, second):
        await done(jobs, ids[1])
        await eventually(in_state(jobs, ids[2], State.RETRYING))
    old = await made(plain, first).enqueue(first, "Grace")
    async with working(plain, third):
        await done(jobs, ids[2])
        await done(jobs, old.id)
    assert seen[:2] == [(1, "Ada"), (2, "Ada Byron")]
    assert sorted(seen[2:]) == [(3, "Ada Lovelace"), (3, "Grace ?")]
    assert await jobs.dead() == []


async def test_an_argument_that_an_upgrade_can_not_read_fails_for_good(plain: Store) -> None:
    @task(name="greet")
    async def first(context: JobContext, name: str) -> None: ...

    @task(name="greet", schema=2, upgrades={1: lambda old: {"full": old["missing"]}})
    async def second(context: JobContext, full: str) -> None: ...

    jobs = made(plain, first)
    made_before = await jobs.enqueue(first, "Ada")
    async with working(plain, second):
        job = await done(jobs, made_before.id)
    assert job.failure == Failure("ArgumentInvalid", "the arguments do not fit the task greet: KeyError")


async def test_the_statistics_are_right_after_thousands_of_jobs_and_every_kind_of_end(plain: Store) -> None:
    @task(name="mixed", retry=Fixed(2, NOW))
    async def mixed(context: JobContext, number: int) -> None:
        if number % 5 == 0:
            raise NonRetryable("no")
        if number % 5 == 1 and context.attempt == 1:
            raise RuntimeError

    jobs = made(plain, mixed)
    await jobs.pause()
    made_now = await jobs.enqueue_many([mixed.call(number) for number in range(3000)])
    for one in made_now[2::300]:
        await jobs.cancel(one.id)
    await jobs.enqueue(mixed.using(delay=timedelta(hours=1)), 1)
    await jobs.resume()
    async with working(plain, mixed, concurrency=50):

        async def over() -> bool:
            return (await jobs.stats())["mixed"].pending == 1

        await eventually(over, within=60)
    assert (await jobs.stats())["mixed"] == JobStats(
        total=3001, completed=2390, failed=600, pending=1, success_rate=79.93, cancelled=10, scheduled=1,
        runs=3590, failures=1200,
    )  # fmt: skip
    travel(plain, timedelta(minutes=1))
    found = await jobs.throughput("mixed")
    assert (found.completed_last_hour, found.failed_last_hour) == (2390, 600)
    (queue,) = await jobs.queues()
    assert (queue.queued, queue.running, queue.delayed, queue.dead) == (0, 0, 1, 600)
    assert queue.oldest_age is None


async def test_waiting_times_are_told_to_one_per_cent(plain: Store) -> None:
    jobs = made(plain, count)
    waits: list[int] = []
    for number in range(40):
        await jobs.enqueue(count, number)
        waits = [waited_ms + 1 + number * number * 37 for waited_ms in waits] + [1 + number * number * 37]
        travel(plain, timedelta(milliseconds=1 + number * number * 37))
    (queue,) = await jobs.queues()
    assert queue.oldest_age is not None
    assert abs(queue.oldest_age / timedelta(milliseconds=max(waits)) - 1) < 0.02
    async with working(plain, count):
        await eventually(lambda: _completed(jobs, "count", 40))
    times, runs = await jobs.times("count")
    assert (times.count, runs.count) == (40, 40)
    waits.sort()
    for share, value in ((0.5, times.p50), (0.95, times.p95), (0.99, times.p99)):
        exact = waits[int(share * 39)] / 1000
        assert abs(value.total_seconds() - exact) <= 0.01 * exact + 3  # the machine's own time goes on
    assert runs.p50 > timedelta(0)


async def _completed(jobs: Jobs, kind: str, number: int) -> bool:
    return (await jobs.stats())[kind].completed == number


async def test_when_all_jobs_have_ended_and_their_time_has_passed_only_what_is_declared_is_left(
    plain: Store, valkey: Server
) -> None:
    @task(retry=0, keep=timedelta(milliseconds=1))
    async def work(context: JobContext, fails: bool) -> None:
        context.progress(1)
        context.log("done")
        if fails:
            raise RuntimeError

    jobs = made(plain, work)
    flow = Flow("tenant:1", parallelism=1, rate=100, period=timedelta(milliseconds=1))
    busy = work.using(flow=flow, tags=("t",), unique="u", dedup_id="d")
    async with working(plain, work):
        first = await jobs.enqueue(busy, False)
        await eventually(lambda: _completed(jobs, "work", 1))
        second = await jobs.enqueue(work.using(flow=flow), True)
        await done(jobs, second.id)
        cancelled = await jobs.enqueue(work.using(flow=flow, delay=NEVER), True)
        assert await jobs.cancel(cancelled.id) is State.CANCELLED
        await jobs.delete_dead(second.id)
    assert find_leaks(valkey.client) == []
    lasting = {leak.removeprefix("db0 cs:jobs:") for leak in find_leaks(valkey.client, ())}
    of_queue = {f"{{default}}:{name}" for name in ("queue", "events", "types", "stats:work", "times:work")}
    assert lasting == {"queues", *of_queue}
    assert await jobs.get(first.id) is None


async def test_every_known_type_has_statistics_also_an_idle_one(plain: Store) -> None:
    assert list(await made(plain, send).stats()) == [*TYPES, "send"]


async def test_a_flow_has_its_limits_again_when_a_job_of_it_comes_back_after_it_was_forgotten(
    plain: Store, valkey: Server
) -> None:
    now, most, ended = 0, 0, 0

    @task(name="narrow")
    async def narrow(context: JobContext) -> None:
        nonlocal now, most, ended
        now += 1
        most = max(most, now)
        await plain.command("PING")
        now -= 1
        ended += 1

    jobs = made(plain, narrow)
    later = narrow.using(flow=Flow("f", parallelism=1), delay=NEVER)
    await jobs.enqueue_many([later.call() for _ in range(5)])
    assert valkey.execute("EXISTS", "cs:jobs:{default}:flow:f") == 0
    travel(plain, NEVER)
    async with working(plain, narrow):
        await eventually(lambda: ended == 5)
        await eventually(lambda: valkey.execute("PTTL", "cs:jobs:{default}:flow:f") > 0)
    assert most == 1
