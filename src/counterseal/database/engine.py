"""Database: one engine, whichever database it is. The only place that knows the errors of its drivers."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import asyncpg
from pydantic import SecretStr
from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from counterseal.core.errors import ConfigurationError, CountersealError, DatabaseError, DatabaseUnavailable
from counterseal.database.address import NAME, PostgresAddress, parse_postgres_url

SQLITE_FILE: Final = "counterseal.db"

_SQLITE_PRAGMAS: Final = (
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # what was committed survives a power cut, in WAL too
    "PRAGMA foreign_keys = ON",
)
_REFUSALS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,  # also a wrong password
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)


class _Cursor(Protocol):
    def execute(self, statement: str) -> object: ...
    def close(self) -> object: ...


class _DriverConnection(Protocol):
    def cursor(self) -> _Cursor: ...
    def close(self) -> object: ...


class Database:
    """PostgreSQL when there is a URL, else SQLite in the data folder. Use it as `async with`.

    The constructor does no input or output; it raises `ConfigurationError` for a URL that it does not understand.
    """

    def __init__(self, url: SecretStr | None = None, *, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._postgres = None if url is None else parse_postgres_url(url.get_secret_value())
        self._engine: AsyncEngine | None = None

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
            await asyncio.to_thread(_make_sqlite, self._data_dir)
            self._engine = _sqlite_engine(self._data_dir)
        else:
            self._engine = _postgres_engine(self._postgres)
        try:
            await self.ping()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of every connection. Safe to call twice."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncConnection]:
        """A connection in a transaction: committed at the end of the block, rolled back when it raises.

        Raises `DatabaseUnavailable` when the database can't be reached, else `DatabaseError`.
        """
        if self._engine is None:
            raise DatabaseUnavailable("the database is not open")
        try:
            async with self._engine.begin() as connection:
                yield connection
        except (
            SQLAlchemyError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            sqlite3.Error,
            OSError,
        ) as fault:
            raise self._translated(fault) from fault

    async def ping(self) -> None:
        """Ask the database for an answer: one transaction. Raises as `begin` does."""
        async with self.begin() as connection:
            await connection.execute(text("SELECT 1"))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _translated(self, fault: BaseException) -> CountersealError:
        cause = fault
        if isinstance(fault, DBAPIError) and fault.orig is not None:
            cause = fault.orig.__cause__ or fault.orig
        if self._postgres is None:
            return _sqlite_error(cause)
        if isinstance(cause, _REFUSALS):
            return ConfigurationError(
                f"{NAME}: expected a user, password and database that the server accepts"
            )
        lost = isinstance(fault, DBAPIError) and fault.connection_invalidated
        if lost or isinstance(cause, (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
            return DatabaseUnavailable("the database can't be reached")
        if isinstance(cause, (asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError)):
            return DatabaseUnavailable("the database takes no connections now")
        return DatabaseError(f"the database refused a statement ({type(cause).__name__})")


def _sqlite_error(cause: BaseException) -> CountersealError:
    message = str(cause)
    if isinstance(cause, OSError) or "unable to open" in message or "readonly" in message:
        return ConfigurationError("COUNTERSEAL_DATA_DIR: expected a folder that may be written to")
    if isinstance(cause, sqlite3.DatabaseError) and "not a database" in message:
        return ConfigurationError(
            f"COUNTERSEAL_DATA_DIR: expected {SQLITE_FILE} in it to be a SQLite database"
        )
    if isinstance(cause, sqlite3.OperationalError):
        return DatabaseUnavailable("the database is locked or can't be read")
    return DatabaseError(f"the database refused a statement ({type(cause).__name__})")


def _make_sqlite(data_dir: Path) -> None:
    """Make the folder and the file where they are missing, and see that they can be used."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = data_dir / SQLITE_FILE
        # SQLite would let everybody read it, and gives the files beside it the same rights.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        with closing(sqlite3.connect(file)) as connection:
            for pragma in _SQLITE_PRAGMAS:
                connection.execute(pragma)
    except (sqlite3.Error, OSError) as fault:
        raise _sqlite_error(fault) from fault


def _sqlite_engine(data_dir: Path) -> AsyncEngine:
    engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(data_dir / SQLITE_FILE)))
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: _DriverConnection, record: object) -> None:
    try:
        cursor = connection.cursor()
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(pragma)
        cursor.close()
    except BaseException:
        connection.close()  # nobody else has it yet, and it has a thread
        raise


def _postgres_engine(address: PostgresAddress) -> AsyncEngine:
    options: dict[str, Any] = {"poolclass": NullPool} if address.pooled else {"pool_pre_ping": True}
    return create_async_engine(address.url, connect_args=address.connect_args, **options)
