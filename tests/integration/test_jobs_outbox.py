"""Jobs that leave with a transaction, on both databases: none when it was rolled back, one when it was committed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select

from counterseal.core.errors import ArgumentInvalid, ValueTooLarge
from counterseal.database.engine import Database
from counterseal.database.outbox import Outbox
from counterseal.database.tables import outbox_jobs
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.service import OUTBOX_KIND, Jobs
from counterseal.jobs.task import task
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually


@task(name="mail")
async def mail(context: JobContext, to: str) -> None: ...


@pytest.fixture
async def store(valkey: Server) -> AsyncIterator[Store]:
    async with store_on(valkey) as store:
        yield store


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store, keys=Keys(), tasks=[mail], max_payload=1000)


@dataclass
class Relayed:
    """As much of a job of the outbox as its handler looks at."""

    payload: Any


class Rollback(Exception):
    """Undoes a transaction."""


async def test_a_job_of_a_transaction_that_was_rolled_back_is_never_made(
    jobs: Jobs, store: Store, database: Database
) -> None:
    with pytest.raises(Rollback):  # noqa: PT012 - the block is the transaction
        async with database.begin() as connection:
            undone = await jobs.enqueue_in(connection, mail, "undone")
            raise Rollback
    async with database.begin() as connection:
        kept = await jobs.enqueue_in(connection, mail, "kept")
    assert await jobs.get(kept) is None
    async with Outbox(database, now_ms=store.now_ms, handlers={OUTBOX_KIND: jobs.relay}) as outbox:
        outbox.wake()
        job = await eventually(lambda: jobs.get(kept), within=20)
    assert (job.state, job.args) == (State.QUEUED, {"to": "kept"})
    assert await jobs.get(undone) is None
    assert (await jobs.stats())["mail"].total == 1


async def test_a_job_that_is_relayed_twice_is_made_once(jobs: Jobs, database: Database) -> None:
    async with database.begin() as connection:
        identifier = await jobs.enqueue_in(connection, mail.using(tags=("t",), idempotency_key="k"), "ada")
    async with database.begin() as connection:
        row = (await connection.execute(select(outbox_jobs.c.payload))).one()
    for _ in range(2):
        await jobs.relay(Relayed(row.payload))  # type: ignore[arg-type]
    job = await jobs.get(identifier)
    assert job is not None
    assert (job.idempotency_key, job.tags) == ("k", ("t",))
    assert (await jobs.stats())["mail"].total == 1
    assert len(await jobs.list()) == 1


async def test_what_does_not_fit_is_refused_within_the_transaction(jobs: Jobs, database: Database) -> None:
    async with database.begin() as connection:
        with pytest.raises(ArgumentInvalid):
            await jobs.enqueue_in(connection, mail, 7)  # type: ignore[arg-type]
        with pytest.raises(ValueTooLarge, match="the limit is 1000"):
            await jobs.enqueue_in(connection, mail, "x" * 1000)
        assert (await connection.execute(select(outbox_jobs.c.payload))).all() == []
