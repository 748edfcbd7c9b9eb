"""Nothing of a second factor is anywhere in plain text: no database, Redis, log or repr has a secret or a code."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from counterseal.accounts.refused import Refused
from counterseal.accounts.totp import Totp
from counterseal.accounts.totp_enrolment import BackupCodes, Enrolment
from counterseal.accounts.totp_verification import SteppedUp, Verified
from counterseal.core.errors import SealBroken
from counterseal.core.keyring import Keyring
from counterseal.database.engine import Database
from counterseal.database.tables import METADATA, totp_configs
from counterseal.sessions.session import Context
from support.accounts import House, accounts_on
from support.databases import Place
from support.servers import Server
from support.totp import code_of, enrol, next_step, wrong_code


@pytest.fixture
async def house(valkey: Server, database: Database) -> AsyncIterator[House]:
    async with accounts_on(valkey, database) as house:
        yield house


@dataclass
class Run:
    """What somebody saw in the whole life of a second factor."""

    long: set[str]
    """Secrets and backup codes."""
    short: set[str]
    """Codes of six digits."""
    shown: list[object]


async def whole_run(house: House) -> Run:
    totp, run = house.accounts.totp, Run(set(), set(), [])
    made = await house.sign_up()
    enrolment = await totp.set_up(made.session)
    assert isinstance(enrolment, Enrolment)
    run.long |= {enrolment.secret, enrolment.uri}

    def code() -> str:
        next_step(house)
        shown = code_of(house, enrolment.secret)
        run.short.add(shown)
        return shown

    confirmed = await totp.confirm(made.session, code())
    assert isinstance(confirmed, BackupCodes)
    run.long |= {*confirmed.codes}
    wrong = wrong_code(house, enrolment.secret)
    run.short.add(wrong)
    answers: list[object] = [
        await totp.verify(made.user.id, wrong, context=Context.LOGIN, address="192.0.2.7"),
        await totp.verify(made.user.id, "ABCD-EFGH-IJKL-MN23", context=Context.LOGIN),
        await totp.verify(made.user.id, code(), context=Context.LOGIN),
        await totp.verify(made.user.id, confirmed.codes[0], context=Context.SIGNING),
        await totp.step_up(made.session, code(), context=Context.SIGNING, request_id="r1"),
        await totp.state(made.user.id),
    ]
    run.long.add("ABCD-EFGH-IJKL-MN23")
    renewed = await totp.new_backup_codes(made.session, code())
    assert isinstance(renewed, BackupCodes)
    run.long |= {*renewed.codes}
    half = await house.log_in()
    whole = await house.accounts.finish_log_in(ticket=half.ticket, code=code())
    again = await totp.set_up(whole.session)
    assert isinstance(again, Enrolment)
    run.long |= {again.secret, again.uri}
    await totp.state(made.user.id)
    assert [type(answer) for answer in answers[:5]] == [Refused, Refused, Verified, Verified, SteppedUp]
    run.shown = [enrolment, confirmed, *answers, renewed, half, whole, again]
    return run


def spellings(run: Run) -> Iterable[bytes]:
    for text in run.long:
        bare = text.replace("-", "")
        yield from (text.encode(), bare.encode(), bare.lower().encode(), quote(text, safe="").encode())
        if re.fullmatch("[A-Z2-7]{16,32}", bare):
            raw = base64.b32decode(bare)
            yield from (raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="))
    # Not within longer numbers, which times have many of.
    yield from (code.encode() for code in run.short)


def found_in(content: bytes, run: Run) -> list[bytes]:
    return [
        secret
        for secret in spellings(run)
        if (len(secret) > 6 and secret in content)
        or (len(secret) == 6 and re.search(rb"(?<![0-9.])" + secret + rb"(?![0-9])", content))
    ]


async def everything_in(house: House, place: Place) -> bytes:
    parts: list[bytes] = []
    async with house.database.read() as connection:
        for table in METADATA.sorted_tables:
            for row in await connection.execute(select(table)):
                parts += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    parts += [path.read_bytes() for path in place.data_dir.glob("counterseal.db*")]
    return b"\n".join(parts)


READ = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"set": ("SMEMBERS",),
    b"list": ("LRANGE", 0, -1),
    b"stream": ("XRANGE", "-", "+"),
}


def everything_in_redis(server: Server) -> bytes:
    parts: list[bytes] = []
    for key in server.client.execute("KEYS", "*"):
        command, *rest = READ[server.client.execute("TYPE", key)]
        value = server.client.execute(command, key, *rest)
        parts += [key, *leaves(value)]
    assert parts
    return b"\n".join(parts)


def leaves(reply: Any) -> list[bytes]:
    if isinstance(reply, list):
        return [leaf for part in reply for leaf in leaves(part)]
    return [reply if isinstance(reply, bytes) else str(reply).encode()]


async def test_no_database_no_redis_no_log_and_no_repr_has_a_secret_or_a_code(
    house: House, place: Place, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run = await whole_run(house)
    kept = await everything_in(house, place)
    assert b"mfa.backup_used" in kept  # it was looked at
    assert found_in(kept, run) == []
    assert found_in(everything_in_redis(valkey), run) == []
    assert found_in(caplog.text.encode(), run) == []
    assert found_in("\n".join(repr(shown) for shown in run.shown).encode(), run) == []


async def test_the_scan_would_find_what_is_there() -> None:
    run = Run({"JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"}, {"123456"}, [])
    for text in (
        "secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP",
        "code 123456",
        "jbswy3dpehpk3pxpjbswy3dpehpk3pxp",
    ):
        assert found_in(text.encode(), run)
    assert found_in(base64.b32decode("JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"), run)
    assert not found_in(b"12345678 0.123456", run)


def ring(*names: str) -> Keyring:
    keys = (f"{name}:" + base64.b64encode(name[:1].encode() * 32).decode() for name in names)
    return Keyring(SecretStr(",".join(keys)))


async def test_a_secret_under_an_older_key_is_good_and_comes_under_the_newest_when_it_is_used(
    house: House,
) -> None:
    user = await enrol(house)  # under the key of the house, whose id is `test`
    held = base64.b64encode(b"k" * 32).decode()
    both = Keyring(SecretStr(f"new:{base64.b64encode(b'n' * 32).decode()},test:{held}"))
    backing = house.accounts._backing
    next_step(house)
    with pytest.raises(SealBroken):
        await Totp(backing, keyring=ring("new")).verify(
            user.user_id, code_of(house, user.secret), context=Context.LOGIN
        )
    code = code_of(house, user.secret)
    assert isinstance(
        await Totp(backing, keyring=both).verify(user.user_id, code, context=Context.LOGIN), Verified
    )
    async with house.database.read() as connection:
        assert (await connection.execute(select(totp_configs.c.key_id))).scalar_one() == "new"
    next_step(house)
    code = code_of(house, user.secret)
    alone = Totp(backing, keyring=ring("new"))
    assert isinstance(await alone.verify(user.user_id, code, context=Context.LOGIN), Verified)


async def test_a_secret_that_was_moved_to_another_user_is_not_read(house: House) -> None:
    ada, bob = await enrol(house), await enrol(house, "bob@example.com")
    next_step(house)
    async with house.database.begin() as connection:
        theirs = (
            await connection.execute(
                select(totp_configs.c.secret_ct).where(totp_configs.c.user_id == ada.user_id)
            )
        ).scalar_one()
        await connection.execute(
            update(totp_configs).where(totp_configs.c.user_id == bob.user_id).values(secret_ct=theirs)
        )
    with pytest.raises(SealBroken) as caught:
        await house.accounts.totp.verify(bob.user_id, code_of(house, ada.secret), context=Context.LOGIN)
    assert ada.secret not in str(caught.value)
