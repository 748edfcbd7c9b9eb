"""Tokens of sessions on both databases: who is refused and what that ends, and that nothing secret lies about."""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from counterseal.core.keyring import Keyring
from counterseal.database.engine import Database
from counterseal.sessions import Context, Created, Reason, Rotated, SessionReuseDetected, SessionRotated
from counterseal.sessions.access_token import AccessClaims, issue_access_token
from counterseal.sessions.refresh_token import new_refresh_token
from support.databases import Place
from support.servers import Server
from support.session_rows import change_row, digest, parts_of, row_of
from support.sessions import KEYS, SECRET_KEYS, Process, process
from support.stores import store_on, travel

OTHER_KEYS = SecretStr("k2:" + "B" * 43 + "=")
BOTH_KEYS = SecretStr(f"{OTHER_KEYS.get_secret_value()},{SECRET_KEYS.get_secret_value()}")
GRACE = timedelta(seconds=10)
LATE = GRACE + timedelta(milliseconds=1)


@pytest.fixture
async def app(valkey: Server, database: Database) -> AsyncIterator[Process]:
    """One process."""
    async with store_on(valkey) as store, process(store, database, relay=False) as app:
        yield app


async def ring(keys: SecretStr) -> Keyring:
    keyring = Keyring(keys)
    await keyring.open()
    return keyring


async def rotated(app: Process, token: str) -> Rotated:
    """The answer to a token that has to be good."""
    answer = await app.sessions.rotate(token)
    assert answer is not None
    return answer


def changed(token: str, index: int) -> str:
    """A token with another character there."""
    position = index % len(token)
    other = "A" if token[position] != "A" else "B"
    return token[:position] + other + token[position + 1 :]


async def test_a_token_that_was_never_issued_is_refused_and_ends_nothing(app: Process) -> None:
    made, other = await app.log_in(), await app.log_in("bob")
    user_id, part = parts_of(made.session_id)
    stranger = new_refresh_token(user_id, part, await ring(OTHER_KEYS)).text
    secret = made.refresh_token.rpartition(".")[2]
    forged = [
        f"v1.{made.session_id}.{secrets.token_urlsafe(44)}",
        f"v1.{other.session_id}.{secret}",
        f"v1.bob.{part}.{secret}",
        f"v2.{made.session_id}.{secret}",
        f"V1.{made.session_id}.{secret}",
        f"{made.session_id}.{secret}",
        stranger,
        *(made.refresh_token[:-cut] for cut in (1, 2, 16, 59, 60)),
        made.refresh_token + "A",
        made.refresh_token + "=",
        made.refresh_token + "\n",
        " " + made.refresh_token,
        made.refresh_token.upper(),
        *(changed(made.refresh_token, index) for index in (-1, -16, -17, -40, -59)),
        made.access_token,
        made.session_id,
        digest(made.refresh_token).hex(),
        "",
        "v1...",
        "x" * 100_000,
    ]
    for token in forged:
        assert await app.sessions.rotate(token) is None, token
    assert app.told(SessionReuseDetected) == []
    assert await app.sessions.get(made.session_id) is not None
    assert await app.sessions.get(other.session_id) is not None
    assert (await rotated(app, made.refresh_token)).session.version == 2
    assert (await rotated(app, other.refresh_token)).session.version == 2


async def test_a_token_with_a_mark_of_ours_that_is_good_for_nothing_ends_its_session(app: Process) -> None:
    made = await app.log_in()
    lost = new_refresh_token(*parts_of(made.session_id), await ring(SECRET_KEYS)).text
    assert await app.sessions.rotate(lost) is None
    assert await app.sessions.get(made.session_id) is None
    assert [event.session_id for event in app.told(SessionReuseDetected)] == [made.session_id]


async def test_tokens_of_an_older_key_are_good_while_it_is_in_the_ring(
    app: Process, valkey: Server, place: Place
) -> None:
    made = await app.log_in()
    async with (
        store_on(valkey) as store,
        place.database() as database,
        process(store, database, relay=False) as later,
    ):
        later.sessions._backing.keyring = await ring(BOTH_KEYS)
        assert await later.sessions.authenticate(made.access_token) is not None
        fresh = await rotated(later, made.refresh_token)
        # What the newer key has made the older process does not know.
        assert await app.sessions.authenticate(fresh.tokens.access_token) is None
        travel(store, LATE)
        assert await later.sessions.rotate(made.refresh_token) is None
        assert await later.sessions.get(made.session_id) is None
        assert len(later.told(SessionReuseDetected)) == 1


