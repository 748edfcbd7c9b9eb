"""Rate limits over HTTP: who is charged, which limiter, what the answer says, and what happens without Redis."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import StreamingResponse
from starlette.types import Message, Scope

from counterseal.app import Counterseal
from counterseal.core.errors import ConfigurationError, UnknownName
from counterseal.core.settings import Settings
from counterseal.ratelimit.limit import Limit
from counterseal.web import RateLimitMiddleware, create_app, limited
from counterseal.web.limits import ROUTES, Charge
from counterseal.web.problems import Problem
from support.program import Program
from support.servers import Server
from support.site import lose_database
from support.stores import travel
from support.waiting import eventually

MINUTE = timedelta(minutes=1)
PEER = "203.0.113.5"
GUESSED = "/api/auth/none"
"""A path where the product counts guesses, and which no route answers."""


class Site:
    """An application with limits, and clients that ask it from any address."""

    def __init__(self, app: FastAPI, seal: Counterseal) -> None:
        self.app = app
        self.seal = seal
        self.limits = seal.rate_limits
        self.store = seal.store

    async def ask(
        self,
        path: str = "/api/things",
        *,
        method: str = "GET",
        peer: str | None = PEER,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        root_path: str = "",
    ) -> httpx.Response:
        client: Any = None if peer is None else (peer, 4711)
        transport = httpx.ASGITransport(
            self.app, raise_app_exceptions=False, root_path=root_path, client=client
        )
        async with httpx.AsyncClient(
            transport=transport, base_url="http://counterseal", timeout=20
        ) as asking:
            return await asking.request(method, path, headers=headers, json=json)

    async def statuses(self, count: int, path: str = "/api/things", **asked: Any) -> list[int]:
        return [(await self.ask(path, **asked)).status_code for _ in range(count)]


@asynccontextmanager
async def seal_on(server: Server, folder: Path, **variables: str) -> AsyncIterator[Counterseal]:
    settings = Settings.load(
        {
            "REDIS_URL": server.url,
            "COUNTERSEAL_DATA_DIR": str(folder),
            "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
            **variables,
        }
    )
    async with Counterseal.open(settings) as seal:
        yield seal


@asynccontextmanager
async def site_on(server: Server, folder: Path, **options: Any) -> AsyncIterator[Site]:
    """An application of somebody's own, where `email` is two a minute."""
    async with seal_on(server, folder) as seal:
        await seal.rate_limits.set_limits("email", Limit(2, MINUTE))
        app = FastAPI()
        app.add_middleware(RateLimitMiddleware, seal=seal, **options)

        @app.api_route("/api/things", methods=["GET", "POST", "HEAD", "OPTIONS"])
        @app.get("/api/auth/login")
        @app.get("/api/auth/totp")
        @app.get("/api/auth/totp/verify")
        @app.get("/api/health/redis")
        @app.get("/api/jobs/email")
        @app.get("/elsewhere")
        async def answer() -> dict[str, str]:
            return {}

        yield Site(app, seal)


@asynccontextmanager
async def product_on(server: Server, folder: Path, **variables: str) -> AsyncIterator[Site]:
    """The real application, as `serve` has it."""
    async with seal_on(server, folder, **variables) as seal:
        yield Site(create_app(seal), seal)


@pytest.fixture
async def site(valkey: Server, data_dir: Path) -> AsyncIterator[Site]:
    async with site_on(valkey, data_dir, routes={**ROUTES, "/api/things": "email"}) as site:
        yield site


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an answer that must be a problem with these two."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    return body


async def remaining(site: Site, limiter: str, identifier: str = PEER) -> int:
    return (await site.limits.limiter(limiter).peek(identifier)).remaining


# -- the real application ----------------------------------------------------------------------------------------------


async def test_the_eleventh_guess_within_a_minute_is_refused_whatever_headers_are_forged(
    valkey: Server, data_dir: Path
) -> None:
    async with product_on(valkey, data_dir) as site:

        async def guess(number: int) -> httpx.Response:
            forged = f"198.51.100.{number}"
            headers = {
                "X-Forwarded-For": forged,
                "Forwarded": f"for={forged}",
                "X-Real-IP": forged,
                "True-Client-IP": forged,
            }
            return await site.ask(GUESSED, method="POST", headers=headers, json={"code": number})

        assert [(await guess(number)).status_code for number in range(1, 11)] == [404] * 10
        refused = await guess(11)
        problem(refused, 429, "rate_limited")
        assert refused.headers["X-Content-Type-Options"] == "nosniff"
        assert 1 <= int(refused.headers["Retry-After"]) <= 120
        assert (await site.ask(GUESSED, peer="203.0.113.6")).status_code == 404


