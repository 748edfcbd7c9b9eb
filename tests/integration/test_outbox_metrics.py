"""The outbox in `/metrics`: what waits and for how long, asked for seldom, and no reason to fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from counterseal.app import Counterseal
from counterseal.core.settings import Settings
from counterseal.database.engine import Database
from counterseal.database.outbox import Outbox, add_job
from counterseal.web import create_app
from counterseal.web.metrics import OutboxMetrics
from support.databases import Place
from support.postgres import Postgres
from support.servers import Server

PENDING = ("counterseal_outbox_jobs", "pending")
UNKNOWN = ("counterseal_outbox_jobs", "unknown")
DEAD = ("counterseal_outbox_jobs", "dead")
AGE = ("counterseal_outbox_oldest_seconds", "")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def add(database: Database, kind: str = "foreign", *, since_s: int = 0) -> None:
    async with database.begin() as connection:
        await add_job(connection, kind, {}, now_ms=now_ms() - since_s * 1000)


def samples(metrics: OutboxMetrics) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("state", "")): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


@asynccontextmanager
async def site_on(server: Server, **variables: str) -> AsyncIterator[tuple[Counterseal, httpx.AsyncClient]]:
    settings = Settings.load({"REDIS_URL": server.url, "COUNTERSEAL_COMMAND_TIMEOUT": "2s", **variables})
    async with Counterseal.open(settings) as seal:
        transport = httpx.ASGITransport(create_app(seal))
        async with httpx.AsyncClient(transport=transport, base_url="http://counterseal") as client:
            yield seal, client


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, sample.labels.get("state", "")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name.startswith("counterseal_outbox")
    }


async def test_what_waits_is_shown_with_its_age(valkey: Server, tmp_path: Path) -> None:
    async with site_on(valkey, COUNTERSEAL_DATA_DIR=str(tmp_path)) as (seal, client):
        await add(seal.database, since_s=90)
        await add(seal.database)
        found = await scrape(client)
    assert 90 <= found.pop(AGE) < 120
    assert found == {PENDING: 2, UNKNOWN: 2, DEAD: 0}


async def test_an_empty_outbox_has_no_age(valkey: Server, tmp_path: Path) -> None:
    async with site_on(valkey, COUNTERSEAL_DATA_DIR=str(tmp_path)) as (_, client):
        assert await scrape(client) == {PENDING: 0, UNKNOWN: 0, DEAD: 0, AGE: 0}


async def test_the_database_is_asked_at_most_every_five_seconds(database: Database) -> None:
    now = 1000.0
    metrics = OutboxMetrics(Outbox(database, now_ms=now_ms, handlers={}), clock=lambda: now)
    assert samples(metrics) == {}
    await metrics.read()
    await add(database)
    now += 4.9
    await metrics.read()
    assert samples(metrics)[PENDING] == 0
    now += 0.2
    await metrics.read()
    assert samples(metrics)[PENDING] == 1


async def test_metrics_answer_while_the_database_is_down(valkey: Server, tmp_path: Path) -> None:
    with Postgres() as postgres:
        data = {"COUNTERSEAL_DATA_DIR": str(tmp_path), "DATABASE_URL": postgres.url()}
        database = Settings.load(data).database
        async with Database(database.url, data_dir=tmp_path) as fresh:
            await fresh.upgrade()
        async with site_on(valkey, **data) as (_, client):
            postgres.stop()
            assert await scrape(client) == {}
            assert "counterseal_store_available 1.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_a_database_that_answers_late_is_waited_for_a_second(database: Database, place: Place) -> None:
    metrics = OutboxMetrics(Outbox(database, now_ms=now_ms, handlers={}))
    async with place.database() as other, other.begin() as connection:
        await connection.execute(text("LOCK TABLE counterseal.outbox_jobs IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        await metrics.read()
        assert 0.9 < time.monotonic() - began < 10
    assert samples(metrics) == {}


async def test_what_was_known_is_left_out_when_the_database_goes_away(database: Database) -> None:
    now = 1000.0
    metrics = OutboxMetrics(Outbox(database, now_ms=now_ms, handlers={}), clock=lambda: now)
    await metrics.read()
    assert samples(metrics)[PENDING] == 0
    await database.close()
    now += 10
    await metrics.read()
    assert samples(metrics) == {}
