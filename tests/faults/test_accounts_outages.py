"""Accounts while Redis or the database is away: who still comes in, and what is counted meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import event, func, select

from counterseal.accounts.events import EmailVerificationRequested, PasswordResetRequested
from counterseal.accounts.log_in import LoggedIn, TotpNeeded
from counterseal.accounts.refused import Refused
from counterseal.accounts.user import User
from counterseal.core.errors import DatabaseUnavailable
from counterseal.database.engine import Database
from counterseal.database.tables import auth_attempts
from support.accounts import ELSE, EMAIL, PASSWORD, WRONG, House, accounts_on
from support.servers import Server


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


async def test_without_redis_everything_works_through_the_database(house: House, valkey: Server) -> None:
    valkey.kill()
    made = await house.sign_up(ip="192.0.2.7", user_agent="curl/8")
    secret, _ = await house.with_totp(made)
    needed = await house.log_in(ip="192.0.2.7")
    assert isinstance(needed, TotpNeeded)
    finished = await house.accounts.finish_log_in(
        ticket=needed.ticket, code=house.code(secret), ip="192.0.2.7"
    )
    assert isinstance(finished, LoggedIn)
    changed = await house.accounts.change_password(finished.session, current=PASSWORD, new=ELSE)
    assert isinstance(changed, LoggedIn)
    assert await house.sessions.authenticate(changed.tokens.access_token) is not None
    assert await house.sessions.authenticate(made.tokens.access_token) is None
    await house.accounts.request_password_reset(email=EMAIL)
    (requested,) = house.heard(PasswordResetRequested)
    assert await house.accounts.reset_password(token=requested.token, new=PASSWORD) is None
    assert await house.sessions.authenticate(changed.tokens.access_token) is None
    (asked, *_) = house.heard(EmailVerificationRequested)
    assert isinstance(await house.accounts.verify_email(token=asked.token), User)
    user = await house.accounts.user(made.user.id)
    assert user is not None
    assert user.email_verified
    assert not isinstance(await house.accounts.suspend(made.user.id, by="root"), Refused)
    assert (await house.log_in()).code == "account_suspended"


async def test_without_redis_wrong_passwords_lock_all_the_same(house: House, valkey: Server) -> None:
    await house.sign_up()
    valkey.kill()
    codes = [(await house.log_in(EMAIL, WRONG)).code for _ in range(6)]
    assert codes == ["invalid_credentials"] * 4 + ["locked"] * 2


async def test_without_redis_attempts_are_limited_by_the_database(house: House, valkey: Server) -> None:
    await house.sign_up()
    house.begin_an_hour()
    valkey.kill()
    for _ in range(12):  # right ones are given back there as well
        assert isinstance(await house.log_in(), LoggedIn)
    guesses = await asyncio.gather(*(house.log_in(EMAIL, f"{WRONG} {number}") for number in range(30)))
    codes = [guess.code for guess in guesses]
    assert codes.count("too_many_attempts") >= 10
    async with house.database.read() as connection:
        most = select(func.max(auth_attempts.c.count)).where(auth_attempts.c.key.like("auth:%"))
        assert (await connection.execute(most)).scalar_one() == 10
    for number in range(10):
        await house.sign_up(f"u{number}@example.com", ip="192.0.2.7")
    refused = await house.accounts.sign_up(email="one@example.com", password=PASSWORD, ip="192.0.2.7")
    assert isinstance(refused, Refused)
    assert refused.code == "too_many_attempts"


async def test_a_lock_that_came_without_redis_holds_when_it_is_back(house: House, valkey: Server) -> None:
    await house.sign_up()
    valkey.kill()
    for _ in range(5):
        await house.log_in(EMAIL, WRONG)
    valkey.start()
    assert (await house.log_in()).code == "locked"


def _calls(house: House, made: LoggedIn, ticket: str) -> dict[str, Callable[[], Awaitable[object]]]:
    accounts, user_id = house.accounts, made.user.id
    return {
        "sign_up": lambda: accounts.sign_up(email="bob@example.com", password=PASSWORD),
        "log_in": lambda: accounts.log_in(email=EMAIL, password=PASSWORD),
        "log_in as nobody": lambda: accounts.log_in(email="nobody@example.com", password=PASSWORD),
        "finish_log_in": lambda: accounts.finish_log_in(ticket=ticket, code="123456"),
        "change_password": lambda: accounts.change_password(made.session, current=PASSWORD, new=ELSE),
        "request_password_reset": lambda: accounts.request_password_reset(email=EMAIL),
        "reset_password": lambda: accounts.reset_password(token="t" * 43, new=ELSE),
        "request_email_verification": lambda: accounts.request_email_verification(user_id),
        "verify_email": lambda: accounts.verify_email(token="t" * 43),
        "suspend": lambda: accounts.suspend(user_id, by="root"),
        "restore": lambda: accounts.restore(user_id, by="root"),
        "delete": lambda: accounts.delete(user_id, by="root"),
        "cleanup_expired": accounts.cleanup_expired,
    }


@pytest.mark.parametrize("redis", ["up", "down"])
async def test_without_the_database_nobody_comes_in_and_nothing_is_changed(
    house: House, valkey: Server, redis: str
) -> None:
    made = await house.sign_up()
    secret, _ = await house.with_totp(made)
    needed = await house.log_in()
    assert isinstance(needed, TotpNeeded)
    told = len(house.told)
    if redis == "down":
        valkey.kill()
    await house.database.close()
    for name, call in _calls(house, made, needed.ticket).items():
        with pytest.raises(DatabaseUnavailable):
            pytest.fail(f"{name} answered {await call()!r}")
    await house.database.open()
    assert len(house.told) == told
    if redis == "up":
        assert await house.sessions.authenticate(made.tokens.access_token) is not None
    assert isinstance(
        await house.accounts.finish_log_in(ticket=needed.ticket, code=house.code(secret)), LoggedIn
    )


async def test_without_the_database_a_profile_comes_out_of_the_cache(house: House) -> None:
    made = await house.sign_up()
    await house.accounts.user(made.user.id)
    await house.database.close()
    assert await house.accounts.user(made.user.id) == made.user
    with pytest.raises(DatabaseUnavailable):
        await house.accounts.user("somebody else")
    await house.database.open()


async def test_a_log_in_that_is_called_off_in_the_middle_leaves_no_session(house: House) -> None:
    made = await house.sign_up()
    log_in = asyncio.create_task(house.log_in())
    called_off: list[str] = []

    def call_off(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("INSERT") and "user_sessions" in statement:
            called_off.append(statement)
            log_in.cancel()

    assert house.database._engine is not None
    event.listen(house.database._engine.sync_engine, "before_cursor_execute", call_off)
    with pytest.raises(asyncio.CancelledError):
        await log_in
    event.remove(house.database._engine.sync_engine, "before_cursor_execute", call_off)
    assert len(called_off) == 1
    assert len(await house.sessions.list(made.user.id)) == 1
    assert isinstance(await house.log_in(), LoggedIn)
