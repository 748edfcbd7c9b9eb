"""Stores for tests of services: on a server of the kit, patient, with a clock that a test may move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from counterseal.testing import travel
from support.relay import Relay
from support.servers import Server

__all__ = ["native_store", "store_on", "travel"]

_PATIENT = LinkOptions(command_timeout=timedelta(seconds=5), connect_timeout=timedelta(seconds=5))


def native_store(
    server: Server | Relay,
    *,
    user: str | None = None,
    password: str | None = None,
    options: LinkOptions = _PATIENT,
) -> NativeStore:
    """A store on a server, or on a relay before one, not yet open; as a user of its ACL when one is named."""
    login = f"{user}:{password}@" if user else ""
    url = f"redis://{login}127.0.0.1:{server.port}/0" if user else server.url
    return NativeStore(FixedRoute(parse_redis_url(url).template), options)


@asynccontextmanager
async def store_on(server: Server) -> AsyncIterator[NativeStore]:
    """An open store on a server."""
    async with native_store(server) as store:
        yield store
