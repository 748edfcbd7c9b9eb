"""AuthRoute: a route whose answers nobody stores, and whose bodies are small."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from counterseal.web.problems import MEDIA_TYPE, Problem

LONGEST_BODY: Final = 16 * 1024

_COMMON: Final = (
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_TEXT: Final = {"type": "string"}
_FAULT: Final = {
    "type": "object",
    "required": ["path", "expected"],
    "properties": {"path": _TEXT, "expected": _TEXT},
}
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        **dict.fromkeys(("type", "title", "detail", "code"), _TEXT),
        "status": {"type": "integer"},
        "faults": {"type": "array", "items": _FAULT},
    },
}
"""A problem, as JSON Schema."""

PENDING: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.ACCEPTED.value: {
        "description": "The database is down: Redis has ended it, and the record will once it is back."
    }
}
"""`responses` of a route that ends sessions."""


class AuthRoute(APIRoute):
    """As FastAPI's, with `Cache-Control: no-store` on every answer and 413 for bodies of more than 16 KiB."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(_Bounded(request.scope, request.receive))
            response.headers["Cache-Control"] = "no-store"
            return response

        return handle


class _Bounded(Request):
    """A request that refuses to be read beyond the longest body."""

    async def body(self) -> bytes:
        declared = self.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > LONGEST_BODY:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        receive, came = self._receive, 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > LONGEST_BODY:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return message

        self._receive = counted
        return await super().body()

    async def json(self) -> Any:
        try:
            return await super().json()
        except (UnicodeDecodeError, RecursionError) as fault:
            # Which FastAPI would call bad syntax of HTTP.
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "request_invalid",
                "The request is not what was expected here.",
                faults=[{"path": "body", "expected": "JSON in UTF-8, neither compressed nor nested deeply."}],
            ) from fault


def auth_router(
    prefix: str = "", *, refusals: tuple[HTTPStatus, ...] = (), route_class: type[AuthRoute] = AuthRoute
) -> APIRouter:
    """A router below `/api/auth`. `refusals` are the errors of its routes, besides those that every one has."""
    return APIRouter(
        prefix=f"/api/auth{prefix}",
        route_class=route_class,
        tags=["auth"],
        responses={status.value: _described(status) for status in sorted((*refusals, *_COMMON))},
    )


def _described(status: HTTPStatus) -> dict[str, Any]:
    return {"description": status.phrase, "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}
