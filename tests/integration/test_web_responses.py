"""Responses kept in the cache: of FastAPI and Starlette routes, on a real server, also while it is gone."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, FastAPI, Header
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal import ConfigurationError, Counterseal, Kind, Settings
from counterseal.web import ResponseCache, StoredResponse, note_session_read, response_kind
from support.backends import PATIENT
from support.gateway import serving
from support.servers import Server
from support.stores import travel
from support.waiting import eventually

PAGES = response_kind("page", timedelta(minutes=5), early_refresh=False)
HIT = "counterseal; hit"
STORED = "counterseal; fwd=uri-miss; stored"
MISS = "counterseal; fwd=uri-miss"

Endpoint = Callable[[Request], Awaitable[Response]]


class House:
    """Services on a server, with what an application over them needs in a test."""

    def __init__(self, seal: Counterseal, server: Server, stack: AsyncExitStack) -> None:
        self.seal = seal
        self.server = server
        self._stack = stack

    def pages(self, kind: Kind[StoredResponse] = PAGES, **options: Any) -> ResponseCache:
        return ResponseCache(self.seal, kind=kind, **options)

    async def client(self, app: ASGIApp) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://a.example", timeout=20)
        )

    async def serving(self, endpoint: Endpoint, **options: Any) -> httpx.AsyncClient:
        """A client of a Starlette application whose every path below / is this endpoint, kept."""
        pages = options.pop("pages", None) or self.pages(**options)
        return await self.client(
            Starlette(routes=[Route("/{path:path}", endpoint, middleware=[Middleware(pages)])])
        )

    def entries(self) -> int:
        return len(self.server.execute("KEYS", "cs:cache:page:*"))


@asynccontextmanager
async def house_on(
    server: Server, folder: Path, *kinds: Kind[Any], timeouts: Mapping[str, str] = PATIENT
) -> AsyncIterator[House]:
    settings = Settings.load({"REDIS_URL": server.url, "COUNTERSEAL_DATA_DIR": str(folder), **timeouts})
    async with AsyncExitStack() as stack:
        seal = await stack.enter_async_context(Counterseal.open(settings, kinds=kinds or [PAGES]))
        yield House(seal, server, stack)


@pytest.fixture
async def house(valkey: Server, data_dir: Path) -> AsyncIterator[House]:
    async with house_on(valkey, data_dir) as house:
        yield house


class Counted:
    """An endpoint that counts its runs, and answers with their number or with what it was given."""

    def __init__(self, make: Callable[[Request], Response] | None = None) -> None:
        self.runs: Counter[str] = Counter()
        self._make = make

    async def __call__(self, request: Request) -> Response:
        self.runs[request.scope["path"]] += 1
        if self._make is not None:
            return self._make(request)
        return PlainTextResponse(f"run {self.runs.total()}")

    @property
    def total(self) -> int:
        return self.runs.total()

    def endpoint(self) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return await self(request)

        return endpoint


def told(answer: httpx.Response) -> str:
    return answer.headers["Cache-Status"]


# -- what is kept ------------------------------------------------------------------------------------------------------


async def test_a_fastapi_path_operation_answers_from_the_cache(house: House) -> None:
    runs = Counter[str]()
    router = APIRouter(prefix="/v1", route_class=house.pages().route_class)

    @router.get("/documents/{number}")
    async def document(number: int) -> dict[str, int]:
        runs["get"] += 1
        return {"number": number, "run": runs["get"]}

    app = FastAPI()
    app.include_router(router, prefix="/api")
    client = await house.client(app)
    first = await client.get("/api/v1/documents/7")
    second = await client.get("/api/v1/documents/7")
    assert (first.status_code, first.json(), told(first)) == (200, {"number": 7, "run": 1}, STORED)
    assert (second.status_code, second.json(), told(second)) == (200, {"number": 7, "run": 1}, HIT)
    assert second.headers["Content-Type"] == first.headers["Content-Type"] == "application/json"
    assert second.headers["Content-Length"] == str(len(second.content))
    assert second.headers["ETag"] == first.headers["ETag"]
    assert ("Age" in first.headers, second.headers["Age"]) == (False, "0")
    assert (await client.get("/api/v1/documents/8")).json() == {"number": 8, "run": 2}
    assert (await client.get("/api/v1/documents/x")).status_code == 422


async def test_a_plain_function_of_fastapi_with_dependencies_runs_once(house: House) -> None:
    runs = Counter[str]()
    ended: list[str] = []
    app = FastAPI()
    app.router.route_class = house.pages().route_class

    @app.get("/sync")
    def sync(tasks: BackgroundTasks, page: int = 1) -> dict[str, int]:
        runs["get"] += 1
        tasks.add_task(ended.append, "task")
        return {"page": page}

    client = await house.client(app)
    for _ in range(3):
        assert (await client.get("/sync?page=2")).json() == {"page": 2}
    assert (runs["get"], ended) == (1, ["task"])


async def test_a_starlette_route_and_everything_below_a_mount_answer_from_the_cache(house: House) -> None:
    counted = Counted()
    kept = [Middleware(house.pages())]
    app = Starlette(
        routes=[
            Route("/about", counted.endpoint(), middleware=kept),
            Mount("/help", routes=[Route("/{page}", counted.endpoint())], middleware=kept),
            Route("/live", counted.endpoint()),
        ]
    )
    client = await house.client(app)
    for path in ("/about", "/help/a", "/help/b"):
        bodies = {(await client.get(path)).text for _ in range(3)}
        assert len(bodies) == 1
    assert counted.runs == {"/about": 1, "/help/a": 1, "/help/b": 1}
    assert (await client.get("/live")).text != (await client.get("/live")).text


async def test_a_whole_application_can_be_kept_and_those_outside_still_see_the_route(house: House) -> None:
    counted = Counted()
    routes: list[str | None] = []

    class Outside:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)
            routes.append(getattr(scope.get("route"), "path", None))

    app = Starlette(
        routes=[Route("/now/{number}", counted.endpoint())],
        middleware=[Middleware(Outside), Middleware(house.pages())],
    )
    client = await house.client(app)
    await client.get("/now/1")
    await client.get("/now/1")
    assert counted.runs == {"/now/1": 1}
    assert routes == ["/now/{number}", None]


async def test_around_a_whole_fastapi_application_nothing_is_kept(house: House) -> None:
    runs = Counter[str]()
    app = FastAPI(middleware=[Middleware(house.pages())])

    @app.get("/")
    async def page() -> int:
        runs["page"] += 1
        return 1

    client = await house.client(app)
    assert told(await client.get("/")) == f"{MISS}; detail=read"
    await client.get("/")
    assert runs["page"] == 2


async def test_a_response_in_the_memory_of_the_process_is_forgotten_like_any_other(
    valkey: Server, data_dir: Path
) -> None:
    kind = response_kind("page", timedelta(minutes=5), near=timedelta(minutes=1))
    async with house_on(valkey, data_dir, kind) as house:
        counted = Counted()
        pages = house.pages(kind)
        client = await house.serving(counted.endpoint(), pages=pages)
        for _ in range(3):
            assert (await client.get("/")).text == "run 1"

        async def is_near() -> bool:
            await client.get("/")
            return house.seal.cache.near_bytes > 0

        await eventually(is_near)
        assert counted.total == 1
        await pages.invalidate("/")
        assert (await client.get("/")).text == "run 2"


async def test_a_small_stream_is_kept_whole(house: House) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"%d," % number

    counted = Counted(lambda request: StreamingResponse(parts(), media_type="text/csv"))
    client = await house.serving(counted.endpoint())
    answers = [await client.get("/") for _ in range(2)]
    assert {answer.content for answer in answers} == {b"0,1,2,3,4,5,6,7,8,9,"}
    assert (counted.total, told(answers[1])) == (1, HIT)


@pytest.mark.parametrize("body", [b"", bytes(range(256)), "ä€😀".encode(), b"\x00" * 5000])
async def test_a_body_comes_back_byte_for_byte(house: House, body: bytes) -> None:
    headers = {"X-Name": "caf\xe9", "Content-Type": "application/x-bytes"}
    client = await house.serving(Counted(lambda request: Response(body, headers=headers)).endpoint())
    first, second = await client.get("/"), await client.get("/")
    assert told(second) == HIT
    assert first.content == second.content == body
    for name in ("X-Name", "Content-Type", "ETag"):
        assert first.headers[name] == second.headers[name]


async def test_other_statuses_are_kept_only_where_declared(house: House) -> None:
    counted = Counted(lambda request: PlainTextResponse("gone", status_code=404))
    plain = await house.serving(counted.endpoint())
    assert [(await plain.get("/a")).status_code for _ in range(2)] == [404, 404]
    assert counted.total == 2
    declared = await house.serving(counted.endpoint(), statuses=(200, 404))
    assert [(await declared.get("/b")).status_code for _ in range(2)] == [404, 404]
    assert counted.total == 3


async def test_headers_of_a_connection_or_of_one_answer_are_not_kept(house: House) -> None:
    once = {
        "Connection": "X-Hop",
        "X-Hop": "1",
        "Keep-Alive": "timeout=5",
        "RateLimit": '"api";r=1;t=1',
        "X-RateLimit-Remaining": "1",
        "Retry-After": "1",
        "X-Kept": "yes",
    }
    client = await house.serving(Counted(lambda request: PlainTextResponse("x", headers=once)).endpoint())
    await client.get("/")
    second = await client.get("/")
    assert told(second) == HIT
    assert second.headers["X-Kept"] == "yes"
    assert not {name.lower() for name in once} - {"x-kept"} & set(second.headers.keys())


# -- whose it is -------------------------------------------------------------------------------------------------------


def who(scope: Scope) -> str | None:
    """The user of a request, read in a way that is not noticed, as middleware outside of the cache would."""
    return next((str(value, "latin-1") for name, value in scope["headers"] if name == b"x-user"), None)


async def test_two_users_and_two_paths_on_one_host_are_four_entries(house: House) -> None:
    counted = Counted(lambda request: PlainTextResponse(f"{who(request.scope)} {request.url.path}"))
    client = await house.serving(counted.endpoint(), personal=who)
    for _ in range(2):
        for user in ("ada", "ben"):
            for path in ("/a", "/b"):
                answer = await client.get(path, headers={"X-User": user})
                assert answer.text == f"{user} {path}"
                assert answer.headers["Cache-Control"] == "private"
    assert (counted.total, house.entries()) == (4, 4)


async def test_long_paths_that_differ_at_their_end_are_two_entries(house: House) -> None:
    counted = Counted(lambda request: PlainTextResponse(request.url.path[-1]))
    client = await house.serving(counted.endpoint())
    for _ in range(2):
        assert (await client.get("/" + "x" * 3000 + "1")).text == "1"
        assert (await client.get("/" + "x" * 3000 + "2")).text == "2"
    assert counted.total == 2


async def test_what_differs_in_host_or_query_is_apart_and_the_order_of_names_does_not_matter(
    house: House,
) -> None:
    counted = Counted(lambda request: PlainTextResponse(f"{request.url.hostname} {request.query_params}"))
    client = await house.serving(counted.endpoint())
    urls = ["/?a=1&b=2", "/?a=2&b=2", "/?a=1&a=2", "/?a=2&a=1", "/?a=1", "/?a=", "/", "/?%61=1&a=2"]
    for host in ("a.example", "b.example"):
        for url in urls:
            assert (await client.get(f"http://{host}{url}")).text.startswith(host)
    assert counted.total == 2 * len(urls)
    assert told(await client.get("/?b=2&a=1")) == HIT
    assert told(await client.get("http://A.EXAMPLE/?a=1&b=2")) == HIT


async def test_only_queries_of_declared_parameters_are_kept(house: House) -> None:
    counted = Counted(lambda request: PlainTextResponse(str(request.query_params)))
    client = await house.serving(counted.endpoint(), query=["page", "per page"])
    for number in range(20):
        for url in (f"/?made-up={number}", f"/?page=1&x={number}", f"/?={number}"):
            answer = await client.get(url)
            assert (answer.status_code, told(answer)) == (200, "counterseal; fwd=bypass; detail=query")
    assert (counted.total, house.entries()) == (60, 0)
    for url in ("/", "/?page=1", "/?page=2&per+page=5", "/?p%61ge=3"):
        assert [told(await client.get(url)) for _ in range(2)] == [STORED, HIT]
    none = await house.serving(counted.endpoint(), query=[])
    assert told(await none.get("/n?page=1")) == "counterseal; fwd=bypass; detail=query"
    assert told(await none.get("/n")) == STORED


async def test_tenants_are_apart_on_one_host(house: House) -> None:
    def tenant(scope: Scope) -> str:
        return Request(scope).headers["x-tenant"]

    counted = Counted(lambda request: PlainTextResponse(tenant(request.scope)))
    client = await house.serving(counted.endpoint(), tenant=tenant, ignore=["x-tenant"])
    for name in ("one", "two", "one", "two"):
        assert (await client.get("/", headers={"X-Tenant": name})).text == name
    assert counted.total == 2


async def test_without_a_known_user_a_personal_cache_keeps_nothing(house: House) -> None:
    counted = Counted()
    client = await house.serving(counted.endpoint(), personal=who)
    answers = [await client.get("/") for _ in range(2)]
    assert [told(answer) for answer in answers] == ["counterseal; fwd=bypass; detail=nobody"] * 2
    assert (counted.total, house.entries()) == (2, 0)


async def test_a_header_may_be_read_for_the_log_where_that_is_declared(house: House) -> None:
    def page(request: Request) -> Response:
        logging.getLogger("access").info("asked by %s", request.headers["user-agent"])
        return PlainTextResponse("x")

    counted = Counted(page)
    careless = await house.serving(counted.endpoint())
    for _ in range(2):
        await careless.get("/a")
    assert counted.total == 2
    declared = await house.serving(counted.endpoint(), ignore=["User-Agent"])
    for _ in range(2):
        await declared.get("/b")
    assert counted.total == 3


async def test_there_is_an_entry_for_each_value_of_a_declared_header(house: House) -> None:
    def hello(request: Request) -> Response:
        word = {"de": "Hallo", "en": "Hello"}.get(request.headers.get("accept-language", ""), "?")
        return PlainTextResponse(word, headers={"Vary": "Accept-Language"})

    counted = Counted(hello)
    client = await house.serving(counted.endpoint(), vary=["Accept-Language", "X-Theme"])
    for _ in range(2):
        for language, word in (("de", "Hallo"), ("en", "Hello")):
            answer = await client.get("/", headers={"Accept-Language": language})
            assert answer.text == word
            assert answer.headers["Vary"] == "accept-language, x-theme"
    assert counted.total == 2


# -- what is never kept ------------------------------------------------------------------------------------------------


class Sessions:
    """A middleware that leaves a session in the scope, as several do."""

    def __init__(self, app: ASGIApp, session: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.app = app
        self.session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            name = who(scope)
            scope["session"] = {**self.session(), **({"user": name} if name else {})}
            scope["user"] = name
            scope.setdefault("state", {}).update(user=name, pool="the pool")
        await self.app(scope, receive, send)


NAMED = ("X-Forwarded-For", "Forwarded", "X-Request-ID", "Traceparent", "Authorization")
"""Headers that are read for limits, logs and traces, and that a handler may well answer from."""

READERS: dict[str, Callable[[Request], object]] = {
    "the session": lambda request: request.session.get("user"),
    "the session, by a copy of the scope": lambda request: {**request.scope}["session"].get("user"),
    "the session, by another copy": lambda request: request.scope.copy()["session"].get("user"),
    "the session, kept elsewhere": lambda request: note_session_read(request.scope),
    "the user": lambda request: request.user,
    "the state": lambda request: request.state.user,
    "the state as a whole": lambda request: dict(request.scope["state"]),
    "a cookie": lambda request: request.cookies.get("session"),
    "a header": lambda request: request.headers.get("x-user"),
}


def reading(read: Callable[[Request], object]) -> Counted:
    def answer(request: Request) -> Response:
        read(request)
        return PlainTextResponse(f"private to {who(request.scope)}")

    return Counted(answer)


class Reading:
    """A middleware that reads every header, as one that limits or logs does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert dict(Request(scope).headers)
        await self.app(scope, receive, send)


