"""What the metrics tell of jobs: by type, by queue and of the workers of the process, and what a scrape costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient
from prometheus_client.parser import text_string_to_metric_families

from counterseal import Counterseal, JobContext, Settings, task
from counterseal.web import create_app
from support.round_trips import come_to_rest
from support.servers import Server

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


@task(name="greet", queue="mail")
async def greet(context: JobContext) -> None:
    pass


@task(name="break", queue="mail", retry=0)
async def breaks(context: JobContext) -> None:
    raise ValueError


@pytest.fixture
async def seal(valkey: Server, tmp_path: Path) -> AsyncIterator[Counterseal]:
    settings = Settings.load(
        {
            "REDIS_URL": valkey.url,
            "COUNTERSEAL_DATA_DIR": str(tmp_path),
            "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
        }
    )
    async with Counterseal.open(settings, tasks=[greet, breaks]) as opened:
        yield opened


async def scrape(client: AsyncClient) -> Found:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def of(found: Found, name: str, **labels: str) -> float:
    return found[f"counterseal_{name}", frozenset(labels.items())]


def client_of(seal: Counterseal) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(create_app(seal)), base_url="http://counterseal")


async def test_what_waits_is_told_by_type_and_by_queue(seal: Counterseal) -> None:
    await seal.jobs.pause("mail")
    await seal.jobs.enqueue(greet)
    await seal.jobs.enqueue(greet.using(delay=timedelta(hours=1)))
    async with client_of(seal) as client:
        found = await scrape(client)
    assert of(found, "jobs", type="greet", state="pending") == 2
    assert of(found, "jobs", type="greet", state="queued") == 1
    assert of(found, "jobs", type="greet", state="scheduled") == 1
    assert of(found, "queue_jobs", queue="mail", state="queued") == 1
    assert of(found, "queue_jobs", queue="mail", state="delayed") == 1
    assert of(found, "queue_paused", queue="mail") == 1
    assert of(found, "queue_paused", queue="default") == 0
    assert 0 <= of(found, "queue_oldest_seconds", queue="mail") < 60
    assert of(found, "queue_oldest_seconds", queue="default") == 0
    assert of(found, "queue_gone_total", queue="mail") == 0


async def test_what_was_done_is_told_by_type_and_by_worker(seal: Counterseal) -> None:
    good, bad = await seal.jobs.enqueue(greet), await seal.jobs.enqueue(breaks)
    async with seal.worker(), client_of(seal) as client:
        for made in (good, bad):
            await seal.jobs.wait(made.id)
        await come_to_rest(seal.store)  # the worker counts once it has its answer
        found = await scrape(client)
    assert of(found, "jobs", type="greet", state="completed") == 1
    assert of(found, "jobs", type="break", state="failed") == 1
    assert of(found, "job_runs_total", type="break") == 1
    assert of(found, "job_failures_total", type="break") == 1
    assert of(found, "job_failures_total", type="greet") == 0
    assert of(found, "job_lost_total", type="greet") == 0
    assert of(found, "queue_jobs", queue="mail", state="dead") == 1
    assert of(found, "job_run_seconds_count", type="greet") == 1
    assert of(found, "job_wait_seconds_count", type="greet") == 1
    assert 0 < of(found, "job_run_seconds", type="greet", quantile="0.99") < 5
    assert of(found, "worker_runs_total", outcome="completed") == 1
    assert of(found, "worker_runs_total", outcome="failed") == 1
    assert of(found, "worker_runs_total", outcome="refused") == 0
    assert of(found, "worker_running") == 0


async def test_a_process_without_a_worker_says_that_it_ran_nothing(seal: Counterseal) -> None:
    async with client_of(seal) as client:
        found = await scrape(client)
    assert of(found, "worker_runs_total", outcome="completed") == 0
    assert of(found, "worker_running") == 0


async def test_a_scrape_takes_four_round_trips_however_many_queues_there_are(seal: Counterseal) -> None:
    made = [await seal.jobs.enqueue(greet.using(queue=f"mail-{n}")) for n in range(5)]
    async with seal.worker(queues=[f"mail-{n}" for n in range(5)]):
        for one in made:
            await seal.jobs.wait(one.id)
    async with client_of(seal) as client:
        await scrape(client)  # the server learns the script
        await come_to_rest(seal.store)
        before = seal.store.counts.batches
        await scrape(client)
        assert seal.store.counts.batches - before <= 4
