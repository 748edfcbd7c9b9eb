"""SQLite: the embedded database, one file in the data folder, and how SQLAlchemy speaks to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import aiosqlite
from sqlalchemy import Connection, Engine, ExceptionContext, PoolProxiedConnection, event
from sqlalchemy.dialects.sqlite.base import SQLiteIdentifierPreparer
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql.compiler import IdentifierPreparer

from counterseal.core.errors import DatabaseUnavailable
from counterseal.database.faults import sqlite_error
from counterseal.database.pool import Pool
from counterseal.database.tables import SCHEMA, TableName

SQLITE_FILE: Final = "counterseal.db"
PREFIX: Final = f"{SCHEMA}_"

_WRITING: Final = "counterseal_writing"
_TIMER: Final = "counterseal_timer"


class _Cursor(Protocol):
    def execute(self, statement: str) -> object: ...
    def close(self) -> object: ...


class _DriverConnection(Protocol):
    isolation_level: str | None

    def cursor(self) -> _Cursor: ...
    def close(self) -> object: ...


class Writers:
    """The one writer of a process: the others wait in line, the longest waiting first, without asking the file."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[Any] | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Wait for the turn of this task. Raises `DatabaseUnavailable` when it does not come in time."""
        task = asyncio.current_task()
        if task is not None and task is self._owner:
            raise RuntimeError("a write transaction was begun inside another one of the same task")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._lock.acquire()
        except TimeoutError as fault:
            raise DatabaseUnavailable("the database is busy with other writers") from fault
        self._owner = task
        try:
            yield
        finally:
            self._owner = None
            self._lock.release()


def _other_schema(table: Any) -> str | None:
    return None if table.schema == SCHEMA else table.schema


class _Prefixed(SQLiteIdentifierPreparer):
    """Writes `counterseal_users` where PostgreSQL is told `counterseal.users`."""

    schema_for_object: Any = staticmethod(_other_schema)

    def format_table(self, table: Any, use_schema: bool = True, name: str | None = None) -> str:
        if table.schema == SCHEMA and name is None:
            return self.quote(TableName(table.name, None))
        return super().format_table(table, use_schema, name)

    def quote(self, ident: str) -> str:
        return super().quote(PREFIX + ident if isinstance(ident, TableName) else ident)


def make_sqlite(data_dir: Path, *, timeout_s: float) -> None:
    """Make the folder and the file where they are missing, and see that they can be used."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = data_dir / SQLITE_FILE
        if not file.exists():
            # SQLite would let everybody read it, and gives the files beside it the same rights.
            with suppress(FileExistsError):
                os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        # Opening it would tell as well, but closing it then takes away every lock that this process has on the file.
        elif not os.access(file, os.R_OK | os.W_OK):
            raise PermissionError(file.name)
        with closing(sqlite3.connect(file)) as connection:
            for pragma in _pragmas(timeout_s):
                connection.execute(pragma)
    except (sqlite3.Error, OSError) as fault:
        raise sqlite_error(fault, folder=data_dir) from fault


def sqlite_engine(data_dir: Path, *, timeout_s: float, foreign_keys: bool = True) -> AsyncEngine:
    """An engine for reads; `for_writes` makes the other one."""
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(data_dir / SQLITE_FILE)),
        poolclass=Pool,
        pool_timeout=timeout_s,
        pool_use_lifo=True,
        hide_parameters=True,  # a traceback tells the statement, and no value
    )
    dialect: Any = engine.sync_engine.dialect
    dialect.preparer = _Prefixed
    preparer: IdentifierPreparer = _Prefixed(dialect)
    dialect.identifier_preparer = preparer
    pragmas = _pragmas(timeout_s, foreign_keys=foreign_keys)

    def prepare(connection: _DriverConnection, record: object) -> None:
        _prepare(connection, pragmas)

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    _bound_statements(engine.sync_engine, timeout_s)
    return engine


def for_writes(engine: AsyncEngine) -> AsyncEngine:
    """The same engine and connections, for transactions that take the lock for writing when they begin."""
    return engine.execution_options(**{_WRITING: True})


def _pragmas(timeout_s: float, *, foreign_keys: bool = True) -> tuple[str, ...]:
    return (
        f"PRAGMA busy_timeout = {int(timeout_s * 1000)}",
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",  # what was committed survives a power cut, in WAL too
        f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        "PRAGMA recursive_triggers = ON",  # INSERT OR REPLACE asks the triggers for DELETE too
    )


def _prepare(connection: _DriverConnection, pragmas: tuple[str, ...]) -> None:
    try:
        connection.isolation_level = None  # the driver would begin transactions by itself, and too late
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()
    except BaseException:
        connection.close()  # nobody else has it yet, and it has a thread
        raise


def _bound_statements(engine: Engine, timeout_s: float) -> None:
    """Have a statement interrupted when it takes too long, or when nobody waits for it any more."""

    def start(connection: Connection, cursor: object, *_: object) -> None:
        timer = asyncio.get_running_loop().call_later(timeout_s, _interrupt, connection.connection)
        connection.info[_TIMER] = timer

    def stop(connection: Connection, *_: object) -> None:
        if timer := connection.info.pop(_TIMER, None):
            timer.cancel()

    def give_up(context: ExceptionContext) -> None:
        connection = context.connection
        if connection is None or connection.invalidated:
            return
        stop(connection)
        if not isinstance(context.original_exception, Exception):
            _interrupt(connection.connection)  # else its thread would go on, and keep the lock
            # SQLAlchemy would close it, and a closed connection keeps its locks while a cursor is left. What its thread
            # is given runs in order, so it can be rolled back and used again.
            context.is_disconnect = False

    event.listen(engine, "before_cursor_execute", start)
    event.listen(engine, "after_cursor_execute", stop)
    event.listen(engine, "handle_error", give_up)


def _interrupt(connection: PoolProxiedConnection) -> None:
    driver: aiosqlite.Connection | None = connection.driver_connection
    if driver is not None:
        interrupt(driver)


def interrupt(driver: aiosqlite.Connection) -> None:
    """Have the statement that runs fail, whoever waits for it."""
    with suppress(StopIteration, ValueError):
        driver.interrupt().send(None)  # it awaits nothing, and a timer can't await


def _begin(connection: Connection) -> None:
    """Take the lock first: a transaction that reads and then writes could not get it when somebody wrote between."""
    writing = connection.get_execution_options().get(_WRITING)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
