"""PostgreSQL: how SQLAlchemy speaks to it, straight or through a pooler that shares its connections out."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from counterseal.database.address import PostgresAddress
from counterseal.database.columns import json_text, json_value
from counterseal.database.pool import Pool

_FAREWELL_S: Final = 0.5  # how long a server may take to hear that a statement is cancelled
_CONNECT_S: Final = 5.0
_RECYCLE_S: Final = 900  # poolers and firewalls forget connections that are older than they like


class _Connection(asyncpg.Connection):
    """A connection whose statement is cancelled on the server before it closes, within half a second.

    A server that is frozen is given up then. A task that is cancelled again while it waits for that does not cut it
    short: the statement would go on, and keep its locks.
    """

    _leaving = False

    async def close(self, *, timeout: float | None = None) -> None:
        self._leaving = True
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await super().close(timeout=timeout)  # pyright: ignore[reportUnknownMemberType]
        except TimeoutError:
            pass
        finally:
            self._leaving = False
            if not self.is_closed():
                self.terminate()

    def terminate(self) -> None:
        if not self._leaving:
            super().terminate()


def postgres_engine(address: PostgresAddress, *, timeout_s: float, pooled: bool = True) -> AsyncEngine:
    """An engine for writes; `for_reads` makes the other one. Without `pooled` each transaction makes a connection."""
    pool: dict[str, Any] = {"poolclass": NullPool}
    if pooled:
        pool = {
            "poolclass": Pool,
            "pool_timeout": timeout_s,
            "pool_use_lifo": True,
            "pool_recycle": _RECYCLE_S,
        }
    engine = create_async_engine(
        address.url,
        connect_args={
            "timeout": min(timeout_s, _CONNECT_S),
            **address.connect_args,
            "command_timeout": timeout_s,
            "connection_class": _Connection,
        },
        hide_parameters=True,  # a traceback tells the statement, and no value
        json_serializer=json_text,
        json_deserializer=json_value,
        **pool,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _give_up_silent)
    return engine


def for_reads(engine: AsyncEngine) -> AsyncEngine:
    """The same engine and connections, for transactions in which the server refuses to write."""
    return engine.execution_options(postgresql_readonly=True)


def _refuse_closed(connection: Any, record: object, proxy: object) -> None:
    """Take another connection in place of one that the server has closed. This asks nobody: no round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _give_up_silent(context: Any) -> None:
    """A connection on which an answer is overdue is no longer used: nobody knows what comes first on it."""
    if isinstance(context.original_exception, TimeoutError):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
