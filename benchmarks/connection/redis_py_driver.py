"""redis-py's asyncio client with hiredis, RESP2, without its time-outs, which cost it up to a third."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.connection.load import KEY, VALUE, Client, serve_connection

assert HIREDIS_AVAILABLE


def _client(url: str, concurrency: int) -> Redis:
    if concurrency == 1:
        return Redis.from_url(url, protocol=2, socket_timeout=None, single_connection_client=True)
    # A connection for each task: faster than fewer with a queue before them, and never an error.
    pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, max_connections=concurrency)
    return Redis.from_pool(pool)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Client]:
    client = _client(url, concurrency)

    async def pipeline(count: int) -> Sequence[Any]:
        commands = client.pipeline(transaction=False)
        for _ in range(count):
            commands.get(KEY)
        return await commands.execute()

    try:
        yield Client(put=partial(client.set, KEY, VALUE), get=partial(client.get, KEY), pipeline=pipeline)
    finally:
        await client.aclose()


serve_connection(opened)
