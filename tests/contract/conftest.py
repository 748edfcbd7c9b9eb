"""Fixtures of the store's contract: `backend` and `store` run each test over every connection.

A store that behaves differently over one of them fails there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from counterseal.core.settings import Fsync
from counterseal.store.base import Store
from counterseal.store.embedded.server import EmbeddedServer
from support.backends import ACL_USER, BACKENDS, Backend
from support.client import Client
from support.leaks import check_leaks
from support.servers import Server


@pytest.fixture(scope="session")
def shared_acl_server() -> Iterator[tuple[Server, str]]:
    """A server that lets in one user, who may run everything but KEYS and CONFIG; and that user's password."""
    password = secrets.token_urlsafe(24)
    rules = (f"{ACL_USER} on >{password} ~* &* +@all -keys -config", "default off")
    with Server(acl=rules) as server:
        yield server, password


@pytest.fixture(scope="session")
def shared_embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Client, str]]:
    """A data folder whose server runs for the whole session, the kit's connection to it, and its password."""
    folder = tmp_path_factory.mktemp("embedded")
    server = EmbeddedServer(folder, fsync=Fsync.EVERYSEC)
    endpoint = in_a_loop_of_its_own(server.ensure())
    password = endpoint.password.get_secret_value()
    try:
        with Client(endpoint.socket, user="default", password=password) as client:
            yield folder, client, password
    finally:
        in_a_loop_of_its_own(server.close())


@pytest.fixture(params=BACKENDS, ids=lambda factory: factory.__name__)
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Each backend in turn, empty."""
    async with request.param(request) as made:
        yield made
        try:
            check_leaks(request.node, made.nodes)
        finally:
            for node in made.nodes:
                node.execute("FLUSHALL", "SYNC")


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    """An open store on each backend in turn."""
    async with backend.store() as opened:
        yield opened


def in_a_loop_of_its_own(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, whether or not a test's loop runs in this thread."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
