"""counterseal below a path of an application: a browser logs in there, gets new tokens and logs out."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from counterseal.web import create_app
from support.servers import Server
from support.site import PASSWORD, Site, seal_on, set_cookies

ALICE = {"email": "alice@example.com", "password": PASSWORD}


def once(inner: ASGIApp) -> ASGIApp:
    outer = FastAPI()
    outer.mount("/counterseal", inner)
    return outer


def twice(inner: ASGIApp) -> ASGIApp:
    return Starlette(routes=[Mount("/a", routes=[Mount("/b c", inner)])])


@pytest.mark.parametrize(
    ("outer", "asked", "path"),
    [(once, "/counterseal", "/counterseal/api/auth"), (twice, "/a/b%20c", "/a/b%20c/api/auth")],
)
async def test_a_browser_has_its_cookies_where_the_routes_are(
    valkey: Server, tmp_path: Path, outer: object, asked: str, path: str
) -> None:
    async with seal_on(valkey, tmp_path) as seal:
        assert callable(outer)
        site = Site(seal, outer(create_app(seal)))
        try:
            browser = site.browser()
            made = await browser.post(f"{asked}/api/auth/sign-up", json=ALICE)
            assert made.status_code == 201, made.text
            assert f"Path={path}" in set_cookies(made)["__Secure-cs_rt"][1]
            before = dict(browser.cookies)
            renewed = await browser.post(f"{asked}/api/auth/refresh")
            assert renewed.status_code == 200, renewed.text
            assert browser.cookies["__Secure-cs_rt"] != before["__Secure-cs_rt"]
            # The refresh cookie alone ends the session, and is forgotten.
            browser.cookies.delete("__Host-cs_at")
            access = set_cookies(renewed)["__Host-cs_at"][0]
            assert (await browser.post(f"{asked}/api/auth/log-out")).status_code == 204
            assert not browser.cookies
            program = site.program(token=access)
            assert (await program.get(f"{asked}/api/auth/me")).status_code == 401
        finally:
            await site.close()
