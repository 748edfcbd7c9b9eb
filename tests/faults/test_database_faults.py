"""The database frozen, restarted, locked, and blocks that are cancelled half-way: bounded waits, clean ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import DatabaseUnavailable
from counterseal.database.engine import Database
from counterseal.database.tables import global_epochs
from support.databases import EVERY, Databases, Place
from support.postgres import Postgres
from support.waiting import eventually

TIMEOUT = timedelta(seconds=0.5)
SOON = TIMEOUT.total_seconds() + 1.5
"""The time-out, half a second for a farewell, and a second for a busy machine."""

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT begun() UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[tuple[Database, Postgres]]:
    """An open database whose server can be frozen."""
    with Postgres() as own:
        async with Database(SecretStr(own.url()), data_dir=tmp_path, timeout=TIMEOUT) as database:
            yield database, own
            own.thaw()


@asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    began = time.monotonic()
    async with asyncio.timeout(30):
        yield
    assert time.monotonic() - began < SOON


async def count(database: Database) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(global_epochs))).scalar_one()


async def write(database: Database, name: str) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(global_epochs).values(name=name, value=1))


async def test_a_frozen_server_is_unavailable_within_the_time_out(frozen: tuple[Database, Postgres]) -> None:
    database, server = frozen
    server.freeze(served=True)
    for ask in (database.ping, database.ping):
        async with bounded():
            with pytest.raises(DatabaseUnavailable):
                await ask()
    async with bounded():  # more than there are connections: the rest waits for one, no longer than that
        found = await asyncio.gather(*(database.ping() for _ in range(40)), return_exceptions=True)
    assert {type(fault) for fault in found} == {DatabaseUnavailable}
    server.thaw()
    await eventually(lambda: answers(database))


async def answers(database: Database) -> bool:
    try:
        await database.ping()
    except DatabaseUnavailable:
        return False
    return True


async def test_a_server_that_freezes_in_the_middle_of_a_block_ends_it_in_time(
    frozen: tuple[Database, Postgres],
) -> None:
    database, server = frozen

    async def ask_twice() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))
            server.freeze(served=True)
            await connection.execute(text("SELECT 2"))

    async with bounded():
        with pytest.raises(DatabaseUnavailable):
            await ask_twice()


async def test_a_server_that_freezes_before_the_commit_ends_the_block_in_time(
    frozen: tuple[Database, Postgres],
) -> None:
    database, server = frozen

    async def ask() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))
            server.freeze(served=True)

    async with bounded():
        with pytest.raises(DatabaseUnavailable):
            await ask()


async def test_a_task_that_waits_for_a_frozen_server_can_be_cancelled(
    frozen: tuple[Database, Postgres],
) -> None:
    database, server = frozen
    asked = asyncio.Event()

    async def ask() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))
            server.freeze(served=True)
            asked.set()
            await connection.execute(text("SELECT 2"))

    task = asyncio.create_task(ask())
    await asked.wait()
    async with bounded():
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_statement_that_waits_for_a_lock_too_long_is_given_up_on_the_server_too(
    databases: Databases, tmp_path: Path
) -> None:
    async with databases.place("postgresql", tmp_path) as place, place.database() as patient:
        await write(patient, "one")
        async with place.database(timeout=TIMEOUT) as hasty, patient.begin() as holder:
            await holder.execute(update(global_epochs).values(value=2))

            async def wait() -> None:
                async with hasty.begin() as connection:
                    await connection.execute(update(global_epochs).values(value=3))

            async with bounded():
                with pytest.raises(DatabaseUnavailable):
                    await wait()
            # Nobody is left in line for the lock: it would be taken by a transaction that nobody waits for.
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

            async def nobody_waits() -> bool:
                return (await holder.execute(waiting)).scalar_one() == 0

            await eventually(nobody_waits)


class Endless:
    """A statement that never ends, and whether the database is busy with it."""

    def __init__(self, databases: Databases, place: Place) -> None:
        self._databases = databases
        self._place = place
        self._begun = threading.Event()

    async def run(self, connection: AsyncConnection) -> None:
        if self._place.url is not None:
            await connection.execute(text("SELECT pg_sleep(600)"))
            return
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        await raw.driver_connection.create_function("begun", 0, lambda: self._begun.set() or 1)
        await connection.execute(text(ENDLESS))

    async def runs(self) -> bool:
        if self._place.url is None:
            return self._begun.is_set()
        active = (
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()"
        )
        return bool(await self._databases.execute(self._place, f"{active} AND state = 'active'"))


@pytest.fixture
def endless(databases: Databases, place: Place) -> Endless:
    return Endless(databases, place)


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_a_block_cancelled_in_a_statement_leaves_nothing_and_a_clean_connection(
    database: Database, endless: Endless
) -> None:
    async def work() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(global_epochs).values(name="half", value=1))
            await endless.run(connection)

    task = asyncio.create_task(work())
    await eventually(endless.runs)
    async with bounded():
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await count(database) == 0
    await asyncio.gather(*(write(database, f"row {n}") for n in range(20)))
    assert await count(database) == 20

    async def has_ended() -> bool:
        return database.kind == "sqlite" or not await endless.runs()

    await eventually(has_ended)


async def test_a_statement_that_takes_too_long_is_ended_and_the_database_unavailable(
    place: Place, endless: Endless
) -> None:
    async with place.database(timeout=TIMEOUT) as database:

        async def work() -> None:
            async with database.begin() as connection:
                await endless.run(connection)

        async with bounded():
            with pytest.raises(DatabaseUnavailable):
                await work()
        await write(database, "next")
        assert await count(database) == 1


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_a_block_cancelled_between_statements_is_rolled_back(database: Database) -> None:
    waiting = asyncio.Event()

    async def work() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(global_epochs).values(name="half", value=1))
            waiting.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await write(database, "half")
    assert await count(database) == 1


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_a_block_that_ends_after_the_database_was_closed_leaves_no_connection(place: Place) -> None:
    database = place.database()
    await database.open()
    async with database.read() as connection:
        await connection.execute(text("SELECT 1"))
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await database.close()
    if place.kind == "sqlite":
        assert driver._connection is None
    else:
        assert driver.is_closed()


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_cancelling_at_any_moment_harms_nobody_else(database: Database) -> None:
    finished: list[str] = []

    async def work(name: str) -> None:
        await write(database, name)
        finished.append(name)

    tasks = [asyncio.create_task(work(f"row {n}")) for n in range(60)]
    for turn, task in enumerate(tasks):
        if turn % 2:
            await asyncio.sleep(0)
            task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(fault) for fault in found} <= {type(None), asyncio.CancelledError}
    assert set(finished) >= {f"row {n}" for n in range(0, 60, 2)}
    assert await count(database) >= len(finished)
    await write(database, "last")
    assert database._engine is not None
    assert database._engine.pool.checkedout() == 0


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_cancelling_twice_still_gives_the_connection_back(database: Database, endless: Endless) -> None:
    async def work() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(global_epochs).values(name="half", value=1))
            await endless.run(connection)

    task = asyncio.create_task(work())
    await eventually(endless.runs)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task

    def is_back() -> bool:
        assert database._engine is not None
        return database._engine.pool.checkedout() == 0

    await eventually(is_back)
    await write(database, "half")
    assert await count(database) == 1


async def test_a_server_that_stops_in_the_middle_of_a_block_ends_it(tmp_path: Path) -> None:
    with Postgres() as own:
        async with Database(SecretStr(own.url()), data_dir=tmp_path) as database:

            async def work() -> None:
                async with database.begin() as connection:
                    await connection.execute(text("CREATE TABLE seen (id int)"))
                    own.stop()
                    await connection.execute(text("SELECT 1"))

            with pytest.raises(DatabaseUnavailable):
                await work()
            own.start()
            async with database.read() as connection:
                assert (await connection.execute(text("SELECT to_regclass('seen')"))).scalar_one() is None


async def test_a_hundred_tasks_of_two_processes_write_and_none_finds_the_file_locked(
    databases: Databases, tmp_path: Path
) -> None:
    async with (
        databases.place("sqlite", tmp_path) as place,
        place.database() as one,
        place.database() as other,
    ):
        await write(one, "count")

        async def add(database: Database) -> None:
            async with database.begin() as connection:
                found = (await connection.execute(select(global_epochs.c.value))).scalar_one()
                await connection.execute(update(global_epochs).values(value=found + 1))

        await asyncio.gather(*(add(one if n % 2 else other) for n in range(100)))
        async with one.read() as connection:
            assert (await connection.execute(select(global_epochs.c.value))).scalar_one() == 101


async def test_writers_get_their_turn_in_the_order_in_which_they_came(
    databases: Databases, tmp_path: Path
) -> None:
    order: list[int] = []
    async with databases.place("sqlite", tmp_path) as place, place.database() as database:

        async def work(number: int) -> None:
            async with database.begin():
                order.append(number)

        await asyncio.gather(*(work(number) for number in range(30)))
    assert order == list(range(30))


async def test_a_reader_waits_for_no_writer(databases: Databases, tmp_path: Path) -> None:
    async with databases.place("sqlite", tmp_path) as place, place.database() as database:
        await write(database, "seen")
        async with database.begin() as connection:
            await connection.execute(insert(global_epochs).values(name="unseen", value=1))
            assert await count(database) == 1
        assert await count(database) == 2


async def test_a_turn_that_does_not_come_is_unavailable_in_time(databases: Databases, tmp_path: Path) -> None:
    async with (
        databases.place("sqlite", tmp_path) as place,
        place.database(timeout=TIMEOUT) as one,
        place.database(timeout=TIMEOUT) as other,
    ):
        for database in (one, other):  # a task of the same process, and another process
            async with one.begin(), bounded():
                with pytest.raises(DatabaseUnavailable):
                    await asyncio.create_task(write(database, "late"))
        await write(other, "in time")
        assert await count(one) == 1


async def test_a_block_inside_a_block_of_the_same_task_is_a_fault_and_not_a_deadlock(
    databases: Databases, tmp_path: Path
) -> None:
    async with databases.place("sqlite", tmp_path) as place, place.database() as database, database.begin():
        with pytest.raises(RuntimeError, match="inside another"):
            await write(database, "inner")


async def test_a_connection_that_the_server_has_closed_is_not_given_out_again(
    databases: Databases, tmp_path: Path
) -> None:
    async with databases.place("postgresql", tmp_path) as place, place.database() as database:
        async with database.read() as connection:
            backend = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await databases.execute(place, "SELECT pg_terminate_backend($1)", backend)

        async def is_gone() -> bool:
            found = await databases.execute(place, "SELECT 1 FROM pg_stat_activity WHERE pid = $1", backend)
            return not found

        await eventually(is_gone)
        await database.ping()


async def test_what_only_reads_may_not_write_on_postgresql(databases: Databases, tmp_path: Path) -> None:
    async with databases.place("postgresql", tmp_path) as place, place.database() as database:
        async with database.begin() as connection:
            await connection.execute(insert(global_epochs).values(name="one", value=1))
        with pytest.raises(DatabaseUnavailable):
            async with database.read() as connection:
                await connection.execute(update(global_epochs).values(value=2))
        await write(database, "two")


def test_a_place_does_not_show_its_password(tmp_path: Path) -> None:
    assert "opensesame" not in repr(Place("postgresql", tmp_path, "postgresql://postgres:opensesame@host/db"))
