"""Raised: problems that a dependency raised, answered as such in applications that know nothing of them.

A `Problem` is an `HTTPException`, so an application, or one that is mounted in it, answers it as any other: FastAPI and
Starlette with its `detail` alone, and by a handler of the application's own with whatever that says. What the first two
say becomes the whole problem on its way out; what an own handler says stays.
"""

from __future__ import annotations

from typing import Final, cast

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal.web.problems import Problem, problem_response

_RAISED: Final = "counterseal.raised"
_OF_BODY: Final = frozenset({b"content-type", b"content-length"})


def note_problem(scope: Scope, problem: Problem) -> Problem:
    """The problem, for `raise`, once the middleware around the application knows of it."""
    noted = scope.get(_RAISED)
    if isinstance(noted, list):
        cast("list[Problem]", noted).append(problem)
    return problem


async def answer_raised(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Have an application answer a request, and answer what it raised as a problem. No round trip."""
    # In a list, since what is mounted may have a copy of the scope.
    noted: list[Problem] = scope.setdefault(_RAISED, [])
    held: Message | None = None
    started = False

    async def send_on(message: Message) -> None:
        nonlocal held, started
        started = True
        if message["type"] == "http.response.start" and noted and message["status"] == noted[-1].status:
            held = message  # until the body tells who wrote it
            return
        if held is not None:
            start, held = held, None
            if _is_of_a_framework(message, noted[-1]):
                await _send_problem(noted[-1], start, scope, receive, send)
                return
            await send(start)
        await send(message)

    try:
        await app(scope, receive, send_on)
    except Problem as problem:
        # Of an application without any handler.
        if started or scope["type"] != "http":
            raise
        await problem_response(problem)(scope, receive, send)


def _is_of_a_framework(message: Message, problem: Problem) -> bool:
    """Whether the body is what Starlette or FastAPI say of an `HTTPException`."""
    if message["type"] != "http.response.body" or message.get("more_body", False):
        return False
    body = message.get("body", b"")
    return body in (problem.detail.encode(), msgspec.json.encode({"detail": problem.detail}))


async def _send_problem(problem: Problem, start: Message, scope: Scope, receive: Receive, send: Send) -> None:
    """A problem in place of an answer, with the header fields that others have added to that."""
    response = problem_response(problem)
    own = {name for name, _ in response.raw_headers} | _OF_BODY
    response.raw_headers += [field for field in start.get("headers", ()) if field[0].lower() not in own]
    await response(scope, receive, send)
