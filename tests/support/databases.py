"""Databases: places for the durable record, with the tables of this release, one for each test.

PostgreSQL is one server for all tests, from which each gets a copy of a migrated database; SQLite is a copy of a file.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import asyncpg
from pydantic import SecretStr

from counterseal.database.engine import Database
from support.postgres import PASSWORD, PgBouncer, Postgres

BOTH: Final = ("sqlite", "postgresql")
EVERY: Final = ("sqlite", "postgresql", "pgbouncer")
"""As `BOTH`, and PostgreSQL through a pooler in transaction mode: `parametrize("place", EVERY, indirect=True)`."""

_PATIENCE = timedelta(seconds=30)
_TEMPLATE = "migrated"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database is. `kind` is one of `EVERY`."""

    kind: str
    data_dir: Path
    url: str | None = field(default=None, repr=False)

    def database(self, *, timeout: timedelta = _PATIENCE) -> Database:
        """A database of its own on this place, not yet open: what another process would have."""
        return Database(
            None if self.url is None else SecretStr(self.url), data_dir=self.data_dir, timeout=timeout
        )

    @property
    def variables(self) -> dict[str, str]:
        """How settings name it."""
        chosen = {"COUNTERSEAL_DATA_DIR": str(self.data_dir)}
        return chosen if self.url is None else chosen | {"DATABASE_URL": self.url}


class Databases:
    """Makes places. What they need is started when it is first asked for: `with Databases(folder) as databases`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._stack = ExitStack()
        self._postgres: Postgres | None = None
        self._pooler: PgBouncer | None = None
        self._migrated: set[str] = set()

    @property
    def postgres(self) -> Postgres:
        """The server that all places share. It is not to be stopped or frozen."""
        if self._postgres is None:
            self._postgres = self._stack.enter_context(Postgres())
        return self._postgres

    @asynccontextmanager
    async def place(self, kind: str, data_dir: Path, *, migrated: bool = True) -> AsyncIterator[Place]:
        """A place with the tables of this release, or with none; taken away again afterwards."""
        if kind == "sqlite":
            if migrated:
                await self._copy_sqlite(data_dir)
            yield Place(kind, data_dir)
            return
        name = f"place_{next(self._numbers)}"
        await self._create(name, _TEMPLATE if migrated else "template0")
        try:
            yield Place(kind, data_dir, self._url(kind, name))
        finally:
            await self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    async def execute(self, place: Place, statement: str, *arguments: Any) -> list[Any]:
        """What a statement answers on a connection to PostgreSQL of the kit's own."""
        assert place.url is not None
        return await self._ask(place.url.rpartition("/")[2].partition("?")[0], statement, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _url(self, kind: str, name: str) -> str:
        if kind == "postgresql":
            return self.postgres.url(database=name)
        if self._pooler is None:
            self._pooler = self._stack.enter_context(PgBouncer(self.postgres))
        return f"{self._pooler.url.rpartition('/')[0]}/{name}?pgbouncer=true"

    async def _copy_sqlite(self, data_dir: Path) -> None:
        if "sqlite" not in self._migrated:
            async with Place("sqlite", self._folder).database() as database:
                await database.upgrade()
            self._migrated.add("sqlite")
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(self._folder / "counterseal.db", data_dir)

    async def _create(self, name: str, template: str) -> None:
        if template == _TEMPLATE and "postgresql" not in self._migrated:
            await self._create(template, "template0")
            url = self.postgres.url(database=template)
            async with Place("postgresql", self._folder, url).database() as database:
                await database.upgrade()
            self._migrated.add("postgresql")
        await self._administer(f"CREATE DATABASE {name} TEMPLATE {template}")

    async def _administer(self, statement: str) -> None:
        await self._ask("postgres", statement)

    async def _ask(self, database: str, statement: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(
            host="127.0.0.1",
            port=self.postgres.port,
            user="postgres",
            password=PASSWORD,
            database=database,
            timeout=30,
        )
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()