async def test_with_redis_down_guesses_are_counted_in_the_database(valkey: Server, data_dir: Path) -> None:
    async with product_on(valkey, data_dir) as site:
        valkey.kill()
        await eventually(lambda: not site.store.available)
        # A minute of the database begins now, and ends after the test.
        travel(site.store, timedelta(milliseconds=60_000 - site.store.now_ms() % 60_000))
        assert await site.statuses(11, GUESSED) == [404] * 10 + [429]


async def test_with_redis_and_the_database_down_nobody_guesses_and_the_api_stays_open(
    valkey: Server, data_dir: Path
) -> None:
    async with product_on(valkey, data_dir) as site:
        assert await site.statuses(1, GUESSED) == [404]
        valkey.kill()
        await eventually(lambda: not site.store.available)
        await lose_database(site.seal)
        answer = await site.ask(GUESSED)
        problem(answer, 503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "RateLimit" not in answer.headers
        open_still = await site.ask("/api/none")
        assert open_still.status_code == 404
        assert open_still.headers["RateLimit-Policy"] == '"api";q=100;w=60'
        metrics = (await site.ask("/metrics")).text
        assert re.search(
            r'^counterseal_rate_limit_degraded_total\{limiter="api"\} 1\.0$', metrics, re.MULTILINE
        )


async def test_health_metrics_pages_and_static_files_are_never_charged(
    valkey: Server, data_dir: Path
) -> None:
    async with product_on(valkey, data_dir) as site:
        paths = ("/", "/health/live", "/health/ready", "/metrics", "/static/style.css", "/redis", "/qstash")
        for path in (*paths, "/api/health/redis", "/api/jobs/email"):
            answer = await site.ask(path)
            assert not any("ratelimit" in name for name in answer.headers), path
        assert await remaining(site, "api") == 100


async def test_an_address_that_answers_nothing_is_charged_all_the_same(
    valkey: Server, data_dir: Path
) -> None:
    async with product_on(valkey, data_dir) as site:
        answer = await site.ask("/api/none")
        problem(answer, 404, "not_found")
        assert answer.headers["X-RateLimit-Remaining"] == "99"
        assert (await site.ask("/api/none", method="HEAD")).headers["X-RateLimit-Remaining"] == "98"


async def test_the_settings_say_how_many_proxies_are_trusted(valkey: Server, data_dir: Path) -> None:
    async with product_on(valkey, data_dir, COUNTERSEAL_TRUSTED_PROXIES="1") as site:
        for number in range(1, 11):
            headers = {"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.7"}
            assert (await site.ask(GUESSED, headers=headers)).status_code == 404
        headers = {"X-Forwarded-For": "198.51.100.6, 203.0.113.7"}
        assert (await site.ask(GUESSED, headers=headers)).status_code == 429
        headers = {"X-Forwarded-For": "203.0.113.7, 203.0.113.8"}
        assert (await site.ask(GUESSED, headers=headers)).status_code == 404
    async with product_on(
        valkey, data_dir, COUNTERSEAL_TRUSTED_PROXIES="1", COUNTERSEAL_PROXY_HEADER="forwarded"
    ) as site:
        headers = {"X-Forwarded-For": "203.0.113.9", "Forwarded": 'for="203.0.113.7:80"'}
        assert (await site.ask(GUESSED, headers=headers)).status_code == 429


def test_a_served_program_believes_no_header_of_whoever_connects_from_its_machine(
    valkey: Server, tmp_path: Path
) -> None:
    settings = {"REDIS_URL": valkey.url, "COUNTERSEAL_COMMAND_TIMEOUT": "2s"}
    with (
        Program(
            ("serve", "--port", "0", "--data-dir", "data"), folder=tmp_path, settings=settings
        ) as program,
        httpx.Client(timeout=20) as client,
    ):
        url = f"{program.url()}{GUESSED}"
        seen = [
            client.post(url, headers={"X-Forwarded-For": f"198.51.100.{number}"}).status_code
            for number in range(11)
        ]
    assert seen == [404] * 10 + [429]


async def test_metrics_count_what_was_allowed_and_refused_by_limiter(valkey: Server, data_dir: Path) -> None:
    async with product_on(valkey, data_dir) as site:
        await site.statuses(12, GUESSED)
        metrics = (await site.ask("/metrics")).text
        assert 'counterseal_rate_limit_allowed_total{limiter="auth"} 10.0' in metrics
        assert 'counterseal_rate_limit_refused_total{limiter="auth"} 2.0' in metrics


# -- which limiter -----------------------------------------------------------------------------------------------------


async def test_the_most_specific_path_wins_and_is_charged_alone(site: Site) -> None:
    for path, policy in {
        "/api/auth/totp/verify": '"totp";q=5;w=300',
        "/api/auth/totp": '"totp";q=5;w=300',
        "/api/auth/login": '"auth";q=10;w=60',
        "/api/unknown": '"api";q=100;w=60',
        "/api/things": '"email";q=2;w=60',
    }.items():
        assert (await site.ask(path)).headers["RateLimit-Policy"] == policy, path
    left = {name: await remaining(site, name) for name in ("totp", "auth", "api", "email")}
    assert left == {"totp": 3, "auth": 9, "api": 99, "email": 1}


async def test_paths_outside_the_table_and_exempt_ones_are_never_charged(site: Site) -> None:
    for path in ("/elsewhere", "/api/health/redis", "/api/jobs/email", "/docs"):
        answer = await site.ask(path)
        assert answer.status_code == 200
        assert not any("ratelimit" in name for name in answer.headers), path


async def test_a_limiter_that_nobody_declared_is_refused_when_the_application_starts(
    valkey: Server, data_dir: Path
) -> None:
    async with site_on(valkey, data_dir, routes={"/api": "apl"}) as site:
        with pytest.raises(UnknownName, match=r"apl.*api"):
            site.app.build_middleware_stack()


async def test_an_application_below_a_path_goes_by_its_own_paths(site: Site) -> None:
    outer = FastAPI()
    outer.mount("/below", site.app)
    below = Site(outer, site.seal)
    answer = await below.ask("/below/api/things")
    assert (answer.status_code, answer.headers["X-RateLimit-Limit"]) == (200, "2")


@pytest.mark.parametrize(
    ("root_path", "path"),
    [
        ("", "/api/auth/totp"),
        ("/a", "/api/auth/totp"),
        ("/ap", "/api/auth/totp"),
        ("/api", "/api/api/auth/totp"),
        ("/app", "/app/api/auth/totp"),
        ("/app", "/api/auth/totp"),
    ],
)
async def test_whatever_the_root_path_is_a_path_that_the_routes_answer_is_charged(
    site: Site, root_path: str, path: str
) -> None:
    answer = await site.ask(path, root_path=root_path)
    assert (answer.status_code, answer.headers.get("RateLimit-Policy")) == (200, '"totp";q=5;w=300')


async def asked_as_it_is(site: Site, path: str) -> tuple[int, str | None]:
    """The status of an answer and its policy. Clients resolve dots before they ask, but attackers do not."""
    heads: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            heads.append(message)

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": (PEER, 1),
        "server": ("counterseal", 80),
    }
    await site.app(scope, receive, send)
    policy = dict(heads[0]["headers"]).get(b"ratelimit-policy")
    return heads[0]["status"], policy and policy.decode()


