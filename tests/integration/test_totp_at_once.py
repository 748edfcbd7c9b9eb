"""Everything that changes an account at once: nobody waits for each other in a circle, and every code is good once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta

import pytest

from counterseal.accounts.refused import Refused
from counterseal.accounts.totp_enrolment import BackupCodes
from counterseal.core.settings import SessionSettings
from counterseal.database.engine import Database
from counterseal.sessions.session import Context
from support.accounts import House, accounts_on
from support.databases import Place
from support.servers import Server
from support.totp import Enrolled, code_of, enrol, next_step, unlimited

ROUNDS = 3
DEVICES = 3


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database, settings=SessionSettings(max_per_user=20)) as house:
        yield house


async def one_round(house: House, user: Enrolled) -> Counter[tuple[str, str]]:
    """Refresh, step up and revoke every device of a user, and change the factor, all at once; what came of it."""
    totp, sessions, outcomes = house.accounts.totp, house.sessions, Counter[tuple[str, str]]()

    async def note(name: str, work: Awaitable[object]) -> None:
        answer = await work
        outcomes[name, answer.code if isinstance(answer, Refused) else type(answer).__name__] += 1

    next_step(house)
    made = await totp.new_backup_codes(user.session, code_of(house, user.secret))
    assert isinstance(made, BackupCodes)
    devices = [await sessions.create(user_id=user.user_id, amr=("pwd", "otp")) for _ in range(DEVICES)]
    next_step(house)
    work: list[Awaitable[None]] = []
    for device, backup in zip(devices, made.codes, strict=False):
        step_up = totp.step_up(device.session, backup, context=Context.SIGNING, request_id="r1")
        work += [
            note("step up", step_up),
            note("rotate", sessions.rotate(device.refresh_token)),
            note("revoke", sessions.revoke(device.session_id)),
        ]
    again = totp.new_backup_codes(user.session, code_of(house, user.secret))
    work += [
        note("verify", totp.verify(user.user_id, made.codes[-1], context=Context.LOGIN)),
        note("new codes", again),
        note("set up", totp.set_up(user.session)),
        note("create", sessions.create(user_id=user.user_id)),
        note("others", sessions.revoke_others(user.session.session_id)),
    ]
    await asyncio.gather(*work)
    return outcomes


async def test_changes_of_one_account_at_once_all_come_to_an_end(house: House) -> None:
    user = await enrol(house)
    outcomes: Counter[tuple[str, str]] = Counter()
    async with unlimited(house):
        for _ in range(ROUNDS):
            outcomes += await one_round(house, user)
        assert outcomes["revoke", "Revocation"] == ROUNDS * DEVICES
        assert outcomes["new codes", "BackupCodes"] == outcomes["create", "Created"] == ROUNDS
        assert {code for name, code in outcomes if name == "step up"} <= {
            "SteppedUp",
            "session_ended",
            "code_invalid",
        }
        next_step(house)
        answers = [
            await house.accounts.totp.disable(user.session, code_of(house, user.secret, steps=steps))
            for steps in (0, 1)
        ]
    assert [type(answer).__name__ for answer in answers] == ["Disabled", "Refused"]


async def test_a_code_that_is_shown_to_two_processes_at_once_passes_once(
    house: House, valkey: Server, place: Place
) -> None:
    user = await enrol(house)
    async with place.database() as database, accounts_on(valkey, database) as other, unlimited(house):
        other.travel(timedelta(seconds=30))
        next_step(house)
        for code in (code_of(house, user.secret), user.backup_codes[0]):
            answers = await asyncio.gather(
                *(
                    one.accounts.totp.verify(user.user_id, code, context=Context.LOGIN)
                    for one in (house, other) * 6
                )
            )
            assert Counter(type(answer).__name__ for answer in answers) == {"Verified": 1, "Refused": 11}
