"""Failovers while workers are killed: what was accepted with a replica ends once, with its effect, whoever dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest

from counterseal import Settings
from counterseal.core.errors import StoreUnavailable
from counterseal.jobs.context import JobContext
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.store.keys import Keys
from counterseal.store.open import open_store
from support.cluster import Cluster
from support.job_workers import JobWorker, JobWorkers, effects, job_states, none_pending, runs_so_far
from support.sentinel import SentinelGroup
from support.servers import Server
from support.waiting import eventually

KEYS = Keys()
PREFIX = KEYS.jobs_prefix("default")
LEASE_MS = 1500
PRODUCERS = 8
SOAK_S = 10 * 60
BOUNDARIES = ["after effect", "after lease", "before finish", "in handler", "before handler", "after finish"]


@task(name="effect", retry=5, keep=timedelta(hours=1))
async def effect(context: JobContext, number: int) -> int: ...


class Group(Protocol):
    """Servers of which one is the primary of the queue."""

    url: str

    def primary(self) -> Server: ...
    def kill(self) -> None: ...
    async def heal(self) -> None: ...


class WithSentinel:
    def __init__(self, group: SentinelGroup) -> None:
        self._group = group
        self._former = group.primary
        self.url = group.url

    def primary(self) -> Server:
        return self._group.primary

    def kill(self) -> None:
        self._former = self._group.kill_primary()

    async def heal(self) -> None:
        await self._group.wait_for_new_primary(self._former)
        await asyncio.to_thread(self._group.heal)


class InCluster:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._slot = cluster.slot_of(KEYS.jobs_queue("default"))
        self._former = self.primary()
        self.url = cluster.url

    def primary(self) -> Server:
        return self._cluster.owner(self._slot)

    def kill(self) -> None:
        self._former = self.primary()
        self._former.kill()

    async def heal(self) -> None:
        await eventually(self._taken_over, within=20)
        await asyncio.to_thread(self._cluster.heal)

    def _taken_over(self) -> bool:
        return self.primary() is not self._former


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[JobWorkers]:
    workers = JobWorkers(tmp_path)
    yield workers
    workers.close()


class Producer:
    """Makes jobs by ids of its own; whom it is refused it makes again, by the same id."""

    def __init__(self, jobs: Jobs) -> None:
        self.accepted: list[str] = []
        self.refused = 0
        self._jobs = jobs

    async def make(self, numbers: range) -> None:
        left = iter(numbers)
        async with asyncio.TaskGroup() as group:
            for _ in range(PRODUCERS):
                group.create_task(self._make(left))

    async def _make(self, left: Iterator[int]) -> None:
        for number in left:
            while not await self._accepted(number):
                self.refused += 1
                await asyncio.sleep(0.02)  # as somebody who tries again would

    async def _accepted(self, number: int) -> bool:
        try:
            made = await self._jobs.enqueue(effect.using(id=f"n{number}"), number)
        except StoreUnavailable:
            return False
        self.accepted.append(made.id)
        return True


async def _start_until_ready(workers: JobWorkers, url: str) -> JobWorker:
    """Start a worker as a supervisor does: again when it has ended because nobody takes writes."""
    async with asyncio.timeout(60):
        while True:
            worker = workers.start(url, LEASE_MS, "none")
            await eventually(lambda: "ready" in worker.log or worker.process.poll() is not None, within=20)  # noqa: B023
            if "ready" in worker.log:
                return worker
            assert await worker.ended() == 1
            assert "counterseal.core.errors.Store" in worker.log, worker.log[-2000:]


async def _storm(group: Group, workers: JobWorkers, *, seed: int, blows: int, step: int) -> None:
    """Blows that fall while jobs are made. Before the next one all have ended, so no job meets three of them.

    In each a worker kills itself with jobs in its hands. In the middle one of every three the primary is killed then,
    and the other worker while there is no primary; another is started at once, and again until there is one.
    """
    draw = random.Random(seed)
    settings = Settings.load({"REDIS_URL": group.url, "COUNTERSEAL_COMMAND_TIMEOUT": "1s"})
    began = time.monotonic()
    async with open_store(settings) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[effect], min_replicas=1)
        producer = Producer(jobs)
        other = workers.start(group.url, LEASE_MS, "none")
        for blow in range(blows):
            boundary = BOUNDARIES[(seed + blow) % len(BOUNDARIES)]
            victim = workers.start(group.url, LEASE_MS, "kill", boundary, draw.randrange(1, 20))
            await victim.printed("ready")
            await other.printed("ready")
            if blow % 3 == 0:
                os.kill(other.process.pid, signal.SIGSTOP)  # the victim is sure to have jobs
            numbers = range(blow * step, (blow + 1) * step)
            early = numbers[: step // 2] if blow % 3 == 1 else numbers
            making = asyncio.create_task(producer.make(early))
            await eventually(lambda: victim.process.poll() is not None or making.done(), within=60)  # noqa: B023
            os.kill(other.process.pid, signal.SIGCONT)
            if blow % 3 == 1:
                group.kill()
                os.kill(other.process.pid, signal.SIGKILL)
                # However fast the others were made, these are made while there is no primary.
                late = asyncio.create_task(producer.make(numbers[len(early) :]))
                starting = asyncio.create_task(_start_until_ready(workers, group.url))
                await group.heal()
                await late
                other = await starting
            await making
            await eventually(lambda: none_pending(jobs, "effect", len(producer.accepted)), within=60)
            if victim.process.poll() is None:  # the other one had the jobs
                os.kill(victim.process.pid, signal.SIGKILL)
            told = f"blow {blow + 1} of {blows}: {len(producer.accepted)} accepted, killed {boundary}"
            print(f"{told}, {time.monotonic() - began:.1f} s", flush=True)  # noqa: T201
        primary, made = group.primary(), producer.accepted
        again = runs_so_far(primary) - len(made)
        stats = (await jobs.stats())["effect"]
        print(f"{producer.refused} refusals, {stats.lost} jobs were taken over, {again} runs were repeated")  # noqa: T201
        assert len(set(made)) == len(made) == blows * step
        assert job_states(primary, PREFIX, made) == {b"c": len(made)}
        assert effects(primary).keys() == {identifier.encode() for identifier in made}
        assert (stats.total, stats.completed, stats.pending) == (len(made), len(made), 0)
        assert primary.execute("ZCARD", f"{PREFIX}:running") == 0
        assert primary.execute("HLEN", f"{PREFIX}:state") == 0
        assert stats.lost > 0
        assert producer.refused > 0  # else nothing was killed while jobs were made


async def test_jobs_end_once_while_workers_are_killed_and_sentinel_fails_over(
    sentinels: SentinelGroup, workers: JobWorkers
) -> None:
    await _storm(WithSentinel(sentinels), workers, seed=1, blows=3, step=300)


async def test_jobs_end_once_while_workers_are_killed_and_a_cluster_fails_over(
    cluster: Cluster, workers: JobWorkers
) -> None:
    await _storm(InCluster(cluster), workers, seed=2, blows=3, step=300)


@pytest.mark.soak
async def test_many_jobs_end_once_while_workers_are_killed_and_sentinel_fails_over_again_and_again(
    sentinels: SentinelGroup, workers: JobWorkers
) -> None:
    async with asyncio.timeout(SOAK_S):
        await _storm(WithSentinel(sentinels), workers, seed=3, blows=18, step=1000)


@pytest.mark.soak
async def test_many_jobs_end_once_while_workers_are_killed_and_a_cluster_fails_over_again_and_again(
    cluster: Cluster, workers: JobWorkers
) -> None:
    async with asyncio.timeout(SOAK_S):
        await _storm(InCluster(cluster), workers, seed=4, blows=18, step=1000)