async def test_dots_in_a_path_lead_past_no_limiter(site: Site) -> None:
    site.app.get("/{rest:path}")(nothing)
    api, totp = '"api";q=100;w=60', '"totp";q=5;w=300'
    for path, policy in {
        "/api/jobs/../auth/totp": totp,
        "/static/../api/auth/totp": totp,
        "/api/auth/totp/../../jobs": totp,
        "/api/x/../auth/./totp": f"{api}, {totp}",
        "/api/./x/../y": api,
        "/api/jobs/../health": None,
    }.items():
        assert await asked_as_it_is(site, path) == (200, policy), path
    assert (await remaining(site, "totp"), await remaining(site, "api")) == (1, 98)


# -- the answer --------------------------------------------------------------------------------------------------------


async def test_allowed_and_refused_answers_tell_exactly_this(site: Site) -> None:
    def fields(answer: httpx.Response) -> dict[str, str]:
        return {
            name: value
            for name, value in answer.headers.items()
            if "ratelimit" in name or name == "retry-after"
        }

    before = datetime.now(UTC).timestamp()
    allowed = [await site.ask(), await site.ask()]
    refused = await site.ask()
    assert [answer.status_code for answer in allowed] == [200, 200]
    for answer, left in zip(allowed, ("1", "0"), strict=True):
        said = fields(answer)
        window = re.fullmatch(r'"email";r=(\d+);t=(\d+)', said.pop("ratelimit"))
        assert window is not None
        assert (window[1], 0 < int(window[2]) <= 120) == (left, True)
        assert before <= int(said.pop("x-ratelimit-reset")) <= before + 125
        assert said == {
            "ratelimit-policy": '"email";q=2;w=60',
            "x-ratelimit-limit": "2",
            "x-ratelimit-remaining": left,
        }
    said = fields(refused)
    wait = said.pop("retry-after")
    assert 1 <= int(wait) <= 120
    window = re.fullmatch(r'"email";r=0;t=(\d+)', said.pop("ratelimit"))
    assert window is not None
    assert int(window[1]) <= int(wait)
    assert before <= int(said.pop("x-ratelimit-reset")) <= before + 125
    assert said == {
        "ratelimit-policy": '"email";q=2;w=60',
        "x-ratelimit-limit": "2",
        "x-ratelimit-remaining": "0",
    }
    body = problem(refused, 429, "rate_limited")
    assert body == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "detail": f"Too many requests; the next is taken in {wait} s.",
        "code": "rate_limited",
    }
    assert refused.headers["Cache-Control"] == "no-store"


