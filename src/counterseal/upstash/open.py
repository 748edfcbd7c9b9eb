"""open_redis_rest: the Redis REST server that the settings ask for, in a database and as a user of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import Settings
from counterseal.store.base import Store
from counterseal.store.open import link_options
from counterseal.store.route import Route
from counterseal.store.target import Target
from counterseal.store.valkey import NativeStore
from counterseal.upstash.app import RedisRest
from counterseal.upstash.tenant import Credentials, confine

EMBEDDED_DATABASE = 1
"""Where `/redis` keeps its data on the embedded server; counterseal's own is in database 0."""

COMMAND_TIMEOUT = timedelta(seconds=30)
"""How long a client's command may take. Clients run scripts and scans of their own, on a connection of their own."""


class ConfinedRoute:
    """The server that another route finds, to be entered as the confined user.

    A server that restarted may have forgotten that user, and a new primary may never have known it, so it is made sure
    of before every connection, through the store that stands beside.
    """

    def __init__(self, route: Route, credentials: Credentials, *, admin: Store) -> None:
        self._route = route
        self._credentials = credentials
        self._admin = admin

    @property
    def description(self) -> str:
        return self._route.description

    async def resolve(self) -> Target:
        given = self._credentials
        target = await self._route.resolve()
        await confine(self._admin, database=given.database, credentials=given)
        return replace(target, username=given.username, password=given.password, database=given.database)

    async def close(self) -> None:
        """Nothing: the other route belongs to its own store."""


@asynccontextmanager
async def open_redis_rest(store: Store, settings: Settings) -> AsyncGenerator[RedisRest | None]:
    """The server for `/redis`, beside an open store of the same settings; None when no token is set.

    Raises `ConfigurationError` when the Redis of `store` can't keep it apart: a Cluster has one database only, and
    Upstash takes no users.
    """
    if settings.web.rest_token is None:
        yield None
        return
    if not isinstance(store, NativeStore):
        raise ConfigurationError(
            "COUNTERSEAL_REST_TOKEN: expected the embedded server, or a REDIS_URL of a single server or Sentinel, as"
            " /redis needs a database of its own; came: a Cluster or Upstash"
        )
    database = await _database(store, settings)
    credentials = await confine(store, database=database)
    route = ConfinedRoute(store.link.route, credentials, admin=store)
    options = replace(link_options(settings), command_timeout=COMMAND_TIMEOUT)
    async with NativeStore(route, options) as own:
        rest = RedisRest(
            own,
            tokens=[settings.web.rest_token.get_secret_value()],
            admin=store,
            database=database,
            reserved=f"{settings.namespace}:",
            may_copy=credentials.may_copy,
        )
        try:
            yield rest
        finally:
            rest.close()


async def _database(store: NativeStore, settings: Settings) -> int:
    taken = (await store.link.route.resolve()).database
    chosen = settings.web.rest_database
    if chosen is None and store.kind == "embedded":
        chosen = EMBEDDED_DATABASE
    if chosen is None:
        raise ConfigurationError(
            "COUNTERSEAL_REST_DATABASE: expected the number of a database for /redis alone, because"
            " COUNTERSEAL_REST_TOKEN and REDIS_URL are set; it is missing"
        )
    if chosen == taken:
        raise ConfigurationError(
            f"COUNTERSEAL_REST_DATABASE: expected another database than counterseal's own; came: {chosen}"
        )
    return chosen
