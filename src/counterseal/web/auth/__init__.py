"""The routes below `/api/auth`: accounts, log-in, sessions and the second factor, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI
from starlette.types import Scope

from counterseal.app import Counterseal
from counterseal.web.auth.devices import device_routes
from counterseal.web.auth.log_in import log_in_routes
from counterseal.web.auth.log_out import log_out_routes
from counterseal.web.auth.password import password_routes
from counterseal.web.auth.totp import totp_routes
from counterseal.web.charges import OfScope
from counterseal.web.paths import PathTable, readings, route_path
from counterseal.web.sessions import identify_session

AUTH_ROUTES: Final[Mapping[str, str | None]] = {
    "/api/auth/totp": "api",
    "/api/auth/totp/log-in": "auth",
    "/api/auth/me": "api",
    "/api/auth/refresh": "api",
    "/api/auth/log-out": None,
    "/api/auth/sessions": "api",
    "/api/auth/email/send-verification": "api",
}
"""The limiters below `/api/auth`, besides `auth` for everything else there.

Wrong codes are limited by user and by address where a code is looked at, so that right ones do not count. A log-out
charges `api` by itself, for the session that it ends: no other request uses up what it needs.
"""

_GUESSED_AT: Final = PathTable(
    {"/api/auth": True, **{path: limiter != "api" for path, limiter in AUTH_ROUTES.items()}}
)


def install_auth(app: FastAPI, seal: Counterseal) -> None:
    """Add the routes below `/api/auth`."""
    for routes in (log_in_routes, log_out_routes, password_routes, totp_routes, device_routes):
        # As routes of the application itself, so that it knows their paths and methods.
        app.router.routes.extend(routes(seal).routes)


def identify_caller(seal: Counterseal) -> OfScope:
    """For the rate limits: the session, and where secrets are guessed nobody, so that the address is charged.

    An account of one's own would otherwise open a new count for every guess at somebody else's. No round trip.
    """
    identify = identify_session(seal)

    def caller(scope: Scope) -> str | None:
        guesses = any(_GUESSED_AT.find(path) for path in readings(route_path(scope)))
        return None if guesses else identify(scope)

    return caller