@pytest.mark.parametrize("name", NAMED)
async def test_an_answer_made_from_a_header_that_limits_and_logs_read_is_shared_only_where_declared(
    house: House, name: str
) -> None:
    counted = Counted(
        lambda request: PlainTextResponse(request.headers[name], headers={"Cache-Control": "public"})
    )
    undeclared, apart, shared = [
        await house.client(
            Starlette(
                routes=[
                    Route("/{path}", counted.endpoint(), middleware=[Middleware(house.pages(**options))])
                ],
                middleware=[Middleware(Reading)],
            )
        )
        for options in ({}, {"vary": [name]}, {"ignore": [name]})
    ]
    for value in ("one", "two", "one", "two"):
        answer = await undeclared.get("/a", headers={name: value})
        assert (answer.text, "stored" in told(answer)) == (value, False)
        assert (await apart.get("/b", headers={name: value})).text == value
        assert (await shared.get("/c", headers={name: value})).text == "one"
    assert counted.runs == {"/a": 4, "/b": 2, "/c": 1}


@pytest.mark.parametrize("name", NAMED)
async def test_what_reads_headers_outside_of_the_cache_keeps_nothing_out(house: House, name: str) -> None:
    counted = Counted(lambda request: PlainTextResponse("x", headers={"Cache-Control": "public"}))
    app = Starlette(
        routes=[Route("/", counted.endpoint(), middleware=[Middleware(house.pages())])],
        middleware=[Middleware(Reading)],
    )
    client = await house.client(app)
    for value in ("one", "two"):
        assert (await client.get("/", headers={name: value})).text == "x"
    assert counted.total == 1


