"""A second factor shown within a session: what it opens, and that nobody holds a dead token by it. Both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from counterseal.accounts.log_in import LoggedIn
from counterseal.accounts.refused import FRESH_LOGIN_NEEDED, SESSION_ENDED, TOTP_REQUIRED, Refused
from counterseal.accounts.totp_enrolment import BackupCodes, Enrolment
from counterseal.accounts.totp_verification import SteppedUp
from counterseal.database.engine import Database
from counterseal.sessions.session import Context, Session
from support.accounts import ELSE, EMAIL, PASSWORD, House, accounts_on
from support.servers import Server
from support.sessions import FIREFOX, SAFARI
from support.totp import code_of, enrol, next_step
from support.waiting import eventually

LATE = timedelta(seconds=11)
HOME, AWAY = "192.0.2.7", "203.0.113.7"


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


async def signing_only(house: House) -> tuple[LoggedIn, str, tuple[str, ...]]:
    """Somebody logged in by password whose factor is asked for at signatures: log-in, secret and backup codes."""
    user = await enrol(house, login=False, signing=True)
    next_step(house)
    made = await house.log_in(user_agent=FIREFOX, ip=HOME)
    assert made.session.amr == ("pwd",)
    return made, user.secret, user.backup_codes


async def step_up(house: House, session: Session, code: str, **more: Any) -> SteppedUp:
    made = await house.accounts.totp.step_up(
        session, code, **{"context": Context.SIGNING, "request_id": "r1", **more}
    )
    assert isinstance(made, SteppedUp), made
    return made


async def fresh(house: House, made: LoggedIn) -> Session:
    found = await house.sessions.get(made.session.session_id)
    assert found is not None
    return found


# -- what it opens -----------------------------------------------------------------------------------------------


async def test_a_code_for_signing_alone_is_no_log_in_with_two_factors(house: House) -> None:
    made, secret, codes = await signing_only(house)
    assert (await fresh(house, made)).amr == ("pwd",)
    await step_up(house, made.session, codes[0], user_agent=SAFARI, ip=AWAY)
    session = await fresh(house, made)
    assert session.amr == ("pwd",)
    assert (session.user_agent, session.ip) == (FIREFOX, HOME)
    assert await house.accounts.totp.set_up(session) == TOTP_REQUIRED
    for code, context in ((codes[1], Context.BOTH), (code_of(house, secret), Context.LOGIN)):
        await step_up(house, made.session, code, context=context)
        assert (await fresh(house, made)).amr == ("pwd", "otp")


async def test_a_factor_that_no_log_in_asks_for_makes_no_log_in_with_two(house: House) -> None:
    made = await house.sign_up()
    for login, amr in ((False, ("pwd",)), (True, ("pwd", "otp"))):
        if login:
            next_step(house)
            await house.accounts.totp.remove(made.user.id, by="admin")
            made = await house.log_in()
        enrolment = await house.accounts.totp.set_up(made.session)
        assert isinstance(enrolment, Enrolment)
        confirmed = await house.accounts.totp.confirm(
            made.session, code_of(house, enrolment.secret), login=login, signing=True
        )
        assert isinstance(confirmed, BackupCodes)
        assert (await fresh(house, made)).amr == amr


@pytest.mark.parametrize("context", [Context.LOGIN, Context.BOTH])
async def test_a_code_for_log_in_notes_from_where_the_session_is_used_now(
    house: House, context: Context
) -> None:
    made, _, codes = await signing_only(house)
    await step_up(house, made.session, codes[0], context=context, user_agent=SAFARI, ip=AWAY)
    session = await fresh(house, made)
    assert (session.user_agent, session.ip, session.device) == (SAFARI, AWAY, "Safari on iPhone")
    await step_up(house, made.session, codes[1], context=context, user_agent=None, ip="somewhere")
    session = await fresh(house, made)
    assert (session.user_agent, session.ip) == (SAFARI, AWAY)


# -- tokens ------------------------------------------------------------------------------------------------------


async def test_a_step_up_leaves_the_refresh_token_whose_holder_may_lose_the_answer(house: House) -> None:
    made, _, codes = await signing_only(house)
    await step_up(house, made.session, codes[0])
    for number in range(1, 4):
        house.travel(LATE)
        await step_up(house, made.session, codes[number], context=Context.LOGIN)
    house.travel(LATE)
    rotated = await house.sessions.rotate(made.tokens.refresh_token)
    assert rotated is not None
    assert rotated.session.amr == ("pwd", "otp")
    assert await house.sessions.get(made.session.session_id) is not None


async def test_a_refresh_token_that_comes_along_is_replaced_once_with_its_grace(house: House) -> None:
    made, _, codes = await signing_only(house)
    token = made.tokens.refresh_token
    first = await step_up(house, made.session, codes[0], context=Context.LOGIN, refresh_token=token)
    assert first.tokens is not None
    assert first.tokens.refresh_token != token
    assert first.access_token == first.tokens.access_token
    assert first.tokens.refresh_token not in repr(first)
    session = await house.sessions.authenticate(first.access_token)
    assert session is not None
    assert session.amr == ("pwd", "otp")
    # The answer is lost: whoever still has the token before gets the same successor.
    again = await step_up(house, made.session, codes[1], refresh_token=token)
    assert again.tokens is not None
    refreshed = await house.sessions.rotate(token)
    assert refreshed is not None
    successor = first.tokens.refresh_token
    assert again.tokens.refresh_token == refreshed.tokens.refresh_token == successor
    house.travel(LATE)
    assert await house.sessions.rotate(successor) is not None


async def test_step_ups_and_refreshes_at_once_leave_no_dead_token_and_no_ended_session(house: House) -> None:
    user = await enrol(house)
    for round_ in range(3):
        next_step(house)
        renewed = await house.accounts.totp.new_backup_codes(user.session, code_of(house, user.secret))
        assert isinstance(renewed, BackupCodes)
        created = await house.sessions.create(user_id=user.user_id)
        session, token = created.session, created.refresh_token

        async def show(code: str, refresh_token: str | None, *, session: Session = session) -> str | None:
            made = await step_up(house, session, code, context=Context.LOGIN, refresh_token=refresh_token)
            assert await house.sessions.authenticate(made.access_token) is not None
            return None if made.tokens is None else made.tokens.refresh_token

        async def refresh(*, token: str = token) -> str | None:
            rotated = await house.sessions.rotate(token)
            assert rotated is not None
            return rotated.tokens.refresh_token

        codes = renewed.codes
        held = await asyncio.gather(
            show(codes[0], token),
            refresh(),
            show(codes[1], token),
            show(codes[2], None),
            refresh(),
            show(codes[3], None),
        )
        (successor,) = {one for one in held if one is not None}
        found = await house.sessions.get(session.session_id)
        assert found is not None, round_
        assert found.amr == ("pwd", "otp")
        house.travel(LATE)
        assert await house.sessions.rotate(successor) is not None


async def test_a_refresh_token_that_is_none_of_the_session_is_left_alone(house: House) -> None:
    made, _, codes = await signing_only(house)
    other = await house.log_in()
    for number, token in enumerate((other.tokens.refresh_token, "", "x", made.tokens.refresh_token[:-1])):
        stepped = await step_up(house, made.session, codes[number], refresh_token=token)
        assert stepped.tokens is None
        assert await house.sessions.authenticate(stepped.access_token) is not None
    for one in (made, other):
        assert await house.sessions.rotate(one.tokens.refresh_token) is not None


async def test_a_refresh_token_two_behind_ends_the_session_at_a_step_up_too(house: House) -> None:
    made, _, codes = await signing_only(house)
    await house.sessions.rotate(made.tokens.refresh_token)
    house.travel(LATE)
    answer = await house.accounts.totp.step_up(
        made.session,
        codes[0],
        context=Context.LOGIN,
        refresh_token=made.tokens.refresh_token,
    )
    assert answer == SESSION_ENDED
    assert await house.sessions.get(made.session.session_id) is None


async def test_without_redis_a_step_up_replaces_the_token_that_comes_along(
    house: House, valkey: Server
) -> None:
    made, _, codes = await signing_only(house)
    valkey.kill()
    await eventually(lambda: not house.store.available)
    token = made.tokens.refresh_token
    stepped = await step_up(house, made.session, codes[0], context=Context.LOGIN, refresh_token=token)
    assert stepped.tokens is not None
    session = await house.sessions.authenticate(stepped.access_token)
    assert session is not None
    assert session.amr == ("pwd", "otp")
    assert await house.sessions.rotate(stepped.tokens.refresh_token) is not None


# -- a stolen session --------------------------------------------------------------------------------------------


async def test_the_password_and_an_old_session_open_no_second_factor(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    half = await house.log_in()
    stolen = await house.accounts.finish_log_in(ticket=half.ticket, code=code_of(house, user.secret))
    assert isinstance(stolen, LoggedIn)
    assert stolen.session.amr == ("pwd", "otp")
    house.travel(timedelta(minutes=11))
    changed = await house.accounts.change_password(stolen.session, current=PASSWORD, new=ELSE)
    assert changed == FRESH_LOGIN_NEEDED
    assert await house.accounts.totp.set_up(stolen.session) == FRESH_LOGIN_NEEDED
    assert not isinstance(await house.log_in(EMAIL, PASSWORD), Refused)


async def test_a_change_of_the_password_is_no_fresh_log_in(house: House) -> None:
    made = await house.sign_up()
    house.travel(timedelta(minutes=9))
    changed = await house.accounts.change_password(made.session, current=PASSWORD, new=ELSE)
    assert isinstance(changed, LoggedIn)
    assert changed.session.authenticated_at == made.session.authenticated_at
    house.travel(timedelta(minutes=2))
    assert await house.accounts.totp.set_up(changed.session) == FRESH_LOGIN_NEEDED
