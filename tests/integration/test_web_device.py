"""A session that comes to another browser and another network at once may be stolen: it reads, and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pyotp
import pytest
from fastapi import Depends, WebSocket

from counterseal.web.sessions import current_session, optional_session, require_totp
from support.databases import Databases
from support.servers import Server
from support.site import PASSWORD, Client, Site, problem, site_on
from support.stores import travel

ALICE = "alice@example.com"
SAFARI = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.6 Safari/605.1.15"
HERE, NEARBY, ELSEWHERE = "198.51.100.7", "198.51.100.200", "203.0.113.9"


@pytest.fixture
async def site(valkey: Server, databases: Databases, tmp_path: Path) -> AsyncIterator[Site]:
    async with (
        databases.place("sqlite", tmp_path) as place,
        site_on(valkey, place.data_dir) as site,
    ):
        yield site


def with_tokens_of(site: Site, client: Client, *, peer: str, user_agent: str | None = None) -> Client:
    """A browser with the cookies of another one."""
    thief = site.browser(peer=peer)
    thief.cookies = httpx.Cookies(client.cookies)
    if user_agent is not None:
        thief.headers["User-Agent"] = user_agent
    return thief


async def signed_up(site: Site) -> Client:
    client = site.browser(peer=HERE)
    await client.sign_up(ALICE)
    return client


async def enrol(site: Site, client: Client) -> pyotp.TOTP:
    authenticator = pyotp.TOTP((await client.post("/api/auth/totp/set-up")).json()["secret"])
    confirmed = await client.post("/api/auth/totp/confirm", json={"code": code_of(site, authenticator)})
    assert confirmed.status_code == 200, confirmed.text
    travel(site.seal.store, timedelta(seconds=31))  # a code is good once
    return authenticator


def code_of(site: Site, authenticator: pyotp.TOTP) -> str:
    return authenticator.at(site.seal.store.now_ms() // 1000)


CHANGES: list[tuple[str, str, Any]] = [
    ("POST", "/api/auth/sessions/revoke-others", None),
    ("POST", "/api/auth/password", {"current_password": PASSWORD, "new_password": "another good one"}),
    ("POST", "/api/auth/totp/set-up", None),
    ("POST", "/api/auth/totp/disable", {"code": "123456"}),
    ("DELETE", "/api/auth/sessions/alice.1", None),
    ("GET", "/api/auth/sessions", None),  # asks the database, as whatever matters
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
async def test_what_matters_is_refused_where_browser_and_network_are_others(
    site: Site, method: str, path: str, body: Any
) -> None:
    thief = with_tokens_of(site, await signed_up(site), peer=ELSEWHERE, user_agent=SAFARI)
    told = problem(await thief.request(method, path, json=body), 403, "device_changed")
    assert "/api/auth/totp/verify" in told["detail"]
    assert "log in anew" in told["detail"]
    assert (await thief.get("/api/auth/me")).status_code == 200


async def test_another_browser_or_another_network_alone_is_no_theft(site: Site) -> None:
    client = await signed_up(site)
    for peer, user_agent in ((ELSEWHERE, None), (NEARBY, SAFARI), (HERE, SAFARI)):
        same = with_tokens_of(site, client, peer=peer, user_agent=user_agent)
        answer = await same.post("/api/auth/sessions/revoke-others")
        assert answer.status_code == 200, (peer, user_agent)


async def test_routes_of_the_application_are_refused_by_method(site: Site) -> None:
    routes = site.app
    for path, asked in (("/mine", current_session), ("/maybe", optional_session)):
        routes.add_api_route(path, lambda: "done", methods=["GET", "POST"], dependencies=[Depends(asked)])
    for context in ("login", "signing"):
        routes.add_api_route(
            f"/{context}/{{request_id}}",
            lambda: "done",
            methods=["GET"],
            dependencies=[Depends(require_totp(context))],
        )
    thief = with_tokens_of(site, await signed_up(site), peer=ELSEWHERE, user_agent=SAFARI)
    for path in ("/mine", "/maybe"):
        assert (await thief.get(path)).status_code == 200
        problem(await thief.post(path), 403, "device_changed")
    for path in ("/login/7", "/signing/7"):
        problem(await thief.get(path), 403, "device_changed")
    # Nobody is nobody, wherever they are.
    assert (await site.browser(peer=ELSEWHERE).post("/maybe")).status_code == 200


async def test_a_websocket_is_refused_too(site: Site) -> None:
    @site.app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await current_session(socket)
        await socket.accept()

    client = await signed_up(site)
    token = client.cookies["__Host-cs_at"]

    async def connect(peer: str, user_agent: str) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "websocket",
            "path": "/live",
            "query_string": b"",
            "headers": [
                (b"authorization", f"Bearer {token}".encode()),
                (b"user-agent", user_agent.encode()),
            ],
            "client": (peer, 1),
            "subprotocols": [],
        }
        await site.app(scope, receive, send)
        return sent

    assert [each["type"] for each in await connect(HERE, SAFARI)] == ["websocket.accept"]
    (refused,) = await connect(ELSEWHERE, SAFARI)
    assert (refused["code"], refused["reason"]) == (1008, "device_changed")


async def test_the_address_is_the_one_that_the_proxies_vouch_for(valkey: Server, tmp_path: Path) -> None:
    async with site_on(valkey, tmp_path, {"COUNTERSEAL_TRUSTED_PROXIES": "1"}) as site:
        client = site.browser(peer="192.0.2.1")
        client.headers["X-Forwarded-For"] = HERE
        await client.sign_up(ALICE)
        moved = with_tokens_of(site, client, peer="192.0.2.1", user_agent=SAFARI)
        moved.headers["X-Forwarded-For"] = f"{HERE}, {ELSEWHERE}"
        problem(await moved.post("/api/auth/sessions/revoke-others"), 403, "device_changed")
        moved.headers["X-Forwarded-For"] = f"{ELSEWHERE}, {NEARBY}"
        assert (await moved.post("/api/auth/sessions/revoke-others")).status_code == 200


async def test_a_code_makes_the_new_device_known(site: Site) -> None:
    client = await signed_up(site)
    authenticator = await enrol(site, client)
    moved = with_tokens_of(site, client, peer=ELSEWHERE, user_agent=SAFARI)
    problem(await moved.get("/api/auth/totp"), 403, "device_changed")
    wrong = {"code": f"{(int(code_of(site, authenticator)) + 314_159) % 1_000_000:06}", "context": "login"}
    problem(await moved.post("/api/auth/totp/verify", json=wrong), 400, "code_invalid")
    problem(await moved.post("/api/auth/sessions/revoke-others"), 403, "device_changed")
    right = {"code": code_of(site, authenticator), "context": "login"}
    shown = await moved.post("/api/auth/totp/verify", json=right)
    assert shown.status_code == 200, shown.text
    assert (await moved.get("/api/auth/totp")).status_code == 200
    assert (await moved.post("/api/auth/sessions/revoke-others")).status_code == 200


async def test_the_ways_out_stay_open(site: Site) -> None:
    client = await signed_up(site)
    moved = with_tokens_of(site, client, peer=ELSEWHERE, user_agent=SAFARI)
    assert (await moved.post("/api/auth/refresh")).status_code == 200
    problem(await moved.post("/api/auth/sessions/revoke-others"), 403, "device_changed")
    # Without a second factor: a log-in, which ends the old session and begins one of this device.
    assert (await moved.log_in(ALICE)).status_code == 200
    assert (await moved.post("/api/auth/sessions/revoke-others")).status_code == 200
    again = with_tokens_of(site, moved, peer=HERE)
    problem(await again.post("/api/auth/sessions/revoke-others"), 403, "device_changed")
    assert (await again.post("/api/auth/log-out")).status_code == 204
    assert (await moved.get("/api/auth/me")).status_code == 401
