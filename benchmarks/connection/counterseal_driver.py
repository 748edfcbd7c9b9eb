"""counterseal as an application opens it: from REDIS_URL, with its time-outs, breaker, limits and counters."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.connection.load import KEY, VALUE, Client, serve_connection
from counterseal.core.settings import Settings
from counterseal.store.open import open_store


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Client]:
    async with open_store(Settings.load({"REDIS_URL": url})) as store:
        yield Client(
            put=partial(store.command, "SET", KEY, VALUE),
            get=partial(store.command, "GET", KEY),
            pipeline=lambda count: store.pipeline([("GET", KEY)] * count),
        )


serve_connection(opened)
