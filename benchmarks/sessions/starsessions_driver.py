"""starsessions on Redis with orjson, whose reads and writes were faster than with its JsonSerializer."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from redis.asyncio import ConnectionPool, Redis
from redis.utils import HIREDIS_AVAILABLE
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starsessions import SessionMiddleware, load_session
from starsessions.serializers import Serializer
from starsessions.stores.redis import RedisStore

from benchmarks.sessions.load import LIFETIME_SECONDS, USERS, App, Reader, serve_sessions, session

assert HIREDIS_AVAILABLE


class _Orjson(Serializer):
    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)

    def deserialize(self, data: bytes) -> dict[str, Any]:
        return orjson.loads(data) if data else {}


@asynccontextmanager
async def _filled(url: str, concurrency: int) -> AsyncGenerator[tuple[RedisStore, dict[str, str]]]:
    """Its store, and the session id of each user. The ids are as long as its own."""
    if concurrency == 1:
        client = Redis.from_url(url, protocol=2, socket_timeout=None, single_connection_client=True)
    else:
        pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, max_connections=concurrency)
        client = Redis.from_pool(pool)
    store = RedisStore(connection=client)
    ids = {user: f"{number:032x}" for number, user in enumerate(USERS)}
    try:
        for user, session_id in ids.items():
            data = _Orjson().serialize(session(user))
            await store.write(session_id, data, lifetime=LIFETIME_SECONDS, ttl=LIFETIME_SECONDS)
        yield store, ids
    finally:
        await client.aclose()


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Reader]:
    async with _filled(url, concurrency) as (store, ids):
        deserialize = _Orjson().deserialize

        # What its `SessionHandler.load` does, without a request around it.
        async def get(session_id: str) -> dict[str, Any]:
            return deserialize(await store.read(session_id, LIFETIME_SECONDS))

        yield Reader(ids, get, lambda found: found["user_id"])


async def _whose(request: Request) -> JSONResponse:
    await load_session(request)
    return JSONResponse({"user": request.session["user_id"]})


@asynccontextmanager
async def application(url: str, concurrency: int) -> AsyncGenerator[App]:
    async with _filled(url, concurrency) as (store, ids):
        middleware = Middleware(
            SessionMiddleware, store=store, lifetime=LIFETIME_SECONDS, serializer=_Orjson()
        )
        app = Starlette(routes=[Route("/", _whose)], middleware=[middleware])
        yield App(app, {user: f"session={session_id}" for user, session_id in ids.items()})


serve_sessions(reader=opened, app=application)
