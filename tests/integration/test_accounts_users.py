"""Profiles, what an administrator does with an account, and what nobody can see from outside. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import event, func, select

from counterseal.accounts.events import UserDeleted, UserRestored, UserSuspended
from counterseal.accounts.log_in import LoggedIn
from counterseal.accounts.refused import (
    EMAIL_TAKEN,
    INVALID_CREDENTIALS,
    STATUS_CONFLICT,
    USER_UNKNOWN,
    Refused,
)
from counterseal.accounts.user import Status
from counterseal.database.engine import Database
from counterseal.database.tables import audit_values, one_time_tokens, totp_backup_codes, totp_configs
from support.accounts import EMAIL, WRONG, House, accounts_on
from support.servers import Server

NOBODY = "nobody@example.com"


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What the database is asked meanwhile."""
    seen: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        seen.append(statement.split(None, 1)[0])

    assert database._engine is not None
    engines = {database._engine.sync_engine, database._reading.sync_engine}  # type: ignore[union-attr]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield seen
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)


# -- profiles ----------------------------------------------------------------------------------------------------


async def test_a_profile_is_kept_in_the_cache(house: House) -> None:
    made = await house.sign_up(full_name="Ada")
    assert await house.accounts.user(made.user.id) == made.user
    with statements(house.database) as asked:
        assert await house.accounts.user(made.user.id) == made.user
    assert asked == []


async def test_an_unknown_user_is_none(house: House) -> None:
    for user_id in ("nobody", "", "x" * 129, "\x00", "\ud800"):
        assert await house.accounts.user(user_id) is None


async def test_a_profile_that_another_release_kept_is_read_anew(house: House) -> None:
    made = await house.sign_up()
    for kept in ({"id": made.user.id}, {"created_at": 7, "email_verified_at": None}, {}):
        await house.cache.user_profiles.set(made.user.id, kept)
        assert await house.accounts.user(made.user.id) == made.user


async def test_a_change_of_an_account_is_seen_at_once(house: House) -> None:
    made = await house.sign_up()
    await house.accounts.user(made.user.id)
    await house.accounts.suspend(made.user.id, by="root")
    assert (await house.accounts.user(made.user.id) or made.user).status is Status.SUSPENDED
    await house.accounts.restore(made.user.id, by="root")
    assert (await house.accounts.user(made.user.id) or made.user).status is Status.ACTIVE
    await house.accounts.delete(made.user.id, by="root")
    assert await house.accounts.user(made.user.id) is None


# -- administration ----------------------------------------------------------------------------------------------


async def test_a_suspension_ends_every_session_and_is_audited(house: House) -> None:
    root, made = await house.sign_up("root@example.com"), await house.sign_up()
    other = await house.log_in()
    outcome = await house.accounts.suspend(made.user.id, by=root.user.id, why="asked by Ada")
    assert not isinstance(outcome, Refused)
    assert outcome.ended == 2
    for session in (made, other):
        assert await house.sessions.authenticate(session.tokens.access_token) is None
        assert await house.sessions.rotate(session.tokens.refresh_token) is None
    assert await house.column("suspended_by") == root.user.id
    assert house.heard(UserSuspended) == [UserSuspended(made.user.id)]
    (entry,) = await house.entries(f"account:{made.user.id}", "admin.user_suspended")
    assert f'"by":"{root.user.id}"' in entry.body
    assert "Ada" not in entry.body
    async with house.database.read() as connection:
        kept = select(audit_values.c.value).where(audit_values.c.kind == "free_text")
        assert (await connection.execute(kept)).scalar_one() == "asked by Ada"
    assert await house.sessions.authenticate(root.tokens.access_token) is not None


async def test_a_restored_account_logs_in_again_and_its_old_sessions_stay_ended(house: House) -> None:
    made = await house.sign_up()
    await house.accounts.suspend(made.user.id, by="the night shift")
    assert await house.column("suspended_by") is None  # no account has this id
    assert await house.accounts.restore(made.user.id, by="root") is None
    assert (await house.column("status"), await house.column("suspended_at")) == ("active", None)
    assert await house.sessions.authenticate(made.tokens.access_token, fresh=True) is None
    assert isinstance(await house.log_in(), LoggedIn)
    assert house.heard(UserRestored) == [UserRestored(made.user.id)]
    assert len(await house.entries(f"account:{made.user.id}", "admin.user_restored")) == 1


