"""Direct: a write transaction on the driver itself, for the few statements that are run most.

For a small statement SQLAlchemy takes several times as long as the database. So a statement of its tables is compiled
once, and from then on its text and its parameters go to the driver as they are. The connection is one of the pool.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias

import aiosqlite
import asyncpg
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from counterseal.database.faults import DRIVER_ERRORS
from counterseal.database.sqlite import interrupt

Given: TypeAlias = Mapping[str, Any]
"""Parameters by name."""

_Processor: TypeAlias = Callable[[Any], Any] | None


class _Step(NamedTuple):
    """What a driver is to run: once, or once for each of `parameters` when there are `many`.

    Without any it is a command that answers nothing.
    """

    text: str
    parameters: Sequence[Any] | None = None
    many: bool = False


class Statement:
    """A statement of SQLAlchemy Core that runs in a `Direct` as well as on a connection.

    Its text is the same whatever its parameters: lists are one parameter. `columns` are those that an insert without
    values is given. The rows of an answer are tuples, in the order of its columns.
    """

    def __init__(self, core: Any, *, columns: Sequence[str] | None = None) -> None:
        self._core = core
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    async def rows(self, connection: Transaction, given: Given) -> Sequence[Sequence[Any]]:
        """Run it, and what was left for later before it; what it answers. One round trip to the database, or more."""
        if isinstance(connection, Direct):
            return await connection.rows(self._for(connection.dialect), given)
        return (await connection.execute(self._core, given)).all()

    async def write(self, connection: Transaction, *given: Given) -> None:
        """Run it once for each. A `Direct` may leave that for later, and so the errors of it."""
        if isinstance(connection, Direct):
            connection.leave(self._for(connection.dialect), given)
        else:
            await connection.execute(self._core, given[0] if len(given) == 1 else list(given))

    def _for(self, dialect: Dialect) -> _Compiled:
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _compile(self._core, self._columns, dialect)
        return found


class Direct(ABC):
    """A write transaction, made by `Database.begin_direct`. What is left for later is run before the next answer."""

    def __init__(self, connection: AsyncConnection, driver: Any, *, begin: str) -> None:
        self.dialect: Dialect = connection.dialect
        self._connection = connection
        self._driver = driver
        self._left = [_Step(begin)]
        self._begun = False
        self._over = False
        self._unsure = False
        """Whether nobody knows what comes first on the connection."""
        self._undoing: asyncio.Task[None] | None = None

    async def rows(self, compiled: _Compiled, given: Given) -> Sequence[Sequence[Any]]:
        """What a statement answers."""
        return compiled.read(await self._run(_Step(compiled.text, compiled.bind(given))))

    def leave(self, compiled: _Compiled, given: Sequence[Given]) -> None:
        """Run a statement before the next answer, or before the end."""
        if len(given) == 1:
            self._left.append(_Step(compiled.text, compiled.bind(given[0])))
        else:
            self._left.append(_Step(compiled.text, [compiled.bind(one) for one in given], many=True))

    async def commit(self) -> None:
        """Run what is left, and commit. A transaction that was rolled back has nothing to commit."""
        if not self._over:
            await self._run(_Step("COMMIT"))
            self._over = True

    async def rollback(self) -> None:
        """Undo everything; nothing can be run from here on. That its task is cancelled does not cut it short."""
        if not self._over:
            self._over = True
            if self._begun:
                self._undoing = asyncio.create_task(self._undo())
        if self._undoing is not None:
            await asyncio.shield(self._undoing)

    async def _undo(self) -> None:
        with suppress(*DRIVER_ERRORS):
            if not self._unsure:
                await self._roll_back()
                return
        await self._connection.invalidate()

    async def _run(self, last: _Step) -> Sequence[Sequence[Any]]:
        if self._over:
            raise RuntimeError("a transaction was used after its end")
        steps, self._left = [*self._left, last], []
        self._begun = True
        return await self._send(steps)

    @abstractmethod
    async def _send(self, steps: Sequence[_Step]) -> Sequence[Sequence[Any]]:
        """Run these in order; the answer of the last."""

    @abstractmethod
    async def _roll_back(self) -> None:
        """Roll back what is there to roll back, perhaps nothing."""


Transaction: TypeAlias = AsyncConnection | Direct
"""What a `Statement` runs in."""


class _Sqlite(Direct):
    """All steps are one turn of the connection's thread: each costs as much as the statement of a small row."""

    def __init__(
        self, connection: AsyncConnection, driver: aiosqlite.Connection, *, timeout_s: float
    ) -> None:
        super().__init__(connection, driver, begin="BEGIN IMMEDIATE")
        self._timeout_s = timeout_s

    async def _send(self, steps: Sequence[_Step]) -> Sequence[Sequence[Any]]:
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True  # where it is between two steps there is nothing to interrupt
            interrupt(self._driver)

        def work(connection: sqlite3.Connection) -> list[Any]:
            rows: list[Any] = []
            for step in steps:
                if stopped:
                    raise sqlite3.OperationalError("interrupted")
                if step.parameters is not None and step.many:
                    connection.executemany(step.text, step.parameters)
                else:
                    rows = connection.execute(step.text, step.parameters or ()).fetchall()
            return rows

        timer = asyncio.get_running_loop().call_later(self._timeout_s, stop)
        try:
            # aiosqlite has no public name for a function of one's own; its own calls are made of these two.
            return await self._driver._execute(work, self._driver._conn)  # noqa: SLF001
        except asyncio.CancelledError:
            stop()  # else its thread would go on, and keep the lock
            raise
        finally:
            timer.cancel()

    async def _roll_back(self) -> None:
        await self._driver.rollback()


