"""Sessions while Redis, the database or both are away: a revocation wins, and what was promised is kept."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from counterseal.core.errors import DatabaseUnavailable, StoreFull, StoreUnavailable
from counterseal.sessions import Context, SessionReuseDetected, lookup, service
from counterseal.sessions.pending import MOST
from counterseal.sessions.session import Created, Revocation, Rotated
from counterseal.store.link import LinkOptions
from support.databases import Databases, Place
from support.servers import Server
from support.session_faults import (
    BRIEF,
    FORGIVING,
    Killable,
    PauseAfter,
    Removable,
    has_live_copy,
    has_tombstone,
    is_dead,
    later,
    processes,
    removable,
    rows,
)
from support.sessions import KEYS, Pause, Process
from support.waiting import eventually

PENDING = KEYS.sessions_pending()
Servers = Callable[..., Server]


@pytest.fixture
async def lost(databases: Databases, tmp_path: Path) -> AsyncIterator[Removable]:
    """A database that a test takes away."""
    async with removable(databases, tmp_path / "data") as lost:
        yield lost


@pytest.fixture
async def apps(valkey: Server, lost: Removable) -> AsyncIterator[list[Process]]:
    """Two processes whose database may be taken away."""
    async with processes(valkey, lost.through, timeout=BRIEF, options=FORGIVING) as apps:
        yield apps


async def reachable(*apps: Process) -> None:
    """Return when every process has its Redis."""
    for app in apps:
        await eventually(lambda app=app: app.store.available, within=20)


async def told(lost: Removable, session_id: str) -> None:
    """Return when the database has the end of a session."""

    async def is_revoked() -> bool:
        async with lost.beside.database() as database:
            return (await rows(database))[session_id].state == "revoked"

    await eventually(is_revoked, within=20)


# -- Redis away ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["idle first", "revoker first"])
async def test_what_was_revoked_without_redis_is_dead_at_once_when_redis_is_back_with_its_old_data(
    servers: Servers, place: Place, order: str
) -> None:
    server = servers(appendonly=True, config=["appendfsync always"])
    async with processes(server, place, 3, options=FORGIVING, relay=False) as apps:
        revoker, busy, idle = apps
        made = [await revoker.log_in("ada") for _ in range(2)]
        made += [await revoker.log_in("bob")]
        for app in apps:
            for one in made:
                assert await app.sessions.get(one.session_id) is not None
        server.kill()
        assert (await revoker.sessions.revoke(made[0].session_id)).ended == 1
        assert (await revoker.sessions.revoke_all("bob")).ended == 1
        assert await busy.sessions.get(made[0].session_id) is None
        assert await busy.sessions.get(made[1].session_id) is not None
        server.start()
        assert has_live_copy(server, made[0].session_id)
        assert has_live_copy(server, made[2].session_id)
        for app in (idle, busy, revoker) if order == "idle first" else (revoker, busy, idle):
            for _ in range(2):
                assert await app.sessions.get(made[0].session_id) is None
                assert await app.sessions.get(made[2].session_id) is None
                await reachable(app)
            assert await app.sessions.rotate(made[0].refresh_token) is None
            assert await app.sessions.get(made[1].session_id) is not None
        for one in (made[0], made[2]):
            await eventually(lambda one=one: has_tombstone(server, one.session_id), within=20)


@pytest.mark.parametrize("ending", ["revoke", "revoke_others", "revoke_all"])
async def test_a_revocation_under_way_while_redis_comes_back_is_not_missed(
    servers: Servers, place: Place, ending: str
) -> None:
    """Redis is back, and believed again, between the tombstone that failed and the commit."""
    server = servers(appendonly=True, config=["appendfsync always"])
    async with processes(server, place, 2, options=FORGIVING, relay=False) as apps:
        revoker = apps[0]
        made, kept = await revoker.log_in(), await revoker.log_in()
        server.kill()
        stop = Pause(revoker.sessions._endings, "_end")
        revoking = asyncio.create_task(end(revoker, ending, made, kept))
        await stop.reached()
        server.start()
        await reachable(*apps)
        for app in apps:
            await eventually(lambda app=app: believes(app, made), within=20)
        stop.release()
        assert (await revoking).ended
        for app in apps:
            assert await app.sessions.get(made.session_id) is None


async def believes(app: Process, made: Created) -> bool:
    """Whether a process reads a session from its Redis."""
    found = await app.sessions.get(made.session_id)
    return found is not None and not app.sessions._backing.outage.lasts


async def test_everybody_was_ended_without_redis_also_when_it_is_back_with_its_old_data(
    servers: Servers, place: Place
) -> None:
    server = servers(appendonly=True, config=["appendfsync always"])
    async with processes(server, place, 3, options=FORGIVING, relay=False) as apps:
        made = await apps[0].log_in()
        for app in apps:
            assert await app.sessions.get(made.session_id) is not None
        server.kill()
        await apps[0].sessions.revoke_everybody()
        server.start()
        assert has_live_copy(server, made.session_id)
        await reachable(*apps)
        later(apps, timedelta(seconds=1))
        for app in reversed(apps):
            assert await app.sessions.get(made.session_id) is None
            assert await app.sessions.rotate(made.refresh_token) is None


async def test_a_tombstone_that_redis_lost_in_a_crash_is_laid_again(
    servers: Servers, place: Place, tmp_path: Path
) -> None:
    server = servers(appendonly=True, config=["appendfsync always"])
    async with processes(server, place, 3, options=FORGIVING, relay=False) as apps:
        made, kept = await apps[0].log_in(), await apps[0].log_in()
        with from_before(server, tmp_path):
            assert (await apps[0].sessions.revoke(made.session_id)).ended == 1
        assert has_live_copy(server, made.session_id)
        for app in apps:
            assert await app.sessions.get(made.session_id) is None
            await reachable(app)
            assert await app.sessions.get(made.session_id) is None
            assert await app.sessions.get(kept.session_id) is not None
        await eventually(lambda: has_tombstone(server, made.session_id), within=20)


@contextmanager
def from_before(server: Server, folder: Path) -> Iterator[None]:
    """Afterwards the server has been killed, and is back with the data from before the block."""
    data, old = server.folder / "appendonlydir", folder / "old"
    shutil.copytree(data, old)
    yield
    server.kill()
    shutil.rmtree(data)
    shutil.copytree(old, data)
    server.start()


@pytest.mark.parametrize("way", ["killed", "emptied", "flushed"])
async def test_sessions_outlive_a_redis_that_loses_everything(valkey: Server, place: Place, way: str) -> None:
    async with processes(valkey, place, options=FORGIVING) as apps:
        one, other = apps
        alive, ended = await one.log_in(), await one.log_in()
        turned = await one.log_in()
        await one.sessions.revoke(ended.session_id)
        rotated = await other.sessions.rotate(turned.refresh_token)
        assert rotated is not None
        if way == "flushed":
            valkey.execute("FLUSHALL", "SYNC")
        else:
            valkey.kill()
        if way == "emptied":
            valkey.start()
        for app in apps:
            assert await app.sessions.get(alive.session_id) is not None
            assert await is_dead(app, ended.session_id, ended.access_token, ended.refresh_token)
            again = await app.sessions.rotate(turned.refresh_token)
            assert again is not None
            assert again.tokens.refresh_token == rotated.tokens.refresh_token
        assert await other.sessions.rotate(rotated.tokens.refresh_token) is not None
        made = await one.log_in()
        assert await other.sessions.get(made.session_id) is not None
        assert (await other.sessions.revoke(made.session_id)).ended == 1
        assert await one.sessions.get(made.session_id) is None
        if not valkey.running:
            valkey.start()
            await reachable(*apps)
        for app in apps:
            assert await app.sessions.get(made.session_id) is None
            assert await app.sessions.get(alive.session_id) is not None
            assert app.told(SessionReuseDetected) == []


async def test_a_frozen_redis_costs_three_time_outs_and_then_nothing(valkey: Server, place: Place) -> None:
    async with processes(valkey, place, 1, options=LinkOptions(connect_timeout=timedelta(seconds=5))) as apps:
        (app,) = apps
        made = await app.log_in()
        blocked: list[tuple[float, float]] = []

        def timed(name: str) -> None:
            original: Callable[..., Awaitable[Any]] = getattr(app.store, name)

            async def call(*arguments: Any, **options: Any) -> Any:
                began = time.monotonic()
                try:
                    return await original(*arguments, **options)
                finally:
                    blocked.append((began, time.monotonic()))

            setattr(app.store, name, call)

        for name in ("command", "run", "pipeline"):
            timed(name)
        app.sessions._backing.copies._command = app.store.command
        valkey.freeze()
        for _ in range(20):
            assert await app.sessions.get(made.session_id) is not None
        assert (await app.sessions.revoke(made.session_id)).ended == 1
        assert await app.sessions.get(made.session_id) is None
        slow: list[tuple[float, float]] = []
        for began, over in sorted(blocked):
            if over - began >= 0.045 and not (slow and began < slow[-1][1]):  # two at once cost one time-out
                slow.append((began, over))
        assert 1 <= len(slow) <= 3
        assert sum(over - began for began, over in slow) < 1


async def test_what_was_revoked_while_redis_was_frozen_is_dead_when_it_goes_on(
    valkey: Server, place: Place
) -> None:
    options = LinkOptions(connect_timeout=timedelta(seconds=5), breaker=FORGIVING.breaker)
    async with processes(valkey, place, 3, options=options) as apps:
        revoker, busy, idle = apps
        made, kept = await revoker.log_in(), await revoker.log_in()
        valkey.freeze()
        assert await busy.sessions.get(made.session_id) is not None
        assert (await revoker.sessions.revoke(made.session_id)).ended == 1
        assert await busy.sessions.get(made.session_id) is None
        valkey.thaw()
        for app in (revoker, busy):
            assert await app.sessions.get(made.session_id) is None
            await reachable(app)
            assert await app.sessions.get(made.session_id) is None
            assert await app.sessions.get(kept.session_id) is not None
        # Who asked nothing meanwhile has noticed nothing: it is told by the tombstone.
        await eventually(lambda: has_tombstone(valkey, made.session_id), within=20)
        assert await idle.sessions.get(made.session_id) is None


# -- the database away -----------------------------------------------------------------------------------------------


async def test_without_the_database_reads_and_refreshes_go_on_for_five_minutes_and_no_longer(
    apps: list[Process], lost: Removable
) -> None:
    one, other = apps
    made, still = await one.log_in(), await one.log_in()
    lost.take_away()
    for app in apps:
        assert await app.sessions.get(made.session_id) is not None
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.get(made.session_id, fresh=True)
        with pytest.raises(DatabaseUnavailable):
            await app.log_in()
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.list("ada")
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.reissue(made.session_id)
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.require_step_up(made.session_id, Context.SIGNING, "r1")
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.set_totp_verified(made.session_id, Context.SIGNING, "r1")
    later(apps, timedelta(minutes=4, seconds=50))
    for app in apps:
        assert await app.sessions.get(made.session_id) is not None
        assert await app.sessions.touch(made.session_id)
    rotated = await one.sessions.rotate(made.refresh_token)
    again = await other.sessions.rotate(made.refresh_token)
    assert rotated is not None
    assert again is not None
    assert rotated.tokens.refresh_token == again.tokens.refresh_token
    later(apps, timedelta(minutes=1, seconds=10))
    for app in apps:
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.get(made.session_id)
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.touch(made.session_id)
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.rotate(still.refresh_token)
        with pytest.raises(DatabaseUnavailable):
            await app.sessions.rotate(rotated.tokens.refresh_token)
    await lost.give_back()
    later(apps, timedelta(seconds=2))
    for app in apps:
        await eventually(lambda app=app: reads(app, made), within=20)
        assert await app.sessions.get(still.session_id) is not None
    newest = await other.sessions.rotate(rotated.tokens.refresh_token)
    assert newest is not None
    assert await one.sessions.rotate(still.refresh_token) is not None
    assert [app.told(SessionReuseDetected) for app in apps] == [[], []]


async def reads(app: Process, made: Created) -> bool:
    try:
        return await app.sessions.get(made.session_id, fresh=True) is not None
    except DatabaseUnavailable:
        return False


async def test_a_touch_that_was_stopped_while_the_database_is_away_brings_nothing_back(
    apps: list[Process], lost: Removable
) -> None:
    made = await apps[0].log_in()
    lost.take_away()
    later(apps, timedelta(seconds=61))
    stop = Pause(apps[0].sessions._backing.copies, "touch")
    touching = asyncio.create_task(apps[0].sessions.touch(made.session_id))
    await stop.reached()
    assert (await apps[1].sessions.revoke(made.session_id)).pending
    stop.release()
    assert not await touching
    for app in apps:
        assert await app.sessions.get(made.session_id) is None


@pytest.mark.parametrize("ending", ["revoke", "revoke_others", "revoke_all"])
async def test_a_revocation_without_the_database_is_pending_and_then_told(
    apps: list[Process], lost: Removable, valkey: Server, ending: str
) -> None:
    one = apps[0]
    kept, made = await one.log_in(), await one.log_in()
    lost.take_away()
    revocation = await end(one, ending, made, kept)
    assert revocation.pending
    assert revocation
    for app in apps:
        assert await app.sessions.get(made.session_id) is None
        assert await app.sessions.authenticate(made.access_token) is None
        assert await app.sessions.rotate(made.refresh_token) is None
    await lost.give_back()
    await told(lost, made.session_id)
    await eventually(lambda: valkey.execute("XLEN", PENDING) == 0, within=20)
    for app in apps:
        assert await is_dead(app, made.session_id, made.access_token, made.refresh_token)
        alive = await app.sessions.get(kept.session_id) is not None
        assert alive == (ending != "revoke_all")
        assert (await app.log_in()).session.user_id == "ada"


async def end(app: Process, ending: str, made: Created, kept: Created) -> Revocation:
    if ending == "revoke":
        return await app.sessions.revoke(made.session_id)
    if ending == "revoke_others":
        return await app.sessions.revoke_others(kept.session_id)
    return await app.sessions.revoke_all(made.session.user_id)


@pytest.mark.parametrize("ending", ["revoke", "revoke_others", "revoke_all"])
async def test_a_pending_revocation_survives_a_redis_that_is_lost_before_the_database_is_back(
    apps: list[Process], lost: Removable, valkey: Server, ending: str
) -> None:
    one, other = apps
    kept, made = await one.log_in(), await one.log_in()
    lost.take_away()
    assert (await end(one, ending, made, kept)).pending
    assert await other.sessions.get(made.session_id) is None
    valkey.kill()
    for app in apps:
        with pytest.raises((DatabaseUnavailable, StoreUnavailable)):
            await app.sessions.get(made.session_id)
    await lost.give_back()
    assert await one.sessions.get(made.session_id) is None
    assert await refused(one.sessions.rotate(made.refresh_token))
    await told(lost, made.session_id)
    valkey.start()  # with nothing in it
    await reachable(*apps)
    for app in apps:
        assert await is_dead(app, made.session_id, made.access_token, made.refresh_token)


async def test_a_pending_revocation_that_redis_lost_in_a_crash_is_told_to_it_again(
    servers: Servers, lost: Removable, tmp_path: Path
) -> None:
    server = servers(appendonly=True, config=["appendfsync always"])
    async with processes(server, lost.through, timeout=BRIEF, options=FORGIVING) as apps:
        made, kept = await apps[0].log_in(), await apps[0].log_in()
        with from_before(server, tmp_path):
            lost.take_away()
            assert (await apps[0].sessions.revoke(made.session_id)).pending
        assert has_live_copy(server, made.session_id)
        await reachable(*apps)
        for app in apps:
            assert await refused(app.sessions.get(made.session_id))
        await lost.give_back()
        await eventually(lambda: answers(apps[0]), within=20)
        assert await refused(apps[0].sessions.get(made.session_id))
        await told(lost, made.session_id)
        await eventually(lambda: has_tombstone(server, made.session_id), within=20)
        for app in apps:
            assert await app.sessions.get(made.session_id) is None
            assert await app.sessions.get(kept.session_id) is not None


async def test_a_revocation_that_the_database_is_told_of_while_redis_takes_it_is_no_fault(
    apps: list[Process], lost: Removable, valkey: Server
) -> None:
    """The database is back, and told of it, before Redis has answered, which then is lost."""
    app = apps[0]
    made = await app.log_in()
    lost.take_away()
    tombstone = Pause(app.sessions._backing.copies, "revoke", after=True)
    revoking = asyncio.create_task(app.sessions.revoke(made.session_id))
    await tombstone.reached()
    stream = Pause(app.store, "run")
    tombstone.release()
    await stream.reached()
    await lost.give_back()
    await told(lost, made.session_id)
    await eventually(lambda: not app.sessions._backing.pending._mine)
    valkey.kill()
    stream.release()
    with pytest.raises(StoreUnavailable):
        await revoking
    assert await app.sessions.get(made.session_id) is None


@pytest.mark.parametrize("way", ["get", "list"])
async def test_a_row_that_was_read_before_a_pending_revocation_was_told_lets_nobody_in(
    servers: Servers, lost: Removable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Redis has lost it in a crash, and the process that accepted it reads the row before it tells the database."""
    server = servers(appendonly=True, config=["appendfsync always"])
    async with processes(server, lost.through, 1, timeout=BRIEF, options=FORGIVING) as apps:
        (app,) = apps
        made = await app.log_in()
        with from_before(server, tmp_path):
            lost.take_away()
            assert (await app.sessions.revoke(made.session_id)).pending
        await reachable(app)
        telling = Pause(app.sessions._endings, "apply", times=10)
        await lost.give_back()
        await telling.reached()
        owner, name = (lookup, "read_row") if way == "get" else (service, "read_rows_of")
        monkeypatch.setattr(owner, name, getattr(owner, name))  # it is put back afterwards
        reading = Pause(owner, name, after=True)
        if way == "get":
            asked = asyncio.create_task(app.sessions.get(made.session_id))
        else:
            asked = asyncio.create_task(app.sessions.list(made.session.user_id))
        await reading.reached()
        telling.release()
        await eventually(lambda: not app.sessions._backing.pending.unsettled, within=20)
        reading.release()
        assert not await asked


