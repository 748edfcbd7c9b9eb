"""Rows: the statements on `user_sessions` and what hangs on it. Each runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.database.columns import Ts
from counterseal.database.tables import (
    global_epochs,
    session_step_ups,
    user_sessions,
    users,
)
from counterseal.sessions.device import device_name
from counterseal.sessions.row import Row
from counterseal.sessions.session import Context, Facts, Profile, Reason, StepUp, instant

EVERYBODY: Final = "sessions"
"""The row of `global_epochs` that ends all sessions."""

STEP_UP_MS: Final = 300_000
"""How long a second factor is good for an action."""

_s = user_sessions.c
_COLUMNS: Final = (
    _s.user_id,
    _s.session_id,
    _s.state,
    _s.version,
    _s.rt_hash,
    _s.rt_prev_hash,
    _s.rt_rotated_at,
    _s.rt_successor,
    _s.last_used_at,
    _s.profile,
    _s.amr,
    _s.authenticated_at,
    _s.created_at,
    _s.absolute_expires_at,
    _s.idle_seconds,
    _s.epoch,
    _s.global_epoch,
    _s.device_label,
    _s.user_agent,
    _s.ip,
)
# Literals, for an index of the rows of one state is of use to a statement that names it.
ACTIVE: Final = _s.state == literal_column("'active'")
REVOKED: Final = _s.state == literal_column("'revoked'")
GLOBAL_EPOCH: Final = func.coalesce(
    select(global_epochs.c.value).where(global_epochs.c.name == EVERYBODY).scalar_subquery(), 0
)
_ROWS: Final = select(
    *_COLUMNS,
    users.c.status.label("user_status"),
    users.c.session_epoch.label("user_epoch"),
    GLOBAL_EPOCH.label("current_global_epoch"),
).join_from(user_sessions, users, users.c.id == _s.user_id)


# Statements that every log-in and every refresh runs are built once: building one takes longer than SQLite does.
_MINE: Final = and_(_s.user_id == bindparam("of_user"), _s.session_id == bindparam("of_part"))
_ROW: Final = _ROWS.where(_MINE)
_ROW_LOCKED: Final = _ROW.with_for_update(of=user_sessions)
_ROWS_OF: Final = _ROWS.where(_s.user_id == bindparam("of_user"), ACTIVE).order_by(
    _s.last_used_at, _s.created_at
)
_up = session_step_ups.c
_STEP_UPS: Final = (
    select(_up.context, _up.request_id, _up.method, _up.verified_at)
    .where(
        _up.user_id == bindparam("of_user"),
        _up.session_id == bindparam("of_part"),
        _up.consumed_at.is_(None),
        _up.verified_at > bindparam("since", type_=Ts()),
    )
    .order_by(_up.verified_at)
)
# Of a user who is not active there is no epoch, and nothing is as great as none.
_ACTIVE_EPOCH: Final = (
    select(users.c.session_epoch)
    .where(users.c.id == bindparam("of_user"), users.c.status == "active")
    .scalar_subquery()
)
_REPLACE_TOKEN: Final = (
    update(user_sessions)
    .where(
        _MINE,
        ACTIVE,
        _s.rt_hash == bindparam("old"),
        _s.global_epoch >= GLOBAL_EPOCH,
        _s.epoch >= _ACTIVE_EPOCH,
    )
    .values(
        rt_hash=bindparam("new"),
        rt_prev_hash=bindparam("old"),
        rt_rotated_at=bindparam("rotated", type_=Ts()),
        rt_successor=bindparam("successor"),
        last_used_at=bindparam("rotated", type_=Ts()),
        version=_s.version + 1,
    )
    .returning(_s.version)
)


def _is(user_id: str, part: str) -> Any:
    return and_(_s.user_id == user_id, _s.session_id == part)


async def read_row(
    connection: AsyncConnection, user_id: str, part: str, *, now_ms: int, lock: bool = False
) -> Row | None:
    """A session's row, with the step-ups that are still good; None when there is none. Two statements.

    With `lock` nobody changes it before the transaction ends.
    """
    statement = _ROW_LOCKED if lock else _ROW
    found = (await connection.execute(statement, {"of_user": user_id, "of_part": part})).first()
    if found is None:
        return None
    return _row(found, await read_step_ups(connection, user_id, part, now_ms=now_ms))


async def has_row(connection: AsyncConnection, user_id: str, part: str) -> bool:
    """Whether a session is on record, ended or not."""
    return (await connection.execute(select(_s.state).where(_is(user_id, part)))).first() is not None


async def read_step_ups(
    connection: AsyncConnection, user_id: str, part: str, *, now_ms: int
) -> tuple[StepUp, ...]:
    """The second factors that were shown in a session and are neither used up nor too old."""
    found = await connection.execute(
        _STEP_UPS, {"of_user": user_id, "of_part": part, "since": instant(now_ms - STEP_UP_MS)}
    )
    return tuple(
        StepUp(Context(record.context), record.request_id, record.method, milliseconds(record.verified_at))
        for record in found
    )


async def hold_user(connection: AsyncConnection, user_id: str) -> None:
    """Lock a user, before any of the user's sessions is locked. One statement."""
    await connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update(key_share=True))