@pytest.mark.parametrize("what", READERS)
async def test_a_response_made_from_what_tells_users_apart_is_not_kept(house: House, what: str) -> None:
    counted = reading(READERS[what])
    app = Starlette(
        routes=[Route("/", counted.endpoint(), middleware=[Middleware(house.pages())])],
        middleware=[Middleware(Sessions)],
    )
    client = await house.client(app)
    for user in ("ada", "ben", "ada"):
        answer = await client.get("/", headers={"X-User": user, "Cookie": f"session={user}"})
        assert answer.text == f"private to {user}"
        assert "stored" not in told(answer)
    assert counted.total == 3


@pytest.mark.parametrize("what", [what for what in READERS if what != "a header"])
async def test_it_is_kept_for_each_user_where_that_is_declared(house: House, what: str) -> None:
    counted = reading(READERS[what])
    pages = house.pages(personal=who)
    app = Starlette(
        routes=[Route("/", counted.endpoint(), middleware=[Middleware(pages)])],
        middleware=[Middleware(Sessions)],
    )
    client = await house.client(app)
    for user in ("ada", "ben", "ada", "ben"):
        answer = await client.get("/", headers={"X-User": user, "Cookie": f"session={user}"})
        assert answer.text == f"private to {user}"
    assert counted.total == 2


async def test_what_an_application_keeps_in_the_state_of_its_requests_can_be_declared(house: House) -> None:
    def page(request: Request) -> Response:
        request.state.written = "by the handler"
        return PlainTextResponse(f"{request.state.pool} {request.state.written}")

    seen: list[str] = []

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        await kept(scope, receive, send)
        seen.append(scope["state"].get("written"))

    counted = Counted(page)
    pages = house.pages(ignore=["state.pool"])
    kept = Sessions(Starlette(routes=[Route("/", counted.endpoint(), middleware=[Middleware(pages)])]))
    client = await house.client(outside)
    for _ in range(2):
        assert (await client.get("/")).text == "the pool by the handler"
    assert counted.total == 1
    assert seen == ["by the handler", None]


async def test_a_session_read_is_covered_by_varying_on_the_cookie(house: House) -> None:
    counted = reading(READERS["the session"])
    app = Starlette(
        routes=[Route("/", counted.endpoint(), middleware=[Middleware(house.pages(vary=["Cookie"]))])],
        middleware=[Middleware(Sessions)],
    )
    client = await house.client(app)
    for user in ("ada", "ben", "ada", "ben"):
        answer = await client.get("/", headers={"X-User": user, "Cookie": f"session={user}"})
        assert answer.text == f"private to {user}"
        assert answer.headers["Vary"] == "cookie"
    assert counted.total == 2


async def test_a_handler_that_looks_for_a_cookie_and_finds_none_is_noticed_too(house: House) -> None:
    counted = Counted(lambda request: PlainTextResponse(str(sorted(request.cookies))))
    client = await house.serving(counted.endpoint())
    assert (await client.get("/")).text == "[]"
    assert (await client.get("/", headers={"Cookie": "a=1"})).text == "['a']"
    assert house.entries() <= 1  # what says that nothing is to be kept


