"""Sessions on a Redis that answers errors, on damaged copies, and what is ended although nobody has a copy of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from counterseal.core.errors import StoreUnavailable
from counterseal.database.engine import Database
from counterseal.database.tables import audit_heads
from counterseal.sessions.outage import Outage
from support.databases import Databases, Place
from support.servers import Server
from support.session_faults import (
    BRIEF,
    FORGIVING,
    PauseAfter,
    forget,
    key_of,
    later,
    processes,
    removable,
    rows,
)
from support.sessions import KEYS, Process, process
from support.stores import native_store, store_on
from support.waiting import eventually


@pytest.fixture
async def app(servers: Callable[..., Server], database: Database) -> AsyncIterator[tuple[Process, Server]]:
    """One process on a server whose configuration may be changed."""
    server = servers()
    async with store_on(server) as store, process(store, database) as app:
        yield app, server


def refuse_writes(server: Server) -> None:
    """From now on every write is answered by NOREPLICAS."""
    server.execute("CONFIG", "SET", "min-replicas-to-write", "1")


def take_writes(server: Server) -> None:
    server.execute("CONFIG", "SET", "min-replicas-to-write", "0")


async def test_a_redis_that_refuses_writes_is_one_that_is_away(app: tuple[Process, Server]) -> None:
    one, server = app
    ended, other, used = await one.log_in(), await one.log_in(), await one.log_in("bob")
    for made in (ended, other, used):
        await one.sessions.get(made.session_id)
    refuse_writes(server)

    assert (await one.sessions.revoke(ended.session_id)).ended == 1
    assert await one.sessions.get(ended.session_id) is None
    rotated = await one.sessions.rotate(used.refresh_token)
    assert rotated is not None
    assert (await one.sessions.revoke_all("ada")).ended == 1
    assert await one.sessions.get(other.session_id) is None
    late = await one.log_in("eve")
    assert [device.session_id for device in await one.sessions.list("eve")] == [late.session_id]
    later([one], timedelta(seconds=61))
    assert await one.sessions.get(used.session_id) is not None
    assert await one.sessions.get(late.session_id, fresh=True) is not None

    take_writes(server)
    await eventually(lambda: server.execute("HGET", key_of(ended.session_id), "live") == b"r")
    for made in (ended, other):
        assert await one.sessions.get(made.session_id) is None
    assert await one.sessions.rotate(rotated.tokens.refresh_token) is not None
    await one.sessions.revoke_everybody()
    assert await one.sessions.get(late.session_id) is None


async def test_everybody_is_ended_on_a_redis_that_refuses_writes(app: tuple[Process, Server]) -> None:
    one, server = app
    made = await one.log_in()
    await one.sessions.get(made.session_id)
    refuse_writes(server)
    await one.sessions.revoke_everybody()
    assert await one.sessions.get(made.session_id) is None
    take_writes(server)
    assert await one.sessions.get(made.session_id) is None


@pytest.mark.parametrize("damage", ['{"v":7}', "not JSON", '{"v":1,"profile":"unheard of"}'])
async def test_a_copy_that_can_not_be_read_is_replaced_by_what_the_database_says(
    app: tuple[Process, Server], damage: str
) -> None:
    one, server = app
    made, other = await one.log_in(), await one.log_in()
    server.execute("HSET", key_of(made.session_id), "facts", damage)
    found = await one.sessions.get(made.session_id)
    assert found is not None
    assert found.device == "Firefox on Linux"
    server.execute("HSET", key_of(made.session_id), "facts", damage)
    rotated = await one.sessions.rotate(made.refresh_token)
    assert rotated is not None
    server.execute("HSET", key_of(made.session_id), "facts", damage)
    server.execute("HSET", key_of(other.session_id), "facts", damage)
    assert (await one.sessions.revoke_others(made.session_id)).ended == 1
    assert (await one.sessions.revoke_all("ada")).ended == 1
    assert await one.sessions.get(made.session_id) is None
    assert await one.sessions.rotate(rotated.tokens.refresh_token) is None


async def test_no_new_tokens_once_everybody_was_ended_although_the_database_is_down(
    valkey: Server, databases: Databases, tmp_path: Path
) -> None:
    async with (
        removable(databases, tmp_path) as lost,
        processes(valkey, lost.through, timeout=BRIEF, options=FORGIVING) as (one, other),
    ):
        made = await one.log_in()
        await one.sessions.get(made.session_id)
        await other.sessions.revoke_everybody()
        lost.take_away()
        later([one], timedelta(seconds=2))
        assert await one.sessions.rotate(made.refresh_token) is None


@pytest.mark.parametrize("ending", ["revoke_all", "revoke_others"])
@pytest.mark.parametrize("cold", [True, False])
async def test_what_nobody_has_a_copy_of_is_ended_as_well_while_the_database_is_down(
    valkey: Server, databases: Databases, tmp_path: Path, ending: str, cold: bool
) -> None:
    async with (
        removable(databases, tmp_path) as lost,
        processes(valkey, lost.through, timeout=BRIEF, options=FORGIVING) as (one, other),
    ):
        made, kept = await one.log_in(), await one.log_in()
        if cold:
            valkey.execute("DEL", KEYS.session_index("ada"), KEYS.session_epoch("ada"))
            forget(valkey, kept.session_id)
        forget(valkey, made.session_id)
        paused = PauseAfter(other.database, "read")
        reader = asyncio.create_task(other.sessions.get(made.session_id))
        await paused.reached()
        lost.take_away()
        if ending == "revoke_all":
            assert (await one.sessions.revoke_all("ada")).pending
        else:
            assert (await one.sessions.revoke_others(kept.session_id)).pending
        paused.release()
        assert await reader is None
        for app in (one, other):
            assert await app.sessions.get(made.session_id) is None
            assert await app.sessions.rotate(made.refresh_token) is None
        await lost.give_back()
        ended = {made.session_id} if ending == "revoke_others" else {made.session_id, kept.session_id}

        async def told() -> bool:
            found = await rows(one.database)
            return {name for name, row in found.items() if row.state == "revoked"} == ended

        await eventually(told)
        for app in (one, other):
            assert await app.sessions.get(made.session_id) is None
            assert (await app.sessions.get(kept.session_id) is None) == (ending == "revoke_all")


@pytest.mark.parametrize("ending", ["revoke_all", "revoke_others"])
async def test_a_process_that_still_has_the_database_believes_it_no_more_of_what_another_one_ended(
    valkey: Server, databases: Databases, tmp_path: Path, ending: str
) -> None:
    async with (
        removable(databases, tmp_path) as lost,
        processes(valkey, lost.through, 1, timeout=BRIEF, options=FORGIVING) as (one,),
        processes(valkey, lost.beside, 1, options=FORGIVING) as (far,),
    ):
        made, kept = await one.log_in(), await one.log_in()
        forget(valkey, made.session_id)
        await far.sessions._background.close()
        lost.take_away()
        if ending == "revoke_all":
            await one.sessions.revoke_all("ada")
        else:
            await one.sessions.revoke_others(kept.session_id)
        assert await far.sessions.get(made.session_id) is None
        new = await far.log_in()
        assert await far.sessions.get(new.session_id) is not None


async def test_the_damaged_key_of_one_user_keeps_nobody_else_from_redis(
    app: tuple[Process, Server],
) -> None:
    one, server = app
    made, other = await one.log_in("zed"), await one.log_in("ada")
    await one.sessions.get(other.session_id)
    server.execute("DEL", KEYS.session_index("zed"))
    server.execute("SET", KEYS.session_index("zed"), "damaged", "EX", 3600)
    assert (await one.sessions.revoke(made.session_id)).ended == 1
    assert await one.sessions.get(made.session_id) is None
    one.sessions._backing.outage.begin()

    async def is_over() -> bool:
        return await one.sessions.get(other.session_id) is not None and not one.sessions._backing.outage.lasts

    await eventually(is_over)
    hits = one.sessions.counts.hits
    for _ in range(10):
        assert await one.sessions.get(other.session_id) is not None
    assert one.sessions.counts.hits == hits + 10
    assert await one.sessions.get(made.session_id) is None


async def test_a_replay_that_fails_is_not_tried_again_at_once() -> None:
    tries: list[int] = []

    async def refuse(since_ms: int) -> None:
        tries.append(since_ms)
        raise StoreUnavailable("no")

    outage = Outage(lambda: 100_000, refuse)
    for _ in range(50):
        with pytest.raises(StoreUnavailable):
            await outage.end()
    assert len(tries) < 5
    await eventually(lambda: outage._not_before_s <= asyncio.get_running_loop().time())
    with pytest.raises(StoreUnavailable):
        await outage.end()
    assert set(tries) == {40_000}
    assert outage.lasts


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_nobody_waits_for_a_lock_on_the_data_of_somebody_else(
    valkey: Server, database: Database, place: Place
) -> None:
    async with store_on(valkey) as store, process(store, database) as one, place.database() as beside:
        await one.log_in("ada")
        async with beside.begin() as connection:
            await connection.execute(
                select(audit_heads.c.seq).where(audit_heads.c.stream == "account:ada").with_for_update()
            )
            blocked = asyncio.create_task(one.log_in("ada"))
            others = [asyncio.create_task(one.log_in(f"user{number}")) for number in range(20)]
            async with asyncio.timeout(15):
                await asyncio.gather(*others)
            late = [asyncio.create_task(one.log_in(f"late{number}")) for number in range(20)]
            async with asyncio.timeout(15):
                await asyncio.gather(*late)
            assert not blocked.done()
        assert await one.sessions.get((await blocked).session_id) is not None


async def test_a_log_in_after_a_barrier_that_lies_ahead_waits_for_it(app: tuple[Process, Server]) -> None:
    one, server = app
    await one.log_in()
    barriers = KEYS.session_barriers("ada")
    server.execute("HSET", barriers, "*", one.store.now_ms() + 150)
    server.execute("EXPIRE", barriers, 3600)
    made = await one.log_in()
    assert await one.sessions.get(made.session_id) is not None
    assert len(await one.sessions.list("ada")) == 2


async def test_a_user_without_channels_reads_from_redis_all_the_same(
    servers: Callable[..., Server], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers()
    server.execute("ACL", "SETUSER", "quiet", "on", ">secret", "~*", "+@all", "resetchannels")
    async with (
        native_store(server, user="quiet", password="secret") as store,
        process(store, database) as one,
    ):
        await eventually(lambda: "refuses the call 'subscribe' of sessions: NOPERM" in caplog.text)
        made, other = await one.log_in(), await one.log_in("bob")

        async def is_hit() -> bool:
            hits = one.sessions.counts.hits
            assert await one.sessions.get(made.session_id) is not None
            return one.sessions.counts.hits > hits

        await eventually(is_hit)
        assert (await one.sessions.revoke(other.session_id)).ended == 1
        assert not one.sessions._backing.outage.lasts
        assert await is_hit()
        assert await one.sessions.get(other.session_id) is None
