"""ResponseCache: responses of FastAPI and Starlette routes, kept in the cache and given again.

::

    PAGES = response_kind("page", timedelta(minutes=5))

    seal = Counterseal(settings, kinds=[PAGES])
    pages = ResponseCache(seal, kind=PAGES, vary=["Accept-Language"])

    router = APIRouter(route_class=pages.route_class)                       # FastAPI: every GET of this router
    Route("/about", about, middleware=[Middleware(pages)])                  # Starlette: one route
    Mount("/help", routes=[...], middleware=[Middleware(pages)])            # Starlette: everything below a path

    await pages.invalidate("/documents/7")

A response that depends on who asks is kept only by a cache that keeps an entry for each user:

::

    mine = ResponseCache(seal, kind=PAGES, personal=lambda scope: scope.get("state", {}).get("user_id"))
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal.app import Counterseal
from counterseal.cache.kind import Kind
from counterseal.cache.result import Result, Source
from counterseal.core.errors import ConfigurationError, CountersealError
from counterseal.web.capture import Capture, Complete
from counterseal.web.freshness import Refusal
from counterseal.web.load import Load, NotKeptError
from counterseal.web.reads import Reads, WatchedRequest, WatchedScope, reads_of
from counterseal.web.rules import Asked, Rules
from counterseal.web.stored import StoredResponse, answer, is_response_kind, response_of
from counterseal.web.variant import path_tag

logger = logging.getLogger(__name__)

_CACHED_METHODS: Final = frozenset({"GET", "HEAD"})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_CONDITIONS: Final = frozenset({b"if-none-match", b"if-modified-since"})
"""What this cache answers by itself; the handler always makes the whole response."""
_MADE_NOW: Final = frozenset({Source.LOADED, Source.DEGRADED})
_ROUTED: Final = ("endpoint", "path_params", "route")
_MOST_TOLD: Final = 1000
_ROOM_FOR_HEADERS: Final = 4096
_RUNS_AFTER_FAILURE: Final = 64
"""So many of those who waited for a handler that failed have it run at once, in one process."""

CACHE_NAME: Final = "counterseal"
"""What `Cache-Status` calls this cache (RFC 9211)."""


class ResponseCache:
    """Keeps responses to GET, and answers GET and HEAD from them, also with 304. Make it once, with the application.

    - `kind`: what `response_kind` made. Its `ttl` is how long a response lives at most; `max-age` and the like of a
      response shorten that.
    - `vary`: request headers with an entry for each value. They are added to `Vary`.
    - `personal`: names the user who asks, from the scope; there is an entry for each, which
      `seal.cache.invalidate_user` forgets. None passes the request on.
    - `tenant`: names the tenant, from the scope; else the `Host` header does.
    - `tags`: names under which `seal.cache.invalidate_tags` forgets a response, from the scope.
    - `statuses`: those that are kept.
    - `ignore`: what a handler reads although its response does not depend on who asks: request headers, `user`, `auth`,
      and members of `request.state`, as `state.pool`.
    - `query`: names of the query parameters that count; a request with any other is passed on. By default all count.
    - `max_body_bytes`: longer bodies are passed on as they come, and not kept. By default what the kind has room for.

    Raises `ConfigurationError` when these do not fit together.
    """

    def __init__(
        self,
        seal: Counterseal,
        *,
        kind: Kind[StoredResponse],
        vary: Iterable[str] = (),
        personal: Callable[[Scope], str | None] | None = None,
        tenant: Callable[[Scope], str] | None = None,
        tags: Callable[[Scope], Iterable[str]] | None = None,
        statuses: Collection[int] = (200,),
        ignore: Iterable[str] = (),
        query: Iterable[str] | None = None,
        max_body_bytes: int | None = None,
    ) -> None:
        self._cache = seal.cache
        self._values = seal.cache.of(kind)
        self._now_ms = seal.store.now_ms
        self._kind = self._values.kind
        self._rules = Rules(
            self._kind.name,
            vary=vary,
            personal=personal,
            tenant=tenant,
            tags=tags,
            statuses=statuses,
            ignore=ignore,
            query=query,
        )
        room = (self._kind.max_value_bytes - _ROOM_FOR_HEADERS) // 4 * 3
        self._most_bytes = room if max_body_bytes is None else max_body_bytes
        self._told: set[tuple[str, str]] = set()
        self._left: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_RUNS_AFTER_FAILURE)
        faults = self._rules.faults()
        if not is_response_kind(self._kind):
            faults.append(
                f"Kind {self._kind.name}: expected what response_kind({self._kind.name!r}, ...) of counterseal.web"
                " makes; came: a kind that knows nothing of the lifetimes of responses"
            )
        if not 1 <= self._most_bytes <= room:
            faults.append(
                f"max_body_bytes: expected from 1 to {room}, which {self._kind.name} has room for in its"
                f" max_value_bytes; came: {self._most_bytes}"
            )
        if faults:
            raise ConfigurationError(faults)

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """An ASGI application that answers for `app`: this is how `Middleware(cached)` takes it."""

        async def cached(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(app, scope, receive, send)

        return cached

    @cached_property
    def route_class(self) -> type[APIRoute]:
        """For FastAPI: `APIRouter(route_class=cached.route_class)`. An unsafe request to a route of that router that
        succeeds makes the stored responses of its path no longer count.
        """
        serve = self._serve

        class CachedRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handler = super().get_route_handler()

                async def watched(request: Request) -> Response:
                    is_watched = isinstance(request.scope, WatchedScope)
                    return await handler(
                        WatchedRequest(request.scope, request.receive) if is_watched else request
                    )

                return watched

            async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
                if scope["method"] in _CACHED_METHODS and "GET" not in (self.methods or ()):
                    await super().handle(scope, receive, send)
                else:
                    await serve(super().handle, scope, receive, send)

        return CachedRoute

    async def invalidate(self, path: str, *more: str) -> None:
        """Forget every stored response of these paths, whatever query, tenant, user and headers. One round trip.

        A path is what the client asks for, decoded, without its query. Raises `StoreUnavailable`.
        """
        await self._cache.invalidate_tags(*(path_tag(self._kind.name, each) for each in (path, *more)))

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
        elif scope["method"] in _CACHED_METHODS:
            asked = self._rules.ask(scope)
            if isinstance(asked, Asked):
                await self._answer(app, scope, receive, send, asked)
                return
            if asked.refusal is not None:
                self._tell(scope, asked.refusal, reads_of(scope))
            await _pass_on(app, scope, receive, send, told=asked.told)
        elif scope["method"] in _SAFE_METHODS:
            await app(scope, receive, send)
        else:
            await app(scope, receive, self._forgetting(scope["path"], send))

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, asked: Asked) -> None:
        load = Load(
            lambda: self._begin(app, scope, receive, asked),
            judged=self._judged(scope, asked),
            left=self._left,
        )
        try:
            result = await self._find(scope, asked, load)
            if result is not None and result.value is not None:
                own = load.run is not None and result.source in _MADE_NOW
                await self._give(result.value, result, send, asked, own=own)
                if own:
                    await load.taken().finish()
            elif load.run is not None:
                told = f"fwd=uri-miss; detail={load.refusal}" if load.refusal else "fwd=uri-miss"
                await load.taken().deliver(_telling(send, told, head=asked.head))
            elif load.failed:
                await self._pass_on_in_turn(app, scope, receive, send)
            else:
                await _pass_on(app, scope, receive, send, told="fwd=uri-miss")
        finally:
            load.leave()

    async def _find(self, scope: Scope, asked: Asked, load: Load) -> Result[StoredResponse] | None:
        """What is stored, or was made now; None when there is nothing to give to this client."""
        try:
            result = await self._values.find_or_load(asked.key, load, tags=asked.tags)
        except NotKeptError:
            load.failed = True
            return None
        except CountersealError as error:
            self._tell(scope, error.code)
            return None
        if result.value is None or result.source in _MADE_NOW or asked.most_age_s is None:
            return result
        # Who says how old a response may be takes none that has ended (RFC 9111, 5.2.1.1).
        too_old = result.source is Source.STALE or result.value.age_s(self._now_ms()) > asked.most_age_s
        return None if too_old else result

    async def _pass_on_in_turn(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the handler answer by itself, with so many others at once until it begins to answer."""
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._turns)

            async def send_on(message: Message) -> None:
                await turn.aclose()
                await send(message)

            await _pass_on(app, scope, receive, send_on, told="fwd=uri-miss")

    async def _give(
        self, stored: StoredResponse, result: Result[StoredResponse], send: Send, asked: Asked, *, own: bool
    ) -> None:
        source = result.source
        age_s = stored.age_s(self._now_ms())
        if source in _MADE_NOW and not own:
            told = "fwd=uri-miss; collapsed"
        elif source in _MADE_NOW:
            told = "fwd=uri-miss; stored" if result.kept else "fwd=uri-miss"
        else:
            told = "hit" if stored.lives_s is None else f"hit; ttl={stored.lives_s - age_s}"
            told = f"{told}; detail=stale" if source is Source.STALE else told
        await answer(
            stored,
            send,
            request=asked.headers,
            head=asked.head,
            age_s=None if source in _MADE_NOW else age_s,
            told=f"{CACHE_NAME}; {told}",
        )

    def _begin(self, app: ASGIApp, scope: Scope, receive: Receive, asked: Asked) -> Capture:
        """Have the handler make the whole response, whatever the client has already."""
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _CONDITIONS]
        watched = WatchedScope(
            {**scope, "method": "GET", "headers": headers}, asked.reads, unwatched=self._rules.declared
        )

        def judge(status: int, headers: Collection[tuple[str, str]]) -> Refusal | None:
            now = datetime.fromtimestamp(self._now_ms() / 1000, UTC)
            return self._rules.refusal(asked, status, headers, now)

        async def routed(_: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(watched, receive, send)
            finally:
                # Whoever stands outside looks there for the route that was found inside.
                scope.update({name: watched[name] for name in _ROUTED if name in watched})

        return Capture(routed, watched, receive, judge=judge, most_bytes=self._most_bytes)

    def _judged(self, scope: Scope, asked: Asked) -> Callable[[Complete | Refusal], StoredResponse | Refusal]:
        def judged(verdict: Complete | Refusal) -> StoredResponse | Refusal:
            if isinstance(verdict, Complete):
                stored = response_of(
                    verdict.status,
                    verdict.raw_headers,
                    verdict.body,
                    vary=self._rules.vary,
                    personal=self._rules.personal,
                    made_ms=self._now_ms(),
                )
                if stored.size() <= self._kind.max_value_bytes:
                    return stored
                verdict = Refusal.TOO_LARGE
            self._tell(scope, verdict, asked.reads)
            return verdict

        return judged

    def _forgetting(self, path: str, send: Send) -> Send:
        """Send the response to an unsafe request; when it succeeded, its path is forgotten first (RFC 9111, 4.4)."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and 200 <= message["status"] < 400:
                try:
                    await self.invalidate(path)
                except CountersealError as error:
                    logger.warning("stored responses of a changed path could not be forgotten: %s", error)
            await send(message)

        return _telling(send_on, "fwd=method")

    def _tell(self, scope: Scope, reason: str, reads: Reads | None = None) -> None:
        """Log why responses of a route are not kept, once for each reason."""
        endpoint = scope.get("endpoint")
        route = getattr(scope.get("route"), "path", None) or getattr(endpoint, "__qualname__", "(none)")
        if (route, reason) in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add((route, reason))
        what = ", ".join(self._rules.undeclared(reads)) if reads and reason == Refusal.READ else ""
        logger.warning("a response of %s is not kept: %s", route, f"{reason} ({what})" if what else reason)


async def _pass_on(app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, told: str) -> None:
    """Let the handler answer by itself; HEAD as it would answer GET."""
    head = scope["method"] == "HEAD"
    await app({**scope, "method": "GET"} if head else scope, receive, _telling(send, told, head=head))


def _telling(send: Send, told: str, *, head: bool = False) -> Send:
    """Send a response with what this cache has to say of it, without its body for HEAD."""

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            line = (b"cache-status", f"{CACHE_NAME}; {told}".encode())
            message = {**message, "headers": [*message.get("headers", ()), line]}
        elif head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_on
