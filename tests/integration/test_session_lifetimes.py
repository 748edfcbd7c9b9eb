"""How long sessions last and how many a user may have, on both databases; what ends them, and what is cleaned up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, update

from counterseal.core.errors import ConfigurationError, Conflict, SessionExists, UserBlocked
from counterseal.core.settings import SessionSettings
from counterseal.database.engine import Database
from counterseal.database.tables import user_sessions, users
from counterseal.sessions import Context, Created, Profile, Reason, SessionCreated, SessionRevoked
from counterseal.sessions.lifetime import DomainPolicy, lifetime
from support.databases import Place
from support.relay import Relay
from support.servers import Server
from support.session_rows import active_rows, parts_of, row_of, set_policy, set_status
from support.sessions import KEYS, SAFARI, Process, process
from support.stores import native_store, store_on, travel
from support.waiting import eventually

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MS = timedelta(milliseconds=1)

Begin = Callable[[SessionSettings], AbstractAsyncContextManager[Process]]


@pytest.fixture
async def app(valkey: Server, database: Database) -> AsyncIterator[Process]:
    """One process, with the settings that there are when nobody says anything."""
    async with store_on(valkey) as store, process(store, database, relay=False) as app:
        yield app


@pytest.fixture
def begin(valkey: Server, database: Database) -> Begin:
    """Begins a process with other settings."""

    @asynccontextmanager
    async def begin(settings: SessionSettings) -> AsyncGenerator[Process]:
        async with (
            store_on(valkey) as store,
            process(store, database, settings=settings, relay=False) as app,
        ):
            yield app

    return begin


async def log_in_many(app: Process, count: int, user_id: str = "ada") -> list[Created]:
    """Sessions of a user, a second apart."""
    made: list[Created] = []
    for _ in range(count):
        made.append(await app.log_in(user_id))
        travel(app.store, timedelta(seconds=1))
    return made


async def live(app: Process, made: list[Created]) -> list[bool]:
    return [await app.sessions.get(one.session_id) is not None for one in made]


async def test_an_unused_session_ends_after_a_day(app: Process) -> None:
    made = await app.log_in()
    travel(app.store, DAY - timedelta(seconds=10))
    assert await app.sessions.get(made.session_id) is not None
    travel(app.store, DAY - timedelta(seconds=10))
    assert await app.sessions.get(made.session_id) is not None
    travel(app.store, DAY + MS)
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.reissue(made.session_id) is None
    assert await app.sessions.set_totp_verified(made.session_id, Context.LOGIN) is None
    assert await app.sessions.list("ada") == ()


async def test_an_unused_session_ends_without_redis_too(app: Process, valkey: Server) -> None:
    made = await app.log_in()
    travel(app.store, DAY + MS)
    valkey.flush()
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(made.refresh_token) is None


async def test_a_used_session_ends_after_a_week_whatever_is_done(app: Process) -> None:
    made = await app.log_in()
    token, session = made.refresh_token, made.session
    for turn in range(9):
        travel(app.store, timedelta(hours=18))
        assert await app.sessions.touch(made.session_id)
        if turn % 3 == 0:
            renewed = await app.sessions.reissue(made.session_id, authenticated=True)
        else:
            renewed = await app.sessions.rotate(token)
        assert renewed is not None
        token, session = renewed.tokens.refresh_token, renewed.session
        assert session.expires_at == made.session.expires_at
        assert renewed.tokens.access_expires_at <= session.expires_at
    (device,) = await app.sessions.list("ada")
    assert device.expires_at == made.session.expires_at
    row = await row_of(app.database, made.session_id)
    assert row.absolute_expires_at == made.session.expires_at
    travel(app.store, timedelta(hours=6))
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(token) is None
    assert await app.sessions.reissue(made.session_id) is None
    assert await app.sessions.list("ada") == ()


async def test_an_access_token_ends_with_its_session_or_after_ten_minutes(app: Process) -> None:
    made = await app.log_in()
    assert made.tokens.access_expires_at - made.session.created_at <= timedelta(minutes=10, seconds=5)
    travel(app.store, timedelta(minutes=10))
    assert await app.sessions.authenticate(made.access_token) is None
    assert await app.sessions.get(made.session_id) is not None


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_session_is_remembered_only_where_the_application_allows_it(
    begin: Begin, allowed: bool
) -> None:
    async with begin(SessionSettings(remember=allowed)) as app:
        made = await app.log_in(profile=Profile.REMEMBER)
        session = made.session
        assert session.profile is (Profile.REMEMBER if allowed else Profile.STANDARD)
        assert session.expires_at - session.created_at == (30 * DAY if allowed else 7 * DAY)
        assert session.idle_expires_at - session.last_used_at == (7 * DAY if allowed else DAY)
        for _ in range(4):
            travel(app.store, timedelta(days=6, hours=23))
            found = await app.sessions.get(made.session_id)
            assert (found is not None) is allowed
        travel(app.store, timedelta(days=2, hours=5))
        assert await app.sessions.get(made.session_id) is None


async def test_a_domain_makes_its_sessions_short(app: Process) -> None:
    await set_policy(app, session_profile="aal2")
    made = await app.log_in(profile=Profile.REMEMBER)
    assert made.session.profile is Profile.AAL2
    assert made.session.expires_at - made.session.created_at == DAY
    assert made.session.idle_expires_at - made.session.last_used_at == HOUR
    other = await app.log_in("bob", email="bob@elsewhere.example")
    assert other.session.profile is Profile.STANDARD
    travel(app.store, HOUR + MS)
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.get(other.session_id) is not None


async def test_a_domain_may_shorten_and_not_prolong(app: Process) -> None:
    await set_policy(app, "short.example", session_idle_minutes=30, session_absolute_minutes=600)
    await set_policy(app, "long.example", session_idle_minutes=99_999, session_absolute_minutes=999_999)
    short = (await app.log_in("s", email="s@SHORT.example")).session
    long = (await app.log_in("l", email="l@long.example")).session
    assert short.expires_at - short.created_at == 600 * MINUTE
    assert short.idle_expires_at - short.last_used_at == 30 * MINUTE
    assert long.expires_at - long.created_at == 7 * DAY
    assert long.idle_expires_at - long.last_used_at == DAY


@pytest.mark.parametrize(
    ("asked", "policy", "remember", "expected"),
    [
        (Profile.STANDARD, None, True, (Profile.STANDARD, 7 * DAY, DAY)),
        (Profile.STANDARD, DomainPolicy(), False, (Profile.STANDARD, 7 * DAY, DAY)),
        (Profile.REMEMBER, None, True, (Profile.REMEMBER, 30 * DAY, 7 * DAY)),
        (Profile.REMEMBER, None, False, (Profile.STANDARD, 7 * DAY, DAY)),
        (Profile.REMEMBER, DomainPolicy(Profile.STANDARD), True, (Profile.STANDARD, 7 * DAY, DAY)),
        (Profile.REMEMBER, DomainPolicy(Profile.AAL2), True, (Profile.AAL2, DAY, HOUR)),
        (Profile.AAL2, DomainPolicy(Profile.STANDARD), True, (Profile.AAL2, DAY, HOUR)),
        (Profile.AAL2, DomainPolicy(idle_minutes=90), True, (Profile.AAL2, DAY, HOUR)),
        (
            Profile.REMEMBER,
            DomainPolicy(absolute_minutes=60, idle_minutes=90),
            True,
            (Profile.REMEMBER, HOUR, HOUR),
        ),
    ],
)
def test_the_shortest_limit_holds(
    asked: Profile,
    policy: DomainPolicy | None,
    remember: bool,
    expected: tuple[Profile, timedelta, timedelta],
) -> None:
    found = lifetime(asked, SessionSettings(remember=remember), policy)
    assert (found.profile, found.absolute_ms * MS, found.idle_ms * MS) == expected


@pytest.mark.parametrize("most", [1, 3, 20])
async def test_a_user_has_as_many_sessions_as_the_settings_say(begin: Begin, most: int) -> None:
    async with begin(SessionSettings(max_per_user=most)) as app:
        made = await log_in_many(app, most + 1)
        assert await live(app, made) == [False] + [True] * most
        assert made[-1].evicted == (made[0].session_id,)
        assert [one.evicted for one in made[:-1]] == [()] * most
        assert len(await app.sessions.list("ada")) == most


def test_no_setting_and_no_domain_allows_none_or_more_than_twenty() -> None:
    for wrong in (0, 21):
        with pytest.raises(ValidationError):
            SessionSettings(max_per_user=wrong)


async def test_a_domain_says_how_many_and_less_than_there_are_ends_the_surplus(app: Process) -> None:
    made = await log_in_many(app, 5)
    await set_policy(app, max_sessions=2)
    last = await app.log_in()
    assert last.evicted == tuple(one.session_id for one in made[:4])
    assert await live(app, [*made, last]) == [False] * 4 + [True, True]
    assert len(await active_rows(app.database, "ada")) == 2
    for wrong in (0, 21):
        with pytest.raises(Exception, match="refused a statement"):
            await set_policy(app, f"{wrong}.example", max_sessions=wrong)


async def test_the_least_recently_used_has_to_go_and_everybody_is_told(app: Process) -> None:
    made = await log_in_many(app, 5)
    travel(app.store, 2 * MINUTE)
    assert await app.sessions.touch(made[0].session_id)
    await app.sessions._uses.write()
    assert await app.sessions.rotate(made[1].refresh_token) is not None
    sixth = await app.log_in()
    assert sixth.evicted == (made[2].session_id,)
    assert await app.sessions.get(made[2].session_id) is None
    assert await app.sessions.authenticate(made[2].access_token) is None
    assert await app.sessions.rotate(made[2].refresh_token) is None
    assert [(event.session_id, event.reason) for event in app.told(SessionRevoked)] == [
        (made[2].session_id, Reason.EVICTED)
    ]
    entries = await app.audit.read("account:ada")
    evicted = [entry for entry in entries if entry.action == "session.evicted"]
    assert len(evicted) == 1
    assert parts_of(made[2].session_id)[1] in evicted[0].body
    row = await row_of(app.database, made[2].session_id)
    assert (row.state, row.revoke_reason) == ("revoked", "evicted")


async def test_sessions_that_have_ended_do_not_count(app: Process) -> None:
    idle = await log_in_many(app, 5)
    travel(app.store, DAY + MINUTE)
    made = await log_in_many(app, 5)
    assert [one.evicted for one in made] == [()] * 5
    assert await live(app, made) == [True] * 5
    assert await live(app, idle) == [False] * 5


async def test_parallel_log_ins_leave_five_in_both_stores(app: Process) -> None:
    await app.log_in()
    made = await asyncio.gather(*(app.log_in() for _ in range(12)))
    rows = await active_rows(app.database, "ada")
    assert len(rows) == 5
    alive = {
        parts_of(one.session_id)[1] for one in made if await app.sessions.get(one.session_id) is not None
    }
    assert alive == rows
    assert await app.store.command("ZCARD", KEYS.session_index("ada")) == 5


async def test_what_has_ended_by_time_is_marked_and_removed_a_week_later(app: Process) -> None:
    idle = await log_in_many(app, 3)
    travel(app.store, 12 * HOUR)
    used = await log_in_many(app, 1, "bob")
    travel(app.store, 12 * HOUR)
    assert await app.sessions.cleanup_expired() == 3
    assert await app.sessions.cleanup_expired() == 0
    rows = [await row_of(app.database, one.session_id) for one in idle]
    assert {(row.state, row.revoke_reason) for row in rows} == {("revoked", "expired")}
    assert (await row_of(app.database, used[0].session_id)).state == "active"
    assert await app.sessions.get(used[0].session_id) is not None
    travel(app.store, 7 * DAY - MINUTE)
    await app.sessions.cleanup_expired()
    assert await row_of(app.database, idle[0].session_id) is not None
    travel(app.store, 2 * MINUTE)
    await app.sessions.cleanup_expired()
    assert [await row_of(app.database, one.session_id) for one in idle] == [None] * 3
    assert await row_of(app.database, used[0].session_id) is not None


async def test_a_revoked_session_is_removed_after_a_week_with_its_step_ups(app: Process) -> None:
    made = await app.log_in()
    await app.sessions.set_totp_verified(made.session_id, Context.LOGIN)
    await app.sessions.revoke(made.session_id)
    travel(app.store, 7 * DAY - MINUTE)
    await app.sessions.cleanup_expired()
    assert await row_of(app.database, made.session_id) is not None
    travel(app.store, 2 * MINUTE)
    await app.sessions.cleanup_expired()
    assert await row_of(app.database, made.session_id) is None
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(made.refresh_token) is None


async def test_many_are_cleaned_up_in_batches_by_two_at_once(
    app: Process, valkey: Server, place: Place
) -> None:
    count = 120
    for number in range(count // 5):
        for _ in range(5):
            await app.log_in(f"user{number}")
    alive = await app.log_in("zoe")
    travel(app.store, 20 * HOUR)
    assert await app.sessions.get(alive.session_id) is not None
    await app.sessions._uses.write()
    travel(app.store, 5 * HOUR)
    async with (
        store_on(valkey) as store,
        place.database() as database,
        process(store, database, relay=False) as other,
    ):
        travel(store, 25 * HOUR)
        assert await app.sessions.cleanup_expired(limit=10) == 10
        done = 10
        while marked := await asyncio.gather(
            app.sessions.cleanup_expired(limit=25), other.sessions.cleanup_expired(limit=25)
        ):
            assert max(marked) <= 25
            if not sum(marked):
                break
            done += sum(marked)
    assert done == count
    async with app.database.read() as connection:
        active = await connection.execute(
            select(user_sessions.c.user_id).where(user_sessions.c.state == "active")
        )
        assert list(active.scalars()) == ["zoe"]
    entries = [entry.action for entry in await app.audit.read("account:user7")]
    assert entries[:5] == ["session.created"] * 5
    assert set(entries[5:]) == {"session.revoked"}


async def test_a_name_has_no_nul(app: Process) -> None:
    with pytest.raises(ConfigurationError, match="full_name"):
        await app.log_in(full_name="Ada\0Lovelace")


async def test_a_batch_has_at_least_one(app: Process) -> None:
    with pytest.raises(ValueError, match="limit"):
        await app.sessions.cleanup_expired(limit=0)


async def test_a_use_is_written_at_most_once_a_minute(app: Process) -> None:
    made = await app.log_in()

    async def used() -> object:
        await app.sessions._uses.write()
        return (await row_of(app.database, made.session_id)).last_used_at

    assert await app.sessions.get(made.session_id, fresh=True) is not None
    begun = await used()
    for _ in range(5):
        travel(app.store, timedelta(seconds=9))
        assert await app.sessions.get(made.session_id, fresh=True) is not None
        assert await used() == begun
    travel(app.store, timedelta(seconds=20))
    assert await app.sessions.get(made.session_id, fresh=True) is not None
    later = await used()
    assert later != begun
    travel(app.store, timedelta(seconds=9))
    assert await app.sessions.get(made.session_id, fresh=True) is not None
    assert await used() == later


async def test_uses_are_written_by_themselves(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterseal.sessions.uses._EVERY_S", 0.02)
    async with begin(SessionSettings()) as app:
        made = await app.log_in()
        travel(app.store, 2 * MINUTE)
        assert await app.sessions.touch(made.session_id)

        async def is_written() -> bool:
            return (await row_of(app.database, made.session_id)).last_used_at > made.session.last_used_at

        await eventually(is_written, within=15)


async def test_uses_are_written_when_a_process_ends(begin: Begin) -> None:
    async with begin(SessionSettings()) as app:
        made = await app.log_in()
        travel(app.store, 2 * MINUTE)
        assert await app.sessions.touch(made.session_id)
        database = app.database
    assert (await row_of(database, made.session_id)).last_used_at > made.session.last_used_at


async def test_what_was_used_is_not_idle_because_the_database_was_not_told(app: Process) -> None:
    made = await app.log_in()
    app.sessions._uses.note = lambda *_, **__: None  # type: ignore[method-assign]  # lost with its process
    token = made.refresh_token
    for _ in range(3):
        travel(app.store, 23 * HOUR)
        assert await app.sessions.get(made.session_id) is not None
    travel(app.store, 23 * HOUR)
    rotated = await app.sessions.rotate(token)
    assert rotated is not None


@pytest.mark.parametrize("how", ["get", "rotate"])
async def test_what_was_used_while_redis_was_away_is_not_idle(
    valkey: Server, database: Database, how: str
) -> None:
    async with (
        Relay(valkey) as relay,
        native_store(relay) as store,
        process(store, database, relay=False) as app,
    ):
        made = await app.log_in()
        relay.refuse()
        relay.cut(reset=True)
        await eventually(lambda: not store.available)
        travel(store, 20 * HOUR)
        assert await app.sessions.get(made.session_id) is not None
        await app.sessions._uses.write()
        await relay.accept()
        await eventually(lambda: store.available, within=15)
        travel(store, 5 * HOUR)
        if how == "get":
            assert await app.sessions.get(made.session_id) is not None
        else:
            assert await app.sessions.rotate(made.refresh_token) is not None


async def test_a_suspended_user_is_nobody(app: Process) -> None:
    made = await app.log_in()

    async def suspend(connection: object) -> None:
        await connection.execute(  # type: ignore[attr-defined]
            update(users).where(users.c.id == "ada").values(status="suspended")
        )

    assert (await app.sessions.revoke_all("ada", reason=Reason.SUSPENDED, also=suspend)).ended == 1
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.authenticate(made.access_token) is None
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.reissue(made.session_id) is None
    with pytest.raises(UserBlocked):
        await app.log_in()
    await set_status(app.database, "ada", "active")
    assert await app.sessions.get(made.session_id) is None
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.get((await app.log_in()).session_id) is not None


@pytest.mark.parametrize("status", ["suspended", "deleted"])
async def test_a_user_who_is_blocked_by_the_record_alone_is_out_at_the_next_check(
    app: Process, status: str
) -> None:
    made = await app.log_in()
    assert await app.sessions.get(made.session_id) is not None
    await set_status(app.database, "ada", status)
    assert await app.sessions.get(made.session_id, fresh=True) is None
    assert await app.sessions.rotate(made.refresh_token) is None
    assert await app.sessions.reissue(made.session_id) is None
    assert await app.sessions.set_totp_verified(made.session_id, Context.LOGIN) is None
    assert await app.sessions.list("ada") == ()
    with pytest.raises(UserBlocked):
        await app.log_in()


async def test_a_copy_is_believed_for_a_minute(app: Process) -> None:
    made = await app.log_in()
    assert await app.sessions.get(made.session_id) is not None
    await set_status(app.database, "ada", "suspended")
    travel(app.store, timedelta(seconds=45))
    assert await app.sessions.get(made.session_id) is not None
    travel(app.store, timedelta(seconds=15))
    assert await app.sessions.get(made.session_id) is None
    await set_status(app.database, "ada", "active")
    assert await app.sessions.get(made.session_id) is None


async def test_everybody_is_ended_within_a_second_in_every_process(
    app: Process, valkey: Server, place: Place
) -> None:
    made = [await app.log_in(user) for user in ("ada", "bob", "eve")]
    async with (
        store_on(valkey) as store,
        place.database() as database,
        process(store, database, relay=False) as other,
    ):
        assert await live(other, made) == [True] * 3
        await app.sessions.revoke_everybody()
        assert await live(app, made) == [False] * 3
        travel(store, timedelta(seconds=1))
        assert await live(other, made) == [False] * 3
        assert [await other.sessions.rotate(one.refresh_token) for one in made] == [None] * 3
        assert await other.sessions.list("ada") == ()
        after = await other.log_in()
        assert await app.sessions.get(after.session_id) is not None
        valkey.flush()
        assert await live(app, made) == [False] * 3
        assert await app.sessions.get(after.session_id) is not None


async def test_sessions_of_a_former_epoch_of_everybody_are_cleaned_up(app: Process) -> None:
    await app.log_in()
    await app.sessions.revoke_everybody()
    await app.log_in("bob")
    assert await app.sessions.cleanup_expired() == 1


ODD = (
    *("", ".", "ada", "ada.", ".x", "ada.x.y", "ada.%78", "ada.%00", "ada.%FF", "ADA.x", "ada.X", " ada.x"),
    *("ada.x\n", "ada.\0", "\ud800.x", "a" * 129 + ".x", "ada." + "x" * 129, "x" * 100_000),
    "ada." + "%41" * 200_000,
)


async def test_what_is_no_id_is_nothing(app: Process) -> None:
    made = await app.log_in(part="x")
    sessions = app.sessions
    for odd in ODD:
        assert await sessions.get(odd) is None
        assert await sessions.get(odd, fresh=True) is None
        assert not await sessions.touch(odd)
        assert not await sessions.revoke(odd)
        assert await sessions.reissue(odd) is None
        assert await sessions.set_totp_verified(odd, Context.LOGIN) is None
        assert await sessions.require_step_up(odd, Context.LOGIN) is None
        if odd != "ada":  # which is a user
            assert await sessions.list(odd) == ()
            assert not await sessions.revoke_all(odd)
    assert await sessions.get(made.session_id) is not None


async def test_what_is_no_text_is_nothing(app: Process) -> None:
    made = await app.log_in(part="x")
    for odd in (None, 7, b"ada.x", True):
        for name in ("get", "touch", "revoke", "revoke_others", "reissue", "authenticate", "rotate", "list"):
            assert not await getattr(app.sessions, name)(odd)
    assert await app.sessions.get(made.session_id) is not None


async def test_an_id_of_a_user_or_a_session_is_short_text(app: Process) -> None:
    for wrong in ("", "x" * 129, "a\0b", "\ud800", "\N{GRINNING FACE}" * 33):
        with pytest.raises(ConfigurationError, match="user_id"):
            await app.log_in(wrong, email="a@example.com")
        with pytest.raises(ConfigurationError, match="part"):
            await app.log_in(part=wrong)
    assert await app.sessions.list("ada") == ()


@pytest.mark.parametrize(
    ("sent", "kept", "device"),
    [
        ("x" * 10_240, "x" * 512, "Unknown device"),
        (SAFARI + "y" * 10_240, (SAFARI + "y" * 512)[:512], "Safari on iPhone"),
        ("curl/8\r\nSet-Cookie: a\0\x1b[31m\u202e", "curl/8 Set-Cookie: a [31m", "curl"),
        ("\ud800 Firefox/1 \udfff", "Firefox/1", "Firefox"),
        ("\0\r\n", None, "Unknown device"),
        ("", None, "Unknown device"),
        (None, None, "Unknown device"),
    ],
)
async def test_a_user_agent_is_cut_and_clean(
    app: Process, sent: str | None, kept: str | None, device: str
) -> None:
    made = await app.log_in(user_agent=sent)
    found = await app.sessions.get(made.session_id)
    assert found is not None
    assert (found.user_agent, found.device) == (kept, device)
    (listed,) = await app.sessions.list("ada")
    assert (listed.user_agent, listed.device) == (kept, device)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("x" * 5000, None),
        ("1.2.3", None),
        ("", None),
    ],
)
async def test_an_address_is_kept_when_it_is_one(app: Process, sent: str, kept: str | None) -> None:
    made = await app.log_in(ip=sent)
    assert made.session.ip == kept


async def test_an_id_is_given_once_and_a_failed_log_in_changes_nothing(app: Process) -> None:
    made = await log_in_many(app, 5)
    taken = await app.log_in("bob", part="taken")
    with pytest.raises(SessionExists):
        await app.log_in(part=parts_of(made[2].session_id)[1])
    assert await live(app, made) == [True] * 5
    await app.sessions.revoke(taken.session_id)
    with pytest.raises(SessionExists):
        await app.log_in("bob", part="taken")
    assert (await app.log_in(part="taken")).session_id == "ada.taken"
    assert len(app.told(SessionCreated)) == 7


async def test_an_id_that_a_tombstone_holds_leaves_nothing_behind(app: Process) -> None:
    await app.sessions.revoke("ada.soon")
    with pytest.raises(SessionExists):
        await app.log_in(part="soon")
    assert await app.sessions.list("ada") == ()
    assert await active_rows(app.database, "ada") == set()


async def test_an_address_belongs_to_one_user(app: Process) -> None:
    await app.log_in("ada", email="ADA@Example.com")
    with pytest.raises(Conflict):
        await app.log_in("eve", email="ada@example.com")
    async with app.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(users))).scalar_one() == 1
    with pytest.raises(ConfigurationError, match="email"):
        await app.log_in("eve", email=None)
    assert (await app.log_in("ada", email=None)).session.user_id == "ada"
    await app.log_in("bob")
    # Who is known keeps their address, whatever is said now.
    assert (await app.log_in("ada", email="bob@example.com")).session.user_id == "ada"


async def test_what_is_written_beside_a_log_in_is_written_with_it_or_not_at_all(app: Process) -> None:
    async def rename(connection: object) -> None:
        await connection.execute(  # type: ignore[attr-defined]
            update(users).where(users.c.id == "ada").values(full_name="Countess")
        )

    await app.log_in(part="x", full_name="Ada")
    with pytest.raises(SessionExists):
        await app.log_in(part="x", also=rename)
    async with app.database.read() as connection:
        assert (await connection.execute(select(users.c.full_name))).scalar_one() == "Ada"
    await app.log_in(part="y", also=rename)
    async with app.database.read() as connection:
        assert (await connection.execute(select(users.c.full_name))).scalar_one() == "Countess"


async def test_who_was_ended_by_redis_alone_can_log_in_again(app: Process) -> None:
    made = await app.log_in()
    # As it is left by a revocation that Redis took, and then could not keep for a database that was down.
    await app.store.command("SET", KEYS.session_epoch("ada"), made.session.epoch + 3, "KEEPTTL")
    assert await app.sessions.get(made.session_id) is None
    again = await app.log_in()
    assert await app.sessions.authenticate(again.access_token, fresh=True) is not None
    assert [device.session_id for device in await app.sessions.list("ada")] == [again.session_id]