class _Postgresql(Direct):
    """Each step is a round trip. asyncpg keeps its statements prepared, save behind a pooler."""

    def __init__(
        self, connection: AsyncConnection, driver: asyncpg.Connection, *, lock_timeout: timedelta | None
    ) -> None:
        begin = "BEGIN"
        if lock_timeout is not None:
            begin += f"; SET LOCAL lock_timeout = {lock_timeout // timedelta(milliseconds=1)}"
        super().__init__(connection, driver, begin=begin)

    async def _send(self, steps: Sequence[_Step]) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = ()
        try:
            for step in steps:
                if step.parameters is None:
                    await self._driver.execute(step.text)
                elif step.many:
                    await self._driver.executemany(step.text, step.parameters)
                else:
                    rows = await self._driver.fetch(step.text, *step.parameters)
        except BaseException as fault:
            # Cancelled, or overdue: its answer may still come.
            self._unsure = not isinstance(fault, Exception) or isinstance(fault, OSError)
            raise
        return rows

    async def _roll_back(self) -> None:
        await self._driver.execute("ROLLBACK")


@asynccontextmanager
async def directly(
    engine: AsyncEngine, *, timeout_s: float, lock_timeout: timedelta | None
) -> AsyncGenerator[Direct]:
    """A transaction on a connection of this engine: committed at the end of the block, rolled back when it raises."""
    connection = await engine.connect()
    direct: Direct | None = None
    try:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if connection.dialect.name == "sqlite":
            direct = _Sqlite(connection, driver, timeout_s=timeout_s)
        else:
            direct = _Postgresql(connection, driver, lock_timeout=lock_timeout)
        yield direct
        await direct.commit()
    finally:
        # A task that is cancelled once more does not cut it short.
        await asyncio.shield(_give_back(connection, direct))


async def _give_back(connection: AsyncConnection, direct: Direct | None) -> None:
    try:
        if direct is not None:
            await direct.rollback()
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement in the words of one database."""

    text: str
    binds: Sequence[tuple[str, _Processor]]
    fixed: Given
    """The parameters that are part of the statement."""
    processors: Sequence[_Processor]
    """What makes of each column that is answered what its type says; empty when all of them are that already."""

    def bind(self, given: Given) -> Sequence[Any]:
        values = {**self.fixed, **given} if self.fixed else given
        return [
            values[name] if process is None or (value := values[name]) is None else process(value)
            for name, process in self.binds
        ]

    def read(self, rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        if not self.processors:
            return rows
        return [
            tuple(
                value if process is None else process(value)
                for value, process in zip(row, self.processors, strict=True)
            )
            for row in rows
        ]


def _compile(core: Any, columns: Sequence[str] | None, dialect: Dialect) -> _Compiled:
    compiled: SQLCompiler = core.compile(dialect=dialect, column_keys=columns)
    names = compiled.positiontup or ()
    binds = [compiled.binds[name] for name in names]
    fixed = {name: bind.effective_value for name, bind in zip(names, binds, strict=True) if not bind.required}
    processors = [_reader(column.type, dialect) for column in core.exported_columns]
    return _Compiled(
        compiled.string,
        [(name, _writer(bind.type, dialect)) for name, bind in zip(names, binds, strict=True)],
        fixed,
        processors if any(processors) else (),
    )


def _writer(kind: TypeEngine[Any], dialect: Dialect) -> _Processor:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> _Processor:
    return kind.dialect_impl(dialect).result_processor(dialect, None)
