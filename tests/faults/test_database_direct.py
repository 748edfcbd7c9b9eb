"""Transactions on the driver itself: they end as those through SQLAlchemy do, also when refused, late or cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import bindparam, func, insert, select

from counterseal.core.errors import Conflict, DatabaseError, DatabaseUnavailable
from counterseal.database.direct import Direct, Statement, Transaction
from counterseal.database.engine import Database
from counterseal.database.tables import audit_values, global_epochs
from support.databases import EVERY, Databases, Place
from support.waiting import eventually

_NAME, _VALUE = global_epochs.c.name, global_epochs.c.value
ADD = Statement(insert(global_epochs), columns=("name", "value"))
NAMES = Statement(select(_NAME).where(bindparam("below") < _VALUE).order_by(_NAME))

_n = select(func.begun().label("i")).cte("n", recursive=True)
_n = _n.union_all(select(_n.c.i + 1))
ENDLESS = {
    "sqlite": Statement(select(func.max(_n.c.i))),
    "postgresql": Statement(select(func.pg_sleep(bindparam("seconds")))),
}

pytestmark = pytest.mark.parametrize("place", EVERY, indirect=True)


async def add(transaction: Transaction, *names: str) -> None:
    await ADD.write(transaction, *({"name": name, "value": 1} for name in names))


async def names(transaction: Transaction) -> list[str]:
    return [name for (name,) in await NAMES.rows(transaction, {"below": 0})]


async def written(database: Database) -> list[str]:
    async with database.read() as connection:
        return await names(connection)


class Endless:
    """A statement that never ends, in the middle of a transaction."""

    def __init__(self, database: Database, databases: Databases, place: Place) -> None:
        self._database = database
        self._databases = databases
        self._place = place
        self._begun = threading.Event()

    async def run(self) -> None:
        async with self._database.begin_direct() as direct:
            await add(direct, "half")
            await names(direct)
            if self._database.kind == "sqlite":
                await direct._driver.create_function("begun", 0, lambda: self._begun.set() or 1)
            await ENDLESS[direct.dialect.name].rows(direct, {"seconds": 600})

    async def runs(self) -> bool:
        """Whether the server has it: one that is cancelled on the way would begin all the same."""
        if self._place.url is None:
            return self._begun.is_set()
        active = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(%' AND state = 'active'"
        return bool(await self._databases.execute(self._place, f"{active} AND pid <> pg_backend_pid()"))


@pytest.fixture
def endless(database: Database, databases: Databases, place: Place) -> Endless:
    return Endless(database, databases, place)


def all_are_back(database: Database) -> bool:
    assert database._engine is not None
    return database._engine.pool.checkedout() == 0


async def test_a_statement_means_the_same_on_the_driver_and_on_a_connection(database: Database) -> None:
    async with database.begin_direct() as direct:
        await add(direct, "b")
        await add(direct, "a", "d")
        assert await names(direct) == ["a", "b", "d"]
    async with database.begin() as connection:
        await add(connection, "c")
        await add(connection, "e", "f")
        assert await names(connection) == list("abcdef")
    assert await written(database) == list("abcdef")


async def test_values_are_read_and_written_as_the_types_of_the_columns_say(database: Database) -> None:
    row = {"commitment": b"\0" * 32, "kind": "ip", "salt": b"s" * 32, "value": "::1", "subject_id": None}
    at = datetime(2026, 11, 23, 0, 9, 21, 538001, tzinfo=UTC)
    put = Statement(insert(audit_values), columns=(*row, "created_at"))
    get = Statement(select(audit_values.c.salt, audit_values.c.created_at, audit_values.c.erased_at))
    async with database.begin_direct() as direct:
        await put.write(direct, row | {"created_at": at})
        assert [tuple(found) for found in await get.rows(direct, {})] == [(b"s" * 32, at, None)]
    async with database.read() as connection:
        assert [tuple(found) for found in await get.rows(connection, {})] == [(b"s" * 32, at, None)]


async def test_a_block_that_raises_is_rolled_back(database: Database) -> None:
    async def fail(*, begun: bool) -> None:
        async with database.begin_direct() as direct:
            await add(direct, "half")
            if begun:
                await names(direct)
            raise LookupError

    for begun in (True, False):
        with pytest.raises(LookupError):
            await fail(begun=begun)
    assert await written(database) == []
    assert all_are_back(database)


async def test_after_a_rollback_nothing_is_run_any_more(database: Database) -> None:
    async with database.begin_direct() as direct:
        await add(direct, "half")
        await names(direct)
        await direct.rollback()
        await direct.rollback()
        with pytest.raises(RuntimeError):
            await names(direct)
        await add(direct, "more")
    assert await written(database) == []
    async with database.begin_direct() as direct:
        await add(direct, "whole")
    assert await written(database) == ["whole"]


async def test_what_is_refused_is_told_as_ever_and_leaves_nothing(database: Database) -> None:
    async def put(name: str, value: int | None) -> None:
        async with database.begin_direct() as direct:
            await add(direct, f"before {name}")
            await ADD.write(direct, {"name": name, "value": value})

    await put("one", 1)
    with pytest.raises(Conflict) as told:
        await put("one", 2)
    assert "one" not in str(told.value).split()
    with pytest.raises(DatabaseError):
        await put("two", None)
    assert await written(database) == ["before one", "one"]
    assert all_are_back(database)


async def test_one_that_is_cancelled_in_a_statement_leaves_nothing(
    database: Database, endless: Endless
) -> None:
    task = asyncio.create_task(endless.run())
    await eventually(endless.runs)
    task.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await task
        async with database.begin_direct() as direct:
            await add(direct, "half")
    assert await written(database) == ["half"]


async def test_one_that_is_cancelled_again_and_again_gives_its_connection_back(
    database: Database, endless: Endless
) -> None:
    task = asyncio.create_task(endless.run())
    await eventually(endless.runs)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: all_are_back(database))
    async with asyncio.timeout(30), database.begin_direct() as direct:
        await add(direct, "half")
    assert await written(database) == ["half"]


async def test_a_statement_that_takes_too_long_is_ended(databases: Databases, place: Place) -> None:
    async with place.database(timeout=timedelta(seconds=0.5)) as database:
        async with asyncio.timeout(30):
            with pytest.raises(DatabaseUnavailable):
                await Endless(database, databases, place).run()
        async with place.database() as patient:
            async with patient.begin_direct() as direct:
                await add(direct, "next")
            assert await written(patient) == ["next"]


async def test_cancelling_at_any_moment_harms_nobody_else(database: Database) -> None:
    async def work(name: str) -> None:
        async with database.begin_direct() as direct:
            await add(direct, name)
            await names(direct)

    tasks = [asyncio.create_task(work(f"row {n}")) for n in range(60)]
    for turn, task in enumerate(tasks):
        if turn % 2:
            await asyncio.sleep(0)
            task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(fault) for fault in found} <= {type(None), asyncio.CancelledError}
    assert set(await written(database)) >= {f"row {n}" for n in range(0, 60, 2)}
    await eventually(lambda: all_are_back(database))
    await work("last")


async def test_a_transaction_waits_no_longer_for_a_lock_than_it_says(
    database: Database, place: Place
) -> None:
    if place.kind == "sqlite":
        return  # one writes at a time, and the others wait for their turn
    locked = Statement(select(_NAME).with_for_update())

    async def lock(direct: Direct) -> Sequence[Any]:
        return await locked.rows(direct, {})

    async with database.begin_direct() as direct:
        await add(direct, "one")
    async with database.begin_direct() as holder:
        await lock(holder)
        async with asyncio.timeout(20):
            with pytest.raises(DatabaseUnavailable):
                async with database.begin_direct(lock_timeout=timedelta(milliseconds=50)) as direct:
                    await lock(direct)
    async with database.begin_direct(lock_timeout=timedelta(milliseconds=50)) as direct:
        assert len(await lock(direct)) == 1