async def test_a_session_that_is_read_while_the_body_is_sent_counts_too(house: House) -> None:
    runs = 0

    async def endpoint(request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "private to "
            yield request.session["user"]

        nonlocal runs
        runs += 1
        return StreamingResponse(parts())

    app = Starlette(
        routes=[Route("/", endpoint, middleware=[Middleware(house.pages())])],
        middleware=[Middleware(Sessions)],
    )
    client = await house.client(app)
    for user in ("ada", "ben"):
        assert (await client.get("/", headers={"X-User": user})).text == f"private to {user}"
    assert runs == 2


async def test_a_session_that_was_read_before_the_route_keeps_it_out_from_the_start(house: House) -> None:
    class Early:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                note_session_read(scope)
            await self.app(scope, receive, send)

    counted = Counted()
    app = Starlette(
        routes=[Route("/", counted.endpoint(), middleware=[Middleware(house.pages())])],
        middleware=[Middleware(Early)],
    )
    client = await house.client(app)
    answers = [await client.get("/") for _ in range(2)]
    assert [told(answer) for answer in answers] == ["counterseal; fwd=bypass; detail=read"] * 2
    assert (counted.total, house.entries()) == (2, 0)


async def test_a_header_that_fastapi_hands_over_must_be_declared(house: House) -> None:
    runs = Counter[str]()

    def app_with(**options: Any) -> FastAPI:
        app = FastAPI()
        app.router.route_class = house.pages(**options).route_class

        @app.get("/")
        async def page(x_api_key: str = Header()) -> str:
            runs["page"] += 1
            return x_api_key

        return app

    careless, declared = await house.client(app_with()), await house.client(app_with(vary=["X-API-Key"]))
    for key in ("one", "two", "one"):
        assert (await careless.get("/", headers={"X-API-Key": key})).json() == key
    assert (await careless.get("/")).status_code == 422
    assert runs["page"] == 3
    for key in ("one", "two", "one"):
        assert (await declared.get("/", headers={"X-API-Key": key})).json() == key
    assert runs["page"] == 5
    assert (await declared.get("/")).status_code == 422


async def test_a_cookie_keeps_out_what_was_made_from_it_and_nothing_else(house: House) -> None:
    runs = Counter[str]()
    app = FastAPI(middleware=[Middleware(Sessions)])
    app.router.route_class = house.pages().route_class

    @app.get("/public")
    async def public() -> str:
        runs["public"] += 1
        return "for all"

    @app.get("/cookie")
    async def cookie(session: str = Cookie()) -> str:
        runs["cookie"] += 1
        return session

    @app.get("/request")
    async def by_request(request: Request) -> str | None:
        runs["request"] += 1
        return request.cookies.get("session")

    @app.get("/session")
    async def by_session(request: Request) -> str:
        runs["session"] += 1
        return request.session["user"]

    client = await house.client(app)
    for user in ("ada", "ben", "ada"):
        headers = {"Cookie": f"session={user}", "X-User": user}
        assert (await client.get("/public", headers=headers)).json() == "for all"
        for path in ("/cookie", "/request", "/session"):
            assert (await client.get(path, headers=headers)).json() == user
    assert runs == {"public": 1, "cookie": 3, "request": 3, "session": 3}


NEVER: dict[str, dict[str, str]] = {
    "set-cookie": {"Set-Cookie": "session=1"},
    "no-store": {"Cache-Control": "no-store"},
    "private": {"Cache-Control": "max-age=60, private"},
    "no-cache": {"Cache-Control": "no-cache"},
    "expired": {"Cache-Control": "max-age=0"},
    "vary": {"Vary": "*"},
    "partial": {"Content-Range": "bytes 0-1/2"},
}


@pytest.mark.parametrize("reason", NEVER)
async def test_what_a_response_forbids_is_not_kept_and_the_reason_is_told(house: House, reason: str) -> None:
    counted = Counted(lambda request: PlainTextResponse("x", headers=NEVER[reason]))
    client = await house.serving(counted.endpoint())
    answers = [await client.get("/") for _ in range(3)]
    assert counted.total == 3
    assert told(answers[0]) == f"{MISS}; detail={reason}"
    for name, value in NEVER[reason].items():
        assert all(answer.headers[name] == value for answer in answers)


async def test_why_is_logged_once_for_each_route(house: House, caplog: pytest.LogCaptureFixture) -> None:
    client = await house.serving(reading(READERS["a cookie"]).endpoint())
    with caplog.at_level(logging.WARNING, "counterseal.web.responses"):
        for number in range(5):
            await client.get(f"/{number}", headers={"Cookie": "session=secret"})
    lines = [record.getMessage() for record in caplog.records if record.name == "counterseal.web.responses"]
    assert lines == ["a response of /{path:path} is not kept: read (cookie)"]


@pytest.mark.parametrize(
    ("control", "runs"),
    [("", 4), ("max-age=60", 4), ("public", 2), ("s-maxage=60", 2), ("must-revalidate", 2)],
)
async def test_authorised_requests_share_only_what_says_so_and_never_with_others(
    house: House, control: str, runs: int
) -> None:
    counted = Counted(
        lambda request: PlainTextResponse("x", headers={"Cache-Control": control} if control else {})
    )
    client = await house.serving(counted.endpoint())
    for _ in range(3):
        await client.get("/", headers={"Authorization": "Bearer a"})
    await client.get("/")
    await client.get("/")
    assert counted.total == runs


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 404])
async def test_a_client_that_has_the_response_gets_304(house: House, status: int) -> None:
    conditions: list[object] = []

    def page(request: Request) -> Response:
        conditions.append(request.headers.get("if-none-match"))
        headers = {
            "Cache-Control": "max-age=60",
            "X-Other": "1",
            "Last-Modified": "Mon, 23 Nov 2026 09:00:00 GMT",
        }
        return JSONResponse({"a": 1}, headers=headers, status_code=status)

    client = await house.serving(Counted(page).endpoint(), vary=["Accept"], statuses=(200, 404))
    whole = await client.get("/")
    etag = whole.headers["ETag"]
    for condition in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = await client.get("/", headers={"If-None-Match": condition})
        if status == 404:
            assert answer.status_code == 404
            continue
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
        assert answer.headers["Cache-Control"] == "max-age=60"
        assert answer.headers["Vary"] == "accept"
        assert not {"content-type", "content-length", "last-modified"} & set(answer.headers.keys())
    other = await client.get("/", headers={"If-None-Match": '"x"'})
    assert (other.status_code, other.content) == (status, whole.content)
    assert conditions == [None]


async def test_the_handler_makes_the_whole_response_also_for_a_first_client_with_a_condition(
    house: House,
) -> None:
    etag = '"mine"'

    def page(request: Request) -> Response:
        if request.headers.get("if-none-match"):
            return Response(status_code=304)
        return PlainTextResponse("whole", headers={"ETag": etag})

    counted = Counted(page)
    client = await house.serving(counted.endpoint())
    first = await client.get("/", headers={"If-None-Match": etag})
    assert (first.status_code, first.headers["ETag"]) == (304, etag)
    assert ((await client.get("/")).text, counted.total) == ("whole", 1)


async def test_if_modified_since_is_answered_too(house: House) -> None:
    changed = "Mon, 23 Nov 2026 09:00:00 GMT"
    client = await house.serving(
        Counted(lambda request: PlainTextResponse("x", headers={"Last-Modified": changed})).endpoint()
    )
    await client.get("/")
    assert (await client.get("/", headers={"If-Modified-Since": changed})).status_code == 304
    before = {"If-Modified-Since": "Sun, 22 Nov 2026 09:00:00 GMT"}
    assert (await client.get("/", headers=before)).status_code == 200


@pytest.mark.parametrize("first", ["GET", "HEAD"])
async def test_head_is_answered_from_get_and_get_from_head(house: House, first: str) -> None:
    counted = Counted()
    app = FastAPI()
    app.router.route_class = house.pages().route_class

    @app.get("/fast")
    async def fast(request: Request) -> str:
        return (await counted(request)).status_code and "body"

    app.router.routes.append(Route("/plain", counted.endpoint(), middleware=[Middleware(house.pages())]))
    client = await house.client(app)
    for path in ("/fast", "/plain"):
        answers = {method: await client.request(method, path) for method in (first, "GET", "HEAD")}
        assert answers["HEAD"].content == b""
        assert answers["GET"].content
        for name in ("Content-Length", "Content-Type", "ETag"):
            assert answers["HEAD"].headers[name] == answers["GET"].headers[name]
    assert counted.runs == {"/fast": 1, "/plain": 1}


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"Cache-Control": "no-cache"}, "request"),
        ({"Cache-Control": "no-store"}, "request"),
        ({"Cache-Control": "max-age=0"}, "request"),
        ({"Pragma": "no-cache"}, "request"),
        ({"Range": "bytes=0-1"}, "bypass"),
        ({"If-Match": '"a"'}, "bypass"),
    ],
)
async def test_a_request_that_wants_no_stored_response_gets_none(
    house: House, headers: dict[str, str], why: str
) -> None:
    counted = Counted()
    client = await house.serving(counted.endpoint())
    await client.get("/")
    assert told(await client.get("/", headers=headers)) == f"counterseal; fwd={why}"
    assert counted.total == 2
    assert (await client.get("/")).text == "run 1"


