"""Faults: what an error of a driver means, in the one tree of errors."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Final

import asyncpg
from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from counterseal.core.errors import (
    ConfigurationError,
    Conflict,
    CountersealError,
    DatabaseError,
    DatabaseUnavailable,
)
from counterseal.database.address import NAME
from counterseal.database.tables import METADATA, SCHEMA

DRIVER_ERRORS: Final = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlite3.Error,
    OSError,
)

_UNREACHABLE: Final = "the database can't be reached"
_BUSY: Final = (
    asyncpg.InsufficientResourcesError,  # also too many connections
    asyncpg.InternalServerError,  # a pooler that has no connection left says so
    asyncpg.OperatorInterventionError,  # it starts, ends, or somebody cancelled the statement
    asyncpg.TransactionRollbackError,  # a deadlock
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, or a full disk at Supabase
)
_POSTGRES_MEANINGS: Final[tuple[tuple[tuple[type[BaseException], ...], type[CountersealError], str], ...]] = (
    (
        (
            asyncpg.InvalidAuthorizationSpecificationError,  # also a wrong password
            asyncpg.InvalidCatalogNameError,
            asyncpg.ClientConfigurationError,
        ),
        ConfigurationError,
        f"{NAME}: expected a user, password and database that the server accepts",
    ),
    (
        (asyncpg.InsufficientPrivilegeError,),
        ConfigurationError,
        f"{NAME}: expected a user who may use the schema {SCHEMA}, or make it while migrating",
    ),
    ((TimeoutError,), DatabaseUnavailable, "the database did not answer in time"),
    (
        (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError),
        DatabaseUnavailable,
        _UNREACHABLE,
    ),
    (_BUSY, DatabaseUnavailable, "the database can't finish this transaction now"),
)
_SQLITE_KEYS: Final = ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_ROWID")
_SQLITE_COLUMN: Final = re.compile(rf"{SCHEMA}_(\w+)\.(\w+)")


def translated(fault: BaseException, *, sqlite: bool, opening: bool = False) -> CountersealError:
    """The error of counterseal for an error of SQLAlchemy or a driver. Repeats no value and no address.

    It is a `ConfigurationError` only when `opening`. A database that refuses its user, or whose file is gone, later on
    was accepted once: it is unavailable until somebody has put that right.
    """
    error = _translated(fault, sqlite=sqlite)
    if isinstance(error, ConfigurationError) and not opening:
        return DatabaseUnavailable(f"the database can't be used any more ({error})")
    return error


def _translated(fault: BaseException, *, sqlite: bool) -> CountersealError:
    if isinstance(fault, PoolTimeout):
        return DatabaseUnavailable("every connection to the database is in use")
    cause = fault
    if isinstance(fault, DBAPIError) and fault.orig is not None:
        cause = fault.orig.__cause__ or fault.orig
    if sqlite:
        return sqlite_error(cause)
    lost = isinstance(fault, DBAPIError) and fault.connection_invalidated
    return _postgres_error(cause, lost=lost)


def _postgres_error(cause: BaseException, *, lost: bool) -> CountersealError:
    if isinstance(cause, asyncpg.UniqueViolationError):
        return _conflict(getattr(cause, "constraint_name", None))
    for kinds, error, sentence in _POSTGRES_MEANINGS:
        if isinstance(cause, kinds):
            return error(sentence)
    if lost:
        return DatabaseUnavailable(_UNREACHABLE)
    return DatabaseError(f"the database refused a statement ({type(cause).__name__})")


def sqlite_error(cause: BaseException, *, folder: Path | None = None) -> CountersealError:
    """The error of counterseal for an error of SQLite or of its file, which lies in `folder`."""
    message = str(cause)
    if isinstance(cause, OSError) or "unable to open" in message or "readonly" in message:
        came = "" if folder is None else f"; came: {folder}"
        return ConfigurationError(f"COUNTERSEAL_DATA_DIR: expected a folder that may be written to{came}")
    if isinstance(cause, sqlite3.DatabaseError) and "not a database" in message:
        return ConfigurationError(
            "COUNTERSEAL_DATA_DIR: expected counterseal.db in it to be a SQLite database"
        )
    if isinstance(cause, sqlite3.OperationalError) and _sqlite_name(cause) != "SQLITE_ERROR":
        return DatabaseUnavailable("the database is locked or can't be read")
    if isinstance(cause, sqlite3.IntegrityError) and _sqlite_name(cause) in _SQLITE_KEYS:
        return _conflict(_sqlite_constraint(message))
    return DatabaseError(f"the database refused a statement ({type(cause).__name__})")


def _conflict(constraint: str | None) -> Conflict:
    return Conflict(
        f"a row with this key is there already ({constraint or 'unnamed'})", constraint=constraint
    )


def _sqlite_name(cause: sqlite3.Error) -> str | None:
    """SQLite's name of an error; None for one that the driver made. `SQLITE_ERROR` is a statement that is wrong."""
    return getattr(cause, "sqlite_errorname", None)


def _sqlite_constraint(message: str) -> str | None:
    """The name of the constraint. SQLite tells only its columns."""
    found = _SQLITE_COLUMN.findall(message)
    table = METADATA.tables.get(f"{SCHEMA}.{found[0][0]}") if found else None
    if table is None:
        return None
    columns = [column for _, column in found]
    for constraint in table.constraints:
        if isinstance(constraint, (PrimaryKeyConstraint, UniqueConstraint)) and columns == [
            column.name for column in constraint.columns
        ]:
            return None if constraint.name is None else str(constraint.name)
    for index in table.indexes:
        if index.unique and columns == [column.name for column in index.columns]:
            return None if index.name is None else str(index.name)
    return None
