"""counterseal as an application opens it: from REDIS_URL, with its time-outs, breaker, limits and statistics."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from benchmarks.cache.load import TTL_SECONDS, Client, Loader, Use, serve_cache
from benchmarks.cache.profile import Profile, profile
from counterseal.cache.kind import Kind
from counterseal.cache.service import Cache
from counterseal.core.settings import Settings
from counterseal.store.keys import Keys
from counterseal.store.open import open_store

_TTL = timedelta(seconds=TTL_SECONDS)


def _kind(use: Use) -> Kind[Any]:
    if use == "near_immutable":
        return Kind("benchmark", _TTL, type=Profile, near=_TTL)
    return Kind("benchmark", _TTL, near=_TTL if use == "near" else None)


@asynccontextmanager
async def opened(url: str, concurrency: int, use: Use) -> AsyncGenerator[Client]:
    settings = Settings.load({"REDIS_URL": url})
    kind = _kind(use)
    async with open_store(settings) as store:
        cache = Cache(store, keys=Keys(settings.namespace), kinds=(kind,))
        values = cache.of(kind)

        async def get_many(identifiers: Sequence[str]) -> Sequence[Any]:
            found = await values.get_many(identifiers)
            return [found.get(identifier) for identifier in identifiers]

        async def get_or_load(identifier: str, loader: Loader) -> Any:
            return await values.get_or_load(identifier, lambda _: loader())

        try:
            yield Client(values.set, values.get, get_many, get_or_load)
        finally:
            await cache.close()


serve_cache(opened, profile)
