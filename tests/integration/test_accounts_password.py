"""Another password, and the proof of an address. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.events import EmailVerificationRequested, PasswordChanged, PasswordResetRequested
from counterseal.accounts.log_in import LoggedIn, TotpNeeded
from counterseal.accounts.refused import (
    INVALID_CREDENTIALS,
    SESSION_ENDED,
    TOKEN_INVALID,
    USER_UNKNOWN,
    WRONG_PASSWORD,
    Refused,
)
from counterseal.accounts.user import User
from counterseal.core.tokens import hash_token
from counterseal.database.engine import Database
from counterseal.database.tables import one_time_tokens, users
from counterseal.sessions.session import Rotated
from support.accounts import ELSE, EMAIL, PASSWORD, WRONG, House, accounts_on
from support.databases import Databases, Place
from support.servers import Server
from support.waiting import eventually

NOBODY = "nobody@example.com"


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


async def reset_token(house: House, email: str = EMAIL) -> str:
    await house.accounts.request_password_reset(email=email)
    return house.heard(PasswordResetRequested)[-1].token


# -- a change ----------------------------------------------------------------------------------------------------


async def test_a_change_ends_the_other_sessions_and_renews_this_one(house: House) -> None:
    made, other = await house.sign_up(), await house.log_in()
    changed = await house.accounts.change_password(made.session, current=PASSWORD, new=ELSE)
    assert isinstance(changed, LoggedIn)
    assert changed.session.session_id == made.session.session_id
    assert await house.sessions.authenticate(changed.tokens.access_token) is not None
    assert await house.sessions.rotate(changed.tokens.refresh_token) is not None
    assert await house.sessions.authenticate(other.tokens.access_token) is None
    assert await house.sessions.rotate(other.tokens.refresh_token) is None
    assert await house.log_in() == INVALID_CREDENTIALS
    assert isinstance(await house.log_in(EMAIL, ELSE), LoggedIn)
    assert house.heard(PasswordChanged) == [PasswordChanged(made.user.id, EMAIL, by_reset=False)]
    stream = f"account:{made.user.id}"
    (entry,) = await house.entries(stream, "password.changed")
    assert '"by":"owner"' in entry.body
    assert any("password_change" in ended.body for ended in await house.entries(stream, "session.revoked"))


async def test_the_refresh_token_before_a_change_is_good_for_nothing(house: House) -> None:
    made = await house.sign_up()
    await house.accounts.change_password(made.session, current=PASSWORD, new=ELSE)
    assert await house.sessions.rotate(made.tokens.refresh_token) is None


async def test_the_current_password_is_needed_and_guesses_of_it_lock(house: House) -> None:
    made = await house.sign_up()
    other = await house.log_in()
    for _ in range(4):
        answer = await house.accounts.change_password(made.session, current=WRONG, new=ELSE)
        assert answer == WRONG_PASSWORD
    locked = await house.accounts.change_password(made.session, current=WRONG, new=ELSE)
    assert isinstance(locked, Refused)
    assert locked.code == "locked"
    right = await house.accounts.change_password(made.session, current=PASSWORD, new=ELSE)
    assert isinstance(right, Refused)
    assert right.code == "locked"
    assert await house.sessions.authenticate(other.tokens.access_token, fresh=True) is not None


async def test_a_weak_password_changes_nothing(house: House) -> None:
    made = await house.sign_up()
    token = await reset_token(house)
    for new in ("short", EMAIL, "password123", "x" * 257):
        refused = await house.accounts.change_password(made.session, current=PASSWORD, new=new)
        assert isinstance(refused, Refused)
        assert refused.code == "password_too_weak"
        refused = await house.accounts.reset_password(token=token, new=new)
        assert refused is not None
        assert refused.code == "password_too_weak"
    assert isinstance(await house.log_in(), LoggedIn)
    assert await house.accounts.reset_password(token=token, new=ELSE) is None  # it was not used up


async def test_a_session_that_has_ended_changes_no_password(house: House) -> None:
    made = await house.sign_up()
    await house.sessions.revoke(made.session.session_id)
    assert await house.accounts.change_password(made.session, current=PASSWORD, new=ELSE) == SESSION_ENDED
    assert isinstance(await house.log_in(), LoggedIn)


async def test_of_several_changes_at_once_one_counts(house: House) -> None:
    made = await house.sign_up()
    news = [f"{ELSE} {number}" for number in range(5)]
    answers = await asyncio.gather(
        *(house.accounts.change_password(made.session, current=PASSWORD, new=new) for new in news)
    )
    (chosen,) = [new for new, answer in zip(news, answers, strict=True) if isinstance(answer, LoggedIn)]
    assert isinstance(await house.log_in(EMAIL, chosen), LoggedIn)
    assert len(await house.entries(f"account:{made.user.id}", "password.changed")) == 1


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_a_refresh_beside_a_change_waits_and_neither_fails(
    house: House, databases: Databases, place: Place
) -> None:
    made, other = await house.sign_up(), await house.log_in()
    refreshing: list[asyncio.Task[Rotated | None]] = []

    async def somebody_waits() -> bool:
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(await databases.execute(place, waiting))

    async def change(connection: AsyncConnection) -> None:
        await house.audit.append(
            connection, stream=f"account:{made.user.id}", action="password.changed", body={}
        )
        refreshing.append(asyncio.create_task(house.sessions.rotate(other.tokens.refresh_token)))
        await eventually(somebody_waits, 20)

    ended = await house.sessions.revoke_others(made.session.session_id, also=change)
    assert ended.ended == 1
    assert await refreshing[0] is None


# -- a reset -----------------------------------------------------------------------------------------------------


async def test_a_reset_ends_every_session_and_logs_nobody_in(house: House) -> None:
    made, other = await house.sign_up(), await house.log_in()
    token = await reset_token(house)
    assert token not in repr(house.told)
    assert await house.accounts.reset_password(token=token, new=ELSE) is None
    for session in (made, other):
        assert await house.sessions.authenticate(session.tokens.access_token) is None
        assert await house.sessions.rotate(session.tokens.refresh_token) is None
    assert await house.log_in() == INVALID_CREDENTIALS
    assert isinstance(await house.log_in(EMAIL, ELSE), LoggedIn)
    assert house.heard(PasswordChanged) == [PasswordChanged(made.user.id, EMAIL, by_reset=True)]
    (entry,) = await house.entries(f"account:{made.user.id}", "password.changed")
    assert '"by":"reset"' in entry.body


async def test_whoever_has_the_token_reads_the_mail_so_the_address_is_verified(house: House) -> None:
    made = await house.sign_up()
    assert not (await house.accounts.user(made.user.id) or made.user).email_verified
    await house.accounts.reset_password(token=await reset_token(house), new=ELSE)
    user = await house.accounts.user(made.user.id)
    assert user is not None
    assert user.email_verified


async def test_a_locked_account_can_be_reset_which_ends_the_lock(house: House) -> None:
    await house.sign_up()
    for _ in range(5):
        await house.log_in(EMAIL, WRONG)
    assert (await house.log_in()).code == "locked"
    assert await house.accounts.reset_password(token=await reset_token(house), new=ELSE) is None
    assert isinstance(await house.log_in(EMAIL, ELSE), LoggedIn)


async def test_a_reset_leaves_the_second_factor_as_it_is(house: House) -> None:
    await house.with_totp(await house.sign_up())
    await house.accounts.reset_password(token=await reset_token(house), new=ELSE)
    assert isinstance(await house.log_in(EMAIL, ELSE), TotpNeeded)


async def test_only_the_hash_of_a_token_is_kept(house: House) -> None:
    await house.sign_up()
    token = await reset_token(house)
    async with house.database.read() as connection:
        columns = one_time_tokens.c
        query = select(columns.token_hash).where(columns.purpose == "reset_password")
        assert bytes((await connection.execute(query)).scalar_one()) == hash_token(token)


async def test_of_twenty_resets_with_one_token_at_once_one_counts(house: House) -> None:
    made = await house.sign_up()
    token = await reset_token(house)
    news = [f"{ELSE} {number}" for number in range(20)]
    answers = await asyncio.gather(*(house.accounts.reset_password(token=token, new=new) for new in news))
    assert answers.count(TOKEN_INVALID) == 19
    assert isinstance(await house.log_in(EMAIL, news[answers.index(None)]), LoggedIn)
    assert len(await house.entries(f"account:{made.user.id}", "password.changed")) == 1


async def test_a_token_is_good_once_and_for_a_day(house: House) -> None:
    await house.sign_up()
    first, second = await reset_token(house), await reset_token(house)
    assert await house.accounts.reset_password(token=first, new=ELSE) is None
    assert await house.accounts.reset_password(token=first, new=PASSWORD) == TOKEN_INVALID
    assert await house.accounts.reset_password(token=second, new=PASSWORD) == TOKEN_INVALID
    third = await reset_token(house)
    house.travel(timedelta(hours=24))
    assert await house.accounts.reset_password(token=third, new=PASSWORD) == TOKEN_INVALID


async def test_what_is_no_token_opens_nothing(house: House) -> None:
    for token in ("", "x" * 43, "x" * 100_000, "\ud800", "\x00"):
        assert await house.accounts.reset_password(token=token, new=ELSE) == TOKEN_INVALID
        assert await house.accounts.verify_email(token=token) == TOKEN_INVALID


async def test_an_unknown_address_is_answered_alike_and_no_mail_is_sent(house: House) -> None:
    suspended = await house.sign_up("bob@example.com")
    await house.accounts.suspend(suspended.user.id, by="root")
    for email in (NOBODY, "bob@example.com", "no address"):
        assert await house.accounts.request_password_reset(email=email) is None
    assert house.heard(PasswordResetRequested) == []
    assert len(await house.entries("system", "password.reset_requested")) == 2


async def test_five_mails_an_hour_are_sent_to_one_account(house: House) -> None:
    await house.sign_up()
    house.begin_an_hour()
    for _ in range(8):
        await house.accounts.request_password_reset(email=EMAIL)
    assert len(house.heard(PasswordResetRequested)) == 5
    house.travel(timedelta(hours=2))
    await house.accounts.request_password_reset(email=EMAIL)
    assert len(house.heard(PasswordResetRequested)) == 6


async def test_a_suspended_account_is_not_reset(house: House) -> None:
    made = await house.sign_up()
    token = await reset_token(house)
    await house.accounts.suspend(made.user.id, by="root")
    assert await house.accounts.reset_password(token=token, new=ELSE) == TOKEN_INVALID


# -- an address --------------------------------------------------------------------------------------------------


async def test_a_token_that_comes_back_verifies_the_address_once(house: House) -> None:
    made = await house.sign_up()
    assert await house.accounts.user(made.user.id) == made.user
    (requested,) = house.heard(EmailVerificationRequested)
    verified = await house.accounts.verify_email(token=requested.token)
    assert isinstance(verified, User)
    assert verified.email_verified
    assert await house.accounts.user(made.user.id) == verified
    assert await house.accounts.verify_email(token=requested.token) == TOKEN_INVALID
    assert len(await house.entries(f"account:{made.user.id}", "email.verified")) == 1


async def test_a_token_verifies_the_address_that_it_was_sent_to_and_no_other(house: House) -> None:
    made = await house.sign_up()
    (requested,) = house.heard(EmailVerificationRequested)
    async with house.database.begin() as connection:
        moved = update(users).where(users.c.id == made.user.id).values(email="eve@example.com")
        await connection.execute(moved)
    assert await house.accounts.verify_email(token=requested.token) == TOKEN_INVALID


async def test_another_mail_may_be_asked_for_until_the_address_is_verified(house: House) -> None:
    made = await house.sign_up()
    assert await house.accounts.request_email_verification(made.user.id) is None
    first, second = house.heard(EmailVerificationRequested)
    assert isinstance(await house.accounts.verify_email(token=second.token), User)
    assert await house.accounts.request_email_verification(made.user.id) is None
    assert house.heard(EmailVerificationRequested) == [first, second]
    assert await house.accounts.request_email_verification("nobody") == USER_UNKNOWN
    assert await house.accounts.request_email_verification("\x00") == USER_UNKNOWN


# -- keeping house -----------------------------------------------------------------------------------------------


async def test_tokens_that_expired_a_day_ago_are_removed(house: House) -> None:
    await house.sign_up()
    old = await reset_token(house)
    house.travel(timedelta(hours=47))
    new = await reset_token(house)
    assert await house.accounts.cleanup_expired() == 0
    house.travel(timedelta(hours=2))
    assert await house.accounts.cleanup_expired() == 2  # the one to verify the address, and the old one
    async with house.database.read() as connection:
        left = (await connection.execute(select(func.count()).select_from(one_time_tokens))).scalar_one()
    assert left == 1
    assert await house.accounts.reset_password(token=old, new=ELSE) == TOKEN_INVALID
    assert await house.accounts.reset_password(token=new, new=ELSE) is None
