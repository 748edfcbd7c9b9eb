"""Sign-up and log-in: who comes in, what is told to whom does not, and when nobody does. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from counterseal.accounts.events import AccountLocked, EmailVerificationRequested, UserCreated
from counterseal.accounts.log_in import LoggedIn
from counterseal.accounts.refused import EMAIL_TAKEN, INVALID_CREDENTIALS, Refused
from counterseal.accounts.user import Status
from counterseal.core.settings import SessionSettings
from counterseal.database.engine import Database
from counterseal.database.tables import audit_values, auth_attempts, user_sessions, users
from counterseal.sessions.session import Profile
from support.accounts import ELSE, EMAIL, PASSWORD, WRONG, House, accounts_on
from support.servers import Server

NOBODY = "nobody@example.com"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


async def fail(house: House, times: int, email: str = EMAIL) -> list[str]:
    answers = [await house.log_in(email, WRONG) for _ in range(times)]
    return [answer.code for answer in answers]


# -- sign-up -----------------------------------------------------------------------------------------------------


async def test_who_signs_up_is_logged_in(house: House) -> None:
    made = await house.sign_up(
        "Ada@Example.COM", full_name=" Ada Lovelace ", user_agent=FIREFOX, ip="192.0.2.7"
    )
    assert (made.user.email, made.user.domain) == (EMAIL, "example.com")
    assert (made.user.full_name, made.user.status) == ("Ada Lovelace", Status.ACTIVE)
    assert not made.user.email_verified
    assert (made.session.user_id, made.session.device) == (made.user.id, "Firefox on Linux")
    assert made.session.amr == ("pwd",)
    session = await house.sessions.authenticate(made.tokens.access_token)
    assert session is not None
    assert session.session_id == made.session.session_id
    assert made.tokens.access_token not in repr(made)
    assert made.tokens.refresh_token not in repr(made)


async def test_a_sign_up_is_told_and_audited_with_the_user(house: House) -> None:
    made = await house.sign_up(full_name="Ada", ip="192.0.2.7")
    assert house.heard(UserCreated) == [UserCreated(made.user.id, EMAIL)]
    (requested,) = house.heard(EmailVerificationRequested)
    assert requested.token not in repr(requested)
    (entry,) = await house.entries(f"account:{made.user.id}", "user.created")
    assert EMAIL not in entry.body
    async with house.database.read() as connection:
        kept = await connection.execute(
            select(audit_values.c.kind, audit_values.c.value).where(
                audit_values.c.subject_id == made.user.id, audit_values.c.value.is_not(None)
            )
        )
        assert {("email", EMAIL), ("name", "Ada"), ("ip", "192.0.2.7")} <= {tuple(row) for row in kept}


async def test_what_can_be_no_account_is_refused_and_leaves_nothing(house: House) -> None:
    for email, password, name, code in (
        ("no address", PASSWORD, "", "email_invalid"),
        (EMAIL, "short", "", "password_too_weak"),
        (EMAIL, EMAIL, "", "password_too_weak"),
        (EMAIL, PASSWORD, "a\x00b", "name_invalid"),
        (EMAIL, PASSWORD, "x" * 201, "name_invalid"),
    ):
        refused = await house.accounts.sign_up(email=email, password=password, full_name=name)
        assert isinstance(refused, Refused)
        assert refused.code == code
    async with house.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(users))).scalar_one() == 0


async def test_an_address_has_one_account_in_whatever_spelling(house: House) -> None:
    await house.sign_up("jos\u00e9@example.com")
    again = await house.accounts.sign_up(email="JOSE\u0301@example.com", password=ELSE)
    assert again == EMAIL_TAKEN
    assert isinstance(await house.log_in("JOSE\u0301@example.com", PASSWORD), LoggedIn)
    assert await house.log_in("jos\u00e9@example.com", ELSE) == INVALID_CREDENTIALS


async def test_twenty_sign_ups_of_one_address_at_once_make_one_user(house: House) -> None:
    answers = await asyncio.gather(
        *(house.accounts.sign_up(email=EMAIL, password=PASSWORD) for _ in range(20))
    )
    made = [answer for answer in answers if isinstance(answer, LoggedIn)]
    assert len(made) == 1
    assert [answer for answer in answers if answer == EMAIL_TAKEN] == [EMAIL_TAKEN] * 19
    assert len(house.heard(UserCreated)) == 1
    async with house.database.read() as connection:
        for table in (users, user_sessions):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar_one() == 1
    assert await house.sessions.authenticate(made[0].tokens.access_token) is not None


async def test_ten_accounts_an_hour_come_from_one_address_of_the_network(house: House) -> None:
    house.begin_an_hour()
    for number in range(10):
        await house.sign_up(f"u{number}@example.com", ip=f"2001:db8::{number + 1}")
    refused = await house.accounts.sign_up(email=EMAIL, password=PASSWORD, ip="2001:db8::ffff")
    assert isinstance(refused, Refused)
    assert refused.code == "too_many_attempts"
    assert refused.retry_after is not None
    assert timedelta(hours=1) <= refused.retry_after < timedelta(hours=2)  # windows slide
    await house.sign_up(ip="2001:db8:0:1::1")
    await house.sign_up("bob@example.com", ip="192.0.2.7")


async def test_an_account_that_an_application_made_is_not_taken_over(house: House) -> None:
    await house.sessions.create(user_id="u1", email=EMAIL)
    assert await house.accounts.sign_up(email=EMAIL, password=PASSWORD) == EMAIL_TAKEN
    assert await house.log_in() == INVALID_CREDENTIALS


# -- log-in ------------------------------------------------------------------------------------------------------


async def test_who_knows_the_password_is_logged_in(house: House) -> None:
    made = await house.sign_up()
    before = await house.column("last_login_at")
    house.travel(timedelta(minutes=1))
    answer = await house.log_in(" ADA@example.com", user_agent=FIREFOX, ip="192.0.2.7")
    assert isinstance(answer, LoggedIn)
    assert answer.user == made.user
    assert answer.session.session_id != made.session.session_id
    assert (answer.session.ip, answer.session.profile) == ("192.0.2.7", Profile.STANDARD)
    assert await house.column("last_login_at") > before
    assert await house.sessions.rotate(answer.tokens.refresh_token) is not None


async def test_a_wrong_password_and_an_unknown_address_are_one_answer(house: House) -> None:
    made = await house.sign_up()
    deleted = await house.sign_up("bob@example.com")
    await house.accounts.delete(deleted.user.id, by="root")
    for email in (EMAIL, NOBODY, "bob@example.com", "no address", ""):
        assert await house.log_in(email, WRONG) == INVALID_CREDENTIALS
    (entry,) = await house.entries(f"account:{made.user.id}", "login.failed")
    assert EMAIL not in entry.body
    assert WRONG not in entry.body
    assert len(await house.entries("system", "login.failed")) == 2  # those that are addresses


@pytest.mark.parametrize("email", [EMAIL, NOBODY])
async def test_the_fifth_wrong_password_in_a_row_locks_whether_or_not_there_is_an_account(
    house: House, email: str
) -> None:
    await house.sign_up()
    assert await fail(house, 4, email) == ["invalid_credentials"] * 4
    locked = await house.log_in(email, WRONG)
    assert (locked.code, locked.retry_after) == ("locked", timedelta(minutes=30))
    house.travel(timedelta(minutes=29))
    still = await house.log_in(email)
    assert still.code == "locked"
    assert timedelta(seconds=50) < still.retry_after <= timedelta(minutes=1)
    house.travel(timedelta(minutes=1))
    after = await house.log_in(email)
    if email == NOBODY:
        assert after == INVALID_CREDENTIALS
    else:
        assert isinstance(after, LoggedIn)


async def test_a_lock_is_told_once_and_is_in_the_audit_log(house: House) -> None:
    made = await house.sign_up()
    await fail(house, 7)
    (told,) = house.heard(AccountLocked)
    assert (told.user_id, told.until) == (made.user.id, await house.column("locked_until"))
    entries = await house.entries(f"account:{made.user.id}", "login.failed")
    assert [f'"in_row":{number}' in entry.body for number, entry in enumerate(entries, 1)] == [True] * 5
    assert [entry.seq for entry in entries if '"locked":true' in entry.body] == [entries[-1].seq]


async def test_a_lock_does_not_end_the_sessions_of_the_account(house: House) -> None:
    made = await house.sign_up()
    await fail(house, 5)
    assert await house.sessions.authenticate(made.tokens.access_token, fresh=True) is not None


@pytest.mark.parametrize("email", [EMAIL, NOBODY])
async def test_after_a_lock_the_counting_begins_anew(house: House, email: str) -> None:
    await house.sign_up()
    await fail(house, 5, email)
    house.travel(timedelta(minutes=30))
    assert await fail(house, 5, email) == ["invalid_credentials"] * 4 + ["locked"]


async def test_a_right_password_ends_the_row(house: House) -> None:
    await house.sign_up()
    for _ in range(3):
        assert await fail(house, 4) == ["invalid_credentials"] * 4
        assert isinstance(await house.log_in(), LoggedIn)
        house.travel(timedelta(minutes=2))
    assert await house.column("locked_until") is None


async def test_wrong_passwords_are_a_row_however_slowly_they_come(house: House) -> None:
    await house.sign_up()
    for _ in range(4):
        assert await fail(house, 1) == ["invalid_credentials"]
        house.travel(timedelta(hours=6))
    assert await fail(house, 1) == ["locked"]


@pytest.mark.parametrize("email", [EMAIL, NOBODY])
async def test_wrong_passwords_at_once_lock_exactly_once(house: House, email: str) -> None:
    made = await house.sign_up()
    house.begin_an_hour()
    answers = await asyncio.gather(*(house.log_in(email, WRONG) for _ in range(20)))
    codes = [answer.code for answer in answers]
    assert codes.count("invalid_credentials") == 4
    assert set(codes) == {"invalid_credentials", "locked", "too_many_attempts"}
    stream = f"account:{made.user.id}" if email == EMAIL else "system"
    entries = await house.entries(stream, "login.failed")
    assert len(entries) == 5
    assert sum('"locked":true' in entry.body for entry in entries) == 1
    assert len(house.heard(AccountLocked)) == (email == EMAIL)
    house.travel(timedelta(minutes=30))
    assert await fail(house, 1, email) == ["invalid_credentials"]


async def test_of_many_guesses_at_once_ten_are_tried_at_most(house: House) -> None:
    await house.sign_up()
    house.begin_an_hour()
    guesses = [house.log_in(EMAIL, f"{WRONG} {number}") for number in range(30)]
    answers = await asyncio.gather(*guesses, house.log_in())
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert sum(answer.code == "too_many_attempts" for answer in refused) >= 21


async def test_right_passwords_are_not_limited(house: House) -> None:
    await house.sign_up()
    for _ in range(12):
        assert isinstance(await house.log_in(), LoggedIn)


async def test_a_log_in_of_a_suspended_account_is_told_only_who_knows_the_password(house: House) -> None:
    made = await house.sign_up()
    await house.accounts.suspend(made.user.id, by="root")
    assert await house.log_in(EMAIL, WRONG) == INVALID_CREDENTIALS
    assert (await house.log_in()).code == "account_suspended"
    async with house.database.read() as connection:
        live = select(func.count()).select_from(user_sessions).where(user_sessions.c.state == "active")
        assert (await connection.execute(live)).scalar_one() == 0


async def test_a_hash_with_old_costs_is_made_anew_at_a_log_in(valkey: Server, database: Database) -> None:
    async with accounts_on(valkey, database, memory_kib=64) as old:
        await old.sign_up()
    async with accounts_on(valkey, database, memory_kib=128) as house:
        before = await house.column("password_hash")
        assert await house.log_in(EMAIL, WRONG) == INVALID_CREDENTIALS
        assert await house.column("password_hash") == before
        assert isinstance(await house.log_in(), LoggedIn)
        assert "m=128," in await house.column("password_hash")
        assert isinstance(await house.log_in(), LoggedIn)


async def test_remember_is_given_where_the_settings_allow_it(valkey: Server, database: Database) -> None:
    async with accounts_on(valkey, database) as strict:
        await strict.sign_up()
        assert (await strict.log_in(remember=True)).session.profile is Profile.STANDARD
    settings = SessionSettings(remember=True)
    async with accounts_on(valkey, database, settings=settings) as house:
        assert (await house.log_in(remember=True)).session.profile is Profile.REMEMBER
        assert (await house.log_in()).session.profile is Profile.STANDARD


async def test_what_is_no_address_and_no_browser_is_left_out(house: House) -> None:
    await house.sign_up(ip="not an address\x00", user_agent="curl/8\x00\ud800" + "x" * 2000)
    answer = await house.log_in(ip="256.1.1.1", user_agent="\x00")
    assert isinstance(answer, LoggedIn)
    assert (answer.session.ip, answer.session.user_agent) == (None, None)
    assert (await house.log_in(EMAIL, WRONG, ip="x" * 5000, user_agent="\ud800" * 600)) == INVALID_CREDENTIALS


async def test_no_address_is_kept_where_attempts_are_counted(house: House) -> None:
    await house.sign_up()
    await fail(house, 1)
    async with house.database.read() as connection:
        keys = (await connection.execute(select(auth_attempts.c.key))).scalars().all()
    assert keys
    assert not any("ada" in key for key in keys)


async def test_a_password_that_is_changed_meanwhile_lets_nobody_in(house: House) -> None:
    made = await house.sign_up()
    verify, backing = house.accounts._backing.passwords.verify, house.accounts._backing

    async def and_then_changed(kept: str | None, password: str) -> bool:
        right = await verify(kept, password)
        async with house.database.begin() as connection:
            await connection.execute(
                update(users).where(users.c.id == made.user.id).values(password_hash="another")
            )
        return right

    backing.passwords.verify = and_then_changed  # type: ignore[method-assign]
    assert await house.log_in() == INVALID_CREDENTIALS
    assert len(await house.sessions.list(made.user.id)) == 1
