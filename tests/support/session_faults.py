"""Session faults: two processes on the same databases, a database that can be taken away, and what is really stored."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.database.engine import Database
from counterseal.database.tables import user_sessions, users
from counterseal.sessions.identity import split_session_id
from counterseal.store.breaker import BreakerPolicy
from counterseal.store.link import LinkOptions
from support.databases import Databases, Place
from support.postgres import Postgres
from support.processes import kill_process
from support.relay import Relay
from support.servers import Server
from support.sessions import KEYS, Process, process
from support.stores import native_store, store_on, travel
from support.waiting import wait_until

BRIEF = timedelta(seconds=1)
"""How long a database may be silent where a test takes it away."""

FORGIVING = LinkOptions(
    command_timeout=timedelta(seconds=5),
    connect_timeout=timedelta(seconds=5),
    breaker=BreakerPolicy(first_wait=timedelta(milliseconds=50), longest_wait=timedelta(milliseconds=200)),
)
"""A Redis that is back is soon noticed."""


@asynccontextmanager
async def processes(
    server: Server,
    place: Place,
    count: int = 2,
    *,
    timeout: timedelta = timedelta(seconds=30),
    relay: bool = True,
    options: LinkOptions | None = None,
) -> AsyncIterator[list[Process]]:
    """Processes of one application: each has its own store, database and sessions. Stores are patient, or as told."""
    async with AsyncExitStack() as stack:
        made: list[Process] = []
        for _ in range(count):
            opened = store_on(server) if options is None else native_store(server, options=options)
            store = await stack.enter_async_context(opened)
            database = await stack.enter_async_context(place.database(timeout=timeout))
            made.append(await stack.enter_async_context(process(store, database, relay=relay)))
        yield made


@dataclass
class Removable:
    """A database behind a relay, and the way that does not lead through it."""

    through: Place
    beside: Place
    relay: Relay

    def take_away(self) -> None:
        """End its connections and refuse new ones."""
        self.relay.refuse()
        self.relay.cut()

    async def give_back(self) -> None:
        """Take connections again."""
        await self.relay.accept()


@asynccontextmanager
async def removable(databases: Databases, folder: Path) -> AsyncIterator[Removable]:
    """PostgreSQL with the tables of this release, which a test takes away and gives back."""
    async with databases.place("postgresql", folder) as place, Relay(databases.postgres.port) as relay:
        assert place.url is not None
        url = place.url.replace(f":{databases.postgres.port}/", f":{relay.port}/")
        yield Removable(replace(place, url=url), place, relay)


_BESIDE = "counterseal: "
"""How the names of tasks in the background begin."""


class PauseAfter:
    """Stops the first that leaves a transaction of a database: `PauseAfter(database, "read")`.

    What is done beside it, as the relay of the outbox, is not stopped.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._reached = asyncio.Event()
        self._released = asyncio.Event()
        original: Callable[[], Any] = getattr(database, name)

        @asynccontextmanager
        async def paused() -> AsyncGenerator[AsyncConnection]:
            async with original() as connection:
                yield connection
            task = asyncio.current_task()
            if not self._reached.is_set() and task is not None and not task.get_name().startswith(_BESIDE):
                self._reached.set()
                async with asyncio.timeout(30):
                    await self._released.wait()

        setattr(database, name, paused)

    async def reached(self) -> None:
        """Return when somebody stands there."""
        async with asyncio.timeout(30):
            await self._reached.wait()

    def release(self) -> None:
        """Let everybody go on."""
        self._released.set()


def later(apps: list[Process], by: timedelta) -> None:
    """Move the clocks of all processes."""
    for app in apps:
        travel(app.store, by)


def key_of(session_id: str) -> str:
    """Where Redis has the copy or the tombstone of a session."""
    ids = split_session_id(session_id)
    assert ids is not None
    return KEYS.session(*ids)


_FORGET = "if redis.call('HGET', KEYS[1], 'live') ~= 'r' then redis.call('DEL', KEYS[1]) end"


def forget(server: Server, session_id: str) -> None:
    """Have Redis lose a copy, as one whose memory is full does. A tombstone stays."""
    server.execute("EVAL", _FORGET, 1, key_of(session_id))


def has_live_copy(server: Server, session_id: str) -> bool:
    """Whether Redis takes a session for live."""
    return server.execute("HGET", key_of(session_id), "live") not in (None, b"r")


def has_tombstone(server: Server, session_id: str) -> bool:
    """Whether Redis knows that a session has ended."""
    return server.execute("HGET", key_of(session_id), "live") == b"r"


def live_copies(server: Server, user_id: str) -> int:
    """How many sessions of a user Redis takes for live."""
    keys = server.execute("KEYS", f"{KEYS.sessions_of(user_id)}s:*")
    return sum(server.execute("HGET", key, "live") not in (None, b"r") for key in keys)


async def rows(database: Database) -> dict[str, Any]:
    """What the table says, by session: the whole record and the user's epoch."""
    async with database.read() as connection:
        found = await connection.execute(
            select(user_sessions, users.c.session_epoch, users.c.status).join_from(user_sessions, users)
        )
        return {f"{record.user_id}.{record.session_id}": record for record in found}


async def is_dead(app: Process, session_id: str, access_token: str, refresh_token: str) -> bool:
    """Whether a session is good for nothing in a process."""
    sessions = app.sessions
    return (
        await sessions.get(session_id) is None
        and await sessions.get(session_id, fresh=True) is None
        and not await sessions.touch(session_id)
        and await sessions.authenticate(access_token) is None
        and await sessions.rotate(refresh_token) is None
        and await sessions.reissue(session_id) is None
    )


class Killable(Postgres):
    """A PostgreSQL that can be killed as well, and comes back from whatever was done to it."""

    def kill(self) -> None:
        """SIGKILL to all of it, as a machine that fails does."""
        assert self._process is not None
        served = self._backends()
        kill_process(self._process)
        for backend in served:
            with suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
        wait_until(lambda: all(_has_ended(backend) for backend in served))

    def recover(self) -> None:
        """Have it run again. Does nothing when it does."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        else:
            self.thaw()


def _has_ended(pid: int) -> bool:
    """Also when nobody has asked yet how: what it held is free from then on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
