"""Expiry: what has ended by time is marked as ended, and removed a week later.

In small transactions, and with a pause after each as long as it took: whoever logs in meanwhile need not wait for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import bindparam, delete, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import DatabaseUnavailable
from counterseal.database.columns import Ts
from counterseal.database.tables import session_step_ups, user_sessions, users
from counterseal.sessions.backing import AuditDraft, Backing, account_stream
from counterseal.sessions.rows import ACTIVE, REVOKED, read_everybody
from counterseal.sessions.session import Reason, instant

KEPT: Final = timedelta(days=7)
"""How long an ended session stays on record."""

_AT_ONCE: Final = 50
_LONGEST_PAUSE_S: Final = 0.1

_s = user_sessions.c
_KEY: Final = tuple_(_s.user_id, _s.session_id)
_DUE: Final = select(_s.user_id, _s.session_id).where(ACTIVE).with_for_update(skip_locked=True)

_up = session_step_ups.c
# Once for each session, which is found by its key: in a list of keys SQLite would look for every session that there is.
_MARK: Final = (
    update(user_sessions)
    .where(_s.user_id == bindparam("of_user"), _s.session_id == bindparam("of_part"))
    .values(
        state="revoked",
        revoked_at=bindparam("now", type_=Ts()),
        revoke_reason=Reason.EXPIRED.value,
        version=_s.version + 1,
    )
)
_FORGET_STEP_UPS: Final = delete(session_step_ups).where(
    _up.user_id == bindparam("of_user"), _up.session_id == bindparam("of_part")
)

_Key = tuple[str, str]


class Expiry:
    """Cleans up. Several processes may do it at once: what one has locked the others leave to it."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._epoch = 0
        """The epoch of everybody that was looked for last."""
        self._seen: _Key | None = ("", "")
        """How far the sessions of former epochs are marked; None when all are. There will be no new ones."""

    async def clean(self, limit: int) -> int:
        """Mark at most `limit` sessions, and remove at most as many; how many were marked."""
        if limit < 1:
            raise ValueError("limit: expected a number of at least 1")
        try:
            marked = await _by_and_by(limit, self._mark)
            await _by_and_by(limit, self._remove)
        except DatabaseUnavailable:
            self._backing.database_failed()
            raise
        return marked

    async def _mark(self, limit: int) -> int:
        backing = self._backing
        now_ms = backing.now_ms()
        seen = self._seen
        try:
            async with backing.database.begin() as connection:
                due = await self._find(connection, now_ms, limit)
                due = await _of_free_users(connection, due)
                if due:
                    await _end(connection, due, now_ms)
                    await backing.audit_many(connection, _drafts(due))
        except BaseException:
            self._seen = seen
            raise
        return len(due)

    async def _remove(self, limit: int) -> int:
        chosen = (
            select(_s.user_id, _s.session_id)
            .where(
                REVOKED,
                _s.revoked_at < instant(self._backing.now_ms()) - KEPT,
            )
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._backing.database.begin() as connection:
            return (await connection.execute(delete(user_sessions).where(_KEY.in_(chosen)))).rowcount

    async def _find(self, connection: AsyncConnection, now_ms: int, limit: int) -> list[_Key]:
        """Active sessions that have ended by time, locked; those that somebody else has locked are left."""
        now = instant(now_ms)
        due = dict.fromkeys(await _keys(connection, _DUE.where(_s.absolute_expires_at <= now).limit(limit)))
        if len(due) < limit:
            due |= dict.fromkeys(await self._of_former_epochs(connection, limit - len(due)))
        above = -1
        # Each database adds seconds to a time in its own way, so that is done here.
        while len(due) < limit and (seconds := await _next_idle(connection, above)) is not None:
            idle = _DUE.where(_s.idle_seconds == seconds, _s.last_used_at <= _earlier(now, seconds))
            due |= dict.fromkeys(await _keys(connection, idle.limit(limit - len(due))))
            above = seconds
        return list(due)

    async def _of_former_epochs(self, connection: AsyncConnection, limit: int) -> list[_Key]:
        """Those that were ended with everybody's. No index is kept for it: each is looked at once.

        One that somebody had locked then is marked when its own time is over.
        """
        epoch = await read_everybody(connection)
        if epoch > self._epoch:
            self._epoch, self._seen = epoch, ("", "")
        if not epoch or self._seen is None:
            return []
        found = await _keys(
            connection,
            _DUE.where(_s.global_epoch < epoch, tuple_(*self._seen) < _KEY)
            .order_by(_s.user_id, _s.session_id)
            .limit(limit),
        )
        self._seen = found[-1] if len(found) == limit else None
        return found


async def _by_and_by(limit: int, step: Callable[[int], Awaitable[int]]) -> int:
    """Do it in steps, until nothing is left to do; how many were done."""
    done = 0
    clock = asyncio.get_running_loop().time
    while done < limit:
        began = clock()
        some = await step(min(_AT_ONCE, limit - done))
        if not some:
            break
        done += some
        await asyncio.sleep(min(clock() - began, _LONGEST_PAUSE_S))
    return done


async def _keys(connection: AsyncConnection, statement: Any) -> list[_Key]:
    return [(record.user_id, record.session_id) for record in await connection.execute(statement)]


async def _next_idle(connection: AsyncConnection, above: int) -> int | None:
    """The next greater number of seconds that an active session may go unused."""
    found = select(func.min(_s.idle_seconds)).where(ACTIVE, _s.idle_seconds > above)
    return (await connection.execute(found)).scalar_one()


def _earlier(now: datetime, seconds: int) -> datetime:
    return now - timedelta(seconds=seconds)


async def _of_free_users(connection: AsyncConnection, due: Sequence[_Key]) -> list[_Key]:
    """Those whose users nobody else has locked, and these locked: who has a user writes to the user's audit stream."""
    if connection.dialect.name == "sqlite":
        return list(due)  # nobody else writes
    wanted = select(users.c.id).where(users.c.id.in_({user_id for user_id, _ in due}))
    free = await connection.execute(wanted.with_for_update(key_share=True, skip_locked=True))
    ids = set(free.scalars())
    return [key for key in due if key[0] in ids]


async def _end(connection: AsyncConnection, due: Sequence[_Key], now_ms: int) -> None:
    given = [{"of_user": user_id, "of_part": part} for user_id, part in due]
    now = instant(now_ms)
    await connection.execute(_MARK, [one | {"now": now} for one in given])
    await connection.execute(_FORGET_STEP_UPS, given)


def _drafts(due: Sequence[_Key]) -> list[AuditDraft]:
    by_user: dict[str, list[str]] = {}
    for user_id, part in sorted(due):
        by_user.setdefault(user_id, []).append(part)
    return [
        {
            "stream": account_stream(user_id),
            "action": "session.revoked",
            "body": {"sessions": [*parts], "reason": Reason.EXPIRED.value},
        }
        for user_id, parts in by_user.items()
    ]
