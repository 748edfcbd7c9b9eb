"""Site: the whole application over a server of the kit and a database of its own, and clients that ask it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from counterseal.app import Counterseal
from counterseal.core.settings import Settings
from counterseal.web import create_app
from support.servers import Server

BASE = "https://sign.example"
PASSWORD = "correct horse battery staple"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


class Client(httpx.AsyncClient):
    """A client with an address and cookies of its own. `browser=True`: says what a page of the site would say."""

    def __init__(self, app: ASGIApp, *, peer: str, browser: bool = True, **options: Any) -> None:
        headers = {"Origin": BASE, "Sec-Fetch-Site": "same-origin", "User-Agent": FIREFOX} if browser else {}
        super().__init__(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False, client=(peer, 4711)),
            base_url=BASE,
            headers=headers,
            timeout=30,
            **options,
        )

    async def sign_up(self, email: str, *, password: str = PASSWORD, **members: Any) -> httpx.Response:
        """A new account; logged in afterwards."""
        answer = await self.post("/api/auth/sign-up", json={"email": email, "password": password, **members})
        assert answer.status_code == 201, answer.text
        return answer

    async def log_in(self, email: str, *, password: str = PASSWORD, **members: Any) -> httpx.Response:
        """Log in, whatever is answered."""
        return await self.post("/api/auth/log-in", json={"email": email, "password": password, **members})


class Site:
    """An application over services, and clients that ask it, each from an address of its own."""

    def __init__(self, seal: Counterseal, app: ASGIApp) -> None:
        self.seal = seal
        self.app = app
        self._peers: Iterator[str] = (f"198.51.100.{number}" for number in itertools.count(1))
        self._clients: list[Client] = []

    def browser(self, *, peer: str | None = None) -> Client:
        """A browser without cookies."""
        return self._client(peer, browser=True)

    def program(self, *, peer: str | None = None, token: str | None = None) -> Client:
        """What is no browser: it sends neither `Origin` nor cookies, and a bearer token when it has one."""
        client = self._client(peer, browser=False)
        if token is not None:
            client.headers["Authorization"] = f"Bearer {token}"
        return client

    async def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            await client.aclose()

    def _client(self, peer: str | None, *, browser: bool) -> Client:
        client = Client(self.app, peer=peer or next(self._peers), browser=browser)
        self._clients.append(client)
        return client


@asynccontextmanager
async def seal_on(
    server: Server, folder: Path, variables: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Counterseal]:
    """Open services on a server, with SQLite in a folder."""
    settings = Settings.load(
        {
            "REDIS_URL": server.url,
            "COUNTERSEAL_DATA_DIR": str(folder),
            "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
            **(variables or {}),
        }
    )
    async with Counterseal.open(settings, **options) as seal:
        yield seal


@asynccontextmanager
async def site_on(
    server: Server, folder: Path, variables: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Site]:
    """The application as `serve` has it."""
    async with seal_on(server, folder, variables, **options) as seal:
        site = Site(seal, create_app(seal))
        try:
            yield site
        finally:
            await site.close()


async def lose_database(seal: Counterseal) -> None:
    """Have every later call find no database."""
    await seal.outbox.close()  # a connection that it holds at this moment would be left to the collector
    await seal.database.close()


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an answer that must be a problem with these two, and that nobody stores."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    return body


def set_cookies(answer: httpx.Response) -> dict[str, tuple[str, set[str]]]:
    """The cookies of an answer, from its raw lines: value and attributes by name, each named once."""
    found: dict[str, tuple[str, set[str]]] = {}
    for name, line in answer.headers.raw:
        if name.lower() == b"set-cookie":
            assert len(line) < 4096
            pair, *attributes = line.decode("ascii").split("; ")
            cookie, _, value = pair.partition("=")
            assert cookie not in found
            found[cookie] = (value, set(attributes))
    return found
