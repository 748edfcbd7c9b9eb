"""The public test kit: what it says of jobs is so, and its faults are real ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal import Counterseal, JobContext, State, StoreUnavailable, task
from counterseal.jobs.options import Priority
from counterseal.testing import PrivateServer, Relay, WorkerProcess, assert_enqueued, drain, travel
from support import job_application
from support.job_application import greet, hang
from support.program import environment
from support.waiting import eventually

ROOT = Path(__file__).parents[2]


@task(name="chain")
async def chain(context: JobContext, left: int) -> int:
    return left


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer() as server:
        yield server


@pytest.fixture
async def seal(server: PrivateServer) -> AsyncIterator[Counterseal]:
    async with Counterseal.open(server.settings(), tasks=[greet, hang, chain]) as seal:
        yield seal
    server.clear()


async def test_a_job_that_was_made_is_found_by_its_arguments_and_options(seal: Counterseal) -> None:
    made = await seal.jobs.enqueue(greet.using(queue="slow", priority=Priority.HIGH), "Ada")
    job = await assert_enqueued(seal, greet, "Ada", queue="slow", priority=Priority.HIGH)
    assert job.id == made.id
    assert (await assert_enqueued(seal, greet.call(name="Ada"))).id == made.id
    with pytest.raises(AssertionError, match=made.id):
        await assert_enqueued(seal, greet, "Eve")
    with pytest.raises(AssertionError, match="queue='slow'"):
        await assert_enqueued(seal, greet, "Ada", queue="default")
    with pytest.raises(AssertionError, match="none"):
        await assert_enqueued(seal, chain, 1)
    with pytest.raises(TypeError, match="colour"):
        await assert_enqueued(seal, greet, "Ada", colour="red")


async def test_drain_runs_what_is_due_in_all_queues_and_leaves_the_rest(seal: Counterseal) -> None:
    await seal.jobs.enqueue(chain, 1)
    await seal.jobs.enqueue(chain.using(queue="slow"), 2)
    later = (await seal.jobs.enqueue(chain.using(delay=timedelta(hours=1)), 3)).id
    paused = (await seal.jobs.enqueue(chain.using(queue="paused"), 4)).id
    await seal.jobs.pause("paused")
    assert (await drain(seal)).completed == 2
    assert (await drain(seal)).completed == 0
    travel(seal, timedelta(hours=1))
    assert (await drain(seal)).completed == 1
    jobs = [await seal.jobs.get(one) for one in (later, paused)]
    assert [job.state for job in jobs if job] == [State.COMPLETED, State.QUEUED]


async def test_travel_ends_windows_keys_and_results(seal: Counterseal) -> None:
    asking = chain.using(dedup_id="d", dedup_window=timedelta(hours=1), keep=timedelta(hours=2))
    once = chain.using(unique="u", unique_ttl=timedelta(hours=1), delay=timedelta(days=1))
    made = await seal.jobs.enqueue(asking, 1)
    held = await seal.jobs.enqueue(once, 2)
    await drain(seal)
    assert not (await seal.jobs.enqueue(asking, 1)).created
    assert await seal.jobs.result(made.id, chain) == 1
    travel(seal, timedelta(hours=1))
    assert (await seal.jobs.enqueue(asking, 1)).created
    assert await seal.jobs.unique("u") is None
    assert (await seal.jobs.enqueue(once, 2)).created
    assert await seal.jobs.get(made.id) is not None
    travel(seal, timedelta(hours=1))
    assert await seal.jobs.get(made.id) is None
    assert await seal.jobs.get(held.id) is not None


async def test_drain_runs_jobs_that_jobs_make_also_in_queues_that_were_not_there(
    server: PrivateServer,
) -> None:
    @task(name="first")
    async def first(context: JobContext) -> None:
        await seal.jobs.enqueue(chain.using(queue="made-later"), 1)

    async with Counterseal.open(server.settings(), tasks=[first, chain]) as seal:
        await seal.jobs.enqueue(first)
        assert (await drain(seal)).completed == 2
    server.clear()


async def test_drain_says_what_does_not_end(seal: Counterseal) -> None:
    await seal.jobs.enqueue(hang)
    with pytest.raises(AssertionError, match=r"default: (0 queued, 1|1 queued, 0) running"):
        await drain(seal, within=timedelta(milliseconds=300))


async def test_a_job_of_a_killed_worker_runs_again(
    server: PrivateServer, seal: Counterseal, tmp_path: Path
) -> None:
    shutil.copy(job_application.__file__, tmp_path)
    variables = {**server.variables(), "COUNTERSEAL_JOBS_LEASE": "2s"}
    with WorkerProcess("job_application:create", folder=tmp_path, variables=variables) as worker:
        identifier = (await seal.jobs.enqueue(hang)).id

        async def begun() -> bool:
            job = await seal.jobs.get(identifier)
            return job is not None and job.state is State.RUNNING

        await eventually(begun)
        worker.kill()
    with WorkerProcess("job_application:create", folder=tmp_path, variables=variables) as worker:

        async def begun_again() -> bool:
            job = await seal.jobs.get(identifier)
            return job is not None and job.state is State.RUNNING and job.lost > 0

        await eventually(begun_again, within=20)
        await seal.jobs.cancel(identifier)
        assert (await seal.jobs.wait(identifier)) is not None
        assert worker.stop() == 0


async def test_a_connection_that_is_cut_and_refused_is_an_outage(server: PrivateServer) -> None:
    async with (
        Relay(server.socket) as relay,
        Counterseal.open(server.settings(through=relay), tasks=[chain]) as seal,
    ):
        await seal.jobs.enqueue(chain, 1)
        relay.refuse()
        relay.cut()
        with pytest.raises(StoreUnavailable):
            await seal.jobs.enqueue(chain, 2)
        await relay.accept()

        async def is_back() -> bool:
            try:
                return (await drain(seal)).completed == 1
            except StoreUnavailable:
                return False

        await eventually(is_back, within=20)
    server.clear()


def test_a_server_leaves_nothing_behind() -> None:
    with PrivateServer() as server:
        folder = server.data_dir
        assert server.socket.is_socket()
    assert not folder.exists()


def test_the_example_of_the_documentation_passes(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "test_example.py").write_text(example)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout
