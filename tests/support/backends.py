"""Backends: every connection behind the interface `Store`, made as an application makes it, from settings.

Each is a line of `BACKENDS`, over all of which the contract suite runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from counterseal.core.clock import Clock
from counterseal.core.settings import Settings
from counterseal.store.base import Store
from counterseal.store.open import open_store
from support.client import Client
from support.cluster import Cluster
from support.gateway import gateway_on
from support.relay import TlsRelay
from support.sentinel import SentinelGroup
from support.servers import Server

PATIENT = {
    "COUNTERSEAL_CONNECT_TIMEOUT": "5s",
    "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
    "COUNTERSEAL_REST_TIMEOUT": "5s",
}
"""What is shown here is what comes back, not how soon."""

ACL_USER = "app"
ACL_DATABASE = 3


@dataclass(frozen=True, slots=True)
class Backend:
    """A running Redis, how settings name it, and the kit's own way to look behind the store."""

    kind: str
    variables: Mapping[str, str] = field(repr=False)
    nodes: Sequence[Client]
    """A connection of the kit to every server that takes writes."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    mode: str = "standalone"
    takes_bytes: bool = True
    """False where a transaction takes text only."""

    def store(self, *, clock: Clock | None = None) -> Store:
        """Another store on it, not yet open."""
        return open_store(Settings.load({**PATIENT, **self.variables}), clock=clock)

    def forget_scripts(self) -> None:
        """SCRIPT FLUSH, everywhere."""
        for node in self.nodes:
            node.execute("SCRIPT", "FLUSH", "SYNC")

    def subscribers(self, channel: str) -> int:
        """How many connections listen to a channel."""
        return sum(int(node.execute("PUBSUB", "NUMSUB", channel)[1]) for node in self.nodes)

    def server_ms(self) -> int:
        """The server's time in milliseconds."""
        seconds, micros = self.nodes[0].execute("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


Factory = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Backend]]


@asynccontextmanager
async def native(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    server: Server = request.getfixturevalue("valkey")
    yield Backend("native", {"REDIS_URL": server.url}, [server.client])


@asynccontextmanager
async def unix_socket(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    server: Server = request.getfixturevalue("valkey")
    yield Backend("native", {"REDIS_URL": server.unix_url}, [server.client])


@asynccontextmanager
async def acl_user(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    server, password = request.getfixturevalue("shared_acl_server")
    url = f"redis://{ACL_USER}:{password}@127.0.0.1:{server.port}/{ACL_DATABASE}"
    yield Backend("native", {"REDIS_URL": url}, [server.client], (password,))


@asynccontextmanager
async def tls(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    server: Server = request.getfixturevalue("valkey")
    async with TlsRelay(server) as relay:
        url = f"{relay.url}?ssl_ca_certs={relay.ca_file}"
        yield Backend("native", {"REDIS_URL": url}, [server.client])


@asynccontextmanager
async def redis7(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    server: Server = request.getfixturevalue("redis7")
    yield Backend("native", {"REDIS_URL": server.url}, [server.client])


@asynccontextmanager
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    nodes: Cluster = request.getfixturevalue("cluster")
    clients = [node.client for node in nodes.primaries()]
    yield Backend("cluster", {"REDIS_URL": nodes.url}, clients, mode="cluster")


@asynccontextmanager
async def sentinel(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    group: SentinelGroup = request.getfixturevalue("sentinels")
    yield Backend("sentinel", {"REDIS_URL": group.url}, [group.primary.client])


@asynccontextmanager
async def embedded(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    folder, client, password = request.getfixturevalue("shared_embedded")
    yield Backend("embedded", {"COUNTERSEAL_DATA_DIR": str(folder)}, [client], (password,))


@asynccontextmanager
async def rest(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    server: Server = request.getfixturevalue("valkey")
    async with gateway_on(server) as gateway:
        variables = {"UPSTASH_REDIS_REST_URL": gateway.url, "UPSTASH_REDIS_REST_TOKEN": gateway.token}
        yield Backend("rest", variables, [server.client], (gateway.token,), takes_bytes=False)


BACKENDS: tuple[Factory, ...] = (
    native,
    unix_socket,
    acl_user,
    tls,
    redis7,
    cluster,
    sentinel,
    embedded,
    rest,
)


def only(*factories: Factory) -> pytest.MarkDecorator:
    """Mark a test of the contract that concerns these backends alone."""
    return pytest.mark.parametrize(
        "backend", factories, indirect=True, ids=[factory.__name__ for factory in factories]
    )


def all_but(*factories: Factory) -> pytest.MarkDecorator:
    """Mark a test of the contract that does not concern these backends."""
    return only(*(factory for factory in BACKENDS if factory not in factories))
