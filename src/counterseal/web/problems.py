"""Problems: every error over HTTP as `application/problem+json`, with a stable `code` and without internals.

| member | is |
| --- | --- |
| `type` | `about:blank`: what it is stands in `code` |
| `title` | the name of the status, as `Service Unavailable` |
| `status` | the HTTP status |
| `detail` | a sentence for people, without secrets and without addresses |
| `code` | what a program compares, as `store_unavailable` |
| `faults` | with 422 only: where in the request, and what was expected |
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from counterseal.core.errors import (
    CarrierUnavailable,
    CountersealError,
    DatabaseUnavailable,
    SessionExists,
    StoreBusy,
    StoreFull,
    StoreTimeout,
    StoreUnavailable,
    UnknownName,
    UserBlocked,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
"""What a refused client is asked to wait: as long as a breaker stays open at first."""

_SENTENCES: Mapping[type[CountersealError], tuple[HTTPStatus, str]] = {
    StoreTimeout: (HTTPStatus.SERVICE_UNAVAILABLE, "Redis did not answer in time."),
    StoreBusy: (HTTPStatus.SERVICE_UNAVAILABLE, "Too much is under way to Redis; nothing was done."),
    StoreUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "Redis can't be reached."),
    StoreFull: (HTTPStatus.SERVICE_UNAVAILABLE, "Too much waits already; nothing was done."),
    DatabaseUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "The database can't be reached."),
    CarrierUnavailable: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Jobs can't be accepted at the moment; nothing was done.",
    ),
    SessionExists: (HTTPStatus.CONFLICT, "There is a session with this id already."),
    UserBlocked: (HTTPStatus.FORBIDDEN, "This account is blocked."),
}
_CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.UNPROCESSABLE_ENTITY: "request_invalid",
}


class Problem(HTTPException):
    """Raised by a route to answer with an error of its own making.

    Other applications answer it as any `HTTPException`, by its `status_code`, `detail` and `headers`.
    """

    headers: dict[str, str]

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(status.value, detail, dict(headers or {}))
        self.status = status
        self.code = code
        self.members = members


def problem_response(problem: Problem) -> Response:
    """The HTTP answer to a problem; never cached."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
        "code": problem.code,
        **problem.members,
    }
    return Response(
        msgspec.json.encode(body),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **problem.headers},
    )


def unexpected() -> Problem:
    """What is said of an error that nobody foresaw; the log has the rest."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "Something went wrong that should not have; the server's log says what.",
    )


def describe(error: CountersealError) -> Problem:
    """An error of counterseal as a problem. Messages of a server or driver are not passed on."""
    for kind, (status, sentence) in _SENTENCES.items():
        if isinstance(error, kind):
            later = status is HTTPStatus.SERVICE_UNAVAILABLE
            headers = {"Retry-After": str(RETRY_AFTER_S)} if later else {}
            return Problem(status, error.code, sentence, headers=headers)
    if isinstance(error, UnknownName):
        return Problem(HTTPStatus.NOT_FOUND, error.code, str(error))
    problem = unexpected()
    problem.code = error.code
    return problem


def problem_of(error: HTTPException | RequestValidationError) -> Problem:
    """What FastAPI and Starlette raise as a problem. A `Problem` is itself."""
    if isinstance(error, Problem):
        return error
    return _from_http(error) if isinstance(error, HTTPException) else _from_validation(error)


def install_problems(app: FastAPI) -> None:
    """Have every error of an application answered as a problem."""

    async def own(request: Request, error: Any) -> Response:
        return problem_response(error)

    async def ours(request: Request, error: Any) -> Response:
        problem = describe(error)
        if problem.status is HTTPStatus.INTERNAL_SERVER_ERROR:
            route = getattr(request.scope.get("route"), "path", "(none)")
            logger.error("a request to %s failed", route, exc_info=error)
        return problem_response(problem)

    async def of_http(request: Request, error: Any) -> Response:
        problem = problem_of(error)
        if problem.status is HTTPStatus.METHOD_NOT_ALLOWED:
            problem.headers["Allow"] = _allowed(app, request) or problem.headers.get("Allow", "GET")
        return problem_response(problem)

    async def of_validation(request: Request, error: Any) -> Response:
        return problem_response(problem_of(error))

    app.add_exception_handler(Problem, own)
    app.add_exception_handler(CountersealError, ours)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of every route with this path; the first such route refuses a method and names only its own."""
    methods: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] is Match.PARTIAL:
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))


def _from_http(error: HTTPException) -> Problem:
    status = HTTPStatus(error.status_code)
    code = _CODES.get(status, status.name.lower())
    return Problem(status, code, f"{status.description or status.phrase}.", headers=error.headers)


def _from_validation(error: RequestValidationError) -> Problem:
    faults = [_fault(found["type"], found["loc"], found["msg"]) for found in error.errors()]
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "request_invalid",
        "The request is not what was expected here.",
        faults=faults,
    )


def _fault(kind: str, where: Sequence[object], expected: str) -> dict[str, str]:
    if kind == "extra_forbidden":
        # The name of what is too much is the client's own text, and may be anything.
        where, expected = where[:-1], "No members but those that are described."
    return {"path": ".".join(str(part) for part in where), "expected": expected}
