"""Uses: when sessions were used last, gathered and written to the database together. They may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from counterseal.core.errors import DatabaseError
from counterseal.database.engine import Database
from counterseal.sessions.row import Row
from counterseal.sessions.rows import note_uses

_EVERY_S: Final = 5.0
_MOST: Final = 10_000
_AT_ONCE: Final = 500
_NOTED_EVERY_MS: Final = 60_000


def note_every_ms(idle_ms: int) -> int:
    """How often a use is noted at most: once a minute, and more often where a session ends after less without one."""
    return min(_NOTED_EVERY_MS, idle_ms // 2)


class Uses:
    """Gathered by one process. At most one a minute for each session is written."""

    def __init__(self, database: Database, *, on_failure: Callable[[], None]) -> None:
        self._database = database
        self._on_failure = on_failure
        self._gathered: dict[tuple[str, str], int] = {}

    def note(self, row: Row, now_ms: int) -> None:
        """Note that a session is used, unless its row has that of less than a minute ago. No round trip."""
        every_ms = note_every_ms(row.facts.idle_ms)
        if now_ms - row.last_used_ms >= every_ms and len(self._gathered) < _MOST:
            self._gathered[row.user_id, row.part] = now_ms

    async def write(self) -> None:
        """Write what was gathered: one transaction for 500. Raises `DatabaseUnavailable`; those are lost then."""
        while self._gathered:
            taken = [
                (user_id, part, used_ms)
                for (user_id, part), used_ms in list(self._gathered.items())[:_AT_ONCE]
            ]
            for user_id, part, _ in taken:
                del self._gathered[user_id, part]
            async with self._database.begin() as connection:
                await note_uses(connection, taken)

    async def keep_writing(self) -> None:
        """Run for as long as the service is open."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.write()
            except DatabaseError:
                self._on_failure()
