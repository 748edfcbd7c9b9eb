"""Client: where a request comes from."""

from __future__ import annotations

from typing import NamedTuple

from starlette.requests import HTTPConnection

from counterseal.core.settings import WebSettings
from counterseal.web.address import NO_ADDRESS, client_address


class Client(NamedTuple):
    """As it says itself, and as the trusted proxies say; None where nobody does."""

    user_agent: str | None
    ip: str | None


def client_of(connection: HTTPConnection, web: WebSettings) -> Client:
    """The client of a request or of a handshake. No round trip."""
    ip = client_address(connection.scope, web.trusted_proxies, header=web.proxy_header)
    return Client(connection.headers.get("User-Agent"), None if ip == NO_ADDRESS else ip)
