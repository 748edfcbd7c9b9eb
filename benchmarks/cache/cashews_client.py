"""How cashews is opened, with and without its client-side cache."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from cashews import Cache
from redis.asyncio import ConnectionPool
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.cache.load import TTL_SECONDS, Client, Loader, Use

assert HIREDIS_AVAILABLE


@asynccontextmanager
async def opened(
    url: str, concurrency: int, use: Use, *, client_side: bool = False
) -> AsyncGenerator[Client]:
    cache = Cache()
    # As it comes, a pool of ten connections with a queue before it, time-outs, RESP3 and a repr() of every value that
    # is read cost it a third. Its own format, pickle, was faster than orjson by `register_type`.
    cache.setup(
        url,
        client_side=client_side,
        connection_pool_class=ConnectionPool,
        max_connections=concurrency + 2,  # and two for the client-side cache
        protocol=2,
        socket_timeout=None,
        health_check_interval=0,
        suppress=False,
        check_repr=False,
    )
    await cache.init()
    loaders: dict[str, Loader] = {}

    # `protected`, its default, makes one of the callers of a process wait for the lock. Without the lock there are
    # four loads, one in each process, and nobody waits for another's.
    @cache(ttl=TTL_SECONDS, key="{identifier}", lock=True)
    async def load(identifier: str) -> Any:
        return await loaders[identifier]()

    async def get_or_load(identifier: str, loader: Loader) -> Any:
        loaders[identifier] = loader
        return await load(identifier)

    async def get_many(identifiers: Sequence[str]) -> Sequence[Any]:
        return await cache.get_many(*identifiers)

    try:
        yield Client(partial(cache.set, expire=TTL_SECONDS), cache.get, get_many, get_or_load)
    finally:
        await cache.close()
