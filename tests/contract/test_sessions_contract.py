"""What holds of sessions over every connection, with the durable record in SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal.core.errors import SessionExists
from counterseal.sessions import Context, Created, Reason, SessionReuseDetected
from counterseal.store.base import Store
from counterseal.store.slots import slot_of
from support.backends import Backend, cluster, only
from support.databases import Databases, Place
from support.leaks import find_leaks
from support.session_rows import active_rows, parts_of
from support.sessions import KEYS, SAFARI, Process, process
from support.stores import travel

MS = timedelta(milliseconds=1)
WEEK_MS = timedelta(days=7) // MS


@pytest.fixture
async def app(store: Store, databases: Databases, tmp_path: Path) -> AsyncIterator[Process]:
    """One process on each backend."""
    async with (
        databases.place("sqlite", tmp_path / "data") as place,
        place.database() as database,
        process(store, database, relay=False) as app,
    ):
        yield app


async def ttl_ms(app: Process, key: str) -> int:
    """How long a key has still to live; -1 for ever, -2 when there is none."""
    left = await app.store.command("PTTL", key)
    assert isinstance(left, int)
    return left


def keys_of(user_id: str, part: str) -> list[str]:
    """The keys of a user with one session."""
    return [KEYS.session(user_id, part), KEYS.session_index(user_id), KEYS.session_epoch(user_id)]


async def is_live(app: Process, made: Created) -> bool:
    """Whether a session is, by its id, by its access token and in the list, which have to agree."""
    by_id = await app.sessions.get(made.session_id)
    by_token = await app.sessions.authenticate(made.access_token)
    listed = {device.session_id for device in await app.sessions.list(made.session.user_id)}
    assert (by_id is None, by_token is None) == (made.session_id not in listed,) * 2
    return by_id is not None


async def test_a_session_is_found_by_its_id_and_by_its_access_token(app: Process) -> None:
    made = await app.log_in(amr=("pwd", "otp"))
    by_id = await app.sessions.get(made.session_id)
    assert by_id is not None
    assert by_id == await app.sessions.authenticate(made.access_token)
    fresh = await app.sessions.get(made.session_id, fresh=True)
    assert fresh is not None
    assert fresh.facts == by_id.facts
    assert (by_id.user_id, by_id.amr, by_id.device, by_id.ip) == (
        "ada",
        ("pwd", "otp"),
        "Firefox on Linux",
        "192.0.2.1",
    )
    assert by_id.facts == made.session.facts
    assert by_id.expires_at - by_id.created_at == timedelta(days=7)
    assert by_id.idle_expires_at - by_id.last_used_at == timedelta(hours=24)


async def test_what_nobody_has_made_is_not_there(app: Process) -> None:
    await app.log_in(part="there")
    for nothing in ("ada.other", "eve.there", "ada", "", "ada.there.", "ada.%74here", "\0.\0", "x" * 10_000):
        assert await app.sessions.get(nothing) is None
        assert not await app.sessions.touch(nothing)
        assert not await app.sessions.revoke(nothing)
        assert await app.sessions.reissue(nothing) is None
        assert await app.sessions.authenticate(nothing) is None
        assert await app.sessions.rotate(nothing) is None


async def test_an_id_is_given_once(app: Process) -> None:
    made = await app.log_in(part="one")
    with pytest.raises(SessionExists):
        await app.log_in(part="one")
    assert await is_live(app, made)
    await app.sessions.revoke(made.session_id)
    with pytest.raises(SessionExists):
        await app.log_in(part="one")
    assert not await is_live(app, made)


async def test_a_use_is_noted_once_a_minute(app: Process) -> None:
    made = await app.log_in()
    assert await app.sessions.touch(made.session_id)
    first = await app.sessions.get(made.session_id)
    assert first is not None
    travel(app.store, timedelta(seconds=50))
    assert await app.sessions.touch(made.session_id)
    early = await app.sessions.get(made.session_id)
    assert early is not None
    assert early.last_used_at == first.last_used_at
    travel(app.store, timedelta(seconds=10))
    assert await app.sessions.touch(made.session_id)
    late = await app.sessions.get(made.session_id)
    assert late is not None
    assert late.last_used_at - early.last_used_at >= timedelta(seconds=60)
    assert late.expires_at == early.expires_at


async def test_who_does_not_use_a_session_for_a_day_has_lost_it(app: Process) -> None:
    made = await app.log_in()
    for _ in range(3):
        travel(app.store, timedelta(hours=23))
        assert await app.sessions.touch(made.session_id)
    travel(app.store, timedelta(hours=24))
    assert await app.sessions.get(made.session_id) is None


async def test_no_use_and_no_new_token_moves_the_end(app: Process) -> None:
    made = await app.log_in()
    token = made.refresh_token
    for _ in range(8):
        travel(app.store, timedelta(hours=20))
        rotated = await app.sessions.rotate(token)
        assert rotated is not None
        assert rotated.session.expires_at == rotated.tokens.refresh_expires_at == made.session.expires_at
        assert rotated.tokens.access_expires_at <= made.session.expires_at
        token = rotated.tokens.refresh_token
    assert await ttl_ms(app, KEYS.session(*parts_of(made.session_id))) <= WEEK_MS
    travel(app.store, timedelta(hours=8))
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(token) is None


async def test_a_refresh_token_is_replaced_and_whoever_comes_with_it_gets_the_same(app: Process) -> None:
    made = await app.log_in()
    answers = await asyncio.gather(*(app.sessions.rotate(made.refresh_token) for _ in range(8)))
    tokens = {answer.tokens.refresh_token for answer in answers if answer is not None}
    assert None not in answers
    assert len(tokens) == 1
    assert tokens != {made.refresh_token}
    session = answers[0] and answers[0].session
    assert session is not None
    assert (session.session_id, session.version) == (made.session_id, 2)
    again = await app.sessions.rotate(tokens.pop())
    assert again is not None
    assert again.session.version == 3


async def test_a_token_that_was_replaced_before_the_grace_ends_its_session(app: Process) -> None:
    made = await app.log_in()
    newest = await app.sessions.rotate(made.refresh_token)
    assert newest is not None
    travel(app.store, timedelta(milliseconds=9_000))
    assert await app.sessions.rotate(made.refresh_token) is not None
    travel(app.store, timedelta(milliseconds=1_001))
    assert await app.sessions.rotate(made.refresh_token) is None
    assert not await is_live(app, made)
    assert await app.sessions.rotate(newest.tokens.refresh_token) is None
    assert [event.session_id for event in app.told(SessionReuseDetected)] == [made.session_id]


async def test_new_tokens_are_given_without_one_and_the_one_before_is_good_for_nothing(app: Process) -> None:
    made = await app.log_in()
    travel(app.store, timedelta(seconds=1))
    anew = await app.sessions.reissue(made.session_id, amr=("pwd", "otp"), authenticated=True)
    assert anew is not None
    assert anew.session.authenticated_at > made.session.authenticated_at
    found = await app.sessions.get(made.session_id)
    assert found is not None
    assert found.amr == ("pwd", "otp")
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.rotate(anew.tokens.refresh_token) is not None


async def test_a_session_that_is_revoked_is_over_for_good(app: Process) -> None:
    made, other = await app.log_in(), await app.log_in()
    assert (await app.sessions.revoke(made.session_id, reason=Reason.LOGOUT)).ended == 1
    assert not await is_live(app, made)
    assert await app.sessions.get(made.session_id, fresh=True) is None
    assert not await app.sessions.touch(made.session_id)
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.reissue(made.session_id) is None
    assert await app.sessions.set_totp_verified(made.session_id, Context.LOGIN) is None
    assert not await app.sessions.revoke(made.session_id)
    assert await is_live(app, other)


async def test_the_others_of_a_user_are_ended_and_nobody_elses(app: Process) -> None:
    mine = [await app.log_in() for _ in range(3)]
    another = await app.log_in("bob")
    assert (await app.sessions.revoke_others(mine[1].session_id)).ended == 2
    assert [await is_live(app, made) for made in (*mine, another)] == [False, True, False, True]
    assert await app.sessions.rotate(mine[1].refresh_token) is not None


async def test_all_of_a_user_are_ended_also_those_that_redis_does_not_know(app: Process) -> None:
    mine = [await app.log_in() for _ in range(3)]
    another = await app.log_in("bob")
    user_id, part = parts_of(mine[0].session_id)
    await app.store.command("DEL", *keys_of(user_id, part)[:2])
    assert (await app.sessions.revoke_all("ada")).ended == 3
    assert [await is_live(app, made) for made in (*mine, another)] == [False, False, False, True]
    after = await app.log_in()
    assert await is_live(app, after)
    assert after.session.epoch == mine[0].session.epoch + 1


async def test_everybody_is_logged_out_at_once(app: Process) -> None:
    made = [await app.log_in(), await app.log_in("bob")]
    assert [await is_live(app, one) for one in made] == [True, True]
    await app.sessions.revoke_everybody()
    assert [await app.sessions.get(one.session_id) for one in made] == [None, None]
    assert [await app.sessions.rotate(one.refresh_token) for one in made] == [None, None]
    assert await is_live(app, await app.log_in())


async def test_the_list_has_the_live_sessions_and_the_last_used_first(app: Process) -> None:
    first = await app.log_in(ip="2001:db8::1")
    travel(app.store, timedelta(seconds=1))
    second = await app.log_in(user_agent=SAFARI)
    travel(app.store, timedelta(seconds=1))
    third = await app.log_in()
    await app.sessions.revoke(third.session_id)
    await app.log_in("bob")
    listed = await app.sessions.list("ada", current=first.session_id)
    assert [(device.session_id, device.device, device.ip, device.current) for device in listed] == [
        (second.session_id, "Safari on iPhone", "192.0.2.1", False),
        (first.session_id, "Firefox on Linux", "2001:db8::1", True),
    ]
    assert await app.sessions.list("nobody") == ()


async def test_who_has_too_many_loses_the_least_recently_used_in_both_stores(app: Process) -> None:
    made: list[Created] = []
    for _ in range(5):
        made.append(await app.log_in())
        travel(app.store, timedelta(seconds=1))
    sixth = await app.log_in()
    assert sixth.evicted == (made[0].session_id,)
    assert [await is_live(app, one) for one in made] == [False, True, True, True, True]
    assert len(await active_rows(app.database, "ada")) == 5
    assert await app.store.command("ZCARD", KEYS.session_index("ada")) == 5


async def test_a_second_factor_is_good_once_for_what_it_was_shown_for(app: Process) -> None:
    made = await app.log_in()
    shown = await app.sessions.set_totp_verified(made.session_id, Context.BOTH, "r1")
    assert shown is not None
    seen = await app.sessions.get(made.session_id)
    assert seen is not None
    assert seen.step_ups == (shown,)
    assert await app.sessions.require_step_up(made.session_id, Context.SIGNING, "r2") is None
    assert await app.sessions.require_step_up(made.session_id, Context.SIGNING) is None
    kept = await app.sessions.require_step_up(made.session_id, Context.SIGNING, "r1", consume=False)
    taken = await asyncio.gather(
        *(app.sessions.require_step_up(made.session_id, Context.SIGNING, "r1") for _ in range(4))
    )
    assert kept == shown
    assert [one for one in taken if one is not None] == [shown]
    after = await app.sessions.get(made.session_id)
    assert after is not None
    assert after.step_ups == ()


async def test_a_tombstone_is_small_and_lasts_as_long_as_its_session_would_have(
    app: Process, backend: Backend
) -> None:
    made = [await app.log_in(part="p" * 32) for _ in range(1)] + [await app.log_in() for _ in range(2)]
    entries = [KEYS.session(*parts_of(one.session_id)) for one in made]
    living = [await app.store.command("MEMORY", "USAGE", entry) for entry in entries]
    travel(app.store, timedelta(hours=1))
    await app.sessions.revoke(made[0].session_id)
    await app.sessions.revoke(made[0].session_id)
    await app.sessions.revoke_others(made[1].session_id)
    await app.sessions.revoke_all("ada")
    ended = [await app.store.command("MEMORY", "USAGE", entry) for entry in entries]
    for entry, before, now in zip(entries, living, ended, strict=True):
        assert isinstance(before, int)
        assert isinstance(now, int)
        assert now <= 150 < before
        assert WEEK_MS - 60_000 < await ttl_ms(app, entry) <= WEEK_MS


async def test_a_tombstone_of_what_nobody_knows_is_short(app: Process) -> None:
    await app.sessions.revoke("eve.invented")
    assert 0 < await ttl_ms(app, KEYS.session("eve", "invented")) <= 120_000


async def test_every_key_lives_for_a_time(app: Process, backend: Backend) -> None:
    made = [await app.log_in() for _ in range(7)]
    rotated = await app.sessions.rotate(made[-1].refresh_token)
    assert rotated is not None
    await app.sessions.reissue(made[-1].session_id)
    await app.sessions.set_totp_verified(made[-1].session_id, Context.LOGIN)
    await app.sessions.revoke(made[-2].session_id)
    await app.sessions.revoke("eve.invented")
    await app.sessions.revoke_others(made[-1].session_id)
    assert await app.sessions.rotate(made[-1].refresh_token) is None
    await app.log_in("bob")
    await app.sessions.revoke_all("bob")
    await app.sessions.revoke_all("nobody")
    await app.sessions.revoke_everybody()
    known = [key for one in made for key in keys_of(*parts_of(one.session_id))]
    lives = {await ttl_ms(app, key) for key in known}
    assert all(0 < left <= WEEK_MS for left in lives - {-2})
    assert len(lives) > 2
    assert 0 < await ttl_ms(app, KEYS.sessions_epoch()) <= timedelta(days=1) // MS
    assert [leak for node in backend.nodes for leak in find_leaks(node, allowed=())] == []


@only(cluster)
async def test_all_keys_of_a_user_share_a_slot_and_users_do_not(app: Process, backend: Backend) -> None:
    for user_id in ("ada", "}{", "{a}{b}", "a:b", "\N{GRINNING FACE}", "{}"):
        await app.log_in(user_id, email=f"{len(user_id)}-{user_id.encode().hex()}@example.com", part="}x{")
        mine = KEYS.sessions_of(user_id)
        found = {key.decode() for node in backend.nodes for key in node.execute("KEYS", f"{mine}*")}
        assert found == set(keys_of(user_id, "}x{"))
        assert len({slot_of(("GET", key)) for key in found}) == 1
    spread = {slot_of(("GET", KEYS.session_epoch(f"user-{number}"))) for number in range(50)}
    assert len(spread) > 40


ODD = (
    ("a", "b:x"),
    ("a:b", "x"),
    ("a", "b.x"),
    ("a.b", "x"),
    ("a", "b%2Ex"),
    ("a%2Eb", "x"),
    ("}{", "}{"),
    ("{a}", "s:x"),
    ("{a}:s", "x"),
    ("A", "B:x"),
    ("*", "?"),
    ("\u00e9", "x"),
    ("e\u0301", "x"),
    ("\N{GRINNING FACE}", "\N{GRINNING FACE}" * 32),
    ("x" * 128, "x" * 128),
    ("x" * 127, "x" * 128),
)


async def test_odd_ids_do_not_meet(app: Process) -> None:
    emails = {user: f"{number}@example.com" for number, (user, _) in enumerate(ODD)}
    made = [await app.log_in(user, email=emails[user], part=part) for user, part in ODD]
    assert len({one.session_id for one in made}) == len(made)
    for (user, part), one in zip(ODD, made, strict=True):
        found = await app.sessions.authenticate(one.access_token)
        assert found is not None
        assert (found.user_id, found.session_id) == (user, one.session_id)
        assert parts_of(one.session_id) == (user, part)
    for one in made[::2]:
        assert (await app.sessions.revoke(one.session_id)).ended == 1
    assert [await app.sessions.get(one.session_id) is None for one in made] == [True, False] * (
        len(made) // 2
    )
    assert [await app.sessions.rotate(one.refresh_token) is None for one in made[:4]] == [True, False] * 2


async def test_the_scripts_survive_a_server_that_has_forgotten_them(app: Process, backend: Backend) -> None:
    backend.forget_scripts()
    made, other = await app.log_in(), await app.log_in()
    backend.forget_scripts()
    rotated = await app.sessions.rotate(made.refresh_token)
    assert rotated is not None
    backend.forget_scripts()
    assert await app.sessions.set_totp_verified(made.session_id, Context.LOGIN) is not None
    travel(app.store, timedelta(minutes=2))
    backend.forget_scripts()
    assert await app.sessions.touch(made.session_id)
    backend.forget_scripts()
    assert await app.sessions.revoke_others(made.session_id)
    assert not await is_live(app, other)
    backend.forget_scripts()
    assert await app.sessions.revoke(made.session_id)
    assert not await is_live(app, made)
    backend.forget_scripts()
    await app.sessions.revoke_all("ada")
    backend.forget_scripts()
    await app.sessions.revoke_everybody()
    assert await is_live(app, await app.log_in())


async def test_what_one_process_ends_has_ended_for_another(
    app: Process, backend: Backend, tmp_path: Path
) -> None:
    async with (
        backend.store() as store,
        Place("sqlite", tmp_path / "data").database() as database,
        process(store, database, relay=False) as other,
    ):
        made, second = await app.log_in(), await app.log_in()
        assert await is_live(other, made)
        assert await is_live(other, second)
        await other.sessions.revoke(made.session_id)
        assert not await is_live(app, made)
        await app.sessions.revoke_all("ada")
        assert not await is_live(other, second)
        everybody = await app.log_in()
        assert await is_live(other, everybody)
        await app.sessions.revoke_everybody()
        travel(store, timedelta(seconds=1))
        assert await other.sessions.get(everybody.session_id) is None


async def test_nothing_is_lost_with_what_redis_had(app: Process, backend: Backend) -> None:
    made, ended = await app.log_in(), await app.log_in()
    rotated = await app.sessions.rotate(made.refresh_token)
    assert rotated is not None
    await app.sessions.revoke(ended.session_id)
    for node in backend.nodes:
        node.execute("FLUSHALL", "SYNC")
    assert not await is_live(app, ended)
    assert await app.sessions.rotate(ended.refresh_token) is None
    assert await is_live(app, made)
    for node in backend.nodes:
        node.execute("FLUSHALL", "SYNC")
    again = await app.sessions.rotate(made.refresh_token)
    assert again is not None
    assert again.tokens.refresh_token == rotated.tokens.refresh_token
