"""Workers that die in the middle of a job: it runs again elsewhere, and a worker that only slept changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal.jobs.job import State
from counterseal.jobs.service import Jobs
from counterseal.jobs.types import EMAIL
from counterseal.jobs.worker import Task, Worker
from counterseal.store.keys import Keys
from support.processes import freeze_process, kill_process, start_process, thaw_process
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

KEYS = Keys()
PROGRAM = Path(__file__).with_name("job_worker.py")
QUICK = timedelta(milliseconds=50)


@pytest.fixture
def hanging(valkey: Server, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own whose jobs never end; what it prints goes to `worker.log`."""
    process = start_process([sys.executable, str(PROGRAM), valkey.url], tmp_path / "worker.log", tmp_path)
    yield process
    kill_process(process)


async def begun(folder: Path, identifier: str) -> None:
    await eventually(lambda: f"begun {identifier}" in (folder / "worker.log").read_text(), within=20)


async def test_a_job_of_a_killed_worker_runs_elsewhere_when_its_lease_has_run_out(
    valkey: Server, tmp_path: Path, hanging: subprocess.Popen[bytes]
) -> None:
    runs: list[Task] = []

    async def handle(task: Task) -> None:
        runs.append(task)

    async with store_on(valkey) as store:
        jobs = Jobs(store, keys=KEYS)
        identifier = await jobs.enqueue(EMAIL, {"n": 1})
        await begun(tmp_path, identifier)
        kill_process(hanging)
        async with Worker(store, keys=KEYS, handlers={EMAIL: handle}, poll=QUICK):
            job = await eventually(lambda: completed(jobs, identifier))
    assert [(task.attempt, task.payload) for task in runs] == [(2, {"n": 1})]
    assert (job.attempt, job.lost) == (2, 1)  # type: ignore[union-attr]


async def test_a_worker_that_slept_past_its_lease_does_not_undo_the_result_of_another(
    valkey: Server, tmp_path: Path, hanging: subprocess.Popen[bytes]
) -> None:
    async def handle(task: Task) -> None: ...

    async with store_on(valkey) as store:
        jobs = Jobs(store, keys=KEYS)
        identifier = await jobs.enqueue(EMAIL, 1)
        await begun(tmp_path, identifier)
        freeze_process(hanging)
        async with Worker(store, keys=KEYS, handlers={EMAIL: handle}, poll=QUICK):
            await eventually(lambda: completed(jobs, identifier))
        thaw_process(hanging)
        await eventually(lambda: "its lease had run out" in (tmp_path / "worker.log").read_text())
        job = await jobs.get(identifier)
        stats = (await jobs.stats())[EMAIL]
    assert job is not None
    assert (job.state, job.attempt) == (State.COMPLETED, 2)
    assert (stats.total, stats.completed, stats.pending) == (1, 1, 0)


async def completed(jobs: Jobs, identifier: str) -> object:
    job = await jobs.get(identifier)
    return job if job and job.state is State.COMPLETED else None
