"""Lookup: reads a session. A tombstone wins, then the database; a copy that was checked lately answers alone."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from counterseal.core.errors import DatabaseError, StoreError, StoreUnavailable
from counterseal.sessions.backing import Backing
from counterseal.sessions.copies import Copy, Ended
from counterseal.sessions.row import Row
from counterseal.sessions.rows import read_everybody, read_row
from counterseal.sessions.session import Session
from counterseal.sessions.uses import Uses

CHECK_EVERY_MS: Final = 60_000
"""How long a copy answers alone; and how often a use is noted at most."""

STALE_FOR_MS: Final = 300_000
"""How long a copy answers while the database is down."""

_ASK_AGAIN_MS: Final = 1_000


class Lookup:
    """Reads sessions for `get`, `authenticate` and `touch`."""

    def __init__(self, backing: Backing, *, uses: Uses) -> None:
        self._backing = backing
        self._uses = uses
        self._failed_ms = -_ASK_AGAIN_MS

    async def find(self, session_id: str, user_id: str, part: str, *, fresh: bool) -> Session | None:
        """A live session, else None. Raises when neither Redis nor the database can tell."""
        backing = self._backing
        now_ms = backing.now_ms()
        try:
            if backing.outage.lasts:
                await self.trust()
            copy = await backing.copies.look(user_id, part, now_ms)
        except StoreUnavailable as unavailable:
            return await self._from_record(user_id, part, now_ms, unavailable)
        if isinstance(copy, Copy):
            facts = copy.facts
            last_ms = copy.last_used_ms
            if now_ms >= facts.absolute_ms or now_ms >= last_ms + facts.idle_ms:
                return None
            known = backing.copies.global_epoch is not None
            if not fresh and known and now_ms - copy.checked_ms < CHECK_EVERY_MS > now_ms - last_ms:
                return Session(
                    session_id, user_id, facts, copy.version, last_ms, copy.checked_ms, copy.step_ups
                )
            return await self._checked(session_id, user_id, part, now_ms, copy, fresh=fresh)
        if isinstance(copy, Ended):
            return None
        return await self._checked(session_id, user_id, part, now_ms, None, fresh=fresh)

    async def trust(self) -> None:
        """Make good what Redis has missed. Raises `StoreUnavailable` while that can't be done."""
        backing = self._backing
        if not backing.available():
            raise StoreUnavailable("Redis is not available")
        try:
            await backing.outage.end()
        except DatabaseError as error:
            raise StoreUnavailable("what was revoked while Redis was away is not known") from error

    async def _checked(
        self, session_id: str, user_id: str, part: str, now_ms: int, copy: Copy | None, *, fresh: bool
    ) -> Session | None:
        """Ask the database, and bring what Redis holds up to date."""
        backing = self._backing
        stale = None
        if copy is not None and not fresh and now_ms - copy.checked_ms <= STALE_FOR_MS:
            stale = Session(
                session_id,
                user_id,
                copy.facts,
                copy.version,
                copy.last_used_ms,
                copy.checked_ms,
                copy.step_ups,
            )
            if now_ms - self._failed_ms < _ASK_AGAIN_MS:
                return await self._stale(stale, part, now_ms)
        try:
            row = await self._read(user_id, part, now_ms)
        except DatabaseError:
            if stale is None:
                raise
            return await self._stale(stale, part, now_ms)
        if row is not None and backing.pending.has_ended(user_id, part, row.facts.created_ms):
            return None
        try:
            return await self._stored(user_id, part, row, now_ms, has_copy=copy is not None)
        except StoreUnavailable as unavailable:
            return self._judged(row, now_ms, unavailable)

    async def _from_record(
        self, user_id: str, part: str, now_ms: int, unavailable: StoreUnavailable
    ) -> Session | None:
        return self._judged(await self._read(user_id, part, now_ms), now_ms, unavailable)

    async def _read(self, user_id: str, part: str, now_ms: int) -> Row | None:
        backing = self._backing
        try:
            async with backing.database.read() as connection:
                row = await read_row(connection, user_id, part, now_ms=now_ms)
                if row is None and backing.copies.global_epoch is None:
                    epoch = await read_everybody(connection)
                else:
                    epoch = None if row is None else row.current_global_epoch
        except DatabaseError:
            self._failed_ms = now_ms
            backing.database_failed()
            raise
        if epoch is not None and backing.copies.global_epoch is None and backing.available():
            with suppress(StoreError):  # the row is what is judged
                await backing.copies.raise_global(epoch, now_ms)
        return row

    def _judged(self, row: Row | None, now_ms: int, unavailable: StoreUnavailable) -> Session | None:
        """By the database alone."""
        backing = self._backing
        if row is None or row.has_ended(now_ms):
            return None
        if backing.pending.has_ended(row.user_id, row.part, row.facts.created_ms):
            return None
        if backing.pending.unsettled:
            # Somebody may have ended it while the database was down; Redis would know.
            raise unavailable
        self._uses.note(row.user_id, row.part, now_ms, before_ms=row.last_used_ms)
        return row.session(last_used_ms=now_ms, checked_ms=now_ms)

    async def _stored(
        self, user_id: str, part: str, row: Row | None, now_ms: int, *, has_copy: bool
    ) -> Session | None:
        copies = self._backing.copies
        if row is None or row.has_ended(now_ms):
            if has_copy:
                await copies.revoke(user_id, [part])
            return None
        copy = await copies.fill(row, now_ms=now_ms, last_used_ms=now_ms, checked_ms=now_ms)
        if isinstance(copy, Ended):
            return None
        self._uses.note(user_id, part, now_ms, before_ms=row.last_used_ms)
        return Session(
            row.session(last_used_ms=0, checked_ms=0).session_id,
            user_id,
            copy.facts,
            copy.version,
            copy.last_used_ms,
            copy.checked_ms,
            copy.step_ups,
        )

    async def _stale(self, session: Session, part: str, now_ms: int) -> Session | None:
        """What a copy says while the database is down; the use is noted in Redis alone."""
        if now_ms - session.last_used_ms >= CHECK_EVERY_MS:
            try:
                if not await self._backing.copies.touch(session.user_id, part, now_ms):
                    return None
            except StoreUnavailable:
                pass
        return session
