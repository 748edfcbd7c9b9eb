"""Migrations on every database: from nothing, twice, at once, down and up, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateSchema

from counterseal.core.errors import ConfigurationError, DatabaseError
from counterseal.database import migration
from counterseal.database.engine import Database
from counterseal.database.migration import HEAD
from counterseal.database.tables import METADATA, SCHEMA
from support.databases import BOTH, EVERY, Databases, Place
from support.postgres import PASSWORD

SETTING = {"sqlite": "COUNTERSEAL_DATA_DIR", "postgresql": "DATABASE_URL"}

_POSTGRES_SCHEMA = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity, identity_generation
    FROM information_schema.columns WHERE table_schema = 'counterseal' AND table_name <> 'alembic_version'
    UNION ALL
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), contype::text, NULL, NULL, NULL
    FROM pg_constraint WHERE connamespace = 'counterseal'::regnamespace AND conname NOT LIKE 'alembic_version%'
    UNION ALL
    SELECT tablename, indexname, indexdef, NULL, NULL, NULL, NULL
    FROM pg_indexes WHERE schemaname = 'counterseal' AND tablename <> 'alembic_version'
"""
_SQLITE_SCHEMA = """
    SELECT name, sql FROM sqlite_master
    WHERE type IN ('table', 'index') AND sql IS NOT NULL AND name <> 'counterseal_alembic_version'
"""
_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type IN ('table', 'trigger')",
    "postgresql": "SELECT table_name FROM information_schema.tables WHERE table_schema NOT LIKE 'pg_%'"
    " AND table_schema <> 'information_schema'"
    " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'counterseal'::regnamespace",
}


