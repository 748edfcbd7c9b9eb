"""The web application over real services: every route, every error, and what stands around them."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from counterseal.app import Counterseal
from counterseal.cache.kind import JsonObject
from counterseal.core.errors import (
    CodecError,
    CommandError,
    DatabaseUnavailable,
    StoreBusy,
    StoreTimeout,
    StoreUnavailable,
    UnknownName,
)
from counterseal.core.settings import Settings
from counterseal.upstash.open import open_redis_rest
from counterseal.web import create_app
from support.servers import Server
from support.waiting import eventually

ADMIN_KEY = secrets.token_urlsafe(24)
REST_TOKEN = secrets.token_urlsafe(24)
HEALTH = "/api/health/redis"
JOB_TYPES = {"email", "pdf-generation", "notification", "audit-log", "analytics-aggregation"}


class Site:
    """An application over the services of a server, and a client that asks it."""

    def __init__(self, seal: Counterseal, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.seal = seal
        self.app = app
        self.client = client

    async def order(self, action: str) -> httpx.Response:
        return await self.client.post(HEALTH, json={"action": action}, headers={"X-Admin-Key": ADMIN_KEY})


@asynccontextmanager
async def site_on(
    server: Server, folder: Path, *, worker: bool = True, **variables: str
) -> AsyncIterator[Site]:
    settings = Settings.load(
        {
            "REDIS_URL": server.url,
            "COUNTERSEAL_DATA_DIR": str(folder),
            "COUNTERSEAL_ADMIN_KEY": ADMIN_KEY,
            "COUNTERSEAL_COMMAND_TIMEOUT": "2s",
            **variables,
        }
    )
    async with AsyncExitStack() as stack:
        seal = await stack.enter_async_context(Counterseal.open(settings))
        rest = await stack.enter_async_context(open_redis_rest(seal.store, settings))
        if worker:
            await stack.enter_async_context(seal.worker())
        app = create_app(seal, rest=rest)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://counterseal", timeout=20)
        )
        yield Site(seal, app, client)


@pytest.fixture
async def site(valkey: Server, data_dir: Path) -> AsyncIterator[Site]:
    async with site_on(valkey, data_dir) as site:
        yield site


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an answer that must be a problem with these two."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert set(body) >= {"type", "title", "status", "detail", "code"}
    assert (body["status"], body["code"]) == (status, code)
    return body


# -- routes ------------------------------------------------------------------------------------------------------------


async def test_the_route_table_is_the_reviewed_list(valkey: Server, data_dir: Path) -> None:
    async with site_on(
        valkey, data_dir, COUNTERSEAL_REST_TOKEN=REST_TOKEN, COUNTERSEAL_REST_DATABASE="1"
    ) as site:
        table = {
            (getattr(route, "path", "?"), method)
            for route in site.app.routes
            for method in (getattr(route, "methods", None) or {"*"})
        }
    # Those below /api/auth have a table with who may call them, in test_web_auth.
    assert {row for row in table if not row[0].startswith("/api/auth/")} == {
        ("/", "GET"),
        ("/api/health/redis", "GET"),
        ("/api/health/redis", "POST"),  # needs the admin key
        ("/health/live", "GET"),
        ("/health/ready", "GET"),
        ("/metrics", "GET"),
        ("/openapi.json", "GET"),
        ("/openapi.json", "HEAD"),
        ("/redis", "*"),  # needs the REST token
        ("/static", "*"),
    }


async def test_without_a_token_there_is_no_redis_rest_server(site: Site) -> None:
    for path in ("/redis", "/redis/", "/redis/ping"):
        problem(await site.client.post(path, json=["PING"]), 404, "not_found")


async def test_the_redis_rest_server_answers_at_its_path_itself_without_a_redirect(
    valkey: Server, data_dir: Path
) -> None:
    async with site_on(
        valkey, data_dir, COUNTERSEAL_REST_TOKEN=REST_TOKEN, COUNTERSEAL_REST_DATABASE="1"
    ) as site:
        headers = {"Authorization": f"Bearer {REST_TOKEN}"}
        for path in ("/redis", "/redis/"):
            answer = await site.client.post(path, json=["PING"], headers=headers)
            assert (answer.status_code, answer.json()) == (200, {"result": "PONG"})
        assert (await site.client.get("/redis/ping", headers=headers)).json() == {"result": "PONG"}
        assert (await site.client.post("/redis", json=["PING"])).status_code == 401
        problem(await site.client.get("/rediss", headers=headers), 404, "not_found")


async def test_the_redis_rest_server_does_not_see_what_counterseal_keeps(
    valkey: Server, data_dir: Path
) -> None:
    async with site_on(
        valkey, data_dir, COUNTERSEAL_REST_TOKEN=REST_TOKEN, COUNTERSEAL_REST_DATABASE="1"
    ) as site:
        await site.seal.cache.documents.set("7", {"title": "Lease"})
        headers = {"Authorization": f"Bearer {REST_TOKEN}"}
        assert (await site.client.post("/redis", json=["DBSIZE"], headers=headers)).json() == {"result": 0}
        await site.client.post("/redis", json=["FLUSHALL"], headers=headers)
        assert await site.seal.cache.documents.get("7") == {"title": "Lease"}


@pytest.mark.parametrize("base", ["", "/below"])
async def test_every_link_of_the_page_leads_somewhere(site: Site, base: str) -> None:
    outer = FastAPI()
    outer.mount(base, site.app)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(outer), base_url="http://counterseal"
    ) as client:
        page = await client.get(f"{base}/")
        links = set(re.findall(r'href="([^"]+)"', page.text))
        assert len(links) > 5
        for link in links:
            assert link.startswith(f"{base}/")
            assert (await client.get(link)).status_code == 200, link


async def test_the_page_has_no_script_no_inline_style_and_says_its_language(site: Site) -> None:
    seen: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attrs)))

    page = await site.client.get("/")
    Reader().feed(page.text)
    tags = {tag for tag, _ in seen}
    assert not tags & {"script", "style", "iframe", "form"}
    assert [attributes for _, attributes in seen if "style" in attributes or "onclick" in attributes] == []
    assert ("html", {"lang": "en"}) in seen
    assert {"h1", "table", "main"} <= tags
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_the_page_tells_what_is_unhealthy(valkey: Server, data_dir: Path) -> None:
    async with site_on(valkey, data_dir, worker=False) as site:
        valkey.kill()
        await eventually(lambda: not site.seal.store.available)
        page = await site.client.get("/")
    assert page.status_code == 200
    assert page.text.count('<span class="unhealthy">unhealthy</span>') == 5
    assert "Redis can&#x27;t be reached." in page.text


# -- health ------------------------------------------------------------------------------------------------------------


async def test_health_has_exactly_these_members(site: Site) -> None:
    answer = await site.client.get(HEALTH)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-cache, no-store, must-revalidate"
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    moment = body.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    assert datetime.fromisoformat(moment).tzinfo is not None
    assert type(body.pop("responseTime")) is int
    assert type(body["services"]["redis"].pop("latency")) is int
    nothing = {"total": 0, "completed": 0, "failed": 0, "pending": 0, "successRate": 0}
    assert body == {
        "status": "healthy",
        "services": {
            "redis": {"status": "healthy"},
            "cache": {"status": "healthy", "operations": {"set": True, "get": True, "delete": True}},
            "jobQueue": {
                "status": "healthy",
                "stats": dict.fromkeys(JOB_TYPES, nothing),
                "canAccessJobs": True,
            },
            "analytics": {
                "status": "healthy",
                "hasAnalytics": True,
                "hasPerformanceMetrics": True,
                "todayViews": 0,
                "todaySignatures": 0,
            },
        },
        "environment": {
            "hasRedisUrl": True,
            "hasRedisToken": False,
            "hasQStashToken": False,
            "nodeEnv": "development",
        },
    }


@pytest.mark.parametrize("path", [HEALTH, "/health/live", "/health/ready", "/metrics", "/"])
async def test_head_has_the_status_and_headers_of_get(site: Site, path: str) -> None:
    got, head = await site.client.get(path), await site.client.head(path)
    assert head.status_code == got.status_code == 200
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert head.headers["Cache-Control"] == got.headers["Cache-Control"]


async def test_health_and_readiness_follow_a_server_that_goes_and_returns(
    valkey: Server, data_dir: Path
) -> None:
    async with site_on(valkey, data_dir) as site:

        async def statuses() -> tuple[int, int, int]:
            paths = (HEALTH, "/health/ready", "/health/live")
            health, ready, live = [(await site.client.get(path)).status_code for path in paths]
            return health, ready, live

        async def are(*expected: int) -> bool:
            return await statuses() == expected

        assert await statuses() == (200, 200, 200)
        valkey.kill()
        await eventually(lambda: are(503, 503, 200))
        assert (await site.client.get("/health/ready")).json() == {
            "status": "not ready",
            "errors": {"redis": "Redis can't be reached."},
        }
        valkey.start()
        await eventually(lambda: are(200, 200, 200), within=20)


async def test_a_frozen_server_makes_health_unhealthy_within_a_second(valkey: Server, data_dir: Path) -> None:
    async with site_on(valkey, data_dir, worker=False, COUNTERSEAL_COMMAND_TIMEOUT="30s") as site:
        valkey.freeze()
        answer = await site.client.get(HEALTH)
        assert answer.status_code == 503
        assert answer.elapsed.total_seconds() < 1
        body = answer.json()
        assert body["status"] == "unhealthy"
        assert {service["status"] for service in body["services"].values()} == {"unhealthy"}
        assert all(service["error"].endswith(".") for service in body["services"].values())
        valkey.thaw()


# -- what an operator may do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Admin-Key": "wrong"},
        {"X-Admin-Key": ADMIN_KEY[:-1]},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {ADMIN_KEY}"},
        {"Authorization": ADMIN_KEY},
    ],
)
async def test_an_order_without_the_admin_key_is_refused_before_its_body_is_read(
    site: Site, headers: dict[str, str]
) -> None:
    answer = await site.client.post(HEALTH, content=b"not even JSON", headers=headers)
    problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_without_an_admin_key_nobody_gives_orders(valkey: Server, data_dir: Path) -> None:
    async with site_on(valkey, data_dir, worker=False, COUNTERSEAL_ADMIN_KEY="") as site:
        problem(await site.order("clear_cache"), 401, "unauthorized")
        problem(await site.client.post(HEALTH, headers={"X-Admin-Key": ""}), 401, "unauthorized")


async def test_the_admin_key_is_taken_from_either_header(site: Site) -> None:
    for headers in ({"X-Admin-Key": ADMIN_KEY}, {"Authorization": f"Bearer {ADMIN_KEY}"}):
        answer = await site.client.post(HEALTH, json={"action": "reset_analytics"}, headers=headers)
        assert answer.status_code == 200


async def test_an_unknown_action_is_answered_with_the_known_ones(site: Site) -> None:
    body = problem(await site.order("drop_everything"), 400, "unknown_action")
    assert body["actions"] == ["clear_cache", "detailed_diagnostics", "reset_analytics", "test_job_queue"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"clear_cache"', b'{"action": 1}', b"\xff", b"{}"])
async def test_an_order_that_is_none_is_a_bad_request(site: Site, content: bytes) -> None:
    answer = await site.client.post(HEALTH, content=content, headers={"X-Admin-Key": ADMIN_KEY})
    problem(answer, 400, "bad_request")


async def test_an_order_of_many_bytes_is_refused(site: Site) -> None:
    answer = await site.client.post(HEALTH, content=b" " * 5000, headers={"X-Admin-Key": ADMIN_KEY})
    problem(answer, 413, "body_too_large")


async def test_clear_cache_makes_every_value_absent(site: Site) -> None:
    await site.seal.cache.documents.set("7", {"title": "Lease"})
    await site.seal.cache.user_profiles.set("u", {"name": "Ada"})
    answer = await site.order("clear_cache")
    assert answer.status_code == 200
    assert set(answer.json()["cleared"]) >= {"document", "user_profile"}
    assert await site.seal.cache.documents.get("7") is None
    assert await site.seal.cache.user_profiles.get("u") is None


async def test_test_job_queue_runs_a_probe_to_its_end(site: Site) -> None:
    answer = await site.order("test_job_queue")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["success"], body["job"]["state"]) == (True, "completed")
    job = await site.seal.jobs.get(body["job"]["id"])
    assert job is not None
    assert (job.type, job.state) == ("probe", "completed")


async def test_reset_analytics_sets_the_numbers_of_today_to_zero(site: Site) -> None:
    await site.seal.analytics.track_document_view("r", "u", "example.com")
    assert (await site.seal.analytics.today()).views == 1
    body = (await site.order("reset_analytics")).json()
    assert body["success"] is True
    assert body["keysDeleted"] > 0
    assert (await site.seal.analytics.today()).views == 0


async def test_detailed_diagnostics_tell_much_and_no_secret_or_address(site: Site, valkey: Server) -> None:
    answer = await site.order("detailed_diagnostics")
    found = answer.json()["diagnostics"]
    assert found["server"]["product"] == "valkey"
    assert found["latency"]["pings"] == 20
    assert found["client"]["commands"] > 0
    for hidden in (ADMIN_KEY, str(valkey.port), "127.0.0.1", str(valkey.folder)):
        assert hidden not in answer.text


async def test_an_order_that_needs_redis_is_answered_503_while_it_is_away_and_done_when_it_is_back(
    valkey: Server, data_dir: Path
) -> None:
    async with site_on(valkey, data_dir, worker=False) as site:
        valkey.kill()
        await eventually(lambda: not site.seal.store.available)
        answer = await site.order("clear_cache")
        problem(answer, 503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        valkey.start()

        async def done() -> bool:
            return (await site.order("clear_cache")).status_code == 200

        await eventually(done, within=20)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoreUnavailable("host 10.1.2.3 hunter2"), 503, "store_unavailable"),
        (StoreTimeout("host 10.1.2.3 hunter2"), 503, "store_timeout"),
        (StoreBusy("host 10.1.2.3 hunter2"), 503, "store_busy"),
        (DatabaseUnavailable("host 10.1.2.3 hunter2"), 503, "database_unavailable"),
        (CommandError("ERR hunter2"), 500, "command_failed"),
        (CodecError("hunter2"), 500, "value_unreadable"),
        (RuntimeError("hunter2"), 500, "internal_error"),
        (UnknownName("no queue has this name; known are a, b"), 404, "unknown_name"),
    ],
)
async def test_every_error_is_a_problem_that_shows_no_cause(
    site: Site, error: Exception, status: int, code: str
) -> None:
    async def fail() -> None:
        raise error

    site.app.add_api_route("/fail", fail)
    answer = await site.client.get("/fail")
    problem(answer, status, code)
    assert "hunter2" not in answer.text
    assert "10.1.2.3" not in answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "error", [CommandError("ERR hunter2"), CodecError("hunter2"), RuntimeError("hunter2")]
)
async def test_what_an_answer_500_leaves_to_the_log_is_there_once(
    site: Site, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise error

    site.app.add_api_route("/fail", fail)
    problem(await site.client.get("/fail"), 500, getattr(error, "code", "internal_error"))
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "a request to /fail failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_an_outage_is_no_error_of_a_request_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise StoreUnavailable("away")

    site.app.add_api_route("/fail", fail)
    problem(await site.client.get("/fail"), 503, "store_unavailable")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_invalid_request_is_told_what_was_expected_and_not_what_came(site: Site) -> None:
    async def take(count: int) -> int:
        return count

    site.app.add_api_route("/take", take)
    answer = await site.client.get("/take", params={"count": "hunter2"})
    body = problem(answer, 422, "request_invalid")
    assert [fault["path"] for fault in body["faults"]] == ["query.count"]
    assert "hunter2" not in answer.text


async def test_a_path_that_is_not_there_and_a_wrong_method_are_problems(site: Site) -> None:
    problem(await site.client.get("/nothing/here"), 404, "not_found")
    problem(await site.client.get("/static/nothing.css"), 404, "not_found")
    answer = await site.client.delete("/health/live")
    problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (HEALTH, {"GET", "HEAD", "POST"}),
        ("/metrics", {"GET", "HEAD"}),
        ("/static/style.css", {"GET", "HEAD"}),
    ],
)
@pytest.mark.parametrize("base", ["", "/below"])
async def test_a_refused_method_is_told_every_method_of_the_path(
    site: Site, path: str, methods: set[str], base: str
) -> None:
    transport = httpx.ASGITransport(site.app, root_path=base)
    async with httpx.AsyncClient(transport=transport, base_url="http://counterseal") as client:
        answer = await client.delete(base + path)
    problem(answer, 405, "method_not_allowed")
    assert sorted(answer.headers["Allow"].split(", ")) == sorted(methods)


@pytest.mark.parametrize("path", ["/", HEALTH, "/metrics", "/static/style.css", "/nothing", "/openapi.json"])
async def test_every_answer_carries_the_security_headers(site: Site, path: str) -> None:
    headers = (await site.client.get(path)).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


# -- metrics -----------------------------------------------------------------------------------------------------------


async def samples(site: Site) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = await site.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


async def test_metrics_count_commands_jobs_and_requests(site: Site) -> None:
    await site.client.get("/health/live")
    await site.client.get("/health/live")
    assert (await site.order("test_job_queue")).json()["success"]
    found = await samples(site)
    assert found["counterseal_store_available", labelled()] == 1
    assert found["counterseal_store_commands_total", labelled()] > 0
    assert found["counterseal_jobs", labelled(type="probe", state="completed")] == 1
    assert found["counterseal_jobs", labelled(type="email", state="pending")] == 0
    live = {"method": "GET", "route": "/health/live"}
    assert found["counterseal_http_requests_total", labelled(**live, status="200")] == 2
    assert found["counterseal_http_request_seconds_count", labelled(**live)] == 2


async def test_metrics_count_what_the_cache_did(site: Site) -> None:
    documents = site.seal.cache.documents

    async def load(_: str) -> JsonObject:
        return {"title": "Lease"}

    await documents.get("1")
    await documents.get_or_load("1", load)
    await documents.get("1")
    found = await samples(site)
    reads = {
        outcome: found["counterseal_cache_reads_total", labelled(kind="document", outcome=outcome)]
        for outcome in ("hit", "near", "stale", "miss", "degraded")
    }
    assert reads == {"hit": 1, "near": 0, "stale": 0, "miss": 2, "degraded": 0}
    assert found["counterseal_cache_loads_total", labelled(kind="document")] == 1
    assert found["counterseal_cache_bytes_total", labelled(kind="document", direction="read")] > 0
    assert found["counterseal_cache_near_bytes", labelled()] == 0


async def test_invented_paths_and_methods_make_no_new_series(site: Site) -> None:
    for number in range(20):
        await site.client.request(f"BREW{number}", f"/coffee/{number}")
        await site.client.get(f"/coffee/{number}")
    found = await samples(site)
    series = {labels for name, labels in found if name == "counterseal_http_requests_total"}
    assert series == {
        labelled(method="OTHER", route="(none)", status="404"),
        labelled(method="GET", route="(none)", status="404"),
    }


async def test_a_root_path_that_ends_within_a_segment_hides_no_mount(valkey: Server, data_dir: Path) -> None:
    async with site_on(
        valkey, data_dir, COUNTERSEAL_REST_TOKEN=REST_TOKEN, COUNTERSEAL_REST_DATABASE="1"
    ) as site:

        async def ask(method: str, path: str, root_path: str) -> httpx.Response:
            transport = httpx.ASGITransport(site.app, root_path=root_path)
            async with httpx.AsyncClient(transport=transport, base_url="http://counterseal") as client:
                return await client.request(method, path)

        await ask("HEAD", "/static/style.css", "/stat")
        assert (await ask("POST", "/redis", "/re")).status_code != 404
        found = await samples(site)
        series = {labels for name, labels in found if name == "counterseal_http_requests_total"}
        assert {dict(labels)["route"] for labels in series} == {"/static", "/redis"}


async def test_metrics_are_there_while_redis_is_not(valkey: Server, data_dir: Path) -> None:
    async with site_on(valkey, data_dir, worker=False) as site:
        valkey.kill()
        await eventually(lambda: not site.seal.store.available)
        found = await samples(site)
        assert found["counterseal_store_available", labelled()] == 0
        assert not any(name == "counterseal_jobs" for name, _ in found)


async def test_two_applications_count_apart(valkey: Server, data_dir: Path) -> None:
    async with site_on(valkey, data_dir) as one, site_on(valkey, data_dir) as other:
        await one.client.get("/health/live")
        key = ("counterseal_http_requests_total", labelled(method="GET", route="/health/live", status="200"))
        assert (await samples(one))[key] == 1
        assert key not in await samples(other)
