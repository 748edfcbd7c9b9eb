"""Tour 3: do work later.

`enqueue` returns when the job is safe. A worker runs its handler: returning means completed, raising means failed.
"""

from datetime import timedelta

from counterseal import Counterseal, State, Task
from support.waiting import eventually


async def test_a_job_runs_and_its_state_can_be_read(seal: Counterseal) -> None:
    sent = []

    async def send(task: Task) -> None:
        sent.append(task.payload)

    identifier = await seal.jobs.enqueue("email", {"to": "ada@example.org"})
    assert (await seal.jobs.get(identifier)).state is State.QUEUED

    async with seal.worker({"email": send}):

        async def completed() -> bool:
            return (await seal.jobs.get(identifier)).state is State.COMPLETED

        await eventually(completed)

    assert sent == [{"to": "ada@example.org"}]
    assert (await seal.jobs.stats())["email"].success_rate == 100


async def test_a_probe_shows_that_the_queue_works(seal: Counterseal) -> None:
    async with seal.worker():
        run = await seal.jobs.run_probe(timedelta(seconds=10))
    assert run.state is State.COMPLETED


async def test_a_job_without_a_worker_waits(seal: Counterseal) -> None:
    run = await seal.jobs.run_probe(timedelta(milliseconds=20))
    assert run.state is State.QUEUED
