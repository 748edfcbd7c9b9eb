"""What is for a time only, over every connection: judged by the clock of the store, whatever keys are still there."""

from __future__ import annotations

from datetime import timedelta

import pytest

from counterseal.core.errors import UnknownName
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.scripts import Leased, Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import DEFAULT_QUEUE, task
from counterseal.store.base import Store
from counterseal.store.keys import JOB_DEAD_TTL, Keys
from support.stores import travel

KEYS = Keys()
HOUR = timedelta(hours=1)
HOUR_MS = 3_600_000
LEASE_MS = 15_000
MS = timedelta(milliseconds=1)


@task(name="mail")
async def mail(context: JobContext, to: str) -> str:
    return to


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[mail])


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store, KEYS, DEFAULT_QUEUE)


async def lease(queue: Queue, worker: str = "w", call: str = "1") -> Leased:
    batch = await queue.lease(room=1, worker=worker, call=call, lease_ms=LEASE_MS)
    (leased,) = batch.jobs
    return leased


async def end(queue: Queue, outcome: str, *, ms: int, call: str = "1") -> str:
    leased = await lease(queue, call=call)
    text = b'["E","",""]' if outcome == "failed" else b'"sent"'
    assert await queue.finish([Result(leased.part, leased.token, outcome, ms, 5, text)]) == [True]
    return f"{DEFAULT_QUEUE}.{leased.part}"


async def test_a_deduplication_window_passes_by_the_clock_of_the_store(jobs: Jobs, store: Store) -> None:
    asking = mail.using(dedup_id="d", dedup_window=HOUR)
    first = await jobs.enqueue(asking, "a")
    travel(store, HOUR - 5000 * MS)
    assert (await jobs.enqueue(asking, "b")).id == first.id
    travel(store, 5000 * MS)
    second = await jobs.enqueue(asking, "c")
    assert second.created
    assert (await jobs.enqueue(asking, "d")).id == second.id
    assert (await jobs.stats())["mail"].queued == 2


async def test_a_unique_key_whose_time_has_passed_is_free_and_shown_as_such(jobs: Jobs, store: Store) -> None:
    asking = mail.using(unique="u", unique_ttl=HOUR)
    first = await jobs.enqueue(asking, "a")
    job = await jobs.get(first.id)
    assert job is not None
    assert (job.unique, job.holds_unique, await jobs.unique("u")) == ("u", True, first.id)
    travel(store, HOUR)
    job = await jobs.get(first.id)
    assert job is not None
    assert (job.unique, job.holds_unique, await jobs.unique("u")) == ("u", False, None)
    assert await jobs.release_unique("u", first.id) is False
    second = await jobs.enqueue(asking, "b")
    assert second.created
    assert await jobs.cancel(first.id) is State.CANCELLED  # and takes the key from nobody
    assert await jobs.unique("u") == second.id


async def test_a_kept_job_is_absent_when_its_time_has_passed_and_stays_counted(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    await jobs.enqueue(mail.using(tags=("t",)), "a")
    leased = await lease(queue)
    assert await queue.report(leased, b"", [b'[1,"begun"]'])
    await queue.finish([Result(leased.part, leased.token, "completed", HOUR_MS, 5, b'"sent"')])
    identifier = f"{DEFAULT_QUEUE}.{leased.part}"
    travel(store, HOUR - 5000 * MS)
    assert await jobs.result(identifier, mail) == "sent"
    assert await jobs.logs(identifier) == [(1, "begun")]
    travel(store, 5000 * MS)
    assert await jobs.get(identifier) is None
    assert await jobs.wait(identifier, HOUR) is None
    assert await jobs.logs(identifier) == []
    assert await jobs.cancel(identifier) is None
    assert await jobs.list() == await jobs.list(tag="t") == await jobs.list(state=State.COMPLETED) == []
    with pytest.raises(UnknownName):
        await jobs.result(identifier, mail)
    found = (await jobs.stats())["mail"]
    assert (found.total, found.completed, found.pending) == (1, 1, 0)


async def test_an_id_is_free_when_its_job_is_kept_no_more(jobs: Jobs, queue: Queue, store: Store) -> None:
    await jobs.enqueue(mail.using(id="same"), "a")
    await end(queue, "failed", ms=JOB_DEAD_TTL // MS)
    travel(store, JOB_DEAD_TTL - HOUR)
    assert not (await jobs.enqueue(mail.using(id="same"), "b")).created
    assert len(await jobs.dead()) == 1
    travel(store, HOUR)
    assert (await jobs.dead(), (await jobs.queues())[0].dead) == ([], 0)
    made = await jobs.enqueue(mail.using(id="same"), "c")
    assert made.created
    assert await jobs.delete_dead(made.id) == 0  # the letter that had its id is not this job
    assert await jobs.retry_dead(made.id) == []
    assert await end(queue, "completed", ms=HOUR_MS, call="2") == made.id


async def test_a_letter_whose_time_has_passed_is_neither_run_again_nor_deleted(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    for number in ("1", "2"):
        await jobs.enqueue(mail, number)
        await end(queue, "failed", ms=JOB_DEAD_TTL // MS, call=number)
    first, second = [job.id for job in await jobs.dead()]
    travel(store, JOB_DEAD_TTL)
    assert await jobs.retry_dead(first) == []
    assert await jobs.delete_dead(second) == 0
    assert (await jobs.stats())["mail"].failed == 2


async def test_what_a_former_release_wrote_without_a_time_is_there_with_its_key(
    jobs: Jobs, queue: Queue, store: Store
) -> None:
    first = await jobs.enqueue(mail.using(unique="u", dedup_id="d"), "a")
    part = first.id.partition(".")[2]
    for name in ("unique:u", "dedup:d"):
        await store.command("SET", f"{queue.prefix}:{name}", part, "PX", HOUR_MS)
    done = f"cmail\n1\n\n\n1\n\n1:{{}}\n1 1 0 1 {store.now_ms()} 5\n1"
    await store.command("SET", f"{queue.prefix}:job:old", done, "PX", HOUR_MS)
    travel(store, 100 * HOUR)
    assert (await jobs.enqueue(mail.using(unique="u"), "b")).id == first.id
    assert (await jobs.enqueue(mail.using(dedup_id="d"), "b")).id == first.id
    assert await jobs.unique("u") == first.id
    job = await jobs.get("default.old")
    assert job is not None
    assert (job.state, job.result) == (State.COMPLETED, 1)
    assert await jobs.release_unique("u", first.id) is True
