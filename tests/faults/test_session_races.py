"""Sessions in races: whoever was about to bring one back when it ended, and many who want the same at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import StoreUnavailable
from counterseal.database.tables import users
from counterseal.sessions import Context, SessionReuseDetected
from counterseal.sessions.session import Created, Reason, Rotated
from support.databases import Place
from support.servers import Server
from support.session_faults import (
    PauseAfter,
    forget,
    has_live_copy,
    has_tombstone,
    is_dead,
    later,
    live_copies,
    processes,
    rows,
)
from support.sessions import Pause, Process
from support.stores import travel
from support.waiting import eventually

DUE = timedelta(seconds=61)
"""After so long a copy is checked, and a use noted."""

LOG_OUTS = 150
"""600 in all: warm and cold, on either database. Each has four readers."""

SESSIONS = 100
"""200 in all."""


@pytest.fixture
async def apps(valkey: Server, place: Place) -> AsyncIterator[list[Process]]:
    """Two processes on the same databases."""
    async with processes(valkey, place) as apps:
        yield apps


async def believes_redis(app: Process) -> bool:
    """Whether what a process has missed of Redis is made good."""
    with suppress(StoreUnavailable):
        await app.sessions._lookup.trust()
    return not app.sessions._backing.outage.lasts


# -- a reader that was stopped ---------------------------------------------------------------------------------------

Stop = tuple[Pause | PauseAfter, Coroutine[Any, Any, object]]
"""Where a reader is stopped, and the reader."""

Reader = Callable[[list[Process], Server, Created], Stop]
Ending = Callable[[Process, Created, Created], Awaitable[None]]


def before_fill(app: Process) -> Pause:
    return Pause(app.sessions._backing.copies, "fill")


def get_cold(apps: list[Process], server: Server, made: Created) -> Stop:
    forget(server, made.session_id)
    return before_fill(apps[0]), apps[0].sessions.get(made.session_id)


def get_due(apps: list[Process], server: Server, made: Created) -> Stop:
    later(apps, DUE)
    return before_fill(apps[0]), apps[0].sessions.get(made.session_id)


def get_fresh(apps: list[Process], server: Server, made: Created) -> Stop:
    return PauseAfter(apps[0].database, "read"), apps[0].sessions.get(made.session_id, fresh=True)


def touch_cold(apps: list[Process], server: Server, made: Created) -> Stop:
    forget(server, made.session_id)
    return before_fill(apps[0]), apps[0].sessions.touch(made.session_id)


def touch_due(apps: list[Process], server: Server, made: Created) -> Stop:
    later(apps, DUE)
    return PauseAfter(apps[0].database, "read"), apps[0].sessions.touch(made.session_id)


def rotate_cold(apps: list[Process], server: Server, made: Created) -> Stop:
    forget(server, made.session_id)
    return before_fill(apps[0]), apps[0].sessions.rotate(made.refresh_token)


def rotate_warm(apps: list[Process], server: Server, made: Created) -> Stop:
    stop = Pause(apps[0].sessions._backing.copies, "rotate", after=True)
    return stop, apps[0].sessions.rotate(made.refresh_token)


def list_devices(apps: list[Process], server: Server, made: Created) -> Stop:
    forget(server, made.session_id)
    return PauseAfter(apps[0].database, "read"), apps[0].sessions.list(made.session.user_id)


def reissue(apps: list[Process], server: Server, made: Created) -> Stop:
    return before_fill(apps[0]), apps[0].sessions.reissue(made.session_id)


def step_up(apps: list[Process], server: Server, made: Created) -> Stop:
    stop = Pause(apps[0].sessions._backing.copies, "note_step_ups")
    return stop, apps[0].sessions.set_totp_verified(made.session_id, Context.BOTH, "r1")


READERS: tuple[Reader, ...] = (
    get_cold,
    get_due,
    get_fresh,
    touch_cold,
    touch_due,
    rotate_cold,
    rotate_warm,
    list_devices,
    reissue,
    step_up,
)
ANSWERS_FROM_BEFORE = (list_devices, step_up)
"""They tell of the moment at which they read, and write nothing that lets anybody in."""


async def revoked(app: Process, made: Created, kept: Created) -> None:
    assert (await app.sessions.revoke(made.session_id)).ended == 1


async def revoked_by_another(app: Process, made: Created, kept: Created) -> None:
    assert (await app.sessions.revoke_others(kept.session_id)).ended == 1


async def all_revoked(app: Process, made: Created, kept: Created) -> None:
    assert (await app.sessions.revoke_all(made.session.user_id)).ended == 2


async def suspended(app: Process, made: Created, kept: Created) -> None:
    user_id = made.session.user_id

    async def suspend(connection: AsyncConnection) -> None:
        await connection.execute(update(users).where(users.c.id == user_id).values(status="suspended"))

    assert (await app.sessions.revoke_all(user_id, reason=Reason.SUSPENDED, also=suspend)).ended == 2


async def evicted(app: Process, made: Created, kept: Created) -> None:
    gone = [(await app.log_in(made.session.user_id)).evicted for _ in range(4)]
    assert gone == [(), (), (), (made.session_id,)]


ENDINGS: tuple[Ending, ...] = (revoked, revoked_by_another, all_revoked, suspended, evicted)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
async def test_who_was_stopped_before_writing_brings_no_ended_session_back(
    apps: list[Process], valkey: Server, reader: Reader
) -> None:
    for ending in ENDINGS:
        made = await apps[0].log_in(ending.__name__)
        for app in apps:
            await eventually(lambda app=app: believes_redis(app))  # else a reader asks the database alone
        stop, call = reader(apps, valkey, made)
        stopped = asyncio.create_task(call)
        await stop.reached()
        kept = await apps[1].log_in(ending.__name__)
        await ending(apps[1], made, kept)
        stop.release()
        answer = await stopped
        if reader not in ANSWERS_FROM_BEFORE:
            assert not answer, ending.__name__
        assert not has_live_copy(valkey, made.session_id), ending.__name__
        for app in apps:
            assert await is_dead(app, made.session_id, made.access_token, made.refresh_token)
            assert await app.sessions.require_step_up(made.session_id, Context.BOTH, "r1") is None
            devices = await app.sessions.list(made.session.user_id)
            assert made.session_id not in [device.session_id for device in devices]
        later(apps, DUE)
        for app in apps:
            assert await app.sessions.get(made.session_id) is None, ending.__name__
        alive = await apps[1].sessions.get(kept.session_id) is not None
        assert alive == (ending in (revoked, revoked_by_another, evicted)), ending.__name__


async def test_who_was_stopped_before_writing_undoes_no_refresh_and_no_use(apps: list[Process]) -> None:
    made = await apps[0].log_in()
    stop = before_fill(apps[0])
    stopped = asyncio.create_task(apps[0].sessions.get(made.session_id, fresh=True))
    await stop.reached()
    rotated = await apps[1].sessions.rotate(made.refresh_token)
    assert rotated is not None
    travel(apps[1].store, DUE)
    used = await apps[1].sessions.get(made.session_id)
    stop.release()
    assert await stopped == used
    assert used is not None
    assert used.version == 2
    assert used.last_used_at >= made.session.last_used_at + DUE
    assert await apps[1].sessions.get(made.session_id) == used
    assert await apps[0].sessions.rotate(rotated.tokens.refresh_token) is not None


async def test_a_log_in_that_others_evict_before_it_has_its_copy_is_over(
    apps: list[Process], valkey: Server
) -> None:
    stop = before_fill(apps[0])
    slow = asyncio.create_task(apps[0].log_in())
    await stop.reached()
    gone = [(await apps[1].log_in()).evicted for _ in range(5)]
    stop.release()
    made = await slow
    assert gone[-1] == (made.session_id,)
    for app in apps:
        assert await is_dead(app, made.session_id, made.access_token, made.refresh_token)
    assert live_copies(valkey, "ada") == len(await apps[0].sessions.list("ada")) == 5


# -- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_no_session_is_read_after_its_log_out(apps: list[Process], valkey: Server, warm: bool) -> None:
    zombies: list[str] = []

    async def log_out(number: int) -> None:
        made = await apps[0].log_in(f"user-{number % 100}")
        session_id = made.session_id
        over = False

        async def read(app: Process, *, fresh: bool) -> None:
            for _ in range(6):
                if over:
                    return
                if not warm:
                    forget(valkey, session_id)
                await app.sessions.get(session_id, fresh=fresh)

        async def look() -> None:
            zombies.extend([session_id for app in apps if await app.sessions.get(session_id) is not None])

        readers = [asyncio.create_task(read(app, fresh=fresh)) for app in apps for fresh in (False, True)]
        assert (await apps[number % 2].sessions.revoke(session_id)).ended == 1
        await look()
        over = True
        await asyncio.gather(*readers)
        await look()

    for start in range(0, LOG_OUTS, 10):
        await asyncio.gather(*(log_out(number) for number in range(start, start + 10)))
    assert zombies == []


async def test_eight_refreshes_at_once_get_one_successor_that_is_good(apps: list[Process]) -> None:
    dead: list[str] = []
    several: list[str] = []

    async def refresh(number: int) -> None:
        made = await apps[number % 2].log_in(f"user-{number % 50}")
        found = await asyncio.gather(
            *(apps[turn % 2].sessions.rotate(made.refresh_token) for turn in range(8))
        )
        given = {rotated.tokens.refresh_token for rotated in found if rotated is not None}
        if len(given) != 1 or None in found:
            several.append(made.session_id)
        dead.extend([made.session_id for token in given if await apps[0].sessions.rotate(token) is None])

    for start in range(0, SESSIONS, 10):
        await asyncio.gather(*(refresh(number) for number in range(start, start + 10)))
    assert (several, dead) == ([], [])
    assert [app.told(SessionReuseDetected) for app in apps] == [[], []]


async def test_fifty_writers_of_different_fields_undo_nothing_of_each_other(
    apps: list[Process], valkey: Server
) -> None:
    made = await apps[0].log_in()
    later(apps, DUE)

    async def rotate(token: str) -> str:
        for turn in range(10):
            rotated = await apps[turn % 2].sessions.rotate(token)
            assert rotated is not None
            token = rotated.tokens.refresh_token
        return token

    async def write(number: int) -> None:
        sessions = apps[number % 2].sessions
        if number % 2:
            assert await sessions.set_totp_verified(made.session_id, Context.BOTH, f"r{number}") is not None
        else:
            assert await sessions.get(made.session_id, fresh=number % 4 == 0) is not None

    newest, *_ = await asyncio.gather(rotate(made.refresh_token), *(write(number) for number in range(40)))
    used = (await rows(apps[0].database))[made.session_id]
    found = await apps[1].sessions.get(made.session_id, fresh=True)
    assert found is not None
    assert found.version == used.version == 11
    assert found.last_used_at >= made.session.last_used_at + DUE
    assert {shown.request_id for shown in found.step_ups} == {f"r{number}" for number in range(1, 40, 2)}
    for number in range(1, 40, 2):
        assert await apps[0].sessions.require_step_up(made.session_id, Context.BOTH, f"r{number}")
    assert isinstance(await apps[1].sessions.rotate(newest), Rotated)


async def test_an_end_among_fifty_writers_stays(apps: list[Process], valkey: Server) -> None:
    made = await apps[0].log_in()
    later(apps, DUE)

    async def write(number: int) -> None:
        sessions = apps[number % 2].sessions
        match number % 4:
            case 0:
                await sessions.get(made.session_id, fresh=number % 8 == 0)
            case 1:
                await sessions.rotate(made.refresh_token)
            case 2:
                await sessions.set_totp_verified(made.session_id, Context.BOTH, f"r{number}")
            case _:
                await sessions.reissue(made.session_id)

    writers = [asyncio.create_task(write(number)) for number in range(50)]
    await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED)
    assert (await apps[1].sessions.revoke(made.session_id)).ended == 1
    await asyncio.gather(*writers)
    row = (await rows(apps[0].database))[made.session_id]
    assert row.state == "revoked"
    assert has_tombstone(valkey, made.session_id)
    for app in apps:
        assert await is_dead(app, made.session_id, made.access_token, made.refresh_token)


async def test_log_ins_at_once_leave_five_sessions_in_both_stores(
    apps: list[Process], valkey: Server
) -> None:
    most: list[tuple[int, int]] = []
    over = False

    async def count() -> None:
        while not over:
            active = [row for row in (await rows(apps[0].database)).values() if row.state == "active"]
            most.append((len(active), live_copies(valkey, "ada")))

    counting = asyncio.create_task(count())
    made = await asyncio.gather(*(apps[number % 2].log_in() for number in range(30)))
    over = True
    await counting
    assert len(made) == 30
    assert max(active for active, _ in most) <= 5
    assert max(live for _, live in most) <= 5
    listed = {device.session_id for device in await apps[0].sessions.list("ada")}
    alive = {one.session_id for one in made if await apps[1].sessions.get(one.session_id) is not None}
    assert len(listed) == 5
    assert alive == listed
    assert live_copies(valkey, "ada") == 5


async def test_one_step_up_asked_for_by_fifty_at_once_is_good_for_one(apps: list[Process]) -> None:
    made = await apps[0].log_in()
    await apps[0].sessions.set_totp_verified(made.session_id, Context.SIGNING, "r1")
    found = await asyncio.gather(
        *(
            apps[number % 2].sessions.require_step_up(made.session_id, Context.SIGNING, "r1")
            for number in range(50)
        )
    )
    assert len([step_up for step_up in found if step_up is not None]) == 1
