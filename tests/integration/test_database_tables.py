"""Tables and columns on every database: what goes in comes back, what may not be is refused and by which name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Executable, delete, exists, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import StatementError

from counterseal.core.errors import CodecError, Conflict, DatabaseError
from counterseal.database.engine import Database
from counterseal.database.tables import (
    METADATA,
    audit_entries,
    domain_settings,
    global_epochs,
    one_time_tokens,
    outbox_jobs,
    session_step_ups,
    totp_configs,
    user_sessions,
    users,
)
from support.databases import EVERY

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

pytestmark = pytest.mark.parametrize("place", EVERY, indirect=True)


def user(name: str, **others: Any) -> Executable:
    given = {"id": name, "email": f"{name}@example.org", "full_name": "", "domain": "example.org"}
    return insert(users).values({**given, "created_at": NOW, "updated_at": NOW, **others})


def session(name: str, part: str, **others: Any) -> Executable:
    given = {"user_id": name, "session_id": part, "epoch": 0, "rt_hash": part.encode(), "amr": ["pwd"]}
    moments = dict.fromkeys(("authenticated_at", "created_at", "last_used_at", "absolute_expires_at"), NOW)
    return insert(user_sessions).values({**given, **moments, "idle_seconds": 60, **others})


def job(**others: Any) -> Executable:
    given = {"id": uuid4(), "seq": 1, "kind": "probe", "dedupe_key": "k", "payload": {}}
    return insert(outbox_jobs).values({**given, "run_at": NOW, "created_at": NOW, **others})


async def run(database: Database, *statements: Executable) -> None:
    async with database.begin() as connection:
        for statement in statements:
            await connection.execute(statement)


async def one(database: Database, statement: Any) -> Any:
    async with database.read() as connection:
        return (await connection.execute(statement)).scalar_one()


async def test_a_moment_comes_back_in_utc_to_the_microsecond(database: Database) -> None:
    await run(database, user("a"))
    for moment in (
        NOW,
        NOW.replace(microsecond=0),
        NOW.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
        datetime(1, 1, 2, tzinfo=UTC),
        datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC),
    ):
        await run(database, update(users).values(last_login_at=moment))
        found = await one(database, select(users.c.last_login_at).where(users.c.last_login_at == moment))
        assert found == moment
        assert found.utcoffset() == timedelta(0)


async def test_moments_are_ordered_and_compared_as_moments(database: Database) -> None:
    moments = [NOW + timedelta(microseconds=step) for step in (-1_000_000, -1, 0, 1, 321_099, 10**12)]
    await run(database, *(user(f"u{n}", last_login_at=moment) for n, moment in enumerate(moments)))
    async with database.read() as connection:
        column = users.c.last_login_at
        ordered = (await connection.execute(select(column).order_by(column.desc()))).scalars().all()
        later = (await connection.execute(select(column).where(column > NOW))).scalars().all()
    assert list(ordered) == moments[::-1]
    assert sorted(later) == moments[3:]


async def test_a_moment_without_a_time_zone_is_refused(database: Database) -> None:
    with pytest.raises(DatabaseError):
        await run(database, user("a", last_login_at=NOW.replace(tzinfo=None)))


async def test_a_json_value_comes_back_equal_and_of_the_same_types(database: Database) -> None:
    await run(database, job())
    for value in (
        {},
        [],
        0,
        "",
        False,
        "7",
        "null",
        "[]",
        -(2**63),
        10**30,
        0.1,
        1.0,
        {"a": [None, True, 1, 1.5, "é\U0001f600", {"b": ""}]},
    ):
        await run(database, update(outbox_jobs).values(payload=value))
        found = await one(database, select(outbox_jobs.c.payload))
        assert found == value
        assert repr(found) == repr(value)


async def test_no_json_value_is_null_and_what_is_no_json_is_refused(database: Database) -> None:
    await run(database, user("a"))
    token = {"token_hash": b"t", "user_id": "a", "purpose": "log_in", "expires_at": NOW}
    await run(database, insert(one_time_tokens).values(**token, data=None))
    assert await one(database, select(func.count()).where(one_time_tokens.c.data.is_(None))) == 1
    with pytest.raises(DatabaseError) as fault:
        await run(database, job(payload={"at": NOW}))
    assert isinstance(fault.value.__cause__, StatementError)
    assert isinstance(fault.value.__cause__.orig, CodecError)


async def test_bytes_ids_flags_and_text_come_back(database: Database) -> None:
    secret, number = bytes(range(256)), uuid4()
    await run(
        database,
        user("ä" * 64, is_admin=True, full_name="a'b\"c%(d)s:e?$1\n\t\\"),
        insert(totp_configs).values(
            id=number, user_id="ä" * 64, state="pending", secret_ct=secret, key_id="k", created_at=NOW
        ),
    )
    async with database.read() as connection:
        found = (await connection.execute(select(users, totp_configs).join(totp_configs))).one()
    assert (found.secret_ct, found.is_admin, found.login_enabled) == (secret, True, False)
    assert found.full_name == "a'b\"c%(d)s:e?$1\n\t\\"
    assert number in found
    assert all(isinstance(part, UUID) for part in found if part == number)


async def test_what_is_not_given_has_its_default(database: Database) -> None:
    await run(database, user("a"), insert(domain_settings).values(domain="", updated_at=NOW), job())
    async with database.read() as connection:
        row = (await connection.execute(select(users))).one()
        domain = (await connection.execute(select(domain_settings))).one()
        sent = (await connection.execute(select(outbox_jobs))).one()
    assert (row.status, row.session_epoch, row.version, row.is_admin) == ("active", 0, 1, False)
    assert (domain.branding, domain.reminder_days) == ({}, [3, 7, 14, 21, 28])
    assert (domain.max_sessions, domain.auto_reminder_enabled, domain.smtp_ct) == (5, True, None)
    assert (sent.state, sent.attempts, sent.aggregate) == ("pending", 0, "")


CONFLICTS = {
    "pk_users": (user("a", email="other"), user("a")),
    "uq_users_email": (user("a"), user("b", email="a@example.org")),
    "pk_user_sessions": (user("a"), session("a", "s"), session("a", "s", rt_hash=b"other")),
    "uq_user_sessions_rt_hash": (user("a"), session("a", "s"), session("a", "t", rt_hash=b"s")),
    "uq_outbox_jobs_dedupe_key": (job(), job(seq=2)),
    "uq_outbox_jobs_seq": (job(), job(dedupe_key="other")),
    "pk_global_epochs": (insert(global_epochs).values(name="a", value=1),) * 2,
}


async def test_a_key_that_is_taken_is_a_conflict_with_the_name_of_its_constraint(database: Database) -> None:
    for constraint, statements in CONFLICTS.items():
        with pytest.raises(Conflict) as fault:
            await run(database, *statements)
        assert fault.value.constraint == constraint
        assert fault.value.code == "conflict"
        assert "example.org" not in str(fault.value)
        for table in (users, user_sessions, outbox_jobs, global_epochs):
            assert await one(database, select(func.count()).select_from(table)) == 0


REFUSED = {
    "unknown status": (user("a", status="asleep"),),
    "unknown role": (user("a", corporate_role="king"),),
    "empty id": (user(""),),
    "long id": (user("a" * 129, email="x"),),
    "no e-mail": (user("a", email=None),),
    "nobody's session": (session("nobody", "s"),),
    "revoked without a time": (user("a"), session("a", "s", state="revoked")),
    "active with a time": (user("a"), session("a", "s", revoked_at=NOW)),
    "unknown reason": (user("a"), session("a", "s", state="revoked", revoked_at=NOW, revoke_reason="mood")),
    "too many sessions": (insert(domain_settings).values(domain="d", max_sessions=21, updated_at=NOW),),
    "a user with sessions is deleted": (user("a"), session("a", "s"), delete(users)),
    "entry before the first": (
        insert(audit_entries).values(stream="s", seq=0, ts=NOW, action="a", prev=b"", hash=b"h", body="{}"),
    ),
}


async def test_what_may_not_be_is_an_error_and_no_conflict(database: Database) -> None:
    for what, statements in REFUSED.items():
        with pytest.raises(DatabaseError) as fault:
            await run(database, *statements)
        assert type(fault.value) is DatabaseError, what


async def test_a_null_in_a_column_of_words_is_allowed_where_the_column_may_be_null(
    database: Database,
) -> None:
    await run(database, user("a", corporate_role=None), user("b", corporate_role="owner"))
    assert await one(database, select(func.count()).select_from(users)) == 2


async def test_step_ups_go_with_their_session(database: Database) -> None:
    step_up = {"user_id": "a", "context": "signing", "method": "totp", "verified_at": NOW}
    await run(
        database,
        user("a"),
        session("a", "s"),
        session("a", "t"),
        insert(session_step_ups).values(id=uuid4(), session_id="s", **step_up),
        insert(session_step_ups).values(id=uuid4(), session_id="t", **step_up),
        delete(user_sessions).where(user_sessions.c.session_id == "s"),
    )
    assert await one(database, select(session_step_ups.c.session_id)) == "t"


async def test_every_kind_of_statement_finds_its_tables(database: Database) -> None:
    """On SQLite their names have a prefix, wherever they stand in a statement."""
    other = users.alias("other")
    newest = select(func.max(user_sessions.c.last_used_at)).where(user_sessions.c.user_id == users.c.id)
    live = select(user_sessions.c.user_id).where(user_sessions.c.state == "active").cte("live")
    upsert = (sqlite if database.kind == "sqlite" else postgresql).insert(global_epochs)
    await run(database, user("a"), user("b"), session("a", "s"))
    async with database.begin() as connection:
        execute = connection.execute
        for _ in range(2):
            raised = upsert.values(name="sessions", value=1).on_conflict_do_update(
                index_elements=[global_epochs.c.name], set_={"value": global_epochs.c.value + 1}
            )
            found = (await execute(raised.returning(global_epochs.c.value))).scalar_one()
        assert found == 2
        pairs = select(users.c.id, other.c.id.label("users")).join(other, users.c.id < other.c.id)
        assert [tuple(row) for row in await execute(pairs)] == [("a", "b")]
        assert (await execute(select(users.c.id).where(exists(newest.correlate(users))))).scalars().all() == [
            "a",
            "b",
        ]
        assert (await execute(select(newest.scalar_subquery()).where(users.c.id == "a"))).scalar_one() == NOW
        assert (
            await execute(select(users.c.id).join(live, live.c.user_id == users.c.id))
        ).scalars().all() == ["a"]
        locked = select(user_sessions).join(users).with_for_update(of=user_sessions)
        assert (await execute(locked)).one().session_id == "s"
        changed = update(user_sessions).where(user_sessions.c.user_id.in_(select(users.c.id)))
        versions = changed.values(version=user_sessions.c.version + 1).returning(user_sessions.c.version)
        assert (await execute(versions)).scalars().all() == [2]
        gone = (
            delete(user_sessions).where(user_sessions.c.user_id == "a").returning(user_sessions.c.session_id)
        )
        assert (await execute(gone)).scalars().all() == ["s"]


async def test_every_table_can_be_read_and_nothing_else_is_in_the_way(database: Database) -> None:
    async with database.read() as connection:
        for table in METADATA.tables.values():
            assert (await connection.execute(select(table))).all() == []
        if database.kind == "sqlite":
            assert (await connection.execute(text("PRAGMA foreign_key_check"))).all() == []
