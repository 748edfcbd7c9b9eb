"""aiocache on Redis with orjson, without its own time-out and without redis-py's."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiocache import RedisCache
from aiocache.lock import RedLock
from aiocache.serializers import BaseSerializer
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.cache.load import TTL_SECONDS, Client, Loader, Use, serve_cache

assert HIREDIS_AVAILABLE

_LEASE_SECONDS = 2  # its own default


class _Orjson(BaseSerializer):
    """Bytes in, bytes out. Its JsonSerializer uses the standard library on text; its pickle was no faster than this."""

    DEFAULT_ENCODING = None

    def dumps(self, value: Any) -> bytes:
        return orjson.dumps(value)

    def loads(self, value: bytes | None) -> Any:
        return None if value is None else orjson.loads(value)


@asynccontextmanager
async def opened(url: str, concurrency: int, use: Use) -> AsyncGenerator[Client]:
    address = urlsplit(url)
    cache = RedisCache(
        endpoint=address.hostname,
        port=address.port,
        serializer=_Orjson(),
        timeout=None,
        pool_max_size=concurrency,
        connection_pool_kwargs={"protocol": 2, "socket_timeout": None},
    )

    # What its decorator `cached_stampede` does. Its lock makes only callers of the same process wait.
    async def get_or_load(identifier: str, loader: Loader) -> Any:
        value = await cache.get(identifier)
        if value is None:
            async with RedLock(cache, identifier, _LEASE_SECONDS):
                value = await cache.get(identifier)
                if value is None:
                    value = await loader()
                    await cache.set(identifier, value, ttl=TTL_SECONDS)
        return value

    try:
        yield Client(partial(cache.set, ttl=TTL_SECONDS), cache.get, cache.multi_get, get_or_load)
    finally:
        await cache.close()


serve_cache(opened)
