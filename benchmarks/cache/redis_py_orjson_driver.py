"""redis-py's asyncio client and orjson, by hand: what an application writes that uses no cache library."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from redis.asyncio import ConnectionPool, Redis
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.cache.load import TTL_SECONDS, Client, Loader, Use, serve_cache

assert HIREDIS_AVAILABLE


def _client(url: str, concurrency: int) -> Redis:
    if concurrency == 1:
        return Redis.from_url(url, protocol=2, socket_timeout=None, single_connection_client=True)
    # A connection for each task: faster than fewer with a queue before them, and never an error.
    pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, max_connections=concurrency)
    return Redis.from_pool(pool)


@asynccontextmanager
async def opened(url: str, concurrency: int, use: Use) -> AsyncGenerator[Client]:
    client = _client(url, concurrency)

    async def put(identifier: str, value: Any) -> None:
        await client.set(identifier, orjson.dumps(value), ex=TTL_SECONDS)

    async def get(identifier: str) -> Any:
        text = await client.get(identifier)
        return None if text is None else orjson.loads(text)

    async def get_many(identifiers: Sequence[str]) -> list[Any]:
        return [None if text is None else orjson.loads(text) for text in await client.mget(identifiers)]

    async def get_or_load(identifier: str, loader: Loader) -> Any:
        value = await get(identifier)
        if value is None:
            value = await loader()
            await put(identifier, value)
        return value

    try:
        yield Client(put, get, get_many, get_or_load)
    finally:
        await client.aclose()


serve_cache(opened)
