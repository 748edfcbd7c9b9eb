"""Security schemes: what OpenAPI says of the tokens of counterseal. They only describe, and read nothing.

How a token is read `counterseal.web.caller` says: whatever it does, a dependency that takes one of these asks it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Depends
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBearer
from fastapi.openapi.models import SecurityBase as Model
from fastapi.security.base import SecurityBase

from counterseal.web.cookies import ACCESS, REFRESH


class _Scheme(SecurityBase):
    """A scheme that FastAPI finds among what a dependency takes."""

    def __init__(self, scheme_name: str, model: Model) -> None:
        self.scheme_name = scheme_name
        self.model = model

    async def __call__(self) -> None:
        """Nothing: not to have it called in a thread."""


_BEARER: Final = _Scheme(
    "session_bearer",
    HTTPBearer(
        bearerFormat="JWT",
        description="The access token of a program. Where it is there, the cookies count for nothing.",
    ),
)
_COOKIE: Final = _Scheme(
    "session_cookie",
    APIKey.model_validate(
        {"in": APIKeyIn.cookie, "name": ACCESS, "description": "The access token of a browser."}
    ),
)
_REFRESH: Final = _Scheme(
    "refresh_cookie",
    APIKey.model_validate(
        {"in": APIKeyIn.cookie, "name": REFRESH, "description": "The refresh token of a browser."}
    ),
)


async def _access(
    bearer: Annotated[None, Depends(_BEARER)], cookie: Annotated[None, Depends(_COOKIE)]
) -> None:
    """Either."""


ByAccessToken = Annotated[None, Depends(_access)]
"""What a dependency takes that wants a session. Who calls it leaves it out."""
ByRefreshCookie = Annotated[None, Depends(_REFRESH)]
"""What a route takes that reads a refresh token."""

OR_WITHOUT: Final[dict[str, Any]] = {"security": [{}]}
"""`openapi_extra` of a route that takes a token in its body as well, or does without."""