async def test_a_client_that_waits_as_long_as_it_was_told_is_let_in(site: Site) -> None:
    await site.statuses(2)
    refused = await site.ask()
    travel(site.store, timedelta(seconds=int(refused.headers["Retry-After"])))
    assert (await site.ask()).status_code == 200


PREFLIGHT = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}


async def test_every_method_is_charged_and_a_preflight_that_a_route_may_answer_too(site: Site) -> None:
    assert [
        (await site.ask(method=method)).status_code for method in ("HEAD", "OPTIONS", "GET", "HEAD", "POST")
    ] == [200, 200, 429, 429, 429]
    assert await site.statuses(3, method="OPTIONS", headers=PREFLIGHT, peer="203.0.113.6") == [200, 200, 429]


async def test_a_preflight_that_is_answered_outside_is_not_charged(site: Site) -> None:
    site.app.add_middleware(CORSMiddleware, allow_origins=["https://example.org"], allow_methods=["POST"])
    assert await site.statuses(5, method="OPTIONS", headers=PREFLIGHT) == [200] * 5
    assert await remaining(site, "email") == 2


async def test_a_refusal_can_be_read_across_origins(site: Site) -> None:
    site.app.add_middleware(CORSMiddleware, allow_origins=["https://example.org"])
    headers = {"Origin": "https://example.org"}
    answers = [await site.ask(headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].headers["Access-Control-Allow-Origin"] == "https://example.org"


async def test_a_refused_body_is_not_read_and_an_allowed_one_passes_in_pieces(site: Site) -> None:
    @site.app.post("/api/echo")
    async def echo(request: Request) -> StreamingResponse:
        return StreamingResponse(request.stream())

    stack = site.app.build_middleware_stack()
    pieces: list[bytes] = []
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        # The second piece of the body is there once the first has come back: nothing in between may hold it.
        assert asked == 1 or pieces == [b"1"]
        return {"type": "http.request", "body": str(asked).encode(), "more_body": asked < 2}

    async def send(message: Message) -> None:
        if message.get("body"):
            pieces.append(message["body"])

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/echo",
        "raw_path": b"/api/echo",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": (PEER, 1),
        "server": ("counterseal", 80),
        "app": site.app,
    }
    await stack(scope, receive, send)
    assert pieces == [b"1", b"2"]
    await site.statuses(2)
    asked = 0
    pieces.clear()
    await stack({**scope, "path": "/api/things", "raw_path": b"/api/things"}, receive, send)
    assert (asked, b"rate_limited" in b"".join(pieces)) == (0, True)


# -- who is charged ----------------------------------------------------------------------------------------------------


