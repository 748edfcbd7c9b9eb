"""One-time token: a secret that is sent or handed out once, and opens one door once. Only its SHA-256 is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.tokens import hash_token
from counterseal.database.tables import one_time_tokens

LONGEST: Final = 512
"""Characters; ours have 43. A longer text is not even hashed."""

KEPT: Final = timedelta(hours=24)
"""How long a used or expired one is kept."""


class Purpose(StrEnum):
    """Which door."""

    VERIFY_EMAIL = "verify_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - a purpose
    LOG_IN = "log_in"
    """The second half of a log-in whose password was right."""

    @property
    def lives(self) -> timedelta:
        """How long a token opens it."""
        return timedelta(minutes=5) if self is Purpose.LOG_IN else timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    """A token that is still good, as it is kept."""

    user_id: str
    data: Any
    expires_at: datetime


async def add_token(
    connection: AsyncConnection,
    purpose: Purpose,
    token: str,
    user_id: str,
    *,
    now: datetime,
    data: Any = None,
) -> None:
    """Let a new secret of a user open a door. One statement."""
    await connection.execute(
        insert(one_time_tokens).values(
            token_hash=hash_token(token),
            user_id=user_id,
            purpose=purpose,
            data=data,
            expires_at=now + purpose.lives,
        )
    )


async def find_token(
    connection: AsyncConnection, purpose: Purpose, token: object, *, now: datetime
) -> OneTimeToken | None:
    """What a token opens, which is not used up by this; None when it opens nothing. One statement."""
    if not isinstance(token, str) or len(token) > LONGEST:
        return None
    columns = one_time_tokens.c
    row = (
        await connection.execute(
            select(columns.user_id, columns.data, columns.expires_at).where(*_good(purpose, token, now))
        )
    ).one_or_none()
    return None if row is None else OneTimeToken(row.user_id, row.data, row.expires_at)


async def use_token(connection: AsyncConnection, purpose: Purpose, token: str, *, now: datetime) -> bool:
    """Use a token up; False when somebody has, or it has expired. Of several at once one gets True. One statement."""
    done = await connection.execute(
        update(one_time_tokens)
        .where(*_good(purpose, token, now))
        .values(used_at=now)
        .returning(one_time_tokens.c.user_id)
    )
    return done.one_or_none() is not None


async def void_tokens(
    connection: AsyncConnection, user_id: str, purposes: Iterable[Purpose], *, now: datetime
) -> None:
    """Let the tokens of a user for these purposes open nothing more. One statement."""
    columns = one_time_tokens.c
    await connection.execute(
        update(one_time_tokens)
        .where(columns.user_id == user_id, columns.purpose.in_(tuple(purposes)), columns.used_at.is_(None))
        .values(used_at=now)
    )


async def remove_expired_tokens(connection: AsyncConnection, *, now: datetime, limit: int) -> int:
    """Remove tokens that expired a day ago, at most `limit`; how many there were. Two statements."""
    columns = one_time_tokens.c
    query = select(columns.token_hash).where(columns.expires_at < now - KEPT).limit(limit)
    hashes = (await connection.execute(query)).scalars().all()
    if hashes:
        await connection.execute(delete(one_time_tokens).where(columns.token_hash.in_(hashes)))
    return len(hashes)


def _good(purpose: Purpose, token: str, now: datetime) -> tuple[Any, ...]:
    columns = one_time_tokens.c
    return (
        columns.token_hash == hash_token(token),
        columns.purpose == purpose,
        columns.used_at.is_(None),
        columns.expires_at > now,
    )
