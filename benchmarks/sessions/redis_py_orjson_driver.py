"""redis-py's asyncio client and orjson, by hand: a session is a text that every read keeps for longer."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from redis.asyncio import ConnectionPool, Redis
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.sessions.load import LIFETIME_SECONDS, USERS, Reader, serve_sessions, session

assert HIREDIS_AVAILABLE


def _client(url: str, concurrency: int) -> Redis:
    if concurrency == 1:
        return Redis.from_url(url, protocol=2, socket_timeout=None, single_connection_client=True)
    pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, max_connections=concurrency)
    return Redis.from_pool(pool)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Reader]:
    client = _client(url, concurrency)
    ids = {user: f"session:{session(user)['session_id']}" for user in USERS}
    try:
        for user, session_id in ids.items():
            await client.set(session_id, orjson.dumps(session(user)), ex=LIFETIME_SECONDS)

        async def get(session_id: str) -> dict[str, Any] | None:
            text = await client.getex(session_id, ex=LIFETIME_SECONDS)
            return None if text is None else orjson.loads(text)

        yield Reader(ids, get, lambda found: found["user_id"])
    finally:
        await client.aclose()


serve_sessions(reader=opened)
