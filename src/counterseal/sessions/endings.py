"""Endings: one session, the others of a user, all of a user, everybody's.

Redis gets its tombstones first, so that no reader is told of a session that the database has ended; then the database
is told, which has the last word; then whoever listens. Every step may be repeated. What Redis could not be told is in
the outbox, in the same transaction, and is told when it is back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.codec import JsonValue, to_text
from counterseal.core.errors import DatabaseUnavailable, StoreError, StoreUnavailable
from counterseal.database.outbox import OutboxJob, add_job
from counterseal.sessions.backing import Also, Backing, account_stream
from counterseal.sessions.copies import Which
from counterseal.sessions.events import SessionRevoked
from counterseal.sessions.identity import session_id_of
from counterseal.sessions.pending import (
    Entry,
    PendingRevocation,
    PendingRevocations,
)
from counterseal.sessions.rows import (
    catch_up_token,
    end_rows,
    has_row,
    lock_sessions,
    raise_epoch,
    raise_everybody,
)
from counterseal.sessions.session import Reason, Revocation

TOMBSTONE_JOB: Final = "session.tombstone"
EPOCH_JOB: Final = "session.epoch"
EVERYBODY_JOB: Final = "session.everybody"


class _Tombstones(msgspec.Struct, frozen=True):
    user_id: str
    parts: list[str]


class _Epoch(msgspec.Struct, frozen=True):
    user_id: str
    epoch: int
    parts: list[str]


class _Everybody(msgspec.Struct, frozen=True):
    epoch: int


class Endings:
    """Ends sessions for the service, and for whatever finds one that has to end."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    # -- one -----------------------------------------------------------------------------------------------------

    async def revoke(self, user_id: str, part: str, reason: Reason) -> Revocation:
        """End one session. Raises when neither Redis nor the database could be told for good."""
        backing = self._backing
        at_ms = backing.now_ms()
        had_copy = await self._tombstones(user_id, [part])
        try:
            async with backing.database.begin() as connection:
                ended = await self._end(connection, user_id, reason, at_ms, parts=[part])
                if ended and had_copy is None:
                    await self._leave_tombstones(connection, user_id, ended)
                is_stranger = had_copy == 0 and not ended and not await has_row(connection, user_id, part)
        except DatabaseUnavailable:
            backing.database_failed()
            if had_copy is None:
                raise
            await backing.pending.put(PendingRevocation(user_id, part, reason, at_ms))
            await self._tell(user_id, [part], reason)
            return Revocation(had_copy, pending=True)
        if ended and had_copy is None:
            # Redis may be back, and believed, since it was asked; if it is not, nothing is believed before a replay.
            await self._tombstones(user_id, ended)
        if is_stranger:
            await self._forget_stranger(user_id, part)
        await self._tell(user_id, ended, reason)
        return Revocation(len(ended))

    async def end_in(
        self, connection: AsyncConnection, user_id: str, parts: Sequence[str], reason: Reason, at_ms: int
    ) -> list[str]:
        """End sessions in a transaction of the caller, who calls `after` once it is committed."""
        ended = await self._end(connection, user_id, reason, at_ms, parts=parts)
        if ended:
            await self._leave_tombstones(connection, user_id, ended)
        return ended

    async def after(self, user_id: str, parts: Sequence[str], reason: Reason, *, laid: bool = False) -> None:
        """What follows the commit of `end_in`: tombstones at once, unless they are `laid`, and everybody is told."""
        if parts:
            if not laid:
                await self._tombstones(user_id, parts)
            await self._tell(user_id, parts, reason)

    # -- several -------------------------------------------------------------------------------------------------

    async def revoke_others(self, user_id: str, keep: str, reason: Reason, also: Also | None) -> Revocation:
        """End all sessions of a user but one."""
        backing = self._backing
        at_ms = backing.now_ms()
        told = await self._tombstones_of(user_id, keep=keep) if also is None else None
        try:
            async with backing.database.begin() as connection:
                if also is not None:
                    await lock_sessions(connection, user_id)
                    await also(connection)
                ended = await self._end(connection, user_id, reason, at_ms, but=keep)
                if ended:
                    await self._leave_tombstones(connection, user_id, ended)
        except DatabaseUnavailable:
            backing.database_failed()
            if told is None:
                raise
            _, ended_here = await backing.copies.revoke_user(user_id, keep=keep, barrier_ms=at_ms)
            await backing.pending.put(PendingRevocations(user_id, reason, at_ms, keep=keep))
            await self._tell(user_id, None, reason)
            return Revocation(told[1] + ended_here, pending=True)
        await self.after(user_id, ended, reason)
        return Revocation(len(ended))

    async def revoke_all(self, user_id: str, reason: Reason, also: Also | None) -> Revocation:
        """End all sessions of a user and raise the user's epoch, so that what has no copy anywhere has ended too."""
        backing = self._backing
        at_ms = backing.now_ms()
        told = await self._tombstones_of(user_id) if also is None else None
        try:
            async with backing.database.begin() as connection:
                epoch = await raise_epoch(connection, user_id)
                if also is not None:
                    await lock_sessions(connection, user_id)
                    await also(connection)
                ended = await self._end(connection, user_id, reason, at_ms)
                if epoch is not None:
                    await self._leave_epoch(connection, user_id, epoch, ended)
        except DatabaseUnavailable:
            backing.database_failed()
            if told is None:
                raise
            above, ended_here = await backing.copies.revoke_user(user_id, Which.ABOVE, barrier_ms=at_ms)
            await backing.pending.put(PendingRevocations(user_id, reason, at_ms, epoch=above))
            await self._tell(user_id, None, reason)
            return Revocation(told[1] + ended_here, pending=True)
        if epoch is not None:
            with suppress(StoreUnavailable):  # the outbox has it
                await backing.copies.revoke_user(user_id, Which.FORMER, at_least=epoch)
                if ended:
                    await backing.copies.revoke(user_id, ended)
            backing.wake()
        await self._tell(user_id, ended, reason)
        return Revocation(len(ended))

    async def adopt_epoch(self, user_id: str, epoch: int) -> None:
        """Raise the user's epoch in the database, where it is `epoch`, to what it is in Redis.

        There it may stay greater: of a revocation that Redis took and then could not keep for the database.
        """
        backing = self._backing
        known, _ = await backing.copies.revoke_user(user_id, Which.FORMER, at_least=epoch)
        if known > epoch:
            async with backing.database.begin() as connection:
                await raise_epoch(connection, user_id, at_least=known)

    async def revoke_everybody(self) -> None:
        """End all sessions of everybody."""
        backing = self._backing
        async with backing.database.begin() as connection:
            epoch = await raise_everybody(connection)
            await backing.audit(
                connection,
                stream="system",
                action="session.revoked",
                body={"everybody": True, "epoch": epoch, "reason": Reason.ADMIN.value},
            )
            await add_job(
                connection,
                EVERYBODY_JOB,
                {"epoch": epoch},
                now_ms=backing.now_ms(),
            )
        with suppress(StoreUnavailable):  # the outbox has it
            await backing.copies.raise_global(epoch, backing.now_ms())
        backing.wake()
        with suppress(StoreError):
            await backing.copies.tell(to_text({"everybody": True}).decode())

    # -- what was left for later ---------------------------------------------------------------------------------

    async def relay_tombstones(self, job: OutboxJob) -> None:
        """The job of the outbox that leaves tombstones."""
        told = msgspec.convert(job.payload, _Tombstones)
        await self._backing.copies.revoke(told.user_id, told.parts)

    async def relay_epoch(self, job: OutboxJob) -> None:
        """The job of the outbox that raises a user's epoch and leaves tombstones."""
        told = msgspec.convert(job.payload, _Epoch)
        await self._backing.copies.revoke_user(told.user_id, Which.FORMER, at_least=told.epoch)
        if told.parts:
            await self._backing.copies.revoke(told.user_id, told.parts)

    async def relay_everybody(self, job: OutboxJob) -> None:
        """The job of the outbox that raises the epoch of all sessions."""
        told = msgspec.convert(job.payload, _Everybody)
        await self._backing.copies.raise_global(told.epoch, self._backing.now_ms())

    async def apply(self, entries: Sequence[Entry]) -> None:
        """Tell the database what was accepted while it was down. One transaction.

        What it ends gets its tombstone once more, by the outbox: Redis may have lost the first one meanwhile.
        """
        async with self._backing.database.begin() as connection:
            await lock_sessions(connection, *{entry.user_id for entry in entries})
            for entry in sorted(entries, key=lambda entry: (entry.user_id, entry.at_ms)):
                await self._apply(connection, entry)
        self._backing.wake()

    async def _apply(self, connection: AsyncConnection, entry: Entry) -> None:
        backing = self._backing
        if isinstance(entry, PendingRevocation):
            ended = await self._end(connection, entry.user_id, entry.reason, entry.at_ms, parts=[entry.part])
            if ended:
                await self._leave_tombstones(connection, entry.user_id, ended)
        elif isinstance(entry, PendingRevocations):
            if entry.epoch is not None:
                await raise_epoch(connection, entry.user_id, at_least=entry.epoch)
            ended = await self._end(
                connection,
                entry.user_id,
                entry.reason,
                entry.at_ms,
                but=entry.keep,
                created_until_ms=entry.at_ms,
            )
            if ended:
                await self._leave_tombstones(connection, entry.user_id, ended)
        elif await catch_up_token(
            connection,
            entry.user_id,
            entry.part,
            version=entry.version,
            old=entry.old,
            new=entry.new,
            successor=entry.successor,
            rotated_ms=entry.at_ms,
        ):
            await backing.audit(
                connection,
                stream=account_stream(entry.user_id),
                action="session.rotated",
                body={"session": entry.part, "pending": True},
            )

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _tombstones(self, user_id: str, parts: Sequence[str]) -> int | None:
        """How many had a copy; None when Redis does not answer."""
        try:
            return await self._backing.copies.revoke(user_id, parts)
        except StoreUnavailable:
            return None

    async def _tombstones_of(self, user_id: str, *, keep: str | None = None) -> tuple[int, int] | None:
        try:
            return await self._backing.copies.revoke_user(user_id, keep=keep)
        except StoreUnavailable:
            return None

    async def _forget_stranger(self, user_id: str, part: str) -> None:
        """Keep the tombstone of a session that nobody knows for a short while only: anybody may invent one."""
        with suppress(StoreUnavailable):
            await self._backing.copies.shorten(user_id, part)

    async def _end(
        self,
        connection: AsyncConnection,
        user_id: str,
        reason: Reason,
        at_ms: int,
        *,
        parts: Collection[str] | None = None,
        but: str | None = None,
        created_until_ms: int | None = None,
    ) -> list[str]:
        ended = await end_rows(
            connection,
            user_id,
            parts=parts,
            but=but,
            created_until_ms=created_until_ms,
            reason=reason,
            now_ms=at_ms,
        )
        if ended:
            await self._backing.audit(
                connection,
                stream=account_stream(user_id),
                action="session.evicted" if reason is Reason.EVICTED else "session.revoked",
                body={"sessions": [*ended], "reason": reason.value},
            )
        return ended

    async def _leave_tombstones(
        self, connection: AsyncConnection, user_id: str, parts: Sequence[str]
    ) -> None:
        await add_job(
            connection,
            TOMBSTONE_JOB,
            {"user_id": user_id, "parts": list(parts)},
            now_ms=self._backing.now_ms(),
        )

    async def _leave_epoch(
        self, connection: AsyncConnection, user_id: str, epoch: int, parts: Sequence[str]
    ) -> None:
        await add_job(
            connection,
            EPOCH_JOB,
            {"user_id": user_id, "epoch": epoch, "parts": list(parts)},
            now_ms=self._backing.now_ms(),
        )

    async def _tell(self, user_id: str, parts: Sequence[str] | None, reason: Reason) -> None:
        """Tell everybody. Nothing hangs on it: whoever does not hear of it asks."""
        backing = self._backing
        backing.wake()
        if parts is not None and not parts:
            return
        for part in parts or ():
            backing.emit(SessionRevoked(session_id_of(user_id, part), user_id, reason))
        ids: list[JsonValue] = [session_id_of(user_id, part) for part in parts or ()]
        with suppress(StoreError):
            await backing.copies.tell(
                to_text({"user_id": user_id, "session_ids": ids, "all": parts is None}).decode()
            )
