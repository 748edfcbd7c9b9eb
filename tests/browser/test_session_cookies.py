"""Sessions in a real browser, over http on loopback: it keeps the cookies, shows them to no script, and sends them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal.web import create_app
from support.browser import Browser, Page, browser_in
from support.databases import Databases
from support.gateway import serving
from support.servers import Server
from support.site import PASSWORD, seal_on

ACCESS, REFRESH = "__Host-cs_at", "__Secure-cs_rt"
BOTH = {ACCESS, REFRESH}

PAGE = """<!doctype html><meta charset="utf-8"><title>a page of a test</title>
<form method="post"></form>
<pre></pre>
<script>
const who = {email: "alice@example.com", password: "PASSWORD"};
const routes = {
  "sign-up": ["POST", "/api/auth/sign-up", who],
  "log-in": ["POST", "/api/auth/log-in", who],
  "refresh": ["POST", "/api/auth/refresh"],
  "log-out": ["POST", "/api/auth/log-out"],
  "me": ["GET", "/api/auth/me"],
  "devices": ["GET", "/api/auth/sessions"],
};
async function ask(name) {
  const [method, path, body] = routes[name];
  const told = body ? {headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)} : {};
  const answer = await fetch(path, {method, ...told});
  const text = await answer.text();
  return {
    name,
    status: answer.status,
    body: text ? JSON.parse(text) : null,
    set: answer.headers.get("Set-Cookie"),
    cookies: document.cookie,
    stored: (await cookieStore.getAll()).map(cookie => cookie.name),
  };
}
async function see(...names) {
  const seen = [];
  for (const name of names) seen.push(await ask(name));
  document.querySelector("pre").textContent = JSON.stringify(seen);
}
async function attack(to) {
  const path = to + "/api/auth/log-out";
  const seen = [];
  for (const mode of ["no-cors", "cors"]) {
    const sent = fetch(path, {method: "POST", mode, credentials: "include"});
    seen.push(await sent.then(answer => answer.status, () => "nothing"));
  }
  document.querySelector("pre").textContent = JSON.stringify(seen);
}
</script>
""".replace("PASSWORD", PASSWORD)


@dataclass(frozen=True)
class Request:
    """What came to the application, and what it answered."""

    method: str
    path: str
    cookies: set[str]
    site: str | None
    status: int
    set_cookie_lines: int


@dataclass
class Pages:
    """The application, and pages of a test on the same origin."""

    app: ASGIApp
    came: list[Request] = field(default_factory=list[Request])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/a-page":
            await HTMLResponse(PAGE)(scope, receive, send)
            return

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message)
            await send(message)

        await self.app(scope, receive, seen)

    def of(self, path: str) -> list[Request]:
        """The requests to a path of `/api/auth` so far."""
        return [request for request in self.came if request.path == f"/api/auth/{path}"]

    def _note(self, scope: Scope, answer: Message) -> None:
        fields = {name: value.decode("latin-1") for name, value in scope["headers"]}
        names = {pair.partition("=")[0].strip() for pair in fields.get(b"cookie", "").split(";")} - {""}
        lines = sum(name.lower() == b"set-cookie" for name, _ in answer["headers"])
        self.came.append(
            Request(
                scope["method"],
                scope["path"],
                names,
                fields.get(b"sec-fetch-site"),
                answer["status"],
                lines,
            )
        )


@dataclass
class House:
    """A browser before the application, which two ports lead to."""

    pages: Pages
    browser: Browser
    origin: str
    neighbour: str


@asynccontextmanager
async def opened(valkey: Server, databases: Databases, folder: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(databases.place("sqlite", folder / "data"))
        seal = await stack.enter_async_context(seal_on(valkey, place.data_dir))
        pages = Pages(create_app(seal))
        origin = await stack.enter_async_context(serving(pages))
        neighbour = await stack.enter_async_context(serving(pages))
        browser = await stack.enter_async_context(browser_in(folder / "browser"))
        yield House(pages, browser, origin, neighbour)


@pytest.fixture
async def house(valkey: Server, databases: Databases, tmp_path: Path) -> AsyncIterator[House]:
    async with opened(valkey, databases, tmp_path) as house:
        yield house


async def see(page: Page, *names: str) -> list[dict[str, Any]]:
    """Have a page ask these routes, and read what it has written of that. No script ever sees a cookie."""
    text = await page.run(
        f"see(...{json.dumps(names)}).then(() => document.querySelector('pre').textContent)"
    )
    seen = json.loads(text)
    assert [each["name"] for each in seen] == list(names)
    for each in seen:
        assert (each["set"], each["cookies"], each["stored"]) == (None, "", [])
        assert not re.search(r'"(access|refresh)_token"', json.dumps(each["body"]))
    return seen


def statuses(seen: list[dict[str, Any]]) -> list[int]:
    return [each["status"] for each in seen]


async def test_a_browser_keeps_both_cookies_hides_them_and_sends_them_until_the_log_out(house: House) -> None:
    assert house.origin.startswith("http://127.0.0.1:")
    page = await house.browser.page()
    await page.go(f"{house.origin}/a-page")
    assert await page.run("[isSecureContext, document.querySelector('pre').textContent]") == [True, ""]

    assert statuses(await see(page, "me", "sign-up", "me", "log-out", "me")) == [401, 201, 200, 204, 401]
    assert await house.browser.cookies() == {}

    seen = await see(page, "log-in", "me", "refresh", "devices", "me")
    assert statuses(seen) == [200] * 5
    assert [each["body"]["user"]["email"] for each in (seen[0], seen[1], seen[4])] == [
        "alice@example.com"
    ] * 3
    assert [device["current"] for device in seen[3]["body"]["sessions"]] == [True]
    kept = await house.browser.cookies()
    assert {
        name: (cookie["domain"], cookie["path"], cookie["sameSite"], cookie["session"])
        for name, cookie in kept.items()
    } == {
        ACCESS: ("127.0.0.1", "/", "Lax", True),
        REFRESH: ("127.0.0.1", "/api/auth", "Strict", False),
    }
    assert {(cookie["httpOnly"], cookie["secure"]) for cookie in kept.values()} == {(True, True)}

    # Another page finds the session, a script that writes a cookie of the same name does not change it, and a refresh
    # has replaced what there was.
    await page.go(f"{house.origin}/a-page")
    await page.run(f"document.cookie = '{ACCESS}=planted; Path=/; Secure'")
    assert statuses(await see(page, "me", "refresh", "me")) == [200] * 3
    renewed = await house.browser.cookies()
    assert set(renewed) == BOTH
    assert not {kept[name]["value"] for name in BOTH} & {renewed[name]["value"] for name in BOTH}
    await page.run("fetch('/')")
    assert [each.cookies for each in house.pages.came if each.path == "/"] == [{ACCESS}]

    assert statuses(await see(page, "log-out", "me")) == [204, 401]
    assert await house.browser.cookies() == {}
    assert [(each.cookies, each.set_cookie_lines) for each in house.pages.of("log-out")] == [(BOTH, 2)] * 2
    assert [each.cookies for each in house.pages.of("refresh")] == [BOTH] * 2
    assert house.pages.of("me")[-1].cookies == set()
    assert {each.site for each in house.pages.came if each.path.startswith("/api/")} == {"same-origin"}


@pytest.mark.parametrize("where", ["another port", "another host"])
async def test_what_a_page_of_another_origin_sends_is_refused(house: House, where: str) -> None:
    page = await house.browser.page()
    await page.go(f"{house.origin}/a-page")
    assert statuses(await see(page, "sign-up")) == [201]
    # Cookies know no ports, so there the browser sends both along.
    foreign, site, sent = (
        (house.neighbour, "same-site", BOTH)
        if where == "another port"
        else (house.origin.replace("127.0.0.1", "localhost"), "cross-site", set[str]())
    )
    await page.go(f"{foreign}/a-page")
    assert json.loads(
        await page.run(f"attack({house.origin!r}).then(() => document.querySelector('pre').textContent)")
    ) == ["nothing", "nothing"]
    assert [each.status for each in house.pages.of("log-out")] == [403, 403]
    await page.leave(
        f"document.forms[0].action = {house.origin + '/api/auth/log-out'!r}; document.forms[0].submit()"
    )
    assert json.loads(await page.run("document.body.innerText"))["code"] == "origin_refused"
    assert [(each.method, each.status, each.site, each.cookies) for each in house.pages.of("log-out")] == [
        ("POST", 403, site, sent)
    ] * 3
    assert {each.set_cookie_lines for each in house.pages.of("log-out")} == {0}
    await page.go(f"{house.origin}/a-page")
    assert statuses(await see(page, "me")) == [200]