async def test_tokens_of_a_key_that_is_gone_end_nothing(app: Process, valkey: Server, place: Place) -> None:
    made = await app.log_in()
    fresh = await rotated(app, made.refresh_token)
    async with (
        store_on(valkey) as store,
        place.database() as database,
        process(store, database, relay=False) as later,
    ):
        later.sessions._backing.keyring = await ring(OTHER_KEYS)
        travel(store, LATE)
        assert await later.sessions.authenticate(made.access_token) is None
        assert await later.sessions.rotate(made.refresh_token) is None
        assert await later.sessions.get(made.session_id) is not None
        # The token that is stored is good, whoever has made it.
        assert await later.sessions.rotate(fresh.tokens.refresh_token) is not None


@pytest.mark.parametrize("by", ["redis", "database"])
async def test_reuse_is_noticed_by_either_store(app: Process, valkey: Server, by: str) -> None:
    made = await app.log_in()
    first = await rotated(app, made.refresh_token)
    second = await rotated(app, first.tokens.refresh_token)
    if by == "database":
        valkey.flush()
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.authenticate(second.tokens.access_token) is None
    for token in (made, first.tokens, second.tokens):
        assert await app.sessions.rotate(token.refresh_token) is None
    row = await row_of(app.database, made.session_id)
    assert (row.state, row.revoke_reason) == ("revoked", "reuse_detected")
    (told,) = app.told(SessionReuseDetected)
    assert (told.session_id, told.user_id, told.device, told.ip) == (
        made.session_id,
        "ada",
        "Firefox on Linux",
        "192.0.2.1",
    )


async def test_reuse_ends_the_step_ups_of_its_session_and_nothing_else(app: Process) -> None:
    made, other = await app.log_in(), await app.log_in()
    for one in (made, other):
        assert await app.sessions.set_totp_verified(one.session_id, Context.SIGNING, "r") is not None
    await rotated(app, made.refresh_token)
    travel(app.store, LATE)
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.require_step_up(made.session_id, Context.SIGNING, "r") is None
    assert await app.sessions.require_step_up(other.session_id, Context.SIGNING, "r") is not None


@pytest.mark.parametrize("after", [GRACE - timedelta(seconds=2), LATE])
async def test_the_grace_is_kept_without_redis_data_too(
    app: Process, valkey: Server, after: timedelta
) -> None:
    made = await app.log_in()
    fresh = await rotated(app, made.refresh_token)
    valkey.flush()
    travel(app.store, after)
    again = await app.sessions.rotate(made.refresh_token)
    if after < GRACE:
        assert again is not None
        assert again.tokens.refresh_token == fresh.tokens.refresh_token
        assert len(app.told(SessionRotated)) == 1
    else:
        assert again is None
        assert await app.sessions.get(made.session_id) is None


async def copy_of(app: Process, made: Created) -> bytes:
    """What Redis holds of a session, to be put back later."""
    dumped = await app.store.command("DUMP", KEYS.session(*parts_of(made.session_id)))
    assert isinstance(dumped, bytes)
    return dumped


async def put_back(app: Process, made: Created, dumped: bytes) -> None:
    await app.store.command(
        "RESTORE", KEYS.session(*parts_of(made.session_id)), 86_400_000, dumped, "REPLACE"
    )


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("behind", [1, 2])
async def test_a_redis_that_is_behind_the_database_does_not_refuse_a_good_token(
    app: Process, late: bool, behind: int
) -> None:
    made = await app.log_in()
    old = await copy_of(app, made)
    current = made.refresh_token
    for _ in range(behind):
        current = (await rotated(app, current)).tokens.refresh_token
    await put_back(app, made, old)
    if late:
        travel(app.store, LATE)
    fresh = await rotated(app, current)
    assert await app.sessions.get(made.session_id) is not None
    assert (await rotated(app, fresh.tokens.refresh_token)).session.version == behind + 3
    assert app.told(SessionReuseDetected) == []


async def test_a_redis_that_is_behind_the_database_does_not_take_a_stolen_token(app: Process) -> None:
    made = await app.log_in()
    old = await copy_of(app, made)
    first = await rotated(app, made.refresh_token)
    second = await rotated(app, first.tokens.refresh_token)
    await put_back(app, made, old)
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(second.tokens.refresh_token) is None
    assert len(app.told(SessionReuseDetected)) == 1