async def lock_sessions(connection: AsyncConnection, *user_ids: str) -> None:
    """Lock users, then their active sessions. Two statements; none on SQLite, where nobody else writes.

    Everybody locks in this order, by code point, and the audit log last; else two who wait for each other would both
    fail.
    """
    if connection.dialect.name == "sqlite":
        return
    user, owner, part = users.c.id, _s.user_id, _s.session_id
    await connection.execute(
        select(user).where(user.in_(user_ids)).order_by(user.collate("C")).with_for_update(key_share=True)
    )
    await connection.execute(
        select(part)
        .where(owner.in_(user_ids), ACTIVE)
        .order_by(owner.collate("C"), part.collate("C"))
        .with_for_update()
    )


async def read_rows_of(connection: AsyncConnection, user_id: str) -> list[Row]:
    """The active rows of a user, least recently used first; some of them may have ended by time. No step-ups."""
    found = await connection.execute(_ROWS_OF, {"of_user": user_id})
    return [_row(record, ()) for record in found]


async def end_rows(
    connection: AsyncConnection,
    user_id: str,
    *,
    parts: Collection[str] | None = None,
    but: str | None = None,
    created_until_ms: int | None = None,
    reason: Reason,
    now_ms: int,
) -> list[str]:
    """Revoke active sessions of a user: these parts, or all but one; the parts that were ended. One statement.

    Their step-ups are gone as well.
    """
    where = [_s.user_id == user_id, ACTIVE]
    if parts is not None:
        where.append(_s.session_id.in_(parts))
    if but is not None:
        where.append(_s.session_id != but)
    if created_until_ms is not None:
        where.append(_s.created_at <= instant(created_until_ms))
    if (parts is None or len(parts) > 1) and connection.dialect.name != "sqlite":
        # Locked in order first: an update takes rows as they come.
        in_order = select(_s.session_id).where(*where).order_by(_s.session_id.collate("C")).with_for_update()
        where = [
            _s.user_id == user_id,
            ACTIVE,
            _s.session_id.in_(select(in_order.cte("in_order").c.session_id)),
        ]
    ended = await connection.execute(
        update(user_sessions)
        .where(*where)
        .values(
            state="revoked",
            revoked_at=instant(now_ms),
            revoke_reason=reason.value,
            version=_s.version + 1,
        )
        .returning(_s.session_id)
    )
    gone = sorted(ended.scalars())
    if gone:
        shown = session_step_ups.c
        await connection.execute(
            delete(session_step_ups).where(shown.user_id == user_id, shown.session_id.in_(gone))
        )
    return gone


async def raise_epoch(
    connection: AsyncConnection, user_id: str, *, at_least: int | None = None
) -> int | None:
    """Raise a user's epoch by one, or to `at_least`; what it is then. None without such a user. Locks the user."""
    mine = users.c.session_epoch
    value = mine + 1 if at_least is None else func.max(mine, at_least)
    if at_least is not None and connection.dialect.name == "postgresql":
        value = func.greatest(mine, at_least)
    raised = await connection.execute(
        update(users).where(users.c.id == user_id).values(session_epoch=value).returning(mine)
    )
    return raised.scalar_one_or_none()


async def raise_everybody(connection: AsyncConnection) -> int:
    """Raise the epoch of all sessions by one; what it is then."""
    make = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    raised = await connection.execute(
        make(global_epochs)
        .values(name=EVERYBODY, value=1)
        .on_conflict_do_update(
            index_elements=[global_epochs.c.name], set_={"value": global_epochs.c.value + 1}
        )
        .returning(global_epochs.c.value)
    )
    return raised.scalar_one()


async def read_everybody(connection: AsyncConnection) -> int:
    """The epoch of all sessions."""
    return (await connection.execute(select(GLOBAL_EPOCH))).scalar_one()


