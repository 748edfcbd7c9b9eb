"""Sessions over HTTP in an application of somebody's own: who passes, who gets which refusal, and what is asked."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, WebSocket
from pydantic import SecretStr
from sqlalchemy import update
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Scope

from counterseal.app import Counterseal
from counterseal.core.errors import ConfigurationError
from counterseal.core.keyring import Keyring
from counterseal.database.tables import user_sessions
from counterseal.sessions.access_token import AccessClaims, issue_access_token
from counterseal.sessions.session import Context, Created, Session
from counterseal.web import (
    RateLimitMiddleware,
    ResponseCache,
    SessionMiddleware,
    current_session,
    fresh_session,
    identify_session,
    optional_session,
    recent_login,
    require_totp,
    response_kind,
)
from support.databases import Databases
from support.servers import Server
from support.site import BASE, Site, lose_database, problem, seal_on
from support.stores import travel
from support.waiting import eventually

PAGES = response_kind("page", timedelta(minutes=5))
NO_ALGORITHM = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")


def application(seal: Counterseal, **options: Any) -> FastAPI:
    """An application of somebody's own, without any handler for errors of counterseal."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware, seal=seal, **options)
    app.add_middleware(RateLimitMiddleware, seal=seal, identify=identify_session(seal))

    @app.api_route("/api/mine", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    async def mine(session: Annotated[Session, Depends(current_session)]) -> dict[str, str]:
        return {"user": session.user_id}

    @app.get("/api/maybe")
    async def maybe(session: Annotated[Session | None, Depends(optional_session)]) -> dict[str, str | None]:
        return {"user": None if session is None else session.user_id}

    @app.post("/api/fresh")
    async def fresh(session: Annotated[Session, Depends(fresh_session)]) -> dict[str, str]:
        return {"user": session.user_id}

    @app.post("/api/recent")
    async def recent(session: Annotated[Session, Depends(recent_login)]) -> dict[str, str]:
        return {"user": session.user_id}

    @app.post("/api/requests/{request_id}/sign")
    async def sign(
        request_id: str, session: Annotated[Session, Depends(require_totp("signing"))]
    ) -> None: ...

    @app.post("/api/requests/{request_id}/look")
    async def look(
        request_id: str, session: Annotated[Session, Depends(require_totp("signing", consume=False))]
    ) -> None: ...

    @app.post("/api/of-query")
    async def of_query(
        session: Annotated[
            Session, Depends(require_totp("signing", request_id=lambda asked: asked.query_params.get("id")))
        ],
    ) -> None: ...

    @app.post("/api/nothing-to-sign")
    async def nothing(session: Annotated[Session, Depends(require_totp("signing"))]) -> None: ...

    @app.post("/api/with-totp")
    async def with_totp(session: Annotated[Session, Depends(require_totp("login"))]) -> None: ...

    @app.post("/api/open")
    async def anybody() -> dict[str, str]:
        return {}

    @app.websocket("/live")
    async def live(socket: WebSocket, session: Annotated[Session, Depends(current_session)]) -> None:
        await socket.accept()
        await socket.send_text(session.user_id)
        await socket.close()

    return app


@pytest.fixture
async def site(valkey: Server, databases: Databases, tmp_path: Path) -> AsyncIterator[Site]:
    async with (
        databases.place("sqlite", tmp_path) as place,
        seal_on(valkey, place.data_dir, kinds=[PAGES]) as seal,
    ):
        site = Site(seal, application(seal))
        yield site
        await site.close()


async def made(site: Site, user: str = "alice", **options: Any) -> Created:
    return await site.seal.sessions.create(user_id=user, email=f"{user}@example.com", **options)


async def ask(
    site: Site,
    path: str = "/api/mine",
    *,
    method: str = "GET",
    app: ASGIApp | None = None,
    fields: list[tuple[str, str]] | None = None,
    bearer: str | None = None,
    cookie: str | None = None,
    content: bytes = b"",
) -> httpx.Response:
    """Ask with these header fields, as they are, and no others of a browser."""
    lines = list(fields or [])
    if bearer is not None:
        lines.append(("Authorization", f"Bearer {bearer}"))
    if cookie is not None:
        lines.append(("Cookie", f"__Host-cs_at={cookie}"))
    transport = httpx.ASGITransport(app or site.app, raise_app_exceptions=False, client=("203.0.113.5", 1))
    async with httpx.AsyncClient(transport=transport, base_url=BASE, timeout=30) as client:
        return await client.request(
            method,
            path,
            headers=[(name.encode(), value.encode("latin-1")) for name, value in lines],
            content=content,
        )


# -- who passes --------------------------------------------------------------------------------------------------------


async def test_a_token_passes_in_the_cookie_and_as_bearer(site: Site) -> None:
    token = (await made(site)).access_token
    for given in ({"bearer": token}, {"cookie": token}):
        answer = await ask(site, **given)
        assert (answer.status_code, answer.json()) == (200, {"user": "alice"})
    assert (await ask(site, fields=[("Authorization", f"bEARER   {token} ")])).status_code == 200
    assert (
        await ask(site, fields=[("Cookie", "a=b"), ("Cookie", f"c=d; __Host-cs_at={token}")])
    ).status_code == 200


async def test_a_bearer_token_comes_before_the_cookie_also_where_it_is_worth_nothing(site: Site) -> None:
    alice, bob = await made(site), await made(site, "bob")
    both = await ask(site, bearer=bob.access_token, cookie=alice.access_token)
    assert both.json() == {"user": "bob"}
    problem(await ask(site, bearer="x", cookie=alice.access_token), 401, "unauthorized")
    problem(
        await ask(site, cookie=alice.access_token, fields=[("Authorization", "Bearer")]), 401, "unauthorized"
    )
    basic = await ask(site, cookie=alice.access_token, fields=[("Authorization", "Basic eDp5")])
    assert basic.json() == {"user": "alice"}


async def test_without_a_session_a_route_that_takes_both_is_told_so(site: Site) -> None:
    token = (await made(site)).access_token
    assert (await ask(site, "/api/maybe", bearer=token)).json() == {"user": "alice"}
    assert (await ask(site, "/api/maybe")).json() == {"user": None}
    assert (await ask(site, "/api/maybe", bearer="x")).json() == {"user": None}


async def worthless(site: Site) -> Mapping[str, list[tuple[str, str]]]:
    """Header fields with every kind of token that is worth nothing, by what is wrong with it."""
    seal = site.seal
    live = await made(site)
    token, session_id = live.access_token, live.session_id
    header, payload, mark = token.split(".")
    another = (await made(site)).access_token
    revoked = await made(site, "bob")
    await seal.sessions.revoke(revoked.session_id)
    ended = await made(site, "carol")
    await seal.sessions.revoke_all("carol")
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    foreign = Keyring(SecretStr(f"{seal.keyring.key_ids[0]}:{key}"))
    now = seal.store.now_ms()
    claims = AccessClaims(session_id, "alice", 0, ("pwd",), now, now + 60_000)
    unknown = AccessClaims("alice.none", "alice", 0, ("pwd",), now, now + 60_000)
    expired = AccessClaims(session_id, "alice", 0, ("pwd",), now - 700_000, now - 1)
    later = AccessClaims(session_id, "alice", live.session.epoch + 1, ("pwd",), now, now + 60_000)
    tokens = {
        "empty": "",
        "garbage": "x",
        "a session id": session_id,
        "a refresh token": live.refresh_token,
        "truncated": token[:-1],
        "without a mark": f"{header}.{payload}.",
        "another payload": f"{header}.{payload[:-2]}AA.{mark}",
        "no algorithm": f"{NO_ALGORITHM}.{payload}.",
        "foreign": issue_access_token(claims, foreign, now),
        "expired": issue_access_token(expired, seal.keyring, now - 700_000),
        "unknown": issue_access_token(unknown, seal.keyring, now),
        "another epoch": issue_access_token(later, seal.keyring, now),
        "revoked": revoked.access_token,
        "all revoked": ended.access_token,
        "oversized": token + "a" * 100_000,
        "not ASCII": token[:-1] + "\u00e9",
        "control characters": token + "\x01",
        "spaces": f"{token} {token}",
    }
    fields = {f"{name}, bearer": [("Authorization", f"Bearer {text}")] for name, text in tokens.items()}
    fields |= {f"{name}, cookie": [("Cookie", f"__Host-cs_at={text}")] for name, text in tokens.items()}
    return {
        **fields,
        "two live cookies": [("Cookie", f"__Host-cs_at={token}; __Host-cs_at={another}")],
        "two live bearer tokens": [
            ("Authorization", f"Bearer {token}"),
            ("Authorization", f"Bearer {another}"),
        ],
        "two cookies in one line": [("Cookie", f"__Host-cs_at={token}; __Host-cs_at=x")],
        "two lines of cookies": [("Cookie", f"__Host-cs_at={token}"), ("Cookie", "__Host-cs_at=x")],
        "two authorizations": [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer x")],
        "no scheme": [("Authorization", token)],
        "another scheme": [("Authorization", f"Token {token}")],
        "the refresh cookie": [("Cookie", f"__Secure-cs_rt={live.refresh_token}")],
        "a cookie without prefix": [("Cookie", f"cs_at={token}")],
        "in a header of one's own": [("X-Access-Token", token)],
    }


async def test_every_worthless_token_gets_the_same_401_as_none(site: Site) -> None:
    await site.seal.rate_limits.allow("203.0.113.5")
    bare = await ask(site)
    problem(bare, 401, "unauthorized")
    assert bare.headers["WWW-Authenticate"] == "Bearer"
    for name, fields in (await worthless(site)).items():
        answer = await ask(site, fields=fields)
        assert (answer.status_code, answer.content) == (401, bare.content), name
        assert answer.headers.raw == bare.headers.raw, name


async def test_a_401_does_not_tell_by_its_limits_whose_token_it_was(site: Site) -> None:
    ended = await made(site)
    await site.seal.sessions.revoke(ended.session_id)
    bare = await ask(site)
    answer = await ask(site, bearer=ended.access_token)
    assert answer.headers.raw == bare.headers.raw
    assert not any("ratelimit" in name for name in bare.headers)
    # They were charged all the same, to whom they name.
    api = site.seal.rate_limits.api
    assert (await api.peek("203.0.113.5")).remaining == 99
    assert (await api.peek(f"user:{ended.session_id}")).remaining == 99


@pytest.mark.parametrize("path", ["/api/fresh", "/api/recent", "/api/with-totp", "/api/requests/7/sign"])
async def test_every_dependency_gives_the_same_401(site: Site, path: str) -> None:
    ended = await made(site)
    await site.seal.sessions.revoke(ended.session_id)
    bare = await ask(site, path, method="POST")
    problem(bare, 401, "unauthorized")
    assert bare.content == (await ask(site)).content
    answer = await ask(site, path, method="POST", bearer=ended.access_token)
    assert (answer.content, answer.headers.raw) == (bare.content, bare.headers.raw)


def test_openapi_of_an_application_says_which_tokens_a_route_takes() -> None:
    app = FastAPI()

    async def route() -> None: ...

    guards = {
        "/current": current_session,
        "/fresh": fresh_session,
        "/recent": recent_login,
        "/totp": require_totp("login"),
        "/requests/{request_id}/sign": require_totp("signing"),
    }
    for path, guard in guards.items():
        app.post(path, dependencies=[Depends(guard)])(route)
    app.get("/maybe", dependencies=[Depends(optional_session)])(route)
    app.get("/open")(route)
    described = app.openapi()
    for path in guards:
        operation = described["paths"][path]["post"]
        assert operation["security"] == [{"session_bearer": []}, {"session_cookie": []}], path
        assert [each["name"] for each in operation.get("parameters", [])] in ([], ["request_id"])
    assert not [path for path in ("/maybe", "/open") if "security" in described["paths"][path]["get"]]
    assert set(described["components"]["securitySchemes"]) == {"session_bearer", "session_cookie"}


async def test_a_token_ends_with_its_session_and_not_ten_minutes_later(site: Site) -> None:
    live, other = await made(site), await made(site)
    assert (await ask(site, bearer=live.access_token)).status_code == 200
    await site.seal.sessions.revoke(live.session_id)
    assert (await ask(site, bearer=live.access_token)).status_code == 401
    assert (await ask(site, bearer=other.access_token)).status_code == 200
    await site.seal.sessions.revoke_all("alice")
    assert (await ask(site, bearer=other.access_token)).status_code == 401


async def test_a_token_is_good_for_ten_minutes(site: Site) -> None:
    live = await made(site)
    travel(site.seal.store, timedelta(minutes=9, seconds=50))
    assert (await ask(site, bearer=live.access_token)).status_code == 200
    travel(site.seal.store, timedelta(seconds=10))
    assert (await ask(site, bearer=live.access_token)).status_code == 401


async def test_a_request_that_asks_twice_costs_one_look(site: Site) -> None:
    @site.app.get("/api/both")
    async def both(
        one: Annotated[Session, Depends(current_session)],
        two: Annotated[Session | None, Depends(optional_session)],
        request: Request,
    ) -> bool:
        return one is two is await current_session(request)

    assert (await ask(site, "/api/both", bearer=(await made(site)).access_token)).json() is True


async def test_what_matters_most_is_asked_of_the_database_and_not_of_a_copy(site: Site) -> None:
    live = await made(site, amr=("pwd", "otp"))
    assert (await ask(site, bearer=live.access_token)).status_code == 200
    # As another process ends it whose message to Redis is lost.
    async with site.seal.database.begin() as connection:
        await connection.execute(
            update(user_sessions).values(
                state="revoked", revoked_at=datetime.now(UTC), revoke_reason="admin", version=99
            )
        )
    assert (await ask(site, bearer=live.access_token)).status_code == 200
    for path in ("/api/requests/7/sign", "/api/fresh", "/api/recent"):
        problem(await ask(site, path, method="POST", bearer=live.access_token), 401, "unauthorized")
    problem(await ask(site, bearer=live.access_token), 401, "unauthorized")


# -- fresh log-ins and second factors ----------------------------------------------------------------------------------


async def test_a_recent_log_in_is_one_of_the_last_ten_minutes(site: Site) -> None:
    live = await made(site)
    travel(site.seal.store, timedelta(minutes=9))
    assert (await ask(site, "/api/recent", method="POST", bearer=live.access_token)).status_code == 200
    travel(site.seal.store, timedelta(minutes=2))
    rotated = await site.seal.sessions.rotate(live.refresh_token)
    assert rotated is not None
    token = rotated.tokens.access_token
    problem(await ask(site, "/api/recent", method="POST", bearer=token), 403, "fresh_login_needed")
    assert (await ask(site, "/api/fresh", method="POST", bearer=token)).status_code == 200
    again = await site.seal.sessions.reissue(live.session_id, authenticated=True)
    assert again is not None
    answer = await ask(site, "/api/recent", method="POST", bearer=again.tokens.access_token)
    assert answer.status_code == 200


async def test_a_session_without_a_second_factor_does_not_pass_where_one_is_wanted(site: Site) -> None:
    without, with_one = await made(site), await made(site, amr=("pwd", "otp"))
    answer = await ask(site, "/api/with-totp", method="POST", bearer=without.access_token)
    problem(answer, 403, "totp_required")
    answer = await ask(site, "/api/with-totp", method="POST", bearer=with_one.access_token)
    assert answer.status_code == 200


async def test_a_code_signs_one_request_once_within_five_minutes(site: Site) -> None:
    live = await made(site, amr=("pwd", "otp"))
    sessions = site.seal.sessions

    async def sign(
        request_id: str = "7", what: str = "sign", token: str = live.access_token
    ) -> httpx.Response:
        return await ask(site, f"/api/requests/{request_id}/{what}", method="POST", bearer=token)

    problem(await sign(), 403, "totp_required")
    assert await sessions.set_totp_verified(live.session_id, "signing", "7") is not None
    problem(await sign("8"), 403, "totp_required")
    other = await made(site, amr=("pwd", "otp"))
    problem(await sign(token=other.access_token), 403, "totp_required")
    assert (await sign(what="look")).status_code == 200
    assert (await sign(what="look")).status_code == 200
    assert (await sign()).status_code == 200
    problem(await sign(), 403, "totp_required")
    problem(await sign(what="look"), 403, "totp_required")
    await sessions.set_totp_verified(live.session_id, "signing", "7")
    travel(site.seal.store, timedelta(seconds=301))
    problem(await sign(), 403, "totp_required")


async def test_a_body_that_is_refused_costs_no_code_that_is_only_looked_at(site: Site) -> None:
    @site.app.post("/api/requests/{request_id}/sign-here")
    async def sign_here(
        request_id: str,
        page: Annotated[int, Body(embed=True)],
        session: Annotated[Session, Depends(require_totp("signing", consume=False))],
    ) -> None:
        used = await site.seal.sessions.require_step_up(session.session_id, Context.SIGNING, request_id)
        assert used is not None

    live = await made(site, amr=("pwd", "otp"))
    await site.seal.sessions.set_totp_verified(live.session_id, "signing", "7")
    path = "/api/requests/7/sign-here"
    assert (await ask(site, path, method="POST", bearer=live.access_token)).status_code == 422
    fields = [("Content-Type", "application/json")]
    options = {"method": "POST", "bearer": live.access_token, "fields": fields, "content": b'{"page": 1}'}
    assert (await ask(site, path, **options)).status_code == 200
    problem(await ask(site, path, **options), 403, "totp_required")


async def test_a_code_for_log_in_or_for_no_request_signs_nothing(site: Site) -> None:
    live = await made(site, amr=("pwd", "otp"))
    sessions = site.seal.sessions
    await sessions.set_totp_verified(live.session_id, "login", "7")
    await sessions.set_totp_verified(live.session_id, "signing", None)
    for path in ("/api/requests/7/sign", "/api/requests/*/sign", "/api/of-query", "/api/of-query?id=7"):
        answer = await ask(site, path, method="POST", bearer=live.access_token)
        problem(answer, 403, "totp_required")
    await sessions.set_totp_verified(live.session_id, "both", "7")
    answer = await ask(site, "/api/of-query?id=7", method="POST", bearer=live.access_token)
    assert answer.status_code == 200


async def test_fifty_requests_at_once_sign_once_with_one_code(site: Site) -> None:
    live = await made(site, amr=("pwd", "otp"))
    await site.seal.sessions.set_totp_verified(live.session_id, "signing", "7")
    answers = await asyncio.gather(
        *(ask(site, "/api/requests/7/sign", method="POST", bearer=live.access_token) for _ in range(50))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [403] * 49


async def test_a_route_that_names_no_request_to_sign_is_a_fault_of_the_route(site: Site) -> None:
    live = await made(site)
    answer = await ask(site, "/api/nothing-to-sign", method="POST", bearer=live.access_token)
    assert answer.status_code == 500


@pytest.mark.parametrize("context", ["both", "logn", "", "SIGNING"])
def test_a_context_that_nothing_can_be_required_for_is_refused(context: str) -> None:
    with pytest.raises(ConfigurationError, match="require_totp: expected login or signing"):
        require_totp(context)


# -- pages of other sites ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_an_unsafe_request_of_another_site_is_refused(site: Site, method: str) -> None:
    token = (await made(site)).access_token
    for fields in (
        [("Origin", "https://evil.example")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Origin", "null")],
        [],
    ):
        answer = await ask(site, method=method, cookie=token, fields=fields)
        problem(answer, 403, "origin_refused")
    for fields in ([("Origin", BASE)], [("Sec-Fetch-Site", "same-origin")]):
        assert (await ask(site, method=method, cookie=token, fields=fields)).status_code == 200


async def test_a_route_for_everybody_is_guarded_too(site: Site) -> None:
    assert (await ask(site, "/api/open", method="POST")).status_code == 200
    fields = [("Origin", "https://evil.example")]
    problem(await ask(site, "/api/open", method="POST", fields=fields), 403, "origin_refused")


async def test_a_method_that_changes_nothing_passes_from_anywhere(site: Site) -> None:
    token = (await made(site)).access_token
    fields = [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")]
    for method in ("GET", "HEAD", "OPTIONS"):
        assert (await ask(site, method=method, cookie=token, fields=fields)).status_code == 200


async def test_a_program_with_a_bearer_token_needs_no_origin(site: Site) -> None:
    token = (await made(site)).access_token
    assert (await ask(site, method="POST", bearer=token)).status_code == 200
    fields = [("Origin", "https://app.example"), ("Sec-Fetch-Site", "cross-site")]
    assert (await ask(site, method="POST", bearer=token, fields=fields)).status_code == 200


async def test_origins_of_the_application_may_send(site: Site) -> None:
    token = (await made(site)).access_token
    app = application(site.seal, origins=["https://app.example"])
    fields = [("Origin", "https://app.example"), ("Sec-Fetch-Site", "same-site")]
    assert (await ask(site, method="POST", cookie=token, fields=fields, app=app)).status_code == 200
    problem(await ask(site, method="POST", cookie=token, fields=fields), 403, "origin_refused")


async def test_the_public_url_is_this_site(valkey: Server, tmp_path: Path) -> None:
    async with seal_on(valkey, tmp_path, {"COUNTERSEAL_PUBLIC_URL": "https://public.example"}) as seal:
        site = Site(seal, application(seal))
        fields = [("Origin", "https://public.example")]
        assert (await ask(site, "/api/open", method="POST", fields=fields)).status_code == 200
        problem(await ask(site, "/api/open", method="POST", fields=[("Origin", BASE)]), 403, "origin_refused")


# -- WebSockets --------------------------------------------------------------------------------------------------------


async def connect(site: Site, *fields: tuple[str, str]) -> list[Message]:
    """What a handshake with these header fields is answered, until the end."""
    sent: list[Message] = []
    incoming: list[Message] = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        return incoming.pop(0) if incoming else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "wss",
        "path": "/live",
        "raw_path": b"/live",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"sign.example"),
            *((name.lower().encode(), value.encode()) for name, value in fields),
        ],
        "client": ("203.0.113.5", 1),
        "server": ("sign.example", 443),
        "subprotocols": [],
    }
    await site.app(scope, receive, send)
    return sent


def is_refused(sent: list[Message], reason: str) -> bool:
    return [(each["type"], each.get("code"), each.get("reason")) for each in sent] == [
        ("websocket.close", 1008, reason)
    ]


async def test_a_websocket_of_a_session_is_accepted(site: Site) -> None:
    token = (await made(site)).access_token
    for fields in (
        [("Authorization", f"Bearer {token}")],
        [("Cookie", f"__Host-cs_at={token}"), ("Origin", BASE)],
    ):
        accepted, told, _ = await connect(site, *fields)
        assert accepted["type"] == "websocket.accept"
        assert told["text"] == "alice"


async def test_a_websocket_without_a_session_or_of_another_site_is_never_accepted(site: Site) -> None:
    live = await made(site)
    cookie = ("Cookie", f"__Host-cs_at={live.access_token}")
    assert is_refused(await connect(site), "unauthorized")
    assert is_refused(await connect(site, ("Authorization", "Bearer x")), "unauthorized")
    assert is_refused(await connect(site, cookie, ("Origin", "https://evil.example")), "origin_refused")
    assert is_refused(await connect(site, cookie), "origin_refused")
    assert is_refused(await connect(site, ("Origin", "https://evil.example")), "origin_refused")
    await site.seal.sessions.revoke(live.session_id)
    assert is_refused(await connect(site, cookie, ("Origin", BASE)), "unauthorized")


# -- other parts of the house ------------------------------------------------------------------------------------------


async def test_a_response_that_asked_for_the_session_is_not_kept_for_others(site: Site) -> None:
    pages = ResponseCache(site.seal, kind=PAGES)
    router = APIRouter(route_class=pages.route_class)
    runs: list[str | None] = []

    @router.get("/api/page")
    async def page(session: Annotated[Session | None, Depends(optional_session)]) -> dict[str, str | None]:
        runs.append(None if session is None else session.user_id)
        return {"user": runs[-1]}

    site.app.include_router(router)
    alice, bob = await made(site), await made(site, "bob")
    for cookie in (None, alice.access_token, bob.access_token, None):
        await ask(site, "/api/page", cookie=cookie)
    assert runs == [None, "alice", "bob", None]


async def test_limits_are_charged_to_the_session_that_a_signed_token_names(site: Site) -> None:
    live = await made(site)
    answer = await ask(site, bearer=live.access_token)
    assert answer.headers["X-RateLimit-Remaining"] == "99"
    assert (await site.seal.rate_limits.api.peek(f"user:{live.session_id}")).remaining == 99
    assert (await site.seal.rate_limits.api.peek("203.0.113.5")).remaining == 100


async def test_a_token_that_is_worth_nothing_any_more_uses_up_nothing_of_its_user(site: Site) -> None:
    ended, live = await made(site), await made(site)
    await site.seal.sessions.revoke(ended.session_id)
    answers = [(await ask(site, bearer=ended.access_token)).status_code for _ in range(101)]
    assert answers == [401] * 100 + [429]
    assert (await ask(site, bearer=live.access_token)).status_code == 200


async def test_without_the_middleware_a_dependency_says_what_is_missing(site: Site) -> None:
    app = FastAPI()

    @app.get("/api/mine")
    async def mine(session: Annotated[Session, Depends(current_session)]) -> None: ...

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        with pytest.raises(ConfigurationError, match="expected SessionMiddleware"):
            await client.get("/api/mine")


async def test_starlette_asks_by_a_call(site: Site) -> None:
    async def mine(request: Request) -> Response:
        return JSONResponse({"user": (await current_session(request)).user_id})

    app = Starlette(
        routes=[Route("/api/mine", mine)], middleware=[Middleware(SessionMiddleware, seal=site.seal)]
    )
    live = await made(site)
    assert (await ask(site, app=app, bearer=live.access_token)).json() == {"user": "alice"}
    problem(await ask(site, app=app), 401, "unauthorized")
    problem(await ask(site, app=app, bearer="x"), 401, "unauthorized")


async def test_with_redis_down_the_database_says_who_asks_and_without_both_nobody_does(
    valkey: Server, tmp_path: Path
) -> None:
    async with seal_on(valkey, tmp_path, {"COUNTERSEAL_COMMAND_TIMEOUT": "500ms"}) as seal:
        site = Site(seal, application(seal))
        live = await made(site)
        valkey.kill()
        await eventually(lambda: not seal.store.available)
        answer = await ask(site, bearer=live.access_token)
        assert (answer.status_code, answer.json()) == (200, {"user": "alice"})
        await lose_database(seal)
        for path, method in (("/api/mine", "GET"), ("/api/fresh", "POST"), ("/api/requests/7/sign", "POST")):
            answer = await ask(site, path, method=method, bearer=live.access_token)
            assert answer.status_code == 503, answer.text
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert int(answer.headers["Retry-After"]) >= 1
        # A token that nobody has signed needs no service to be refused.
        problem(await ask(site, bearer="x"), 401, "unauthorized")
