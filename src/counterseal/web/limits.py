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
from http import HTTPStatus
from typing import Final, cast

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal.app import Counterseal
from counterseal.core.errors import ConfigurationError, UnknownName
from counterseal.web.charges import Charge, Charges, Charging, OfScope
from counterseal.web.paths import PathTable, readings, route_path
from counterseal.web.problems import Problem, problem_response
from counterseal.web.quota import FIELDS, quota_headers
from counterseal.web.raised import answer_raised

ROUTES: Final[Mapping[str, str | None]] = {
    "/api": "api",
    "/api/auth": "auth",
    "/api/auth/totp": "totp",
    "/api/verify": "verification",
    "/api/health": None,
    "/api/jobs": None,
}
"""The limiter of each path and of what is below it; None charges nothing, as every path that none of them covers."""

_CHARGES: Final = "counterseal.charges"


class RateLimitMiddleware:
    """Refuses requests that are too many, and tells on every answer but 401 what is left. Raw ASGI.

    Who is charged is the user that `identify` names, as `user:<id>`, else the client's address (IPv6 by its /64), which
    comes from the trusted proxies of the settings. `plan` names the plan by which a request is limited. An address on
    the deny or allow list is denied or exempt whoever the user is.

    A refusal is a problem with `Retry-After`: `429`, or `503` where Redis can't be reached and the limiter is closed
    without it. Bodies are neither read nor held. Every method is charged, a preflight of CORS too when it comes here:
    a route may answer it. WebSocket connections are not: they are no requests, and have no answer that could tell.
    A path with `.` or `..` is charged to the limiter of either reading, as it is and resolved.

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
        limits = seal.rate_limits
        self._now_ms = seal.store.now_ms
        self._charging = Charging(limits, seal.settings.web, identify=identify, plan=plan)
        self._table = PathTable(
            {path: None if name is None else limits.limiter(name) for path, name in routes.items()}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        charges = scope[_CHARGES] = Charges(self._charging, scope)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = self._told(message, charges)
            await send(message)

        try:
            try:
                for path in readings(route_path(scope)):
                    limiter = self._table.find(path)
                    if limiter is not None:
                        await charges.charge(limiter)
            except Problem as problem:
                await problem_response(problem)(scope, receive, send_on)
            else:
                await answer_raised(self._app, scope, receive, send_on)
        finally:
            # They hold each other, and would wait for the collector of cycles with everything of the request.
            scope.pop(_CHARGES, None)

    def _told(self, message: Message, charges: Charges) -> Message:
        """The start of an answer, which also tells what is left."""
        # A 401 tells nothing: whom it was charged to would show which tokens were good once.
        quotas = charges.quotas if message["status"] != HTTPStatus.UNAUTHORIZED else ()
        told = quota_headers(quotas, self._now_ms()) if quotas else None
        if not told:
            return message
        before = [field for field in message.get("headers", ()) if field[0].lower() not in FIELDS]
        return {**message, "headers": before + told}


def limited(
    name: str,
    *,
    identifier: Callable[[Request], str | Awaitable[str | None] | None] | None = None,
    cost: int = 1,
) -> Callable[[Request], Awaitable[Charge]]:
    """A dependency that charges a limiter besides the one of the path: `Depends(limited("email", cost=5))`.

    `identifier` says who is charged, as `of:<what it says>`: a client may have written it, so it is never taken for an
    address or a user. Without it, or when it says None, it is whom the middleware charges.
    What the path was charged for the same limiter and the same identifier counts towards `cost`, so nothing is charged
    twice. A route that takes the value gets the `Charge`, and may refund it. Needs `RateLimitMiddleware`, on any path.
    Refuses as the middleware does. Raises `ConfigurationError` for a cost that is not a whole number of at least 1, and
    in a request for a limiter that nobody declared. At most one round trip.
    """
    whole = cast("object", cost)
    if not isinstance(whole, int) or isinstance(whole, bool) or whole < 1:
        raise ConfigurationError(f"cost: expected a whole number of at least 1; came: {cost!r}")

    async def charge(request: Request) -> Charge:
        charges = request.scope.get(_CHARGES)
        if not isinstance(charges, Charges):
            raise ConfigurationError(
                "limited: expected RateLimitMiddleware around the application; there is none"
            )
        said = identifier(request) if identifier else None
        who = await said if inspect.isawaitable(said) else said
        try:
            limiter = charges.limits.limiter(name)
        except UnknownName as fault:
            # Named by who wrote the route and not by the client, whom a list of limiters would help to guess.
            raise ConfigurationError(f"limited: {fault}") from fault
        return await charges.charge(limiter, who, cost)

    return charge
