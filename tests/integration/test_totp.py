"""The second factor: set up, shown once, limited, taken away. On both databases."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

from counterseal.accounts.refused import Refused
from counterseal.accounts.totp_config import find_config, use_otherwise, use_step
from counterseal.accounts.totp_enrolment import BackupCodes, Disabled, Enrolment
from counterseal.accounts.totp_verification import SteppedUp, Verified
from counterseal.core.errors import ConfigurationError, DatabaseUnavailable
from counterseal.database.engine import Database
from counterseal.database.tables import (
    domain_settings,
    totp_backup_codes,
    totp_configs,
    totp_exemptions,
)
from counterseal.sessions.session import Context
from support.accounts import EMAIL, PASSWORD, House, accounts_on
from support.servers import Server
from support.totp import (
    Enrolled,
    at_the_beginning_of_a,
    code_of,
    enable,
    enrol,
    next_step,
    unlimited,
    wrong_code,
)

ELSEWHERE = "192.0.2.7"


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


def codes_of(answers: list[Any]) -> Counter[str]:
    return Counter(answer.code if isinstance(answer, Refused) else "right" for answer in answers)


async def verify(house: House, user: Enrolled, code: str, **more: Any) -> str:
    """`right`, or why a code was refused."""
    answer = await house.accounts.totp.verify(user.user_id, code, **{"context": Context.LOGIN, **more})
    return answer.code if isinstance(answer, Refused) else "right"


async def rows(house: House, table: Any, *columns: Any) -> list[Any]:
    async with house.database.read() as connection:
        return list(await connection.execute(select(*(columns or (table,)))))


async def write(house: House, statement: Any) -> None:
    async with house.database.begin() as connection:
        await connection.execute(statement)


async def enforce(house: House, domain: str = "example.com", **settings: Any) -> None:
    values = {"enforce_login_totp": True, "updated_at": datetime.now(UTC), **settings}
    await write(house, insert(domain_settings).values(domain=domain, **values))


async def exempt(house: House, user_id: str, context: str, *, for_: timedelta) -> None:
    until = datetime.fromtimestamp(house.store.now_ms() / 1000, UTC) + for_
    values = {"user_id": user_id, "context": context, "granted_by": user_id, "expires_at": until}
    await write(house, insert(totp_exemptions).values(**values))


async def actions(house: House, user: str) -> list[str]:
    entries = await house.audit.read(f"account:{user}", limit=1000)
    return [entry.action for entry in entries if entry.action.startswith("mfa.")]


# -- setting up --------------------------------------------------------------------------------------------------


async def test_what_is_set_up_counts_only_once_a_code_of_it_was_shown(house: House) -> None:
    made = await house.sign_up()
    totp = house.accounts.totp
    enrolment = await totp.set_up(made.session)
    assert isinstance(enrolment, Enrolment)
    assert enrolment.secret in enrolment.uri
    assert enrolment.qr_svg.startswith("<svg")
    assert repr(enrolment) == "Enrolment()"
    assert (await totp.state(made.user.id)).pending
    assert not await totp.needed(made.user.id, Context.BOTH)
    code = code_of(house, enrolment.secret)
    assert isinstance(await totp.verify(made.user.id, code, context=Context.LOGIN), Refused)
    assert codes_of([await totp.confirm(made.session, wrong_code(house, enrolment.secret))]) == {
        "code_invalid": 1
    }
    assert not (await totp.state(made.user.id)).enabled
    confirmed = await totp.confirm(made.session, code)
    assert isinstance(confirmed, BackupCodes)
    assert len(confirmed.codes) == 10
    state = await totp.state(made.user.id)
    assert (state.login_enabled, state.signing_enabled, state.pending) == (True, True, False)
    assert (state.stopped, state.backup_codes_left) == (False, 10)


async def test_the_code_that_confirmed_is_used_up_by_it(house: House) -> None:
    user = await enrol(house)
    assert await verify(house, user, code_of(house, user.secret)) == "code_invalid"
    next_step(house)
    assert await verify(house, user, code_of(house, user.secret)) == "right"


async def test_a_code_is_needed_for_what_it_was_enabled_for(house: House) -> None:
    asked = {
        (True, False): {Context.LOGIN, Context.BOTH},
        (False, True): {Context.SIGNING, Context.BOTH},
        (True, True): set(Context),
    }
    for (login, signing), needed in asked.items():
        user = await enrol(house, f"{login}.{signing}@example.com", login=login, signing=signing)
        found = {context for context in Context if await house.accounts.totp.needed(user.user_id, context)}
        assert found == needed


async def test_it_is_enabled_for_something_or_not_at_all(house: House) -> None:
    made = await house.sign_up()
    enrolment = await house.accounts.totp.set_up(made.session)
    assert isinstance(enrolment, Enrolment)
    code = code_of(house, enrolment.secret)
    answer = await house.accounts.totp.confirm(made.session, code, login=False, signing=False)
    assert codes_of([answer]) == {"totp_context_missing": 1}


async def test_confirming_ends_the_other_sessions_and_gives_this_one_new_tokens(house: House) -> None:
    made = await house.sign_up()
    other = await house.log_in()
    enrolment = await house.accounts.totp.set_up(made.session)
    assert isinstance(enrolment, Enrolment)
    confirmed = await house.accounts.totp.confirm(made.session, code_of(house, enrolment.secret))
    assert isinstance(confirmed, BackupCodes)
    assert await house.sessions.get(other.session.session_id) is None
    assert confirmed.tokens is not None
    assert repr(confirmed) == "BackupCodes()"
    session = await house.sessions.authenticate(confirmed.tokens.access_token, fresh=True)
    assert session is not None
    assert session.session_id == made.session.session_id
    assert session.amr == ("pwd", "otp")
    assert await house.sessions.rotate(confirmed.tokens.refresh_token) is not None
    assert await actions(house, made.user.id) == ["mfa.enabled"]


async def test_changes_need_a_log_in_of_the_last_ten_minutes(house: House) -> None:
    user = await enrol(house)
    totp = house.accounts.totp
    house.travel(timedelta(minutes=9, seconds=50))
    assert isinstance(await totp.set_up(user.session), Enrolment)
    house.travel(timedelta(seconds=11))
    code = code_of(house, user.secret)
    answers = [
        await totp.set_up(user.session),
        await totp.confirm(user.session, code),
        await totp.disable(user.session, code),
    ]
    assert codes_of(answers) == {"fresh_login_needed": 3}
    assert await verify(house, user, code) == "right"  # it was not touched


async def test_an_ended_session_changes_nothing(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    await house.sessions.revoke(user.session.session_id)
    totp, code = house.accounts.totp, code_of(house, user.secret)
    answers = [
        await totp.set_up(user.session),
        await totp.confirm(user.session, code),
        await totp.disable(user.session, code),
        await totp.new_backup_codes(user.session, code),
        await totp.step_up(user.session, code, context=Context.SIGNING, request_id="r1"),
    ]
    assert codes_of(answers) == {"session_ended": 5}
    assert await verify(house, user, code) == "right"


async def test_a_set_up_in_a_stolen_session_leaves_the_enabled_factor_as_it_is(house: House) -> None:
    user = await enrol(house, login=False, signing=True)
    next_step(house)
    stolen = await house.log_in()  # by password alone, since log-in asks for no code
    assert stolen.session.amr == ("pwd",)
    answers = [await house.accounts.totp.set_up(stolen.session)]
    answers.append(await house.accounts.totp.confirm(stolen.session, "000000"))
    assert codes_of(answers) == {"totp_required": 1, "totp_not_set_up": 1}
    assert await verify(house, user, code_of(house, user.secret)) == "right"


async def test_what_was_pending_before_a_factor_was_enabled_does_not_replace_it_without_a_code_of_it(
    house: House,
) -> None:
    made = await house.sign_up()
    thief = await house.log_in()
    theirs = await house.accounts.totp.set_up(thief.session)
    assert isinstance(theirs, Enrolment)
    async with house.database.read() as connection:
        (pending,) = await connection.execute(select(totp_configs))
    user = await enable(house, made.session, login=False)
    # As it would stand if both had begun at the same moment.
    values = {**pending._mapping, "state": "pending"}
    await write(house, insert(totp_configs).values(**values))
    again = await house.log_in()
    answer = await house.accounts.totp.confirm(again.session, code_of(house, theirs.secret))
    assert codes_of([answer]) == {"totp_required": 1}
    next_step(house)
    assert await verify(house, user, code_of(house, user.secret)) == "right"


async def test_a_factor_is_replaced_by_who_has_shown_it(house: House) -> None:
    old = await enrol(house)
    next_step(house)
    new = await enable(house, old.session)
    assert await verify(house, new, old.backup_codes[0]) == "code_invalid"
    next_step(house)
    assert await verify(house, new, code_of(house, old.secret)) == "code_invalid"
    assert await verify(house, new, code_of(house, new.secret)) == "right"
    assert await actions(house, old.user_id) == ["mfa.enabled", "mfa.enabled"]


async def test_of_confirmations_at_once_one_succeeds_and_its_codes_are_good(house: House) -> None:
    made = await house.sign_up()
    enrolment = await house.accounts.totp.set_up(made.session)
    assert isinstance(enrolment, Enrolment)
    code = code_of(house, enrolment.secret)
    answers = await asyncio.gather(*(house.accounts.totp.confirm(made.session, code) for _ in range(4)))
    (confirmed,) = [answer for answer in answers if isinstance(answer, BackupCodes)]
    answer = await house.accounts.totp.verify(made.user.id, confirmed.codes[3], context=Context.LOGIN)
    assert answer == Verified("backup_code")
    assert await actions(house, made.user.id) == ["mfa.enabled", "mfa.backup_used"]


async def test_set_ups_at_once_leave_one_secret(house: House) -> None:
    made = await house.sign_up()
    answers = await asyncio.gather(*(house.accounts.totp.set_up(made.session) for _ in range(5)))
    assert all(isinstance(answer, Enrolment) for answer in answers)
    assert len(await rows(house, totp_configs)) == 1


# -- a code is good once -----------------------------------------------------------------------------------------


async def test_a_code_that_fifty_tasks_show_at_once_passes_once(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    code = code_of(house, user.secret)
    async with unlimited(house):
        answers = await asyncio.gather(
            *(house.accounts.totp.verify(user.user_id, code, context=Context.LOGIN) for _ in range(50))
        )
    assert codes_of(answers) == {"right": 1, "code_invalid": 49}


async def test_of_fifty_at_once_no_more_are_tried_than_may_be_wrong(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    code = code_of(house, user.secret)
    answers = await asyncio.gather(
        *(house.accounts.totp.verify(user.user_id, code, context=Context.LOGIN) for _ in range(50))
    )
    counted = codes_of(answers)
    assert counted["right"] == 1
    assert counted["code_invalid"] <= 5
    assert counted["too_many_attempts"] >= 44


async def test_a_used_code_stays_used_when_redis_loses_its_data(house: House, valkey: Server) -> None:
    user = await enrol(house)
    next_step(house)
    code = code_of(house, user.secret)
    assert await verify(house, user, code) == "right"
    valkey.flush()
    assert await verify(house, user, code) == "code_invalid"
    assert await verify(house, user, code, context=Context.SIGNING) == "code_invalid"


async def test_an_older_code_is_not_taken_after_a_newer_one(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    next_step(house)
    early, late = code_of(house, user.secret, steps=-1), code_of(house, user.secret, steps=1)
    assert await verify(house, user, late) == "right"
    assert await verify(house, user, early) == "code_invalid"
    assert await verify(house, user, code_of(house, user.secret)) == "code_invalid"


async def test_clocks_may_differ_by_one_step_and_by_no_more(house: House) -> None:
    user = await enrol(house)
    for _ in range(4):
        next_step(house)
    assert await verify(house, user, code_of(house, user.secret, steps=-2)) == "code_invalid"
    assert await verify(house, user, code_of(house, user.secret, steps=2)) == "code_invalid"
    assert await verify(house, user, code_of(house, user.secret, steps=-1)) == "right"


async def test_a_backup_code_that_is_shown_ten_times_at_once_passes_once(house: House) -> None:
    user = await enrol(house)
    async with unlimited(house):
        answers = await asyncio.gather(
            *(
                house.accounts.totp.verify(user.user_id, user.backup_codes[4], context=Context.LOGIN)
                for _ in range(10)
            )
        )
    assert codes_of(answers) == {"right": 1, "code_invalid": 9}
    assert await actions(house, user.user_id) == ["mfa.enabled", "mfa.backup_used"]
    assert (await house.accounts.totp.state(user.user_id)).backup_codes_left == 9


async def test_every_backup_code_is_good_once_however_it_is_typed(house: House) -> None:
    user = await enrol(house)
    assert await verify(house, user, user.backup_codes[0].lower().replace("-", " ")) == "right"
    assert await verify(house, user, user.backup_codes[0]) == "code_invalid"
    assert await verify(house, user, user.backup_codes[9].replace("-", "")) == "right"
    assert (await house.accounts.totp.state(user.user_id)).backup_codes_left == 8


async def test_codes_of_one_user_are_no_good_for_another(house: House) -> None:
    ada = await enrol(house)
    bob = await enrol(house, "bob@example.com")
    next_step(house)
    assert await verify(house, bob, code_of(house, ada.secret)) == "code_invalid"
    assert await verify(house, bob, ada.backup_codes[0]) == "code_invalid"
    assert await verify(house, ada, ada.backup_codes[0]) == "right"


async def test_whatever_else_is_typed_is_a_wrong_code(house: House) -> None:
    user = await enrol(house)
    odd: list[Any] = [
        "",
        "12345",
        "x" * 100_000,
        "123456\x00",
        "\ud800",
        "٠١٢٣٤٥",
        "A" * 16,
        b"123456",
        None,
        123456,
    ]
    async with unlimited(house):
        assert [await verify(house, user, code) for code in odd] == ["code_invalid"] * len(odd)


async def test_who_has_no_second_factor_and_who_is_unknown_get_the_same_answer(house: House) -> None:
    made = await house.sign_up()
    answers = [
        await house.accounts.totp.verify(user, "123456", context=Context.LOGIN)
        for user in (made.user.id, "nobody")
    ]
    assert codes_of(answers) == {"code_invalid": 2}
    assert answers[0] == answers[1]


# -- guessing ----------------------------------------------------------------------------------------------------


async def test_five_wrong_codes_shut_a_purpose_for_five_minutes_the_right_code_too(house: House) -> None:
    at_the_beginning_of_a(timedelta(minutes=5), house)
    user = await enrol(house)
    next_step(house)
    wrong = wrong_code(house, user.secret)
    assert [await verify(house, user, wrong) for _ in range(6)] == ["code_invalid"] * 5 + [
        "too_many_attempts"
    ]
    code = code_of(house, user.secret)
    refused = await house.accounts.totp.verify(user.user_id, code, context=Context.LOGIN)
    assert isinstance(refused, Refused)
    assert refused.retry_after is not None
    assert timedelta(0) < refused.retry_after <= timedelta(minutes=10)
    assert await verify(house, user, code, context=Context.SIGNING) == "right"
    house.travel(timedelta(minutes=10))
    assert await verify(house, user, code_of(house, user.secret)) == "right"


async def test_twenty_wrong_codes_shut_a_purpose_for_the_day(house: House) -> None:
    at_the_beginning_of_a(timedelta(days=1), house)
    user = await enrol(house)
    for _ in range(4):
        wrong = wrong_code(house, user.secret)
        assert [await verify(house, user, wrong) for _ in range(5)] == ["code_invalid"] * 5
        house.travel(timedelta(minutes=10))
    assert await verify(house, user, code_of(house, user.secret)) == "too_many_attempts"
    assert await verify(house, user, code_of(house, user.secret), context=Context.SIGNING) == "right"


async def test_thirty_wrong_codes_shut_an_address_whoever_they_were_for(house: House) -> None:
    at_the_beginning_of_a(timedelta(minutes=5), house)
    users = [await enrol(house, f"u{number}@example.com") for number in range(7)]
    for user in users[:6]:
        wrong = wrong_code(house, user.secret)
        answers = [await verify(house, user, wrong, address=ELSEWHERE) for _ in range(5)]
        assert answers == ["code_invalid"] * 5
    next_step(house)
    last = users[6]
    assert await verify(house, last, code_of(house, last.secret), address=ELSEWHERE) == "too_many_attempts"
    assert await verify(house, last, code_of(house, last.secret), address="192.0.2.8") == "right"


async def test_an_address_that_is_shut_uses_up_nothing_of_a_user(house: House) -> None:
    at_the_beginning_of_a(timedelta(minutes=5), house)
    user = await enrol(house)
    next_step(house)
    for _ in range(30):
        await house.rate_limits.limiter("totp_address").limit(ELSEWHERE)
    answers = [await verify(house, user, "000000", address=ELSEWHERE) for _ in range(10)]
    assert answers == ["too_many_attempts"] * 10
    assert await verify(house, user, code_of(house, user.secret)) == "right"


async def test_right_codes_do_not_count(house: House) -> None:
    user = await enrol(house)
    for _ in range(9):  # within five minutes
        next_step(house)
        assert await verify(house, user, code_of(house, user.secret), address=ELSEWHERE) == "right"
    wrong = wrong_code(house, user.secret)
    assert [await verify(house, user, wrong) for _ in range(5)] == ["code_invalid"] * 5


async def test_malformed_codes_and_used_ones_count_as_wrong(house: House) -> None:
    user = await enrol(house)
    used = code_of(house, user.secret)
    answers = [await verify(house, user, code) for code in ("", "abc", used, "x" * 1000, used)]
    assert answers == ["code_invalid"] * 5
    assert await verify(house, user, used) == "too_many_attempts"


async def test_a_hundred_wrong_codes_in_a_row_stop_the_factor_until_somebody_has_verified_who_it_is(
    house: House,
) -> None:
    user = await enrol(house)
    totp = house.accounts.totp
    await write(house, update(totp_configs).values(failed_in_row=98))
    wrong = wrong_code(house, user.secret)
    assert [await verify(house, user, wrong) for _ in range(2)] == ["code_invalid"] * 2
    next_step(house)
    code = code_of(house, user.secret)
    assert await verify(house, user, code) == "totp_stopped"
    assert await verify(house, user, user.backup_codes[0]) == "totp_stopped"
    assert (await totp.state(user.user_id)).stopped
    assert await actions(house, user.user_id) == ["mfa.enabled", "mfa.stopped"]
    assert await totp.restart(user.user_id, by="admin")
    assert not await totp.restart(user.user_id, by="admin")
    assert not (await totp.state(user.user_id)).stopped
    assert await verify(house, user, code) == "right"
    assert (await actions(house, user.user_id))[-1] == "mfa.restarted"


async def test_a_factor_that_was_stopped_or_replaced_while_a_code_was_looked_at_takes_it_no_more(
    house: House,
) -> None:
    user = await enrol(house)
    backing, keyring = house.accounts._backing, house.accounts.totp._verification._keyring
    async with house.database.read() as connection:
        seen = await find_config(connection, user.user_id, "enabled")
    assert seen is not None
    step = house.store.now_ms() // 30_000 + 1
    await write(house, update(totp_configs).values(failed_in_row=100))
    async with house.database.begin() as connection:
        assert not await use_step(connection, seen, step, keyring, now=backing.now())
        assert not await use_otherwise(connection, seen, now=backing.now())
    await write(house, update(totp_configs).values(failed_in_row=0))
    next_step(house)
    await enable(house, user.session)
    async with house.database.begin() as connection:
        assert not await use_step(connection, seen, step + 10, keyring, now=backing.now())


async def test_a_right_code_begins_the_row_of_wrong_ones_anew(house: House) -> None:
    user = await enrol(house)
    await write(house, update(totp_configs).values(failed_in_row=99))
    assert await verify(house, user, user.backup_codes[0]) == "right"
    next_step(house)
    assert await verify(house, user, wrong_code(house, user.secret)) == "code_invalid"
    assert await verify(house, user, code_of(house, user.secret)) == "right"
    assert [row.failed_in_row for row in await rows(house, totp_configs)] == [0]


# -- stepping up -------------------------------------------------------------------------------------------------


async def test_a_step_up_is_noted_in_its_session_for_its_request_and_gives_a_new_access_token(
    house: House,
) -> None:
    user = await enrol(house)
    next_step(house)
    code = code_of(house, user.secret)
    made = await house.accounts.totp.step_up(user.session, code, context=Context.SIGNING, request_id="r:1")
    assert isinstance(made, SteppedUp)
    assert (made.step_up.context, made.step_up.request_id, made.step_up.method) == (
        Context.SIGNING,
        "r:1",
        "totp",
    )
    assert made.tokens is None
    assert made.access_token not in repr(made)
    session = await house.sessions.authenticate(made.access_token)
    assert session is not None
    assert session.verified(Context.SIGNING) is not None
    sessions, session_id = house.sessions, user.session.session_id
    assert await sessions.require_step_up(session_id, Context.SIGNING, "r:2") is None
    assert await sessions.require_step_up(session_id, Context.LOGIN, "r:1") is None
    assert await sessions.require_step_up(session_id, Context.SIGNING, "r:1") is not None
    assert await sessions.require_step_up(session_id, Context.SIGNING, "r:1") is None


async def test_a_step_up_by_backup_code_says_so(house: House) -> None:
    user = await enrol(house)
    made = await house.accounts.totp.step_up(
        user.session, user.backup_codes[1], context=Context.BOTH, request_id="r1"
    )
    assert isinstance(made, SteppedUp)
    assert made.step_up.method == "backup_code"
    assert await actions(house, user.user_id) == ["mfa.enabled", "mfa.backup_used"]


async def test_a_step_up_for_what_can_be_no_request_is_refused_before_the_code_is_used(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    code = code_of(house, user.secret)
    for odd in ("", "x" * 129, "a\0b"):
        with pytest.raises(ConfigurationError, match=r"^request_id: "):
            await house.accounts.totp.step_up(user.session, code, context=Context.SIGNING, request_id=odd)
    assert await verify(house, user, code, context=Context.SIGNING) == "right"


async def test_of_step_ups_at_once_with_one_code_one_is_noted(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    code = code_of(house, user.secret)
    answers = await asyncio.gather(
        *(
            house.accounts.totp.step_up(user.session, code, context=Context.SIGNING, request_id=f"r{number}")
            for number in range(5)
        )
    )
    assert codes_of(answers) == {"right": 1, "code_invalid": 4}


# -- taking it away ----------------------------------------------------------------------------------------------


async def test_disabling_needs_a_code_ends_the_others_and_leaves_nothing(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    totp = house.accounts.totp
    half = await house.log_in()
    other = await house.accounts.finish_log_in(ticket=half.ticket, code=user.backup_codes[0])
    assert codes_of([await totp.disable(user.session, wrong_code(house, user.secret))]) == {"code_invalid": 1}
    assert await totp.needed(user.user_id, Context.LOGIN)
    disabled = await totp.disable(user.session, code_of(house, user.secret))
    assert isinstance(disabled, Disabled)
    assert disabled.tokens is not None
    assert await house.sessions.authenticate(disabled.tokens.access_token) is not None
    assert await house.sessions.get(other.session.session_id) is None
    assert not await totp.needed(user.user_id, Context.BOTH)
    assert await rows(house, totp_configs) == await rows(house, totp_backup_codes) == []
    assert not (await totp.state(user.user_id)).enabled
    assert await actions(house, user.user_id) == ["mfa.enabled", "mfa.backup_used", "mfa.disabled"]
    answer = await totp.disable(user.session, code_of(house, user.secret))
    assert codes_of([answer]) == {"totp_not_enabled": 1}


async def test_a_factor_that_the_domain_asks_for_is_not_taken_away(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    await enforce(house, totp_grace_days=0)
    answer = await house.accounts.totp.disable(user.session, code_of(house, user.secret))
    assert codes_of([answer]) == {"totp_enforced": 1}
    await exempt(house, user.user_id, "both", for_=timedelta(days=1))
    assert isinstance(await house.accounts.totp.disable(user.session, code_of(house, user.secret)), Disabled)


async def test_new_backup_codes_need_a_code_of_the_authenticator(house: House) -> None:
    user = await enrol(house)
    totp = house.accounts.totp
    answers = [await totp.new_backup_codes(user.session, user.backup_codes[0])]
    answers.append(await totp.new_backup_codes(user.session, code_of(house, user.secret)))  # used
    assert codes_of(answers) == {"code_invalid": 2}
    assert await verify(house, user, user.backup_codes[0]) == "right"
    next_step(house)
    made = await totp.new_backup_codes(user.session, code_of(house, user.secret))
    assert isinstance(made, BackupCodes)
    assert len({*made.codes, *user.backup_codes}) == 20
    assert (await totp.state(user.user_id)).backup_codes_left == 10
    assert await verify(house, user, user.backup_codes[1]) == "code_invalid"
    assert await verify(house, user, made.codes[1]) == "right"
    assert {row.batch for row in await rows(house, totp_backup_codes)} == {2}


async def test_an_administrator_takes_a_lost_factor_away_and_all_sessions_end(house: House) -> None:
    user = await enrol(house)
    assert await house.accounts.totp.remove(user.user_id, by="admin")
    assert await house.sessions.get(user.session.session_id) is None
    assert not await house.accounts.totp.needed(user.user_id, Context.LOGIN)
    assert not await house.accounts.totp.remove(user.user_id, by="admin")
    assert await actions(house, user.user_id) == ["mfa.enabled", "mfa.disabled"]


# -- policy ------------------------------------------------------------------------------------------------------


async def test_a_domain_asks_for_a_code_once_the_days_of_grace_are_over(house: House) -> None:
    made = await house.sign_up()
    await house.sign_up("bob@example.org")
    await enforce(house)
    needed = house.accounts.totp.needed
    house.travel(timedelta(days=6, hours=23))
    assert not await needed(made.user.id, Context.LOGIN)
    house.travel(timedelta(hours=1))
    assert await needed(made.user.id, Context.LOGIN)
    assert not await needed(made.user.id, Context.SIGNING)
    assert await needed(made.user.id, Context.BOTH)
    bob = await house.column("id", "bob@example.org")
    assert not await needed(bob, Context.BOTH)


async def test_an_exemption_takes_back_what_user_and_domain_want_until_it_expires(house: House) -> None:
    await enforce(house, enforce_signing_totp=True, totp_grace_days=0)
    freed = {"login": {Context.LOGIN}, "signing": {Context.SIGNING}, "both": set(Context)}
    users = {context: await enrol(house, f"{context}@example.com") for context in freed}

    async def asked_for(context: str) -> set[Context]:
        user_id = users[context].user_id
        return {asked for asked in Context if await house.accounts.totp.needed(user_id, asked)}

    for context, contexts in freed.items():
        assert await asked_for(context) == set(Context)
        await exempt(house, users[context].user_id, context, for_=timedelta(hours=1))
        assert await asked_for(context) == set(Context) - contexts
    house.travel(timedelta(hours=1))
    for context in freed:
        assert await asked_for(context) == set(Context)


async def test_a_policy_that_can_not_be_read_means_that_a_code_is_needed(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    made = await house.sign_up()
    totp = house.accounts.totp
    assert not await totp.needed(made.user.id, Context.LOGIN)
    assert await totp.needed("nobody", Context.LOGIN)
    await house.database.close()
    assert await totp.needed(made.user.id, Context.LOGIN)
    assert "TOTP policy can't be read" in caplog.text
    with pytest.raises(DatabaseUnavailable):
        await totp.verify(made.user.id, "123456", context=Context.LOGIN)
    await house.database.open()


async def test_what_the_cache_says_decides_nothing(house: House) -> None:
    user = await enrol(house)
    free = {
        "login_enabled": False,
        "signing_enabled": False,
        "pending": False,
        "stopped": False,
        "backup_codes_left": 0,
        "exempt_until": {"login": "2999-01-01T00:00:00+00:00"},
    }
    await house.cache.totp_configs.set(user.user_id, free)
    assert not (await house.accounts.totp.state(user.user_id)).enabled
    assert await house.accounts.totp.needed(user.user_id, Context.LOGIN)


async def test_a_state_that_another_release_kept_is_read_anew(house: House) -> None:
    user = await enrol(house)
    await house.cache.totp_configs.set(user.user_id, {"login_enabled": False})
    assert (await house.accounts.totp.state(user.user_id)).enabled


async def test_the_state_shows_exemptions_while_they_last(house: House) -> None:
    user = await enrol(house)
    await exempt(house, user.user_id, "both", for_=timedelta(minutes=5))
    await exempt(house, user.user_id, "login", for_=timedelta(minutes=10))
    state = await house.accounts.totp.state(user.user_id)
    assert set(state.exempt_until) == {Context.LOGIN, Context.SIGNING}
    house.travel(timedelta(minutes=6))
    assert set((await house.accounts.totp.state(user.user_id)).exempt_until) == {Context.LOGIN}


async def test_the_state_comes_out_of_the_cache_and_every_change_takes_it_out(house: House) -> None:
    made = await house.sign_up()
    totp = house.accounts.totp

    async def seen() -> tuple[bool, bool, int]:
        first = await totp.state(made.user.id)
        assert await house.cache.totp_configs.get(made.user.id) is not None
        return first.enabled, first.pending, first.backup_codes_left

    assert await seen() == (False, False, 0)
    enrolment = await totp.set_up(made.session)
    assert isinstance(enrolment, Enrolment)
    assert await seen() == (False, True, 0)
    confirmed = await totp.confirm(made.session, code_of(house, enrolment.secret))
    assert isinstance(confirmed, BackupCodes)
    assert await seen() == (True, False, 10)
    await totp.verify(made.user.id, confirmed.codes[0], context=Context.LOGIN)
    assert await seen() == (True, False, 9)
    next_step(house)
    await totp.new_backup_codes(made.session, code_of(house, enrolment.secret))
    assert await seen() == (True, False, 10)
    next_step(house)
    await totp.disable(made.session, code_of(house, enrolment.secret))
    assert await seen() == (False, False, 0)


# -- log-in ------------------------------------------------------------------------------------------------------


async def test_a_log_in_asks_for_a_code_and_takes_a_backup_code_as_well(house: House) -> None:
    user = await enrol(house)
    next_step(house)
    half = await house.log_in(EMAIL, PASSWORD)
    whole = await house.accounts.finish_log_in(ticket=half.ticket, code=code_of(house, user.secret))
    assert whole.session.amr == ("pwd", "otp")
    half = await house.log_in(EMAIL, PASSWORD)
    whole = await house.accounts.finish_log_in(ticket=half.ticket, code=user.backup_codes[0])
    assert whole.session.amr == ("pwd", "otp")


# -- without Redis -----------------------------------------------------------------------------------------------


async def test_without_redis_everything_works_and_limits_are_counted_in_the_database(
    house: House, valkey: Server
) -> None:
    user = await enrol(house)
    next_step(house)
    valkey.stop()
    code = code_of(house, user.secret)
    answers = await asyncio.gather(
        *(house.accounts.totp.verify(user.user_id, code, context=Context.LOGIN) for _ in range(4))
    )
    assert codes_of(answers) == {"right": 1, "code_invalid": 3}
    assert await verify(house, user, user.backup_codes[0], address=ELSEWHERE) == "right"
    wrong = wrong_code(house, user.secret)
    assert [await verify(house, user, wrong) for _ in range(3)] == [
        *["code_invalid"] * 2,
        "too_many_attempts",
    ]
    assert (await house.accounts.totp.state(user.user_id)).backup_codes_left == 9
    next_step(house)
    signing = await house.accounts.totp.step_up(
        user.session, code_of(house, user.secret), context=Context.SIGNING, request_id="r1"
    )
    assert isinstance(signing, SteppedUp)
    async with house.database.read() as connection:
        left = await connection.execute(select(func.count()).where(totp_backup_codes.c.used_at.is_(None)))
        assert left.scalar_one() == 9
