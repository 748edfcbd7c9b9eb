"""Expiry: what has ended by time is marked as ended, and removed a week later."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from counterseal.core.errors import DatabaseUnavailable
from counterseal.sessions.backing import Backing
from counterseal.sessions.endings import Endings
from counterseal.sessions.rows import delete_ended, find_expired
from counterseal.sessions.session import instant

KEPT: Final = timedelta(days=7)
"""How long an ended session stays on record."""


class Expiry:
    """Cleans up in batches."""

    def __init__(self, backing: Backing, endings: Endings) -> None:
        self._backing = backing
        self._endings = endings

    async def clean(self, limit: int) -> int:
        """Mark at most `limit` sessions, and remove at most as many; how many were marked."""
        backing = self._backing
        if limit < 1:
            raise ValueError("limit: expected a number of at least 1")
        now_ms = backing.now_ms()
        by_user: dict[str, list[str]] = {}
        marked = 0
        try:
            async with backing.database.begin() as connection:
                for user_id, part in await find_expired(connection, now_ms=now_ms, limit=limit):
                    by_user.setdefault(user_id, []).append(part)
                for user_id, parts in sorted(by_user.items()):
                    marked += len(await self._endings.expire(connection, user_id, parts, now_ms))
                await delete_ended(connection, before=instant(now_ms) - KEPT, limit=limit)
        except DatabaseUnavailable:
            backing.database_failed()
            raise
        return marked
