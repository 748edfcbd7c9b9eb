"""Lookup: reads a session. A tombstone wins, then the database; a copy that was checked lately answers alone."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from counterseal.core.errors import DatabaseError, StoreError, StoreUnavailable
from counterseal.sessions.backing import Backing
from counterseal.sessions.copies import Ended, Place
from counterseal.sessions.outage import PATIENCE_S
from counterseal.sessions.row import Row
from counterseal.sessions.rows import read_everybody, read_row
from counterseal.sessions.session import Session
from counterseal.sessions.uses import Uses, note_every_ms

CHECK_EVERY_MS: Final = 60_000
"""How long a copy answers alone."""

STALE_FOR_MS: Final = 300_000
"""How long a copy answers while the database is down."""

_ASK_AGAIN_MS: Final = 1_000


class Lookup:
    """Reads sessions for `get`, `authenticate` and `touch`."""

    def __init__(self, backing: Backing, *, uses: Uses) -> None:
        self._backing = backing
        self._copies = backing.copies
        self._outage = backing.outage
        self._now_ms = backing.now_ms
        self._counts = backing.counts
        self._uses = uses
        self._failed_ms = -_ASK_AGAIN_MS

    async def find(self, session_id: str, *, fresh: bool) -> Session | None:
        """A live session, else None. Raises when neither Redis nor the database can tell."""
        copies = self._copies
        place = copies.place(session_id)
        if place is None:
            return None
        now_ms = self._now_ms()
        if self._outage.lasts:
            try:
                await self.trust()
            except StoreUnavailable as unavailable:
                return await self._alone(place, now_ms, unavailable)
        try:
            reply = await copies.ask(place, now_ms)
        except StoreError as error:
            return await self._alone(place, now_ms, copies.unavailable("read", error))
        session = copies.read(session_id, place.user_id, reply)
        if isinstance(session, Ended) or (session is not None and now_ms >= session.facts.absolute_ms):
            return None
        if (
            session is not None
            and not fresh
            and now_ms - session.checked_ms < CHECK_EVERY_MS
            # Also of one that has been idle for too long: of a use while Redis was away the database alone knows.
            and now_ms - session.last_used_ms < note_every_ms(session.facts.idle_ms)
            and copies.global_epoch is not None
        ):
            self._counts.hits += 1
            return session
        return await self._checked(place, now_ms, session, fresh=fresh)

    async def trust(self, *, patience_s: float = PATIENCE_S) -> None:
        """Make good what Redis has missed. Raises `StoreUnavailable` while that can't be done, or takes longer."""
        backing = self._backing
        if not backing.available():
            raise StoreUnavailable("Redis is not available")
        try:
            await backing.outage.end(patience_s=patience_s)
        except DatabaseError as error:
            raise StoreUnavailable("what was revoked while Redis was away is not known") from error

    async def _alone(self, place: Place, now_ms: int, unavailable: StoreUnavailable) -> Session | None:
        """Ask the database in place of Redis."""
        self._counts.without_redis += 1
        return self._judged(await self._read(place, now_ms), now_ms, unavailable)

    async def _checked(
        self, place: Place, now_ms: int, copy: Session | None, *, fresh: bool
    ) -> Session | None:
        """Ask the database, and bring what Redis holds up to date."""
        self._counts.checked += 1
        part = place.part
        stale = copy
        if copy is not None and not _is_idle(copy, now_ms):
            stale = None if fresh or now_ms - copy.checked_ms > STALE_FOR_MS else copy
        if stale is not None and now_ms - self._failed_ms < _ASK_AGAIN_MS:
            return await self._stale(stale, part, now_ms)
        try:
            row = await self._read(place, now_ms)
        except DatabaseError:
            if stale is None:
                raise
            return await self._stale(stale, part, now_ms)
        try:
            return await self._stored(place, row, now_ms, copy)
        except StoreUnavailable as unavailable:
            return self._judged(row, now_ms, unavailable, copy)

    async def _read(self, place: Place, now_ms: int) -> Row | None:
        """What the database says; None as well of a session whose end it is still to be told of."""
        backing = self._backing
        accepted = backing.pending.accepted
        try:
            async with backing.database.read() as connection:
                row = await read_row(connection, place.user_id, place.part, now_ms=now_ms)
                if row is None and self._copies.global_epoch is None:
                    epoch = await read_everybody(connection)
                else:
                    epoch = None if row is None else row.current_global_epoch
        except DatabaseError:
            self._failed_ms = now_ms
            backing.database_failed()
            raise
        if epoch is not None and self._copies.global_epoch is None and backing.available():
            with suppress(StoreError):  # the row is what is judged
                await self._copies.raise_global(epoch, now_ms)
        if row is not None and backing.pending.has_ended(
            row.user_id, row.part, row.facts.created_ms, before=accepted
        ):
            return None
        return row

    def _judged(
        self, row: Row | None, now_ms: int, unavailable: StoreUnavailable, copy: Session | None = None
    ) -> Session | None:
        """By the database alone, save for a use that it may not have been told of."""
        backing = self._backing
        if row is None or row.has_ended(now_ms, used_ms=_last_use(copy)):
            return None
        if backing.pending.unsettled:
            # Somebody may have ended it while the database was down; Redis would know.
            raise unavailable
        self._uses.note(row, now_ms)
        return row.session(last_used_ms=now_ms, checked_ms=now_ms)

    async def _stored(
        self, place: Place, row: Row | None, now_ms: int, copy: Session | None
    ) -> Session | None:
        # Uses are written to the database a while later, and may be lost on the way; Redis has the last one.
        if row is None or row.has_ended(now_ms, used_ms=_last_use(copy)):
            if copy is not None:
                await self._copies.revoke(place.user_id, [place.part])
            return None
        filled = await self._copies.fill(row, now_ms=now_ms, last_used_ms=now_ms, checked_ms=now_ms)
        if isinstance(filled, Ended):
            return None
        self._uses.note(row, now_ms)
        return filled

    async def _stale(self, session: Session, part: str, now_ms: int) -> Session | None:
        """What a copy says while the database is down; the use is noted in Redis alone."""
        self._counts.stale += 1
        if _is_idle(session, now_ms):
            return None
        if now_ms - session.last_used_ms >= note_every_ms(session.facts.idle_ms):
            try:
                if not await self._backing.copies.touch(session.user_id, part, now_ms):
                    return None
            except StoreUnavailable:
                pass
        return session


def _last_use(copy: Session | None) -> int:
    return 0 if copy is None else copy.last_used_ms


def _is_idle(copy: Session, now_ms: int) -> bool:
    return now_ms >= copy.last_used_ms + copy.facts.idle_ms
