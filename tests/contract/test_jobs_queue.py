"""The queue over every connection: states, leases, fencing, take-over and counters, one operation at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from counterseal.core.errors import CodecError, CommandError, UnknownName
from counterseal.jobs.job import Job, JobStats, State
from counterseal.jobs.scripts import MOST_LOST, Lease, Queue
from counterseal.jobs.service import DEFAULT_QUEUE, Jobs
from counterseal.jobs.types import EMAIL, NOTIFICATION, PROBE, TYPES
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.exact import same
from support.stores import travel

KEYS = Keys()
LEASE = timedelta(seconds=10)
NONE = JobStats(total=0, completed=0, failed=0, pending=0, success_rate=0)


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS)


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store, KEYS, DEFAULT_QUEUE)


async def lease_one(queue: Queue, *tasks: str) -> Lease:
    (lease,) = await queue.lease(tasks or (EMAIL,), count=1, lease=LEASE)
    return lease


async def get(jobs: Jobs, identifier: str) -> Job:
    job = await jobs.get(identifier)
    assert job is not None
    return job


async def ttl_of(store: Store, identifier: str) -> object:
    return await store.command("TTL", KEYS.job(DEFAULT_QUEUE, identifier))


async def test_a_queued_job_is_there_with_its_payload_as_it_was_given(jobs: Jobs) -> None:
    payload = {"to": ["a@example.org"], "id": 12345678901234567890, "ratio": 1.0, "x": "007"}
    job = await get(jobs, await jobs.enqueue(EMAIL, payload))
    assert same(job.payload, payload)
    assert (job.type, job.state, job.attempt, job.lost) == (EMAIL, State.QUEUED, 0, 0)
    assert (job.started_at, job.ended_at, job.error) == (None, None, None)


async def test_what_nobody_queued_is_none(jobs: Jobs) -> None:
    assert await jobs.get("nothing") is None
    assert await jobs.stats() == dict.fromkeys(TYPES, NONE)


async def test_an_unknown_type_and_a_payload_that_is_no_json_are_refused(jobs: Jobs) -> None:
    with pytest.raises(
        UnknownName, match="no type of job is named 'emial'; the types are email, pdf-generation"
    ):
        await jobs.enqueue("emial", {})
    with pytest.raises(CodecError, match=r"at \$\.when"):
        await jobs.enqueue(EMAIL, {"when": timedelta(1)})  # type: ignore[dict-item]
    assert (await jobs.stats())[EMAIL] == NONE


async def test_an_id_is_accepted_once(queue: Queue, jobs: Jobs) -> None:
    assert await queue.enqueue("same", EMAIL, b"1:1") is True
    assert await queue.enqueue("same", EMAIL, b"1:2") is False
    assert (await get(jobs, "same")).payload == 1
    assert (await jobs.stats())[EMAIL].total == 1


async def test_a_job_goes_from_queued_over_running_to_completed_and_is_counted_on_its_way(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    identifier = await jobs.enqueue(EMAIL, {"n": 1})
    assert (await jobs.stats())[EMAIL] == JobStats(total=1, completed=0, failed=0, pending=1, success_rate=0)
    lease = await lease_one(queue)
    assert lease == Lease(identifier, EMAIL, 1, b'1:{"n":1}')
    job = await get(jobs, identifier)
    assert (job.state, job.attempt) == (State.RUNNING, 1)
    assert (await jobs.stats())[EMAIL].pending == 1
    assert await ttl_of(store, identifier) == -1
    assert await queue.finish(lease, State.COMPLETED)
    job = await get(jobs, identifier)
    assert job.state is State.COMPLETED
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.queued_at <= job.started_at <= job.ended_at
    assert (await jobs.stats())[EMAIL] == JobStats(
        total=1, completed=1, failed=0, pending=0, success_rate=100
    )
    ttl_s = await ttl_of(store, identifier)
    assert isinstance(ttl_s, int)
    assert 0 < ttl_s <= 7 * 86_400


async def test_a_failed_job_keeps_its_error_and_lowers_the_rate(jobs: Jobs, queue: Queue) -> None:
    states = [State.COMPLETED, State.COMPLETED, State.FAILED]
    for state in states:
        identifier = await jobs.enqueue(EMAIL, None)
        assert await queue.finish(
            await lease_one(queue), state, error="No." if state is State.FAILED else None
        )
    job = await get(jobs, identifier)
    assert (job.state, job.error) == (State.FAILED, "No.")
    assert (await jobs.stats())[EMAIL] == JobStats(
        total=3, completed=2, failed=1, pending=0, success_rate=66.67
    )


async def test_jobs_come_in_the_order_in_which_they_were_queued(jobs: Jobs, queue: Queue) -> None:
    queued = [await jobs.enqueue(EMAIL, number) for number in range(5)]
    leased = await queue.lease([EMAIL], count=3, lease=LEASE)
    assert [lease.id for lease in leased] == queued[:3]


async def test_a_job_is_leased_to_one_worker_only(jobs: Jobs, queue: Queue) -> None:
    queued = {await jobs.enqueue(EMAIL, number) for number in range(30)}
    found = await asyncio.gather(*(queue.lease([EMAIL], count=3, lease=LEASE) for _ in range(20)))
    leased = [lease.id for leases in found for lease in leases]
    assert len(leased) == 30
    assert set(leased) == queued


async def test_types_that_a_worker_does_not_handle_stay_queued_and_hold_up_nobody(
    jobs: Jobs, queue: Queue
) -> None:
    waiting = [await jobs.enqueue(EMAIL, number) for number in range(3)]
    wanted = await jobs.enqueue(NOTIFICATION, None)
    leases = await queue.lease([NOTIFICATION, PROBE], count=10, lease=LEASE)
    assert [lease.id for lease in leases] == [wanted]
    assert [(await get(jobs, identifier)).state for identifier in waiting] == [State.QUEUED] * 3
    assert (await jobs.stats())[EMAIL].pending == 3


async def test_a_long_queue_of_one_type_leaves_room_for_another(jobs: Jobs, queue: Queue) -> None:
    for number in range(10):
        await jobs.enqueue(EMAIL, number)
    await jobs.enqueue(NOTIFICATION, None)
    leases = await queue.lease([EMAIL, NOTIFICATION], count=4, lease=LEASE)
    assert sorted(lease.type for lease in leases) == [EMAIL] * 3 + [NOTIFICATION]


async def test_a_job_whose_lease_ran_out_is_taken_over_and_the_late_result_is_refused(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    identifier = await jobs.enqueue(EMAIL, None)
    late = await lease_one(queue)
    assert await queue.lease([EMAIL], count=1, lease=LEASE) == []
    travel(store, LEASE)
    second = await lease_one(queue)
    assert (second.id, second.attempt) == (identifier, 2)
    assert await queue.finish(late, State.COMPLETED) is False
    assert (await get(jobs, identifier)).state is State.RUNNING
    assert await queue.finish(second, State.FAILED, error="x") is True
    assert await queue.finish(second, State.COMPLETED) is False
    job = await get(jobs, identifier)
    assert (job.state, job.attempt, job.lost) == (State.FAILED, 2, 1)
    assert (await jobs.stats())[EMAIL] == JobStats(total=1, completed=0, failed=1, pending=0, success_rate=0)


async def test_a_worker_without_a_handler_for_it_puts_a_lost_job_back_for_others(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    identifier = await jobs.enqueue(EMAIL, None)
    await lease_one(queue)
    travel(store, LEASE)
    assert await queue.lease([PROBE], count=1, lease=LEASE) == []
    assert (await get(jobs, identifier)).state is State.QUEUED
    assert (await lease_one(queue)).id == identifier


async def test_a_job_that_loses_three_workers_is_a_dead_letter(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    identifier = await jobs.enqueue(EMAIL, None)
    for _ in range(MOST_LOST):
        await lease_one(queue)
        travel(store, LEASE)
    assert await queue.lease([EMAIL], count=1, lease=LEASE) == []
    job = await get(jobs, identifier)
    assert (job.state, job.lost, job.error) == (
        State.FAILED,
        3,
        "3 workers in turn did not come back from this job",
    )
    assert (await jobs.stats())[EMAIL] == JobStats(total=1, completed=0, failed=1, pending=0, success_rate=0)
    assert await ttl_of(store, identifier) != -1


async def test_a_prolonged_lease_is_kept_and_a_lost_one_is_told(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    await jobs.enqueue(EMAIL, 1)
    await jobs.enqueue(EMAIL, 2)
    kept, lost = await queue.lease([EMAIL], count=2, lease=LEASE)
    travel(store, LEASE * 0.9)
    assert await queue.extend([kept], lease=LEASE) == frozenset()
    travel(store, LEASE * 0.9)
    again = await lease_one(queue)
    assert (again.id, again.attempt) == (lost.id, 2)
    assert await queue.extend([kept, lost], lease=LEASE) == frozenset({lost.id})
    assert await queue.finish(kept, State.COMPLETED) is True


async def test_a_job_that_is_given_back_is_the_next_to_be_leased_and_costs_it_nothing(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    first = await jobs.enqueue(EMAIL, 1)
    await jobs.enqueue(EMAIL, 2)
    assert await queue.finish(await lease_one(queue), State.QUEUED) is True
    job = await get(jobs, first)
    assert (job.state, job.lost, job.ended_at) == (State.QUEUED, 0, None)
    assert await ttl_of(store, first) == -1
    assert (await lease_one(queue)).id == first
    assert (await jobs.stats())[EMAIL] == JobStats(total=2, completed=0, failed=0, pending=2, success_rate=0)


async def test_a_clock_that_is_behind_cuts_no_lease_short(jobs: Jobs, queue: Queue, store: Store) -> None:
    await jobs.enqueue(EMAIL, 1)
    await jobs.enqueue(EMAIL, 2)
    await lease_one(queue)
    travel(store, -LEASE)
    await lease_one(queue)
    travel(store, LEASE * 1.9)
    assert await queue.lease([EMAIL], count=2, lease=LEASE) == []
    travel(store, LEASE * 0.2)
    assert len(await queue.lease([EMAIL], count=2, lease=LEASE)) == 2


async def test_broken_statistics_cost_no_job(jobs: Jobs, queue: Queue, store: Store) -> None:
    key = KEYS.jobs_stats(DEFAULT_QUEUE, EMAIL)
    await store.command("SET", key, "x")
    identifier = await jobs.enqueue(EMAIL, None)
    await lease_one(queue)
    travel(store, LEASE)
    assert await queue.finish(await lease_one(queue), State.COMPLETED)
    assert (await get(jobs, identifier)).state is State.COMPLETED
    with pytest.raises(CommandError, match="WRONGTYPE"):
        await jobs.stats()


async def test_jobs_can_be_accessed_unless_a_list_of_them_can_not_be_read(jobs: Jobs, store: Store) -> None:
    assert await jobs.can_access() is True
    key = KEYS.jobs_ready(DEFAULT_QUEUE, EMAIL)
    await store.command("SET", key, "no list", "PX", 60_000)
    assert await jobs.can_access() is False
    await store.command("DEL", key)
    await store.command("SET", KEYS.jobs_running(DEFAULT_QUEUE), "no set", "PX", 60_000)
    assert await jobs.can_access() is False


async def test_a_record_or_counter_that_can_not_be_read_is_an_error_that_names_its_key(
    jobs: Jobs, store: Store
) -> None:
    identifier = await jobs.enqueue(EMAIL, {"n": 1})
    key = KEYS.job(DEFAULT_QUEUE, identifier)
    for field, value in [("state", "lost"), ("attempt", "many"), ("payload", "{}"), ("queued_ms", "9" * 40)]:
        before = await store.command("HGET", key, field)
        assert isinstance(before, bytes)
        await store.command("HSET", key, field, value)
        with pytest.raises(CodecError) as fault:
            await jobs.get(identifier)
        assert fault.value.key == key
        await store.command("HSET", key, field, before)
    stats = KEYS.jobs_stats(DEFAULT_QUEUE, EMAIL)
    await store.command("HSET", stats, "queued", "many")
    with pytest.raises(CodecError) as fault:
        await jobs.stats()
    assert fault.value.key == stats


async def test_two_queues_and_two_namespaces_share_nothing(store: Store) -> None:
    made = [Jobs(store, keys=KEYS, queue="a"), Jobs(store, keys=KEYS, queue="b"), Jobs(store, keys=Keys("x"))]
    identifier = await made[0].enqueue(EMAIL, None)
    assert [await jobs.get(identifier) is not None for jobs in made] == [True, False, False]
    assert [(await jobs.stats())[EMAIL].total for jobs in made] == [1, 0, 0]
