"""Route: how to find the server to connect to, asked again before every connection."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol, cast

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from counterseal.core.background import apart
from counterseal.core.errors import ConfigurationError, CountersealError, StoreUnavailable
from counterseal.store.embedded.server import EmbeddedServer
from counterseal.store.target import RedisAddress, Target


class Route(Protocol):
    """Where the primary is now."""

    @property
    def description(self) -> str:
        """The place, for people: no user, no password."""
        ...

    async def resolve(self) -> Target:
        """The server to connect to. Raises `StoreUnavailable` when nobody knows, `ConfigurationError` when none can."""
        ...

    async def close(self) -> None:
        """Let go of what finding it needed."""
        ...


class FixedRoute:
    """Always the same server."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @property
    def description(self) -> str:
        return self._target.description

    async def resolve(self) -> Target:
        return self._target

    async def close(self) -> None:
        return


class EmbeddedRoute:
    """The server of the data folder, started when it does not run."""

    def __init__(self, server: EmbeddedServer, *, database: int = 0) -> None:
        self._server = server
        self._database = database
        self._socket = ""

    @property
    def description(self) -> str:
        return f"unix://{self._socket}?db={self._database}"

    async def resolve(self) -> Target:
        endpoint = await self._server.ensure()
        self._socket = str(endpoint.socket)
        return Target(path=self._socket, password=endpoint.password, database=self._database)

    async def close(self) -> None:
        await self._server.close()


class SentinelRoute:
    """The primary that the sentinels agree on: asked for before each connection, never for a command."""

    def __init__(self, address: RedisAddress, *, timeout: float = 1.0) -> None:
        self._address = address
        self._service = address.service or ""
        first = address.nodes[0]
        options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "username": first.username,
            "password": first.password.get_secret_value() if first.password else None,
        }
        if first.tls is not None:
            options |= {"ssl": True, **first.tls.options}
        self._sentinel = Sentinel([(node.host, node.port) for node in address.nodes], sentinel_kwargs=options)
        self._discovering = asyncio.Lock()

    @property
    def description(self) -> str:
        nodes = ",".join(f"{node.host}:{node.port}" for node in self._address.nodes)
        return f"redis+sentinel://{nodes}/{self._service}/{self._address.template.database}"

    async def resolve(self) -> Target:
        try:
            host, port = await apart(self._discover())
        except (RedisError, OSError) as error:
            raise await self._cause() from error
        template = self._address.template
        return Target(
            host=host,
            port=port,
            database=template.database,
            username=template.username,
            password=template.password,
            tls=template.tls,
        )

    async def _discover(self) -> tuple[str, int]:
        # One at a time: redis-py puts the sentinel that answered first, and two at once would each move it, so that the
        # list has it twice and another one, with its connection, not at all.
        async with self._discovering:
            return cast("tuple[str, int]", await self._sentinel.discover_master(self._service))

    async def close(self) -> None:
        # A sentinel that does not take leave in time, which TLS asks for, is left all the same.
        with suppress(RedisError, OSError):
            await apart(self._sentinel.aclose())

    async def _cause(self) -> CountersealError:
        """Why no primary is named: one more question to every sentinel, all at once."""
        answers = await asyncio.gather(
            *(cast("Any", sentinel).sentinel_masters() for sentinel in self._sentinel.sentinels),
            return_exceptions=True,
        )
        services = [cast("dict[str, object]", answer) for answer in answers if isinstance(answer, dict)]
        if any(self._service in known for known in services):
            return StoreUnavailable("the sentinels know of no primary that is up")
        if services:
            return ConfigurationError(
                "REDIS_URL: expected after the addresses a service that the sentinels know; came: another name"
            )
        if any(isinstance(answer, AuthenticationError) for answer in answers):
            came = "they refused it" if self._address.nodes[0].password else "none is given"
            return ConfigurationError(
                f"REDIS_URL: expected the sentinel_password that the sentinels accept; {came}"
            )
        if any(isinstance(answer, ResponseError) for answer in answers):
            return ConfigurationError(
                "REDIS_URL: expected the addresses of sentinels; came: a server that is none"
            )
        return StoreUnavailable("no sentinel can be reached")
