"""The route of logging out. Whatever it answers, a browser has no tokens afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from counterseal.app import Counterseal
from counterseal.core.errors import CountersealError
from counterseal.sessions.session import Reason
from counterseal.web.auth.bodies import Held
from counterseal.web.auth.delivery import clear_tokens
from counterseal.web.auth.named import held_token, named_sessions
from counterseal.web.auth.route import PENDING, AuthRoute, auth_router
from counterseal.web.caller import caller_of
from counterseal.web.limits import limited
from counterseal.web.problems import Problem, describe, problem_of, problem_response
from counterseal.web.security_schemes import OR_WITHOUT, ByAccessToken, ByRefreshCookie

logger = logging.getLogger(__name__)

_LIMITER: Final = "api"


class LogOutRoute(AuthRoute):
    """Ends what the cookies name and clears them also where the body is refused, which happens before the route."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await handler(request)
            except (HTTPException, RequestValidationError) as refused:
                response = await _end_named(request, None)
                if response.status_code < HTTPStatus.BAD_REQUEST:
                    response = problem_response(problem_of(refused))
            clear_tokens(request, response)
            return response

        return handle


def log_out_routes(_: Counterseal) -> APIRouter:
    """`log-out`."""
    router = auth_router(route_class=LogOutRoute)

    @router.post("/log-out", status_code=HTTPStatus.NO_CONTENT, openapi_extra=OR_WITHOUT, responses=PENDING)
    async def log_out(
        request: Request,
        body: Held | None = None,
        _access: ByAccessToken = None,
        _refresh: ByRefreshCookie = None,
    ) -> Response:
        """End the session that the tokens name; either of them is enough. The cookies are cleared whatever happens.

        202 while the database is down: Redis has ended it, and the record will.
        """
        return await _end_named(request, held_token(body))

    return router


async def _end_named(request: Request, held: str | None) -> Response:
    """End every session that the tokens name; the answer is the worst of those for each."""
    answers = [await _end(request, session_id) for session_id in sorted(named_sessions(request, held=held))]
    nothing = Response(status_code=HTTPStatus.NO_CONTENT)
    return max(answers, key=lambda answer: answer.status_code, default=nothing)


async def _end(request: Request, session_id: str) -> Response:
    try:
        # By the session: a token of it may be in other hands, but those have ended it by then.
        await limited(_LIMITER, identifier=lambda _: f"log-out:{session_id}")(request)
        ended = await caller_of(request.scope).seal.sessions.revoke(session_id, reason=Reason.LOGOUT)
    except Problem as refused:
        return problem_response(refused)
    except CountersealError as error:
        logger.warning("a log-out failed: %s", error.code, exc_info=error)
        return problem_response(describe(error))
    return Response(status_code=HTTPStatus.ACCEPTED if ended.pending else HTTPStatus.NO_CONTENT)
