"""Lock-out: five wrong passwords in a row, and nobody logs in at this address for half an hour.

An address without an account is counted and locked in the same way, so a lock tells nothing. The lock of an account is
its `locked_until`; that of another address a row of `auth_attempts`. A lock does not stop a password reset, which ends
it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.account import Account
from counterseal.accounts.attempts import insert_attempts
from counterseal.core.email import counted_as
from counterseal.database.tables import auth_attempts, users

WRONG_IN_ROW: Final = 5
LOCKED_FOR: Final = timedelta(minutes=30)

_WINDOW: Final = timedelta(days=1)
"""Rows are by day, so that old ones can be removed; the row of this day and of the one before count together."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def find_lock(
    connection: AsyncConnection, email: str, account: Account | None, *, now: datetime
) -> datetime | None:
    """Until when an address is locked, with an account or without; None when it is not. One statement, for both."""
    nobody = await _lock_of_nobody(connection, email, now=now)
    until = nobody if account is None else account.locked_until
    return until if until is not None and until > now else None


async def note_wrong_password(
    connection: AsyncConnection, email: str, account: Account | None, *, now: datetime
) -> tuple[int, datetime | None]:
    """Count a wrong password, and lock at the fifth: how many in a row, and until when it is locked.

    The caller holds the row of the account. One who comes when it is locked already counts nothing: 0 in a row. Three
    statements, five for the one that locks.
    """
    today = now - (now - _EPOCH) % _WINDOW
    columns = auth_attempts.c
    raised = insert_attempts(connection).values(key=_wrong_key(email), window_start=today, count=1)
    # This also lets those who come at once with the address of nobody wait for each other.
    await connection.execute(
        raised.on_conflict_do_update(
            index_elements=["key", "window_start"], set_={"count": columns.count + 1}
        )
    )
    locked = await find_lock(connection, email, account, now=now)
    if locked is not None:
        await end_row(connection, email)
        return 0, locked
    query = select(func.sum(columns.count)).where(
        columns.key == _wrong_key(email), columns.window_start >= today - _WINDOW
    )
    in_row = int((await connection.execute(query)).scalar_one())
    if in_row < WRONG_IN_ROW:
        return in_row, None
    until = now + LOCKED_FOR
    if account is None:
        lock = insert_attempts(connection).values(key=_locked_key(email), window_start=until, count=1)
        await connection.execute(lock.on_conflict_do_nothing())
    else:
        await connection.execute(update(users).where(users.c.id == account.id).values(locked_until=until))
    await end_row(connection, email)
    return in_row, until


async def end_row(connection: AsyncConnection, email: str) -> None:
    """Forget the wrong passwords, as after a right one. One statement."""
    columns = auth_attempts.c
    await connection.execute(
        update(auth_attempts).where(columns.key == _wrong_key(email), columns.count > 0).values(count=0)
    )


async def _lock_of_nobody(connection: AsyncConnection, email: str, *, now: datetime) -> datetime | None:
    """Until when an address without an account is locked; None when it is not. One statement."""
    columns = auth_attempts.c
    query = select(func.max(columns.window_start)).where(
        columns.key == _locked_key(email), columns.window_start > now
    )
    return (await connection.execute(query)).scalar_one()


def _wrong_key(email: str) -> str:
    return f"wrong_password:{counted_as(email)}"


def _locked_key(email: str) -> str:
    return f"locked:{counted_as(email)}"
