"""TOTP for tests: a user with a second factor, and the codes that an authenticator would show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from pyotp.totp import TOTP

from counterseal.accounts.totp_enrolment import BackupCodes, Enrolment
from counterseal.ratelimit.limit import Limit
from counterseal.sessions.session import Session
from support.accounts import EMAIL, House


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A user whose second factor is enabled, logged in and verified a moment ago."""

    user_id: str
    session: Session
    secret: str = field(repr=False)
    backup_codes: tuple[str, ...] = field(repr=False)


def code_of(house: House, secret: str, *, steps: int = 0) -> str:
    """What an authenticator shows now, or would show some steps later."""
    return TOTP(secret).generate_otp(house.store.now_ms() // 30_000 + steps)


def wrong_code(house: House, secret: str) -> str:
    """A code that is none of the near ones."""
    near = {code_of(house, secret, steps=steps) for steps in range(-3, 4)}
    return next(
        code for code in ("000000", "111111", "222222", "333333", *map(str, range(10**5))) if code not in near
    )


async def enrol(house: House, email: str = EMAIL, *, login: bool = True, signing: bool = True) -> Enrolled:
    """Sign somebody up and enable a second factor. The code of this step is used up by it."""
    made = await house.sign_up(email)
    return await enable(house, made.session, login=login, signing=signing)


async def enable(house: House, session: Session, *, login: bool = True, signing: bool = True) -> Enrolled:
    """Enable a second factor within a session."""
    enrolment = await house.accounts.totp.set_up(session)
    assert isinstance(enrolment, Enrolment), enrolment
    code = code_of(house, enrolment.secret)
    made = await house.accounts.totp.confirm(session, code, login=login, signing=signing)
    assert isinstance(made, BackupCodes), made
    return Enrolled(session.user_id, session, enrolment.secret, made.codes)


def next_step(house: House) -> None:
    """Move the clock to the next code."""
    house.travel(timedelta(seconds=30))


def at_the_beginning_of_a(period: timedelta, house: House) -> None:
    """Move the clock to where limits of this length begin to count anew, so that nothing fades out during a test."""
    now = timedelta(milliseconds=house.store.now_ms())
    house.travel(period - now % period)


@asynccontextmanager
async def unlimited(house: House) -> AsyncIterator[None]:
    """Let any number of wrong codes be tried, by all limiters of codes."""
    many = Limit(100_000, timedelta(minutes=5))
    for name in ("totp", "totp_day", "totp_address"):
        await house.rate_limits.set_limits(name, many)
    yield
    for name in ("totp", "totp_day", "totp_address"):
        await house.rate_limits.unset_limits(name)
