"""A session that comes in place of another of the same user: that one ends with it, and no third has to go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import select

from counterseal.accounts.log_in import LoggedIn, TotpNeeded
from counterseal.accounts.refused import Refused
from counterseal.database.engine import Database
from counterseal.database.tables import outbox_jobs
from counterseal.sessions import Created, Reason, SessionRevoked
from counterseal.sessions.endings import TOMBSTONE_JOB
from support.accounts import EMAIL, House, accounts_on
from support.databases import Place
from support.servers import Server
from support.session_faults import FORGIVING, has_live_copy, has_tombstone, is_dead, processes
from support.session_rows import active_rows, parts_of, row_of, set_policy
from support.sessions import Process, process
from support.stores import store_on
from support.waiting import eventually


@pytest.fixture
async def app(valkey: Server, database: Database) -> AsyncIterator[Process]:
    async with store_on(valkey) as store, process(store, database, relay=False) as app:
        yield app


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


async def five(app: Process) -> list[Created]:
    return [await app.log_in() for _ in range(5)]


async def live(app: Process, made: list[Created]) -> list[bool]:
    return [await app.sessions.get(one.session_id) is not None for one in made]


async def jobs(app: Process) -> list[Any]:
    """The parts that the outbox has tombstones for."""
    async with app.database.read() as connection:
        found = await connection.execute(
            select(outbox_jobs.c.payload)
            .where(outbox_jobs.c.kind == TOMBSTONE_JOB)
            .order_by(outbox_jobs.c.seq)
        )
        return [payload["parts"] for payload in found.scalars()]


async def test_who_has_five_and_logs_in_in_place_of_one_keeps_the_other_four(
    app: Process, valkey: Server
) -> None:
    made = await five(app)
    last = await app.log_in(replacing=made[3].session_id)
    assert last.evicted == ()
    assert await live(app, [*made, last]) == [True, True, True, False, True, True]
    assert await is_dead(app, made[3].session_id, made[3].access_token, made[3].refresh_token)
    assert has_tombstone(valkey, made[3].session_id)
    row = await row_of(app.database, made[3].session_id)
    assert (row.state, row.revoke_reason) == ("revoked", "logout")
    assert [(event.session_id, event.reason) for event in app.told(SessionRevoked)] == [
        (made[3].session_id, Reason.LOGOUT)
    ]
    entries = await app.audit.read("account:ada")
    assert [entry.action for entry in entries[-2:]] == ["session.revoked", "session.created"]
    part = parts_of(made[3].session_id)[1]
    assert json.loads(entries[-2].body)["sessions"] == [part]
    assert await jobs(app) == [[part]]


async def test_what_is_no_live_session_of_the_same_user_is_not_replaced(app: Process) -> None:
    made, foreign = await five(app), await app.log_in("bob")
    others = [foreign.session_id, "ada.none", "none", ""]
    for number, other in enumerate(others):
        assert (await app.log_in(replacing=other)).evicted == (made[number].session_id,)
    assert await live(app, [foreign]) == [True]
    assert len(app.told(SessionRevoked)) == len(others)
    # One that has ended frees no second place.
    (last,) = await live(app, made[4:])
    assert last
    assert (await app.log_in(replacing=made[0].session_id)).evicted == (made[4].session_id,)


async def test_what_ends_is_told_once_though_there_are_too_many_besides(app: Process) -> None:
    made = await five(app)
    await set_policy(app, max_sessions=3)
    last = await app.log_in(replacing=made[4].session_id)
    assert last.evicted == tuple(one.session_id for one in made[:2])
    assert await live(app, [*made, last]) == [False, False, True, True, False, True]
    assert [(event.session_id, event.reason) for event in app.told(SessionRevoked)] == [
        (made[4].session_id, Reason.LOGOUT),
        *((session_id, Reason.EVICTED) for session_id in sorted(last.evicted)),
    ]


async def test_a_log_in_that_fails_replaces_nothing(app: Process) -> None:
    made = await five(app)

    async def fail(_: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await app.log_in(replacing=made[0].session_id, also=fail)
    with pytest.raises(Exception, match="a session with this id exists"):
        await app.log_in(replacing=made[0].session_id, part=parts_of(made[1].session_id)[1])
    assert await live(app, made) == [True] * 5
    assert await jobs(app) == []


async def test_two_at_once_in_place_of_one_end_it_once(app: Process) -> None:
    made = await five(app)
    both = await asyncio.gather(*(app.log_in(replacing=made[4].session_id) for _ in range(2)))
    assert sorted(one.evicted for one in both) == [(), (made[0].session_id,)]
    assert len(await active_rows(app.database, "ada")) == 5
    assert sorted(event.session_id for event in app.told(SessionRevoked)) == sorted(
        [made[0].session_id, made[4].session_id]
    )


async def test_without_redis_the_outbox_ends_the_one_that_was_replaced(
    servers: Callable[..., Server], place: Place
) -> None:
    server = servers(appendonly=True, config=["appendfsync always"])
    async with processes(server, place, 1, options=FORGIVING) as (app,):
        made = await app.log_in()
        server.kill()
        last = await app.log_in(replacing=made.session_id)
        assert await live(app, [made, last]) == [False, True]
        server.start()
        assert has_live_copy(server, made.session_id) or has_tombstone(server, made.session_id)
        assert await live(app, [made, last]) == [False, True]
        await eventually(lambda: has_tombstone(server, made.session_id), within=20)


async def test_a_log_in_with_one_factor_or_two_replaces_a_session(house: House) -> None:
    first = await house.sign_up()
    second = await house.log_in(replacing=first.session.session_id)
    assert isinstance(second, LoggedIn)
    wrong = await house.log_in(password="a wrong horse", replacing=second.session.session_id)
    assert isinstance(wrong, Refused)
    assert await ids(house, second) == {second.session.session_id}
    _, codes = await house.with_totp(second)
    half = await house.log_in(EMAIL, replacing=second.session.session_id)
    assert isinstance(half, TotpNeeded)
    assert await ids(house, second) == {second.session.session_id}
    third = await house.accounts.finish_log_in(
        ticket=half.ticket, code=codes[0], replacing=second.session.session_id
    )
    assert isinstance(third, LoggedIn), third
    assert await ids(house, third) == {third.session.session_id}


async def ids(house: House, of: LoggedIn) -> set[str]:
    return {device.session_id for device in await house.sessions.list(of.user.id)}
