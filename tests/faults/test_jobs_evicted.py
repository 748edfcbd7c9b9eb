"""A server that evicts: what it has thrown away is lost, and told; everything else goes on as if it had not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import pytest

from counterseal.core.errors import CommandError
from counterseal.jobs.context import JobContext
from counterseal.jobs.options import Flow, Priority
from counterseal.jobs.service import Jobs
from counterseal.jobs.statistics import JobStats
from counterseal.jobs.task import task
from counterseal.jobs.worker import Worker
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

KEYS = Keys()
PREFIX = KEYS.jobs_prefix("default")
FLOWS = [Flow(f"f{number}", parallelism=1) for number in range(4)]
TEXT = "x" * 2000
HOUR_AGO = 3600
LEASE = timedelta(seconds=1)


def worker_on(store: Store, ran: list[int]) -> Worker:
    @task(name="note", retry=0)
    async def note(context: JobContext, number: int, text: str = "") -> None:
        ran.append(number)

    return Worker(store, keys=KEYS, tasks=[note], poll=timedelta(milliseconds=100), lease=LEASE)


@task(name="note", retry=0)
async def note(context: JobContext, number: int, text: str = "") -> None: ...


async def fill(jobs: Jobs, many: int) -> list[str]:
    """Jobs of every kind: of each priority, in flows, and later ones."""
    later = timedelta(milliseconds=200)
    calls = []
    for number in range(many):
        match number % 4:
            case 0:
                one = note.using(flow=FLOWS[number // 4 % len(FLOWS)])
            case 1:
                one = note.using(delay=later)
            case 2:
                one = note.using(priority=tuple(Priority)[number // 4 % 3])
            case _:
                one = note
        calls.append(one.call(number, TEXT))
    return [made.id for made in await jobs.enqueue_many(calls)]


def record_of(identifier: str) -> str:
    return f"{PREFIX}:job:{identifier.partition('.')[2]}"


def make_old(server: Server, keys: Sequence[str]) -> None:
    """Have the server believe that nobody has used these keys for an hour."""
    dumps = server.client.pipeline([("DUMP", key) for key in keys])
    server.client.pipeline(
        [
            ("RESTORE", key, 0, dump, "REPLACE", "IDLETIME", HOUR_AGO)
            for key, dump in zip(keys, dumps, strict=True)
        ]
    )


def there(server: Server, identifiers: Sequence[str]) -> int:
    return sum(server.client.pipeline([("EXISTS", record_of(one)) for one in identifiers]))


def evicted(server: Server) -> int:
    return int(server.info("stats")["evicted_keys"])


def squeeze(server: Server, by: int) -> None:
    """Take memory away from a server."""
    used = int(server.info("memory")["used_memory"])
    server.execute("CONFIG", "SET", "maxmemory", used - by)


async def gone(jobs: Jobs) -> int:
    return sum(queue.gone for queue in await jobs.queues())


def check_sane(stats: JobStats) -> None:
    parts = (stats.scheduled, stats.queued, stats.running, stats.retrying)
    assert min(*parts, stats.completed, stats.failed, stats.cancelled) >= 0
    assert stats.pending == sum(parts)
    assert stats.total == stats.completed + stats.failed + stats.pending + stats.cancelled


async def check_goes_on(jobs: Jobs, ran: list[int], first: int) -> None:
    """New jobs run: of every flow, of every priority, and later ones."""
    calls = [note.using(flow=flow).call(first + place) for place, flow in enumerate(FLOWS * 3)]
    calls += [
        note.using(priority=priority).call(first + 20 + place) for place, priority in enumerate(Priority)
    ]
    calls += [note.using(delay=timedelta(milliseconds=50)).call(first + 30)]
    await jobs.enqueue_many(calls)
    numbers = {*range(first, first + 12), *range(first + 20, first + 23), first + 30}

    def all_ran() -> bool:
        assert numbers <= set(ran), sorted(numbers - set(ran))
        return True

    await eventually(all_ran)


async def test_jobs_whose_records_a_full_server_evicts_are_told_of_and_the_others_run(
    servers: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = servers(config=["maxmemory-policy allkeys-lru", "maxmemory-samples 10"])
    async with store_on(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[note])
        await jobs.pause()
        made = await fill(jobs, 1200)
        make_old(server, [record_of(one) for one in made])
        squeeze(server, 1_000_000)
        left = await eventually(lambda: 0 < there(server, made) < 1000 and there(server, made))
        assert evicted(server) == len(made) - left  # the records, and nothing else
        server.execute("CONFIG", "SET", "maxmemory", 0)
        ran: list[int] = []
        async with worker_on(store, ran) as worker:
            await jobs.resume()
            await eventually(lambda: len(ran) == left)
            await eventually(lambda: is_gone(jobs, len(made) - left))
            assert "had no record any more: does the server evict keys" in caplog.text
            stats = (await jobs.stats())["note"]
            check_sane(stats)
            assert (stats.completed, stats.pending) == (left, 0)
            await check_goes_on(jobs, ran, len(made))
            await eventually(lambda: worker.running == 0)
        stats = (await jobs.stats())["note"]
        check_sane(stats)
        assert (stats.completed, stats.pending) == (left + 16, 0)
        for flow in FLOWS:
            assert int(server.execute("HGET", f"{PREFIX}:flow:{flow.key}", "running") or 0) == 0


async def is_gone(jobs: Jobs, many: int) -> bool:
    assert await gone(jobs) == many
    return True


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_a_worker_survives_a_server_that_evicts_whatever_it_likes(
    servers: Callable[..., Server], policy: str
) -> None:
    server = servers(config=[f"maxmemory-policy {policy}"])
    async with store_on(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[note])
        squeeze(server, -1_500_000)
        ran: list[int] = []
        async with worker_on(store, ran) as worker:
            while evicted(server) < 1000:
                with suppress(CommandError):  # it has not evicted enough yet
                    await fill(jobs, 40)
                check_sane((await jobs.stats())["note"])
            server.execute("CONFIG", "SET", "maxmemory", 0)
            await check_goes_on(jobs, ran, 10_000)
            await eventually(lambda: worker.running == 0)
        stats = await jobs.stats()
        check_sane(stats["note"])


STRUCTURES = [
    "queue", "ready:1", "ring:1", "ring:0", "state", "running", "delayed", "flow:f0", "flow:f1", "lane:1:f0",
    "lane:1:f1", "flowdue", "stats:note", "types", "times:note", "events", "idle", "recent",
]  # fmt: skip


@pytest.mark.parametrize("structure", STRUCTURES)
async def test_a_queue_that_lost_one_of_its_keys_runs_what_comes_after(
    valkey: Server, structure: str
) -> None:
    async with store_on(valkey) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[note])
        await jobs.pause()
        await fill(jobs, 40)
        await jobs.resume()
        valkey.execute("DEL", f"{PREFIX}:{structure}")
        ran: list[int] = []
        async with worker_on(store, ran) as worker:
            await check_goes_on(jobs, ran, 1000)
            await eventually(lambda: worker.running == 0)
        check_sane((await jobs.stats())["note"])


async def test_a_server_that_evicts_only_what_expires_keeps_every_job_that_waits(
    servers: Callable[..., Server],
) -> None:
    server = servers(config=["maxmemory-policy volatile-ttl"])
    async with store_on(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[note])
        ran: list[int] = []
        async with worker_on(store, ran):
            ended = await fill(jobs, 400)  # their records expire, and may be evicted
            await eventually(lambda: len(ran) == len(ended))
            await eventually(lambda: no_job_waits(jobs))
            await jobs.pause()
            made: list[str] = []
            squeeze(server, -200_000)
            with pytest.raises(CommandError, match="OOM"):  # noqa: PT012 - one of them is refused
                while True:
                    made += await fill(jobs, 20)
            assert evicted(server) >= len(ended)
            assert there(server, made) == len(made)
            server.execute("CONFIG", "SET", "maxmemory", 0)
            await jobs.resume()
            await eventually(lambda: no_job_waits(jobs))
            assert len(ran) == len(ended) + len(made)
        assert await gone(jobs) == 0
        stats = (await jobs.stats())["note"]
        check_sane(stats)
        assert (stats.completed, stats.pending) == (len(ran), 0)


async def no_job_waits(jobs: Jobs) -> bool:
    return (await jobs.stats())["note"].pending == 0


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