async def test_a_database_that_failed_while_it_was_told_is_not_believed_to_know_everything(
    apps: list[Process],
) -> None:
    pending = apps[0].sessions._backing.pending
    await pending.settle()
    assert not pending.unsettled
    stop = Pause(apps[0].store, "command", after=True)
    settling = asyncio.create_task(pending.settle())
    await stop.reached()
    pending.database_failed()
    stop.release()
    await settling
    assert pending.unsettled


async def test_who_saw_that_something_waits_does_not_believe_the_database_without_redis(
    apps: list[Process], lost: Removable, valkey: Server
) -> None:
    """The process that accepted it is gone, and Redis as well: the database alone would let the session live."""
    one, idle = apps
    made = await one.log_in()
    await idle.sessions._backing.pending.settle()
    lost.take_away()
    assert (await one.sessions.revoke(made.session_id)).pending
    with pytest.raises(DatabaseUnavailable):
        await idle.sessions._backing.pending.settle()
    valkey.kill()
    await one.sessions.close()
    one.sessions._backing.pending._mine.clear()
    await lost.give_back()
    await eventually(lambda: answers(idle), within=20)
    for _ in range(3):
        assert await refused(idle.sessions.get(made.session_id))
        assert await refused(idle.sessions.rotate(made.refresh_token))


