"""The outbox when processes are killed or frozen and the database stops: every committed job runs, no other does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from counterseal.core.errors import DatabaseUnavailable
from counterseal.database.engine import Database
from counterseal.database.outbox import Outbox, OutboxJob, add_job
from counterseal.database.tables import outbox_jobs
from support.databases import Place
from support.forking import start_script
from support.postgres import Postgres
from support.processes import Running, freeze_process, kill_process, thaw_process
from support.waiting import eventually as waited

PROGRAM = Path(__file__).with_name("outbox_user.py")
QUICK = timedelta(milliseconds=20)
NEVER = timedelta(hours=1)


async def eventually(condition: Callable[[], Any], within: float = 20) -> Any:
    """As the kit's, with the patience that a busy machine needs."""
    return await waited(condition, within)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def users(place: Place, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts `outbox_user.py` for a task; what it prints goes to `<task>.log`."""
    started: list[Running] = []

    def start(task: str) -> Running:
        arguments = [task, str(place.data_dir), *([place.url] if place.url else [])]
        started.append(start_script(PROGRAM, arguments, tmp_path / f"{task}.log", tmp_path))
        return started[-1]

    yield start
    for process in started:
        kill_process(process)


@pytest.fixture
async def own_postgres(tmp_path: Path) -> AsyncIterator[Postgres]:
    """A server of the test's own, migrated, which it may stop."""
    with Postgres() as postgres:
        async with database_on(postgres, tmp_path) as database:
            await database.upgrade()
        yield postgres


def database_on(postgres: Postgres, folder: Path) -> Database:
    return Database(SecretStr(postgres.url()), data_dir=folder, timeout=timedelta(seconds=5))


async def printed(folder: Path, task: str, word: str) -> None:
    await eventually(lambda: word in (folder / f"{task}.log").read_text())


async def add(database: Database, n: int, **options: Any) -> None:
    async with database.begin() as connection:
        await add_job(connection, "note", {"n": n}, now_ms=now_ms(), **options)


async def states(database: Database) -> list[str]:
    async with database.read() as connection:
        answer = await connection.execute(select(outbox_jobs.c.state).order_by(outbox_jobs.c.seq))
        return list(answer.scalars())


def relay(database: Database, runs: list[OutboxJob], **options: Any) -> Outbox:
    async def handle(job: OutboxJob) -> None:
        runs.append(job)

    given = {"period": QUICK, "handlers": {"note": handle}} | options
    return Outbox(database, now_ms=now_ms, **given)


def all_done(database: Database, count: int) -> Callable[[], Any]:
    async def check() -> bool:
        try:
            return await states(database) == ["done"] * count
        except DatabaseUnavailable:
            return False  # a connection of before the database stopped

    return check


async def test_a_job_of_a_relay_that_was_killed_runs_in_another_at_once(
    place: Place, database: Database, tmp_path: Path, users: Callable[..., Running]
) -> None:
    runs: list[OutboxJob] = []
    await add(database, 1, aggregate="a")
    await add(database, 2, aggregate="a")
    dying = users("relay")
    await printed(tmp_path, "relay", "begun")
    kill_process(dying)
    async with relay(database, runs):
        await eventually(all_done(database, 2))
    assert [job.payload for job in runs] == [{"n": 1}, {"n": 2}]


async def test_a_job_that_a_killed_process_committed_runs_once(
    place: Place, database: Database, tmp_path: Path, users: Callable[..., Running]
) -> None:
    runs: list[OutboxJob] = []
    dying = users("commit")
    await printed(tmp_path, "commit", "committed")
    kill_process(dying)
    async with relay(database, runs):
        await eventually(all_done(database, 1))
    async with relay(database, runs):
        await add(database, 2)
        await eventually(all_done(database, 2))
    assert [job.payload for job in runs] == [{"n": 1}, {"n": 2}]


async def test_a_job_that_a_killed_process_had_not_committed_never_runs(
    place: Place, database: Database, tmp_path: Path, users: Callable[..., Running]
) -> None:
    runs: list[OutboxJob] = []
    dying = users("write")
    await printed(tmp_path, "write", "written")
    kill_process(dying)
    async with relay(database, runs):
        await add(
            database, 2, aggregate="a"
        )  # waits until the database has undone what the dead process wrote
        await eventually(all_done(database, 1))
    assert [job.payload for job in runs] == [{"n": 2}]


async def test_a_frozen_relay_keeps_its_job_and_the_order_of_its_aggregate(
    place: Place, database: Database, tmp_path: Path, users: Callable[..., Running]
) -> None:
    runs: list[OutboxJob] = []
    looks = 0

    def counted() -> int:
        nonlocal looks
        looks += 1
        return now_ms()

    await add(database, 1, aggregate="a")
    await add(database, 2, aggregate="a")
    other = users("relay")
    await printed(tmp_path, "relay", "begun")
    freeze_process(other)

    async def handle(job: OutboxJob) -> None:
        runs.append(job)

    async with Outbox(database, now_ms=counted, period=QUICK, handlers={"note": handle}):
        await eventually(lambda: looks > 20)
        assert runs == []
        thaw_process(other)
        kill_process(other)
        await eventually(all_done(database, 2))
    assert [job.payload for job in runs] == [{"n": 1}, {"n": 2}]


async def test_a_stopped_database_is_told_once_and_the_relay_goes_on_by_itself(
    own_postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "counterseal")
    runs: list[OutboxJob] = []
    looks = 0

    def counted() -> int:
        nonlocal looks
        looks += 1
        return now_ms()

    async def handle(job: OutboxJob) -> None:
        runs.append(job)

    def told(words: str) -> int:
        return sum(words in record.getMessage() for record in caplog.records)

    async with database_on(own_postgres, tmp_path) as database:
        await add(database, 1)
        outbox = Outbox(database, now_ms=counted, period=QUICK, handlers={"note": handle})
        async with outbox:
            await eventually(all_done(database, 1))
            own_postgres.stop()
            await eventually(lambda: told("can't be relayed"))
            seen = looks
            await eventually(lambda: looks > seen + 6, within=30)
            with pytest.raises(DatabaseUnavailable):
                await outbox.backlog()
            assert told("can't be relayed") == 1
            own_postgres.start()
            await add(database, 2)
            await eventually(all_done(database, 2))
            await eventually(lambda: told("are relayed again") == 1)
    assert [job.payload for job in runs] == [{"n": 1}, {"n": 2}]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_database_that_stops_while_a_job_runs_gets_it_done_later(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()
    runs: list[OutboxJob] = []

    async def handle(job: OutboxJob) -> None:
        runs.append(job)
        begun.set()
        await stopped.wait()

    async with (
        database_on(own_postgres, tmp_path) as database,
        Outbox(database, now_ms=now_ms, period=QUICK, handlers={"note": handle}),
    ):
        await add(database, 1)
        await begun.wait()
        own_postgres.stop()
        stopped.set()
        own_postgres.start()
        await eventually(all_done(database, 1))
    assert [job.attempt for job in runs] == [1, 1]


async def test_closing_ends_soon_while_the_database_is_down(own_postgres: Postgres, tmp_path: Path) -> None:
    async with database_on(own_postgres, tmp_path) as database:
        async with relay(database, []):
            await add(database, 1)
            await eventually(all_done(database, 1))
            own_postgres.stop()
            began = time.monotonic()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
async def test_a_locked_sqlite_file_delays_what_is_written_and_loses_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[OutboxJob] = []
    async with place.database(timeout=timedelta(milliseconds=100)) as database, place.database() as other:
        await add(database, 1)
        async with other.begin() as connection:
            await connection.execute(update(outbox_jobs).values(payload_version=2))
            async with relay(database, runs, period=timedelta(milliseconds=20)):
                await eventually(lambda: "can't be relayed" in caplog.text)
                assert runs
                await connection.commit()
                await eventually(all_done(database, 1))