async def test_two_users_behind_one_address_are_two_and_one_user_at_two_addresses_is_one(
    valkey: Server, data_dir: Path
) -> None:
    def user(scope: Scope) -> str | None:
        return dict(scope["headers"]).get(b"x-user", b"").decode() or None

    async with site_on(valkey, data_dir, routes={"/api": "email"}, identify=user) as site:
        alice, bob = {"X-User": "alice"}, {"X-User": "bob"}
        assert await site.statuses(3, headers=alice) == [200, 200, 429]
        assert await site.statuses(3, headers=bob) == [200, 200, 429]
        assert await site.statuses(1, headers=alice, peer="203.0.113.6") == [429]
        assert await site.statuses(3) == [200, 200, 429]
        assert await remaining(site, "email", "user:alice") == 0
        assert await remaining(site, "email", PEER) == 0


async def test_a_user_who_is_called_like_an_address_is_not_that_address(
    valkey: Server, data_dir: Path
) -> None:
    async with site_on(
        valkey, data_dir, routes={"/api": "email"}, identify=lambda scope: "203.0.113.9"
    ) as site:
        await site.statuses(2)
        assert await remaining(site, "email", "203.0.113.9") == 2


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", "2001:db8:1:3::1"),
        ("203.0.113.7", "::ffff:203.0.113.7", "203.0.113.8"),
    ],
)
async def test_an_ipv6_network_of_64_bits_is_one_client(
    site: Site, first: str, second: str, third: str
) -> None:
    assert await site.statuses(1, peer=first) == [200]
    assert await site.statuses(2, peer=second) == [200, 429]
    assert await site.statuses(1, peer=first) == [429]
    assert await site.statuses(1, peer=third) == [200]


async def test_forged_headers_change_nothing_without_trusted_proxies(site: Site) -> None:
    seen = [
        (await site.ask(headers={"X-Forwarded-For": f"198.51.100.{number}"})).status_code
        for number in range(3)
    ]
    assert seen == [200, 200, 429]


async def test_peers_without_an_address_share_one_limit(site: Site) -> None:
    assert await site.statuses(3, peer=None) == [200, 200, 429]


async def test_an_address_on_a_list_counts_whoever_the_user_is(valkey: Server, data_dir: Path) -> None:
    async with site_on(valkey, data_dir, routes={"/api": "email"}, identify=lambda scope: "alice") as site:
        await site.limits.deny("203.0.113.0/24")
        await site.limits.deny("2001:db8::7")
        await site.limits.allow("198.51.100.0/24")
        denied = await site.ask()
        problem(denied, 429, "rate_limited")
        assert "Retry-After" not in denied.headers
        assert "RateLimit" not in denied.headers
        assert await site.statuses(1, peer="2001:db8::7") == [429]
        assert await site.statuses(4, peer="198.51.100.1") == [200] * 4
        assert await site.statuses(3, peer="2001:db8::8") == [200, 200, 429]
        await site.limits.deny("user:alice")
        assert await site.statuses(1, peer="198.51.100.1") == [429]


async def test_a_new_process_knows_the_lists_at_its_first_request(valkey: Server, data_dir: Path) -> None:
    async with seal_on(valkey, data_dir / "one") as seal:
        await seal.rate_limits.deny("2001:db8::7")
    async with site_on(valkey, data_dir / "two", routes={"/api": "email"}) as site:
        assert await site.statuses(1, peer="2001:db8::7") == [429]


async def test_a_plan_has_its_limits_and_answers_tell_them(valkey: Server, data_dir: Path) -> None:
    def plan(scope: Scope) -> str | None:
        return dict(scope["headers"]).get(b"x-plan", b"").decode() or None

    async with site_on(valkey, data_dir, routes={"/api": "email"}, plan=plan) as site:
        await site.limits.set_limits("email", Limit(3, MINUTE), plan="gold")
        answer = await site.ask(headers={"X-Plan": "gold"})
        assert answer.headers["RateLimit-Policy"] == '"email";q=3;w=60'
        assert answer.headers["X-RateLimit-Remaining"] == "2"
        assert await site.statuses(3, peer="203.0.113.6", headers={"X-Plan": "gold"}) == [200] * 3
        assert await site.statuses(3, peer="203.0.113.7", headers={"X-Plan": "none"}) == [200, 200, 429]


async def test_a_plan_without_a_name_is_none(valkey: Server, data_dir: Path) -> None:
    async with site_on(valkey, data_dir, routes={"/api": "email"}, plan=lambda scope: "") as site:
        assert await site.statuses(3) == [200, 200, 429]