async def test_a_rotation_without_the_database_survives_a_redis_that_is_lost_before_it_is_back(
    apps: list[Process], lost: Removable, valkey: Server
) -> None:
    one, other = apps
    made = await one.log_in()
    lost.take_away()
    first = await one.sessions.rotate(made.refresh_token)
    assert first is not None
    second = await one.sessions.rotate(first.tokens.refresh_token)
    assert second is not None
    valkey.kill()
    await lost.give_back()

    async def is_told() -> bool:
        async with lost.beside.database() as database:
            return (await rows(database))[made.session_id].version == 3

    await eventually(is_told, within=20)
    valkey.start()
    await reachable(*apps)
    assert await other.sessions.rotate(second.tokens.refresh_token) is not None
    assert [app.told(SessionReuseDetected) for app in apps] == [[], []]


async def test_a_revocation_that_can_be_stored_nowhere_is_an_error(
    apps: list[Process], lost: Removable, valkey: Server
) -> None:
    made, kept = await apps[0].log_in(), await apps[0].log_in()
    lost.take_away()
    valkey.kill()
    for app in apps:
        for ending in ("revoke", "revoke_others", "revoke_all"):
            with pytest.raises((DatabaseUnavailable, StoreUnavailable)):
                await end(app, ending, made, kept)
        with pytest.raises((DatabaseUnavailable, StoreUnavailable)):
            await app.sessions.get(made.session_id)
        with pytest.raises((DatabaseUnavailable, StoreUnavailable)):
            await app.sessions.rotate(made.refresh_token)
    await lost.give_back()
    valkey.start()
    await reachable(*apps)
    for app in apps:
        assert await app.sessions.get(made.session_id) is not None
    assert (await apps[1].sessions.revoke(made.session_id)).ended == 1
    assert await apps[0].sessions.get(made.session_id) is None


