"""Admission: the statements of a log-in, for one user or for many at once. Each runs in the caller's transaction.

They are built once, and have the same text for however many users.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    DateTime,
    Integer,
    LargeBinary,
    Text,
    and_,
    any_,
    bindparam,
    func,
    insert,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine

from counterseal.database.arrays import by_column, unnested
from counterseal.database.columns import Ts, json_text
from counterseal.database.direct import Statement, Transaction
from counterseal.database.tables import domain_settings, user_sessions, users
from counterseal.sessions.lifetime import DomainPolicy
from counterseal.sessions.row import Row
from counterseal.sessions.rows import ACTIVE, GLOBAL_EPOCH
from counterseal.sessions.session import Profile, instant

_MOST_DEVICES: Final = 2000  # no statement answers more rows
_AT: Final = DateTime(timezone=True)

# The columns of a new session, in the types that PostgreSQL gets its arrays in.
_ROW: Final[dict[str, type[TypeEngine[Any]] | TypeEngine[Any]]] = {
    "user_id": Text,
    "session_id": Text,
    "profile": Text,
    "epoch": BigInteger,
    "global_epoch": BigInteger,
    "version": BigInteger,
    "rt_hash": LargeBinary,
    "amr": postgresql.JSONB,
    "authenticated_at": _AT,
    "created_at": _AT,
    "last_used_at": _AT,
    "idle_seconds": Integer,
    "absolute_expires_at": _AT,
    "user_agent": Text,
    "ip": Text,
    "device_label": Text,
}


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
    connection: Transaction, user_ids: Collection[str], *, wait: bool = True
) -> dict[str, Standing]:
    """Lock users in the order of their ids, by code point; those that are there. One statement.

    Without `wait` those that somebody else has locked are left out.
    """
    found = await _LOCK[connection.dialect.name, wait].rows(connection, _given(connection, user_ids))
    return {
        user_id: Standing(status, epoch, global_epoch, _policy(*policy))
        for user_id, status, epoch, global_epoch, *policy in found
    }


async def find_users(connection: Transaction, user_ids: Collection[str]) -> set[str]:
    """Those who are there, locked or not. One statement."""
    found = await _FIND[connection.dialect.name].rows(connection, _given(connection, user_ids))
    return {user_id for (user_id,) in found}


async def insert_users(
    connection: Transaction, newcomers: Collection[Newcomer], *, now_ms: int, lenient: bool = False
) -> None:
    """Add users who are not there yet. One statement.

    Raises `Conflict` when an address belongs to somebody else. `lenient` leaves such a user out instead.
    """
    now = instant(now_ms)
    rows = [
        {
            "id": one.user_id,
            "email": one.email,
            "full_name": one.full_name,
            "domain": one.email.rpartition("@")[2],
            "created_at": now,
            "updated_at": now,
        }
        for one in sorted(newcomers, key=lambda one: one.user_id)
    ]
    await _INSERT_USER[connection.dialect.name, lenient].write(connection, *rows)


async def read_past(
    connection: Transaction, user_ids: Collection[str], *, now_ms: int, part: str | None = None
) -> Mapping[str, Past]:
    """What is on record of each user, and whether that has a session with this part. One statement."""
    given = _given(connection, user_ids) | {"of_part": part, "now": instant(now_ms)}
    found = await _PAST[connection.dialect.name].rows(connection, given)
    past = {user_id: Past(0, [], taken=False) for user_id in user_ids}
    for user_id, user_agent, ip, live, taken in found:
        one = past[user_id]
        one.live += live
        one.devices.append((user_agent, ip))
        one.taken |= taken > 0
    if len(found) == _MOST_DEVICES:  # there may be more
        for one in past.values():
            one.live = max(one.live, _MOST_DEVICES)
    return past


async def insert_rows(connection: Transaction, rows: Iterable[Row]) -> None:
    """Add sessions, whose parts are not taken. One statement for all."""
    values = [_values(row) for row in rows]
    if connection.dialect.name == "sqlite":
        await _INSERT_ROW.write(connection, *values)
    else:
        await _INSERT_ROWS.write(connection, by_column("new", _ROW, values))


def _values(row: Row) -> dict[str, Any]:
    facts = row.facts
    return {
        "user_id": row.user_id,
        "session_id": row.part,
        "profile": facts.profile.value,
        "epoch": facts.epoch,
        "global_epoch": facts.global_epoch,
        "version": row.version,
        "rt_hash": row.token_hash,
        "amr": list(facts.amr),
        "authenticated_at": instant(facts.authenticated_ms),
        "created_at": instant(facts.created_ms),
        "last_used_at": instant(row.last_used_ms),
        "idle_seconds": max(1, facts.idle_ms // 1000),
        "absolute_expires_at": instant(facts.absolute_ms),
        "user_agent": facts.user_agent,
        "ip": facts.ip,
        "device_label": facts.device,
    }


def _policy(profile: str | None, idle: int | None, absolute: int | None, most: int | None) -> DomainPolicy:
    return DomainPolicy(None if profile is None else Profile(profile), idle, absolute, most)


def _given(connection: Transaction, user_ids: Collection[str]) -> dict[str, Any]:
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


def _insert_rows() -> Any:
    given = unnested("new", _ROW)
    return insert(user_sessions).from_select(given.c.keys(), select(*given.c))


_NAMES: Final[Sequence[str]] = ("postgresql", "sqlite")
_MAKERS: Final = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_LOCK: Final = {(name, wait): Statement(_lock(name, wait=wait)) for name in _NAMES for wait in (True, False)}
_FIND: Final = {name: Statement(select(users.c.id).where(_among(users.c.id, name))) for name in _NAMES}
_PAST: Final = {name: Statement(_past(name)) for name in _NAMES}
_INSERT_USER: Final = {
    (name, lenient): Statement(
        make(users).on_conflict_do_nothing(index_elements=None if lenient else [users.c.id]),
        columns=("id", "email", "full_name", "domain", "created_at", "updated_at"),
    )
    for name, make in _MAKERS.items()
    for lenient in (True, False)
}
_INSERT_ROW: Final = Statement(insert(user_sessions), columns=tuple(_ROW))
_INSERT_ROWS: Final = Statement(_insert_rows())