async def replace_token(
    connection: AsyncConnection,
    user_id: str,
    part: str,
    *,
    old: bytes,
    new: bytes,
    successor: bytes | None,
    rotated_ms: int,
) -> int | None:
    """Compare and set: the version after `new` took the place of `old`; None when nothing was changed.

    Nothing is changed of a session that has ended, or whose user is not active.
    """
    replaced = await connection.execute(
        _REPLACE_TOKEN,
        {
            "of_user": user_id,
            "of_part": part,
            "old": old,
            "new": new,
            "rotated": instant(rotated_ms),
            "successor": successor,
        },
    )
    return replaced.scalar_one_or_none()


async def catch_up_token(
    connection: AsyncConnection,
    user_id: str,
    part: str,
    *,
    version: int,
    old: bytes,
    new: bytes,
    successor: bytes | None,
    rotated_ms: int,
) -> bool:
    """Write a rotation that was accepted while the database was down, unless the row is as new; whether it was.

    A row that still has the token is not: its session was renewed since.
    """
    written = await connection.execute(
        update(user_sessions)
        .where(_is(user_id, part), ACTIVE, or_(_s.version < version, _s.rt_hash == old))
        .values(
            rt_hash=new,
            rt_prev_hash=old,
            rt_rotated_at=instant(rotated_ms),
            rt_successor=successor,
            last_used_at=instant(rotated_ms),
            version=case((_s.version < version, version), else_=_s.version + 1),
        )
    )
    return written.rowcount > 0


async def renew_row(
    connection: AsyncConnection,
    user_id: str,
    part: str,
    *,
    amr: Sequence[str] | None,
    user_agent: str | None,
    ip: str | None,
) -> None:
    """Note what is known anew of an active session, and raise its version; its tokens stay. None leaves as it is."""
    values: dict[str, Any] = {"version": _s.version + 1}
    if amr is not None:
        values["amr"] = list(amr)
    if user_agent is not None:
        values |= {"user_agent": user_agent, "device_label": device_name(user_agent)}
    if ip is not None:
        values["ip"] = ip
    await connection.execute(update(user_sessions).where(_is(user_id, part), ACTIVE).values(**values))


async def renew_log_in(
    connection: AsyncConnection, user_id: str, part: str, *, amr: Sequence[str], authenticated_ms: int
) -> None:
    """Note that the user has logged in anew within a session."""
    await connection.execute(
        update(user_sessions)
        .where(_is(user_id, part))
        .values(amr=list(amr), authenticated_at=instant(authenticated_ms))
    )


async def note_uses(connection: AsyncConnection, uses: Collection[tuple[str, str, int]]) -> None:
    """Note when sessions were used last: user, part and time of each. Never sets a time back. One statement for all."""
    await connection.execute(
        _NOTE_USE,
        [
            {"of_user": user_id, "of_part": part, "used_at": instant(used_ms)}
            for user_id, part, used_ms in sorted(uses)
        ],
    )


_NOTE_USE: Final = (
    update(user_sessions)
    .where(
        _s.user_id == bindparam("of_user"),
        _s.session_id == bindparam("of_part"),
        ACTIVE,
        _s.last_used_at < bindparam("used_at", type_=Ts()),
    )
    .values(last_used_at=bindparam("used_at", type_=Ts()))
)


def milliseconds(moment: datetime | None) -> int:
    """A moment in milliseconds since 1970; 0 for none."""
    if moment is None:
        return 0
    return round(moment.timestamp() * 1000)


def _row(record: Any, step_ups: tuple[StepUp, ...]) -> Row:
    return Row(
        user_id=record.user_id,
        part=record.session_id,
        revoked=record.state != "active",
        version=record.version,
        token_hash=record.rt_hash,
        previous_hash=record.rt_prev_hash,
        rotated_ms=milliseconds(record.rt_rotated_at),
        successor=record.rt_successor,
        last_used_ms=milliseconds(record.last_used_at),
        facts=Facts(
            profile=Profile(record.profile),
            amr=tuple(record.amr),
            authenticated_ms=milliseconds(record.authenticated_at),
            created_ms=milliseconds(record.created_at),
            absolute_ms=milliseconds(record.absolute_expires_at),
            idle_ms=record.idle_seconds * 1000,
            epoch=record.epoch,
            global_epoch=record.global_epoch,
            device=record.device_label or "",
            user_agent=record.user_agent,
            ip=record.ip,
        ),
        user_active=record.user_status == "active",
        user_epoch=record.user_epoch,
        current_global_epoch=record.current_global_epoch,
        step_ups=step_ups,
    )
