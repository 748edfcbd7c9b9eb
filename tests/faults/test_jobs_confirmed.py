"""Confirmed: with `COUNTERSEAL_MIN_REPLICAS` whatever a call makes or changes is on a replica when it returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from counterseal import Counterseal, Settings
from counterseal.core.errors import NotReplicated
from counterseal.database.outbox import OutboxJob
from counterseal.jobs.context import JobContext
from counterseal.jobs.cron import Cron
from counterseal.jobs.schedule import Schedule
from counterseal.jobs.scripts import Queue, Result
from counterseal.jobs.task import task
from counterseal.store.keys import Keys
from support.servers import Server
from support.waiting import eventually

KEYS = Keys()
NOW = datetime(2026, 11, 24, tzinfo=UTC)


@task(name="count")
async def count(context: JobContext, number: int) -> int:
    return number


@pytest.fixture
async def pair(servers: Callable[..., Server]) -> tuple[Server, Server]:
    """A primary and its replica, in step."""
    primary, replica = servers(), servers()
    replica.execute("REPLICAOF", "127.0.0.1", primary.port)
    await eventually(lambda: replica.info("replication")["master_link_status"] == "up", within=15)
    return primary, replica


@dataclass(frozen=True)
class Prepared:
    """What is there before the replica is stalled."""

    seal: Counterseal
    dead: str
    waiting: str


CHANGES: dict[str, Callable[[Prepared], Awaitable[object]]] = {
    "enqueue": lambda one: one.seal.jobs.enqueue(count, 1),
    "enqueue_many": lambda one: one.seal.jobs.enqueue_many([count.call(1), count.call(2)]),
    "enqueue_json": lambda one: one.seal.jobs.enqueue_json("count", {"number": 1}),
    "relay": lambda one: one.seal.jobs.relay(of_the_outbox()),
    "retry_dead": lambda one: one.seal.jobs.retry_dead(one.dead),
    "delete_dead": lambda one: one.seal.jobs.delete_dead(one.dead),
    "cancel": lambda one: one.seal.jobs.cancel(one.waiting),
    "pause": lambda one: one.seal.jobs.pause(),
    "resume": lambda one: one.seal.jobs.resume(),
    "set_parallelism": lambda one: one.seal.jobs.set_parallelism("default", 3),
    "run_now": lambda one: one.seal.schedules.run_now("daily"),
    "put": lambda one: one.seal.schedules.put(daily("other")),
    "pause of a schedule": lambda one: one.seal.schedules.pause("daily"),
    "remove": lambda one: one.seal.schedules.remove("daily"),
    "reconcile": lambda one: one.seal.schedules.reconcile([daily("third")], source="application"),
    "tick": lambda one: one.seal.schedules.enqueue([count.using(id="tick").call(1)]),
}
"""Every call that makes or changes something."""


def daily(identifier: str) -> Schedule:
    return Schedule(id=identifier, type="count", when=Cron("0 6 * * *"), args='{"number":1}')


def of_the_outbox() -> OutboxJob:
    names = ("queue", "part", "type", "priority", "args", "extra")
    payload = dict(zip(names, ("default", "relayed", "count", "1", '1:{"number":1}', ""), strict=True))
    return OutboxJob(
        id=UUID(int=1),
        kind="job",
        payload_version=1,
        payload=payload,
        aggregate="",
        attempt=1,
        created_at=NOW,
    )


@pytest.fixture
async def prepared(pair: tuple[Server, Server], tmp_path: Path) -> AsyncIterator[Prepared]:
    primary, _ = pair
    settings = Settings.load(
        {"REDIS_URL": primary.url, "COUNTERSEAL_MIN_REPLICAS": "1", "COUNTERSEAL_DATA_DIR": str(tmp_path)}
    )
    async with Counterseal(settings, tasks=[count]) as seal:
        dead, waiting = [one.id for one in await seal.jobs.enqueue_many([count.call(1), count.call(2)])]
        queue = Queue(seal.store, KEYS, "default")
        (leased,) = (await queue.lease(room=1, worker="w", call="1", lease_ms=15_000)).jobs
        failed = Result(leased.part, leased.token, "failed", 60_000, 0, b'["ValueError","",""]')
        assert await queue.finish([failed]) == [True]
        await seal.schedules.put(daily("daily"))
        yield Prepared(seal, dead, waiting)


async def test_whatever_makes_or_changes_something_is_confirmed_by_a_replica(
    prepared: Prepared, pair: tuple[Server, Server]
) -> None:
    _, replica = pair
    replica.freeze()
    refused: list[str] = []
    for name, change in CHANGES.items():
        try:
            await change(prepared)
        except NotReplicated:
            refused.append(name)
    replica.thaw()
    assert refused == list(CHANGES)


async def test_a_retried_letter_is_on_the_replica_when_it_was_accepted(
    prepared: Prepared, pair: tuple[Server, Server]
) -> None:
    _, replica = pair
    (made,) = await prepared.seal.jobs.retry_dead(prepared.dead)
    prefix = KEYS.jobs_prefix("default")
    assert replica.execute("EXISTS", f"{prefix}:job:{made.id.partition('.')[2]}") == 1
    assert replica.execute("ZCARD", f"{prefix}:dead") == 0