async def test_a_request_says_how_old_a_response_may_be(house: House) -> None:
    counted = Counted()
    client = await house.serving(counted.endpoint())
    await client.get("/")
    travel(house.seal.store, timedelta(seconds=30))
    young = {"Cache-Control": "max-age=20"}
    assert (await client.get("/", headers={"Cache-Control": "max-age=60"})).headers["Age"] == "30"
    assert counted.total == 1
    assert (await client.get("/", headers=young)).text == "run 2"


async def test_a_get_with_a_body_is_passed_on_with_it(house: House) -> None:
    bodies: list[bytes] = []

    async def endpoint(request: Request) -> Response:
        bodies.append(await request.body())
        return PlainTextResponse("x")

    client = await house.serving(endpoint)
    for body in (b"one", b"two"):
        assert told(await client.request("GET", "/", content=body)) == "counterseal; fwd=bypass"
    assert bodies == [b"one", b"two"]


# -- how long ----------------------------------------------------------------------------------------------------------


async def test_it_lives_as_long_as_its_kind(house: House) -> None:
    counted = Counted()
    client = await house.serving(counted.endpoint())
    await client.get("/")
    travel(house.seal.store, PAGES.ttl * 0.8)
    assert (await client.get("/")).headers["Age"] == "240"
    travel(house.seal.store, PAGES.ttl * 0.4)
    assert (await client.get("/")).text == "run 2"


@pytest.mark.parametrize("control", ["max-age=20", "max-age=600, s-maxage=20"])
async def test_its_own_headers_shorten_its_life_but_never_prolong_it(house: House, control: str) -> None:
    counted = Counted(
        lambda request: PlainTextResponse(f"run {counted.total}", headers={"Cache-Control": control})
    )
    client = await house.serving(counted.endpoint())
    await client.get("/")
    travel(house.seal.store, timedelta(seconds=15))
    assert told(await client.get("/")) == "counterseal; hit; ttl=5"
    travel(house.seal.store, timedelta(seconds=5))
    answers = await asyncio.gather(*(client.get("/") for _ in range(50)))
    assert {answer.text for answer in answers} == {"run 2"}
    assert counted.total == 2


async def test_a_longer_life_than_that_of_the_kind_is_not_granted(house: House) -> None:
    counted = Counted(
        lambda request: PlainTextResponse(f"run {counted.total}", headers={"Cache-Control": "max-age=86400"})
    )
    client = await house.serving(counted.endpoint())
    await client.get("/")
    travel(house.seal.store, PAGES.ttl * 1.2)
    assert (await client.get("/")).text == "run 2"


@pytest.mark.parametrize(
    ("control", "ends"),
    [("", PAGES.ttl * 1.2), ("max-age=20", timedelta(seconds=20)), ("max-age=20, public", PAGES.ttl)],
)
async def test_a_stale_response_is_given_while_a_new_one_is_made(
    valkey: Server, data_dir: Path, control: str, ends: timedelta
) -> None:
    kind = response_kind("page", timedelta(minutes=5), stale_while_revalidate=timedelta(minutes=10))
    headers = {"Cache-Control": control} if control else {}
    async with house_on(valkey, data_dir, kind) as house:
        counted = Counted(lambda request: PlainTextResponse(f"run {counted.total}", headers=headers))
        client = await house.serving(counted.endpoint(), pages=house.pages(kind))
        await client.get("/")
        travel(house.seal.store, ends)
        second = await client.get("/")
        assert second.text == "run 1"
        assert told(second).startswith(HIT)
        assert told(second).endswith("; detail=stale")

        async def renewed() -> bool:
            return (await client.get("/")).text == "run 2"

        await eventually(renewed)
        assert counted.total == 2


@pytest.mark.parametrize(
    ("control", "ends"),
    [("", PAGES.ttl * 1.2), ("max-age=20", timedelta(seconds=20)), ("max-age=20, public", PAGES.ttl)],
)
async def test_a_stale_response_is_given_when_the_handler_fails_for_as_long_as_its_kind_says(
    valkey: Server, data_dir: Path, control: str, ends: timedelta
) -> None:
    kind = response_kind("page", timedelta(minutes=5), stale_if_error=timedelta(minutes=10))
    headers = {"Cache-Control": control} if control else {}
    async with house_on(valkey, data_dir, kind) as house:

        def page(request: Request) -> Response:
            if counted.total == 4:
                raise RuntimeError("broken")
            status = {2: 503, 3: 500, 6: 502}.get(counted.total, 200)
            return PlainTextResponse(f"run {counted.total}", status_code=status, headers=headers)

        counted = Counted(page)
        client = await house.serving(counted.endpoint(), pages=house.pages(kind))
        await client.get("/")
        travel(house.seal.store, ends)
        for _ in range(3):
            answer = await client.get("/")
            assert (answer.status_code, answer.text) == (200, "run 1")
            assert told(answer).endswith("; detail=stale")
        assert ((await client.get("/")).text, counted.total) == ("run 5", 5)
        travel(house.seal.store, PAGES.ttl * 1.2 + kind.stale_if_error)
        assert (await client.get("/")).status_code == 502


@pytest.mark.parametrize(
    "control",
    [
        "must-revalidate",
        "max-age=20, must-revalidate",
        "proxy-revalidate, max-age=20",
        "s-maxage=20",
        "s-maxage=3600",
    ],
)
async def test_a_stale_response_that_forbids_it_is_not_given(
    valkey: Server, data_dir: Path, control: str
) -> None:
    day = timedelta(days=1)
    kind = response_kind("page", timedelta(minutes=5), stale_while_revalidate=day, stale_if_error=day)
    async with house_on(valkey, data_dir, kind) as house:
        statuses = {2: 503}
        counted = Counted(
            lambda request: PlainTextResponse(
                f"run {counted.total}",
                status_code=statuses.get(counted.total, 200),
                headers={"Cache-Control": control},
            )
        )
        client = await house.serving(counted.endpoint(), pages=house.pages(kind))
        await client.get("/")
        assert told(await client.get("/")).startswith(HIT)
        travel(house.seal.store, timedelta(minutes=6))
        answer = await client.get("/")
        assert (answer.status_code, answer.text) == (503, "run 2")
        answer = await client.get("/")
        assert (answer.text, told(answer)) == ("run 3", STORED)


async def test_who_says_how_old_a_response_may_be_gets_none_that_is_stale(
    valkey: Server, data_dir: Path
) -> None:
    kind = response_kind("page", timedelta(minutes=5), stale_if_error=timedelta(hours=1))
    async with house_on(valkey, data_dir, kind) as house:
        counted = Counted(
            lambda request: PlainTextResponse("x", status_code=200 if counted.total == 1 else 503)
        )
        client = await house.serving(counted.endpoint(), pages=house.pages(kind))
        await client.get("/")
        travel(house.seal.store, timedelta(minutes=6))
        assert (await client.get("/")).status_code == 200
        choosy = {"Cache-Control": "max-age=3600"}
        assert (await client.get("/", headers=choosy)).status_code == 503
        assert counted.total == 3


async def test_an_ended_response_in_the_memory_of_the_process_is_given_no_more(
    valkey: Server, data_dir: Path
) -> None:
    kind = response_kind("page", timedelta(minutes=5), near=timedelta(minutes=5), early_refresh=False)
    async with house_on(valkey, data_dir, kind) as house:
        counted = Counted(
            lambda request: PlainTextResponse(f"run {counted.total}", headers={"Cache-Control": "max-age=20"})
        )
        client = await house.serving(counted.endpoint(), pages=house.pages(kind))

        async def is_near() -> bool:
            await client.get("/")
            return house.seal.cache.near_bytes > 0

        await eventually(is_near)
        assert counted.total == 1
        travel(house.seal.store, timedelta(seconds=20))
        assert (await client.get("/")).text == "run 2"


