"""Log-ins at once share transactions, on both databases, and none of them suffers from its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from counterseal.audit.chain import verify_entries
from counterseal.core.errors import (
    ConfigurationError,
    Conflict,
    DatabaseUnavailable,
    SessionExists,
    UserBlocked,
)
from counterseal.core.settings import SessionSettings
from counterseal.database.engine import Database
from counterseal.database.tables import audit_entries, audit_heads, user_sessions, users
from counterseal.sessions import Created
from support.databases import EVERY, Databases
from support.servers import Server
from support.session_faults import removable
from support.session_rows import active_rows, parts_of, set_status
from support.sessions import SAFARI, Pause, Process, process
from support.stores import store_on


@pytest.fixture
async def app(valkey: Server, database: Database) -> AsyncIterator[Process]:
    """One process."""
    async with store_on(valkey) as store, process(store, database, relay=False) as app:
        yield app


class Transactions:
    """Counts the transactions of a process that may write."""

    def __init__(self, app: Process) -> None:
        self.count = 0
        database: Any = app.database
        for name in ("begin", "begin_direct"):
            setattr(database, name, self._counted(getattr(database, name)))

    def _counted(self, original: Any) -> Any:
        def begin(**options: Any) -> Any:
            self.count += 1
            return original(**options)

        return begin


class Line:
    """Log-ins that stand in line behind one of the user `first`, until they are let go."""

    def __init__(self, app: Process, *, at: str = "_first") -> None:
        self._app = app
        self._pause = Pause(app.sessions._intake, at, after=True)
        self.tasks: list[asyncio.Task[Created]] = []

    async def form(self, *log_ins: Coroutine[Any, Any, Created]) -> None:
        """Return when all of them stand there."""
        self.tasks = [asyncio.create_task(self._app.log_in("first"))]
        await self._pause.reached()
        self.tasks += [asyncio.create_task(log_in) for log_in in log_ins]
        async with asyncio.timeout(30):
            while len(self._app.sessions._intake._line) < len(log_ins):
                await asyncio.sleep(0)

    def release(self) -> None:
        self._pause.release()

    async def end(self) -> list[Any]:
        """What became of them, the first of all first."""
        self.release()
        async with asyncio.timeout(60):
            return await asyncio.gather(*self.tasks, return_exceptions=True)


async def at_once(app: Process, names: Sequence[str], **options: Any) -> list[Any]:
    """What became of log-ins that waited together."""
    line = Line(app)
    await line.form(*(app.log_in(name, **options) for name in names))
    return (await line.end())[1:]


async def count(database: Database, table: Any) -> int:
    async with database.read() as connection:
        return int(await connection.scalar(select(func.count()).select_from(table)) or 0)


async def verify_all(app: Process, names: Sequence[str]) -> None:
    for name in names:
        entries = await app.audit.read(f"account:{name}", limit=1000)
        assert entries
        assert verify_entries(entries) is None


async def test_a_thousand_log_ins_of_a_thousand_users_at_once_all_succeed(app: Process) -> None:
    names = [f"u{number}" for number in range(1000)]
    made = await asyncio.gather(*(app.log_in(name) for name in names))
    assert [one.session.user_id for one in made] == names
    assert await count(app.database, user_sessions) == 1000
    assert await count(app.database, audit_entries) == 1000
    for one in made[::97]:
        assert await app.sessions.get(one.session_id) is not None
        assert await app.sessions.rotate(one.refresh_token) is not None
    await verify_all(app, names[::97])


async def test_a_thousand_log_ins_of_a_hundred_users_at_once_all_succeed(app: Process) -> None:
    names = [f"u{number}" for number in range(100)]
    made = await asyncio.gather(*(app.log_in(name) for name in names * 10))
    assert len({one.session_id for one in made}) == 1000
    for name in names:
        assert len(await active_rows(app.database, name)) == 5
    assert sum(len(one.evicted) for one in made) == 500
    await verify_all(app, names)


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_who_waits_together_shares_a_transaction(app: Process) -> None:
    seen = Transactions(app)
    made = await at_once(app, [f"u{number}" for number in range(40)])
    assert all(isinstance(one, Created) for one in made)
    assert seen.count == 2  # the second is theirs
    again = await at_once(app, [f"u{number}" for number in range(40)], user_agent=SAFARI, ip="198.51.100.7")
    assert seen.count == 4
    assert all(one.new_device for one in again)
    assert not any(one.new_device for one in made)


async def test_those_who_come_at_the_same_moment_share_the_first_transaction(app: Process) -> None:
    seen = Transactions(app)
    await asyncio.gather(*(app.log_in(f"u{number}") for number in range(50)))
    assert seen.count == 1
    await asyncio.gather(*(app.log_in(f"u{number}") for number in range(51)))
    assert seen.count == 3


async def test_who_is_alone_runs_no_more_statements_than_it_takes(app: Process) -> None:
    await app.log_in()
    seen = Transactions(app)
    await app.log_in()
    assert seen.count == 1
    assert app.sessions._intake._task is None


async def test_a_log_in_that_cannot_be_fails_alone(app: Process) -> None:
    for name in ("blocked", "known"):
        await app.log_in(name)
    await set_status(app.database, "blocked", "suspended")
    line = Line(app)
    await line.form(
        app.log_in("a"),
        app.log_in("blocked"),
        app.log_in("stranger", email=None),
        app.log_in("thief", email="known@example.com"),
        app.log_in("twin-1", email="twin@example.com"),
        app.log_in("twin-2", email="twin@example.com"),
        app.log_in("zoe"),
    )
    first, a, blocked, stranger, thief, twin, other, zoe = await line.end()
    assert [type(one) for one in (first, a, twin, zoe)] == [Created] * 4
    assert isinstance(blocked, UserBlocked)
    assert isinstance(stranger, ConfigurationError)
    assert isinstance(thief, Conflict)
    assert isinstance(other, Conflict)
    assert await count(app.database, user_sessions) == 6
    assert await count(app.database, users) == 6


async def test_when_a_shared_transaction_fails_each_is_tried_by_itself(app: Process) -> None:
    good, failed = app.sessions._backing.audit_many, 0

    async def fail(connection: Any, drafts: Sequence[Any]) -> None:
        nonlocal failed
        await good(connection, drafts)
        if len(drafts) > 1:
            failed += 1
            raise RuntimeError

    app.sessions._backing.audit_many = fail
    made = await at_once(app, [f"u{number}" for number in range(10)])
    assert failed == 1
    assert all(isinstance(one, Created) for one in made)
    assert await count(app.database, user_sessions) == 11
    assert await count(app.database, audit_entries) == 11
    await verify_all(app, [f"u{number}" for number in range(10)])


async def test_a_part_that_was_chosen_is_refused_when_it_is_taken(app: Process) -> None:
    made = await app.log_in(part="mine")
    with pytest.raises(SessionExists):
        await app.log_in(part="mine")
    assert await app.sessions.get(made.session_id) is not None


async def test_fifty_log_ins_of_one_user_at_once_leave_as_many_sessions_as_there_may_be(app: Process) -> None:
    made = await asyncio.gather(*(app.log_in() for _ in range(50)))
    left = await active_rows(app.database, "ada")
    assert len(left) == 5
    evicted = {gone for one in made for gone in one.evicted}
    assert len(evicted) == 45
    assert left == {parts_of(one.session_id)[1] for one in made if one.session_id not in evicted}
    for one in made:
        assert (await app.sessions.get(one.session_id) is None) == (one.session_id in evicted)
    await verify_all(app, ["ada"])


async def test_whose_caller_goes_away_takes_nobody_along(app: Process) -> None:
    line = Line(app)
    await line.form(*(app.log_in(name) for name in "abc"))
    line.tasks[2].cancel()
    first, a, b, c = await line.end()
    assert [type(one) for one in (first, a, b, c)] == [Created, Created, asyncio.CancelledError, Created]
    assert await count(app.database, user_sessions) == 3


async def test_who_goes_away_while_it_is_written_takes_nobody_along(app: Process) -> None:
    pause = Pause(app.sessions._backing, "audit_many", after=True)
    making = [asyncio.create_task(app.log_in(name)) for name in ("first", "a", "b", "c")]
    await pause.reached()
    making[2].cancel()
    with suppress(asyncio.CancelledError):
        await making[2]
    pause.release()
    first, a, c = await asyncio.gather(making[0], making[1], making[3])
    for one in (first, a, c):
        assert await app.sessions.get(one.session_id) is not None


async def test_when_the_first_goes_away_the_others_go_on(app: Process) -> None:
    line = Line(app, at="_write")
    await line.form(app.log_in("a"), app.log_in("b"))
    line.tasks[0].cancel()
    first, a, b = await line.end()
    assert isinstance(first, asyncio.CancelledError)
    assert [type(one) for one in (a, b)] == [Created] * 2
    assert await count(app.database, user_sessions) == 2


async def test_who_waits_when_the_service_is_closed_is_not_left_waiting(app: Process) -> None:
    pause = Pause(app.sessions._backing, "audit_many")
    making = [asyncio.create_task(app.log_in(name)) for name in ("first", "a", "b", "a")]
    await pause.reached()
    await app.sessions.close()
    async with asyncio.timeout(30):
        made = await asyncio.gather(*making)
    assert await count(app.database, user_sessions) == 4
    assert len({one.session_id for one in made}) == 4


async def test_a_user_whom_somebody_has_locked_holds_nobody_up(
    valkey: Server, databases: Databases, tmp_path: Path
) -> None:
    async with (
        databases.place("postgresql", tmp_path) as place,
        store_on(valkey) as store,
        place.database() as database,
        process(store, database, relay=False) as app,
    ):
        for name in ("ada", "bob", "new"):
            await app.log_in(name)
        async with database.begin() as connection:
            await connection.execute(select(users.c.id).where(users.c.id == "ada").with_for_update())
            held = [asyncio.create_task(app.log_in("ada")) for _ in range(2)]
            async with asyncio.timeout(30):
                made = await asyncio.gather(*(app.log_in(name) for name in ("bob", "new", "eve", "bob")))
            assert not any(one.done() for one in held)
        assert len({one.session_id for one in (*made, *await asyncio.gather(*held))}) == 6


async def test_without_the_database_everybody_is_told_and_nothing_is_half_made(
    valkey: Server, databases: Databases, tmp_path: Path
) -> None:
    async with (
        removable(databases, tmp_path) as place,
        store_on(valkey) as store,
        place.through.database(timeout=timedelta(seconds=5)) as database,
        place.beside.database() as beside,
        process(store, database, relay=False) as app,
    ):
        pause = Pause(app.sessions._backing, "audit_many", after=True)
        making = [asyncio.create_task(app.log_in(f"u{number}")) for number in range(150)]
        await pause.reached()
        place.take_away()
        pause.release()
        async with asyncio.timeout(60):
            made = await asyncio.gather(*making, return_exceptions=True)
        assert {type(one) for one in made} == {DatabaseUnavailable}
        for table in (users, user_sessions, audit_entries, audit_heads):
            assert await count(beside, table) == 0
        await place.give_back()
        assert len(await asyncio.gather(*(app.log_in(f"u{number}") for number in range(150)))) == 150


async def test_the_most_sessions_of_the_settings_hold_in_a_shared_transaction(
    valkey: Server, database: Database
) -> None:
    settings = SessionSettings(max_per_user=1)
    async with store_on(valkey) as store, process(store, database, settings=settings, relay=False) as app:
        names = [f"u{number}" for number in range(10)]
        first = await at_once(app, names)
        second = await at_once(app, names)
        assert [one.evicted for one in second] == [(one.session_id,) for one in first]
        for name in names:
            assert len(await active_rows(database, name)) == 1
