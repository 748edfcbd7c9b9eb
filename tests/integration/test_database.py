"""The database on SQLite and on a real PostgreSQL: what opens, what is refused and how, and what is never shown."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from counterseal.core.errors import ConfigurationError, Conflict, DatabaseError, DatabaseUnavailable
from counterseal.database import migration
from counterseal.database.address import parse_postgres_url
from counterseal.database.engine import Database
from support.ports import free_port
from support.postgres import PASSWORD, PgBouncer, Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as postgres:
        yield postgres


def database(url: str | None, folder: Path) -> Database:
    return Database(SecretStr(url) if url else None, data_dir=folder)


async def scalar(database: Database, statement: str) -> object:
    async with database.begin() as connection:
        return (await connection.execute(text(statement))).scalar_one()


async def test_without_a_url_it_is_a_sqlite_file_in_the_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    made = database(None, folder)
    assert not folder.exists()
    async with made:
        await made.ping()
        assert (folder / "counterseal.db").is_file()
        assert made.kind == "sqlite"
        assert made.description == f"SQLite, {folder / 'counterseal.db'}"
        assert await scalar(made, "PRAGMA journal_mode") == "wal"
        assert await scalar(made, "PRAGMA foreign_keys") == 1
        assert await scalar(made, "PRAGMA busy_timeout") == 5000
        assert await scalar(made, "PRAGMA synchronous") == 2
    assert folder.stat().st_mode & 0o077 == 0


async def test_nobody_else_may_read_what_sqlite_keeps(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0o022)
    try:
        async with database(None, tmp_path) as made, made.begin() as connection:
            await connection.execute(text("CREATE TABLE seen (id INTEGER)"))
            rights = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert rights == {f"counterseal.db{end}": 0o600 for end in ("", "-wal", "-shm")}


async def test_what_sqlite_keeps_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    async with database(None, tmp_path) as first, first.begin() as connection:
        await connection.execute(text("CREATE TABLE seen (id INTEGER)"))
        await connection.execute(text("INSERT INTO seen VALUES (7)"))
    async with database(None, tmp_path) as second:
        assert await scalar(second, "SELECT id FROM seen") == 7


async def test_a_block_that_raises_is_rolled_back(tmp_path: Path) -> None:
    async with database(None, tmp_path) as made:
        async with made.begin() as connection:
            await connection.execute(text("CREATE TABLE seen (id INTEGER)"))

        async def fail() -> None:
            async with made.begin() as connection:
                await connection.execute(text("INSERT INTO seen VALUES (7)"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await scalar(made, "SELECT count(*) FROM seen") == 0


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
async def test_every_spelling_of_a_postgres_url_opens_it(
    postgres: Postgres, tmp_path: Path, scheme: str
) -> None:
    async with database(postgres.url(scheme=scheme), tmp_path) as made:
        assert str(await scalar(made, "SHOW server_version")).startswith("18")
        assert made.kind == "postgresql"
        assert made.description == f"PostgreSQL, 127.0.0.1:{postgres.port}/postgres"
    assert list(tmp_path.iterdir()) == []


async def test_no_password_is_shown(postgres: Postgres, tmp_path: Path) -> None:
    async with database(postgres.url(), tmp_path) as made:
        shown = f"{made!r} {made.description} {made._postgres!r} {made._engine!r}"
    assert PASSWORD not in shown
    for url in (postgres.url(password="hunter22"), postgres.url(database="nowhere")):
        with pytest.raises(ConfigurationError) as fault:
            await database(url, tmp_path).open()
        assert "hunter22" not in str(fault.value)
        assert PASSWORD not in str(fault.value)


@pytest.fixture(scope="module")
def pooler(postgres: Postgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres, tls=True) as pooler:
        yield pooler


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
async def test_every_sslmode_but_disable_reaches_a_server_that_takes_nothing_but_tls(
    pooler: PgBouncer, tmp_path: Path, mode: str
) -> None:
    root = f"&sslrootcert={pooler.ca_file}" if mode.startswith("verify") else ""
    async with database(f"{pooler.url}?pgbouncer=true&sslmode={mode}{root}", tmp_path) as made:
        await made.ping()
    with pytest.raises((DatabaseUnavailable, ConfigurationError)):
        await database(f"{pooler.url}?pgbouncer=true&sslmode=disable", tmp_path).open()


async def test_verify_full_refuses_another_host_and_verify_ca_does_not(
    pooler: PgBouncer, tmp_path: Path
) -> None:
    url = pooler.url.replace("127.0.0.1", "127.0.0.2") + f"?pgbouncer=true&sslrootcert={pooler.ca_file}"
    with pytest.raises(DatabaseUnavailable):
        await database(f"{url}&sslmode=verify-full", tmp_path).open()


async def test_a_certificate_that_nobody_vouches_for_is_refused(pooler: PgBouncer, tmp_path: Path) -> None:
    for mode in ("verify-ca", "verify-full"):
        with pytest.raises(DatabaseUnavailable):
            await database(f"{pooler.url}?pgbouncer=true&sslmode={mode}", tmp_path).open()


async def test_a_server_without_tls_is_refused_where_tls_was_asked_for(
    postgres: Postgres, tmp_path: Path
) -> None:
    async with database(f"{postgres.url()}?sslmode=prefer", tmp_path) as made:
        await made.ping()
    with pytest.raises(DatabaseUnavailable):
        await database(f"{postgres.url()}?sslmode=require", tmp_path).open()


async def test_a_session_carries_the_name_of_the_application(postgres: Postgres, tmp_path: Path) -> None:
    async with database(f"{postgres.url()}?application_name=counterseal&connect_timeout=9", tmp_path) as made:
        assert await scalar(made, "SHOW application_name") == "counterseal"


async def test_transactions_run_through_a_pooler_in_transaction_mode(
    postgres: Postgres, tmp_path: Path
) -> None:
    with PgBouncer(postgres) as pooler:
        async with database(f"{pooler.url}?pgbouncer=true", tmp_path) as made:
            found = await asyncio.gather(*(scalar(made, f"SELECT {n} + 0 * {n % 3}") for n in range(20)))
            assert found == list(range(20))


async def test_nothing_is_left_on_the_connections_of_a_pooler(postgres: Postgres, tmp_path: Path) -> None:
    with PgBouncer(postgres) as pooler:
        async with database(f"{pooler.url}?pgbouncer=true", tmp_path) as made:
            await made.upgrade()
            await asyncio.gather(*(scalar(made, f"SELECT {n}") for n in range(20)))
            for left in (
                "SELECT count(*) FROM pg_prepared_statements",
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
                # The pooler itself keeps the encoding of each client.
                "SELECT count(*) FROM pg_settings WHERE source = 'session' AND name <> 'client_encoding'",
            ):
                assert await scalar(made, left) == 0, left
            await made.run_patiently(migration.downgrade)


@pytest.mark.parametrize(
    ("rest", "pooled"),
    [
        ("host:6543/d", True),
        ("host:5432/d", False),
        ("host:5432/d?pgbouncer=true", True),
        ("host:6543/d?sslmode=require", True),
    ],
)
def test_the_port_of_supabase_or_a_parameter_means_a_pooler(rest: str, pooled: bool) -> None:
    address = parse_postgres_url(f"postgresql://u:p@{rest}")
    assert address.pooled is pooled
    assert address.connect_args.get("statement_cache_size", 100) == (0 if pooled else 100)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("?sslmode=always", "sslmode to be one of"),
        ("?sslrootcert=/x", "sslmode=verify-ca or verify-full"),
        ("?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "sslrootcert to name a file"),
        ("?connect_timeout=soon", "connect_timeout in whole seconds"),
        ("?channel_binding=require&options=-c", "came: channel_binding, options"),
    ],
)
def test_a_parameter_that_is_not_understood_is_refused(tmp_path: Path, rest: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected) as fault:
        database(f"postgresql://u:hunter22@127.0.0.1/d{rest}", tmp_path)
    assert "DATABASE_URL" in str(fault.value)
    assert "hunter22" not in str(fault.value)


def test_a_url_that_is_none_is_refused_without_showing_it(tmp_path: Path) -> None:
    for url in ("postgresql://u:hunter22@host:port/d", "hunter22"):
        with pytest.raises(ConfigurationError, match="DATABASE_URL") as fault:
            database(url, tmp_path)
        assert "hunter22" not in str(fault.value)


async def test_a_refused_login_and_an_unknown_database_name_the_setting(
    postgres: Postgres, tmp_path: Path
) -> None:
    for url in (postgres.url(password="wrong"), postgres.url(database="nowhere")):
        with pytest.raises(ConfigurationError, match="DATABASE_URL: expected a user, password and database"):
            await database(url, tmp_path).open()


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    for host in (f"127.0.0.1:{free_port()}", "name.invalid"):
        with pytest.raises(DatabaseUnavailable) as fault:
            await database(f"postgresql://u:p@{host}/d", tmp_path).open()
        assert "127.0.0.1" not in str(fault.value)


async def test_a_server_that_never_answers_is_unavailable_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d?connect_timeout=1"
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable):
                await database(url, tmp_path).open()


async def test_a_restarted_server_serves_again_without_a_restart_of_ours(tmp_path: Path) -> None:
    with Postgres() as own:
        async with database(own.url(), tmp_path) as made:
            own.stop()
            with pytest.raises(DatabaseUnavailable):
                await made.ping()
            own.start()
            await made.ping()


async def test_a_refused_statement_is_an_error_that_repeats_nothing(
    postgres: Postgres, tmp_path: Path
) -> None:
    async def insert_twice(made: Database) -> None:
        async with made.begin() as connection:
            await connection.execute(text("CREATE TEMPORARY TABLE seen (id INTEGER PRIMARY KEY)"))
            await connection.execute(text("INSERT INTO seen VALUES (4711)"))
            await connection.execute(text("INSERT INTO seen VALUES (4711)"))

    for url in (None, postgres.url()):
        async with database(url, tmp_path) as made:
            with pytest.raises(DatabaseError) as fault:
                await insert_twice(made)
            assert type(fault.value) is Conflict
            assert "4711" not in str(fault.value)
            await made.ping()


async def test_a_folder_that_can_not_be_used_names_the_setting(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "counterseal.db").mkdir()
    for folder in (blocked, blocked / "below", tmp_path / "data"):
        with pytest.raises(ConfigurationError, match="COUNTERSEAL_DATA_DIR"):
            await database(None, folder).open()


async def test_a_file_that_is_no_database_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "counterseal.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigurationError, match="COUNTERSEAL_DATA_DIR"):
        await database(None, tmp_path).open()


async def test_it_is_unavailable_before_it_is_opened_and_after_it_is_closed(tmp_path: Path) -> None:
    made = database(None, tmp_path)
    with pytest.raises(DatabaseUnavailable):
        await made.ping()
    await made.open()
    await made.open()
    await made.ping()
    await made.close()
    await made.close()
    with pytest.raises(DatabaseUnavailable):
        await made.ping()