@pytest.mark.parametrize("late", [False, True])
async def test_a_redis_that_is_ahead_of_the_database_does_not_refuse_a_good_token(
    app: Process, late: bool
) -> None:
    made = await app.log_in()
    before = await row_of(app.database, made.session_id)
    ahead = await rotated(app, made.refresh_token)
    # As a process leaves it that dies after Redis has answered: nobody has the new token.
    await change_row(
        app.database,
        made.session_id,
        rt_hash=before.rt_hash,
        rt_prev_hash=None,
        rt_rotated_at=None,
        rt_successor=None,
        version=before.version,
    )
    if late:
        travel(app.store, LATE)
    fresh = await rotated(app, made.refresh_token)
    assert (fresh.tokens.refresh_token == ahead.tokens.refresh_token) is not late
    row = await row_of(app.database, made.session_id)
    assert bytes(row.rt_hash) == digest(fresh.tokens.refresh_token)
    assert await app.sessions.get(made.session_id) is not None
    assert await app.sessions.rotate(fresh.tokens.refresh_token) is not None
    assert app.told(SessionReuseDetected) == []


async def test_a_log_in_within_a_session_is_seen_although_redis_is_ahead_of_the_database(
    app: Process,
) -> None:
    made = await app.log_in()
    before = await row_of(app.database, made.session_id)
    await rotated(app, made.refresh_token)
    await change_row(
        app.database,
        made.session_id,
        rt_hash=before.rt_hash,
        rt_prev_hash=None,
        rt_rotated_at=None,
        rt_successor=None,
        version=before.version,
    )
    anew = await app.sessions.reissue(made.session_id, amr=("pwd", "otp"), authenticated=True)
    assert anew is not None
    found = await app.sessions.get(made.session_id)
    assert found is not None
    assert (found.amr, found.authenticated_at) == (("pwd", "otp"), anew.session.authenticated_at)
    assert await app.sessions.rotate(anew.tokens.refresh_token) is not None


async def test_the_database_has_the_last_word_on_who_was_revoked(app: Process) -> None:
    made = await app.log_in()
    alive = await copy_of(app, made)
    await app.sessions.revoke(made.session_id)
    await put_back(app, made, alive)
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.get(made.session_id) is None


async def test_new_tokens_replace_those_before(app: Process) -> None:
    made = await app.log_in()
    travel(app.store, timedelta(minutes=1))
    anew = await app.sessions.reissue(made.session_id, amr=("pwd", "otp"))
    assert anew is not None
    assert anew.session.amr == ("pwd", "otp")
    assert anew.session.authenticated_at == made.session.authenticated_at
    assert anew.session.created_at == made.session.created_at
    later = await app.sessions.reissue(made.session_id, authenticated=True)
    assert later is not None
    assert later.session.amr == ("pwd", "otp")
    assert later.session.authenticated_at - made.session.authenticated_at >= timedelta(minutes=1)
    found = await app.sessions.authenticate(later.tokens.access_token)
    assert found is not None
    assert (found.amr, found.authenticated_at) == (("pwd", "otp"), later.session.authenticated_at)
    assert await app.sessions.rotate(anew.tokens.refresh_token) is None
    assert await app.sessions.get(made.session_id) is not None
    assert await app.sessions.rotate(later.tokens.refresh_token) is not None


async def test_a_token_from_before_new_ones_were_issued_is_reuse_after_the_grace(app: Process) -> None:
    made = await app.log_in()
    anew = await app.sessions.reissue(made.session_id)
    assert anew is not None
    travel(app.store, LATE)
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.rotate(anew.tokens.refresh_token) is None
    assert len(app.told(SessionReuseDetected)) == 1


async def test_an_access_token_is_good_for_nothing_once_its_session_has_ended(app: Process) -> None:
    ends = {
        "revoke": lambda one: app.sessions.revoke(one.session_id, reason=Reason.LOGOUT),
        "others": lambda one: app.sessions.revoke_others(f"{one.session.user_id}.none"),
        "all": lambda one: app.sessions.revoke_all(one.session.user_id),
        "everybody": lambda _: app.sessions.revoke_everybody(),
    }
    for name, end in ends.items():
        made = await app.log_in(name)
        assert await app.sessions.authenticate(made.access_token) is not None
        await end(made)
        assert await app.sessions.authenticate(made.access_token) is None, name
        assert await app.sessions.authenticate(made.access_token, fresh=True) is None, name
        assert await app.sessions.rotate(made.refresh_token) is None, name
    assert app.told(SessionReuseDetected) == []


