"""Account: the row of a user with what a log-in needs to know, and that nobody else is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.refused import SUSPENDED, Refused, locked
from counterseal.accounts.user import Status, User, select_user, user_of
from counterseal.database.tables import users


@dataclass(frozen=True, slots=True)
class Account:
    """A user, the hash of the password (None: nobody logs in with one), and until when it is locked."""

    user: User
    password_hash: str | None = field(repr=False)
    locked_until: datetime | None

    @property
    def id(self) -> str:
        return self.user.id

    def closed(self, now: datetime) -> Refused | None:
        """Why nobody may log in now, whatever they know; None when they may. For those who know the password."""
        if self.user.status is not Status.ACTIVE:
            return SUSPENDED
        if self.locked_until is not None and self.locked_until > now:
            return locked(self.locked_until - now)
        return None


async def find_account(
    connection: AsyncConnection, *, email: str | None = None, user_id: str | None = None, lock: bool = False
) -> Account | None:
    """The account with an address or an id; None for an unknown or deleted one. One statement.

    `lock` holds its row until the end of the transaction.
    """
    wanted: ColumnElement[bool] = users.c.id == user_id if email is None else users.c.email == email
    query = select_user(users.c.password_hash, users.c.locked_until).where(
        wanted, users.c.status != Status.DELETED
    )
    row = (await connection.execute(query.with_for_update() if lock else query)).mappings().one_or_none()
    return None if row is None else _account_of(row)


def _account_of(row: Mapping[Any, Any]) -> Account:
    return Account(user_of(row), row["password_hash"], row["locked_until"])
