"""Refusals in applications that know nothing of problems: mounted ones, Starlette's, and those with own handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from counterseal.app import Counterseal
from counterseal.web import RateLimitMiddleware, Session, SessionMiddleware, current_session, limited
from support.databases import Databases
from support.servers import Server
from support.site import BASE, problem, seal_on


@pytest.fixture
async def seal(valkey: Server, databases: Databases, tmp_path: Path) -> AsyncIterator[Counterseal]:
    async with (
        databases.place("sqlite", tmp_path) as place,
        seal_on(valkey, place.data_dir) as seal,
    ):
        yield seal


def with_routes(app: FastAPI | None = None) -> FastAPI:
    """An application with a route for somebody who is logged in, and one that is limited."""
    app = app or FastAPI()

    @app.get("/mine")
    async def mine(session: Annotated[Session, Depends(current_session)]) -> str:
        return session.user_id

    @app.get("/limited", dependencies=[Depends(limited("email", cost=21))])
    async def much() -> None: ...

    return app


def around(seal: Counterseal, app: FastAPI | Starlette) -> ASGIApp:
    app.add_middleware(SessionMiddleware, seal=seal)
    app.add_middleware(RateLimitMiddleware, seal=seal)
    return app


async def ask(app: ASGIApp, path: str, **fields: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=("203.0.113.5", 1))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=fields) as client:
        return await client.get(path)


def is_whole(answer: httpx.Response) -> None:
    """It is the whole problem of somebody without a session, with its fields each once."""
    problem(answer, 401, "unauthorized")
    assert set(answer.json()) == {"type", "title", "status", "detail", "code"}
    assert answer.headers.get_list("WWW-Authenticate") == ["Bearer"]
    assert answer.headers.get_list("Content-Length") == [str(len(answer.content))]


async def test_an_application_that_is_mounted_refuses_as_the_outer_one_does(seal: Counterseal) -> None:
    outer = with_routes()
    outer.mount("/fast", with_routes())
    outer.mount("/deep", Starlette(routes=[Mount("/fast", with_routes())]))
    app = around(seal, outer)
    answers = [await ask(app, f"{below}/mine") for below in ("", "/fast", "/deep/fast")]
    for answer in answers:
        is_whole(answer)
    assert len({answer.content for answer in answers}) == 1
    for below in ("", "/fast", "/deep/fast"):
        answer = await ask(app, f"{below}/limited")
        problem(answer, 429, "rate_limited")


async def test_starlette_refuses_so_too_itself_and_mounted(seal: Counterseal) -> None:
    async def mine(request: Request) -> Response:
        return PlainTextResponse((await current_session(request)).user_id)

    inner = Starlette(routes=[Route("/mine", mine)])
    app = around(seal, Starlette(routes=[Route("/mine", mine), Mount("/inner", inner)]))
    is_whole(await ask(app, "/mine"))
    is_whole(await ask(app, "/inner/mine"))


async def test_an_application_without_a_framework_refuses_so_too(seal: Counterseal) -> None:
    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        await current_session(Request(scope))

    is_whole(await ask(SessionMiddleware(bare, seal=seal), "/"))


async def test_a_handler_of_the_application_has_the_last_word(seal: Counterseal) -> None:
    inner = with_routes()

    @inner.exception_handler(HTTPException)
    async def handle(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"wrong": error.detail}, error.status_code, headers=dict(error.headers or {}))

    outer = with_routes()
    outer.mount("/own", inner)
    answer = await ask(around(seal, outer), "/own/mine")
    assert (answer.status_code, answer.json()) == (401, {"wrong": "Log in to do this."})
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/json"


async def test_a_route_may_answer_a_refusal_by_itself(seal: Counterseal) -> None:
    app = FastAPI()

    @app.get("/page")
    async def page(request: Request) -> Response:
        try:
            await current_session(request)
        except HTTPException as refused:
            return RedirectResponse(f"/log-in?because={refused.status_code}", 303)
        return Response()

    @app.get("/told")
    async def told(request: Request) -> Response:
        with suppress(HTTPException):
            await current_session(request)
        return PlainTextResponse("who are you?", 401)

    around(seal, app)
    answer = await ask(app, "/page")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/log-in?because=401")
    assert (await ask(app, "/told")).text == "who are you?"


async def test_what_a_middleware_has_added_to_a_refusal_stays(seal: Counterseal) -> None:
    inner = with_routes(
        FastAPI(middleware=[Middleware(CORSMiddleware, allow_origins=["https://app.example"])])
    )
    outer = FastAPI()
    outer.mount("/inner", inner)
    answer = await ask(around(seal, outer), "/inner/mine", Origin="https://app.example")
    is_whole(answer)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
