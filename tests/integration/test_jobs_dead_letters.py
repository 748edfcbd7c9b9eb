"""Dead letters that run again, and lists of large jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Failure, Job, State, write_failure
from counterseal.jobs.options import Flow
from counterseal.jobs.retry import NO_RETRY, Exponential, Fixed, Formula, Listed, Retry
from counterseal.jobs.scripts import Leased, Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import DEFAULT_QUEUE, task
from counterseal.jobs.worker import Worker
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on

KEYS = Keys()
DAY_MS = 86_400_000
SECOND = timedelta(seconds=1)


@task(name="mail")
async def mail(context: JobContext, to: str = "a") -> str:
    return to


@pytest.fixture
async def store(valkey: Server) -> AsyncIterator[Store]:
    async with store_on(valkey) as opened:
        yield opened


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[mail])


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store, KEYS, DEFAULT_QUEUE)


calls = 0


async def lease(queue: Queue, room: int = 200) -> list[Leased]:
    global calls  # noqa: PLW0603 - calls of a worker count up
    calls += 1
    return (await queue.lease(room=room, worker="w", call=str(calls), lease_ms=15_000)).jobs


async def die(queue: Queue) -> None:
    """Make dead letters of all that is queued."""
    text = write_failure(Failure("ValueError"))
    while leased := await lease(queue):
        await queue.finish([Result(one.part, one.token, "failed", DAY_MS, 1, text) for one in leased])


async def get(jobs: Jobs, identifier: str) -> Job:
    job = await jobs.get(identifier)
    assert job is not None
    return job


@pytest.mark.parametrize(
    "policy",
    [
        NO_RETRY,
        Listed(()),
        Listed((SECOND, 2 * SECOND)),
        Fixed(3, SECOND),
        Exponential(4),
        Formula(3, "1000 * retried"),
    ],
    ids=lambda policy: type(policy).__name__,
)
async def test_a_letter_of_any_policy_runs_again_with_it(
    jobs: Jobs, queue: Queue, store: Store, policy: Retry
) -> None:
    first = await jobs.enqueue(mail.using(retry=policy), "b")
    await die(queue)
    (again,) = await jobs.retry_dead(first.id)
    job = await get(jobs, again.id)
    assert (job.state, job.retry_of, job.idempotency_key) == (State.QUEUED, first.id, first.id)
    async with Worker(store, keys=KEYS, tasks=[mail]):
        ended = await jobs.wait(again.id)
    assert ended is not None
    assert (ended.state, ended.result) == (State.COMPLETED, "b")


async def test_a_letter_runs_again_with_its_options_and_is_found_by_its_tags(
    jobs: Jobs, queue: Queue
) -> None:
    deadline = datetime(2100, 1, 1, tzinfo=UTC)
    first = await jobs.enqueue(
        mail.using(
            retry=NO_RETRY,
            tags=("red", "a:b"),
            flow=Flow("tenant", parallelism=2),
            deadline=deadline,
            parent="p",
            unique="u",
            dedup_id="d",
        )
    )
    await die(queue)
    (again,) = await jobs.retry_dead(first.id)
    job = await get(jobs, again.id)
    assert (job.tags, job.flow, job.deadline, job.parent) == (("red", "a:b"), "tenant", deadline, "p")
    for tag in ("red", "a:b"):
        assert {one.id for one in await jobs.list(tag=tag)} == {first.id, again.id}
    assert (job.unique, await jobs.unique("u")) == ("u", again.id)
    await die(queue)
    assert await jobs.unique("u") is None


async def test_a_letter_runs_again_without_a_unique_key_that_another_job_holds(
    jobs: Jobs, queue: Queue
) -> None:
    first = await jobs.enqueue(mail.using(unique="u"))
    await die(queue)
    holder = await jobs.enqueue(mail.using(unique="u"))
    (again,) = await jobs.retry_dead(first.id)
    assert again.created
    assert await jobs.unique("u") == holder.id
    await jobs.cancel(again.id)
    assert await jobs.unique("u") == holder.id


async def test_a_deadline_that_has_passed_is_dropped(jobs: Jobs, queue: Queue) -> None:
    first = await jobs.enqueue(mail.using(deadline=datetime(2020, 1, 1, tzinfo=UTC)))
    await die(queue)
    (again,) = await jobs.retry_dead(first.id)
    assert (await get(jobs, again.id)).deadline is None


async def test_many_letters_are_retried_and_deleted_in_calls_of_bounded_size(
    jobs: Jobs, queue: Queue, valkey: Server
) -> None:
    made = [one.id for one in await jobs.enqueue_many([mail.call() for _ in range(450)])]
    await die(queue)
    valkey.execute("CONFIG", "RESETSTAT")
    again = await jobs.retry_dead(*made)
    assert script_calls(valkey) >= 3
    assert len({one.id for one in again}) == 450
    await die(queue)
    valkey.execute("CONFIG", "RESETSTAT")
    assert await jobs.delete_dead(*(one.id for one in again)) == 450
    assert script_calls(valkey) >= 3


def script_calls(server: Server) -> int:
    text = server.execute("INFO", "commandstats").decode()
    return sum(
        int(line.partition("calls=")[2].partition(",")[0])
        for line in text.splitlines()
        if line.startswith(("cmdstat_evalsha:", "cmdstat_eval:"))
    )


async def test_a_hundred_jobs_of_a_megabyte_are_listed(jobs: Jobs) -> None:
    text = "x" * 1_000_000
    for _ in range(10):
        await jobs.enqueue_many([mail.call(text) for _ in range(10)])
    assert len({job.id for job in await jobs.list()}) == 100
