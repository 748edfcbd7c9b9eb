"""Fixtures: real servers, started when first asked for and shared by the tests that follow.

A shared server is empty when a test gets it. Afterwards the leak check looks at what the test left, then it is emptied.
A test may freeze and kill shared servers; it changes the configuration of servers of its own only (`servers`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from counterseal.database.engine import Database
from support.certificates import Flavour
from support.cluster import Cluster
from support.databases import BOTH, Databases, Place
from support.leaks import check_leaks
from support.relay import Relay, TlsRelay
from support.requirements import NothingSkipped, everything_required, needs
from support.sentinel import SentinelGroup
from support.servers import Server


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "leaves_keys(reason): the test may leave keys without a TTL, for this reason"
    )
    if everything_required():
        config.pluginmanager.register(NothingSkipped())


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: each waits as well, for servers, disks and time-outs."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Server]:
    """For `valkey`."""
    with Server() as server:
        yield server


@pytest.fixture
def valkey(shared_valkey: Server, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The wheel's Valkey on loopback and a Unix socket, without a password."""
    yield from _lend(shared_valkey, request)


@pytest.fixture(scope="session")
def shared_redis7() -> Iterator[Server]:
    """For `redis7`."""
    with Server(program=needs("redis-server")) as server:
        yield server


@pytest.fixture
def redis7(shared_redis7: Server, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Debian's Redis 7.0, else as `valkey`."""
    yield from _lend(shared_redis7, request)


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Makes servers of the test's own: `servers(password=..., appendonly=True)`, as `Server` takes them, started."""
    made: list[Server] = []

    def make(**options: Any) -> Server:
        server = Server(**options)
        made.append(server)
        server.start()
        return server

    yield make
    try:
        alive = [server for server in made if server.running]
        for server in alive:
            server.thaw()
        check_leaks(request.node, [server.client for server in alive])
    finally:
        for server in made:
            server.close()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """For `cluster`."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three primaries with a replica each; healthy again after every test, with primaries wherever they are now."""
    yield shared_cluster
    shared_cluster.heal()
    try:
        check_leaks(request.node, [node.client for node in shared_cluster.primaries()])
    finally:
        shared_cluster.flush()


@pytest.fixture(scope="session")
def shared_sentinels() -> Iterator[SentinelGroup]:
    """For `sentinels`."""
    with SentinelGroup() as group:
        yield group


@pytest.fixture
def sentinels(shared_sentinels: SentinelGroup, request: pytest.FixtureRequest) -> Iterator[SentinelGroup]:
    """A primary, a replica and three sentinels; healthy again after every test, the primary wherever it is now."""
    yield shared_sentinels
    shared_sentinels.heal()
    try:
        check_leaks(request.node, [shared_sentinels.primary.client])
    finally:
        shared_sentinels.flush()


@pytest.fixture
async def relays() -> AsyncIterator[Callable[..., Awaitable[Relay]]]:
    """Makes relays before a server: `await relays(valkey)`, or with TLS `await relays(valkey, tls="good")`."""
    async with AsyncExitStack() as stack:

        async def make(target: Server | int, *, tls: Flavour | None = None) -> Relay:
            relay = Relay(target) if tls is None else TlsRelay(target, certificate=tls)
            return await stack.enter_async_context(relay)

        yield make


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Makes places for the durable record: `async with databases.place("sqlite", folder) as place`."""
    with Databases(tmp_path_factory.mktemp("databases")) as databases:
        yield databases


@pytest.fixture
async def data_dir(databases: Databases, tmp_path: Path) -> AsyncIterator[Path]:
    """A data folder of the test's own, whose SQLite has the tables of this release: who opens it upgrades nothing."""
    async with databases.place("sqlite", tmp_path) as place:
        yield place.data_dir


@pytest.fixture(params=BOTH)
async def place(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> AsyncIterator[Place]:
    """An empty database with the tables of this release: a copy of its own for each test, SQLite and PostgreSQL."""
    async with databases.place(request.param, tmp_path / "data") as place:
        yield place


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    """`place`, open and patient. `place.database()` is what another process would have beside it."""
    async with place.database() as database:
        yield database


def _lend(server: Server, request: pytest.FixtureRequest) -> Iterator[Server]:
    yield server
    if not server.running:
        server.start()
    server.thaw()
    try:
        check_leaks(request.node, [server.client])
    finally:
        server.flush()
