"""Client: where a request of a log-in comes from."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import Request

from counterseal.core.settings import WebSettings
from counterseal.web.address import NO_ADDRESS, client_address


class Client(NamedTuple):
    """As it says itself, and as the trusted proxies say; None where nobody does."""

    user_agent: str | None
    ip: str | None


def client_of(request: Request, web: WebSettings) -> Client:
    """The client of a request."""
    ip = client_address(request.scope, web.trusted_proxies, header=web.proxy_header)
    return Client(request.headers.get("User-Agent"), None if ip == NO_ADDRESS else ip)
