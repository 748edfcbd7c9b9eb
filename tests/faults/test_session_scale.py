"""Sessions of very many users: what is done for all of them at once keeps nobody waiting, and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select

from counterseal.core.errors import DatabaseError, StoreFull, StoreUnavailable
from counterseal.database.engine import Database
from counterseal.database.tables import user_sessions, users
from counterseal.sessions import Context, endings
from counterseal.sessions.pending import MOST, MOST_ROTATIONS, PendingRevocation, PendingRevocations
from counterseal.sessions.replay import Replay
from counterseal.sessions.session import Reason, instant
from support.databases import Databases, Place
from support.servers import Server
from support.session_faults import (
    BRIEF,
    FORGIVING,
    PauseAfter,
    Removable,
    has_tombstone,
    later,
    processes,
    removable,
)
from support.session_rows import active_rows, parts_of, set_policy
from support.sessions import KEYS, Pause
from support.waiting import eventually

HOUR = timedelta(hours=1)
PENDING = KEYS.sessions_pending()
MANY = 40_000
MANY_REVOKED = (
    f"""
    INSERT INTO counterseal.users (id, email, full_name, domain, created_at, updated_at)
    SELECT 'user' || n, n || '@example.com', '', 'example.com', now(), now() FROM generate_series(0, {MANY - 1}) n
    """,
    f"""
    INSERT INTO counterseal.user_sessions (
        user_id, session_id, state, epoch, rt_hash, amr, authenticated_at, created_at, last_used_at, idle_seconds,
        absolute_expires_at, revoked_at, revoke_reason
    )
    SELECT 'user' || n, 's', 'revoked', 0, n::text::bytea, '[]', now(), now(), now(), 60, now() + '7 days', now(),
        'logout' FROM generate_series(0, {MANY - 1}) n
    """,
)


async def add(database: Database, now_ms: int, ids: Iterable[tuple[str, str]], **values: Any) -> None:
    """Rows of sessions and their users, as fast as the database takes them."""
    now = instant(now_ms)
    given = list(ids)
    common = {
        "epoch": 0,
        "amr": ["pwd"],
        "authenticated_at": now,
        "created_at": now,
        "last_used_at": now,
        "idle_seconds": 86_400,
        "absolute_expires_at": now + timedelta(days=7),
    } | values
    people = [
        {"id": user_id, "email": f"{user_id}@example.com", "full_name": "", "domain": "example.com"}
        | {"created_at": now, "updated_at": now}
        for user_id in sorted({user_id for user_id, _ in given})
    ]
    made = [
        {"user_id": user_id, "session_id": part, "rt_hash": f"{user_id}.{part}".encode(), **common}
        for user_id, part in given
    ]
    async with database.begin() as connection:
        for first in range(0, len(people), 10_000):
            await connection.execute(insert(users), people[first : first + 10_000])
        for first in range(0, len(made), 10_000):
            await connection.execute(insert(user_sessions), made[first : first + 10_000])


def many(count: int) -> list[tuple[str, str]]:
    return [(f"user{number}", "s") for number in range(count)]


@pytest.fixture
async def postgresql(databases: Databases, tmp_path: Path) -> AsyncIterator[Place]:
    async with databases.place("postgresql", tmp_path / "data") as place:
        yield place


@pytest.fixture
async def sqlite(databases: Databases, tmp_path: Path) -> AsyncIterator[Place]:
    async with databases.place("sqlite", tmp_path / "data") as place:
        yield place


@pytest.fixture
async def lost(databases: Databases, tmp_path: Path) -> AsyncIterator[Removable]:
    async with removable(databases, tmp_path / "data") as lost:
        yield lost


# -- the replay ------------------------------------------------------------------------------------------------------


async def test_forty_thousand_revoked_sessions_are_replayed_and_nobody_waits_for_it(
    valkey: Server, postgresql: Place
) -> None:
    async with processes(valkey, postgresql, 1, relay=False) as apps:
        app = apps[0]
        made = await app.log_in()
        async with app.database.begin() as connection:
            for statement in MANY_REVOKED:
                await connection.exec_driver_sql(statement)
        outage = app.sessions._backing.outage
        outage.begin()
        began = time.monotonic()
        assert await app.sessions.get(made.session_id) is not None
        assert outage.lasts  # so it was the database that answered
        assert time.monotonic() - began < 2
        before = app.sessions.counts.without_redis
        assert await app.sessions.rotate(made.refresh_token) is not None
        assert app.sessions.counts.without_redis == before
        await eventually(lambda: not outage.lasts, within=60)
        assert has_tombstone(valkey, "user0.s")
        assert has_tombstone(valkey, f"user{MANY - 1}.s")
        assert await app.sessions.get(made.session_id) is not None
        assert app.sessions.counts.without_redis == before


async def test_a_replay_leaves_out_what_has_ended_by_time(valkey: Server, place: Place) -> None:
    async with processes(valkey, place, 1, relay=False) as apps:
        app = apps[0]
        now_ms = app.store.now_ms()
        now = instant(now_ms)
        gone = {"state": "revoked", "revoked_at": now}
        await add(app.database, now_ms, [("ada", "expired")], **gone, revoke_reason="expired")
        await add(
            app.database,
            now_ms,
            [("bob", "old")],
            **gone,
            revoke_reason="logout",
            absolute_expires_at=now - timedelta(seconds=1),
        )
        await add(app.database, now_ms, [("eve", f"s{n}") for n in range(3)], **gone, revoke_reason="user")
        await Replay(app.sessions._backing).since(now_ms - 1)
        assert [has_tombstone(valkey, f"eve.s{number}") for number in range(3)] == [True] * 3
        assert not has_tombstone(valkey, "ada.expired")
        assert not has_tombstone(valkey, "bob.old")


async def test_a_replay_raises_the_epoch_of_whoever_had_all_sessions_ended(
    valkey: Server, place: Place
) -> None:
    async with processes(valkey, place, 1, relay=False) as apps:
        app = apps[0]
        made = await app.log_in()
        await app.sessions.revoke_all("ada")
        other = await app.log_in()
        valkey.flush()
        await Replay(app.sessions._backing).since(app.store.now_ms() - 60_000)
        assert valkey.execute("GET", KEYS.session_epoch("ada")) == b"1"
        assert has_tombstone(valkey, made.session_id)
        assert await app.sessions.get(other.session_id) is not None


# -- cleaning up -----------------------------------------------------------------------------------------------------


async def test_a_log_in_need_not_wait_until_everything_is_cleaned_up(valkey: Server, sqlite: Place) -> None:
    async with processes(valkey, sqlite, 1, relay=False) as apps:
        app = apps[0]
        old = app.store.now_ms()
        await add(app.database, old, many(1000))
        await add(
            app.database,
            old,
            [("gone", f"s{number}") for number in range(1000)],
            state="revoked",
            revoked_at=instant(old),
            revoke_reason="user",
        )
        later(apps, timedelta(days=8))
        cleaning = asyncio.create_task(app.sessions.cleanup_expired(1000))
        done_before = 0
        while not cleaning.done():
            await app.log_in(f"new{done_before}")
            done_before += 1
        assert await cleaning == 1000
        assert done_before >= 10  # one for each few transactions
        async with app.database.read() as connection:
            left = await connection.execute(
                select(user_sessions.c.user_id).where(user_sessions.c.user_id == "gone")
            )
            assert not left.all()
        entry = (await app.audit.read("account:user7"))[0]
        assert (entry.action, json.loads(entry.body)["sessions"]) == ("session.revoked", ["s"])


async def test_to_find_nothing_to_clean_up_reads_no_table(valkey: Server, sqlite: Place) -> None:
    async with processes(valkey, sqlite, 1, relay=False) as apps:
        app = apps[0]
        now_ms = app.store.now_ms()
        await app.sessions.revoke_everybody()
        await add(app.database, now_ms, many(25_000), global_epoch=1)
        await add(
            app.database,
            now_ms,
            [(f"old{number}", "s") for number in range(25_000)],
            state="revoked",
            revoked_at=instant(now_ms),
            revoke_reason="user",
            absolute_expires_at=instant(now_ms - 1),
        )
        assert await app.sessions.cleanup_expired() == 0  # this one looks for those of a former epoch, once
        asked: list[tuple[str, Any]] = []
        engine = app.database._engine
        assert engine is not None

        def note(_: Any, __: Any, statement: str, parameters: Any, *rest: Any) -> None:
            asked.append((statement, parameters))

        event.listen(engine.sync_engine, "before_cursor_execute", note)
        assert await app.sessions.cleanup_expired() == 0
        event.remove(engine.sync_engine, "before_cursor_execute", note)
        searches = [search for search in asked if "user_sessions" in search[0]]
        assert len(searches) >= 2
        async with app.database.read() as connection:
            for statement, parameters in searches:
                plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                steps = [row.detail for row in plan]
                assert not any(step.startswith("SCAN counterseal_user_sessions") for step in steps), steps


async def test_cleaning_up_leaves_whom_somebody_else_has_locked(valkey: Server, postgresql: Place) -> None:
    async with processes(valkey, postgresql, 1, relay=False) as apps:
        app = apps[0]
        now_ms = app.store.now_ms()
        await add(app.database, now_ms, [("ada", "s"), ("bob", "s"), ("eve", "s")])
        later(apps, 25 * HOUR)
        async with app.database.begin() as connection:
            await connection.execute(select(users.c.id).where(users.c.id == "bob").with_for_update())
            async with asyncio.timeout(10):
                assert await app.sessions.cleanup_expired() == 2
        assert await active_rows(app.database, "bob") == {"s"}
        assert await app.sessions.cleanup_expired() == 1


async def test_a_cleaning_up_that_fails_looks_again_for_sessions_of_a_former_epoch(
    valkey: Server, place: Place
) -> None:
    async with processes(valkey, place, 1, relay=False) as apps:
        app = apps[0]
        await add(app.database, app.store.now_ms(), many(60))
        await app.sessions.revoke_everybody()
        backing = app.sessions._backing
        good = backing.audit_many

        async def fail(*_: Any) -> None:
            raise DatabaseError("no")

        backing.audit_many = fail
        with pytest.raises(DatabaseError):
            await app.sessions.cleanup_expired()
        backing.audit_many = good
        assert await app.sessions.cleanup_expired() == 60


# -- locks -----------------------------------------------------------------------------------------------------------


async def test_a_log_in_and_what_waited_for_the_database_do_not_lock_each_other_out(
    valkey: Server, postgresql: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(valkey, postgresql, 2, relay=False) as apps:
        app, other = apps
        made = await app.log_in()
        now_ms = app.store.now_ms()
        entries = [
            PendingRevocation("ada", parts_of(made.session_id)[1], Reason.USER, now_ms),
            PendingRevocations("ada", Reason.USER, now_ms + 1, epoch=1),
        ]
        reached, go_on = asyncio.Event(), asyncio.Event()
        raise_epoch = endings.raise_epoch

        async def slow(*arguments: Any, **options: Any) -> Any:
            reached.set()
            await go_on.wait()
            return await raise_epoch(*arguments, **options)

        monkeypatch.setattr(endings, "raise_epoch", slow)
        applying = asyncio.create_task(app.sessions._endings.apply(entries))
        async with asyncio.timeout(30):
            await reached.wait()
        logging_in = asyncio.create_task(other.log_in())
        await eventually(lambda: is_waiting(app.database), within=20)
        go_on.set()
        async with asyncio.timeout(30):
            await applying
            await logging_in


async def test_a_log_in_that_ends_two_sessions_and_a_revocation_do_not_lock_each_other_out(
    valkey: Server, postgresql: Place
) -> None:
    async with processes(valkey, postgresql, 2, relay=False) as apps:
        app, other = apps
        made = [await app.log_in() for _ in range(3)]
        await set_policy(app, max_sessions=2)
        pause = Pause(other.sessions._backing, "audit")
        revoking = asyncio.create_task(other.sessions.revoke(made[1].session_id))
        await pause.reached()
        logging_in = asyncio.create_task(app.log_in(replacing=made[0].session_id))
        await eventually(lambda: is_waiting(app.database), within=20)
        pause.release()
        async with asyncio.timeout(30):
            assert (await revoking).ended == 1
            await logging_in


async def is_waiting(database: Database) -> bool:
    """Whether somebody waits for a lock in a database of PostgreSQL."""
    async with database.read() as connection:
        found = await connection.exec_driver_sql(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return found.first() is not None


@pytest.mark.parametrize("ending", ["revoke_others", "revoke_all"])
async def test_sessions_of_a_user_are_locked_in_order(valkey: Server, postgresql: Place, ending: str) -> None:
    async with processes(valkey, postgresql, 1, relay=False) as apps:
        app = apps[0]
        now_ms = app.store.now_ms()
        await add(app.database, now_ms, [("ada", part) for part in ("z", "keep", "b", "a")])
        one = select(user_sessions.c.state).where(user_sessions.c.user_id == "ada")
        async with app.database.begin() as connection:
            await connection.execute(one.where(user_sessions.c.session_id == "a").with_for_update())
            calls = {
                "revoke_others": lambda: app.sessions.revoke_others("ada.keep"),
                "revoke_all": lambda: app.sessions.revoke_all("ada"),
            }
            revoking = asyncio.create_task(calls[ending]())
            await eventually(lambda: is_waiting(app.database), within=20)
            # Nothing behind the first is locked while it waits for that.
            await connection.execute(
                one.where(user_sessions.c.session_id == "z").with_for_update(nowait=True)
            )
        assert (await revoking).ended == (3 if ending == "revoke_others" else 4)


# -- the stream ------------------------------------------------------------------------------------------------------


async def test_rotations_leave_room_for_revocations(valkey: Server, lost: Removable) -> None:
    async with processes(valkey, lost.through, 1, timeout=BRIEF, options=FORGIVING) as apps:
        app = apps[0]
        made = await app.log_in()
        lost.take_away()
        fill = "for _ = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'entry', 'unknown') end"
        valkey.execute("EVAL", fill, 1, PENDING, MOST_ROTATIONS)
        with pytest.raises(StoreFull):
            await app.sessions.rotate(made.refresh_token)
        assert (await app.sessions.revoke(made.session_id)).pending
        assert valkey.execute("XLEN", PENDING) == MOST_ROTATIONS + 1 < MOST
        valkey.execute("DEL", PENDING)


async def test_a_redis_that_refuses_the_stream_is_unavailable(valkey: Server, lost: Removable) -> None:
    async with processes(valkey, lost.through, 1, timeout=BRIEF, options=FORGIVING) as apps:
        app = apps[0]
        made = await app.log_in()
        lost.take_away()
        valkey.execute("SET", PENDING, "no stream")
        with pytest.raises(StoreUnavailable):
            await app.sessions.revoke(made.session_id)
        with pytest.raises(StoreUnavailable):
            await app.sessions._backing.pending.settle()
        valkey.execute("DEL", PENDING)


async def test_an_entry_that_can_not_be_read_is_told_of_once_a_minute(
    valkey: Server, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with processes(valkey, place, 1, relay=False) as apps:
        valkey.execute("XADD", PENDING, "*", "entry", "of a later release")
        caplog.clear()
        pending = apps[0].sessions._backing.pending
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                await pending.settle()
            assert len([one for one in caplog.records if "can't be read" in one.message]) == 1
            later(apps, timedelta(seconds=61))
            await pending.settle()
        assert len([one for one in caplog.records if "can't be read" in one.message]) == 2
        assert valkey.execute("XLEN", PENDING) == 1
        valkey.execute("DEL", PENDING)


# -- step-ups --------------------------------------------------------------------------------------------------------


async def test_a_step_up_is_answered_though_its_copy_can_not_be_made(valkey: Server, lost: Removable) -> None:
    async with processes(valkey, lost.through, 1, timeout=BRIEF, options=FORGIVING) as apps:
        app = apps[0]
        made = await app.log_in()
        for call in (
            lambda: app.sessions.set_totp_verified(made.session_id, Context.SIGNING, "r1"),
            lambda: app.sessions.require_step_up(made.session_id, Context.SIGNING, "r1"),
        ):
            pause = PauseAfter(app.database, "begin")
            answer = asyncio.create_task(call())
            await pause.reached()
            lost.take_away()
            pause.release()
            assert await answer is not None
            app.sessions._backing.pending.unsettled = False
            with pytest.raises(DatabaseError):
                await call()
            assert app.sessions._backing.pending.unsettled
            await lost.give_back()


# -- short sessions --------------------------------------------------------------------------------------------------


async def test_a_session_that_may_idle_for_a_minute_lives_while_it_is_used(
    valkey: Server, place: Place
) -> None:
    async with processes(valkey, place, 1, relay=False) as apps:
        app = apps[0]
        await set_policy(app, session_idle_minutes=1)
        made = await app.log_in()
        for _ in range(10):
            later(apps, timedelta(seconds=40))
            assert await app.sessions.get(made.session_id) is not None
        later(apps, timedelta(seconds=61))
        assert await app.sessions.get(made.session_id) is None


@pytest.mark.parametrize("column", ["session_idle_minutes", "session_absolute_minutes"])
async def test_a_domain_can_not_let_sessions_end_at_once(valkey: Server, place: Place, column: str) -> None:
    async with processes(valkey, place, 1, relay=False) as apps:
        with pytest.raises(DatabaseError, match=r"IntegrityError|CheckViolation"):
            await set_policy(apps[0], **{column: 0})
