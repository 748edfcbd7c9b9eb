"""Session rows: what the database says of sessions, seen and changed behind the service's back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update

from counterseal.core.tokens import hash_token
from counterseal.database.engine import Database
from counterseal.database.tables import domain_settings, user_sessions, users
from counterseal.sessions.identity import split_session_id
from counterseal.sessions.session import instant
from support.sessions import Process


def parts_of(session_id: str) -> tuple[str, str]:
    """The user id and the part of a session's id."""
    ids = split_session_id(session_id)
    assert ids is not None
    return ids


async def row_of(database: Database, session_id: str) -> Any:
    """The row of a session; None when there is none."""
    user_id, part = parts_of(session_id)
    async with database.read() as connection:
        found = await connection.execute(
            select(user_sessions).where(
                user_sessions.c.user_id == user_id, user_sessions.c.session_id == part
            )
        )
        return found.first()


async def active_rows(database: Database, user_id: str) -> set[str]:
    """The parts of the sessions of a user that are active, by the database."""
    async with database.read() as connection:
        found = await connection.execute(
            select(user_sessions.c.session_id).where(
                user_sessions.c.user_id == user_id, user_sessions.c.state == "active"
            )
        )
        return set(found.scalars())


async def change_row(database: Database, session_id: str, **values: Any) -> None:
    """Set columns of a session's row."""
    user_id, part = parts_of(session_id)
    async with database.begin() as connection:
        changed = await connection.execute(
            update(user_sessions)
            .where(user_sessions.c.user_id == user_id, user_sessions.c.session_id == part)
            .values(**values)
        )
    assert changed.rowcount == 1


async def set_status(database: Database, user_id: str, status: str) -> None:
    """Make a user `active`, `suspended` or `deleted`, and nothing else."""
    async with database.begin() as connection:
        await connection.execute(update(users).where(users.c.id == user_id).values(status=status))


async def set_policy(app: Process, domain: str = "example.com", **values: Any) -> None:
    """Give a domain a policy for its users' sessions."""
    async with app.database.begin() as connection:
        await connection.execute(
            insert(domain_settings).values(domain=domain, updated_at=instant(app.store.now_ms()), **values)
        )


def digest(token: str) -> bytes:
    """What is stored of a refresh token."""
    return hash_token(token)
