"""A second factor that is set up in the middle of a log-in, by who needs one and has none. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from counterseal.accounts.log_in import EnrolledLogIn, LoggedIn, TotpNeeded
from counterseal.accounts.refused import (
    CODE_INVALID,
    TICKET_INVALID,
    TOTP_NOT_SET_UP,
    TOTP_REQUIRED,
    Refused,
)
from counterseal.accounts.totp_enrolment import Enrolment
from counterseal.database.engine import Database
from counterseal.database.tables import domain_settings
from counterseal.sessions.session import Context
from support.accounts import EMAIL, House, accounts_on
from support.servers import Server
from support.totp import code_of, enrol, next_step, wrong_code


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


async def enforce(house: House, *, grace: int = 7) -> None:
    values = {"domain": "example.com", "enforce_login_totp": True, "totp_grace_days": grace}
    async with house.database.begin() as connection:
        await connection.execute(insert(domain_settings).values(**values, updated_at=datetime.now(UTC)))


async def begin(house: House, email: str = EMAIL) -> tuple[str, str]:
    """A ticket of somebody without a factor, and the secret of the one that was set up with it."""
    half = await house.log_in(email)
    assert isinstance(half, TotpNeeded)
    assert not half.enrolled
    enrolment = await house.accounts.set_up_totp(ticket=half.ticket)
    assert isinstance(enrolment, Enrolment)
    return half.ticket, enrolment.secret


async def test_who_is_older_than_the_grace_when_the_domain_begins_to_ask_gets_in(house: House) -> None:
    before = await house.sign_up()
    house.travel(timedelta(days=6))
    other = await house.log_in()
    house.travel(timedelta(days=2))
    await enforce(house)
    ticket, secret = await begin(house)
    made = await house.accounts.confirm_totp(ticket=ticket, code=code_of(house, secret), ip="192.0.2.7")
    assert isinstance(made, EnrolledLogIn)
    assert made.logged_in.user.id == before.user.id
    session = await house.sessions.authenticate(made.logged_in.tokens.access_token, fresh=True)
    assert session is not None
    assert session.amr == ("pwd", "otp")
    assert session.verified(Context.LOGIN) is not None
    assert made.backup_codes[0] not in repr(made)
    assert await house.sessions.get(other.session.session_id) is None
    state = await house.accounts.totp.state(before.user.id)
    assert (state.login_enabled, state.signing_enabled, state.backup_codes_left) == (True, True, 10)
    stream = f"account:{before.user.id}"
    assert len(await house.entries(stream, "mfa.enabled")) == 1
    # From now on it is asked for, and a ticket replaces it not.
    half = await house.log_in()
    assert half.enrolled
    assert await house.accounts.set_up_totp(ticket=half.ticket) == TOTP_REQUIRED
    whole = await house.accounts.finish_log_in(ticket=half.ticket, code=made.backup_codes[3])
    assert isinstance(whole, LoggedIn)


async def test_the_ticket_of_an_enrolled_user_sets_nothing_up(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    half = await house.log_in()
    assert half.enrolled
    assert await house.accounts.set_up_totp(ticket=half.ticket) == TOTP_REQUIRED
    answer = await house.accounts.confirm_totp(ticket=half.ticket, code=code_of(house, user.secret))
    assert answer == TOTP_NOT_SET_UP


async def test_what_was_set_up_before_a_factor_was_enabled_replaces_it_not(house: House) -> None:
    made = await house.sign_up()
    await enforce(house, grace=0)
    ticket, secret = await begin(house)
    late, _ = await begin(house)
    assert isinstance(made, LoggedIn)
    theirs = await house.accounts.set_up_totp(ticket=ticket)
    assert isinstance(theirs, Enrolment)
    code = code_of(house, theirs.secret)
    answers = await asyncio.gather(
        *(house.accounts.confirm_totp(ticket=each, code=code) for each in (ticket, late))
    )
    assert len([answer for answer in answers if isinstance(answer, EnrolledLogIn)]) == 1
    (refused,) = [answer for answer in answers if isinstance(answer, Refused)]
    assert refused in (TOTP_REQUIRED, TOTP_NOT_SET_UP, TICKET_INVALID)
    assert code_of(house, secret) != code or secret == theirs.secret


async def test_a_wrong_code_leaves_the_ticket_and_five_of_them_are_taken(house: House) -> None:
    await house.sign_up()
    await enforce(house, grace=0)
    ticket, secret = await begin(house)
    wrong = wrong_code(house, secret)
    house.begin_an_hour()
    ticket, secret = await begin(house)
    answers = [await house.accounts.confirm_totp(ticket=ticket, code=wrong) for _ in range(4)]
    assert answers == [CODE_INVALID] * 4
    made = await house.accounts.confirm_totp(ticket=ticket, code=code_of(house, secret), signing=False)
    assert isinstance(made, EnrolledLogIn)
    assert not await house.accounts.totp.needed(made.logged_in.user.id, Context.SIGNING)
    again = await house.accounts.confirm_totp(ticket=ticket, code=code_of(house, secret))
    assert again == TICKET_INVALID


async def test_a_ticket_that_is_none_or_too_old_sets_nothing_up(house: House) -> None:
    await house.sign_up()
    await enforce(house, grace=0)
    ticket, secret = await begin(house)
    for odd in ("", "x" * 43, "\x00", "\ud800", "x" * 10_000):
        assert await house.accounts.set_up_totp(ticket=odd) == TICKET_INVALID
        assert await house.accounts.confirm_totp(ticket=odd, code="123456") == TICKET_INVALID
    house.travel(timedelta(minutes=5))
    assert await house.accounts.set_up_totp(ticket=ticket) == TICKET_INVALID
    answer = await house.accounts.confirm_totp(ticket=ticket, code=code_of(house, secret))
    assert answer == TICKET_INVALID


async def test_a_suspended_user_sets_nothing_up(house: House) -> None:
    made = await house.sign_up()
    await enforce(house, grace=0)
    ticket, secret = await begin(house)
    await house.accounts.suspend(made.user.id, by="admin")
    answers = [
        await house.accounts.set_up_totp(ticket=ticket),
        await house.accounts.confirm_totp(ticket=ticket, code=code_of(house, secret)),
    ]
    assert all(isinstance(answer, Refused) for answer in answers)
    assert not (await house.accounts.totp.state(made.user.id)).enabled