async def test_a_stream_that_is_full_takes_no_more_and_says_so(
    apps: list[Process], lost: Removable, valkey: Server
) -> None:
    made, kept = await apps[0].log_in(), await apps[0].log_in()
    lost.take_away()
    assert (await apps[0].sessions.revoke(kept.session_id)).pending
    entry = valkey.execute("XRANGE", PENDING, "-", "+")[0][1][1]
    fill = "for _ = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'entry', ARGV[2]) end"
    valkey.execute("EVAL", fill, 1, PENDING, MOST - 1, entry)
    for app in apps:
        for ending in ("revoke", "revoke_all"):
            with pytest.raises(StoreFull):
                await end(app, ending, made, kept)
    assert valkey.execute("XLEN", PENDING) == MOST
    valkey.execute("XTRIM", PENDING, "MAXLEN", 1)
    assert (await apps[0].sessions.revoke(made.session_id)).pending
    await lost.give_back()
    await told(lost, made.session_id)


async def test_the_stream_ends_in_the_same_state_however_often_and_in_whatever_order_it_is_told(
    databases: Databases, valkey: Server, tmp_path: Path
) -> None:
    finals: list[dict[str, Any]] = []
    for turn in range(4):
        valkey.flush()
        async with (
            removable(databases, tmp_path / str(turn)) as lost,
            processes(valkey, lost.through, 1, timeout=BRIEF, options=FORGIVING) as apps,
        ):
            (app,) = apps
            made = [
                await app.log_in(user, part=part)
                for user, part in itertools.product(("ada", "bob", "cy"), ("s1", "s2", "s3"))
            ]
            lost.take_away()
            tokens = [made[0].refresh_token, made[1].refresh_token]
            for _ in range(3):
                for number, token in enumerate(tokens):
                    rotated = await app.sessions.rotate(token)
                    assert rotated is not None
                    tokens[number] = rotated.tokens.refresh_token
            assert (await app.sessions.revoke(made[1].session_id)).pending
            assert (await app.sessions.revoke_all("bob")).pending
            assert (await app.sessions.revoke_others(made[6].session_id)).pending
            entries = list(app.sessions._backing.pending._mine)
            app.sessions._backing.pending._mine.clear()
            valkey.execute("DEL", PENDING)
            await lost.give_back()
            if turn:
                entries += entries
                random.Random(turn).shuffle(entries)
            for entry in entries:
                await eventually(partial(applied, app, entry), within=20)
            async with lost.beside.database() as database:
                finals.append(
                    {
                        name: (
                            row.state,
                            row.session_epoch,
                            row.version if row.state == "active" else None,
                            row.revoke_reason,
                        )
                        for name, row in (await rows(database)).items()
                    }
                )
            assert await app.sessions.rotate(tokens[0]) is not None
    assert finals[0]["ada.s1"] == ("active", 0, 4, None)
    assert finals[0]["ada.s2"][0] == "revoked"
    assert {finals[0][f"bob.s{n}"][:2] for n in (1, 2, 3)} == {("revoked", 1)}
    assert [finals[0][f"cy.s{n}"][0] for n in (1, 2, 3)] == ["active", "revoked", "revoked"]
    for final in finals[1:]:
        assert final == finals[0]


