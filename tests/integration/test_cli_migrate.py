"""`counterseal migrate`, and what `serve` does with a database that is not at the revision of this release."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from counterseal.database.migration import HEAD
from support.databases import BOTH, EVERY, Databases
from support.postgres import PASSWORD
from support.program import Program, run_program


@pytest.mark.parametrize("kind", EVERY)
async def test_it_prints_from_which_revision_to_which_and_may_be_run_again(
    databases: Databases, tmp_path: Path, kind: str
) -> None:
    async with databases.place(kind, tmp_path / "data", migrated=False) as place:
        first, second = (
            run_program("migrate", folder=tmp_path, settings=place.variables, within=60) for _ in range(2)
        )
    for ended, revision in ((first, f"none -> {HEAD}"), (second, f"{HEAD}: nothing to do")):
        assert (ended.returncode, ended.stderr) == (0, "")
        database, told = ended.stdout.splitlines()
        assert re.match(r"Database   (SQLite, |PostgreSQL, 127\.0\.0\.1:)", database)
        assert told == f"Revision   {revision}"
        assert PASSWORD not in ended.stdout


@pytest.mark.parametrize("kind", BOTH)
async def test_processes_that_migrate_at_once_wait_for_each_other(
    databases: Databases, tmp_path: Path, kind: str
) -> None:
    async with databases.place(kind, tmp_path / "data", migrated=False) as place:
        ended = await asyncio.gather(
            *(
                asyncio.to_thread(
                    run_program, "migrate", folder=tmp_path, settings=place.variables, within=60
                )
                for _ in range(3)
            )
        )
    assert [(one.returncode, one.stderr) for one in ended] == [(0, "")] * 3
    assert sum(f"none -> {HEAD}" in one.stdout for one in ended) == 1


async def test_a_newer_database_is_refused_in_one_sentence(databases: Databases, tmp_path: Path) -> None:
    async with databases.place("sqlite", tmp_path / "data") as place:
        with closing(sqlite3.connect(tmp_path / "data" / "counterseal.db")) as connection:
            connection.execute("UPDATE counterseal_alembic_version SET version_num = '9999'")
            connection.commit()
        for command in (["migrate"], ["serve", "--port", "0"]):
            ended = run_program(*command, folder=tmp_path, settings=place.variables, within=60)
            assert ended.returncode == 2
            assert ended.stderr.startswith(
                "counterseal: COUNTERSEAL_DATA_DIR: the database is at revision 9999"
            )
            assert ended.stderr.count("\n") == 1


async def test_serve_upgrades_sqlite_by_itself(tmp_path: Path) -> None:
    with Program(["serve", "--port", "0"], folder=tmp_path) as program:
        program.url(60)
        with closing(sqlite3.connect(tmp_path / ".counterseal" / "counterseal.db")) as connection:
            found = connection.execute("SELECT version_num FROM counterseal_alembic_version").fetchall()
        assert found == [(HEAD,)]
        assert "alembic" not in program.errors
        program.send(signal.SIGTERM)
        assert program.wait() == 0


async def test_serve_does_not_start_on_an_outdated_postgresql_and_names_the_command(
    databases: Databases, tmp_path: Path
) -> None:
    async with databases.place("pgbouncer", tmp_path / "data", migrated=False) as place:
        ended = run_program("serve", "--port", "0", folder=tmp_path, settings=place.variables)
        assert ended.returncode == 2
        assert ended.stderr == (
            f"counterseal: DATABASE_URL: the database is at revision none, this release needs {HEAD}:"
            " run counterseal migrate\n"
        )
        assert run_program("migrate", folder=tmp_path, settings=place.variables, fresh=True).returncode == 0
        with Program(["serve", "--port", "0"], folder=tmp_path, settings=place.variables) as program:
            program.url(60)
            program.send(signal.SIGTERM)
            assert program.wait() == 0


def test_a_database_that_is_not_there_is_one_sentence_that_names_the_setting(tmp_path: Path) -> None:
    url = f"postgresql://user:{PASSWORD}@127.0.0.1:1/database"
    ended = run_program("migrate", folder=tmp_path, settings={"DATABASE_URL": url})
    assert ended.returncode == 2
    assert ended.stderr == "counterseal: DATABASE_URL: the database can't be reached\n"
