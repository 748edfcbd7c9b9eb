"""Backup codes: ten codes for when the authenticator is not at hand. Each is good once; kept are their hashes.

A code is 80 random bits in 16 characters of base32, written in groups of four.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.password import Passwords
from counterseal.core.tokens import uuid7
from counterseal.database.tables import totp_backup_codes

COUNT: Final = 10

_BYTES: Final = 10
_LONGEST_TYPED: Final = 64
_CODE: Final = re.compile(r"[A-Z2-7]{16}")
_BETWEEN: Final = re.compile(r"[\s-]+")
_LOOK_ALIKES: Final = str.maketrans("018", "OIB")
_CODES: Final = totp_backup_codes.c


def new_backup_codes() -> tuple[str, ...]:
    """Ten codes, as `ABCD-EFGH-IJKL-MN23`."""
    made = [base64.b32encode(secrets.token_bytes(_BYTES)).decode() for _ in range(COUNT)]
    return tuple("-".join(code[at : at + 4] for at in range(0, 16, 4)) for code in made)


def typed_backup_code(text: object) -> str | None:
    """A backup code as somebody typed it, in the form that is hashed; None for what can be none. Never raises.

    Groups, spaces and the size of letters do not matter, and 0, 1 and 8, which are in no code, are O, I and B.
    """
    if not isinstance(text, str) or len(text) > _LONGEST_TYPED:
        return None
    code = _BETWEEN.sub("", text)
    if not code.isascii():
        return None
    code = code.upper().translate(_LOOK_ALIKES)
    return code if _CODE.fullmatch(code) else None


async def hash_backup_codes(codes: Sequence[str], passwords: Passwords) -> tuple[str, ...]:
    """What is kept of codes: argon2id, outside of the event loop."""
    return tuple(await asyncio.gather(*(passwords.hash(code.replace("-", "")) for code in codes)))


async def put_backup_codes(
    connection: AsyncConnection, user_id: str, hashes: Sequence[str], *, now: datetime
) -> None:
    """Put new codes in place of all that a user has. Two statements and a query."""
    batch = (
        await connection.execute(select(func.max(_CODES.batch)).where(_CODES.user_id == user_id))
    ).scalar_one_or_none()
    await remove_backup_codes(connection, user_id)
    now_ms = int(now.timestamp() * 1000)
    await connection.execute(
        insert(totp_backup_codes),
        [
            {
                "id": uuid7(now_ms),
                "user_id": user_id,
                "batch": (batch or 0) + 1,
                "code_hash": kept,
                "created_at": now,
            }
            for kept in hashes
        ],
    )


async def remove_backup_codes(connection: AsyncConnection, user_id: str) -> None:
    """Forget all codes of a user. One statement."""
    await connection.execute(delete(totp_backup_codes).where(_CODES.user_id == user_id))


async def unused_backup_codes(connection: AsyncConnection, user_id: str) -> list[tuple[UUID, str]]:
    """The ids and hashes of the codes that are left. One query."""
    rows = await connection.execute(
        select(_CODES.id, _CODES.code_hash)
        .where(_CODES.user_id == user_id, _CODES.used_at.is_(None))
        .order_by(_CODES.id)
    )
    return [(row.id, row.code_hash) for row in rows]


async def count_backup_codes(connection: AsyncConnection, user_id: str) -> int:
    """How many codes are left. One query."""
    answer = await connection.execute(
        select(func.count()).where(_CODES.user_id == user_id, _CODES.used_at.is_(None))
    )
    return answer.scalar_one()


async def use_backup_code(connection: AsyncConnection, code_id: UUID, *, now: datetime) -> bool:
    """Use a code up; whether it was still unused. However many try at once, one succeeds. One statement."""
    answer = await connection.execute(
        update(totp_backup_codes)
        .where(_CODES.id == code_id, _CODES.used_at.is_(None))
        .values(used_at=now)
        .returning(_CODES.id)
    )
    return answer.one_or_none() is not None
