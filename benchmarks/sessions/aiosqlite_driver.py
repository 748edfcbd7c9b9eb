"""SQLite's own commit of one row, by the driver that counterseal has: each statement is a transaction."""

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import aiosqlite

from benchmarks.driver import DISK, Request
from benchmarks.sessions.load import IP, USER_AGENT, Writer, serve_sessions

_TABLE = (
    "CREATE TABLE sessions (user_id TEXT, session_id INTEGER, token BLOB, user_agent TEXT, ip TEXT, "
    "PRIMARY KEY (user_id, session_id))"
)
_INSERT = "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)"
_UPDATE = "UPDATE sessions SET token = ? WHERE user_id = ? AND session_id = ?"


@asynccontextmanager
async def opened(request: Request) -> AsyncGenerator[Writer]:
    with tempfile.TemporaryDirectory(prefix="counterseal-bench-", dir=DISK) as name:
        file = Path(name) / "sessions.db"
        async with aiosqlite.connect(file, isolation_level=None) as connection:
            for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", _TABLE):
                await connection.execute(statement)
            numbers, last = count(), dict[str, int]()

            async def create(user: str) -> None:
                last[user] = number = next(numbers)
                await connection.execute(_INSERT, (user, number, number.to_bytes(32), USER_AGENT, IP))

            async def rotate(user: str) -> None:
                token = next(numbers).to_bytes(32)
                done = await connection.execute(_UPDATE, (token, user, last[user]))
                assert done.rowcount == 1

            async def rows() -> int:
                [[told]] = await connection.execute_fetchall("SELECT count(*) FROM sessions")
                return told

            yield Writer(create, rotate, rows)


serve_sessions(writer=opened)
