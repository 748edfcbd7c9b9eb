"""Rate limits over HTTP: a middleware that goes by path, and a dependency for single routes of FastAPI.

::

    app.add_middleware(
        RateLimitMiddleware,
        seal=seal,
        routes={**ROUTES, "/api/documents/{id}/pdf": "pdf_generation"},
        identify=lambda scope: scope.get("state", {}).get("user_id"),
    )

    @app.post("/api/mails", dependencies=[Depends(limited("email"))])

The middleware charges one limiter a request, before anything else is done for it: the one of the most specific path of
`routes`. The dependency charges another one besides. It can't take the place of the first: FastAPI reads the body and
runs earlier dependencies before it, so a flood that fails there would count nowhere. Where a path is to be charged to
one limiter alone, it is named in `routes`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal.app import Counterseal
from counterseal.core.errors import ConfigurationError
from counterseal.web.address import client_address
from counterseal.web.charges import Charge, Charges
from counterseal.web.paths import PathTable
from counterseal.web.problems import Problem, problem_response
from counterseal.web.quota import quota_headers

ROUTES: Final[Mapping[str, str | None]] = {
    "/api": "api",
    "/api/auth": "auth",
    "/api/auth/totp": "totp",
    "/api/verify": "verification",
    "/api/health": None,
    "/api/jobs": None,
}
"""The limiter of each path and of what is below it; None charges nothing, as every path that none of them covers."""

OfScope = Callable[[Scope], str | None]
"""Tells something of a request, from what the server and earlier middleware put into its scope."""

_CHARGES: Final = "counterseal.charges"


class RateLimitMiddleware:
    """Refuses requests that are too many, and tells on every answer what is left. Raw ASGI.

    Who is charged is the user that `identify` names, as `user:<id>`, else the client's address (IPv6 by its /64), which
    comes from the trusted proxies of the settings. `plan` names the plan by which a request is limited. An address on
    the deny or allow list is denied or exempt whoever the user is.

    A refusal is a problem with `Retry-After`: `429`, or `503` where Redis can't be reached and the limiter is closed
    without it. Bodies are neither read nor held. Every method is charged, but not the preflight of CORS, which no
    client chooses to send. WebSocket connections are not: they are no requests, and have no answer that could tell.

    Raises `ConfigurationError` for a malformed path and `UnknownName` for a limiter that nobody declared. One round
    trip a request, none while a client is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        seal: Counterseal,
        routes: Mapping[str, str | None] = ROUTES,
        identify: OfScope | None = None,
        plan: OfScope | None = None,
    ) -> None:
        self._app = app
        self._limits = seal.rate_limits
        self._now_ms = seal.store.now_ms
        self._web = seal.settings.web
        self._identify = identify
        self._plan = plan
        self._knows_lists = False
        self._table = PathTable(
            {path: None if name is None else self._limits.limiter(name) for path, name in routes.items()}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        charges = scope[_CHARGES] = self._charges(scope)
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = self._told(message, charges)
            await send(message)

        try:
            limiter = self._table.find(scope["path"].removeprefix(scope.get("root_path", "")))
            if limiter is not None and not _is_preflight(scope):
                await self._read_lists()
                await charges.charge(limiter)
            await self._app(scope, receive, send_on)
        except (
            Problem
        ) as problem:  # of this middleware, or of `limited` in an application that has no handler for it
            if started:
                raise
            await problem_response(problem)(scope, receive, send_on)

    async def _read_lists(self) -> None:
        """Before the first charge: from then on the limiters hear of changes by themselves."""
        if not self._knows_lists:
            await self._limits.lists()
            self._knows_lists = True

    def _told(self, message: Message, charges: Charges) -> Message:
        """The start of an answer, which also tells what is left."""
        quotas = charges.quotas
        if not quotas:
            return message
        now = datetime.fromtimestamp(self._now_ms() / 1000, UTC)
        told = {
            name.lower().encode("ascii"): value.encode("ascii")
            for name, value in quota_headers(quotas, now).items()
        }
        before = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in told]
        return {**message, "headers": [*before, *told.items()]}

    def _charges(self, scope: Scope) -> Charges:
        return Charges(
            self._limits,
            address=lambda: client_address(scope, self._web.trusted_proxies, header=self._web.proxy_header),
            user=lambda: self._identify(scope) if self._identify else None,
            plan=lambda: self._plan(scope) if self._plan else None,
        )


def limited(
    name: str,
    *,
    identifier: Callable[[Request], str | Awaitable[str | None] | None] | None = None,
    cost: int = 1,
) -> Callable[[Request], Awaitable[Charge]]:
    """A dependency that charges a limiter besides the one of the path: `Depends(limited("email", cost=5))`.

    `identifier` says who is charged, as it stands; without it, or when it says None, it is whom the middleware charges.
    What the path was charged for the same limiter and the same identifier counts towards `cost`, so nothing is charged
    twice. A route that takes the value gets the `Charge`, and may refund it. Needs `RateLimitMiddleware`, on any path.
    Refuses as the middleware does. Raises `ConfigurationError` for a cost below 1. At most one round trip.
    """
    if cost < 1:
        raise ConfigurationError(f"cost: expected a whole number of at least 1; came: {cost}")

    async def charge(request: Request) -> Charge:
        charges = request.scope.get(_CHARGES)
        if not isinstance(charges, Charges):
            raise ConfigurationError(
                "limited: expected RateLimitMiddleware around the application; there is none"
            )
        said = identifier(request) if identifier else None
        who = await said if inspect.isawaitable(said) else said
        return await charges.charge(charges.limits.limiter(name), who, cost)

    return charge


def _is_preflight(scope: Scope) -> bool:
    if scope["method"] != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    return "origin" in headers and "access-control-request-method" in headers
