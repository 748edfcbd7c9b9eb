"""Sessions over both databases, and through a pooler: how one begins, lives, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from counterseal.database.engine import Database
from counterseal.sessions import Context, NewDevice, SessionReuseDetected
from support.databases import EVERY
from support.servers import Server
from support.sessions import SAFARI, Process, process
from support.stores import store_on, travel

pytestmark = pytest.mark.parametrize("place", EVERY, indirect=True)


@pytest.fixture
async def app(valkey: Server, database: Database) -> AsyncIterator[Process]:
    """One process."""
    async with store_on(valkey) as store, process(store, database) as app:
        yield app


async def test_a_session_is_there_until_it_is_revoked(app: Process) -> None:
    made = await app.log_in()
    found = await app.sessions.get(made.session_id)
    assert found is not None
    assert (found.user_id, found.device, found.ip) == ("ada", "Firefox on Linux", "192.0.2.1")
    assert (await app.sessions.revoke(made.session_id)).ended == 1
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.authenticate(made.access_token) is None
    assert await app.sessions.rotate(made.refresh_token) is None
    assert not await app.sessions.revoke(made.session_id)


async def test_who_comes_within_the_grace_gets_the_same_successor_and_later_it_is_reuse(app: Process) -> None:
    made = await app.log_in()
    first = await app.sessions.rotate(made.refresh_token)
    second = await app.sessions.rotate(made.refresh_token)
    assert first is not None
    assert second is not None
    assert first.tokens.refresh_token == second.tokens.refresh_token
    travel(app.store, timedelta(seconds=11))
    assert await app.sessions.get(made.session_id) is not None
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(first.tokens.refresh_token) is None
    assert len(app.told(SessionReuseDetected)) == 1


async def test_a_step_up_is_good_once_for_its_request(app: Process) -> None:
    made = await app.log_in()
    await app.sessions.set_totp_verified(made.session_id, Context.SIGNING, "r1")
    assert await app.sessions.require_step_up(made.session_id, Context.SIGNING, "r2") is None
    assert await app.sessions.require_step_up(made.session_id, Context.LOGIN) is None
    assert await app.sessions.require_step_up(made.session_id, Context.SIGNING, "r1") is not None
    assert await app.sessions.require_step_up(made.session_id, Context.SIGNING, "r1") is None


async def test_a_new_device_is_told_of(app: Process) -> None:
    first = await app.log_in()
    assert not first.new_device
    assert not (await app.log_in()).new_device
    other = await app.log_in(user_agent=SAFARI, ip="198.51.100.7")
    assert other.new_device
    assert [event.session_id for event in app.told(NewDevice)] == [other.session_id]


async def test_parallel_refreshes_parallel_log_ins_and_the_end_of_all_of_them(app: Process) -> None:
    made = await app.log_in()
    pairs = await asyncio.gather(*(app.sessions.rotate(made.refresh_token) for _ in range(8)))
    assert len({pair.tokens.refresh_token for pair in pairs if pair is not None}) == 1
    logins = await asyncio.gather(*(app.log_in() for _ in range(12)))
    assert len(await app.sessions.list("ada")) == 5
    assert (await app.sessions.revoke_all("ada")).ended == 5
    for login in logins:
        assert await app.sessions.get(login.session_id) is None
    await app.log_in("bob")
    await app.sessions.revoke_everybody()
    assert await app.sessions.list("bob") == ()
    assert await app.sessions.cleanup_expired() == 1
