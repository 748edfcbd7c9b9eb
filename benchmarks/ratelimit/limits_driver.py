"""limits with redis-py's asyncio client, RESP2 and no time-out; with coredis, its default, it was slower."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from limits import RateLimitItemPerHour
from limits.aio.storage import RedisStorage
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)
from redis.asyncio import ConnectionPool
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.ratelimit.load import Algorithm, Limit, serve_ratelimit

assert HIREDIS_AVAILABLE

# Its moving window keeps a log and was no faster than the counter, but it is quicker to refuse.
_STRATEGIES = {
    "fixed_window": FixedWindowRateLimiter,
    "sliding_window": SlidingWindowCounterRateLimiter,
    "any": MovingWindowRateLimiter,
}


@asynccontextmanager
async def opened(url: str, concurrency: int, algorithm: Algorithm, count: int) -> AsyncGenerator[Limit]:
    pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, max_connections=concurrency)
    storage = RedisStorage(
        f"async+{url}",
        implementation="redispy",
        connection_pool=pool,
        single_connection_client=concurrency == 1,
    )
    limiter, item = _STRATEGIES[algorithm](storage), RateLimitItemPerHour(count)

    async def limit(identifier: str) -> bool:
        return await limiter.hit(item, identifier)

    try:
        yield limit
    finally:
        await storage.bridge.get_connection().aclose()
        await pool.aclose()


serve_ratelimit(opened)
