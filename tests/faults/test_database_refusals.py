"""A database that was accepted once and refuses later is unavailable: no setting is wrong, and sessions go on."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from counterseal.core.errors import ConfigurationError, DatabaseUnavailable
from counterseal.database.engine import Database
from support.databases import Databases, Place
from support.servers import Server
from support.session_faults import later, processes

MINUTES = timedelta(minutes=1)


class Guest:
    """A user of PostgreSQL, with everything that is there, who can be locked out."""

    def __init__(self, databases: Databases, place: Place, name: str) -> None:
        assert place.url is not None
        self._databases = databases
        self._own = place
        self._name = name
        self.place = replace(place, url=f"postgresql://{name}:guest@{place.url.rpartition('@')[2]}")

    async def lock_out(self) -> None:
        await self._execute(f"ALTER ROLE {self._name} NOLOGIN")
        await self._execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1")

    async def _execute(self, statement: str) -> None:
        arguments = [self._name] if "$1" in statement else []
        await self._databases.execute(self._own, statement, *arguments)


@pytest.fixture
async def guest(databases: Databases, tmp_path: Path) -> AsyncIterator[Guest]:
    async with databases.place("postgresql", tmp_path / "data") as place:
        await databases.execute(place, "CREATE ROLE guest SUPERUSER LOGIN PASSWORD 'guest'")
        try:
            yield Guest(databases, place, "guest")
        finally:
            await databases.execute(place, "DROP ROLE guest")


async def test_a_user_who_is_locked_out_finds_the_database_unavailable(guest: Guest) -> None:
    async with guest.place.database() as database:
        await guest.lock_out()
        with pytest.raises(DatabaseUnavailable, match="DATABASE_URL"):
            await database.ping()
        with pytest.raises(DatabaseUnavailable):
            async with database.begin():
                pass
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        await guest.place.database().open()


async def test_sessions_go_on_without_a_database_that_locks_its_user_out(
    guest: Guest, valkey: Server
) -> None:
    async with processes(valkey, guest.place, 1) as apps:
        app = apps[0]
        made = await app.log_in()
        await guest.lock_out()
        later(apps, 2 * MINUTES)
        assert await app.sessions.get(made.session_id) is not None
        assert (await app.sessions.revoke(made.session_id)).pending
        assert await app.sessions.get(made.session_id) is None


async def test_a_file_that_is_gone_is_unavailable_while_running(databases: Databases, tmp_path: Path) -> None:
    async with (
        databases.place("sqlite", tmp_path / "data") as place,
        place.database() as database,
        database.read(),
    ):
        (tmp_path / "data").rename(tmp_path / "away")
        with pytest.raises(DatabaseUnavailable, match="COUNTERSEAL_DATA_DIR"):
            await database.ping()  # needs another connection


async def test_a_pooler_without_a_place_left_is_unavailable(tmp_path: Path) -> None:
    fields = b"SFATAL\0VFATAL\0CXX000\0MMax client connections reached\0\0"
    refusal = b"E" + struct.pack("!i", len(fields) + 4) + fields

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(struct.unpack("!i", await reader.readexactly(4))[0] - 4)
        writer.write(refusal)
        writer.close()

    pooler = await asyncio.start_server(refuse, "127.0.0.1", 0, family=socket.AF_INET)
    async with pooler:
        port = pooler.sockets[0].getsockname()[1]
        url = SecretStr(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable")
        with pytest.raises(DatabaseUnavailable):
            await Database(url, data_dir=tmp_path).open()