async def applied(app: Process, entry: Any) -> bool:
    try:
        await app.sessions._endings.apply([entry])
    except DatabaseUnavailable:
        return False
    return True


# -- in the middle of something --------------------------------------------------------------------------------------


@dataclass
class Faulty:
    """Two processes, and what may happen to what they stand on."""

    apps: list[Process]
    strike: Callable[[], None]
    heal: Callable[[], Awaitable[None]]


@pytest.fixture(scope="module")
def own_postgres() -> Any:
    """A PostgreSQL that a test may stop, kill and freeze."""
    with Killable() as own:
        yield own


@pytest.fixture
async def own(own_postgres: Killable, tmp_path: Path) -> AsyncIterator[Place]:
    place = Place("postgresql", tmp_path, own_postgres.url())
    async with place.database() as database:
        await database.upgrade()
    yield place
    own_postgres.recover()


@pytest.fixture(
    params=[
        "redis killed",
        "redis emptied",
        "redis flushed",
        "database stopped",
        "database killed",
        "database frozen",
    ]
)
async def faulty(
    request: pytest.FixtureRequest, valkey: Server, own: Place, own_postgres: Killable
) -> AsyncIterator[Faulty]:
    async with AsyncExitStack() as stack:
        apps = await stack.enter_async_context(processes(valkey, own, timeout=BRIEF, options=FORGIVING))

        def empty() -> None:
            valkey.kill()
            valkey.start()

        def flush() -> None:
            valkey.execute("FLUSHALL", "SYNC")

        async def heal() -> None:
            if not valkey.running:
                valkey.start()
            own_postgres.recover()
            await reachable(*apps)
            for app in apps:
                await eventually(lambda app=app: answers(app), within=20)

        strikes: dict[str, Callable[[], None]] = {
            "redis killed": valkey.kill,
            "redis emptied": empty,
            "redis flushed": flush,
            "database stopped": own_postgres.stop,
            "database killed": own_postgres.kill,
            "database frozen": lambda: own_postgres.freeze(served=True),
        }
        yield Faulty(apps, strikes[request.param], heal)
        own_postgres.recover()


