"""The web side: one ASGI application over the services of a `Counterseal`, and what other applications may use."""

from counterseal.sessions.session import Session
from counterseal.web.address import client_address
from counterseal.web.app import create_app
from counterseal.web.charges import Charge
from counterseal.web.limits import ROUTES, RateLimitMiddleware, limited
from counterseal.web.reads import note_session_read
from counterseal.web.responses import ResponseCache
from counterseal.web.sessions import (
    SessionMiddleware,
    current_session,
    fresh_session,
    identify_session,
    optional_session,
    recent_login,
    require_totp,
)
from counterseal.web.stored import StoredResponse, response_kind

__all__ = [
    "ROUTES",
    "Charge",
    "RateLimitMiddleware",
    "ResponseCache",
    "Session",
    "SessionMiddleware",
    "StoredResponse",
    "client_address",
    "create_app",
    "current_session",
    "fresh_session",
    "identify_session",
    "limited",
    "note_session_read",
    "optional_session",
    "recent_login",
    "require_totp",
    "response_kind",
]
