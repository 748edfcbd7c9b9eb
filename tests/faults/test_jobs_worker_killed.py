"""Worker processes that are killed or stopped at every boundary of a job: it ends once, with its effect, elsewhere."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal.core.errors import StoreUnavailable
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.store.keys import Keys
from support.job_workers import JobWorkers, effects, effects_so_far, job_states, none_pending, runs_so_far
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

KEYS = Keys()
PREFIX = KEYS.jobs_prefix("default")
LEASE_MS = 1000
LONG_LEASE_MS = 60_000
"""Nobody takes a job over before the test has ended."""
SOAK_S = 15 * 60
BOUNDARIES = [
    "before lease",
    "after lease",
    "before handler",
    "in handler",
    "after effect",
    "before finish",
    "after finish",
]


@task(name="effect", retry=5, keep=timedelta(hours=1))
async def effect(context: JobContext, number: int) -> int: ...


@task(name="endless", retry=5)
def endless(context: JobContext) -> None: ...


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[JobWorkers]:
    workers = JobWorkers(tmp_path)
    yield workers
    workers.close()


def jobs_on(store: object) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[effect, endless])  # type: ignore[arg-type]


async def check_kept(server: Server, jobs: Jobs, identifiers: list[str]) -> None:
    """Every job has completed, its effect is there once, and statistics add up."""
    assert job_states(server, PREFIX, identifiers) == {b"c": len(identifiers)}
    assert effects(server).keys() == {identifier.encode() for identifier in identifiers}
    stats = (await jobs.stats())["effect"]
    assert (stats.total, stats.completed, stats.failed, stats.cancelled) == (
        len(identifiers), len(identifiers), 0, 0,
    )  # fmt: skip
    assert (stats.scheduled, stats.queued, stats.running, stats.retrying) == (0, 0, 0, 0)
    assert server.execute("ZCARD", f"{PREFIX}:running") == 0
    assert server.execute("HLEN", f"{PREFIX}:state") == 0


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_jobs_of_a_worker_killed_at_a_boundary_end_once_elsewhere(
    valkey: Server, workers: JobWorkers, boundary: str
) -> None:
    async with store_on(valkey) as store:
        jobs = jobs_on(store)
        other = workers.start(valkey.url, LEASE_MS, "none")
        await other.printed("ready")
        await jobs.pause()  # so that the victim gets jobs as well
        made = [one.id for one in await jobs.enqueue_many([effect.call(number) for number in range(500)])]
        number = "1" if "lease" in boundary or "finish" in boundary else "7"
        victim = workers.start(valkey.url, LEASE_MS, "kill", boundary, number)
        if boundary != "before lease":
            await victim.printed("ready")
            os.kill(other.process.pid, signal.SIGSTOP)  # nobody else leases until the victim has come so far
            await jobs.resume()
        assert await victim.ended() == -signal.SIGKILL
        began = time.monotonic()
        os.kill(other.process.pid, signal.SIGCONT)
        await jobs.resume()
        await eventually(lambda: none_pending(jobs, "effect", 500), within=30)
        took = time.monotonic() - began
        print(f"killed {boundary}: all was taken over {took:.2f} s later, the lease is {LEASE_MS / 1000:g} s")  # noqa: T201
        await check_kept(valkey, jobs, made)
        lost = (await jobs.stats())["effect"].lost
        assert lost > 0 or boundary in ("before lease", "after finish")
        assert took < LEASE_MS / 1000 + 10


async def test_the_late_result_of_a_worker_that_slept_past_its_lease_is_refused(
    valkey: Server, workers: JobWorkers
) -> None:
    async with store_on(valkey) as store:
        jobs = jobs_on(store)
        sleeper = workers.start(valkey.url, LEASE_MS, "stop", "before finish")
        await sleeper.printed("ready")
        made = await jobs.enqueue(effect, 1)
        await sleeper.stopped()
        began = time.monotonic()
        other = workers.start(valkey.url, LEASE_MS, "none")
        await other.printed("ready")
        await eventually(lambda: none_pending(jobs, "effect", 1), within=30)
        print(f"slept past its lease: taken over {time.monotonic() - began:.2f} s later")  # noqa: T201
        before = await jobs.get(made.id)
        os.kill(sleeper.process.pid, signal.SIGCONT)
        await sleeper.printed(f"the result of job {made.id} was refused")
        assert await jobs.get(made.id) == before
        assert before is not None
        assert before.state is State.COMPLETED
        assert before.attempt == before.lost + 1 == runs_so_far(valkey) > 1
        await check_kept(valkey, jobs, [made.id])


async def test_the_result_of_a_task_that_blocked_its_worker_past_the_lease_is_refused_by_name(
    valkey: Server, workers: JobWorkers
) -> None:
    async with store_on(valkey) as store:
        jobs = jobs_on(store)
        blocked = workers.start(valkey.url, LEASE_MS, "block")
        await blocked.printed("ready")
        made = await jobs.enqueue(effect, 1)
        await blocked.printed(f"blocks {made.id}")
        other = workers.start(valkey.url, LEASE_MS, "none")
        await other.printed("ready")
        await eventually(lambda: none_pending(jobs, "effect", 1), within=30)
        (blocked.folder / "go").touch()
        await blocked.printed(f"the result of job {made.id} was refused")
        await blocked.printed("blocks the event loop")
        await check_kept(valkey, jobs, [made.id])


async def test_a_plain_function_that_never_ends_keeps_no_worker_from_ending(
    valkey: Server, workers: JobWorkers
) -> None:
    async with store_on(valkey) as store:
        jobs = jobs_on(store)
        worker = workers.start(valkey.url, LONG_LEASE_MS, "none")
        await worker.printed("ready")
        made = await jobs.enqueue(endless)
        await worker.printed(f"begun {made.id}")
        os.kill(worker.process.pid, signal.SIGTERM)
        assert await worker.ended() == 0
        assert "closed" in worker.log
        other = workers.start(valkey.url, LONG_LEASE_MS, "none")
        await other.printed(f"begun {made.id}")
        job = await jobs.get(made.id)
        assert job is not None
        assert (job.state, job.lost, job.attempt) == (State.RUNNING, 0, 1)  # handed back, uncounted


async def _storm(server: Server, workers: JobWorkers, *, total: int, lease_ms: int, blows: int) -> None:
    draw = random.Random(total)
    async with store_on(server) as store:
        jobs = jobs_on(store)
        began = time.monotonic()
        alive = [workers.start(server.url, lease_ms, "none") for _ in range(2)]
        made: list[str] = []
        step = total // (blows + 1)
        for blow in range(blows + 1):
            calls = [effect.using(id=f"b{blow}n{number}").call(number) for number in range(step)]
            while True:  # whoever is not told of success tries again, by the same ids
                try:
                    made += [one.id for one in await jobs.enqueue_many(calls)]
                    break
                except StoreUnavailable:
                    await eventually(lambda: store.available, within=10)
            done = (blow + 0.5) * step
            await eventually(lambda done=done: effects_so_far(server) > done - step, within=60)
            told = f"{len(made)} of {total} jobs made, {effects_so_far(server)} done"
            print(f"{told}, {time.monotonic() - began:.1f} s", flush=True)  # noqa: T201
            if blow == blows:
                break
            if blow % 3 == 2:
                server.kill()
                server.start()
                await eventually(lambda: store.available, within=10)
            else:
                victim = draw.randrange(2)
                os.kill(alive[victim].process.pid, draw.choice((signal.SIGKILL, signal.SIGTERM)))
                alive[victim] = workers.start(server.url, lease_ms, "none")
        await eventually(lambda: none_pending(jobs, "effect", len(made)), within=90)
        runs = runs_so_far(server)
        took = time.monotonic() - began
        told = (
            f"{len(made)} jobs through {blows} blows in {took:.1f} s: {runs - len(made)} runs were repeated"
        )
        print(told)  # noqa: T201
        assert len(set(made)) == len(made)
        await check_kept(server, jobs, made)


async def test_seventeen_thousand_jobs_end_once_while_workers_and_the_server_are_killed(
    servers: Callable[..., Server], workers: JobWorkers
) -> None:
    await _storm(servers(appendonly=True), workers, total=17_000, lease_ms=1000, blows=7)


@pytest.mark.soak
async def test_two_hundred_thousand_jobs_end_once_while_workers_and_the_server_are_killed(
    servers: Callable[..., Server], workers: JobWorkers
) -> None:
    async with asyncio.timeout(SOAK_S):
        await _storm(servers(appendonly=True), workers, total=200_000, lease_ms=2000, blows=49)