async def answers(app: Process) -> bool:
    try:
        await app.database.ping()
    except DatabaseUnavailable:
        return False
    return True


async def is_good_again(app: Process, session_id: str) -> bool:
    with suppress(DatabaseUnavailable, StoreUnavailable):
        await app.sessions.get(session_id)
    return not (app.sessions._backing.outage.lasts or app.sessions._backing.pending.unsettled)


def copies_of(app: Process) -> Any:
    return app.sessions._backing.copies


async def test_a_revocation_in_whose_middle_something_fails_holds_or_can_be_repeated(faulty: Faulty) -> None:
    apps = faulty.apps
    for number, stop_at in enumerate(
        [
            lambda: Pause(copies_of(apps[0]), "revoke", after=True),
            lambda: Pause(apps[0].sessions._endings, "_end", after=True),
            lambda: PauseAfter(apps[0].database, "begin"),
        ]
    ):
        made = await apps[0].log_in(f"revoked-{number}")
        kept = await apps[0].log_in(f"revoked-{number}")
        assert await apps[1].sessions.get(made.session_id) is not None
        stop = stop_at()
        revoking = asyncio.create_task(apps[0].sessions.revoke(made.session_id))
        await stop.reached()
        faulty.strike()
        stop.release()
        (answer,) = await asyncio.gather(revoking, return_exceptions=True)
        if isinstance(answer, Revocation):
            assert answer
            for app in apps:
                assert await refused(app.sessions.get(made.session_id))
                assert await refused(app.sessions.rotate(made.refresh_token))
        else:
            assert isinstance(answer, (DatabaseUnavailable, StoreUnavailable))
        await faulty.heal()
        if not isinstance(answer, Revocation):
            await apps[1].sessions.revoke(made.session_id)
        for app in apps:
            assert await is_dead(app, made.session_id, made.access_token, made.refresh_token)
            assert await app.sessions.get(kept.session_id) is not None


