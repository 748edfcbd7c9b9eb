"""Tour 3: do work later.

A task is a function with types. `enqueue` returns when the job is safe; a worker runs it, at least once.
"""

from datetime import timedelta
from pathlib import Path

import pytest

from counterseal import Counterseal, JobContext, Settings, State, task
from counterseal.core.errors import ArgumentInvalid
from support.servers import Server

SOON = timedelta(seconds=20)


@task(retry=3)
async def greet(context: JobContext, name: str) -> str:
    if name == "Grace" and context.attempt == 1:
        raise ConnectionError  # once more, after a pause
    return f"Good morning, {name}"


@pytest.fixture
async def seal(valkey: Server, data_dir: Path):
    settings = Settings.load({"REDIS_URL": valkey.url, "COUNTERSEAL_DATA_DIR": str(data_dir)})
    async with Counterseal.open(settings, tasks=[greet]) as seal:
        yield seal


async def test_a_job_runs_and_its_result_comes_back(seal: Counterseal):
    job = await seal.jobs.enqueue(greet, "Ada")
    assert (await seal.jobs.get(job.id)).state is State.QUEUED

    async with seal.worker():
        assert (await seal.jobs.wait(job.id, SOON)).state is State.COMPLETED

    assert await seal.jobs.result(job.id, greet) == "Good morning, Ada"
    assert (await seal.jobs.stats())["greet"].success_rate == 100


async def test_a_job_that_fails_runs_again(seal: Counterseal):
    async with seal.worker():
        job = await seal.jobs.enqueue(greet, "Grace")
        done = await seal.jobs.wait(job.id, SOON)
    assert (done.state, done.attempt) == (State.COMPLETED, 2)


async def test_a_job_waits_for_its_time_and_can_be_cancelled(seal: Counterseal):
    job = await seal.jobs.enqueue(greet.using(delay=timedelta(hours=1)), "Ada")
    assert (await seal.jobs.get(job.id)).state is State.SCHEDULED
    assert await seal.jobs.cancel(job.id, "she has left") is State.CANCELLED


async def test_the_same_job_is_made_once(seal: Counterseal):
    first = await seal.jobs.enqueue(greet.using(unique="ada"), "Ada")
    second = await seal.jobs.enqueue(greet.using(unique="ada"), "Ada")
    assert (second.id, second.created) == (first.id, False)


async def test_a_wrong_argument_makes_no_job(seal: Counterseal):
    with pytest.raises(ArgumentInvalid):
        await seal.jobs.enqueue(greet, 7)
    with pytest.raises(ArgumentInvalid):
        await seal.jobs.enqueue_json("greet", {"nmae": "Ada"})
