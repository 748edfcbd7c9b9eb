"""Claims: how a relay takes hold of a job, so that no other relay runs it too and a relay that dies lets go of it.

On PostgreSQL the row of the job stays locked in a transaction that is open for as long as its handler runs. SQLite has
no row locks, and a transaction as long as that would keep every other writer out: there a process holds a lock on a
file beside the database while it has jobs under way. Both locks end with the process, however it ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, bindparam, exists, literal_column, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.codec import JsonValue
from counterseal.database.engine import Database
from counterseal.database.tables import outbox_jobs

_JOBS: Final = outbox_jobs.c


@dataclass(frozen=True, slots=True)
class OutboxJob:
    """A job as its handler gets it. The same job may come again; `attempt` counts from 1."""

    id: UUID
    kind: str
    payload: JsonValue = field(repr=False)
    payload_version: int
    aggregate: str
    attempt: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that nobody else runs until the claim ends."""

    job: OutboxJob
    write: Callable[[dict[str, Any]], Awaitable[None]] = field(repr=False)
    """Writes columns of its row. On PostgreSQL they are committed when the claim ends, on SQLite at once."""


class Claims(Protocol):
    """The jobs of a database that are due, for handlers of some kinds."""

    async def any_due(self, kinds: Sequence[str], now: datetime) -> bool:
        """Whether there is a job to claim, those that this relay holds not counted."""
        ...

    def claim(self, kinds: Sequence[str], now: datetime) -> AbstractAsyncContextManager[Claim | None]:
        """Hold the job that is due and came first, for the block; None when there is none to be had."""
        ...


def claims_on(database: Database) -> Claims:
    """How jobs are claimed on this database."""
    return _PostgresqlClaims(database) if database.kind == "postgresql" else _SqliteClaims(database)


def in_state(state: str) -> ColumnElement[bool]:
    """Jobs in a state. Written out in the statement: for a parameter no database uses a partial index."""
    return _JOBS.state == literal_column(f"'{state}'")


def _due() -> Select[Any]:
    """The job that is due, came first, and is the first of its aggregate that is not done."""
    earlier = outbox_jobs.alias("earlier")
    waits = exists().where(
        earlier.c.aggregate == _JOBS.aggregate,
        earlier.c.seq < _JOBS.seq,
        earlier.c.state == literal_column("'pending'"),
    )
    return (
        select(outbox_jobs)
        .where(
            in_state("pending"),
            _JOBS.run_at <= bindparam("now", type_=_JOBS.run_at.type),
            _JOBS.kind.in_(bindparam("kinds", expanding=True)),
            _JOBS.id.not_in(bindparam("held", expanding=True, type_=_JOBS.id.type)),
            or_(_JOBS.aggregate == literal_column("''"), ~waits),
        )
        .order_by(_JOBS.seq)
        .limit(1)
    )


_DUE: Final = _due()
_CLAIM: Final = _DUE.with_for_update(skip_locked=True, of=outbox_jobs)


class _PostgresqlClaims:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: set[UUID] = set()

    async def any_due(self, kinds: Sequence[str], now: datetime) -> bool:
        return await _first_due(self._database, kinds, now, self._held) is not None

    @asynccontextmanager
    async def claim(self, kinds: Sequence[str], now: datetime) -> AsyncGenerator[Claim | None]:
        async with self._database.begin() as connection:
            answer = await connection.execute(_CLAIM, _given(kinds, now, self._held))
            row = answer.one_or_none()
            if row is None:
                yield None
                return
            self._held.add(row.id)
            try:
                yield Claim(_job(row), lambda columns: _settle(connection, row.id, columns))
            finally:
                self._held.discard(row.id)


class _SqliteClaims:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: set[UUID] = set()
        self._claiming = asyncio.Lock()
        self._path: str | None = None
        self._file: int | None = None

    async def any_due(self, kinds: Sequence[str], now: datetime) -> bool:
        return await _first_due(self._database, kinds, now, self._held) is not None

    @asynccontextmanager
    async def claim(self, kinds: Sequence[str], now: datetime) -> AsyncGenerator[Claim | None]:
        held: UUID | None = None
        try:
            async with self._claiming:
                row = await self._first_due(kinds, now)
                if row is not None:
                    held = row.id
                    self._held.add(row.id)
            yield None if row is None else Claim(_job(row), lambda columns: self._settle(row.id, columns))
        finally:
            if held is not None:
                self._held.discard(held)
            if not self._held and not self._claiming.locked():
                self._unlock()

    async def _first_due(self, kinds: Sequence[str], now: datetime) -> Row[Any] | None:
        if self._file is None and not await self._lock():
            return None
        return await _first_due(self._database, kinds, now, self._held)

    async def _settle(self, job: UUID, columns: dict[str, Any]) -> None:
        async with self._database.begin() as connection:
            await _settle(connection, job, columns)

    async def _lock(self) -> bool:
        """Keep the relays of other processes out; whether they did not come first."""
        if self._path is None:
            async with self._database.read() as connection:
                self._path = f"{connection.engine.url.database}.outbox"
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def _unlock(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


async def _first_due(
    database: Database, kinds: Sequence[str], now: datetime, held: set[UUID]
) -> Row[Any] | None:
    async with database.read() as connection:
        answer = await connection.execute(_DUE, _given(kinds, now, held))
        return answer.one_or_none()


async def _settle(connection: AsyncConnection, job: UUID, columns: dict[str, Any]) -> None:
    await connection.execute(
        update(outbox_jobs).where(_JOBS.id == job, in_state("pending")).values(**columns)
    )


def _given(kinds: Sequence[str], now: datetime, held: set[UUID]) -> dict[str, Any]:
    return {"kinds": list(kinds), "now": now, "held": list(held)}


def _job(row: Row[Any]) -> OutboxJob:
    return OutboxJob(
        id=row.id,
        kind=row.kind,
        payload=row.payload,
        payload_version=row.payload_version,
        aggregate=row.aggregate,
        attempt=row.attempts + 1,
        created_at=row.created_at,
    )