async def test_an_answer_tells_the_limits_by_which_it_was_decided(site: Site) -> None:
    @site.app.get("/api/things/slow")
    async def slow() -> None:
        await site.limits.set_limits("email", Limit(5, MINUTE))

    answer = await site.ask("/api/things/slow")
    assert answer.headers["RateLimit-Policy"] == '"email";q=2;w=60'
    assert answer.headers["X-RateLimit-Limit"] == "2"
    assert (await site.ask()).headers["RateLimit-Policy"] == '"email";q=5;w=60'


async def test_of_two_limits_with_one_count_the_one_that_decided_is_named(
    valkey: Server, data_dir: Path
) -> None:
    async with site_on(valkey, data_dir, routes={"/api": "email"}) as site:
        await site.limits.set_limits("email", [Limit(9, timedelta(seconds=1)), Limit(9, timedelta(days=1))])
        await site.statuses(5)
        travel(site.store, timedelta(seconds=3))
        answer = await site.ask()
        assert re.fullmatch(r'"email-86400";r=3;t=\d+', answer.headers["RateLimit"])


async def test_a_limit_that_is_changed_holds_and_is_told_at_the_next_request(site: Site) -> None:
    assert await site.statuses(3) == [200, 200, 429]
    await site.limits.set_limits("email", Limit(5, MINUTE))
    answer = await site.ask()
    assert answer.status_code == 200
    assert answer.headers["RateLimit-Policy"] == '"email";q=5;w=60'
    assert answer.headers["X-RateLimit-Limit"] == "5"


# -- the dependency ----------------------------------------------------------------------------------------------------


async def nothing() -> dict[str, str]:
    return {}


def with_route(site: Site, path: str, dependency: Callable[..., Any]) -> None:
    site.app.get(path, dependencies=[Depends(dependency)])(nothing)


async def test_a_route_of_its_own_limit_is_charged_for_its_path_and_for_itself(site: Site) -> None:
    with_route(site, "/api/mails", limited("email"))
    first, *_, last = [await site.ask("/api/mails") for _ in range(3)]
    assert first.headers["RateLimit-Policy"] == '"api";q=100;w=60, "email";q=2;w=60'
    assert first.headers["X-RateLimit-Limit"] == "2"
    problem(last, 429, "rate_limited")
    assert int(last.headers["Retry-After"]) >= 1
    assert await remaining(site, "api") == 97


async def test_the_same_limiter_is_charged_once_for_one_request(site: Site) -> None:
    site.app.get("/api/things/once", dependencies=[Depends(limited("email")), Depends(limited("email"))])(
        nothing
    )
    assert await site.statuses(3, "/api/things/once") == [200, 200, 429]


async def test_what_the_path_was_charged_counts_towards_the_cost_of_the_route(site: Site) -> None:
    with_route(site, "/api/costly", limited("api", cost=40))
    answer = await site.ask("/api/costly")
    assert answer.headers["RateLimit-Policy"] == '"api";q=100;w=60'
    assert answer.headers["X-RateLimit-Remaining"] == "60"
    assert await site.statuses(2, "/api/costly") == [200, 429]


async def test_a_flood_that_fails_before_the_dependency_counts_for_its_path(site: Site) -> None:
    async def nobody() -> None:
        raise RuntimeError

    site.app.get("/api/mails", dependencies=[Depends(nobody), Depends(limited("email"))])(nothing)
    await site.statuses(3, "/api/mails")
    assert (await remaining(site, "api"), await remaining(site, "email")) == (97, 2)


async def account(request: Request) -> str | None:
    return request.query_params.get("account")


async def test_whom_a_route_names_is_neither_an_address_nor_a_user(valkey: Server, data_dir: Path) -> None:
    def user(scope: Scope) -> str | None:
        return dict(scope["headers"]).get(b"x-user", b"").decode() or None

    async with site_on(valkey, data_dir, routes={"/api": "email"}, identify=user) as site:
        with_route(site, "/login", limited("email", identifier=account))
        for account_named in ("203.0.113.9", "user:alice", "of:203.0.113.9"):
            assert await site.statuses(3, f"/login?account={account_named}") == [200, 200, 429]
        assert await site.statuses(1, peer="203.0.113.9") == [200]
        assert await site.statuses(1, headers={"X-User": "alice"}) == [200]
        assert await site.statuses(1, headers={"X-User": "of:203.0.113.9"}) == [200]


