"""Sessions in the audit log, on both databases: each change has its entry, and without the entry there is no change."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from counterseal.audit.chain import hash_entry
from counterseal.database.engine import Database
from counterseal.database.tables import audit_values, outbox_jobs, user_sessions, users
from counterseal.sessions import Created, Reason
from support.servers import Server
from support.session_rows import parts_of, row_of
from support.sessions import Process, process
from support.stores import store_on, travel

LATE = timedelta(seconds=11)


class LogFullError(Exception):
    """What an append raises that fails."""


@pytest.fixture
async def app(valkey: Server, database: Database) -> AsyncIterator[Process]:
    """One process."""
    async with store_on(valkey) as store, process(store, database, relay=False) as app:
        yield app


async def entries(app: Process, stream: str = "account:ada") -> list[dict[str, Any]]:
    """The bodies of a stream, in order."""
    read = await app.audit.read(stream, limit=1000)
    bodies = [json.loads(entry.body) for entry in read]
    assert [entry.action for entry in read] == [body["action"] for body in bodies]
    return bodies


def part(made: Created) -> str:
    return parts_of(made.session_id)[1]


def refuse(app: Process) -> Callable[[], None]:
    """Let every append fail; gives what makes it right again."""
    backing = app.sessions._backing
    good, good_many = backing.audit, backing.audit_many

    async def fail(*_: Any, **__: Any) -> None:
        raise LogFullError

    backing.audit = backing.audit_many = fail  # type: ignore[assignment]

    def mend() -> None:
        backing.audit, backing.audit_many = good, good_many

    return mend


async def test_every_change_has_its_entry_in_the_stream_of_its_user(app: Process) -> None:
    made = await app.log_in(amr=("pwd", "otp"))
    await app.sessions.rotate(made.refresh_token)
    await app.sessions.rotate(made.refresh_token)  # within the grace: nothing has changed
    await app.sessions.reissue(made.session_id)
    await app.sessions.revoke(made.session_id, reason=Reason.LOGOUT)
    await app.sessions.revoke(made.session_id, reason=Reason.ADMIN)
    first, second, third = [await app.log_in() for _ in range(3)]
    await app.sessions.revoke_others(third.session_id)
    await app.sessions.revoke_all("ada", reason=Reason.PASSWORD_CHANGE)
    found = await entries(app)
    assert [body["action"] for body in found] == [
        "session.created",
        "session.rotated",
        "session.rotated",
        "session.revoked",
        *["session.created"] * 3,
        "session.revoked",
        "session.revoked",
    ]
    assert (found[0]["session"], found[0]["profile"], found[0]["amr"]) == (
        part(made),
        "standard",
        ["pwd", "otp"],
    )
    assert [body["session"] for body in found[1:3]] == [part(made)] * 2
    assert found[3] == {"action": "session.revoked", "sessions": [part(made)], "reason": "logout"}
    assert (set(found[7]["sessions"]), found[7]["reason"]) == ({part(first), part(second)}, "others")
    assert (found[8]["sessions"], found[8]["reason"]) == ([part(third)], "password_change")
    assert await entries(app, "system") == []


async def test_eviction_reuse_and_the_end_of_time_have_theirs(app: Process) -> None:
    made = [await app.log_in() for _ in range(6)]
    await app.sessions.rotate(made[5].refresh_token)
    travel(app.store, LATE)
    await app.sessions.rotate(made[5].refresh_token)
    travel(app.store, timedelta(days=2))
    assert await app.sessions.cleanup_expired() == 4
    found = await entries(app)
    changes = [body for body in found if body["action"] != "session.created"]
    assert [body["action"] for body in changes] == [
        "session.evicted",
        "session.rotated",
        "session.revoked",
        "session.reuse_detected",
        "session.revoked",
    ]
    assert (changes[0]["sessions"], changes[0]["reason"]) == ([part(made[0])], "evicted")
    assert changes[2]["reason"] == "reuse_detected"
    assert changes[3]["session"] == part(made[5])
    assert (set(changes[4]["sessions"]), changes[4]["reason"]) == (
        {part(one) for one in made[1:5]},
        "expired",
    )
    evicted = [body["action"] for body in found].index("session.evicted")
    assert found[evicted + 1]["session"] == part(made[5])


async def test_the_end_of_everybody_is_in_the_stream_of_the_system(app: Process) -> None:
    await app.log_in()
    await app.sessions.revoke_everybody()
    (body,) = await entries(app, "system")
    assert (body["action"], body["everybody"], body["epoch"], body["reason"]) == (
        "session.revoked",
        True,
        1,
        "admin",
    )


async def test_nobody_and_nothing_leaves_no_entry(app: Process) -> None:
    await app.log_in()
    for nothing in ("ada.none", "eve.none", "none"):
        await app.sessions.revoke(nothing)
        await app.sessions.reissue(nothing)
    await app.sessions.rotate("v1.ada.none." + "A" * 59)
    await app.sessions.revoke_all("eve")
    assert [body["action"] for body in await entries(app)] == ["session.created"]
    assert await entries(app, "account:eve") == []


async def test_the_chain_holds_and_addresses_are_kept_where_they_can_be_erased(app: Process) -> None:
    made = await app.log_in()
    await app.sessions.rotate(made.refresh_token)
    travel(app.store, LATE)
    await app.sessions.rotate(made.refresh_token)
    previous = b""
    for number, entry in enumerate(await app.audit.read("account:ada"), start=1):
        assert entry.seq == number
        assert number == 1 or entry.prev == previous
        assert entry.hash == hash_entry(entry.stream, entry.seq, entry.prev, entry.at, entry.body)
        assert "192.0.2.1" not in entry.body
        assert "Firefox" not in entry.body
        previous = entry.hash
    async with app.database.read() as connection:
        kept = await connection.execute(select(audit_values.c.kind, audit_values.c.subject_id))
        assert {tuple(row) for row in kept} == {("ip", "ada"), ("user_agent", "ada")}


async def counted(app: Process) -> tuple[int, ...]:
    """How many rows each table has that a change could leave something in."""
    async with app.database.read() as connection:
        return tuple(
            [
                (await connection.execute(select(func.count()).select_from(table))).scalar_one()
                for table in (users, user_sessions, outbox_jobs)
            ]
        )


async def test_without_its_entry_no_session_begins_and_none_is_evicted(app: Process) -> None:
    made = [await app.log_in() for _ in range(5)]
    before = await counted(app)
    mend = refuse(app)
    with pytest.raises(LogFullError):
        await app.log_in()
    with pytest.raises(LogFullError):
        await app.log_in("bob")
    assert await counted(app) == before
    assert [await app.sessions.get(one.session_id) is not None for one in made] == [True] * 5
    mend()
    assert (await app.log_in()).evicted == (made[0].session_id,)


async def test_without_its_entry_no_token_is_replaced(app: Process) -> None:
    made = await app.log_in()
    before = await row_of(app.database, made.session_id)
    mend = refuse(app)
    for change in (
        lambda: app.sessions.rotate(made.refresh_token),
        lambda: app.sessions.reissue(made.session_id, amr=("otp",), authenticated=True),
    ):
        with pytest.raises(LogFullError):
            await change()
    assert await row_of(app.database, made.session_id) == before
    mend()
    fresh = await app.sessions.rotate(made.refresh_token)
    assert fresh is not None
    assert fresh.session.amr == ("pwd",)
    assert await app.sessions.rotate(fresh.tokens.refresh_token) is not None


Change = Callable[[Process, Created], Awaitable[object]]
ENDINGS: dict[str, Change] = {
    "revoke": lambda app, made: app.sessions.revoke(made.session_id),
    "revoke_others": lambda app, _: app.sessions.revoke_others("ada.none"),
    "revoke_all": lambda app, _: app.sessions.revoke_all("ada"),
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_without_its_entry_no_end_is_on_record_and_the_call_may_be_repeated(
    app: Process, name: str
) -> None:
    end = ENDINGS[name]
    made = await app.log_in()
    before = await row_of(app.database, made.session_id)
    counts = await counted(app)
    mend = refuse(app)
    with pytest.raises(LogFullError):
        await end(app, made)
    assert await row_of(app.database, made.session_id) == before
    assert await counted(app) == counts
    # In Redis it has ended: a revocation that was asked for is never taken back.
    assert await app.sessions.get(made.session_id) is None
    mend()
    await end(app, made)
    assert (await row_of(app.database, made.session_id)).state == "revoked"
    assert [body["action"] for body in await entries(app)] == ["session.created", "session.revoked"]


async def test_without_its_entry_everybody_stays(app: Process) -> None:
    made = await app.log_in()
    refuse(app)
    with pytest.raises(LogFullError):
        await app.sessions.revoke_everybody()
    assert await app.sessions.get(made.session_id, fresh=True) is not None


async def test_without_its_entry_reuse_and_the_end_of_time_change_nothing(app: Process) -> None:
    made, idle = await app.log_in(), await app.log_in("bob")
    await app.sessions.rotate(made.refresh_token)
    travel(app.store, LATE)
    mend = refuse(app)
    with pytest.raises(LogFullError):
        await app.sessions.rotate(made.refresh_token)
    assert (await row_of(app.database, made.session_id)).state == "active"
    travel(app.store, timedelta(days=2))
    with pytest.raises(LogFullError):
        await app.sessions.cleanup_expired()
    assert (await row_of(app.database, idle.session_id)).state == "active"
    mend()
    assert await app.sessions.cleanup_expired() == 2