async def test_who_reads_an_ended_response_changes_nothing_that_another_process_may_be_renewing(
    house: House,
) -> None:
    counted = Counted(
        lambda request: PlainTextResponse(
            "x",
            status_code=200 if counted.total == 1 else 503,
            headers={"Cache-Control": "max-age=20"},
        )
    )
    client = await house.serving(counted.endpoint())
    await client.get("/")
    (key,) = house.server.execute("KEYS", "cs:cache:page:*")
    stored = house.server.execute("GET", key)
    travel(house.seal.store, timedelta(seconds=20))
    assert (await client.get("/")).status_code == 503
    assert house.server.execute("GET", key) == stored


async def test_two_processes_renew_an_ended_response_once(valkey: Server, data_dir: Path) -> None:
    async with house_on(valkey, data_dir / "one") as one, house_on(valkey, data_dir / "two") as two:
        gate = Gate(lambda request: PlainTextResponse("x", headers={"Cache-Control": "max-age=20"}))
        gate.opened.set()
        clients = [await house.serving(gate.endpoint()) for house in (one, two)]
        await clients[0].get("/")
        assert told(await clients[1].get("/")).startswith(HIT)
        gate.opened.clear()
        for house in (one, two):
            travel(house.seal.store, timedelta(seconds=20))
        asking = [asyncio.create_task(client.get("/")) for client in clients for _ in range(10)]
        await eventually(lambda: gate.entered == 2)
        gate.opened.set()
        assert {answer.text for answer in await asyncio.gather(*asking)} == {"x"}
        assert gate.entered == 2


# -- many at once ------------------------------------------------------------------------------------------------------


class Gate:
    """An endpoint that waits inside until it is opened."""

    def __init__(self, make: Callable[[Request], Response]) -> None:
        self.entered = 0
        self.opened = asyncio.Event()
        self._make = make

    async def __call__(self, request: Request) -> Response:
        self.entered += 1
        await self.opened.wait()
        return self._make(request)

    def endpoint(self) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return await self(request)

        return endpoint


async def test_a_hundred_requests_at_once_run_the_handler_once(house: House) -> None:
    gate = Gate(lambda request: PlainTextResponse("x" * 1000))
    client = await house.serving(gate.endpoint())
    asking = [asyncio.create_task(client.get("/")) for _ in range(100)]
    await eventually(lambda: gate.entered)
    gate.opened.set()
    answers = await asyncio.gather(*asking)
    assert {answer.text for answer in answers} == {"x" * 1000}
    statuses = Counter(told(answer) for answer in answers)
    assert gate.entered == 1
    assert statuses[STORED] == 1
    assert set(statuses) <= {STORED, f"{MISS}; collapsed", HIT}


@pytest.mark.parametrize(
    "headers", [{"Set-Cookie": "a=1"}, {"Cache-Control": "private"}, {"Cache-Control": "no-store"}]
)
async def test_requests_at_once_never_share_what_may_not_be_kept(
    house: House, headers: dict[str, str]
) -> None:
    gate = Gate(lambda request: PlainTextResponse(str(who(request.scope)), headers=headers))
    client = await house.serving(gate.endpoint())
    asking = [asyncio.create_task(client.get("/", headers={"X-User": str(number)})) for number in range(50)]
    await eventually(lambda: gate.entered)
    gate.opened.set()
    answers = await asyncio.gather(*asking)
    assert [answer.text for answer in answers] == [str(number) for number in range(50)]
    assert gate.entered == 50


async def test_nobody_waits_for_another_once_it_is_known_that_nothing_is_kept(house: House) -> None:
    gate = Gate(lambda request: PlainTextResponse("x", headers={"Cache-Control": "private"}))
    gate.opened.set()
    client = await house.serving(gate.endpoint())
    await client.get("/")
    gate.opened.clear()
    asking = [asyncio.create_task(client.get("/")) for _ in range(20)]
    await eventually(lambda: gate.entered == 21)
    gate.opened.set()
    await asyncio.gather(*asking)


async def test_a_handler_that_fails_fails_for_each_by_itself_and_nothing_is_kept(house: House) -> None:
    def fail(request: Request) -> Response:
        raise RuntimeError("broken")

    gate = Gate(fail)
    client = await house.serving(gate.endpoint())
    asking = [asyncio.create_task(client.get("/")) for _ in range(20)]
    await eventually(lambda: gate.entered)
    gate.opened.set()
    assert {answer.status_code for answer in await asyncio.gather(*asking)} == {500}
    assert gate.entered == 20
    assert house.entries() == 0


async def test_a_handler_that_fails_is_not_run_at_once_by_all_who_waited_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    boarded: list[object] = []
    board = house.seal.cache._flights.board

    def counted(*args: Any) -> Any:
        boarded.append(args)
        return board(*args)

    monkeypatch.setattr(house.seal.cache._flights, "board", counted)
    entered = running = most = 0
    fail, go_on = asyncio.Event(), asyncio.Event()

    async def endpoint(request: Request) -> Response:
        nonlocal entered, running, most
        entered += 1
        if entered == 1:
            await fail.wait()
            raise RuntimeError("broken")
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        return PlainTextResponse("x", status_code=503)

    client = await house.serving(endpoint)
    asking = [asyncio.create_task(client.get("/")) for _ in range(150)]
    await eventually(lambda: len(boarded) == 150 and entered)
    fail.set()
    await eventually(lambda: running == 64)
    go_on.set()
    answers = Counter(answer.status_code for answer in await asyncio.gather(*asking))
    assert (entered, most, answers) == (150, 64, {500: 1, 503: 149})


