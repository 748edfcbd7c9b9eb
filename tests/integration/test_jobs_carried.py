"""Carried jobs in Redis: their flows rest and come back, and their ends are counted as those of any other job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from counterseal.jobs.carried import Carried
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Failure, State, write_failure
from counterseal.jobs.options import Flow, Options, write_extra
from counterseal.jobs.scripts import MOST_LOST, Leased, Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import DEFAULT_QUEUE, task
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on, travel

KEYS = Keys()
FLOW = Options(flow=Flow("tenant", parallelism=2, period=timedelta(seconds=30)))
RESTS_MS = 90_000


@task(name="mail")
async def mail(context: JobContext) -> None:
    pass


@pytest.fixture
async def store(valkey: Server) -> AsyncIterator[Store]:
    async with store_on(valkey) as opened:
        yield opened


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[mail])


@pytest.fixture
def carried(store: Store) -> Carried:
    return Carried(Queue(store, KEYS, DEFAULT_QUEUE))


async def carry(carried: Carried, part: str, options: Options = FLOW) -> None:
    extra = write_extra(options.stored(carried.queue.store.now_ms()))
    await carried.carry([part, "mail", "1", b"1:{}", extra])


async def begin(carried: Carried, part: str) -> Leased:
    begun = await carried.begin(part, "mail", lease_ms=3000)
    assert begun.leased is not None, begun
    return begun.leased


async def flow_rests(carried: Carried) -> bool:
    left = await carried.queue.store.command("PTTL", f"{carried.queue.prefix}:flow:tenant")
    assert isinstance(left, int)
    assert left == -1 or 0 < left <= RESTS_MS
    return left > 0


async def ended_lately(carried: Carried, outcome: str) -> int:
    store = carried.queue.store
    hour = store.now_ms() // 3_600_000
    total = 0
    for at in (hour - 1, hour):
        key = f"{carried.queue.prefix}:rate:{at}"
        flat = await store.command("HGETALL", key)
        assert isinstance(flat, list)
        assert not flat or await store.command("PTTL", key) != -1
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            assert isinstance(name, bytes)
            assert isinstance(value, bytes)
            total += int(value) if name.endswith(f":mail:{outcome}".encode()) else 0
    return total


async def test_a_flow_rests_when_its_only_carried_job_is_cancelled(carried: Carried, jobs: Jobs) -> None:
    await carry(carried, "a")
    assert not await flow_rests(carried)
    assert await jobs.cancel("default.a") is State.CANCELLED
    assert await flow_rests(carried)


async def test_a_flow_rests_when_its_only_carried_job_is_withdrawn(carried: Carried) -> None:
    await carry(carried, "a")
    assert await carried.withdraw("a")
    assert await flow_rests(carried)


async def test_a_flow_rests_while_its_carried_job_waits_to_run_again_and_has_its_limits_then(
    carried: Carried, store: Store
) -> None:
    await carry(carried, "a")
    leased = await begin(carried, "a")
    assert not await flow_rests(carried)
    assert await carried.settle(leased, "retrying", 0, write_failure(Failure("ValueError")))
    assert await flow_rests(carried)
    await store.command("DEL", f"{carried.queue.prefix}:flow:tenant")
    await begin(carried, "a")
    assert not await flow_rests(carried)
    found = await store.command(
        "HMGET", f"{carried.queue.prefix}:flow:tenant", "parallelism", "period_ms", "running"
    )
    assert found == [b"2", b"30000", b"1"]


async def test_a_flow_that_is_full_goes_on_when_a_carried_job_of_it_leaves(
    carried: Carried, jobs: Jobs
) -> None:
    one = Options(flow=Flow("tenant", parallelism=1, period=timedelta(seconds=30)))
    await carry(carried, "a", one)
    leased = await begin(carried, "a")
    await jobs.enqueue(mail.using(flow=one.flow))
    assert not (await carried.queue.lease(room=9, worker="w", call="1", lease_ms=3000)).jobs
    assert await carried.settle(leased, "retrying", 0, b"")
    assert len((await carried.queue.lease(room=9, worker="w", call="2", lease_ms=3000)).jobs) == 1


async def test_a_carried_job_that_never_comes_back_ends_and_is_counted_as_others_are(
    carried: Carried, jobs: Jobs, store: Store
) -> None:
    await carry(carried, "a")
    for _ in range(MOST_LOST):
        await begin(carried, "a")
        travel(store, timedelta(seconds=4))
    assert (await carried.begin("a", "mail", lease_ms=3000)).refusal == "failed"
    assert await flow_rests(carried)
    assert await ended_lately(carried, "failed") == 1
    assert await store.command("LRANGE", f"{carried.queue.prefix}:recent", 0, -1) == [b"a"]


async def test_a_job_that_begins_at_once_counts_below_a_millisecond_however_it_is_carried(
    carried: Carried, store: Store
) -> None:
    now = store.now_ms()
    store.now_ms = lambda: now  # type: ignore[method-assign]
    await carry(carried, "a", Options())
    await begin(carried, "a")
    assert await store.command("HKEYS", f"{carried.queue.prefix}:times:mail") == [b"w-1"]


async def test_what_is_cancelled_counts_by_the_minute(carried: Carried, jobs: Jobs) -> None:
    made = await jobs.enqueue(mail)
    await jobs.cancel(made.id)
    assert await ended_lately(carried, "cancelled") == 1
    await jobs.enqueue(mail)
    (leased,) = (await carried.queue.lease(room=1, worker="w", call="1", lease_ms=3000)).jobs
    why = write_failure(Failure("Parked", "unknown task"))
    await carried.queue.finish([Result(leased.part, leased.token, "parked", 1, 1, why)])
    assert await jobs.delete_dead(f"default.{leased.part}") == 1
    assert await ended_lately(carried, "cancelled") == 2


async def test_a_parked_job_that_is_deleted_ends_by_the_clock_of_its_queue(
    carried: Carried, jobs: Jobs, store: Store
) -> None:
    made = await jobs.enqueue(mail)
    (leased,) = (await carried.queue.lease(room=1, worker="w", call="1", lease_ms=3000)).jobs
    why = write_failure(Failure("Parked", "unknown task"))
    await carried.queue.finish([Result(leased.part, leased.token, "parked", 1, 1, why)])
    ahead = store.now_ms() + 60_000
    await store.command("HSET", KEYS.jobs_queue(DEFAULT_QUEUE), "time", ahead)
    await jobs.delete_dead(made.id)
    job = await jobs.get(made.id)
    assert job is not None
    assert job.ended_at is not None
    assert round(job.ended_at.timestamp() * 1000) == ahead


async def test_a_carried_job_with_the_id_of_one_that_ran_without_a_record_begins_and_that_one_is_refused(
    carried: Carried, jobs: Jobs, store: Store
) -> None:
    one = Options(id="a", flow=Flow("tenant", parallelism=1, period=timedelta(seconds=30)))
    await carry(carried, "a", one)
    former = await begin(carried, "a")
    await store.command("DEL", f"{carried.queue.prefix}:job:a")
    await carry(carried, "a", one)
    leased = await begin(carried, "a")
    assert int(leased.token) == int(former.token) + 1
    assert not await carried.settle(former, "retrying", 0, b"")
    assert (await jobs.stats())["mail"].running == 1
    assert await carried.queue.finish([Result("a", leased.token, "completed", 60_000, 5, b"")]) == [True]
    assert await store.command("HGET", f"{carried.queue.prefix}:flow:tenant", "running") == b"0"
    assert ((await jobs.stats())["mail"].pending, (await jobs.queues())[0].gone) == (0, 1)
