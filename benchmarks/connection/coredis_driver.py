"""coredis as it comes: it multiplexes by itself, and none of its options made it faster."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import coredis

from benchmarks.connection.load import KEY, VALUE, Client, serve_connection


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Client]:
    async with coredis.Redis.from_url(url) as client:

        async def pipeline(count: int) -> Sequence[Any]:
            async with client.pipeline(transaction=False) as commands:
                for _ in range(count):
                    commands.get(KEY)
            return commands.results or ()

        yield Client(put=partial(client.set, KEY, VALUE), get=partial(client.get, KEY), pipeline=pipeline)


serve_connection(opened)