async def test_a_client_that_goes_away_takes_the_response_from_nobody(house: House) -> None:
    gate = Gate(lambda request: PlainTextResponse("x"))
    pages = house.pages()
    client = await house.serving(gate.endpoint(), pages=pages)
    await pages.invalidate("/")
    await house.seal.cache.clear("page")
    first = asyncio.create_task(client.get("/"))
    await eventually(lambda: gate.entered)
    second = asyncio.create_task(client.get("/"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.opened.set()
    assert (await second).text == "x"
    assert told(await client.get("/")) == HIT
    assert gate.entered == 1


async def test_requests_to_two_processes_at_once_run_the_handler_once(valkey: Server, data_dir: Path) -> None:
    async with house_on(valkey, data_dir / "one") as one, house_on(valkey, data_dir / "two") as two:
        gate = Gate(lambda request: PlainTextResponse("x"))
        clients = [await house.serving(gate.endpoint()) for house in (one, two)]
        await one.pages().invalidate("/")
        await one.seal.cache.clear("page")
        asking = [asyncio.create_task(client.get("/")) for client in clients for _ in range(20)]
        await eventually(lambda: gate.entered)
        gate.opened.set()
        assert {answer.text for answer in await asyncio.gather(*asking)} == {"x"}
        assert gate.entered == 1
        await one.pages().invalidate("/")
        for client in clients:
            assert (await client.get("/")).text == "x"
        assert gate.entered == 2


async def test_what_nobody_waits_for_and_may_not_be_kept_is_ended(house: House) -> None:
    entered, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        try:
            await go_on.wait()
            headers = [(b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await asyncio.Event().wait()
        finally:
            ended.set()

    client = await house.client(house.pages()(app))
    asking = asyncio.create_task(client.get("/"))
    await asyncio.wait_for(entered.wait(), 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not ended.is_set()
    go_on.set()
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_client_that_goes_away_while_it_is_sent_what_is_not_kept_ends_the_handler(
    house: House,
) -> None:
    sending, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            sending.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    client = await house.client(house.pages()(app))
    asking = asyncio.create_task(client.get("/"))
    await asyncio.wait_for(sending.wait(), 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert ended.is_set()


async def test_a_cache_that_is_closed_while_a_response_is_made_costs_no_second_run(house: House) -> None:
    gate = Gate(lambda request: PlainTextResponse("x"))
    client = await house.serving(gate.endpoint())
    asking = asyncio.create_task(client.get("/"))
    await eventually(lambda: gate.entered)
    await house.seal.cache.close()
    gate.opened.set()
    assert ((await asking).text, gate.entered) == ("x", 1)


# -- large bodies ------------------------------------------------------------------------------------------------------


def asked(path: str = "/", method: str = "GET") -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"a.example")],
        "client": ("127.0.0.1", 1),
        "server": ("a.example", 80),
    }


async def nothing_more() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_large_body_is_passed_on_from_the_moment_that_it_is_too_large(house: House) -> None:
    seen: list[Message] = []
    go_on = asyncio.Event()
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x" * 600, "more_body": True})
            sent += 1
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"end"})

    async def take(message: Message) -> None:
        seen.append(message)

    cached = house.pages(max_body_bytes=1000)(app)
    asking = asyncio.create_task(cached(asked(), nothing_more, take))
    await eventually(lambda: sent == 3)
    assert [len(message.get("body", b"")) for message in seen] == [0, 600, 600, 600]
    assert not asking.done()
    go_on.set()
    await asking
    assert seen[-1]["body"] == b"end"
    assert (b"cache-status", f"{MISS}; detail=too-large".encode()) in seen[0]["headers"]


async def call(app: ASGIApp, scope: Scope) -> list[Message]:
    """Every message of an answer."""
    seen: list[Message] = []

    async def take(message: Message) -> None:
        seen.append(message)

    await app(scope, nothing_more, take)
    return seen


@pytest.mark.parametrize("control", ["public", "no-store"])
async def test_no_byte_of_a_body_is_sent_for_head(house: House, control: str) -> None:
    page = PlainTextResponse("body", headers={"Cache-Control": control})
    cached = house.pages()(page)
    for _ in range(3):
        start, *bodies = await call(cached, asked(method="HEAD"))
        assert (b"content-length", b"4") in start["headers"]
        assert [body["body"] for body in bodies] == [b""]


async def test_a_request_ends_when_its_background_tasks_have_ended_and_the_answer_waits_for_none(
    house: House,
) -> None:
    go_on = asyncio.Event()
    seen: list[Message] = []

    async def take(message: Message) -> None:
        seen.append(message)

    cached = house.pages()(PlainTextResponse("x", background=BackgroundTask(go_on.wait)))
    asking = asyncio.create_task(cached(asked(), nothing_more, take))
    await eventually(lambda: len(seen) == 2)
    assert (await call(cached, asked()))[1]["body"] == b"x"
    assert not asking.done()
    go_on.set()
    await asyncio.wait_for(asking, 5)


async def test_a_background_task_that_fails_fails_where_it_was_begun(house: House) -> None:
    async def fail() -> None:
        raise RuntimeError("in the background")

    cached = house.pages()(PlainTextResponse("x", background=BackgroundTask(fail)))
    with pytest.raises(RuntimeError, match="in the background"):
        await call(cached, asked())
    assert (await call(cached, asked()))[1]["body"] == b"x"


async def test_a_response_without_an_end_holds_up_nobody_and_ends_with_its_client(house: House) -> None:
    ended = asyncio.Event()
    first = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while (await receive())["type"] != "http.disconnect":
                await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        finally:
            ended.set()

    async def take(message: Message) -> None:
        if message["type"] == "http.response.body":
            first.set()

    left = asyncio.Event()

    async def client() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    cached = house.pages()(app)
    asking = asyncio.create_task(cached(asked(), client, take))
    await asyncio.wait_for(first.wait(), 5)
    left.set()
    await asyncio.wait_for(asking, 5)
    assert ended.is_set()


@pytest.mark.parametrize(
    "messages",
    [
        [
            {"type": "http.response.start", "status": 200},
            {"type": "http.response.body", "body": b"x", "more_body": True},
        ],
        [
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]},
            {"type": "http.response.body", "body": b"x"},
        ],
        [
            {"type": "http.response.start", "status": 200, "headers": [], "trailers": True},
            {"type": "http.response.body", "body": b"x"},
        ],
        [{"type": "http.response.start", "status": 200}, {"type": "http.response.pathsend", "path": "/x"}],
    ],
)
async def test_what_is_no_whole_response_is_passed_on_as_it_is_and_not_kept(
    house: House, messages: list[Message]
) -> None:
    runs = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal runs
        runs += 1
        for message in messages:
            await send(message)

    cached = house.pages()(app)
    for _ in range(2):
        assert (await call(cached, asked()))[1:] == messages[1:]
    assert runs == 2


async def test_a_response_too_large_for_its_kind_is_answered_once_and_not_kept(
    valkey: Server, data_dir: Path
) -> None:
    kind = response_kind("page", timedelta(minutes=5), max_value_bytes=10_000)
    async with house_on(valkey, data_dir, kind) as house:
        big = {f"X-{number}": "x" * 1000 for number in range(12)}
        counted = Counted(lambda request: PlainTextResponse("x", headers=big))
        client = await house.serving(counted.endpoint(), pages=house.pages(kind))
        answers = [await client.get("/") for _ in range(2)]
        assert [answer.headers["X-3"] for answer in answers] == ["x" * 1000] * 2
        assert told(answers[0]) == f"{MISS}; detail=too-large"
        assert counted.total == 2


async def test_what_the_cache_did_not_take_is_not_told_to_be_stored(valkey: Server, data_dir: Path) -> None:
    kind = response_kind("page", timedelta(minutes=5), max_value_bytes=10_000)
    async with house_on(valkey, data_dir, kind) as house:
        # Each of these is six characters of JSON, which is known only when it is written.
        counted = Counted(lambda request: PlainTextResponse("x", headers={"X-Odd": "\x01" * 2000}))
        client = await house.serving(counted.endpoint(), pages=house.pages(kind))
        assert [told(await client.get("/")) for _ in range(2)] == [MISS, MISS]
        assert (counted.total, house.entries()) == (2, 0)