async def refused(call: Awaitable[object]) -> bool:
    """Whether nobody is let in."""
    try:
        return await call is None
    except (DatabaseUnavailable, StoreUnavailable):
        return True


async def test_a_rotation_in_whose_middle_something_fails_leaves_a_token_that_is_good(
    faulty: Faulty,
) -> None:
    apps = faulty.apps
    for number, stop_at in enumerate(
        [
            lambda: Pause(copies_of(apps[0]), "rotate", after=True),
            lambda: PauseAfter(apps[0].database, "begin"),
        ]
    ):
        made = await apps[0].log_in(f"rotated-{number}")
        stop = stop_at()
        rotating = asyncio.create_task(apps[0].sessions.rotate(made.refresh_token))
        await stop.reached()
        faulty.strike()
        stop.release()
        (answer,) = await asyncio.gather(rotating, return_exceptions=True)
        assert isinstance(answer, (Rotated, DatabaseUnavailable, StoreUnavailable))
        await faulty.heal()
        repeated = await apps[1].sessions.rotate(made.refresh_token)
        assert repeated is not None
        if isinstance(answer, Rotated):
            assert answer.tokens.refresh_token == repeated.tokens.refresh_token
        assert await apps[1].sessions.rotate(repeated.tokens.refresh_token) is not None
        assert await apps[0].sessions.get(made.session_id) is not None
    assert [app.told(SessionReuseDetected) for app in apps] == [[], []]


