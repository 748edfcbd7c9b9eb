"""Logging out, whatever comes with it: the session ends where it can, and the browser has no tokens afterwards."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from support.databases import Databases
from support.servers import Server
from support.site import Client, Site, problem, set_cookies, site_on

ALICE = "alice@example.com"
ACCESS, REFRESH = "__Host-cs_at", "__Secure-cs_rt"
OUT = "/api/auth/log-out"


@pytest.fixture
async def site(valkey: Server, databases: Databases, tmp_path: Path) -> AsyncIterator[Site]:
    async with (
        databases.place("sqlite", tmp_path) as place,
        site_on(valkey, place.data_dir) as site,
    ):
        yield site


async def signed_up(site: Site) -> tuple[Client, str, str]:
    """A browser that is logged in, its session and its access token."""
    client = site.browser()
    made = await client.sign_up(ALICE)
    return client, made.json()["session_id"], client.cookies[ACCESS]


async def is_live(site: Site, token: str) -> bool:
    return (await site.program(token=token).get("/api/auth/me")).status_code == 200


def is_forgotten(answer: httpx.Response) -> bool:
    found = set_cookies(answer)
    return set(found) == {ACCESS, REFRESH} and all(
        value == "" and "Max-Age=0" in attributes for value, attributes in found.values()
    )


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[]", "application/json", 422),
        (b'{"refresh_token": 7}', "application/json", 422),
        (b'{"everywhere": true}', "application/json", 422),
        (b"\xff\xfe\xfd", "application/json", 422),
        (gzip.compress(b"{}", mtime=0), "application/json", 422),
        (b"[" * 16_000, "application/json", 422),
        (b"good bye", "text/plain", 422),
        (b" " * 17_000, "application/json", 413),
    ],
)
async def test_a_body_that_is_refused_keeps_nobody_logged_in(
    site: Site, content: bytes, kind: str, status: int
) -> None:
    client, _, token = await signed_up(site)
    out = await client.post(OUT, content=content, headers={"Content-Type": kind})
    problem(out, status, "body_too_large" if status == 413 else "request_invalid")
    assert is_forgotten(out)
    assert not client.cookies
    assert not await is_live(site, token)


async def test_a_body_that_is_refused_ends_nothing_for_who_has_no_token(site: Site) -> None:
    _, session_id, token = await signed_up(site)
    body = {"refresh_token": f"v1.{session_id}.{'a' * 59}", "everywhere": True}
    problem(await site.program().post(OUT, json=body), 422, "request_invalid")
    assert await is_live(site, token)


async def test_a_page_of_another_site_clears_no_cookies(site: Site) -> None:
    client, _, token = await signed_up(site)
    out = await client.post(OUT, headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"})
    problem(out, 403, "origin_refused")
    assert set_cookies(out) == {}
    assert await is_live(site, token)


async def test_a_session_that_has_used_up_its_requests_still_logs_out(site: Site) -> None:
    client, session_id, token = await signed_up(site)
    await site.seal.rate_limits.api.limit(f"user:{session_id}", 100)
    problem(await client.get("/api/auth/me"), 429, "rate_limited")
    assert (await client.post(OUT)).status_code == 204
    assert not await is_live(site, token)


async def test_log_outs_of_one_session_are_limited_and_clear_the_cookies_all_the_same(site: Site) -> None:
    client, _, token = await signed_up(site)
    program = site.program(token=token)
    assert [(await program.post(OUT)).status_code for _ in range(100)] == [204] * 100
    problem(await program.post(OUT), 429, "rate_limited")
    out = await client.post(OUT)
    problem(out, 429, "rate_limited")
    assert is_forgotten(out)


async def test_openapi_says_that_an_end_may_wait_for_the_database(site: Site) -> None:
    paths = (await site.browser().get("/openapi.json")).json()["paths"]
    for method, path in (
        ("post", OUT),
        ("delete", "/api/auth/sessions/{session_id}"),
        ("post", "/api/auth/sessions/revoke-others"),
    ):
        assert "database is down" in paths[path][method]["responses"]["202"]["description"], path
    ended = paths["/api/auth/sessions/revoke-others"]["post"]["responses"]["202"]["content"]
    assert ended["application/json"]["schema"] == {"$ref": "#/components/schemas/EndedBody"}
