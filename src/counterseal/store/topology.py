"""Topology: which node of a Cluster serves which slot, as redis-py reads it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from counterseal.core.background import apart
from counterseal.core.errors import ConfigurationError, CountersealError, StoreUnavailable
from counterseal.store.link import untrusted
from counterseal.store.target import RedisAddress

Place = tuple[str, int]
"""Host and port of a node."""

_ANSWER_WITHIN = 1.0


class Topology:
    """Reads and re-reads the map of a Cluster through any of its nodes. One round trip for each reading."""

    def __init__(self, address: RedisAddress) -> None:
        template = address.template
        options: dict[str, Any] = {
            "username": template.username,
            "password": template.password.get_secret_value() if template.password else None,
            "socket_timeout": _ANSWER_WITHIN,
            "socket_connect_timeout": _ANSWER_WITHIN,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if template.tls is not None:
            options |= {"ssl": True, **template.tls.options}
        self._options = options
        self._nodes = [(node.host, node.port) for node in address.nodes]
        self._client: RedisCluster | None = None
        self._reading = asyncio.Lock()

    async def read(self) -> list[Place | None]:
        """The primary of each of the 16,384 slots, None where nobody serves it.

        Raises `ConfigurationError` when the nodes refuse or are none, else `StoreUnavailable`.
        """
        async with self._reading:
            try:
                client = await apart(self._refreshed())
            except (RedisError, RedisClusterException, OSError) as error:
                await self._drop()
                raise _cause(error) from error
            except BaseException:
                await self._drop()
                raise
            places: list[Place | None] = [None] * 16384
            for slot, nodes in client.nodes_manager.slots_cache.items():
                if nodes:
                    places[slot] = (str(nodes[0].host), int(nodes[0].port))
            return places

    async def _refreshed(self) -> RedisCluster:
        client = self._client
        if client is not None:
            await client.nodes_manager.initialize()
            return client
        client = self._client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in self._nodes],
            require_full_coverage=False,
            **self._options,
        )
        await client.initialize()
        return client

    async def close(self) -> None:
        """Let go of the connections used for reading."""
        async with self._reading:
            await self._drop()

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            await client.aclose()
        except (RedisError, RedisClusterException, OSError):
            return


def _cause(error: BaseException) -> CountersealError:
    """What a failed reading means. redis-py tells why the last node did not answer, in the causes of its error."""
    causes: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in causes:
        causes.append(found)
        found = found.__cause__ or found.__context__
    for cause in causes:
        if isinstance(cause, AuthenticationError):
            return ConfigurationError(
                "REDIS_URL: expected a user and password that the Cluster accepts; it refused them"
            )
        if isinstance(cause, ssl.SSLError):
            return untrusted(cause)
        if isinstance(cause, NoPermissionError):
            return ConfigurationError(
                "REDIS_URL: expected a user who may run CLUSTER SLOTS; the Cluster answered NOPERM"
            )
        if isinstance(cause, ResponseError):
            return ConfigurationError(
                "REDIS_URL: expected the nodes of a Cluster; came: a server that is none, whose URL begins with redis://"
            )
    return StoreUnavailable("no node of the Cluster can be reached")