async def test_a_log_in_in_whose_middle_something_fails_is_whole_or_can_be_repeated(faulty: Faulty) -> None:
    apps = faulty.apps
    for number, stop_at in enumerate(
        [
            lambda: Pause(apps[0].sessions._creation, "make", after=True),
            lambda: PauseAfter(apps[0].database, "begin"),
        ]
    ):
        user_id = f"new-{number}"
        for _ in range(5):
            await apps[1].log_in(user_id)
        stop = stop_at()
        making = asyncio.create_task(apps[0].log_in(user_id))
        await stop.reached()
        faulty.strike()
        stop.release()
        (answer,) = await asyncio.gather(making, return_exceptions=True)
        assert isinstance(answer, (Created, DatabaseUnavailable, StoreUnavailable))
        if isinstance(answer, Created):
            assert not await refused(apps[1].sessions.get(answer.session_id))
        await faulty.heal()
        if not isinstance(answer, Created):
            answer = await apps[1].log_in(user_id)
        for app in apps:
            assert await app.sessions.get(answer.session_id) is not None
            for gone in answer.evicted:
                assert await app.sessions.get(gone) is None
            assert len(await app.sessions.list(user_id)) == 5
        assert await apps[1].sessions.rotate(answer.refresh_token) is not None


async def test_a_read_in_whose_middle_something_fails_tells_the_truth_or_nothing(faulty: Faulty) -> None:
    apps = faulty.apps
    for number, stop_at in enumerate(
        [lambda: PauseAfter(apps[0].database, "read"), lambda: Pause(copies_of(apps[0]), "fill")]
    ):
        made = await apps[1].log_in(f"read-{number}")
        stop = stop_at()
        reading = asyncio.create_task(apps[0].sessions.get(made.session_id, fresh=True))
        await stop.reached()
        faulty.strike()
        stop.release()
        (answer,) = await asyncio.gather(reading, return_exceptions=True)
        assert answer is not None
        await faulty.heal()
        for app in apps:
            assert await app.sessions.get(made.session_id) is not None
        assert (await apps[1].sessions.revoke(made.session_id)).ended == 1
        for app in apps:
            assert await app.sessions.get(made.session_id) is None


# -- both away -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_back", ["redis", "database"])
@pytest.mark.parametrize("first_down", ["redis", "database"])
@pytest.mark.parametrize("data", ["old", "none"])
async def test_outages_that_overlap_bring_no_ended_session_back_and_end_no_other(
    servers: Servers, lost: Removable, first_down: str, first_back: str, data: str
) -> None:
    server = servers(appendonly=data == "old", config=["appendfsync always"] if data == "old" else [])
    async with processes(server, lost.through, timeout=BRIEF, options=FORGIVING) as apps:
        one, other = apps
        kept = await one.log_in("kept")
        before = await one.log_in("before")
        between = await one.log_in("between")
        after = await one.log_in("after")
        await one.sessions.revoke(before.session_id)
        ended = [before]

        async def down(what: str) -> None:
            if what == "redis":
                server.kill()
            else:
                lost.take_away()

        async def up(what: str) -> None:
            if what == "redis":
                server.start()
                await reachable(*apps)
            else:
                await lost.give_back()
                for app in apps:
                    await eventually(lambda app=app: answers(app), within=20)

        await down(first_down)
        assert await one.sessions.revoke(between.session_id)
        ended.append(between)
        for app in apps:
            for gone in ended:
                assert await refused(app.sessions.get(gone.session_id))
        await down("database" if first_down == "redis" else "redis")
        for app in apps:
            with pytest.raises((DatabaseUnavailable, StoreUnavailable)):
                await app.sessions.get(kept.session_id)
            with pytest.raises((DatabaseUnavailable, StoreUnavailable)):
                await app.sessions.revoke(after.session_id)
        await up(first_back)
        assert await other.sessions.revoke(after.session_id)
        ended.append(after)
        for gone in ended[1:]:
            assert await refused(one.sessions.get(gone.session_id)), "the process that ended it"
        for gone in (before, after):
            assert await refused(other.sessions.get(gone.session_id))
        await up("database" if first_back == "redis" else "redis")
        for app in apps:  # who has not written yet what was revoked answers that it can't say
            await eventually(lambda app=app: is_good_again(app, kept.session_id), within=20)
        for gone in ended:
            await told(lost, gone.session_id)
            for app in apps:
                assert await is_dead(app, gone.session_id, gone.access_token, gone.refresh_token)
        for app in apps:
            assert await app.sessions.get(kept.session_id) is not None
        assert await other.sessions.rotate(kept.refresh_token) is not None
        assert [app.told(SessionReuseDetected) for app in apps] == [[], []]