async def test_over_real_http_kept_and_passed_on_responses_have_all_their_bytes(house: House) -> None:
    size = 3_000_000

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * (size // 30)

    runs = Counter[str]()
    app = FastAPI()
    app.router.route_class = house.pages().route_class

    @app.get("/small")
    async def small() -> dict[str, int]:
        runs["small"] += 1
        return {"a": 1}

    @app.get("/large")
    async def large() -> StreamingResponse:
        runs["large"] += 1
        return StreamingResponse(parts())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    async with serving(app) as origin, httpx.AsyncClient(base_url=origin, timeout=20) as client:
        for _ in range(2):
            assert (await client.get("/small")).json() == {"a": 1}
            assert len((await client.get("/large")).content) == size
            head = await client.head("/large")
            assert (head.status_code, head.content) == (200, b"")
            assert (await client.get("/broken")).status_code == 500
        etag = (await client.get("/small")).headers["ETag"]
        unchanged = await client.get("/small", headers={"If-None-Match": etag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert (await client.head("/small")).headers["Content-Length"] == "7"
        assert (await client.get("/small")).json() == {"a": 1}
    assert runs["small"] == 1
    assert runs["large"] == 4


# -- forgetting --------------------------------------------------------------------------------------------------------


async def test_a_path_is_forgotten_with_all_its_queries_users_and_headers(house: House) -> None:
    counted = Counted()
    pages = house.pages(vary=["Accept"], personal=who)
    client = await house.serving(counted.endpoint(), pages=pages)

    async def runs() -> int:
        before = counted.total
        for url in ("/a", "/a?x=1", "/b"):
            for user in ("ada", "ben"):
                await client.get(url, headers={"X-User": user, "Accept": "text/plain"})
        return counted.total - before

    assert (await runs(), await runs()) == (6, 0)
    await pages.invalidate("/a")
    assert (await runs(), await runs()) == (4, 0)
    await pages.invalidate("/a", "/b")
    assert await runs() == 6
    await house.seal.cache.invalidate_user("ada")
    assert await runs() == 3
    await house.seal.cache.clear("page")
    assert await runs() == 6


async def test_responses_are_forgotten_by_tag(house: House) -> None:
    counted = Counted()

    def tags(scope: Scope) -> Iterable[str]:
        return [f"document:{scope['path_params']['path']}"]

    client = await house.serving(counted.endpoint(), tags=tags)
    for path in ("/7", "/8", "/7", "/8"):
        await client.get(path)
    assert counted.total == 2
    await house.seal.cache.invalidate_tags("document:7")
    for path in ("/7", "/8"):
        await client.get(path)
    assert counted.runs == {"/7": 2, "/8": 1}


@pytest.mark.parametrize(("status", "runs"), [(204, 2), (303, 2), (409, 1), (500, 1)])
async def test_a_path_is_forgotten_when_an_unsafe_request_to_it_succeeds(
    house: House, status: int, runs: int
) -> None:
    counted = Counted()
    app = FastAPI()
    app.router.route_class = house.pages().route_class

    @app.get("/documents")
    async def documents(request: Request) -> str:
        return str((await counted(request)).status_code)

    @app.post("/documents")
    async def add() -> Response:
        return Response(status_code=status)

    client = await house.client(app)
    await client.get("/documents")
    assert (await client.post("/documents")).status_code == status
    await client.get("/documents")
    assert counted.total == runs


async def test_a_response_that_was_being_made_when_its_path_was_forgotten_is_not_kept(house: House) -> None:
    state = {"title": "old"}
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def endpoint(request: Request) -> Response:
        title = state["title"]
        if title == "old":
            entered.set()
            await go_on.wait()
        return PlainTextResponse(title)

    pages = house.pages()
    client = await house.serving(endpoint, pages=pages)
    late = asyncio.create_task(client.get("/"))
    await asyncio.wait_for(entered.wait(), 5)
    state["title"] = "new"
    await pages.invalidate("/")
    go_on.set()
    assert (await late).text == "old"
    assert (await client.get("/")).text == "new"
    assert (await client.get("/")).text == "new"


# -- without Redis -----------------------------------------------------------------------------------------------------


async def test_while_redis_is_gone_every_request_is_answered_by_one_run(
    valkey: Server, data_dir: Path
) -> None:
    async with house_on(valkey, data_dir) as house:
        counted = Counted()
        client = await house.serving(counted.endpoint())
        await client.get("/")
        valkey.kill()
        answers = [await client.get("/") for _ in range(5)]
        assert [answer.text for answer in answers] == [f"run {number}" for number in range(2, 7)]
        assert all(told(answer) == MISS for answer in answers)
        valkey.start()

        async def kept() -> bool:
            return told(await client.get("/")).startswith(HIT)

        await eventually(kept, within=20)


async def test_while_redis_is_frozen_every_request_is_answered_by_one_run(
    valkey: Server, data_dir: Path
) -> None:
    async with house_on(valkey, data_dir, timeouts={}) as house:
        counted = Counted()
        client = await house.serving(counted.endpoint())
        await client.get("/")
        valkey.freeze()
        answers = [await client.get("/") for _ in range(10)]
        valkey.thaw()
        assert [answer.text for answer in answers] == [f"run {number}" for number in range(2, 12)]


async def test_redis_that_goes_while_a_response_is_made_costs_no_second_run(
    valkey: Server, data_dir: Path
) -> None:
    async with house_on(valkey, data_dir) as house:
        gate = Gate(lambda request: PlainTextResponse("x"))
        client = await house.serving(gate.endpoint())
        asking = asyncio.create_task(client.get("/"))
        await eventually(lambda: gate.entered)
        valkey.kill()
        gate.opened.set()
        assert ((await asking).text, gate.entered) == ("x", 1)
        valkey.start()


async def test_while_redis_is_gone_requests_at_once_share_a_run_but_never_what_may_not_be_kept(
    valkey: Server, data_dir: Path
) -> None:
    async with house_on(valkey, data_dir) as house:
        shared = Gate(lambda request: PlainTextResponse("x"))
        apart = Gate(
            lambda request: PlainTextResponse(str(who(request.scope)), headers={"Set-Cookie": "a=1"})
        )
        valkey.kill()
        await eventually(lambda: not house.seal.store.available)
        for gate, runs in ((shared, 1), (apart, 30)):
            client = await house.serving(gate.endpoint())
            asking = [
                asyncio.create_task(client.get(f"/{runs}", headers={"X-User": str(number)}))
                for number in range(30)
            ]
            await eventually(lambda gate=gate: gate.entered)
            gate.opened.set()
            answers = [answer.text for answer in await asyncio.gather(*asking)]
            assert answers == (["x"] * 30 if runs == 1 else [str(number) for number in range(30)])
            assert gate.entered == runs
        valkey.start()


async def test_an_entry_that_can_not_be_read_costs_one_run_and_is_replaced(house: House) -> None:
    counted = Counted()
    client = await house.serving(counted.endpoint())
    await client.get("/")
    (key,) = house.server.execute("KEYS", "cs:cache:page:*")
    good: bytes = house.server.execute("GET", key)
    head, _, text = good.partition(b"\n")
    for bad in (b"garbage", head + b"\n[1]", head + b"\n" + text[:-9], head + b"\n{}"):
        house.server.execute("SET", key, bad, "PX", 60_000)
        before = counted.total
        assert (await client.get("/")).text == f"run {before + 1}"
        assert told(await client.get("/")) == HIT
        assert counted.total == before + 1


# -- bad input ---------------------------------------------------------------------------------------------------------


async def test_what_does_not_fit_together_is_refused_with_what_is_expected(
    valkey: Server, data_dir: Path
) -> None:
    untyped = Kind("untyped", timedelta(minutes=5))
    typed = Kind("typed", timedelta(minutes=5), type=StoredResponse)
    async with house_on(valkey, data_dir, PAGES, untyped, typed) as house:
        for kind in (untyped, typed):
            with pytest.raises(
                ConfigurationError, match=rf"Kind {kind.name}: expected what response_kind\('"
            ):
                house.pages(kind)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"max_body_bytes: expected from 1 to \d+.*came: 0"):
            house.pages(max_body_bytes=0)
        with pytest.raises(ConfigurationError, match=r"came: 1048576"):
            house.pages(max_body_bytes=2**20)
        with pytest.raises(ConfigurationError, match=r"statuses: .*came: 101, 206, 304"):
            house.pages(statuses=(200, 206, 304, 101))
        with pytest.raises(ConfigurationError, match=r"vary: expected names of headers"):
            house.pages(vary=["*"])
        for name in ("vary", "ignore", "query"):
            with pytest.raises(ConfigurationError, match=rf"{name}: expected several names.*came: 'page'"):
                house.pages(**{name: "page"})


async def test_two_applications_share_nothing_but_what_is_stored(house: House) -> None:
    one, other = house.pages(), house.pages()
    assert one.route_class is one.route_class
    assert one.route_class is not other.route_class
