"""A second factor over HTTP: the tokens that a step-up replaces, and a log-in in whose middle one is set up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyotp
import pytest
from sqlalchemy import insert

from counterseal.database.tables import domain_settings
from support.databases import Databases
from support.servers import Server
from support.site import Client, Site, problem, set_cookies, site_on
from support.stores import travel

ALICE = "alice@example.com"
ACCESS, REFRESH = "__Host-cs_at", "__Secure-cs_rt"


@pytest.fixture
async def site(valkey: Server, databases: Databases, tmp_path: Path) -> AsyncIterator[Site]:
    async with databases.place("sqlite", tmp_path) as place, site_on(valkey, place.data_dir) as site:
        yield site


def code_of(site: Site, secret: str) -> str:
    return pyotp.TOTP(secret).at(site.seal.store.now_ms() // 1000)


async def who(client: Client) -> str | None:
    """Whom a client is logged in as."""
    answer = await client.get("/api/auth/me")
    return answer.json()["user"]["email"] if answer.status_code == 200 else None


async def enrol(site: Site, client: Client, **chosen: bool) -> httpx.Response:
    """Set up a second factor: the answer with the backup codes."""
    begun = await client.post("/api/auth/totp/set-up")
    body = {"code": code_of(site, begun.json()["secret"]), **chosen}
    confirmed = await client.post("/api/auth/totp/confirm", json=body)
    assert confirmed.status_code == 200, confirmed.text
    travel(site.seal.store, timedelta(seconds=31))
    return confirmed


async def test_a_code_in_a_browser_replaces_both_cookies_where_the_refresh_cookie_came_along(
    site: Site,
) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    codes = (await enrol(site, client)).json()["backup_codes"]
    before = dict(client.cookies)
    body = {"code": codes[0], "context": "login"}
    answer = await client.post("/api/auth/totp/verify", json=body)
    assert (answer.status_code, answer.json()["tokens"]) == (200, None)
    assert set(set_cookies(answer)) == {ACCESS, REFRESH}
    assert client.cookies[REFRESH] != before[REFRESH]
    # What was lost on the way is got again by the cookie before.
    lost = {"Cookie": f"{ACCESS}={before[ACCESS]}; {REFRESH}={before[REFRESH]}"}
    refreshed = await site.browser().post("/api/auth/refresh", headers=lost)
    assert set_cookies(refreshed)[REFRESH][0] == client.cookies[REFRESH]
    # A page whose refresh cookie did not come along keeps it, whatever its body says.
    alone = {"Cookie": f"{ACCESS}={client.cookies[ACCESS]}"}
    asked = {**body, "code": codes[1], "refresh_token": client.cookies[REFRESH]}
    answer = await site.browser().post("/api/auth/totp/verify", json=asked, headers=alone)
    assert (answer.status_code, answer.json()["tokens"]) == (200, None)
    assert set(set_cookies(answer)) == {ACCESS}
    travel(site.seal.store, timedelta(seconds=11))
    assert (await client.post("/api/auth/refresh")).status_code == 200
    assert await who(client) == ALICE


async def test_a_program_has_its_refresh_token_replaced_by_a_code_where_it_sends_it(site: Site) -> None:
    tokens = (await site.program().sign_up(ALICE, tokens="body")).json()["tokens"]
    client = site.program(token=tokens["access_token"])
    confirmed = (await enrol(site, client)).json()
    codes, held = confirmed["backup_codes"], confirmed["tokens"]["refresh_token"]
    body = {"context": "signing", "request_id": "7"}
    shown = (await client.post("/api/auth/totp/verify", json={**body, "code": codes[0]})).json()["tokens"]
    assert (shown["refresh_token"], shown["refresh_expires_at"]) == (None, None)
    assert await who(site.program(token=shown["access_token"])) == ALICE
    both = {**body, "code": codes[1], "refresh_token": held}
    answer = await client.post("/api/auth/totp/verify", json=both)
    assert set_cookies(answer) == {}
    replaced = answer.json()["tokens"]["refresh_token"]
    assert replaced not in (None, held)
    refreshed = await site.program().post("/api/auth/refresh", json={"refresh_token": replaced})
    assert refreshed.status_code == 200


async def test_a_change_of_the_password_needs_a_log_in_of_the_last_ten_minutes(site: Site) -> None:
    client = site.browser()
    await client.sign_up(ALICE)
    travel(site.seal.store, timedelta(minutes=11))
    await client.post("/api/auth/refresh")
    body = {"current_password": "wrong password", "new_password": "another good one"}
    problem(await client.post("/api/auth/password", json=body), 403, "fresh_login_needed")


async def test_who_needs_a_second_factor_and_has_none_sets_it_up_while_logging_in(site: Site) -> None:
    old, client = site.browser(), site.browser()
    await old.sign_up(ALICE)
    values = {"domain": "example.com", "enforce_login_totp": True, "totp_grace_days": 0}
    async with site.seal.database.begin() as connection:
        await connection.execute(insert(domain_settings).values(**values, updated_at=datetime.now(UTC)))
    half = (await client.log_in(ALICE)).json()
    assert (half["status"], half["enrolled"]) == ("totp_needed", False)
    ticket = {"ticket": half["ticket"]}
    wrong = await client.post("/api/auth/totp/log-in", json={**ticket, "code": "123456"})
    problem(wrong, 400, "code_invalid")
    early = await client.post("/api/auth/totp/log-in/confirm", json={**ticket, "code": "123456"})
    problem(early, 409, "totp_not_set_up")
    begun = await client.post("/api/auth/totp/log-in/set-up", json=ticket)
    assert set(begun.json()) == {"secret", "uri", "qr_svg"}
    first = {**ticket, "code": code_of(site, begun.json()["secret"])}
    answer = await client.post("/api/auth/totp/log-in/confirm", json=first)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"status", "user", "session_id", "tokens", "backup_codes"}
    assert len(answer.json()["backup_codes"]) == 10
    assert set(set_cookies(answer)) == {ACCESS, REFRESH}
    assert [await who(each) for each in (client, old)] == [ALICE, None]
    assert (await client.get("/api/auth/me")).json()["session"]["amr"] == ["pwd", "otp"]
    for path, body in (("set-up", ticket), ("confirm", first)):
        again = await client.post(f"/api/auth/totp/log-in/{path}", json=body)
        problem(again, 400, "ticket_invalid")


async def test_guesses_at_tickets_are_limited_by_address(site: Site) -> None:
    client = site.browser(peer="203.0.113.9")
    statuses = [
        (await client.post("/api/auth/totp/log-in/set-up", json={"ticket": "x"})).status_code
        for _ in range(11)
    ]
    assert statuses == [400] * 10 + [429]