async def test_whom_a_route_names_is_never_on_a_list_of_addresses(site: Site) -> None:
    await site.limits.deny("203.0.113.0/24")
    await site.limits.allow("198.51.100.0/24")
    await site.limits.allow("2001:db8::/32")
    with_route(site, "/login", limited("email", identifier=account))
    for account_named, peer in (("203.0.113.9", "192.0.2.1"), ("198.51.100.7", "192.0.2.2")):
        assert await site.statuses(3, f"/login?account={account_named}", peer=peer) == [200, 200, 429]
    assert await site.statuses(3, "/login?account=2001:db8::1", peer="192.0.2.3") == [200, 200, 429]
    await site.limits.deny("of:bob")
    problem(await site.ask("/login?account=bob", peer="192.0.2.4"), 429, "rate_limited")


async def test_a_new_process_knows_the_lists_at_the_first_request_of_a_route_outside_the_table(
    valkey: Server, data_dir: Path
) -> None:
    async with seal_on(valkey, data_dir / "one") as seal:
        await seal.rate_limits.deny(PEER)
    async with site_on(valkey, data_dir / "two") as site:
        with_route(site, "/login", limited("api", identifier=lambda request: "alice"))
        assert await site.statuses(1, "/login") == [429]


OfAccount = Annotated[Charge, Depends(limited("email", identifier=account))]


async def test_a_route_may_say_who_is_charged_and_refund_it(site: Site) -> None:
    @site.app.get("/api/codes")
    async def codes(charge: OfAccount, right: bool = False) -> None:
        if right:
            assert await charge.refund()

    assert await site.statuses(3, "/api/codes?account=a&right=true") == [200] * 3
    assert await site.statuses(3, "/api/codes?account=a") == [200, 200, 429]
    assert await site.statuses(1, "/api/codes?account=b") == [200]
    assert await site.statuses(3, "/api/codes") == [200, 200, 429]
    assert await remaining(site, "email", PEER) == 0


async def test_a_charge_is_given_back_once(site: Site) -> None:
    given: list[bool] = []
    left: list[int] = []

    @site.app.get("/api/codes")
    async def codes(charge: Annotated[Charge, Depends(limited("api", cost=5))]) -> None:
        for _ in range(3):
            given.append(await charge.refund())
            left.append(await remaining(site, "api"))

    await site.statuses(1, "/api/none")
    assert await site.statuses(1, "/api/codes") == [200]
    assert (given, left) == ([True, False, False], [99, 99, 99])


async def test_two_parts_of_a_route_that_are_charged_for_the_same_share_one_charge(site: Site) -> None:
    seen: list[object] = []

    @site.app.get("/mails")
    async def mails(
        small: Annotated[Charge, Depends(limited("api", cost=2))],
        large: Annotated[Charge, Depends(limited("api", cost=7))],
    ) -> None:
        seen.extend([small.cost, await remaining(site, "api")])
        seen.extend([await small.refund(), await large.refund(), await remaining(site, "api")])

    assert await site.statuses(1, "/mails") == [200]
    assert seen == [7, 93, True, False, 100]


async def test_somebody_exempt_is_given_nothing_back(site: Site) -> None:
    given: list[bool] = []

    @site.app.get("/mails")
    async def mails(charge: Annotated[Charge, Depends(limited("email"))]) -> None:
        await site.limits.forget(PEER)
        given.append(await charge.refund())

    assert (await site.limits.email.limit(PEER)).remaining == 1
    await site.limits.allow(PEER)
    assert await site.statuses(1, "/mails") == [200]
    assert given == [False]
    assert await remaining(site, "email") == 1


async def test_what_was_given_back_counts_for_nothing_later_in_the_request(site: Site) -> None:
    async def first(charge: Annotated[Charge, Depends(limited("api"))]) -> None:
        assert await charge.refund()

    site.app.get("/mails", dependencies=[Depends(first), Depends(limited("api", cost=3))])(nothing)
    assert await site.statuses(1, "/mails") == [200]
    assert await remaining(site, "api") == 97


