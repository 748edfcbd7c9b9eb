"""Rotation: a refresh token is replaced by its successor, once.

Redis decides among those who come at the same moment, so that all of them get the same successor; the database confirms
it before anybody is answered, and has the last word. A token that was replaced longer ago than the grace is reuse: the
session is ended, because one of two holders is not its user. That is confirmed in the database first, for Redis may be
behind it after an outage or ahead of it after a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import DatabaseError, DatabaseUnavailable, StoreUnavailable
from counterseal.sessions.backing import Backing, account_stream
from counterseal.sessions.copies import Ended, Presented, Turn
from counterseal.sessions.endings import Endings
from counterseal.sessions.events import SessionReuseDetected, SessionRotated
from counterseal.sessions.lookup import STALE_FOR_MS, Lookup
from counterseal.sessions.pending import PendingRotation
from counterseal.sessions.refresh_token import (
    RefreshToken,
    new_refresh_token,
    open_successor,
    seal_successor,
    was_issued,
)
from counterseal.sessions.row import Row
from counterseal.sessions.rows import read_row, replace_token
from counterseal.sessions.session import Reason, Rotated, Session

_ROUNDS: Final = 4
"""How often Redis is brought up to date and asked again, before the database decides alone."""


@dataclass(frozen=True, slots=True)
class _Again:
    """Redis was not as the database is; it has been repaired from this row, if there was a Redis."""


_AGAIN: Final = _Again()


class Rotation:
    """Gives new tokens."""

    def __init__(self, backing: Backing, endings: Endings, lookup: Lookup) -> None:
        self._backing = backing
        self._endings = endings
        self._lookup = lookup
        self._grace_ms = round(backing.settings.refresh_grace.total_seconds() * 1000)

    async def rotate(self, presented: RefreshToken) -> Rotated | None:
        """The successor's pair; None for every token that is not good, whyever."""
        backing = self._backing
        successor = new_refresh_token(presented.user_id, presented.part, backing.keyring)
        sealed = seal_successor(presented, successor)
        try:
            if backing.outage.lasts:
                await self._lookup.trust()
            for _ in range(_ROUNDS):
                outcome = await self._by_redis(presented, successor, sealed)
                if not isinstance(outcome, _Again):
                    return outcome
        except StoreUnavailable as unavailable:
            if backing.pending.unsettled:
                raise StoreUnavailable(str(unavailable)) from unavailable
        return await self._by_record(presented, successor, sealed)

    # -- with Redis ----------------------------------------------------------------------------------------------

    async def _by_redis(
        self, presented: RefreshToken, successor: RefreshToken, sealed: bytes
    ) -> Rotated | _Again | None:
        backing = self._backing
        now_ms = backing.now_ms()
        answer = await backing.copies.rotate(
            presented.user_id,
            presented.part,
            now_ms=now_ms,
            presented=presented.hash,
            next_hash=successor.hash,
            successor=sealed,
            grace_ms=self._grace_ms,
        )
        if answer.turn is Turn.ENDED:
            return None
        if answer.turn is Turn.ABSENT or answer.session is None:
            row = await self._read(presented, now_ms)
            return await self._repaired(row, now_ms, answer)
        if answer.turn is Turn.MISMATCH:
            return await self._mismatch(presented, answer, now_ms)
        if answer.turn is Turn.GRACE:
            known = open_successor(presented, answer.successor)
            if known is None:
                # It was replaced without being presented, after a log-in: its successor is not for whoever has it.
                return await self._mismatch(presented, answer, now_ms)
            successor = known
        return await self._confirm(presented, successor, answer, answer.session)

    async def _confirm(
        self, presented: RefreshToken, successor: RefreshToken, answer: Presented, session: Session
    ) -> Rotated | _Again | None:
        """Have the database say the same, whoever of those who got this successor comes first."""
        backing = self._backing
        try:
            row = await self._confirmed(presented, successor, answer)
            if row is not None and row.token_hash != successor.hash:
                # What was accepted while the database was down may be what it lacks.
                await backing.pending.settle()
                row = await self._confirmed(presented, successor, answer)
        except DatabaseUnavailable:
            backing.database_failed()
            return await self._without_record(presented, successor, answer, session)
        now_ms = backing.now_ms()
        if row is None or row.has_ended(now_ms, used_ms=session.last_used_ms):
            await backing.copies.revoke(presented.user_id, [presented.part])
            return None
        if row.token_hash != successor.hash:
            return await self._repaired(row, now_ms, answer)
        if row.version > session.version:  # it was renewed at the same moment
            filled = await backing.copies.fill(row, now_ms=now_ms, last_used_ms=now_ms, checked_ms=now_ms)
            if isinstance(filled, Ended):
                return None
            session = row.session(last_used_ms=now_ms, checked_ms=now_ms)
        return answer_with(backing, session, successor, first=answer.turn is Turn.ROTATED)

    async def _confirmed(
        self, presented: RefreshToken, successor: RefreshToken, answer: Presented
    ) -> Row | None:
        """The row after the database was asked to replace the token as Redis did."""
        user_id, part = presented.user_id, presented.part
        async with self._backing.database.begin() as connection:
            version = await replace_token(
                connection,
                user_id,
                part,
                old=presented.hash,
                new=successor.hash,
                successor=answer.successor,
                rotated_ms=answer.rotated_ms,
            )
            if version is not None:
                await note_rotation(self._backing, connection, user_id, part)
            return await read_row(connection, user_id, part, now_ms=self._backing.now_ms())

    async def _without_record(
        self, presented: RefreshToken, successor: RefreshToken, answer: Presented, session: Session
    ) -> Rotated:
        """The database is down: Redis decides for a while, and the database is told later."""
        if self._backing.now_ms() - session.checked_ms > STALE_FOR_MS:
            raise DatabaseUnavailable(
                "the database can't be reached, and the session was checked too long ago"
            )
        # Also by those who come second: the first may have died before it could.
        await self._backing.pending.put(
            PendingRotation(
                presented.user_id,
                presented.part,
                session.version,
                presented.hash,
                successor.hash,
                answer.successor,
                answer.rotated_ms,
            )
        )
        return answer_with(self._backing, session, successor, first=answer.turn is Turn.ROTATED)

    async def _mismatch(
        self, presented: RefreshToken, answer: Presented, now_ms: int
    ) -> Rotated | _Again | None:
        """Redis does not know the token: see whether the database does, and whether Redis was right."""
        if not was_issued(presented, self._backing.keyring):
            return None
        await self._backing.pending.settle()
        row = await self._read(presented, now_ms)
        if row is None or row.has_ended(now_ms, used_ms=answer.last_used_ms):
            await self._backing.copies.revoke(presented.user_id, [presented.part])
            return None
        if row.token_hash not in (answer.current, b"") and answer.session is not None:
            return await self._repaired(row, now_ms, answer)
        return await self._refuse(presented, now_ms)

    async def _repaired(self, row: Row | None, now_ms: int, answer: Presented) -> _Again | None:
        """Make Redis say what the database says, unless somebody was quicker; then it is asked again."""
        if row is None or row.has_ended(now_ms, used_ms=answer.last_used_ms):
            return None
        instead_of = None if answer.session is None else (answer.session.version, answer.current)
        filled = await self._backing.copies.fill(
            row, now_ms=now_ms, last_used_ms=0, checked_ms=now_ms, instead_of=instead_of
        )
        return None if isinstance(filled, Ended) else _AGAIN

    # -- without Redis, or where it can't decide -----------------------------------------------------------------

    async def _by_record(
        self, presented: RefreshToken, successor: RefreshToken, sealed: bytes
    ) -> Rotated | None:
        """The database alone, with the row locked."""
        backing = self._backing
        user_id, part = presented.user_id, presented.part
        now_ms = backing.now_ms()
        try:
            async with backing.database.begin() as connection:
                row = await read_row(connection, user_id, part, now_ms=now_ms, lock=True)
                now_ms = max(now_ms, backing.now_ms())
                if row is None or row.has_ended(now_ms):
                    return None
                if backing.pending.has_ended(user_id, part, row.facts.created_ms):
                    return None
                if row.token_hash == presented.hash:
                    await replace_token(
                        connection,
                        user_id,
                        part,
                        old=presented.hash,
                        new=successor.hash,
                        successor=sealed,
                        rotated_ms=now_ms,
                    )
                    await note_rotation(backing, connection, user_id, part)
                    row = await read_row(connection, user_id, part, now_ms=now_ms)
                    known = successor
                else:
                    known = self._in_grace(presented, row, now_ms)
        except DatabaseUnavailable:
            backing.database_failed()
            raise
        if known is None or row is None:
            return await self._refuse(presented, now_ms)
        session = row.session(last_used_ms=now_ms, checked_ms=now_ms)
        return answer_with(backing, session, known, first=known is successor)

    async def _refuse(self, presented: RefreshToken, now_ms: int) -> None:
        """A token that is not good. End its session if it was one once: confirmed with the row locked."""
        backing = self._backing
        if not was_issued(presented, backing.keyring):
            return
        user_id, part = presented.user_id, presented.part
        try:
            async with backing.database.begin() as connection:
                row = await read_row(connection, user_id, part, now_ms=now_ms, lock=True)
                now_ms = max(now_ms, backing.now_ms())
                if row is None or row.has_ended(now_ms) or self._is_good(presented, row, now_ms):
                    return
                facts = row.facts
                ended = await self._endings.end_in(connection, user_id, [part], Reason.REUSE_DETECTED, now_ms)
                await backing.audit(
                    connection,
                    stream=account_stream(user_id),
                    action="session.reuse_detected",
                    body={"session": part},
                    private={"ip": facts.ip, "user_agent": facts.user_agent},
                    subject=user_id,
                )
        except DatabaseUnavailable:
            backing.database_failed()
            raise
        await self._endings.after(user_id, ended, Reason.REUSE_DETECTED)
        backing.emit(SessionReuseDetected(presented.session_id, user_id, facts.device, facts.ip))

    def _is_good(self, presented: RefreshToken, row: Row, now_ms: int) -> bool:
        """Whether a token is good after all, or was replaced so lately that nobody needs to have stolen it."""
        if row.token_hash == presented.hash:
            return True
        return row.previous_hash == presented.hash and now_ms - row.rotated_ms <= self._grace_ms

    def _in_grace(self, presented: RefreshToken, row: Row, now_ms: int) -> RefreshToken | None:
        if not self._is_good(presented, row, now_ms) or row.successor is None:
            return None
        return open_successor(presented, row.successor)

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _read(self, presented: RefreshToken, now_ms: int) -> Row | None:
        try:
            async with self._backing.database.read() as connection:
                return await read_row(connection, presented.user_id, presented.part, now_ms=now_ms)
        except DatabaseError:
            self._backing.database_failed()
            raise


async def note_rotation(backing: Backing, connection: AsyncConnection, user_id: str, part: str) -> None:
    """Append a rotation to the audit log, in the caller's transaction."""
    await backing.audit(
        connection,
        stream=account_stream(user_id),
        action="session.rotated",
        body={"session": part},
    )


def answer_with(backing: Backing, session: Session, refresh: RefreshToken, *, first: bool) -> Rotated:
    """The answer with a pair of tokens. Whoever is `first` to get this refresh token tells of it."""
    if first:
        backing.emit(SessionRotated(session.session_id, session.user_id))
    return Rotated(session, backing.tokens(session, refresh))
