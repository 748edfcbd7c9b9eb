"""Gateway: counterseal's Redis REST server before a server of the kit, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from pydantic import SecretStr
from uvicorn.server import ServerState

from counterseal.store.base import Store
from counterseal.store.rest.store import RestStore
from counterseal.upstash.app import RedisRest
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

MOUNT = "/redis"


@dataclass(frozen=True)
class Gateway:
    """A running Redis REST server: the base URL and token that clients take, and what stands behind it."""

    url: str
    token: str
    app: RedisRest
    store: Store

    def client(self, **headers: str) -> httpx.AsyncClient:
        """An HTTP client with the token, to be used as `async with`."""
        return httpx.AsyncClient(headers={"Authorization": f"Bearer {self.token}", **headers}, timeout=20)

    def rest_store(self, **options: Any) -> RestStore:
        """Our own client, not yet open."""
        return RestStore(self.url, SecretStr(self.token), **options)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port of 127.0.0.1, in this event loop: its URL, without a path.

    It is uvicorn's protocol without uvicorn's main loop, which takes a tenth of a second to start and to stop.
    """
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_keep_alive=75)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}, _loop=loop),
        "127.0.0.1",
        0,
    )
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for connection in tuple(state.connections):
            connection.shutdown()
        await eventually(lambda: not state.connections and not state.tasks)


@asynccontextmanager
async def gateway_for(store: Store, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway before a store that is open, mounted as the product mounts it."""
    token = secrets.token_urlsafe(24)
    app = RedisRest(store, tokens=[token], **options)

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": scope["root_path"] + MOUNT}, receive, send)

    async with serving(mounted) as origin:
        try:
            yield Gateway(origin + MOUNT, token, app, store)
        finally:
            app.close()


@asynccontextmanager
async def gateway_on(server: Server, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway before a server of the kit."""
    async with store_on(server) as store, gateway_for(store, **options) as gateway:
        yield gateway
