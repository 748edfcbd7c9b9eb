"""New access tokens within a session: whoever has its refresh token goes on having it. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.database.engine import Database
from counterseal.sessions import Context, Created, Renewed, Session, SessionReuseDetected
from support.databases import Place
from support.servers import Server
from support.session_rows import row_of
from support.sessions import FIREFOX, SAFARI, Pause, Process, process
from support.stores import store_on, travel

WITH_CODE = ("pwd", "otp")
LATE = timedelta(seconds=10, milliseconds=1)


@pytest.fixture
async def apps(valkey: Server, database: Database, place: Place) -> AsyncIterator[list[Process]]:
    """Two processes on one Redis and one database."""
    async with (
        place.database() as second,
        store_on(valkey) as store,
        store_on(valkey) as other,
        process(store, database, relay=False) as app,
        process(other, second, relay=False) as beside,
    ):
        yield [app, beside]


async def renewed(app: Process, made: Created, *, amr: Sequence[str] = WITH_CODE) -> Renewed:
    answer = await app.sessions.renew(made.session_id, amr=amr)
    assert answer is not None
    return answer


async def copy_of(app: Process, made: Created) -> Session:
    """The session as a copy has it, with which the database was not asked."""
    found = await app.sessions.get(made.session_id)
    assert found is not None
    return found


def reuse(apps: Sequence[Process]) -> list[object]:
    return [event for app in apps for event in app.told(SessionReuseDetected)]


async def test_a_renewal_is_seen_everywhere_at_once_and_leaves_the_refresh_token(apps: list[Process]) -> None:
    made = await apps[0].log_in()
    await copy_of(apps[1], made)
    answer = await renewed(apps[0], made)
    assert answer.session_id == made.session_id
    assert answer.access_token not in repr(answer)
    assert answer.access_expires_at > made.session.created_at
    for app in apps:
        assert (await copy_of(app, made)).amr == WITH_CODE
    by_token = await apps[1].sessions.authenticate(answer.access_token)
    assert by_token is not None
    assert by_token.version == made.session.version + 1
    assert by_token.authenticated_at == made.session.authenticated_at
    assert await apps[1].sessions.authenticate(made.access_token) is not None
    for _ in range(2):
        travel(apps[0].store, LATE)
        travel(apps[1].store, LATE)
        assert await apps[0].sessions.renew(made.session_id) is not None
    rotated = await apps[1].sessions.rotate(made.refresh_token)
    assert rotated is not None
    assert rotated.session.amr == WITH_CODE
    assert reuse(apps) == []


async def test_what_is_not_told_anew_stays(apps: list[Process]) -> None:
    made = await apps[0].log_in(user_agent=FIREFOX, ip="192.0.2.1")
    await renewed(apps[0], made)
    for odd in (None, "", "\x00"):
        await apps[0].sessions.renew(made.session_id, user_agent=odd, ip=odd)
    await apps[0].sessions.renew(made.session_id, ip="somewhere")
    found = await copy_of(apps[1], made)
    assert (found.amr, found.user_agent, found.ip) == (WITH_CODE, FIREFOX, "192.0.2.1")
    await apps[0].sessions.renew(made.session_id, user_agent=f"{SAFARI}\n", ip="203.0.113.7")
    found = await copy_of(apps[1], made)
    assert (found.user_agent, found.ip, found.device) == (SAFARI, "203.0.113.7", "Safari on iPhone")
    (device,) = await apps[0].sessions.list("ada")
    assert (device.user_agent, device.ip, device.device) == (SAFARI, "203.0.113.7", "Safari on iPhone")


async def test_a_session_that_has_ended_is_not_renewed_and_nothing_else_is_written(
    apps: list[Process],
) -> None:
    made, other = await apps[0].log_in(), await apps[0].log_in()

    async def also(connection: AsyncConnection) -> None:
        await apps[0].sessions.set_totp_verified(other.session_id, Context.LOGIN, within=connection)

    await apps[0].sessions.revoke(made.session_id)
    assert await apps[0].sessions.renew(made.session_id, also=also) is None
    for nothing in ("", "ada", "ada.none", "x" * 5000):
        assert await apps[0].sessions.renew(nothing, amr=WITH_CODE) is None
    assert await apps[0].sessions.require_step_up(other.session_id, Context.LOGIN) is None
    assert await apps[0].sessions.renew(other.session_id, also=also) is not None
    assert await apps[0].sessions.require_step_up(other.session_id, Context.LOGIN) is not None


async def test_refreshes_and_renewals_at_once_leave_one_successor_and_no_dead_token(
    apps: list[Process],
) -> None:
    for round_ in range(10):
        made = await apps[0].log_in(f"user{round_}")
        answers = await asyncio.gather(
            *(
                apps[number % 2].sessions.rotate(made.refresh_token)
                if number % 4 < 2
                else renewed(apps[number % 2], made)
                for number in range(12)
            )
        )
        rotated = [answer for answer in answers if not isinstance(answer, Renewed)]
        (successor,) = {answer.tokens.refresh_token for answer in rotated if answer is not None}
        assert None not in rotated
        for app in apps:
            assert (await copy_of(app, made)).amr == WITH_CODE
        travel(apps[0].store, LATE)
        travel(apps[1].store, LATE)
        assert await apps[round_ % 2].sessions.rotate(successor) is not None
    assert reuse(apps) == []


async def test_a_refresh_that_is_under_way_in_redis_alone_gets_what_was_renewed_meanwhile(
    apps: list[Process],
) -> None:
    made = await apps[0].log_in()
    stop = Pause(apps[0].sessions._backing.copies, "rotate", after=True)
    refreshing = asyncio.create_task(apps[0].sessions.rotate(made.refresh_token))
    await stop.reached()
    await renewed(apps[1], made)
    assert (await copy_of(apps[1], made)).amr == WITH_CODE
    stop.release()
    rotated = await refreshing
    assert rotated is not None
    assert rotated.session.amr == WITH_CODE
    found = await copy_of(apps[1], made)
    assert (found.amr, found.version) == (
        WITH_CODE,
        (await row_of(apps[1].database, made.session_id)).version,
    )
    travel(apps[1].store, LATE)
    assert await apps[1].sessions.rotate(rotated.tokens.refresh_token) is not None
    assert reuse(apps) == []


async def test_a_refresh_that_the_database_was_not_told_of_survives_a_renewal(apps: list[Process]) -> None:
    without, beside = apps
    made = await without.log_in()
    await without.database.close()
    first = await without.sessions.rotate(made.refresh_token)
    assert first is not None
    await renewed(beside, made)
    await without.database.open()
    for app in apps:
        await app.sessions._backing.pending.settle()
    travel(beside.store, LATE)
    assert await beside.sessions.rotate(first.tokens.refresh_token) is not None
    assert (await copy_of(beside, made)).amr == WITH_CODE
    assert reuse(apps) == []


async def test_a_renewal_is_in_the_audit_log_with_the_client_as_a_commitment(apps: list[Process]) -> None:
    made = await apps[0].log_in()
    await apps[0].sessions.renew(made.session_id, amr=WITH_CODE, user_agent=SAFARI, ip="203.0.113.7")
    entries = await apps[0].audit.read("account:ada", limit=100)
    (entry,) = [entry for entry in entries if entry.action == "session.renewed"]
    assert '"otp"' in entry.body
    assert "203.0.113.7" not in entry.body
    assert "Safari" not in entry.body