async def test_an_access_token_of_a_former_epoch_is_refused_although_its_session_lives(app: Process) -> None:
    made = await app.log_in()
    session = made.session
    keyring = await ring(SECRET_KEYS)
    now_ms = app.store.now_ms()

    def token(**changes: object) -> str:
        claims = {
            "session_id": session.session_id,
            "user_id": "ada",
            "epoch": session.epoch,
            "amr": ("pwd",),
            "authenticated_at_ms": now_ms,
            "expires_at_ms": now_ms + 60_000,
            **changes,
        }
        return issue_access_token(AccessClaims(**claims), keyring, now_ms)  # type: ignore[arg-type]

    assert await app.sessions.authenticate(token()) is not None
    for wrong in (
        token(epoch=session.epoch - 1),
        token(epoch=session.epoch + 1),
        token(user_id="bob"),
        token(session_id="ada.other"),
        token(session_id="bob.x"),
        token(expires_at_ms=now_ms),
    ):
        assert await app.sessions.authenticate(wrong) is None


async def test_a_token_after_all_were_ended_is_good_again_only_for_a_new_session(app: Process) -> None:
    before = await app.log_in()
    await app.sessions.revoke_all("ada")
    after = await app.log_in()
    assert await app.sessions.authenticate(after.access_token) is not None
    assert await app.sessions.authenticate(before.access_token) is None
    assert await app.sessions.rotate(before.refresh_token) is None
    assert await app.sessions.rotate(after.refresh_token) is not None


async def everything_stored(app: Process, place: Place, valkey: Server) -> bytes:
    """All that Redis and the database hold, as bytes in which a secret would be found."""
    found: list[bytes] = []
    for key in valkey.execute("KEYS", "*"):
        kind = valkey.execute("TYPE", key)
        read = {
            b"hash": ("HGETALL", key),
            b"string": ("GET", key),
            b"zset": ("ZRANGE", key, 0, -1),
            b"stream": ("XRANGE", key, "-", "+"),
        }[kind]
        found += [key, repr(valkey.execute(*read)).encode()]
    if place.kind == "sqlite":
        with sqlite3.connect(place.data_dir / "counterseal.db") as file:
            found += [line.encode() for line in file.iterdump()]
        file.close()
        found += [part.read_bytes() for part in place.data_dir.iterdir() if part.is_file()]
    else:
        async with app.database.read() as connection:
            names = await connection.execute(
                text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'counterseal'")
            )
            for name in list(names.scalars()):
                rows = await connection.execute(text(f'SELECT t::text FROM counterseal."{name}" t'))
                found += [row.encode() for row in rows.scalars()]
    return b"\n".join(found)


async def test_no_token_lies_anywhere(
    app: Process, place: Place, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens: set[str] = set()
    shown: list[object] = []

    def keep(answer: Created | Rotated | None) -> Created | Rotated:
        assert answer is not None
        tokens.update((answer.tokens.access_token, answer.tokens.refresh_token))
        shown.append(answer)
        return answer

    made = await app.log_in()
    keep(made)
    fresh = keep(await app.sessions.rotate(made.refresh_token))
    keep(await app.sessions.rotate(made.refresh_token))
    keep(await app.sessions.rotate(fresh.tokens.refresh_token))
    keep(await app.sessions.reissue(made.session_id, amr=("pwd", "otp"), authenticated=True))
    for _ in range(6):
        keep(await app.log_in())
    stolen = await app.log_in("bob")
    keep(stolen)
    keep(await app.sessions.rotate(stolen.refresh_token))
    travel(app.store, LATE)
    assert await app.sessions.rotate(stolen.refresh_token) is None
    await app.sessions.set_totp_verified(keep(await app.log_in()).session_id, Context.LOGIN)
    shown += [*app.events, app.sessions, *(await app.sessions.list("ada"))]
    await app.sessions.revoke_all("ada")
    assert len(tokens) == 27
    stored = await everything_stored(app, place, valkey)
    assert digest(stolen.refresh_token).hex().encode() in stored.lower()
    seen = repr(shown) + caplog.text
    assert made.session_id in seen
    for token in tokens:
        kept_secret = token.rpartition(".")[
            2
        ]  # of a refresh token the secret, of an access token the signature
        for beginning in (kept_secret.encode()[:20], kept_secret.encode()[:20].hex().encode()):
            assert beginning not in stored
        assert kept_secret not in seen
