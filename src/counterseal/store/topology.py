"""Topology: which node of a Cluster serves which slot, as redis-py reads it."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from counterseal.core.errors import ConfigurationError, StoreUnavailable
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
        """The primary of each of the 16,384 slots, None where nobody serves it. Raises `StoreUnavailable`."""
        async with self._reading:
            try:
                client = self._client
                if client is None:
                    client = RedisCluster(
                        startup_nodes=[ClusterNode(host, port) for host, port in self._nodes],
                        require_full_coverage=False,
                        **self._options,
                    )
                    self._client = client
                    await client.initialize()
                else:
                    await client.nodes_manager.initialize()
            except AuthenticationError as error:
                await self._drop()
                raise ConfigurationError(
                    "REDIS_URL: expected a user and password that the Cluster accepts; it refused them"
                ) from error
            except (RedisError, OSError) as error:
                await self._drop()
                raise StoreUnavailable("no node of the Cluster tells who serves what") from error
            places: list[Place | None] = [None] * 16384
            for slot, nodes in client.nodes_manager.slots_cache.items():
                if nodes:
                    places[slot] = (str(nodes[0].host), int(nodes[0].port))
            return places

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
        except (RedisError, OSError):
            return
