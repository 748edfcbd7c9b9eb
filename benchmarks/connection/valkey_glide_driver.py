"""valkey-glide as it comes: one client that multiplexes, its core in threads of its own."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from glide import Batch, GlideClient, GlideClientConfiguration, NodeAddress

from benchmarks.connection.load import KEY, VALUE, Client, serve_connection


def _address(url: str) -> NodeAddress:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return NodeAddress(unix_socket_path=parts.path)
    return NodeAddress(parts.hostname or "", parts.port or 0)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Client]:
    client = await GlideClient.create(GlideClientConfiguration([_address(url)]))

    async def pipeline(count: int) -> Sequence[Any]:
        batch = Batch(is_atomic=False)
        for _ in range(count):
            batch.get(KEY)
        return await client.exec(batch, raise_on_error=True) or []

    try:
        yield Client(put=partial(client.set, KEY, VALUE), get=partial(client.get, KEY), pipeline=pipeline)
    finally:
        await client.close()


serve_connection(opened)
