"""Pool: the connections to the database of one process."""

from __future__ import annotations

import logging

from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

# What SQLAlchemy tells of pools at INFO is not for people.
logging.getLogger(f"{__name__}.Pool").setLevel(logging.WARNING)


class Pool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool, which closes what comes back after it was disposed of as well.

    SQLAlchemy would keep a connection whose transaction was under way then, for nobody, until it is collected.
    """

    _disposed = False

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._disposed:
            record.close()  # without a connection; whoever waits for its place makes one
        super()._do_return_conn(record)
