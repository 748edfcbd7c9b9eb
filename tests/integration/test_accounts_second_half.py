"""A log-in that needs a TOTP code as well: what its ticket is good for, and for how long. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from counterseal.accounts.log_in import LoggedIn, TotpNeeded
from counterseal.accounts.refused import INVALID_CREDENTIALS, TICKET_INVALID, Refused
from counterseal.core.settings import SessionSettings
from counterseal.core.tokens import hash_token
from counterseal.database.engine import Database
from counterseal.database.tables import one_time_tokens, totp_configs
from counterseal.sessions.session import Context, Profile
from support.accounts import ELSE, EMAIL, PASSWORD, WRONG, House, accounts_on
from support.servers import Server


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


async def half(house: House, **more: object) -> TotpNeeded:
    needed = await house.log_in(**more)
    assert isinstance(needed, TotpNeeded), needed
    return needed


async def finish(house: House, ticket: str, code: str) -> LoggedIn | Refused:
    return await house.accounts.finish_log_in(ticket=ticket, code=code, ip="192.0.2.7")


async def test_a_password_alone_gets_a_ticket_and_no_session(house: House) -> None:
    made = await house.sign_up()
    await house.with_totp(made)
    needed = await half(house)
    assert needed.ticket not in repr(needed)
    assert len(await house.sessions.list(made.user.id)) == 1
    assert await house.sessions.authenticate(needed.ticket) is None
    async with house.database.read() as connection:
        columns = one_time_tokens.c
        query = select(columns.token_hash, columns.expires_at).where(columns.purpose == "log_in")
        kept = (await connection.execute(query)).one()
    assert (bytes(kept.token_hash), kept.expires_at) == (hash_token(needed.ticket), needed.expires_at)


async def test_a_ticket_and_a_code_are_a_log_in(house: House) -> None:
    made = await house.sign_up()
    secret, _ = await house.with_totp(made)
    needed = await half(house)
    answer = await finish(house, needed.ticket, house.code(secret))
    assert isinstance(answer, LoggedIn)
    assert (answer.user, answer.session.amr, answer.session.ip) == (made.user, ("pwd", "otp"), "192.0.2.7")
    session = await house.sessions.get(answer.session.session_id, fresh=True)
    assert session is not None
    assert session.verified(Context.LOGIN) is not None
    assert session.verified(Context.SIGNING) is None


async def test_a_backup_code_is_as_good_and_good_once(house: House) -> None:
    made = await house.sign_up()
    _, codes = await house.with_totp(made)
    needed = await half(house)
    assert isinstance(await finish(house, needed.ticket, codes[0]), LoggedIn)
    again = await finish(house, (await half(house)).ticket, codes[0])
    assert isinstance(again, Refused)
    assert again.code == "code_invalid"


async def test_a_ticket_is_used_up_by_success_and_not_by_a_wrong_code(house: House) -> None:
    made = await house.sign_up()
    secret, codes = await house.with_totp(made)
    needed = await half(house)
    wrong = await finish(house, needed.ticket, "000000" if house.code(secret) != "000000" else "111111")
    assert isinstance(wrong, Refused)
    assert wrong.code == "code_invalid"
    (entry,) = await house.entries(f"account:{made.user.id}", "login.failed")
    assert '"reason":"code_invalid"' in entry.body
    assert isinstance(await finish(house, needed.ticket, house.code(secret)), LoggedIn)
    assert await finish(house, needed.ticket, codes[0]) == TICKET_INVALID


async def test_what_is_no_ticket_opens_nothing(house: House) -> None:
    for ticket in ("", "x", "x" * 43, "x" * 100_000, "\ud800", "\x00"):
        assert await finish(house, ticket, "123456") == TICKET_INVALID


async def test_a_token_of_another_purpose_is_no_ticket(house: House) -> None:
    made = await house.sign_up()
    secret, _ = await house.with_totp(made)
    needed = await half(house)
    assert await house.accounts.reset_password(token=needed.ticket, new=ELSE) is not None
    async with house.database.begin() as connection:
        await connection.execute(
            update(one_time_tokens)
            .where(one_time_tokens.c.purpose == "log_in")
            .values(purpose="change_email")
        )
    assert await finish(house, needed.ticket, house.code(secret)) == TICKET_INVALID


async def test_a_ticket_is_good_for_five_minutes(house: House) -> None:
    made = await house.sign_up()
    secret, _ = await house.with_totp(made)
    early, late = await half(house), await half(house)
    house.travel(timedelta(minutes=4, seconds=50))
    assert isinstance(await finish(house, early.ticket, house.code(secret)), LoggedIn)
    house.travel(timedelta(seconds=30))
    assert await finish(house, late.ticket, house.code(secret)) == TICKET_INVALID


async def test_of_twenty_uses_of_a_ticket_at_once_one_passes(house: House) -> None:
    made = await house.sign_up()
    secret, codes = await house.with_totp(made)
    needed = await half(house)
    shown = [house.code(secret), *codes[:3]] * 5
    answers = await asyncio.gather(*(finish(house, needed.ticket, code) for code in shown))
    assert sum(isinstance(answer, LoggedIn) for answer in answers) == 1
    assert len(await house.sessions.list(made.user.id)) == 2


async def test_a_ticket_is_worth_nothing_after_a_change_of_the_password(house: House) -> None:
    made = await house.sign_up()
    secret, _ = await house.with_totp(made)
    needed = await half(house)
    changed = await house.accounts.change_password(made.session, current=PASSWORD, new=ELSE)
    assert isinstance(changed, LoggedIn)
    assert await finish(house, needed.ticket, house.code(secret)) == TICKET_INVALID


async def test_a_ticket_is_worth_nothing_for_a_suspended_and_for_a_locked_account(house: House) -> None:
    made = await house.sign_up()
    secret, _ = await house.with_totp(made)
    needed = await half(house)
    for _ in range(5):
        await house.log_in(EMAIL, WRONG)
    locked = await finish(house, needed.ticket, house.code(secret))
    assert isinstance(locked, Refused)
    assert locked.code == "locked"
    house.travel(timedelta(minutes=30))
    needed = await half(house)
    await house.accounts.suspend(made.user.id, by="root")
    suspended = await finish(house, needed.ticket, house.code(secret))
    assert isinstance(suspended, Refused)
    assert suspended.code == "account_suspended"
    await house.accounts.restore(made.user.id, by="root")
    assert isinstance(await finish(house, needed.ticket, house.code(secret)), LoggedIn)  # nothing was used up


async def test_an_account_that_is_suspended_after_its_code_was_taken_gets_no_session(house: House) -> None:
    made = await house.sign_up()
    secret, _ = await house.with_totp(made)
    needed, totp = await half(house), house.accounts.totp
    verify = totp.verify

    async def and_then_suspended(*args: Any, **more: Any) -> Any:
        verified = await verify(*args, **more)
        await house.accounts.suspend(made.user.id, by="root")
        return verified

    totp.verify = and_then_suspended  # type: ignore[method-assign]
    refused = await finish(house, needed.ticket, house.code(secret))
    assert isinstance(refused, Refused)
    assert refused.code == "account_suspended"
    assert await house.sessions.list(made.user.id) == ()


async def test_a_wrong_password_is_told_before_a_code_is_asked_for(house: House) -> None:
    await house.with_totp(await house.sign_up())
    assert await house.log_in(EMAIL, WRONG) == INVALID_CREDENTIALS


async def test_a_policy_that_can_not_be_read_asks_for_a_code(house: House) -> None:
    made = await house.sign_up()
    async with house.database.begin() as connection:
        await connection.run_sync(totp_configs.drop)
    assert isinstance(await house.log_in(), TotpNeeded)
    assert len(await house.sessions.list(made.user.id)) == 1


async def test_a_second_factor_that_is_enabled_during_a_log_in_is_asked_for(house: House) -> None:
    made = await house.sign_up()
    needed, totp = house.accounts.totp.needed, house.accounts.totp

    async def and_then_enabled(user_id: str, context: Context) -> bool:
        before = await needed(user_id, context)
        await house.with_totp(made)
        return before

    totp.needed = and_then_enabled  # type: ignore[method-assign]
    assert isinstance(await house.log_in(), TotpNeeded)
    assert len(await house.sessions.list(made.user.id)) == 1


async def test_what_the_first_half_asked_for_is_kept_for_the_second(
    valkey: Server, database: Database
) -> None:
    async with accounts_on(valkey, database, settings=SessionSettings(remember=True)) as house:
        secret, _ = await house.with_totp(await house.sign_up())
        needed = await half(house, remember=True)
        answer = await finish(house, needed.ticket, house.code(secret))
        assert isinstance(answer, LoggedIn)
        assert answer.session.profile is Profile.REMEMBER
