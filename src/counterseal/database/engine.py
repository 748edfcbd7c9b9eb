"""Database: one engine, whichever database it is. The only place that knows the errors of its drivers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from pydantic import SecretStr
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from counterseal.core.errors import DatabaseUnavailable
from counterseal.database import migration
from counterseal.database.address import parse_postgres_url
from counterseal.database.direct import Direct, directly
from counterseal.database.faults import DRIVER_ERRORS, translated
from counterseal.database.postgresql import for_reads, postgres_engine
from counterseal.database.sqlite import SQLITE_FILE, Writers, for_writes, make_sqlite, sqlite_engine

TIMEOUT: Final = timedelta(seconds=5)

_PATIENCE_S: Final = (
    600.0  # a migration may have to change many rows, and waits for one that another process makes
)

_T = TypeVar("_T")


class Database:
    """PostgreSQL when there is a URL, else SQLite in the data folder. Use it as `async with`.

    The constructor does no input or output; it raises `ConfigurationError` for a URL that it does not understand.
    `timeout` is how long one statement may take, and how long a transaction may wait for a connection.
    """

    def __init__(self, url: SecretStr | None = None, *, data_dir: Path, timeout: timedelta = TIMEOUT) -> None:
        self._data_dir = data_dir
        self._postgres = None if url is None else parse_postgres_url(url.get_secret_value())
        self._timeout_s = timeout.total_seconds()
        self._engine: AsyncEngine | None = None
        self._reading: AsyncEngine | None = None
        self._writers: Writers | None = None

    @property
    def kind(self) -> str:
        """`postgresql` or `sqlite`."""
        return "sqlite" if self._postgres is None else "postgresql"

    @property
    def description(self) -> str:
        """Where the database is, for people: no user, no password."""
        if self._postgres is None:
            return f"SQLite, {(self._data_dir / SQLITE_FILE).resolve()}"
        return self._postgres.description

    async def open(self) -> None:
        """Connect, and make the SQLite file when there is none.

        Raises `ConfigurationError` naming the setting when the database refuses, else `DatabaseUnavailable`.
        """
        if self._engine is not None:
            return
        if self._postgres is None:
            # aiosqlite leaves a thread behind that nobody can wait for when it can't open a file.
            await asyncio.to_thread(make_sqlite, self._data_dir, timeout_s=self._timeout_s)
            self._reading = sqlite_engine(self._data_dir, timeout_s=self._timeout_s)
            self._engine = for_writes(self._reading)
            self._writers = Writers(self._timeout_s)
        else:
            self._engine = postgres_engine(self._postgres, timeout_s=self._timeout_s)
            self._reading = for_reads(self._engine)
        try:
            async with self._transaction(self._reading, opening=True) as connection:
                await connection.execute(text("SELECT 1"))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of every connection. Safe to call twice."""
        engine, self._engine, self._reading = self._engine, None, None
        if engine is not None:
            await engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncConnection]:
        """A connection in a transaction that may write: committed at the end of the block, rolled back when it raises.

        On SQLite one transaction writes at a time: the tasks of a process take turns, and the lock on the file is
        taken at the beginning of the block. So a block that waits for something else holds every writer up.

        Raises `DatabaseUnavailable` when the database can't be reached or does not answer in time, `Conflict` when a
        row with the same key is there already, else `DatabaseError`. Inside the block the errors are SQLAlchemy's.
        """
        async with AsyncExitStack() as turn:
            if self._writers is not None:
                await turn.enter_async_context(self._writers.turn())
            async with self._transaction(self._engine) as connection:
                yield connection

    @asynccontextmanager
    async def begin_direct(self, *, lock_timeout: timedelta | None = None) -> AsyncGenerator[Direct]:
        """As `begin`, for a `Statement` each: on the driver itself, at a fraction of the cost. Raises as `begin` does.

        It begins with the first answer that is asked for, and what needs none may be run as late as with the commit. On
        SQLite all that goes together is bounded by `timeout` as one statement is. `lock_timeout` is how long PostgreSQL
        waits for somebody's lock. Inside the block the errors are the driver's.
        """
        async with AsyncExitStack() as stack:
            if self._writers is not None:
                await stack.enter_async_context(self._writers.turn())
            stack.enter_context(self._translation())
            yield await stack.enter_async_context(
                directly(self._opened(self._engine), timeout_s=self._timeout_s, lock_timeout=lock_timeout)
            )

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        """A connection in a transaction that reads only. It waits for no writer. Raises as `begin` does."""
        async with self._transaction(self._reading) as connection:
            yield connection

    async def ping(self) -> None:
        """Ask the database for an answer: one transaction. Raises as `begin` does."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def run_patiently(self, work: Callable[[Connection], _T]) -> _T:
        """Run a function in a transaction that may write and may take long: ten minutes for a statement.

        It has a connection of its own. On SQLite that one does not look at foreign keys, so that tables can be made
        anew. Raises as `begin` does, and `ConfigurationError` when the database refuses.
        """
        if self._engine is None:
            raise DatabaseUnavailable("the database is not open")
        if self._postgres is None:
            engine = for_writes(sqlite_engine(self._data_dir, timeout_s=_PATIENCE_S, foreign_keys=False))
        else:
            engine = postgres_engine(self._postgres, timeout_s=_PATIENCE_S, pooled=False)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(engine.dispose)
            if self._writers is not None:
                await stack.enter_async_context(self._writers.turn())
            async with self._transaction(engine, opening=True) as connection:
                return await connection.run_sync(work)

    async def revision(self) -> str | None:
        """The revision that the tables are at; None when there are none. One transaction.

        Raises as `begin` does, and `ConfigurationError` when the database refuses.
        """
        async with self._transaction(self._reading, opening=True) as connection:
            return await connection.run_sync(migration.revision)

    async def upgrade(self) -> str | None:
        """Bring the tables to those of this release, `migration.HEAD`. Returns the revision that they were at.

        Processes that upgrade at once wait for each other. It happens whole or not at all: one transaction. Raises
        `ConfigurationError` when a newer release has upgraded them, else as `begin` does.
        """
        return await self.run_patiently(migration.upgrade)

    async def prepare(self) -> None:
        """See to it that the tables are those of this release: SQLite is upgraded.

        Raises `ConfigurationError` that says what to do for a PostgreSQL whose tables are older, and for either when a
        newer release has upgraded them. One transaction, or two when there is something to upgrade.
        """
        found = await self.revision()
        if self._postgres is None and found != migration.HEAD:
            await self.upgrade()
        elif self._postgres is not None:
            migration.check_current(found, self.kind)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine | None, *, opening: bool = False
    ) -> AsyncGenerator[AsyncConnection]:
        with self._translation(opening=opening):
            async with self._opened(engine).begin() as connection:
                yield connection

    @contextmanager
    def _translation(self, *, opening: bool = False) -> Generator[None]:
        try:
            yield
        except DRIVER_ERRORS as fault:
            raise translated(fault, sqlite=self._postgres is None, opening=opening) from fault

    @staticmethod
    def _opened(engine: AsyncEngine | None) -> AsyncEngine:
        if engine is None:
            raise DatabaseUnavailable("the database is not open")
        return engine
