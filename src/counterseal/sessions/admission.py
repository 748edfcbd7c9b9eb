"""Admission: the statements of a log-in, for one user or for many at once. Each runs in the caller's transaction.

They are built once, and have the same text for however many users.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Text, and_, any_, bindparam, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from counterseal.database.columns import Ts, json_text
from counterseal.database.tables import domain_settings, user_sessions, users
from counterseal.sessions.lifetime import DomainPolicy
from counterseal.sessions.row import Row
from counterseal.sessions.rows import ACTIVE, GLOBAL_EPOCH
from counterseal.sessions.session import Profile, instant

_MOST_DEVICES: Final = 2000  # no statement answers more rows


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A user who may have no row yet."""

    user_id: str
    email: str
    full_name: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What a log-in has to know of its user, who is locked."""

    status: str
    epoch: int
    global_epoch: int
    policy: DomainPolicy


@dataclass(slots=True)
class Past:
    """What is on record of a user's sessions, ended ones too."""

    live: int
    """How many may be live: none of those that are is left out, but some may have ended by idling."""
    devices: list[tuple[str | None, str | None]]
    """User agents and addresses, those of live sessions first."""
    taken: bool
    """Whether one of the parts that were asked for is there."""


async def lock_users(
    connection: AsyncConnection, user_ids: Collection[str], *, wait: bool = True
) -> dict[str, Standing]:
    """Lock users in the order of their ids, by code point; those that are there. One statement.

    Without `wait` those that somebody else has locked are left out.
    """
    found = await connection.execute(_LOCK[connection.dialect.name, wait], _given(connection, user_ids))
    return {
        record.id: Standing(
            record.status,
            record.session_epoch,
            record.everybody,
            DomainPolicy(
                None if record.session_profile is None else Profile(record.session_profile),
                record.session_idle_minutes,
                record.session_absolute_minutes,
                record.max_sessions,
            ),
        )
        for record in found
    }


async def find_users(connection: AsyncConnection, user_ids: Collection[str]) -> set[str]:
    """Those who are there, locked or not. One statement."""
    found = await connection.execute(_FIND[connection.dialect.name], _given(connection, user_ids))
    return set(found.scalars())


async def insert_users(
    connection: AsyncConnection, newcomers: Collection[Newcomer], *, now_ms: int, lenient: bool = False
) -> set[str]:
    """Add users who are not there yet; who was added. One statement.

    Raises `Conflict` when an address belongs to somebody else. `lenient` leaves such a user out instead.
    """
    now = instant(now_ms)
    added = await connection.execute(
        _INSERT_USER[connection.dialect.name, lenient],
        [
            {
                "id": one.user_id,
                "email": one.email,
                "full_name": one.full_name,
                "domain": one.email.rpartition("@")[2],
                "created_at": now,
                "updated_at": now,
            }
            for one in sorted(newcomers, key=lambda one: one.user_id)
        ],
    )
    return set(added.scalars())


async def read_past(
    connection: AsyncConnection, user_ids: Collection[str], *, now_ms: int, part: str | None = None
) -> Mapping[str, Past]:
    """What is on record of each user, and whether that has a session with this part. One statement."""
    given = _given(connection, user_ids) | {"of_part": part, "now": instant(now_ms)}
    found = (await connection.execute(_PAST[connection.dialect.name], given)).all()
    past = {user_id: Past(0, [], taken=False) for user_id in user_ids}
    for record in found:
        one = past[record.user_id]
        one.live += record.live
        one.devices.append((record.user_agent, record.ip))
        one.taken |= record.taken > 0
    if len(found) == _MOST_DEVICES:  # there may be more
        for one in past.values():
            one.live = max(one.live, _MOST_DEVICES)
    return past


async def insert_rows(connection: AsyncConnection, rows: Iterable[Row]) -> None:
    """Add sessions, whose parts are not taken. One statement for all."""
    await connection.execute(
        _INSERT_ROW,
        [
            {
                "user_id": row.user_id,
                "session_id": row.part,
                "profile": row.facts.profile.value,
                "epoch": row.facts.epoch,
                "global_epoch": row.facts.global_epoch,
                "version": row.version,
                "rt_hash": row.token_hash,
                "amr": list(row.facts.amr),
                "authenticated_at": instant(row.facts.authenticated_ms),
                "created_at": instant(row.facts.created_ms),
                "last_used_at": instant(row.last_used_ms),
                "idle_seconds": max(1, row.facts.idle_ms // 1000),
                "absolute_expires_at": instant(row.facts.absolute_ms),
                "user_agent": row.facts.user_agent,
                "ip": row.facts.ip,
                "device_label": row.facts.device,
            }
            for row in rows
        ],
    )


def _given(connection: AsyncConnection, user_ids: Collection[str]) -> dict[str, Any]:
    ids = list(user_ids)
    return {"of_users": json_text(ids) if connection.dialect.name == "sqlite" else ids}


def _among(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Whether it is one of the values of a list, which is one parameter."""
    if name == "postgresql":
        return column == any_(bindparam("of_users", type_=postgresql.ARRAY(Text)))
    given = func.json_each(bindparam("of_users", type_=Text)).table_valued("value")
    return column.in_(select(given.c.value))


def _lock(name: str, *, wait: bool) -> Any:
    # By code point, as Python sorts: whoever locks several users does so in one order.
    order = users.c.id.collate("C") if name == "postgresql" else users.c.id
    return (
        select(
            users.c.id,
            users.c.status,
            users.c.session_epoch,
            GLOBAL_EPOCH.label("everybody"),
            domain_settings.c.session_profile,
            domain_settings.c.session_idle_minutes,
            domain_settings.c.session_absolute_minutes,
            domain_settings.c.max_sessions,
        )
        .join_from(users, domain_settings, domain_settings.c.domain == users.c.domain, isouter=True)
        .where(_among(users.c.id, name))
        .order_by(order)
        .with_for_update(of=users, skip_locked=not wait)
    )


def _past(name: str) -> Any:
    s = user_sessions.c
    live = func.count().filter(and_(ACTIVE, s.absolute_expires_at > bindparam("now", type_=Ts())))
    taken = func.count().filter(s.session_id == bindparam("of_part", type_=Text))
    return (
        select(s.user_id, s.user_agent, s.ip, live.label("live"), taken.label("taken"))
        .where(_among(s.user_id, name))
        .group_by(s.user_id, s.user_agent, s.ip)
        .order_by(taken.desc(), live.desc(), func.max(s.created_at).desc())
        .limit(_MOST_DEVICES)
    )


_NAMES: Final[Sequence[str]] = ("postgresql", "sqlite")
_MAKERS: Final = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_LOCK: Final = {(name, wait): _lock(name, wait=wait) for name in _NAMES for wait in (True, False)}
_FIND: Final = {name: select(users.c.id).where(_among(users.c.id, name)) for name in _NAMES}
_PAST: Final = {name: _past(name) for name in _NAMES}
_INSERT_USER: Final = {
    (name, lenient): make(users)
    .on_conflict_do_nothing(index_elements=None if lenient else [users.c.id])
    .returning(users.c.id)
    for name, make in _MAKERS.items()
    for lenient in (True, False)
}
_INSERT_ROW: Final = insert(user_sessions)
