"""Administration: suspending, restoring and deleting an account. Who did it, and why, is in the audit log."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.backing import Backing, Lost
from counterseal.accounts.events import UserDeleted, UserRestored, UserSuspended
from counterseal.accounts.refused import STATUS_CONFLICT, USER_UNKNOWN, Refused
from counterseal.accounts.user import Status
from counterseal.database.tables import (
    one_time_tokens,
    totp_backup_codes,
    totp_configs,
    totp_exemptions,
    users,
)
from counterseal.sessions.session import Reason, Revocation

_SECRETS: Final = (one_time_tokens, totp_backup_codes, totp_configs, totp_exemptions)


class Administration:
    """What is done to an account from outside. Whether somebody may do it, the caller has to know."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def suspend(self, user_id: str, *, by: str, why: str) -> Revocation | Refused:
        """See `Accounts.suspend`."""
        now = self._backing.now()
        administrator = select(users.c.id).where(users.c.id == by).scalar_subquery()
        outcome = await self._end(
            user_id,
            (Status.ACTIVE,),
            {"status": Status.SUSPENDED, "suspended_at": now, "suspended_by": administrator},
            reason=Reason.SUSPENDED,
            action="admin.user_suspended",
            by=by,
            why=why,
        )
        if not isinstance(outcome, Refused):
            self._backing.events.emit(UserSuspended(user_id))
        return outcome

    async def restore(self, user_id: str, *, by: str, why: str) -> Refused | None:
        """See `Accounts.restore`."""
        values = {"status": Status.ACTIVE, "suspended_at": None, "suspended_by": None}
        try:
            async with self._backing.database.begin() as connection:
                await self._change(
                    connection, user_id, (Status.SUSPENDED,), values, "admin.user_restored", by=by, why=why
                )
        except Lost as lost:
            return lost.refused
        await self._backing.forget_profile(user_id)
        self._backing.events.emit(UserRestored(user_id))
        return None

    async def delete(self, user_id: str, *, by: str, why: str) -> Revocation | Refused:
        """See `Accounts.delete`."""
        outcome = await self._end(
            user_id,
            (Status.ACTIVE, Status.SUSPENDED),
            {"status": Status.DELETED, "password_hash": None},
            reason=Reason.ADMIN,
            action="admin.user_deleted",
            by=by,
            why=why,
        )
        if not isinstance(outcome, Refused):
            self._backing.events.emit(UserDeleted(user_id))
        return outcome

    async def _end(
        self,
        user_id: str,
        before: tuple[Status, ...],
        values: dict[str, Any],
        *,
        reason: Reason,
        action: str,
        by: str,
        why: str,
    ) -> Revocation | Refused:
        """Change the status and end every session, in one transaction."""
        backing = self._backing

        async def change(connection: AsyncConnection) -> None:
            await self._change(connection, user_id, before, values, action, by=by, why=why)
            if values["status"] is Status.DELETED:
                for table in _SECRETS:
                    await connection.execute(delete(table).where(table.c.user_id == user_id))

        try:
            revocation = await backing.sessions.revoke_all(user_id, reason=reason, also=change)
        except Lost as lost:
            return lost.refused
        await backing.forget_profile(user_id)
        return revocation

    async def _change(
        self,
        connection: AsyncConnection,
        user_id: str,
        before: tuple[Status, ...],
        values: dict[str, Any],
        action: str,
        *,
        by: str,
        why: str,
    ) -> None:
        changed = await connection.execute(
            update(users)
            .where(users.c.id == user_id, users.c.status.in_(before))
            .values(**values, updated_at=self._backing.now(), version=users.c.version + 1)
            .returning(users.c.id)
        )
        if changed.one_or_none() is None:
            raise Lost(await _misfit(connection, user_id, before) or STATUS_CONFLICT)
        await self._backing.note(
            connection, action, user_id=user_id, body={"by": by}, private={"free_text": why or None}
        )


async def _misfit(connection: AsyncConnection, user_id: str, before: tuple[Status, ...]) -> Refused | None:
    """Why an account can't be changed from one of these states; None when it can."""
    query = select(users.c.status).where(users.c.id == user_id)
    status = (await connection.execute(query)).scalar_one_or_none()
    if status is None:
        return USER_UNKNOWN
    return None if status in before else STATUS_CONFLICT