@pytest.fixture(params=EVERY)
async def bare(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> AsyncIterator[Place]:
    """A place without a table."""
    async with databases.place(request.param, tmp_path / "bare", migrated=False) as place:
        yield place


async def schema_of(database: Database) -> set[tuple[object, ...]]:
    """Everything about columns, constraints and indexes, as the database itself tells it."""
    async with database.read() as connection:
        if database.kind == "postgresql":
            return {tuple(row) for row in await connection.execute(text(_POSTGRES_SCHEMA))}
        rows = await connection.execute(text(_SQLITE_SCHEMA))
        return {(name, line.strip(" \t,")) for name, sql in rows for line in str(sql).splitlines()}


async def names_of(database: Database) -> set[str]:
    async with database.read() as connection:
        return set((await connection.execute(text(_TABLES[database.kind]))).scalars())


async def pretend(database: Database, revision: str) -> None:
    """Write another revision into the database."""
    table = f"{SCHEMA}_alembic_version" if database.kind == "sqlite" else f"{SCHEMA}.alembic_version"
    async with database.begin() as connection:
        await connection.execute(text(f"UPDATE {table} SET version_num = '{revision}'"))


def test_the_newest_migration_is_the_one_that_this_release_needs() -> None:
    scripts = ScriptDirectory(str(Path(migration.__file__).parent / "migrations"))
    assert scripts.get_heads() == [HEAD]
    assert scripts.get_bases() == ["0001"]


async def test_an_empty_database_gets_every_table_and_a_second_upgrade_changes_nothing(bare: Place) -> None:
    async with bare.database() as database:
        assert await database.revision() is None
        assert await database.upgrade() is None
        assert await database.revision() == HEAD
        made = await schema_of(database)
        assert await database.upgrade() == HEAD
        assert await schema_of(database) == made
        expected = {table.name for table in METADATA.tables.values()} | {"alembic_version"}
        names = await names_of(database)
        assert len(expected) == 16
        if database.kind == "sqlite":
            assert all(name.startswith("counterseal_") for name in names)
            expected = {f"counterseal_{name}" for name in expected}
        assert names >= expected


@pytest.mark.parametrize("kind", BOTH)
async def test_the_tables_are_as_the_migrations_make_them(
    databases: Databases, tmp_path: Path, kind: str
) -> None:
    def create(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(CreateSchema(SCHEMA))
        METADATA.create_all(connection, checkfirst=False)

    async with (
        databases.place(kind, tmp_path / "bare", migrated=False) as bare,
        databases.place(kind, tmp_path / "full") as full,
        bare.database() as described,
        full.database() as migrated,
    ):
        async with described.begin() as connection:
            await connection.run_sync(create)
        assert await schema_of(described) == await schema_of(migrated)
        assert len(await schema_of(migrated)) > 200


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_alembic_finds_no_difference_between_tables_and_migrations(database: Database) -> None:
    def compare(connection: Connection) -> list[object]:
        options = {
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
            "compare_type": True,
            **migration.version_table("postgresql"),
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)

    async with database.read() as connection:
        assert await connection.run_sync(compare) == []


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_down_and_up_again_gives_the_same_tables_and_leaves_nothing_between(database: Database) -> None:
    before = await schema_of(database), await names_of(database)
    await database.run_patiently(migration.downgrade)
    version = "counterseal_alembic_version" if database.kind == "sqlite" else "alembic_version"
    assert await names_of(database) == {version}
    assert await database.revision() is None
    assert await database.upgrade() is None
    assert (await schema_of(database), await names_of(database)) == before


async def test_of_several_upgrades_at_once_one_does_it_and_the_others_find_it_done(bare: Place) -> None:
    async def upgrade() -> str | None:
        async with bare.database() as database:
            return await database.upgrade()

    found = await asyncio.gather(*(upgrade() for _ in range(6)))
    assert sorted(found, key=str) == [HEAD] * 5 + [None]


async def test_an_upgrade_that_fails_half_way_leaves_nothing(bare: Place) -> None:
    async with bare.database() as database:
        async with database.begin() as connection:
            if database.kind == "postgresql":
                await connection.execute(CreateSchema(SCHEMA))
                await connection.execute(text("CREATE TABLE counterseal.audit_anchors (id int)"))
            else:
                await connection.execute(text("CREATE TABLE counterseal_audit_anchors (id int)"))
        before = await names_of(database)
        assert len(before) == 1
        with pytest.raises(DatabaseError):
            await database.upgrade()
        assert await names_of(database) == before
        assert await database.revision() is None


async def test_an_upgrade_of_sqlite_is_taken_back_when_rows_would_refer_to_nothing(
    databases: Databases, tmp_path: Path
) -> None:
    async with databases.place("sqlite", tmp_path, migrated=False) as place, place.database() as database:
        async with database.begin() as connection:
            await connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
            await connection.execute(text("CREATE TABLE child (parent INTEGER REFERENCES parent)"))

        def orphan(connection: Connection) -> None:
            connection.execute(text("INSERT INTO child VALUES (7)"))

        await database.run_patiently(orphan)
        with pytest.raises(DatabaseError, match="1 rows that refer to nothing"):
            await database.upgrade()
        assert await names_of(database) == {"parent", "child"}


async def test_sqlite_is_upgraded_when_it_is_prepared_and_postgresql_says_what_to_run(bare: Place) -> None:
    async with bare.database() as database:
        if database.kind == "sqlite":
            await database.prepare()
        else:
            with pytest.raises(ConfigurationError) as fault:
                await database.prepare()
            assert str(fault.value) == (
                f"DATABASE_URL: the database is at revision none, this release needs {HEAD}: run counterseal migrate"
            )
            await database.upgrade()
        await database.prepare()
        assert await database.revision() == HEAD


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_tables_of_a_newer_release_are_refused_and_left_alone(database: Database) -> None:
    await pretend(database, "9999")
    for refuse in (database.prepare, database.upgrade):
        with pytest.raises(ConfigurationError) as fault:
            await refuse()
        assert str(fault.value) == (
            f"{SETTING[database.kind]}: the database is at revision 9999, this release knows none after {HEAD}:"
            " install the newer release of counterseal that upgraded it"
        )
    assert await database.revision() == "9999"


async def test_who_may_not_make_a_schema_is_told_so_and_may_use_one_that_is_his(
    databases: Databases, tmp_path: Path
) -> None:
    async with databases.place("postgresql", tmp_path, migrated=False) as place:
        await databases.execute(place, f"CREATE ROLE tenant LOGIN PASSWORD '{PASSWORD}'")
        try:
            assert place.url is not None
            theirs = Place("postgresql", tmp_path, place.url.replace("//postgres:", "//tenant:"))
            async with theirs.database() as database:
                with pytest.raises(ConfigurationError, match="DATABASE_URL: expected a user who may"):
                    await database.upgrade()
                await databases.execute(place, "CREATE SCHEMA counterseal AUTHORIZATION tenant")
                assert await database.upgrade() is None
                await database.prepare()
        finally:
            await databases.execute(place, "DROP OWNED BY tenant CASCADE")
            await databases.execute(place, "DROP ROLE tenant")


@pytest.mark.parametrize("kind", BOTH)
async def test_an_upgrade_leaves_no_connection_behind(
    databases: Databases, tmp_path: Path, kind: str
) -> None:
    async with databases.place(kind, tmp_path, migrated=False) as place:
        async with place.database() as database:
            await database.upgrade()
        if kind == "postgresql":
            found = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            assert await databases.execute(place, found) == []
        else:
            assert [path.name for path in tmp_path.iterdir()] == ["counterseal.db"]
