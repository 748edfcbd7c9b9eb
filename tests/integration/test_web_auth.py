"""The routes below `/api/auth`: whole ways through them, what bad input gets, and what stands in every answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyotp
import pytest
from fastapi.routing import APIRoute

from counterseal.accounts.events import EmailVerificationRequested, PasswordResetRequested
from counterseal.web.sessions import anywhere_session, current_session, fresh_session, recent_login
from support.databases import Databases, Place
from support.servers import Server
from support.site import PASSWORD, Client, Site, lose_database, problem, set_cookies, site_on
from support.stores import travel
from support.waiting import eventually

ALICE, BOB = "alice@example.com", "bob@example.com"
ACCESS, REFRESH = "__Host-cs_at", "__Secure-cs_rt"
MINUTE = timedelta(minutes=1)


class Mailbox:
    """Listens to what is to be mailed."""

    def __init__(self) -> None:
        self.resets: list[PasswordResetRequested] = []
        self.verifications: list[EmailVerificationRequested] = []

    @property
    def listeners(self) -> dict[type, list[Any]]:
        return {
            PasswordResetRequested: [self.resets.append],
            EmailVerificationRequested: [self.verifications.append],
        }


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
async def site(valkey: Server, databases: Databases, tmp_path: Path, mailbox: Mailbox) -> AsyncIterator[Site]:
    async with (
        databases.place("sqlite", tmp_path) as place,
        site_on(valkey, place.data_dir, listeners=mailbox.listeners) as site,
    ):
        yield site


def cleared(answer: httpx.Response) -> bool:
    """Whether an answer has a browser forget both tokens."""
    found = set_cookies(answer)
    return set(found) == {ACCESS, REFRESH} and all(
        value == "" and "Max-Age=0" in attributes for value, attributes in found.values()
    )


async def who(client: Client) -> str | None:
    """Whom a client is logged in as."""
    answer = await client.get("/api/auth/me")
    if answer.status_code == 401:
        return None
    assert answer.status_code == 200, answer.text
    return answer.json()["user"]["email"]


async def enrol(site: Site, client: Client, **chosen: bool) -> tuple[pyotp.TOTP, list[str]]:
    """Set up a second factor: its authenticator, and the backup codes."""
    begun = await client.post("/api/auth/totp/set-up")
    assert begun.status_code == 200, begun.text
    authenticator = pyotp.TOTP(begun.json()["secret"])
    confirmed = await client.post(
        "/api/auth/totp/confirm", json={"code": code_of(site, authenticator), **chosen}
    )
    assert confirmed.status_code == 200, confirmed.text
    # A code is good once, so that the next one is of another step.
    travel(site.seal.store, timedelta(seconds=31))
    return authenticator, confirmed.json()["backup_codes"]


def code_of(site: Site, authenticator: pyotp.TOTP) -> str:
    return authenticator.at(site.seal.store.now_ms() // 1000)


def another(code: str) -> str:
    """A code of six digits that is not this one, nor near it by chance."""
    return f"{(int(code) + 314_159) % 1_000_000:06}"


# -- the table of routes -----------------------------------------------------------------------------------------------

NOBODY, LIVE, FRESH, RECENT = "nobody", "a session", "a session, by the database", "a log-in of 10 minutes"
ANYWHERE = "a session, by the database, from any device"

ROUTES = {
    ("POST", "/api/auth/sign-up"): NOBODY,
    ("POST", "/api/auth/log-in"): NOBODY,
    ("POST", "/api/auth/totp/log-in"): NOBODY,  # the ticket of the first step
    ("POST", "/api/auth/totp/log-in/set-up"): NOBODY,  # the ticket, and no factor that is enabled
    ("POST", "/api/auth/totp/log-in/confirm"): NOBODY,  # the same, and a code
    ("POST", "/api/auth/refresh"): NOBODY,  # the refresh token
    ("POST", "/api/auth/log-out"): NOBODY,  # ends what the tokens name
    ("POST", "/api/auth/password"): RECENT,  # and the password
    ("POST", "/api/auth/password/forgot"): NOBODY,
    ("POST", "/api/auth/password/reset"): NOBODY,  # the token of a mail
    ("POST", "/api/auth/email/send-verification"): FRESH,
    ("POST", "/api/auth/email/verify"): NOBODY,  # the token of a mail
    ("GET", "/api/auth/me"): LIVE,
    ("GET", "/api/auth/sessions"): FRESH,
    ("DELETE", "/api/auth/sessions/{session_id}"): FRESH,  # and a recent log-in for another than its own
    ("POST", "/api/auth/sessions/revoke-others"): RECENT,
    ("GET", "/api/auth/totp"): FRESH,
    ("POST", "/api/auth/totp/set-up"): RECENT,
    ("POST", "/api/auth/totp/confirm"): RECENT,
    ("POST", "/api/auth/totp/verify"): ANYWHERE,
    ("POST", "/api/auth/totp/disable"): RECENT,
    ("POST", "/api/auth/totp/backup-codes"): FRESH,
}
"""Every route below `/api/auth`, reviewed: who may call it."""

SECURITY = {
    "/api/auth/refresh": ["refresh_cookie"],
    "/api/auth/log-out": ["session_bearer", "session_cookie", "refresh_cookie"],
}
"""What OpenAPI says that a route takes, where that is something else than an access token."""


async def test_every_route_has_the_authorisation_that_was_reviewed(site: Site) -> None:
    declared = {current_session: LIVE, fresh_session: FRESH, recent_login: RECENT, anywhere_session: ANYWHERE}
    found = {
        (method, route.path): next(
            (declared[each.call] for each in route.dependant.dependencies if each.call in declared), NOBODY
        )
        for route in site.app.routes
        if isinstance(route, APIRoute) and route.path.startswith("/api/auth")
        for method in route.methods
    }
    assert found == ROUTES


async def test_every_route_that_needs_a_session_says_the_same_401_without_one(site: Site) -> None:
    client = site.browser()
    await site.seal.rate_limits.allow("198.51.100.0/24")
    answers = {
        (method, path): await client.request(
            method, path.replace("{session_id}", "alice.1"), json=None if method == "GET" else {}
        )
        for method, path in ROUTES
    }
    refused = {route: answer for route, answer in answers.items() if answer.status_code == 401}
    needs = {route for route, wanted in ROUTES.items() if wanted != NOBODY}
    assert set(refused) == needs | {("POST", "/api/auth/refresh")}
    assert len({(answer.content, tuple(answer.headers.raw)) for answer in refused.values()}) == 1


async def test_every_answer_below_auth_is_stored_by_nobody(site: Site) -> None:
    client = site.browser()
    await site.seal.rate_limits.allow("198.51.100.0/24")
    answers = [await client.sign_up(ALICE)]
    for method, path in (
        *ROUTES,
        ("GET", "/api/auth/log-in"),
        ("GET", "/api/auth/none"),
        ("HEAD", "/api/auth/me"),
    ):
        answers.append(await client.request(method, path.replace("{session_id}", "alice.1")))
    assert {answer.headers.get("Cache-Control") for answer in answers} == {"no-store"}
    assert {200, 201, 204, 401, 404, 405, 422} <= {answer.status_code for answer in answers}


async def test_openapi_describes_every_route_and_what_it_refuses(site: Site) -> None:
    described = (await site.browser().get("/openapi.json")).json()
    for (method, path), wanted in ROUTES.items():
        operation = described["paths"][path][method.lower()]
        assert operation["summary"], path
        refusals = {status for status in operation["responses"] if status >= "400"}
        assert {"403", "413", "422", "429", "503"} <= refusals, path
        assert "401" in refusals or wanted == NOBODY
        for status in refusals:
            assert list(operation["responses"][status]["content"]) == ["application/problem+json"]
        named = [name for each in operation.get("security", []) for name in each]
        assert named == SECURITY.get(
            path, [] if wanted == NOBODY else ["session_bearer", "session_cookie"]
        ), path
        # Whoever has none of them may ask all the same, or has a token in the body.
        assert ({} in operation.get("security", [])) == (path in SECURITY), path
    assert {
        name: (scheme["type"], scheme.get("scheme", scheme.get("name")), scheme.get("in"))
        for name, scheme in described["components"]["securitySchemes"].items()
    } == {
        "session_bearer": ("http", "bearer", None),
        "session_cookie": ("apiKey", ACCESS, "cookie"),
        "refresh_cookie": ("apiKey", REFRESH, "cookie"),
    }
    log_in = described["components"]["schemas"]["LogIn"]["properties"]
    assert log_in["password"]["writeOnly"] is True
    assert log_in["password"]["maxLength"] == 1024


# -- signing up, logging in and out ------------------------------------------------------------------------------------


async def test_a_sign_up_logs_in_with_two_cookies_and_no_token_in_the_body(site: Site) -> None:
    client = site.browser()
    answer = await client.sign_up(ALICE, full_name="Alice Liddell")
    body = answer.json()
    assert body == {
        "status": "logged_in",
        "user": {
            "id": body["user"]["id"],
            "email": ALICE,
            "full_name": "Alice Liddell",
            "email_verified": False,
        },
        "session_id": body["session_id"],
        "tokens": None,
    }
    assert body["session_id"].startswith(f"{body['user']['id']}.")
    cookies = set_cookies(answer)
    assert set(cookies) == {ACCESS, REFRESH}
    assert cookies[ACCESS][1] == {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"}
    (lives,) = {each for each in cookies[REFRESH][1] if each.startswith("Max-Age=")}
    assert 604_700 < int(lives.removeprefix("Max-Age=")) <= 604_800
    assert cookies[REFRESH][1] - {lives} == {"Path=/api/auth", "Secure", "HttpOnly", "SameSite=Strict"}
    assert await who(client) == ALICE


async def test_each_cookie_is_a_header_line_of_its_own(site: Site) -> None:
    answer = await site.browser().sign_up(ALICE)
    lines = [value for name, value in answer.headers.raw if name.lower() == b"set-cookie"]
    assert sorted(line.split(b"=")[0] for line in lines) == [b"__Host-cs_at", b"__Secure-cs_rt"]
    assert all(line.count(b"__Host-") + line.count(b"__Secure-") == 1 for line in lines)


async def test_a_program_gets_its_tokens_in_the_body_and_no_cookie(site: Site) -> None:
    program = site.program()
    answer = await program.sign_up(ALICE, tokens="body")
    assert set_cookies(answer) == {}
    tokens = answer.json()["tokens"]
    assert set(tokens) == {"access_token", "refresh_token", "access_expires_at", "refresh_expires_at"}
    now = datetime.fromtimestamp(site.seal.store.now_ms() / 1000, UTC)
    ends = {name: datetime.fromisoformat(tokens[name]) - now for name in tokens if name.endswith("_at")}
    assert timedelta(minutes=9) < ends["access_expires_at"] <= timedelta(minutes=10)
    assert timedelta(days=6, hours=23) < ends["refresh_expires_at"] <= timedelta(days=7)
    assert await who(site.program(token=tokens["access_token"])) == ALICE


async def test_a_log_in_needs_the_password_and_a_log_out_ends_it(site: Site) -> None:
    await site.browser().sign_up(ALICE)
    client = site.browser()
    problem(await client.log_in(ALICE, password="wrong password"), 400, "invalid_credentials")
    assert await who(client) is None
    answer = await client.log_in(ALICE)
    assert answer.status_code == 200
    assert answer.json()["status"] == "logged_in"
    assert await who(client) == ALICE
    tokens = dict(client.cookies)
    out = await client.post("/api/auth/log-out")
    assert (out.status_code, out.content) == (204, b"")
    assert cleared(out)
    assert await who(client) is None
    assert await who(site.program(token=tokens[ACCESS])) is None
    assert (
        await site.program().post("/api/auth/refresh", json={"refresh_token": tokens[REFRESH]})
    ).status_code == 401


async def test_an_unknown_address_is_told_what_a_wrong_password_is(site: Site) -> None:
    await site.browser().sign_up(ALICE)
    wrong = await site.browser().log_in(ALICE, password="wrong password")
    unknown = await site.browser().log_in("nobody@example.com", password="wrong password")
    assert wrong.content == unknown.content


async def test_a_log_out_needs_no_access_token_that_is_still_good(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    tokens = dict(client.cookies)
    travel(site.seal.store, timedelta(minutes=11))
    assert await who(client) is None
    out = await client.post("/api/auth/log-out")
    assert out.status_code == 204
    assert cleared(out)
    answer = await site.program().post("/api/auth/refresh", json={"refresh_token": tokens[REFRESH]})
    problem(answer, 401, "unauthorized")


async def test_a_log_out_takes_the_refresh_cookie_alone_or_the_access_token_alone(site: Site) -> None:
    for kept, lost in ((REFRESH, ACCESS), (ACCESS, REFRESH)):
        client = site.browser()
        await (client.log_in(ALICE) if await registered(site, ALICE) else client.sign_up(ALICE))
        tokens = dict(client.cookies)
        client.cookies.delete(lost)
        assert (await client.post("/api/auth/log-out")).status_code == 204, kept
        assert await who(site.program(token=tokens[ACCESS])) is None, kept


async def registered(site: Site, email: str) -> bool:
    return (await site.program().log_in(email, tokens="body")).status_code == 200


async def test_a_log_out_of_nobody_or_with_garbage_clears_the_cookies_all_the_same(site: Site) -> None:
    client = site.browser()
    for cookies in ({}, {ACCESS: "x", REFRESH: "y"}, {REFRESH: "v1.alice.1." + "a" * 59}):
        header = "; ".join(f"{name}={value}" for name, value in cookies.items())
        out = await client.post("/api/auth/log-out", headers={"Cookie": header} if header else {})
        assert out.status_code == 204
        assert cleared(out)


async def test_nobody_logs_others_out_by_what_their_session_is_called(site: Site) -> None:
    client = site.browser()
    session_id = (await client.sign_up(ALICE)).json()["session_id"]
    forged = f"v1.{session_id}." + "a" * 59
    for token in (session_id, forged, f"v1.{session_id}."):
        await site.program().post("/api/auth/log-out", json={"refresh_token": token})
        await site.program(token=token).post("/api/auth/log-out")
    assert await who(client) == ALICE


async def test_a_log_in_ends_the_session_that_the_browser_had(site: Site) -> None:
    desk, program = site.browser(), site.program()
    await desk.sign_up(ALICE)
    kept = (await program.log_in(ALICE, tokens="body")).json()["tokens"]["access_token"]
    before = desk.cookies[ACCESS]
    assert (await desk.log_in(ALICE)).status_code == 200
    assert await who(site.program(token=before)) is None
    assert await who(desk) == ALICE
    # A log-in that failed ends nothing, nor does one of a program for itself.
    await desk.log_in(ALICE, password="wrong password")
    await desk.log_in(ALICE, tokens="body")
    assert await who(desk) == ALICE
    assert await who(site.program(token=kept)) == ALICE
    before = desk.cookies[ACCESS]
    await desk.sign_up(BOB)
    assert await who(site.program(token=before)) is None
    assert await who(desk) == BOB


async def test_who_logs_in_anew_with_five_devices_keeps_the_other_four(valkey: Server, place: Place) -> None:
    async with site_on(valkey, place.data_dir, place.variables) as site:
        desk, *others = (site.browser() for _ in range(5))
        await others[0].sign_up(ALICE)
        for device in (*others[1:], desk):  # what the desk has was used last
            assert (await device.log_in(ALICE)).status_code == 200
        before = desk.cookies[ACCESS]
        assert (await desk.log_in(ALICE)).status_code == 200
        assert [await who(device) for device in (desk, *others)] == [ALICE] * 5
        assert await who(site.program(token=before)) is None
        # Of the two cookies either may be of a session that the other is not of.
        spare, cookies = others[0].cookies[REFRESH], others[1].cookies
        cookies.delete(REFRESH)
        cookies.set(REFRESH, spare, domain="sign.example", path="/api/auth")
        assert (await others[1].log_in(ALICE)).status_code == 200
        assert [await who(device) for device in (desk, *others)] == [ALICE, None, ALICE, ALICE, ALICE]
        assert len((await desk.get("/api/auth/sessions")).json()["sessions"]) == 4
        # And another user's is ended as well.
        old = desk.cookies[ACCESS]
        await site.program().sign_up(BOB, tokens="body")
        assert (await desk.log_in(BOB)).status_code == 200
        assert await who(site.program(token=old)) is None


async def test_another_site_logs_nobody_in_and_nobody_out(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    out = await client.post("/api/auth/log-out", headers=foreign)
    problem(out, 403, "origin_refused")
    assert set_cookies(out) == {}
    assert await who(client) == ALICE
    answer = await site.browser().post(
        "/api/auth/log-in", json={"email": ALICE, "password": PASSWORD}, headers=foreign
    )
    problem(answer, 403, "origin_refused")


async def test_a_form_of_a_browser_is_not_taken(site: Site) -> None:
    await site.browser().sign_up(ALICE)
    body = json.dumps({"email": ALICE, "password": PASSWORD})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None):
        headers = {} if kind is None else {"Content-Type": kind}
        answer = await site.browser().post("/api/auth/log-in", content=body, headers=headers)
        problem(answer, 422, "request_invalid")


async def test_an_account_is_made_once_and_with_a_password_of_some_length(site: Site) -> None:
    await site.browser().sign_up(ALICE)
    client = site.browser()

    async def sign_up(**members: str) -> httpx.Response:
        return await client.post("/api/auth/sign-up", json={"email": BOB, "password": PASSWORD, **members})

    problem(await sign_up(email=ALICE), 409, "email_taken")
    problem(await sign_up(password="short"), 422, "password_too_weak")
    problem(await sign_up(password="a" * 257), 422, "password_too_weak")
    problem(await sign_up(email="nobody"), 422, "email_invalid")
    problem(await sign_up(email="a\u0000@example.com"), 422, "email_invalid")
    problem(await sign_up(full_name="a\nb"), 422, "name_invalid")
    assert (await sign_up()).status_code == 201


async def test_the_fifth_wrong_password_locks_and_the_right_one_waits_as_it_is_told(site: Site) -> None:
    await site.browser().sign_up(ALICE)
    client = site.browser()
    answers = [await client.log_in(ALICE, password="wrong password") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [400] * 4 + [429]
    locked = await site.browser().log_in(ALICE)
    problem(locked, 429, "locked")
    wait = int(locked.headers["Retry-After"])
    assert 1700 < wait <= 1800
    travel(site.seal.store, timedelta(seconds=wait))
    assert (await site.browser().log_in(ALICE)).status_code == 200


async def test_guesses_of_one_address_are_limited_whoever_is_logged_in_there(site: Site) -> None:
    guesser = site.browser(peer="203.0.113.9")
    await guesser.sign_up(ALICE)
    emails = [f"user{number}@example.com" for number in range(9)]
    statuses = [(await guesser.log_in(email)).status_code for email in emails]
    assert statuses == [400] * 9
    refused = await guesser.log_in(BOB)
    problem(refused, 429, "rate_limited")
    assert int(refused.headers["Retry-After"]) >= 1
    assert await who(guesser) == ALICE


async def test_that_an_account_is_suspended_is_told_to_who_knows_its_password(site: Site) -> None:
    client = site.browser()
    user_id = (await client.sign_up(ALICE)).json()["user"]["id"]
    tokens = dict(client.cookies)
    assert await site.seal.accounts.suspend(user_id, by="admin")
    bare = await site.browser().get("/api/auth/me")
    ended = await client.get("/api/auth/me")
    assert (ended.status_code, ended.content, ended.headers.raw) == (401, bare.content, bare.headers.raw)
    refreshed = await site.program().post("/api/auth/refresh", json={"refresh_token": tokens[REFRESH]})
    assert (refreshed.status_code, refreshed.content) == (401, bare.content)
    problem(await site.browser().log_in(ALICE, password="wrong password"), 400, "invalid_credentials")
    problem(await site.browser().log_in(ALICE), 403, "account_suspended")


# -- new tokens --------------------------------------------------------------------------------------------------------


async def test_a_refresh_in_a_browser_replaces_both_cookies(site: Site) -> None:
    client = site.browser()
    session_id = (await client.sign_up(ALICE)).json()["session_id"]
    before = dict(client.cookies)
    travel(site.seal.store, timedelta(minutes=11))
    assert await who(client) is None
    answer = await client.post("/api/auth/refresh")
    assert (answer.status_code, answer.json()) == (200, {"session_id": session_id, "tokens": None})
    after = {name: value for name, (value, _) in set_cookies(answer).items()}
    assert set(after) == {ACCESS, REFRESH}
    assert not set(after.values()) & set(before.values())
    assert await who(client) == ALICE


async def test_the_refresh_cookie_lives_no_longer_than_the_session(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    for _ in range(3):
        travel(site.seal.store, timedelta(hours=20))
        answer = await client.post("/api/auth/refresh")
        assert answer.status_code == 200
    (lives,) = (each for each in set_cookies(answer)[REFRESH][1] if each.startswith("Max-Age="))
    assert abs(int(lives.removeprefix("Max-Age=")) - (7 * 24 - 60) * 3600) < 60


async def test_a_refresh_token_of_the_body_is_answered_in_the_body(site: Site) -> None:
    held = (await site.program().sign_up(ALICE, tokens="body")).json()["tokens"]
    answer = await site.program().post("/api/auth/refresh", json={"refresh_token": held["refresh_token"]})
    assert set_cookies(answer) == {}
    tokens = answer.json()["tokens"]
    assert tokens["refresh_token"] != held["refresh_token"]
    assert await who(site.program(token=tokens["access_token"])) == ALICE


async def test_no_script_gets_the_token_of_a_cookie_told(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    for body in ({"refresh_token": ""}, {"refresh_token": "x"}):
        problem(await client.post("/api/auth/refresh", json=body), 401, "unauthorized")
    for body in ({}, {"refresh_token": None}):
        assert (await client.post("/api/auth/refresh", json=body)).json()["tokens"] is None
    problem(await client.post("/api/auth/refresh", json={"tokens": "body"}), 422, "request_invalid")
    assert await who(client) == ALICE


async def test_eight_refreshes_at_once_leave_every_tab_logged_in(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    header = {"Cookie": f"{REFRESH}={client.cookies[REFRESH]}"}
    tabs = [site.browser() for _ in range(8)]
    answers = await asyncio.gather(*(tab.post("/api/auth/refresh", headers=header) for tab in tabs))
    assert {answer.status_code for answer in answers} == {200}
    assert len({set_cookies(answer)[REFRESH][0] for answer in answers}) == 1
    assert [await who(tab) for tab in tabs] == [ALICE] * 8


async def test_a_refresh_token_two_behind_ends_the_session(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    stolen = client.cookies[REFRESH]
    for _ in range(2):
        assert (await client.post("/api/auth/refresh")).status_code == 200
    answer = await site.program().post("/api/auth/refresh", json={"refresh_token": stolen})
    problem(answer, 401, "unauthorized")
    assert await who(client) is None
    assert (await client.post("/api/auth/refresh")).status_code == 401


async def test_every_refresh_token_that_is_worth_nothing_gets_the_same_401_as_none(site: Site) -> None:
    await site.seal.rate_limits.allow("198.51.100.0/24")
    client = site.browser()
    await client.sign_up(ALICE)
    token, access = client.cookies[REFRESH], client.cookies[ACCESS]
    bare = await site.browser().post("/api/auth/refresh")
    problem(bare, 401, "unauthorized")
    assert set_cookies(bare) == {}
    head, _, secret = token.rpartition(".")
    texts = [
        "",
        "x",
        token[:-1],
        f"{token}a",
        f"{head}.{'a' * len(secret)}",
        f"v2{token[2:]}",
        token.replace("v1.", "v1.x", 1),
        access,
        token + "a" * 10_000,
        "\x00",
        "\u00e9",
    ]
    for text in texts:
        in_body = await site.program().post("/api/auth/refresh", json={"refresh_token": text})
        assert (in_body.content, in_body.headers.raw) == (bare.content, bare.headers.raw), text
    for text in (*texts[:-2], f"{token}; {REFRESH}=x"):
        in_cookie = await site.browser().post("/api/auth/refresh", headers={"Cookie": f"{REFRESH}={text}"})
        assert (in_cookie.content, in_cookie.headers.raw) == (bare.content, bare.headers.raw), text
    assert await who(client) == ALICE


async def test_a_refresh_of_a_page_of_another_site_is_refused(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    for headers in (
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "x"},
    ):
        problem(await client.post("/api/auth/refresh", headers=headers), 403, "origin_refused")


# -- devices -----------------------------------------------------------------------------------------------------------


async def test_a_user_sees_their_devices_and_ends_one(site: Site) -> None:
    desk, phone = site.browser(peer="203.0.113.1"), site.browser(peer="203.0.113.2")
    phone.headers["User-Agent"] = (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15"
        " (KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1"
    )
    await desk.sign_up(ALICE)
    lost = (await phone.log_in(ALICE)).json()["session_id"]
    devices = (await desk.get("/api/auth/sessions")).json()["sessions"]
    assert {(each["device"], each["ip"], each["current"]) for each in devices} == {
        ("Firefox on Linux", "203.0.113.1", True),
        ("Safari on iPhone", "203.0.113.2", False),
    }
    assert {tuple(sorted(each)) for each in devices} == {
        (
            "created_at",
            "current",
            "device",
            "expires_at",
            "ip",
            "last_used_at",
            "session_id",
            "user_agent",
        )
    }
    assert (await desk.delete(f"/api/auth/sessions/{lost}")).status_code == 204
    assert await who(phone) is None
    assert await who(desk) == ALICE
    assert len((await desk.get("/api/auth/sessions")).json()["sessions"]) == 1
    problem(await desk.delete(f"/api/auth/sessions/{lost}"), 404, "not_found")


async def test_nobody_ends_a_session_of_somebody_else(site: Site) -> None:
    alice, bob = site.browser(), site.browser()
    await alice.sign_up(ALICE)
    other = (await bob.sign_up(BOB)).json()["session_id"]
    answers = [
        await alice.delete(f"/api/auth/sessions/{session_id}")
        for session_id in (other, other[:-1], "x", "a.b", "a%252Fb.c", "%00.x", "a" * 5000, "v1.a.b.c")
    ]
    assert {answer.content for answer in answers} == {answers[0].content}
    problem(answers[0], 404, "not_found")
    assert await who(bob) == BOB


async def test_who_ends_their_own_session_is_logged_out(site: Site) -> None:
    client = site.browser()
    session_id = (await client.sign_up(ALICE)).json()["session_id"]
    travel(site.seal.store, timedelta(minutes=11))
    await client.post("/api/auth/refresh")
    answer = await client.delete(f"/api/auth/sessions/{session_id}")
    assert answer.status_code == 204
    assert cleared(answer)
    assert await who(client) is None


async def test_all_others_are_ended_by_who_has_logged_in_lately(site: Site) -> None:
    desk, *others = [site.browser() for _ in range(4)]
    await desk.sign_up(ALICE)
    for each in others:
        await each.log_in(ALICE)
    travel(site.seal.store, timedelta(minutes=11))
    await desk.post("/api/auth/refresh")
    listed = (await desk.get("/api/auth/sessions")).json()["sessions"]
    other = next(each["session_id"] for each in listed if not each["current"])
    problem(await desk.post("/api/auth/sessions/revoke-others"), 403, "fresh_login_needed")
    problem(await desk.delete(f"/api/auth/sessions/{other}"), 403, "fresh_login_needed")
    again = site.browser()
    await again.log_in(ALICE)
    answer = await again.post("/api/auth/sessions/revoke-others")
    assert (answer.status_code, answer.json()) == (200, {"ended": 4, "pending": False})
    assert [await who(each) for each in (desk, *others, again)] == [None] * 4 + [ALICE]


async def test_me_has_exactly_these_members(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    body = (await client.get("/api/auth/me")).json()
    assert set(body) == {"user", "session"}
    assert set(body["user"]) == {"id", "email", "full_name", "email_verified"}
    session = body["session"]
    assert (session["profile"], session["amr"], session["device"]) == (
        "standard",
        ["pwd"],
        "Firefox on Linux",
    )
    assert set(session) == {
        "session_id",
        "profile",
        "amr",
        "device",
        "created_at",
        "authenticated_at",
        "last_used_at",
        "expires_at",
        "idle_expires_at",
    }


async def test_user_agents_of_any_length_and_content_are_taken(site: Site) -> None:
    await site.browser().sign_up(ALICE)
    for agent in ("", "x" * 100_000, "\x01\x7f\x1b[31m", "\u00e9\u00ff", "<script>alert(1)</script>"):
        client = site.browser()
        answer = await client.post(
            "/api/auth/log-in",
            json={"email": ALICE, "password": PASSWORD},
            headers={"User-Agent": agent.encode("latin-1")},
        )
        assert answer.status_code == 200, agent[:20]
        devices = (await client.get("/api/auth/sessions")).json()["sessions"]
        (own,) = [each for each in devices if each["current"]]
        shown = own["user_agent"] or ""
        assert len(shown) <= 512
        assert shown.isprintable()


# -- second factors ----------------------------------------------------------------------------------------------------


async def test_a_second_factor_is_set_up_confirmed_and_asked_for(site: Site) -> None:
    client, other = site.browser(), site.browser()
    session_id = (await client.sign_up(ALICE)).json()["session_id"]
    await other.log_in(ALICE)
    begun = (await client.post("/api/auth/totp/set-up")).json()
    assert set(begun) == {"secret", "uri", "qr_svg"}
    assert begun["uri"].startswith("otpauth://totp/")
    assert begun["qr_svg"].lstrip().startswith("<svg")
    assert (await client.get("/api/auth/totp")).json() == {
        "login_enabled": False,
        "signing_enabled": False,
        "pending": True,
        "stopped": False,
        "backup_codes_left": 0,
    }
    authenticator = pyotp.TOTP(begun["secret"])
    wrong = await client.post("/api/auth/totp/confirm", json={"code": another(code_of(site, authenticator))})
    problem(wrong, 400, "code_invalid")
    before = dict(client.cookies)
    answer = await client.post("/api/auth/totp/confirm", json={"code": code_of(site, authenticator)})
    assert answer.status_code == 200, answer.text
    codes = answer.json()["backup_codes"]
    assert len(set(codes)) == 10
    assert answer.json()["tokens"] is None
    assert set(set_cookies(answer)) == {ACCESS, REFRESH}
    assert client.cookies[REFRESH] != before[REFRESH]
    me = (await client.get("/api/auth/me")).json()["session"]
    assert (me["session_id"], me["amr"]) == (session_id, ["pwd", "otp"])
    assert await who(other) is None
    state = (await client.get("/api/auth/totp")).json()
    assert (state["login_enabled"], state["signing_enabled"], state["backup_codes_left"]) == (True, True, 10)

    travel(site.seal.store, timedelta(seconds=31))
    returning = site.browser()
    half = await returning.log_in(ALICE)
    assert half.status_code == 200
    assert set(half.json()) == {"status", "ticket", "expires_at", "enrolled"}
    assert (half.json()["status"], half.json()["enrolled"]) == ("totp_needed", True)
    assert set_cookies(half) == {}
    ticket = half.json()["ticket"]
    code = code_of(site, authenticator)
    problem(await finish(returning, ticket, another(code)), 400, "code_invalid")
    whole = await finish(returning, ticket, code)
    assert whole.json()["status"] == "logged_in"
    assert (await returning.get("/api/auth/me")).json()["session"]["amr"] == ["pwd", "otp"]
    problem(await finish(site.browser(), ticket, code), 400, "ticket_invalid")
    problem(await finish(site.browser(), "x", code), 400, "ticket_invalid")


async def finish(client: Client, ticket: str, code: str) -> httpx.Response:
    return await client.post("/api/auth/totp/log-in", json={"ticket": ticket, "code": code})


async def test_a_backup_code_logs_in_once(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    _, codes = await enrol(site, client)
    for expected in (200, 400):
        returning = site.browser()
        ticket = (await returning.log_in(ALICE)).json()["ticket"]
        assert (await finish(returning, ticket, codes[0])).status_code == expected
    assert (await client.get("/api/auth/totp")).json()["backup_codes_left"] == 9


async def test_a_code_within_the_session_steps_it_up(site: Site) -> None:
    program = site.program()
    tokens = (await program.sign_up(ALICE, tokens="body")).json()["tokens"]
    client = site.program(token=tokens["access_token"])
    authenticator, _ = await enrol(site, client)
    body = {"code": code_of(site, authenticator), "context": "signing", "request_id": "7"}
    answer = await client.post("/api/auth/totp/verify", json=body)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert set_cookies(answer) == {}
    assert set(shown) == {"context", "request_id", "method", "verified_at", "tokens"}
    assert (shown["context"], shown["request_id"], shown["method"]) == ("signing", "7", "totp")
    stepped = site.program(token=shown["tokens"]["access_token"])
    assert await who(stepped) == ALICE
    me = (await stepped.get("/api/auth/me")).json()["session"]
    sessions = site.seal.sessions
    assert await sessions.require_step_up(me["session_id"], "signing", "8") is None
    assert await sessions.require_step_up(me["session_id"], "signing", "7") is not None
    problem(await stepped.post("/api/auth/totp/verify", json=body), 400, "code_invalid")


async def test_a_code_for_signing_names_what_is_signed(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    for body in (
        {"code": "123456", "context": "signing"},
        {"code": "123456", "context": "signing", "request_id": ""},
        {"code": "123456", "context": "signing", "request_id": "a\u0000"},
        {"code": "123456", "context": "signing", "request_id": "a" * 129},
        {"code": "123456", "context": "signing", "request_id": "\u00e9" * 65},
        {"code": "123456", "context": "login", "request_id": "\u00e9" * 100},
        {"code": "123456", "context": "sign", "request_id": "7"},
        {"code": 123456, "context": "login"},
    ):
        problem(await client.post("/api/auth/totp/verify", json=body), 422, "request_invalid")


@pytest.mark.parametrize("redis", ["up", "down"])
async def test_the_sixth_wrong_code_within_five_minutes_is_refused_whatever_headers_are_forged(
    valkey: Server, tmp_path: Path, redis: str
) -> None:
    async with site_on(valkey, tmp_path, {"COUNTERSEAL_COMMAND_TIMEOUT": "500ms"}) as site:
        client = site.browser()
        await client.sign_up(ALICE)
        authenticator, _ = await enrol(site, client)
        if redis == "down":
            valkey.kill()
            await eventually(lambda: not site.seal.store.available)
        ticket = (await site.browser().log_in(ALICE)).json()["ticket"]

        async def guess(number: int) -> httpx.Response:
            forged = f"192.0.2.{number}"
            guesser = site.browser(peer=f"203.0.113.{number}")
            guesser.headers.update(
                {"X-Forwarded-For": forged, "Forwarded": f"for={forged}", "X-Real-IP": forged}
            )
            return await finish(guesser, ticket, another(code_of(site, authenticator)))

        answers = [await guess(number) for number in range(1, 7)]
        assert [answer.status_code for answer in answers] == [400] * 5 + [429]
        problem(answers[5], 429, "too_many_attempts")
        assert 1 <= int(answers[5].headers["Retry-After"]) <= 600
        right = await finish(site.browser(), ticket, code_of(site, authenticator))
        problem(right, 429, "too_many_attempts")


async def test_one_code_shown_four_times_at_once_logs_in_once(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    authenticator, _ = await enrol(site, client)
    code = code_of(site, authenticator)
    tickets = [(await site.browser().log_in(ALICE)).json()["ticket"] for _ in range(4)]
    answers = await asyncio.gather(*(finish(site.browser(), ticket, code) for ticket in tickets))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]


async def test_a_stolen_session_changes_no_second_factor(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    authenticator, _ = await enrol(site, client)
    travel(site.seal.store, timedelta(minutes=11))
    await client.post("/api/auth/refresh")
    code = {"code": code_of(site, authenticator)}
    for path, body in (("set-up", None), ("confirm", code), ("disable", code)):
        answer = await client.post(f"/api/auth/totp/{path}", json=body)
        problem(answer, 403, "fresh_login_needed")
    assert (await client.get("/api/auth/totp")).json()["login_enabled"] is True


async def test_a_second_factor_is_taken_away_by_one_of_its_codes(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    problem(await client.post("/api/auth/totp/disable", json={"code": "123456"}), 409, "totp_not_enabled")
    problem(await client.post("/api/auth/totp/confirm", json={"code": "123456"}), 409, "totp_not_set_up")
    authenticator, codes = await enrol(site, client)
    wrong = {"code": another(code_of(site, authenticator))}
    problem(await client.post("/api/auth/totp/disable", json=wrong), 400, "code_invalid")
    renewed = await client.post("/api/auth/totp/backup-codes", json={"code": code_of(site, authenticator)})
    assert len(set(renewed.json()["backup_codes"]) - set(codes)) == 10
    travel(site.seal.store, timedelta(seconds=31))
    answer = await client.post("/api/auth/totp/disable", json={"code": code_of(site, authenticator)})
    assert answer.status_code == 200
    assert set(answer.json()) == {"session_id", "tokens"}
    assert (await client.get("/api/auth/totp")).json()["login_enabled"] is False
    assert (await site.browser().log_in(ALICE)).json()["status"] == "logged_in"


# -- passwords and addresses -------------------------------------------------------------------------------------------


async def test_another_password_ends_the_other_sessions_and_renews_this_one(site: Site) -> None:
    client, other = site.browser(), site.browser()
    session_id = (await client.sign_up(ALICE)).json()["session_id"]
    await other.log_in(ALICE)
    before = dict(client.cookies)

    async def change(current: str, new: str) -> httpx.Response:
        body = {"current_password": current, "new_password": new}
        return await client.post("/api/auth/password", json=body)

    problem(await change("wrong password", "another good one"), 400, "invalid_credentials")
    problem(await change(PASSWORD, "short"), 422, "password_too_weak")
    answer = await change(PASSWORD, "another good one")
    assert (answer.status_code, answer.json()) == (200, {"session_id": session_id, "tokens": None})
    assert await who(client) == ALICE
    assert await who(other) is None
    old = await site.program().post("/api/auth/refresh", json={"refresh_token": before[REFRESH]})
    assert old.status_code == 401
    problem(await site.browser().log_in(ALICE), 400, "invalid_credentials")
    assert (await site.browser().log_in(ALICE, password="another good one")).status_code == 200


async def test_a_forgotten_password_is_replaced_by_a_link_once(site: Site, mailbox: Mailbox) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    asked = site.browser()
    known, unknown = [
        await asked.post("/api/auth/password/forgot", json={"email": email}) for email in (ALICE, BOB)
    ]
    assert (known.status_code, known.content) == (unknown.status_code, unknown.content) == (202, b"")
    (mail,) = mailbox.resets
    assert mail.email == ALICE
    reset = {"token": mail.token, "new_password": "another good one"}
    assert (await asked.post("/api/auth/password/reset", json=reset)).status_code == 204
    assert await who(client) is None
    problem(await asked.post("/api/auth/password/reset", json=reset), 400, "token_invalid")
    problem(await asked.post("/api/auth/password/reset", json={**reset, "token": "x"}), 400, "token_invalid")
    assert (await site.browser().log_in(ALICE, password="another good one")).status_code == 200


async def test_an_address_is_verified_by_a_link(site: Site, mailbox: Mailbox) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    assert (await client.post("/api/auth/email/send-verification")).status_code == 202
    token = mailbox.verifications[-1].token
    problem(await site.browser().post("/api/auth/email/verify", json={"token": "x"}), 400, "token_invalid")
    assert (await site.browser().post("/api/auth/email/verify", json={"token": token})).status_code == 204
    assert (await client.get("/api/auth/me")).json()["user"]["email_verified"] is True


async def test_a_mail_that_nobody_sends_is_not_promised(valkey: Server, tmp_path: Path) -> None:
    async with site_on(valkey, tmp_path) as site:
        client = site.browser()
        await client.sign_up(ALICE)
        for email in (ALICE, BOB):
            answer = await client.post("/api/auth/password/forgot", json={"email": email})
            problem(answer, 503, "mail_unavailable")
        problem(await client.post("/api/auth/email/send-verification"), 503, "mail_unavailable")


# -- bad input ---------------------------------------------------------------------------------------------------------

SECRET = "hunter2-hunter2-hunter2"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"' + SECRET.encode() + b'"',
        b"\xff\xfe",
        b'{"email": "a@example.com", "password": ["' + SECRET.encode() + b'"]}',
        b'{"email": "a@example.com", "password": "' + SECRET.encode() * 100 + b'"}',
        b'{"email": ["' + SECRET.encode() + b'"], "password": "x"}',
        b'{"email": "a@example.com", "password": "\\ud800' + SECRET.encode() + b'"}',
        b'{"email": "a@example.com", "password": "x", "' + SECRET.encode() + b'": 1}',
        b'{"email": "a@example.com", "password": "x", "remember": "' + SECRET.encode() + b'"}',
        b'{"email": "a@example.com", "password": "x", "tokens": "' + SECRET.encode() + b'"}',
        b'{"email": "a@example.com", "password": "' + SECRET.encode() + b'"',
        b'{"password": "' + SECRET.encode() + b'"}',
        b"[" * 8000,
    ],
)
async def test_a_malformed_request_is_refused_and_none_of_it_repeated(
    site: Site, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await site.browser().post(
        "/api/auth/log-in", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 422), answer.text
    problem(answer, answer.status_code, answer.json()["code"])
    for text in (answer.text, caplog.text):
        assert "hunter2" not in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\xfd", gzip.compress(b'{"email": "x"}', mtime=0), b"[" * 16_000]
)
async def test_a_body_that_is_no_json_is_told_so(site: Site, content: bytes) -> None:
    answer = await site.browser().post(
        "/api/auth/log-in", content=content, headers={"Content-Type": "application/json"}
    )
    (fault,) = problem(answer, 422, "request_invalid")["faults"]
    assert fault["path"] == "body"
    assert "JSON" in fault["expected"]


async def test_a_session_of_any_user_is_ended_by_its_id_encoded_as_text(site: Site) -> None:
    user = "auth0|7.x@y/z é"
    made = [await site.seal.sessions.create(user_id=user, email="seven@example.com") for _ in range(2)]
    program = site.program(token=made[0].access_token)
    path = f"/api/auth/sessions/{quote(made[1].session_id, safe='')}"
    assert "%25" in path
    problem(await program.delete(f"/api/auth/sessions/{made[1].session_id}"), 404, "not_found")
    assert (await program.delete(path)).status_code == 204
    assert await site.seal.sessions.get(made[1].session_id) is None


async def test_a_long_body_is_refused_before_it_is_read(site: Site) -> None:
    client = site.browser()
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/api/auth/log-in", content=b" " * 16_385, headers=headers)
    problem(answer, 413, "body_too_large")

    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 10_000_000:
            read += 1000
            yield b" " * 1000

    problem(await client.post("/api/auth/log-in", content=endless(), headers=headers), 413, "body_too_large")
    assert read < 100_000
    fits = json.dumps({"email": ALICE, "password": PASSWORD}).encode()
    answer = await client.post("/api/auth/log-in", content=fits.ljust(16_384), headers=headers)
    problem(answer, 400, "invalid_credentials")


async def test_no_answer_and_no_log_of_a_whole_life_holds_a_secret(
    site: Site, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = site.browser()
    await client.sign_up(ALICE)
    authenticator, codes = await enrol(site, client)
    tokens = [client.cookies[ACCESS], client.cookies[REFRESH]]
    await client.post("/api/auth/password/forgot", json={"email": ALICE})
    texts = [
        (await client.get(path)).text
        for path in ("/api/auth/me", "/api/auth/sessions", "/api/auth/totp", "/")
    ]
    texts += [(await client.get(path)).text for path in ("/metrics", "/api/health/redis", "/openapi.json")]
    texts.append((await client.log_in(ALICE, password="wrong password")).text)
    await client.post("/api/auth/log-out")
    secrets_of_it = [PASSWORD, authenticator.secret, *codes, *tokens, mailbox.resets[0].token]
    for text in (*texts, caplog.text):
        assert not [secret for secret in secrets_of_it if secret in text]


async def test_a_whole_life_is_the_same_on_both_databases(valkey: Server, place: Place) -> None:
    async with site_on(valkey, place.data_dir, place.variables) as site:
        client, phone = site.browser(), site.browser()
        await client.sign_up(ALICE, full_name="A. \u0141")
        problem(
            await phone.post("/api/auth/sign-up", json={"email": ALICE, "password": PASSWORD}),
            409,
            "email_taken",
        )
        problem(await phone.log_in(ALICE, password="wrong password"), 400, "invalid_credentials")
        authenticator, codes = await enrol(site, client)
        ticket = (await phone.log_in(ALICE)).json()["ticket"]
        assert (await finish(phone, ticket, codes[3])).status_code == 200
        body = {"code": code_of(site, authenticator), "context": "signing", "request_id": "7"}
        assert (await client.post("/api/auth/totp/verify", json=body)).status_code == 200
        assert (await client.post("/api/auth/refresh")).status_code == 200
        assert len((await client.get("/api/auth/sessions")).json()["sessions"]) == 2
        assert (await client.post("/api/auth/sessions/revoke-others")).json()["ended"] == 1
        assert [await who(each) for each in (client, phone)] == [ALICE, None]
        change = {"current_password": PASSWORD, "new_password": "another good one"}
        assert (await client.post("/api/auth/password", json=change)).status_code == 200
        assert (await client.get("/api/auth/totp")).json()["backup_codes_left"] == 9
        assert (await client.post("/api/auth/log-out")).status_code == 204
        assert await who(client) is None


# -- without Redis, without the database -------------------------------------------------------------------------------


async def test_without_redis_everything_goes_on(valkey: Server, tmp_path: Path) -> None:
    async with site_on(valkey, tmp_path, {"COUNTERSEAL_COMMAND_TIMEOUT": "500ms"}) as site:
        client = site.browser()
        await client.sign_up(ALICE)
        valkey.kill()
        await eventually(lambda: not site.seal.store.available)
        assert await who(client) == ALICE
        other = site.browser()
        assert (await other.log_in(ALICE)).status_code == 200
        assert (await client.post("/api/auth/refresh")).status_code == 200
        assert (await client.post("/api/auth/sessions/revoke-others")).json()["ended"] == 1
        assert await who(other) is None
        assert (await client.post("/api/auth/log-out")).status_code == 204
        assert await who(client) is None


async def test_without_the_database_nobody_comes_in_and_a_log_out_is_kept_for_later(
    valkey: Server, tmp_path: Path
) -> None:
    async with site_on(valkey, tmp_path) as site:
        client, other = site.browser(), site.browser()
        await client.sign_up(ALICE)
        await other.log_in(ALICE)
        await lose_database(site.seal)
        for answer in (
            await site.browser().log_in(ALICE),
            await client.get("/api/auth/sessions"),
            await client.post("/api/auth/totp/set-up"),
        ):
            problem(answer, 503, "database_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        tokens = dict(client.cookies)
        out = await client.post("/api/auth/log-out")
        assert out.status_code == 202
        assert cleared(out)
        assert (await site.program(token=tokens[ACCESS]).get("/api/auth/me")).status_code == 401


async def test_a_log_out_that_nobody_can_do_says_so_and_clears_the_cookies(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_on(valkey, tmp_path, {"COUNTERSEAL_COMMAND_TIMEOUT": "500ms"}) as site:
        client = site.browser()
        await client.sign_up(ALICE)
        refresh = client.cookies[REFRESH]
        valkey.kill()
        await eventually(lambda: not site.seal.store.available)
        await lose_database(site.seal)
        out = await client.post("/api/auth/log-out")
        assert out.status_code == 503
        assert cleared(out)
        assert re.search(r"a log-out failed: \w+_unavailable", caplog.text)
        assert refresh not in caplog.text
        caplog.clear()