async def test_a_deleted_account_has_no_secret_any_more_and_keeps_its_address(house: House) -> None:
    made = await house.sign_up()
    await house.with_totp(made)
    outcome = await house.accounts.delete(made.user.id, by="root")
    assert not isinstance(outcome, Refused)
    assert outcome.ended == 1
    assert (await house.column("status"), await house.column("password_hash")) == ("deleted", None)
    async with house.database.read() as connection:
        for table in (one_time_tokens, totp_configs, totp_backup_codes):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar_one() == 0
    assert await house.log_in() == INVALID_CREDENTIALS
    assert await house.accounts.sign_up(email=EMAIL, password=WRONG) == EMAIL_TAKEN
    assert house.heard(UserDeleted) == [UserDeleted(made.user.id)]
    assert len(await house.entries(f"account:{made.user.id}", "admin.user_deleted")) == 1


async def test_what_does_not_fit_the_state_of_an_account_changes_nothing(house: House) -> None:
    made = await house.sign_up()
    accounts, user_id = house.accounts, made.user.id
    for change in (accounts.suspend, accounts.restore, accounts.delete):
        assert await change("nobody", by="root") == USER_UNKNOWN
    assert await accounts.restore(user_id, by="root") == STATUS_CONFLICT
    await accounts.suspend(user_id, by="root")
    assert await accounts.suspend(user_id, by="root") == STATUS_CONFLICT
    await accounts.delete(user_id, by="root")
    for change in (accounts.suspend, accounts.restore, accounts.delete):
        assert await change(user_id, by="root") == STATUS_CONFLICT
    actions = [entry.action for entry in await house.audit.read(f"account:{user_id}")]
    assert [action for action in actions if action.startswith("admin.")] == [
        "admin.user_suspended",
        "admin.user_deleted",
    ]


async def test_a_refused_suspension_ends_no_session(house: House) -> None:
    made = await house.sign_up()
    await house.accounts.suspend(made.user.id, by="root")
    await house.accounts.restore(made.user.id, by="root")
    again = await house.log_in()
    assert await house.accounts.restore(made.user.id, by="root") == STATUS_CONFLICT
    assert await house.sessions.authenticate(again.tokens.access_token, fresh=True) is not None


async def test_of_suspensions_at_once_one_counts(house: House) -> None:
    made = await house.sign_up()
    outcomes = await asyncio.gather(
        *(house.accounts.suspend(made.user.id, by=f"root {number}") for number in range(8))
    )
    assert outcomes.count(STATUS_CONFLICT) == 7
    assert len(await house.entries(f"account:{made.user.id}", "admin.user_suspended")) == 1


async def test_log_ins_beside_a_suspension_leave_no_session(house: House) -> None:
    made = await house.sign_up()
    outcomes = await asyncio.gather(
        *(house.log_in() for _ in range(6)),
        house.accounts.suspend(made.user.id, by="root"),
        *(house.log_in() for _ in range(6)),
    )
    assert any(isinstance(outcome, Refused) for outcome in outcomes)
    assert await house.sessions.list(made.user.id) == ()
    for outcome in outcomes:
        if isinstance(outcome, LoggedIn):
            assert await house.sessions.authenticate(outcome.tokens.access_token) is None


# -- what nobody can see from outside ----------------------------------------------------------------------------


async def test_an_unknown_address_asks_the_database_for_as_much_as_a_known_one(house: House) -> None:
    await house.sign_up()

    async def asked_by(call: Callable[[str], Awaitable[object]]) -> list[list[str]]:
        """The statements for the known address, and for the unknown one, once each has been seen before."""
        asked: list[list[str]] = []
        for email in (EMAIL, NOBODY):
            await call(email)
            with statements(house.database) as seen:
                await call(email)
            asked.append(sorted(seen))
        return asked

    for call in (
        lambda email: house.log_in(email, WRONG),
        lambda email: house.accounts.request_password_reset(email=email),
    ):
        known, unknown = await asked_by(call)
        assert known == unknown
        assert "INSERT" in known  # both commit


async def test_a_locked_address_costs_no_hash_whether_or_not_there_is_an_account(house: House) -> None:
    await house.sign_up()
    for email in (EMAIL, NOBODY):
        for _ in range(5):
            await house.log_in(email, WRONG)
    house.travel(timedelta(minutes=2))
    passwords = house.accounts._backing.passwords
    async with asyncio.timeout(20), passwords._room, passwords._room:  # nobody can make a hash now
        for email in (EMAIL, NOBODY):
            assert (await house.log_in(email)).code == "locked"