async def test_a_refusal_that_is_caught_refuses_again(site: Site) -> None:
    ran: list[str] = []

    async def patient(request: Request) -> None:
        for cost in (1, 3, 1):
            try:
                await limited("email", cost=cost)(request)
            except Problem as refused:
                ran.append(refused.code)

    @site.app.get("/mails", dependencies=[Depends(patient), Depends(limited("email"))])
    async def mails() -> None:
        ran.append("sent")

    problem(await site.ask("/mails"), 429, "rate_limited")
    assert ran == ["rate_limited", "rate_limited"]
    assert await remaining(site, "email") == 1


@pytest.mark.parametrize("awkward", ["a" * 5000, "\ud800", "a:b", "}{", "\x00"])
async def test_no_identifier_that_a_client_makes_up_is_an_error(site: Site, awkward: str) -> None:
    with_route(site, "/api/codes", limited("email", identifier=lambda request: awkward))
    assert await site.statuses(3, "/api/codes") == [200, 200, 429]


async def test_a_dependency_works_outside_the_table_too(site: Site) -> None:
    with_route(site, "/mails", limited("email", identifier=lambda request: "everybody"))
    assert await site.statuses(2, "/mails") == [200, 200]
    problem(await site.ask("/mails", peer="203.0.113.6"), 429, "rate_limited")


@pytest.mark.parametrize("cost", [0, -1, 1.5, 1.0, True, "1", None])
def test_a_cost_that_is_no_whole_number_of_at_least_one_is_refused_when_the_route_is_made(cost: Any) -> None:
    with pytest.raises(ConfigurationError, match="cost: expected a whole number of at least 1; came: "):
        limited("email", cost=cost)


async def test_a_route_with_a_limiter_that_nobody_declared_fails_and_names_none_to_the_client(
    valkey: Server, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with product_on(valkey, data_dir) as site:
        with_route(site, "/mails", limited("emial"))
        answer = await site.ask("/mails")
        problem(answer, 500, "configuration_invalid")
        assert not any(limiter.name in answer.text for limiter in site.limits.limiters)
        assert "emial" not in answer.text
        assert "emial" in caplog.text


async def test_an_application_without_the_middleware_is_a_configuration_error() -> None:
    app = FastAPI()
    app.get("/", dependencies=[Depends(limited("email"))])(nothing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://counterseal") as client:
        with pytest.raises(ConfigurationError, match="expected RateLimitMiddleware"):
            await client.get("/")


# -- without Redis -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Server.freeze, Server.kill], ids=["frozen", "killed"])
async def test_open_limiters_count_here_and_closed_ones_answer_503_until_redis_is_back(
    valkey: Server, data_dir: Path, fault: Callable[[Server], None]
) -> None:
    async with product_on(valkey, data_dir, COUNTERSEAL_COMMAND_TIMEOUT="200ms") as site:
        await lose_database(site.seal)  # which would count for them
        fault(valkey)
        problem(await site.ask(GUESSED), 503, "store_unavailable")
        problem(await site.ask("/api/auth/totp/log-in"), 503, "store_unavailable")
        answers = [await site.ask("/api/none") for _ in range(101)]
        assert {answer.status_code for answer in answers[:100]} == {404}
        problem(answers[100], 429, "rate_limited")
        valkey.thaw()
        if not valkey.running:
            valkey.start()

        async def is_let_in() -> bool:
            return (await site.ask(GUESSED)).status_code == 404

        await eventually(is_let_in, within=20)


async def test_where_redis_refuses_the_limiter_closed_ones_let_nobody_in(site: Site, valkey: Server) -> None:
    assert await site.statuses(1, "/api/auth/login") == [200]
    (counted,) = valkey.execute("KEYS", "cs:*auth*")
    valkey.execute("DEL", counted)
    valkey.execute("LPUSH", counted, "not what a limiter keeps")
    valkey.execute("EXPIRE", counted, 60)
    await lose_database(site.seal)  # which would count for it
    problem(await site.ask("/api/auth/login"), 503, "store_unavailable")


async def test_websockets_pass_unharmed(site: Site) -> None:
    seen: list[str] = []

    async def inner(scope: Scope, receive: object, send: object) -> None:
        seen.append(scope["type"])

    middleware = RateLimitMiddleware(inner, seal=site.seal, routes={"/": "email"})
    for _ in range(5):
        await middleware({"type": "websocket", "path": "/api", "headers": []}, None, None)  # type: ignore[arg-type]
    await middleware({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["websocket"] * 5 + ["lifespan"]
    assert await remaining(site, "email") == 2
