"""pyrate-limiter with redis-py's asyncio client, RESP2 and no time-out, and a bucket for each identifier."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from pyrate_limiter import (
    GCRA,
    AbstractBucket,
    BucketFactory,
    Duration,
    FixedWindow,
    Limiter,
    Rate,
    RateItem,
    RedisBucket,
    RedisStateStore,
    SlidingWindowLog,
    StateBucket,
)
from redis.asyncio import ConnectionPool, Redis
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.ratelimit.load import IDENTIFIERS, Algorithm, Limit, serve_ratelimit

assert HIREDIS_AVAILABLE


class _Buckets(BucketFactory):
    """A bucket for each identifier, made beforehand and never cleaned, which would cost it time."""

    def __init__(self, buckets: Mapping[str, AbstractBucket]) -> None:
        self._buckets = buckets

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        return RateItem(name, time.time_ns() // 1_000_000, weight=weight)

    def get(self, item: RateItem) -> AbstractBucket:
        return self._buckets[item.name]


async def _bucket(redis: Redis, name: str, algorithm: Algorithm, rate: Rate) -> AbstractBucket:
    if algorithm == "gcra":
        return StateBucket([rate], GCRA(), RedisStateStore(redis, name))
    log = FixedWindow() if algorithm == "fixed_window" else SlidingWindowLog()  # it counts a log either way
    return await RedisBucket.init([rate], redis, name, log)


@asynccontextmanager
async def opened(url: str, concurrency: int, algorithm: Algorithm, count: int) -> AsyncGenerator[Limit]:
    pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, max_connections=concurrency)
    redis = Redis(connection_pool=pool, single_connection_client=concurrency == 1)
    rate = Rate(count, Duration.HOUR)
    buckets = {name: await _bucket(redis, name, algorithm, rate) for name in (*IDENTIFIERS, "check")}
    # `try_acquire_async` has one lock for everybody; this answers an awaitable and does without it.
    acquire = Limiter(_Buckets(buckets)).try_acquire

    async def limit(identifier: str) -> bool:
        return await acquire(identifier, blocking=False)

    try:
        yield limit
    finally:
        await redis.aclose()
        await pool.aclose()


serve_ratelimit(opened)
