"""The queue over every connection: each script of the job engine, one operation at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from counterseal.core.errors import ArgumentInvalid, CodecError, CommandError, UnknownName, ValueTooLarge
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Failure, Job, State, write_failure
from counterseal.jobs.options import Flow, Options, Priority
from counterseal.jobs.scripts import MOST_LOST, Batch, Leased, Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.statistics import JobStats
from counterseal.jobs.task import DEFAULT_QUEUE, Task, task
from counterseal.jobs.types import EMAIL, TYPES
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.exact import same
from support.stores import travel

KEYS = Keys()
LEASE = timedelta(seconds=15)
DAY_MS = 86_400_000
NONE = JobStats(total=0, completed=0, failed=0, pending=0, success_rate=0)


@task(name="mail")
async def mail(context: JobContext, to: str, copies: int = 1, *, note: dict[str, Any] | None = None) -> str:
    return to


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[mail], max_payload=2000)


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store, KEYS, DEFAULT_QUEUE)


class Calls:
    """Lease calls of one worker, numbered as a worker does."""

    def __init__(self, queue: Queue, worker: str = "w") -> None:
        self.queue = queue
        self.worker = worker
        self.number = 0

    async def batch(self, room: int = 100) -> Batch:
        self.number += 1
        return await self.queue.lease(
            room=room, worker=self.worker, call=str(self.number), lease_ms=LEASE // timedelta(milliseconds=1)
        )

    async def __call__(self, room: int = 100) -> list[Leased]:
        return (await self.batch(room)).jobs

    async def one(self) -> Leased:
        (leased,) = await self(1)
        return leased


@pytest.fixture
def lease(queue: Queue) -> Calls:
    return Calls(queue)


def whole(leased: Leased) -> str:
    return f"{DEFAULT_QUEUE}.{leased.part}"


def ended(leased: Leased, outcome: str = "completed", text: bytes = b"", *, ms: int = DAY_MS) -> Result:
    return Result(leased.part, leased.token, outcome, ms, 1500, text)


def failed(leased: Leased, error: str = "ValueError") -> Result:
    return ended(leased, "failed", write_failure(Failure(error)))


async def get(jobs: Jobs, identifier: str) -> Job:
    job = await jobs.get(identifier)
    assert job is not None
    return job


async def state_of(jobs: Jobs, identifier: str) -> State:
    return (await get(jobs, identifier)).state


async def stats(jobs: Jobs, kind: str = "mail") -> JobStats:
    return (await jobs.stats())[kind]


async def test_a_job_goes_from_queued_over_running_to_completed_and_is_counted_on_its_way(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    note = {"id": 12345678901234567, "ratio": 1.0, "x": "007", "none": None}
    made = await jobs.enqueue(mail.using(tags=("tenant:1",), parent="p.1"), "ada@example.org", note=note)
    assert made.created
    job = await get(jobs, made.id)
    assert same(job.args, {"to": "ada@example.org", "copies": 1, "note": note})
    assert (job.type, job.state, job.attempt, job.lost, job.queue) == ("mail", State.QUEUED, 0, 0, "default")
    assert (job.started_at, job.ended_at, job.failure, job.idempotency_key) == (None, None, None, made.id)
    assert (job.tags, job.parent) == (("tenant:1",), "p.1")
    assert (await stats(jobs)).queued == 1

    leased = await lease.one()
    assert (whole(leased), leased.type, leased.attempt) == (made.id, "mail", 1)
    assert (await state_of(jobs, made.id), (await stats(jobs)).running) == (State.RUNNING, 1)
    assert await queue.finish([ended(leased, text=b'"sent"')]) == [True]

    job = await get(jobs, made.id)
    assert (job.state, job.result, job.attempt) == (State.COMPLETED, "sent", 1)
    assert job.run_time == timedelta(microseconds=1500)
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.queued_at <= job.started_at <= job.ended_at
    ttl_ms = await store.command("PTTL", f"{queue.prefix}:job:{leased.part}")
    assert isinstance(ttl_ms, int)
    assert DAY_MS < ttl_ms <= DAY_MS + 1000  # the clock of the store ends it before
    assert await stats(jobs) == JobStats(total=1, completed=1, failed=0, pending=0, success_rate=100, runs=1)


async def test_what_nobody_queued_is_none(jobs: Jobs) -> None:
    assert await jobs.get("default.nothing") is None
    assert await jobs.get("no id") is None
    assert await jobs.cancel("default.nothing") is None
    assert await jobs.wait("default.nothing") is None
    assert await jobs.stats() == dict.fromkeys((*TYPES, "mail"), NONE)


async def test_what_does_not_fit_is_refused_and_nothing_is_written(jobs: Jobs, store: Store) -> None:
    wrong: Any = mail
    with pytest.raises(ArgumentInvalid, match="do not fit the task mail"):
        await jobs.enqueue(wrong, 7)
    with pytest.raises(ArgumentInvalid, match="do not fit the task mail"):
        await jobs.enqueue(wrong, "a", unknown=1)
    with pytest.raises(ArgumentInvalid, match="unknown"):
        await jobs.enqueue_json("mail", {"to": "a", "unknown": 1})
    with pytest.raises(ArgumentInvalid, match="do not fit the task mail"):
        await jobs.enqueue_json("mail", {"to": None})
    with pytest.raises(ArgumentInvalid, match="JSON object"):
        await jobs.enqueue_json("mail", ["a"])
    with pytest.raises(CodecError):
        await jobs.enqueue_json(EMAIL, {"when": timedelta(1)})  # type: ignore[dict-item]
    with pytest.raises(UnknownName, match="no type of job is named 'emial'; the types are email"):
        await jobs.enqueue_json("emial", {})
    with pytest.raises(ValueTooLarge, match="the limit is 2000"):
        await jobs.enqueue(mail, "x" * 2000)
    with pytest.raises(ValueTooLarge, match="the limit is 2000"):
        await jobs.enqueue_many([mail.call("fits"), mail.call("x" * 2000)])
    assert await stats(jobs) == NONE
    assert await jobs.list() == []
    assert await store.command("EXISTS", KEYS.jobs_queues()) == 0


async def test_many_jobs_of_several_queues_arrive_in_order(jobs: Jobs, lease: Calls) -> None:
    elsewhere = mail.using(queue="b")
    made = await jobs.enqueue_many(
        [(elsewhere if number % 2 else mail).call(str(number)) for number in range(600)]
    )
    assert [one.created for one in made] == [True] * 600
    assert {one.id.partition(".")[0] for one in made[1::2]} == {"b"}
    leased = [*await lease(200), *await lease(200)]
    assert [whole(one) for one in leased] == [one.id for one in made[::2]]
    assert (await get(jobs, made[599].id)).args == {"to": "599", "copies": 1, "note": None}
    assert (await stats(jobs)).total == 600


async def test_priorities_go_first_and_jobs_of_one_in_their_order(jobs: Jobs, lease: Calls) -> None:
    made = [
        (await jobs.enqueue(mail.using(priority=priority), "a")).id
        for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL)
    ]
    assert [whole(one) for one in await lease()] == [made[2], made[1], made[3], made[0]]


async def test_an_id_a_deduplication_id_and_a_unique_key_make_one_job(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    for options in ({"id": "same"}, {"dedup_id": "order 7"}, {"unique": "user:{1}"}):
        first = await jobs.enqueue(mail.using(**options), "a")
        again = await jobs.enqueue(mail.using(**options), "b")
        assert (again.id, again.created) == (first.id, False)
    assert (await stats(jobs)).total == 3
    twice = await jobs.enqueue_many([mail.using(unique="u").call("a"), mail.using(unique="u").call("b")])
    assert [one.created for one in twice] == [True, False]
    assert twice[0].id == twice[1].id

    holder = await jobs.unique("user:{1}")
    assert holder is not None
    ttl_ms = await store.command("PTTL", KEYS.jobs_unique(DEFAULT_QUEUE, "user:{1}"))
    assert isinstance(ttl_ms, int)
    assert DAY_MS < ttl_ms <= DAY_MS + 60_000  # the clock of the store ends it before
    await queue.finish([ended(leased) for leased in await lease()])
    assert await jobs.unique("user:{1}") is None
    assert (await jobs.enqueue(mail.using(unique="user:{1}"), "c")).created  # its job has ended
    assert not (await jobs.enqueue(mail.using(dedup_id="order 7"), "c")).created  # its window has not
    assert not (await jobs.enqueue(mail.using(id="same"), "c")).created


async def test_a_unique_key_is_released_by_its_job_alone(jobs: Jobs) -> None:
    made = await jobs.enqueue(mail.using(unique="u"), "a")
    other = await jobs.enqueue(mail, "b")
    assert await jobs.release_unique("u", other.id) is False
    assert await jobs.unique("u") == made.id
    assert await jobs.release_unique("u", made.id) is True
    assert (await jobs.enqueue(mail.using(unique="u"), "c")).created


async def test_a_scheduled_job_comes_when_it_is_due(jobs: Jobs, lease: Calls, store: Store) -> None:
    made = await jobs.enqueue(mail.using(delay=timedelta(minutes=5)), "a")
    job = await get(jobs, made.id)
    assert job.state is State.SCHEDULED
    assert job.due_at is not None
    assert abs(job.due_at - job.queued_at - timedelta(minutes=5)) < timedelta(seconds=5)
    batch = await lease.batch()
    assert batch.jobs == []
    assert 0 < batch.next_ms <= 300_000
    travel(store, timedelta(minutes=5))
    assert [whole(one) for one in await lease()] == [made.id]


async def test_a_job_is_leased_to_one_worker_only(jobs: Jobs, queue: Queue) -> None:
    made = {one.id for one in await jobs.enqueue_many([mail.call(str(number)) for number in range(30)])}
    found = await asyncio.gather(*(Calls(queue, f"w{number}")(3) for number in range(20)))
    leased = [whole(one) for batch in found for one in batch]
    assert len(leased) == 30
    assert set(leased) == made


async def test_a_job_whose_lease_ran_out_is_taken_over_and_the_late_result_is_refused(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    made = await jobs.enqueue(mail, "a")
    late = await lease.one()
    assert await lease() == []
    travel(store, LEASE)
    assert await queue.extend([late], lease_ms=1) == [""]
    travel(store, LEASE)
    second = await lease.one()
    assert (whole(second), second.attempt) == (made.id, 2)
    assert int(second.token) > int(late.token)
    assert await queue.extend([late, second], lease_ms=15_000) == ["lost", ""]
    assert await queue.finish([ended(late)]) == [False]
    assert await state_of(jobs, made.id) is State.RUNNING
    assert await queue.finish([failed(second), ended(second)]) == [True, False]
    job = await get(jobs, made.id)
    assert (job.state, job.attempt, job.lost, job.failure) == (State.FAILED, 2, 1, Failure("ValueError"))
    assert await queue.finish([failed(second)]) == [True]  # the same again, as after a lost answer
    assert (await stats(jobs)).failed == 1


async def test_a_job_that_loses_three_workers_is_a_dead_letter(
    jobs: Jobs, lease: Calls, store: Store
) -> None:
    made = await jobs.enqueue(mail.using(unique="u"), "a")
    for _ in range(MOST_LOST):
        await lease.one()
        travel(store, LEASE)
    assert await lease() == []
    job = await get(jobs, made.id)
    assert (job.state, job.lost) == (State.FAILED, 3)
    assert job.failure is not None
    assert job.failure.error == "WorkerLost"
    assert [one.id for one in await jobs.dead()] == [made.id]
    assert await jobs.unique("u") is None
    counted = await stats(jobs)
    assert (counted.total, counted.failed, counted.pending, counted.lost) == (1, 1, 0, 3)


async def test_a_job_that_is_given_back_is_the_next_one_and_costs_it_nothing(
    jobs: Jobs, queue: Queue, lease: Calls
) -> None:
    first = await jobs.enqueue(mail, "1")
    await jobs.enqueue(mail, "2")
    assert await queue.finish([ended(await lease.one(), "queued")]) == [True]
    job = await get(jobs, first.id)
    assert (job.state, job.lost, job.attempt, job.ended_at) == (State.QUEUED, 0, 0, None)
    again = await lease.one()
    assert (whole(again), again.attempt) == (first.id, 1)


async def test_a_lease_call_whose_answer_was_lost_is_recalled(jobs: Jobs, queue: Queue, lease: Calls) -> None:
    made = [one.id for one in await jobs.enqueue_many([mail.call("1"), mail.call("2")])]
    await lease()
    assert await queue.recall(worker="w", call="1") == 2
    assert await queue.recall(worker="w", call="1") == 0
    assert [(whole(one), one.attempt) for one in await lease()] == [(made[0], 1), (made[1], 1)]


async def test_a_failed_run_comes_again_after_its_pause(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    made = await jobs.enqueue(mail, "a")
    text = write_failure(Failure("OSError", "", "send, mail.py:7"))
    await queue.finish([ended(await lease.one(), "retrying", text, ms=60_000)])
    job = await get(jobs, made.id)
    assert (job.state, job.failure) == (State.RETRYING, Failure("OSError", "", "send, mail.py:7"))
    assert await lease() == []
    travel(store, timedelta(minutes=1))
    again = await lease.one()
    assert again.attempt == 2
    assert (await get(jobs, made.id)).failure == Failure("OSError", "", "send, mail.py:7")
    await queue.finish([ended(again)])
    counted = await stats(jobs)
    assert (counted.completed, counted.failures, counted.runs, counted.retrying) == (1, 1, 2, 0)


async def test_a_job_is_cancelled_in_every_state(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    running = await jobs.enqueue(mail, "running")
    held = await lease.one()
    retrying = await jobs.enqueue(mail, "retrying")
    await queue.finish([ended(await lease.one(), "retrying", write_failure(Failure("E")), ms=60_000)])
    parked = await jobs.enqueue_json(EMAIL, {})
    await queue.finish([ended(await lease.one(), "parked", write_failure(Failure("Parked", "no")), ms=1)])
    done = await jobs.enqueue(mail, "done")
    await queue.finish([ended(await lease.one())])
    queued = await jobs.enqueue(mail.using(unique="u"), "queued")
    scheduled = await jobs.enqueue(mail.using(delay=timedelta(hours=1)), "scheduled")
    for made in (retrying, parked, queued, scheduled):
        assert await jobs.cancel(made.id, "not\nneeded") is State.CANCELLED
        job = await get(jobs, made.id)
        assert (job.state, job.reason) == (State.CANCELLED, "not needed")
    assert await jobs.unique("u") is None
    assert await jobs.cancel(done.id) is State.COMPLETED
    assert await jobs.cancel(queued.id) is State.CANCELLED
    assert await jobs.cancel(running.id, "too late") is State.RUNNING
    assert (await get(jobs, running.id)).reason == "too late"
    assert await queue.extend([held], lease_ms=15_000) == ["cancel too late"]
    travel(store, timedelta(hours=2))
    assert await lease() == []  # and the worker of the running one is gone
    job = await get(jobs, running.id)
    assert (job.state, job.reason) == (State.CANCELLED, "too late")
    counted = await stats(jobs)
    assert (counted.total, counted.cancelled, counted.completed, counted.pending) == (5, 4, 1, 0)
    assert (await stats(jobs, EMAIL)).cancelled == 1
    assert {job.id for job in await jobs.list(state=State.CANCELLED)} == {
        one.id for one in (running, retrying, parked, queued, scheduled)
    }


async def test_a_paused_queue_begins_nothing_and_accepts_all(jobs: Jobs, lease: Calls) -> None:
    await jobs.pause()
    made = await jobs.enqueue(mail, "a")
    assert await lease() == []
    (found,) = await jobs.queues()
    assert (found.queue, found.paused, found.queued, found.running) == ("default", True, 1, 0)
    await jobs.resume()
    assert [whole(one) for one in await lease()] == [made.id]


async def test_no_more_jobs_run_at_once_than_a_queue_allows(jobs: Jobs, queue: Queue, lease: Calls) -> None:
    await jobs.set_parallelism(DEFAULT_QUEUE, 2)
    await jobs.enqueue_many([mail.call(str(number)) for number in range(5)])
    running = await lease()
    assert len(running) == 2
    assert await Calls(queue, "other")() == []
    await queue.finish([ended(running[0])])
    assert len(await lease()) == 1
    await jobs.set_parallelism(DEFAULT_QUEUE, None)
    assert len(await lease()) == 2


async def test_in_a_strict_queue_a_job_that_runs_again_holds_up_those_behind_it(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    await jobs.set_parallelism(DEFAULT_QUEUE, 1)
    first, second = await jobs.enqueue_many([mail.call("1"), mail.call("2")])
    await queue.finish([ended(await lease.one(), "retrying", write_failure(Failure("E")), ms=60_000)])
    assert await lease() == []
    travel(store, timedelta(minutes=1))
    again = await lease.one()
    assert whole(again) == first.id
    await queue.finish([ended(again, "retrying", write_failure(Failure("E")), ms=60_000)])
    assert await jobs.cancel(first.id) is State.CANCELLED
    assert whole(await lease.one()) == second.id


async def test_a_flow_runs_no_more_at_once_and_begins_no_more_in_a_period_than_it_may(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    narrow = mail.using(flow=Flow("tenant:1", parallelism=2))
    await jobs.enqueue_many([narrow.call(str(number)) for number in range(3)])
    rated = mail.using(flow=Flow("tenant:2", rate=2, period=timedelta(minutes=1)))
    await jobs.enqueue_many([rated.call(str(number)) for number in range(3)])
    plain = await jobs.enqueue(mail, "plain")
    leased = await lease()
    assert sorted(one.extra.count(b"tenant%3A1") + 2 * one.extra.count(b"tenant%3A2") for one in leased) == [
        0, 1, 1, 2, 2,
    ]  # fmt: skip
    assert plain.id in {whole(one) for one in leased}
    assert await lease() == []
    assert len(await jobs.list(state=State.QUEUED)) == 2
    (found,) = await jobs.queues()
    assert found.oldest_age is not None
    await queue.finish([ended(one) for one in leased])
    assert len(await lease()) == 1
    travel(store, timedelta(minutes=1))
    assert len([one for one in await lease() if b"tenant%3A2" in one.extra]) == 1


async def test_progress_and_log_are_noted_for_the_lease_that_is_held(
    jobs: Jobs, queue: Queue, lease: Calls, store: Store
) -> None:
    made = await jobs.enqueue(mail, "a")
    leased = await lease.one()
    assert await queue.report(leased, b'[0.25,"a quarter",1000]', [b'[1000,"begun"]', b'[2000,"on"]'])
    job = await get(jobs, made.id)
    assert job.progress is not None
    assert (job.progress.share, job.progress.message) == (0.25, "a quarter")
    assert await jobs.logs(made.id) == [(1000, "begun"), (2000, "on")]
    assert not await queue.report(leased._replace(token=b"99"), b"", [b'[3000,"late"]'])
    await queue.finish([ended(leased, ms=60_000)])
    assert not await queue.report(leased, b"", [b'[3000,"late"]'])
    ttl_ms = await store.command("PTTL", f"{queue.prefix}:logs:{leased.part}")
    assert isinstance(ttl_ms, int)
    assert 0 < ttl_ms <= 61_000
    assert len(await jobs.logs(made.id)) == 2


async def test_jobs_are_found_by_state_type_tag_and_parent(jobs: Jobs, lease: Calls) -> None:
    parent = await jobs.enqueue(mail, "parent")
    child = await jobs.enqueue(mail.using(parent=parent.id, tags=("tenant:1", "x")), "child")
    later = await jobs.enqueue(mail.using(queue="b", delay=timedelta(hours=1), tags=("tenant:1",)), "later")
    other = await jobs.enqueue_json(EMAIL, {}, Options(priority=Priority.HIGH))
    running = await lease.one()

    async def ids(**wanted: Any) -> set[str]:
        return {job.id for job in await jobs.list(**wanted)}

    assert await ids() == {parent.id, child.id, later.id, other.id}
    assert await ids(state=State.RUNNING) == {whole(running)} == await ids(type=EMAIL)
    assert await ids(state=State.QUEUED) == {parent.id, child.id}
    assert await ids(state=State.SCHEDULED) == {later.id} == await ids(queue="b")
    assert await ids(tag="tenant:1") == {child.id, later.id}
    assert await ids(tag="tenant:1", queue="b") == {later.id}
    assert await ids(parent=parent.id) == {child.id}
    assert len(await jobs.list(limit=2)) == 2


async def test_a_dead_letter_is_found_and_run_again_once_with_its_idempotency_key(
    jobs: Jobs, queue: Queue, lease: Calls
) -> None:
    plain, keyed, other = await jobs.enqueue_many([
        mail.call("a"), mail.using(idempotency_key="k", tags=("t",)).call("b"), mail.call("c"),
    ])  # fmt: skip
    leased = await lease()
    await queue.finish([failed(leased[0]), failed(leased[1], "KeyError"), failed(leased[2], "KeyError")])
    assert {job.id for job in await jobs.dead(error="keyerr")} == {keyed.id, other.id}
    assert await jobs.dead(type=EMAIL) == []
    outcomes = await asyncio.gather(*(jobs.retry_dead(plain.id, keyed.id) for _ in range(3)))
    made = [one for outcome in outcomes for one in outcome]
    assert [one.created for one in made] == [True, True]
    again = {job.retry_of: job for job in [await get(jobs, one.id) for one in made]}
    assert again[plain.id].idempotency_key == plain.id
    assert (again[keyed.id].idempotency_key, again[keyed.id].args) == (
        "k",
        {"to": "b", "copies": 1, "note": None},
    )
    assert [job.id for job in await jobs.dead()] == [other.id]
    assert len(await lease()) == 2
    assert await jobs.delete_dead(other.id, plain.id, "default.x") == 1
    assert await jobs.dead() == []
    assert await jobs.get(other.id) is None
    counted = await stats(jobs)
    assert (counted.total, counted.failed, counted.running) == (5, 3, 2)


async def test_a_parked_job_stands_among_the_dead_letters_until_somebody_can_run_it(
    jobs: Jobs, queue: Queue, lease: Calls
) -> None:
    async def parked(schema: int) -> str:
        made = await jobs.enqueue_json(EMAIL, {})
        why = write_failure(Failure("Parked", "no handler in this release"))
        await queue.finish([ended(await lease.one(), "parked", why, ms=schema)])
        return made.id

    first, later, third = [await parked(schema) for schema in (1, 3, 1)]
    job = await get(jobs, first)
    assert (job.state, job.parked, job.attempt) == (State.RETRYING, True, 0)
    assert len(await jobs.dead(error="NO HANDLER")) == 3
    assert (await stats(jobs, EMAIL)).pending == 3
    assert len(await queue.unpark({EMAIL: 2}, count=1)) == 1
    assert len(await queue.unpark({EMAIL: 2}, count=9)) == 1
    assert {whole(one) for one in await lease()} == {first, third}
    assert [(one.id, one.created) for one in await jobs.retry_dead(later)] == [(later, False)]
    assert [whole(one) for one in await lease()] == [later]
    counted = await stats(jobs, EMAIL)
    assert (counted.total, counted.running, counted.retrying) == (3, 3, 0)


async def test_broken_statistics_cost_no_job(jobs: Jobs, queue: Queue, lease: Calls, store: Store) -> None:
    await store.command("SET", f"{queue.prefix}:stats:mail", "x")
    made = await jobs.enqueue(mail, "a")
    await store.command("SADD", f"{queue.prefix}:types", "mail")
    await lease.one()
    travel(store, LEASE)
    assert await queue.finish([ended(await lease.one())]) == [True]
    assert await state_of(jobs, made.id) is State.COMPLETED
    with pytest.raises(CommandError, match="WRONGTYPE"):
        await jobs.stats()


async def test_jobs_can_be_accessed_unless_what_holds_them_can_not_be_read(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    assert await jobs.can_access() is True
    for name in ("ready:1", "running"):
        await store.command("SET", f"{queue.prefix}:{name}", "x", "PX", 60_000)
        assert await jobs.can_access() is False
        await store.command("DEL", f"{queue.prefix}:{name}")


async def test_a_record_that_can_not_be_read_is_an_error_and_hides_no_other(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    good, bad = await jobs.enqueue_many([mail.call("a"), mail.call("b")])
    part = bad.id.partition(".")[2]
    for record in ("p", "pmail\n1\n\n\nmany\n\n1:{}", "pmail\n1\n\n\n5\n\n{}", "pmail\n9\n\n\n5\n\n1:{}"):
        await store.command("SET", f"{queue.prefix}:job:{part}", record)
        with pytest.raises(CodecError) as fault:
            await jobs.get(bad.id)
        assert fault.value.key == part
        assert [job.id for job in await jobs.list()] == [good.id]


async def test_two_queues_and_two_namespaces_share_nothing(store: Store) -> None:
    mine, others = Jobs(store, keys=KEYS, tasks=[mail]), Jobs(store, keys=Keys("x"), tasks=[mail])
    made = await mine.enqueue(mail.using(queue="a", id="1"), "a")
    assert (await mine.enqueue(mail.using(queue="b", id="1"), "a")).created
    assert await others.get(made.id) is None
    assert (await others.stats())["mail"] == NONE
    assert {found.queue: found.queued for found in await mine.queues()} == {"a": 1, "b": 1, "default": 0}


def test_a_task_keeps_what_it_was_made_with() -> None:
    assert isinstance(mail, Task)
    assert (mail.name, mail.queue, mail.schema) == ("mail", "default", 1)
