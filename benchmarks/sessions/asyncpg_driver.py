"""PostgreSQL's own commit of one row, by the driver that counterseal has: each statement is a transaction."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count

import asyncpg

from benchmarks.driver import Request
from benchmarks.sessions.load import IP, USER_AGENT, Writer, serve_sessions

_CONNECTIONS = 50  # with more or fewer it was no faster
_TABLE = (
    "CREATE TABLE bare_sessions (user_id text, session_id bigint, token bytea, user_agent text, ip text, "
    "PRIMARY KEY (user_id, session_id))"
)
_INSERT = "INSERT INTO bare_sessions VALUES ($1, $2, $3, $4, $5)"
_UPDATE = "UPDATE bare_sessions SET token = $1 WHERE user_id = $2 AND session_id = $3"


@asynccontextmanager
async def opened(request: Request) -> AsyncGenerator[Writer]:
    size = min(request.options["tasks"], _CONNECTIONS)
    async with asyncpg.create_pool(request.postgres_url, min_size=size, max_size=size) as pool:
        await pool.execute("DROP TABLE IF EXISTS bare_sessions")
        await pool.execute(_TABLE)
        numbers, last = count(), dict[str, int]()

        async def create(user: str) -> None:
            last[user] = number = next(numbers)
            await pool.execute(_INSERT, user, number, number.to_bytes(32), USER_AGENT, IP)

        async def rotate(user: str) -> None:
            token = next(numbers).to_bytes(32)
            assert await pool.execute(_UPDATE, token, user, last[user]) == "UPDATE 1"

        async def rows() -> int:
            return await pool.fetchval("SELECT count(*) FROM bare_sessions")

        yield Writer(create, rotate, rows)


serve_sessions(writer=opened)
