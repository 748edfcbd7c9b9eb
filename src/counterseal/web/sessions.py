"""Sessions over HTTP: a middleware that stands around the application, and dependencies that say who asks.

::

    app.add_middleware(SessionMiddleware, seal=seal)

    @app.get("/api/documents")
    async def documents(session: Annotated[Session, Depends(current_session)]): ...

    @app.post("/api/requests/{request_id}/sign")
    async def sign(session: Annotated[Session, Depends(require_totp("signing", consume=False))]): ...

Starlette has no dependencies: there a route calls them, `session = await current_session(request)`. They work for a
WebSocket too, before it is accepted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Final, cast

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection
from starlette.status import WS_1008_POLICY_VIOLATION
from starlette.types import ASGIApp, Receive, Scope, Send

from counterseal.app import Counterseal
from counterseal.core.errors import ConfigurationError, DatabaseUnavailable, StoreError
from counterseal.sessions.device import is_elsewhere
from counterseal.sessions.session import Context, Session
from counterseal.web.caller import caller_of, note_caller
from counterseal.web.charges import OfScope
from counterseal.web.client import client_of
from counterseal.web.origin import SAFE_METHODS, Origins
from counterseal.web.problems import Problem, describe, problem_response
from counterseal.web.raised import answer_raised, note_problem
from counterseal.web.reads import note_session_read
from counterseal.web.security_schemes import ByAccessToken

FRESH_LOGIN: Final = timedelta(minutes=10)
"""How old a log-in may be for a change of the account."""
STEP_UP: Final = timedelta(seconds=300)
"""How old a code may be for a signature."""

_SECOND_FACTOR: Final = "otp"
"""What `amr` says of a session whose user has shown a second factor (RFC 8176)."""

OfConnection = Callable[[HTTPConnection], str | None]
"""Tells something of a request or of a handshake."""


class SessionMiddleware:
    """Lets routes ask who their caller is, and refuses what a page of another site sends. Raw ASGI.

    Nothing is asked of Redis before a route wants to know. Unsafe methods and handshakes of WebSockets must come from a
    page of this site, from one of `origins` (as `https://app.example.com`), or from no page at all: see
    `counterseal.web.origin`. Others get the problem 403 `origin_refused`. This site is `COUNTERSEAL_PUBLIC_URL`, else
    the host that the request names. Raises `ConfigurationError` for what is no origin. No round trip.
    """

    def __init__(self, app: ASGIApp, *, seal: Counterseal, origins: Iterable[str] = ()) -> None:
        self._app = app
        self._seal = seal
        self._origins = Origins(seal.settings.web.public_url, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        note_caller(self._seal, scope)
        if not _is_read(scope) and not self._origins.allow(scope):
            await _refuse(scope, receive, send)
            return
        await answer_raised(self._app, scope, receive, send)


async def optional_session(connection: HTTPConnection) -> Session | None:
    """The live session of whoever asks; None without one. At most one round trip.

    Raises the problem 503 when neither Redis nor the database can say, and 403 as `current_session`.
    """
    session = await _session(connection)
    if session is not None and not _is_read(connection.scope):
        _refuse_elsewhere(connection, session)
    return session


async def current_session(connection: HTTPConnection, _described: ByAccessToken = None) -> Session:
    """The live session of whoever asks, found in Redis. At most one round trip.

    Raises the problem 401 without one: the same for a token that is absent, forged, expired or revoked. For a method
    that may change something, and for a WebSocket, 403 `device_changed` where browser and network are both others than
    those of the session: until a second factor is shown there, or somebody logs in anew. A WebSocket is refused by
    `WebSocketException` instead.
    """
    session = await _needed(connection, fresh=False)
    if not _is_read(connection.scope):
        _refuse_elsewhere(connection, session)
    return session


async def fresh_session(connection: HTTPConnection, _described: ByAccessToken = None) -> Session:
    """As `current_session`, and the database says so too: for signing and for changes of an account.

    403 `device_changed` whatever the method is.
    """
    session = await _needed(connection, fresh=True)
    _refuse_elsewhere(connection, session)
    return session


async def anywhere_session(connection: HTTPConnection, _described: ByAccessToken = None) -> Session:
    """As `fresh_session`, from any browser and network: for what makes them known, a second factor."""
    return await _needed(connection, fresh=True)


async def recent_login(connection: HTTPConnection, _described: ByAccessToken = None) -> Session:
    """As `fresh_session`, of a user who has logged in within the last 10 minutes.

    Raises the problem 403 `fresh_login_needed` otherwise.
    """
    session = await fresh_session(connection)
    if not logged_in_lately(connection, session):
        raise _refusal(
            connection,
            Problem(
                HTTPStatus.FORBIDDEN, "fresh_login_needed", "This needs a log-in of the last 10 minutes."
            ),
        )
    return session


def logged_in_lately(connection: HTTPConnection, session: Session) -> bool:
    """Whether the user of a session has logged in within the last 10 minutes. No round trip."""
    now_ms = caller_of(connection.scope).seal.store.now_ms()
    return now_ms - session.facts.authenticated_ms <= FRESH_LOGIN / timedelta(milliseconds=1)


def require_totp(
    context: Context | str, *, request_id: OfConnection | None = None, consume: bool = True
) -> Callable[[HTTPConnection], Awaitable[Session]]:
    """A dependency that lets only those pass who have shown a second factor: `Depends(require_totp("login"))`.

    - `"login"`: the session began with one, or one was shown in it since. At most one round trip.
    - `"signing"`: one was shown in this session for this request, at most 5 minutes ago. The request is the path
      parameter `request_id`, or what the argument of that name says of the connection; never a header, which could
      name another one than is signed. The code is used up, so a route that fails afterwards needs another, and so
      does one whose body is refused: FastAPI runs dependencies before it judges that. Prefer `consume=False`: the code
      is only looked at, and the route uses it up in its own transaction:
      `seal.sessions.require_step_up(..., within=connection)`.

    Raises the problem 403 `totp_required`, 401 and 503 as `fresh_session`; `ConfigurationError` for another context.
    """
    try:
        wanted = Context(context)
    except ValueError:
        wanted = None
    if wanted not in (Context.LOGIN, Context.SIGNING):
        raise ConfigurationError(f"require_totp: expected login or signing; came: {context!r}")

    async def logged_in(connection: HTTPConnection, _described: ByAccessToken = None) -> Session:
        session = await _needed(connection, fresh=False)
        _refuse_elsewhere(connection, session)
        if _SECOND_FACTOR not in session.amr:
            raise _refusal(connection, _totp_required())
        return session

    async def signing(connection: HTTPConnection, _described: ByAccessToken = None) -> Session:
        session = await fresh_session(connection)
        said = request_id(connection) if request_id else connection.path_params.get("request_id")
        if said is None and request_id is None:
            raise ConfigurationError(
                "require_totp: expected the path parameter request_id; the route has none"
            )
        sessions = caller_of(connection.scope).seal.sessions
        shown = None
        if said:
            with _refusing(connection):
                shown = await sessions.require_step_up(
                    session.session_id,
                    Context.SIGNING,
                    str(cast("object", said)),
                    max_age=STEP_UP,
                    consume=consume,
                )
        if shown is None:
            raise _refusal(connection, _totp_required())
        return session

    return logged_in if wanted is Context.LOGIN else signing


def identify_session(seal: Counterseal) -> OfScope:
    """For `RateLimitMiddleware(identify=...)`: the id of the session that a validly signed access token names.

    It may have ended meanwhile, so it says whom to charge and nothing of what they may do. For the same reason it is no
    user: an old token in other hands would use up what its user has. No round trip.
    """

    def identify(scope: Scope) -> str | None:
        claims = note_caller(seal, scope).claims
        return None if claims is None else claims.session_id

    return identify


def unauthorized() -> Problem:
    """What everybody without a live session is told, whatever the reason."""
    return Problem(
        HTTPStatus.UNAUTHORIZED, "unauthorized", "Log in to do this.", headers={"WWW-Authenticate": "Bearer"}
    )


async def _session(connection: HTTPConnection, *, fresh: bool = False) -> Session | None:
    scope = connection.scope
    # An answer to nobody depends on who asks as well.
    note_session_read(scope)
    with _refusing(connection):
        return await caller_of(scope).session(fresh=fresh)


async def _needed(connection: HTTPConnection, *, fresh: bool) -> Session:
    session = await _session(connection, fresh=fresh)
    if session is None:
        raise _refusal(connection, unauthorized())
    return session


def _is_read(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in SAFE_METHODS


def _refuse_elsewhere(connection: HTTPConnection, session: Session) -> None:
    """Raise the problem of a session that came to another browser and another network at once: it may be stolen."""
    client = client_of(connection, caller_of(connection.scope).seal.settings.web)
    if is_elsewhere(session, client.user_agent, client.ip):
        raise _refusal(
            connection,
            Problem(
                HTTPStatus.FORBIDDEN,
                "device_changed",
                "Browser and network are others than before: show your second factor by"
                " POST /api/auth/totp/verify with the context login, or log in anew.",
            ),
        )


@contextmanager
def _refusing(connection: HTTPConnection) -> Generator[None]:
    """Have a service that can't say refuse, also in an application that knows nothing of its errors."""
    try:
        yield
    except (StoreError, DatabaseUnavailable) as error:
        raise _refusal(connection, describe(error)) from error


def _totp_required() -> Problem:
    return Problem(HTTPStatus.FORBIDDEN, "totp_required", "This needs a code of your second factor first.")


def _refusal(connection: HTTPConnection, problem: Problem) -> Exception:
    """A problem as what is raised, which a WebSocket has no answer for."""
    if connection.scope["type"] == "websocket":
        return WebSocketException(WS_1008_POLICY_VIOLATION, problem.code)
    return note_problem(connection.scope, problem)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(
        HTTPStatus.FORBIDDEN,
        "origin_refused",
        "Requests that change something are taken from pages of this site alone.",
    )
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": WS_1008_POLICY_VIOLATION, "reason": problem.code})
        return
    await problem_response(problem)(scope, receive, send)
