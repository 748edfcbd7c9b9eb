"""throttled-py with redis-py's asyncio client, hiredis and RESP2. It keeps redis-py below 8, which has no time-out."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from redis.utils import HIREDIS_AVAILABLE
from throttled.asyncio import RedisStore, Throttled, per_hour

from benchmarks.ratelimit.load import Algorithm, Limit, serve_ratelimit

assert HIREDIS_AVAILABLE


@asynccontextmanager
async def opened(url: str, concurrency: int, algorithm: Algorithm, count: int) -> AsyncGenerator[Limit]:
    options = {
        "CONNECTION_POOL_KWARGS": {"protocol": 2, "max_connections": concurrency},
        "REDIS_CLIENT_KWARGS": {"single_connection_client": concurrency == 1},
    }
    store = RedisStore(server=url, options=options)
    using = "sliding_window" if algorithm == "any" else algorithm
    throttle = Throttled(using=using, quota=per_hour(count), store=store)

    async def limit(identifier: str) -> bool:
        return not (await throttle.limit(identifier)).limited

    try:
        yield limit
    finally:
        client = store._backend.get_client()
        await client.aclose()
        await client.connection_pool.aclose()


serve_ratelimit(opened)
