"""The health service on a real server: what a sound answer is, and what makes each part of it false."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from counterseal.app import Counterseal
from counterseal.core.settings import Environment, QStashSettings, RedisSettings, Settings
from counterseal.health import CHECK_PERIOD, JOB_TYPES, Health, Probes
from counterseal.jobs.job import State
from counterseal.jobs.scripts import Queue, Result
from counterseal.jobs.service import DEFAULT_QUEUE
from counterseal.jobs.types import EMAIL, TYPES
from counterseal.store.keys import Keys
from support.servers import Server
from support.waiting import eventually

KEYS = Keys()
SECRET = "a-long-secret-of-the-tests"
SHAPE = {
    "status": str,
    "timestamp": str,
    "responseTime": int,
    "services": {
        "redis": {"status": str, "latency": int},
        "cache": {"status": str, "operations": {"set": bool, "get": bool, "delete": bool}},
        "jobQueue": {
            "status": str,
            "stats": {
                name: {"total": int, "completed": int, "failed": int, "pending": int, "successRate": int}
                for name in ("email", "pdf-generation", "notification", "audit-log", "analytics-aggregation")
            },
            "canAccessJobs": bool,
        },
        "analytics": {
            "status": str,
            "hasAnalytics": bool,
            "hasPerformanceMetrics": bool,
            "todayViews": int,
            "todaySignatures": int,
        },
    },
    "environment": {"hasRedisUrl": bool, "hasRedisToken": bool, "hasQStashToken": bool, "nodeEnv": str},
}


def settings(url: str, folder: Path, **more: Any) -> Settings:
    patient = timedelta(seconds=5)
    redis = RedisSettings(url=SecretStr(url), connect_timeout=patient, command_timeout=patient)
    return Settings(data_dir=folder, redis=redis, **more)


@asynccontextmanager
async def opened(url: str, folder: Path, **more: Any) -> AsyncIterator[Counterseal]:
    async with Counterseal.open(settings(url, folder, **more)) as seal:
        yield seal


@pytest.fixture
async def seal(valkey: Server, data_dir: Path) -> AsyncIterator[Counterseal]:
    async with opened(valkey.url, data_dir) as seal:
        yield seal


def as_user(server: Server) -> str:
    return f"redis://limited:{SECRET}@127.0.0.1:{server.port}/0"


async def services(seal: Counterseal) -> dict[str, Any]:
    report = await seal.health.check()
    return json.loads(json.dumps(report.body))["services"]


def shape_of(value: Any) -> Any:
    return (
        {name: shape_of(member) for name, member in value.items()} if isinstance(value, dict) else type(value)
    )


def order_of(value: Any) -> Any:
    """The members of an object in their order, and of all objects in it, which equality of dicts leaves out."""
    return [(name, order_of(member)) for name, member in value.items()] if isinstance(value, dict) else None


async def test_a_sound_answer_has_exactly_the_members_types_and_order_that_are_promised(
    seal: Counterseal,
) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    report = await seal.health.check()
    body: Any = json.loads(json.dumps(report.body))
    assert report.healthy
    assert shape_of(body) == SHAPE
    assert order_of(body) == order_of(SHAPE)
    assert {body["status"], *(service["status"] for service in body["services"].values())} == {"healthy"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["timestamp"])
    assert before <= datetime.fromisoformat(body["timestamp"]) <= datetime.now(UTC)
    assert 0 <= body["services"]["redis"]["latency"] <= body["responseTime"] < 700
    assert body["services"]["cache"]["operations"] == {"set": True, "get": True, "delete": True}


def test_the_types_that_are_told_are_types_of_jobs() -> None:
    assert set(JOB_TYPES) < set(TYPES)


async def test_the_numbers_are_those_of_the_services(seal: Counterseal) -> None:
    for _ in range(3):
        await seal.jobs.enqueue_json(EMAIL, {})
    await seal.jobs.enqueue_json(EMAIL, {})
    queue = Queue(seal.store, KEYS, DEFAULT_QUEUE)
    leased = (await queue.lease(room=3, worker="w", call="1", lease_ms=10_000)).jobs
    states = (State.COMPLETED, State.COMPLETED, State.FAILED)
    await queue.finish(
        [
            Result(one.part, one.token, state, 60_000, 1, b"")
            for one, state in zip(leased, states, strict=True)
        ]
    )
    await seal.analytics.track_document_view("r", "u")
    await seal.analytics.track_document_view("r", "u")
    await seal.analytics.track_signature_completion("r", "u")
    told = await services(seal)
    assert told["jobQueue"]["stats"]["email"] == {
        "total": 4, "completed": 2, "failed": 1, "pending": 1, "successRate": 66.67
    }  # fmt: skip
    assert (told["analytics"]["todayViews"], told["analytics"]["todaySignatures"]) == (2, 1)


async def test_the_environment_says_what_is_set_and_never_to_what(valkey: Server, data_dir: Path) -> None:
    qstash = QStashSettings(token=SecretStr(SECRET))
    async with opened(valkey.url, data_dir, qstash=qstash, environment=Environment.TEST) as seal:
        report = await seal.health.check()
    assert report.body["environment"] == {
        "hasRedisUrl": True, "hasRedisToken": False, "hasQStashToken": True, "nodeEnv": "test"
    }  # fmt: skip
    assert SECRET not in json.dumps(report.body)


@pytest.mark.parametrize(
    ("redis", "expected"),
    [
        (RedisSettings(), (False, False)),
        (RedisSettings(url=SecretStr("redis://127.0.0.1:1")), (True, False)),
        (RedisSettings(upstash_url="http://127.0.0.1:1", upstash_token=SecretStr("t" * 16)), (True, True)),
        (RedisSettings(upstash_url="http://127.0.0.1:1"), (True, False)),
    ],
)
async def test_either_url_of_redis_counts_and_the_token_is_upstashs(
    seal: Counterseal, redis: RedisSettings, expected: tuple[bool, bool]
) -> None:
    health = Health(seal.store, probes=seal._probes(), settings=Settings(redis=redis))
    environment: Any = (await health.check()).body["environment"]
    assert (environment["hasRedisUrl"], environment["hasRedisToken"]) == expected


@pytest.mark.parametrize(
    ("refused", "service", "flags"),
    [
        ("-ping", "redis", {}),
        ("-set", "cache", {"set": False}),
        ("-get", "cache", {"set": False, "get": False}),
        ("-unlink", "cache", {"set": True, "get": True, "delete": False}),
        ("-exists", "cache", {"set": True, "get": True, "delete": False}),
        ("-llen", "jobQueue", {"canAccessJobs": False}),
        ("-zcard", "jobQueue", {"canAccessJobs": False}),
        ("-hmget", "analytics", {"hasAnalytics": False, "hasPerformanceMetrics": True}),
        ("-pfcount", "analytics", {"hasAnalytics": False, "hasPerformanceMetrics": True}),
    ],
)
async def test_a_command_that_may_not_be_used_makes_its_flag_false_and_no_other_service_unhealthy(
    servers: Callable[..., Server], data_dir: Path, refused: str, service: str, flags: dict[str, bool]
) -> None:
    allowed = "" if refused == "-ping" else "+ping"
    server = servers(acl=[f"limited on >{SECRET} ~* &* +@all {refused} {allowed}"])
    url = server.url if refused == "-ping" else as_user(server)
    async with opened(url, data_dir) as seal:
        if refused == "-ping":
            server.execute("ACL", "SETUSER", "default", "-ping")
        told = await services(seal)
        server.execute("ACL", "SETUSER", "default", "+ping")
    faulty = told.pop(service)
    assert faulty["status"] == "unhealthy"
    assert re.fullmatch(
        r"Redis refused a command \((NOPERM|ERR)\).*\.|The lists of jobs can't be read\.", faulty["error"]
    )
    found = faulty.get("operations", faulty)
    assert {name: found[name] for name in flags} == flags
    assert {other["status"] for other in told.values()} == {"healthy"}
    assert not any("error" in other for other in told.values())
    assert SECRET not in json.dumps(faulty)
    assert "limited" not in json.dumps(faulty)


@pytest.mark.parametrize(
    ("key", "service", "flag"),
    [
        (f"{KEYS.jobs_prefix(DEFAULT_QUEUE)}:running", "jobQueue", "canAccessJobs"),
        (f"{KEYS.jobs_prefix(DEFAULT_QUEUE)}:ready:1", "jobQueue", "canAccessJobs"),
        ("counters", "analytics", "hasAnalytics"),
        ("endpoints", "analytics", "hasPerformanceMetrics"),
    ],
)
async def test_a_key_of_the_wrong_type_makes_its_flag_false(
    seal: Counterseal, valkey: Server, key: str, service: str, flag: str
) -> None:
    day = datetime.fromtimestamp(seal.store.now_ms() / 1000, UTC).date().isoformat()
    name = {"counters": KEYS.analytics_counters(day), "endpoints": KEYS.analytics_endpoints(day)}.get(
        key, key
    )
    valkey.execute("SET", name, "of another type", "PX", 60_000)
    told = await services(seal)
    assert told[service][flag] is False
    assert told[service]["status"] == "unhealthy"
    assert told[service]["error"].endswith(".")
    assert shape_of({**told[service], "error": ""}) == {**SHAPE["services"][service], "error": str}  # type: ignore[index]


async def test_unreadable_statistics_are_an_error_of_the_job_queue_alone(
    seal: Counterseal, valkey: Server
) -> None:
    prefix = KEYS.jobs_prefix(DEFAULT_QUEUE)
    valkey.execute("SADD", f"{prefix}:types", EMAIL)
    valkey.execute("SET", f"{prefix}:stats:{EMAIL}", "x", "PX", 60_000)
    told = await services(seal)
    assert told["jobQueue"]["status"] == "unhealthy"
    assert told["jobQueue"]["error"] == "Redis refused a command (WRONGTYPE)."
    assert told["jobQueue"]["canAccessJobs"] is True
    assert told["analytics"]["status"] == told["cache"]["status"] == "healthy"


async def test_a_frozen_server_is_unhealthy_within_a_second_and_healthy_again_when_it_goes_on(
    seal: Counterseal, valkey: Server
) -> None:
    assert (await seal.health.check()).healthy
    await eventually(lambda: not_fresh(seal))
    valkey.freeze()
    started = time.perf_counter()
    report = await seal.health.check()
    taken = time.perf_counter() - started
    valkey.thaw()
    told: Any = report.body["services"]
    assert taken < 1
    assert not report.healthy
    assert report.body["status"] == "unhealthy"
    for service in told.values():
        assert service["status"] == "unhealthy"
        assert service["error"].endswith(".")
    assert told["cache"]["operations"] == {"set": False, "get": False, "delete": False}
    assert told["jobQueue"]["canAccessJobs"] is False
    assert (told["analytics"]["hasAnalytics"], told["analytics"]["hasPerformanceMetrics"]) == (False, False)
    assert told["redis"]["latency"] >= 600
    await eventually(healthy(seal), within=20)


async def test_a_server_that_is_gone_is_unhealthy_without_its_address_and_healthy_when_it_is_back(
    servers: Callable[..., Server], data_dir: Path
) -> None:
    server = servers()
    async with opened(server.url, data_dir) as seal:
        server.kill()
        report = await seal.health.check()
        text = json.dumps(report.body)
        assert not report.healthy
        assert "127.0.0.1" not in text
        assert str(server.port) not in text
        server.start()
        await eventually(healthy(seal), within=20)


def not_fresh(seal: Counterseal) -> bool:
    """Whether the next asker gets an answer of his own."""
    return time.monotonic() - seal.health._checks._began > CHECK_PERIOD.total_seconds()


def healthy(seal: Counterseal) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (await seal.health.check()).healthy

    return look


class Counted:
    """Probes of real services that count how often they are asked, and wait until they are let go on."""

    def __init__(self, seal: Counterseal, *, held: bool = False) -> None:
        self.runs = 0
        self.go = asyncio.Event()
        if not held:
            self.go.set()
        real = seal._probes()

        async def cache() -> Any:
            self.runs += 1
            await self.go.wait()
            return await real.cache()

        self.probes = Probes(
            cache=cache,
            job_stats=real.job_stats,
            can_access_jobs=real.can_access_jobs,
            today=real.today,
            performance=real.performance,
            database=real.database,
        )


async def test_those_who_ask_at_once_share_one_run(seal: Counterseal) -> None:
    counted = Counted(seal)
    health = Health(seal.store, probes=counted.probes, settings=seal.settings)
    reports = await asyncio.gather(*(health.check() for _ in range(100)))
    assert counted.runs == 1
    assert len({id(report) for report in reports}) == 1


async def test_the_services_are_asked_at_most_four_times_a_second(seal: Counterseal) -> None:
    counted = Counted(seal)
    health = Health(seal.store, probes=counted.probes, settings=seal.settings)
    started = time.monotonic()
    while time.monotonic() - started < 0.6:
        await health.check()
    taken = time.monotonic() - started
    assert 2 <= counted.runs <= taken / 0.25 + 1


async def test_an_asker_who_goes_away_takes_the_answer_from_nobody(seal: Counterseal) -> None:
    counted = Counted(seal, held=True)
    health = Health(seal.store, probes=counted.probes, settings=seal.settings, budget=timedelta(seconds=20))
    leaving, staying = asyncio.create_task(health.check()), asyncio.create_task(health.check())
    await eventually(lambda: counted.runs == 1)
    leaving.cancel()
    await asyncio.wait([leaving])
    counted.go.set()
    assert (await staying).healthy
    assert counted.runs == 1


async def test_the_services_are_asked_at_the_same_time(seal: Counterseal) -> None:
    everybody = asyncio.Barrier(5)
    real = seal._probes()

    def meeting(probe: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        async def ask() -> Any:
            await everybody.wait()
            return await probe()

        return ask

    met = Probes(
        cache=meeting(real.cache),
        job_stats=meeting(real.job_stats),
        can_access_jobs=meeting(real.can_access_jobs),
        today=meeting(real.today),
        performance=meeting(real.performance),
        database=real.database,
    )
    health = Health(seal.store, probes=met, settings=seal.settings, budget=timedelta(seconds=20))
    assert (await health.check()).healthy


async def test_closing_ends_a_check_that_is_under_way(seal: Counterseal) -> None:
    counted = Counted(seal, held=True)
    health = Health(seal.store, probes=counted.probes, settings=seal.settings, budget=timedelta(hours=1))
    asking = asyncio.create_task(health.check())
    await eventually(lambda: counted.runs == 1)
    await health.close()
    await asyncio.wait([asking], timeout=5)
    assert asking.cancelled()


async def test_an_unexpected_error_is_one_sentence_that_repeats_nothing(
    seal: Counterseal, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> Any:
        raise RuntimeError(f"redis://u:{SECRET}@10.0.0.1")

    real = seal._probes()
    probes = Probes(
        cache=broken,
        job_stats=real.job_stats,
        can_access_jobs=real.can_access_jobs,
        today=real.today,
        performance=real.performance,
        database=real.database,
    )
    report = await Health(seal.store, probes=probes, settings=seal.settings).check()
    told: Any = report.body["services"]
    assert told["cache"] == {
        "status": "unhealthy",
        "operations": {"set": False, "get": False, "delete": False},
        "error": "An unexpected error occurred.",
    }
    assert "a health check met an unexpected error" in caplog.text


async def test_readiness_is_redis_and_the_database_and_nothing_else(
    seal: Counterseal, valkey: Server
) -> None:
    valkey.execute("SET", f"{KEYS.jobs_prefix(DEFAULT_QUEUE)}:running", "no set", "PX", 60_000)
    ready = await seal.health.ready()
    assert (ready.ready, ready.faults) == (True, {})


async def test_readiness_names_what_is_not_there_and_is_kept_for_a_second(
    servers: Callable[..., Server], data_dir: Path
) -> None:
    server = servers()
    async with opened(server.url, data_dir) as seal:
        assert (await seal.health.ready()).ready
        server.kill()
        await seal.database.close()
        started = seal.health._readiness._began
        assert (await seal.health.ready()).ready  # of a moment ago
        await eventually(lambda: time.monotonic() - started > 1)
        ready = await seal.health.ready()
    assert not ready.ready
    assert ready.faults == {"redis": "Redis can't be reached.", "database": "The database can't be used."}


@pytest.mark.parametrize("required", [True, False])
async def test_a_redis_that_evicts_is_not_ready_where_that_is_required(
    servers: Callable[..., Server], data_dir: Path, required: bool
) -> None:
    server = servers(config=["maxmemory 100mb", "maxmemory-policy allkeys-lru"])
    variables = {"REDIS_URL": server.url, "COUNTERSEAL_REQUIRE_NOEVICTION": str(required).lower()}
    patient = {"COUNTERSEAL_CONNECT_TIMEOUT": "5s", "COUNTERSEAL_COMMAND_TIMEOUT": "5s"}
    given = Settings.load({**variables, **patient}, data_dir=data_dir)
    async with Counterseal.open(given) as seal:
        ready = await seal.health.ready()
        assert ready.ready is not required
        assert all("allkeys-lru" in fault for fault in ready.faults.values())
    server.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with Counterseal.open(given) as seal:
        assert (await seal.health.ready()).ready


async def test_diagnostics_tell_of_server_latency_memory_persistence_and_connection(
    seal: Counterseal,
) -> None:
    told: Any = json.loads(json.dumps(await seal.health.detailed_diagnostics()))
    assert told["server"]["product"] == "valkey"
    assert told["server"]["version"].startswith("9.")
    assert (told["server"]["mode"], told["server"]["connection"]) == ("standalone", "native")
    assert told["latency"]["pings"] == 20
    assert (
        0
        < told["latency"]["p50"]
        <= told["latency"]["p95"]
        <= told["latency"]["p99"]
        <= told["latency"]["max"]
    )
    assert told["memory"]["used"] > 0
    assert told["memory"]["evictionPolicy"] == "noeviction"
    assert told["persistence"] == {
        "appendOnly": False, "lastAppendOk": True, "lastSnapshotOk": True, "loading": False
    }  # fmt: skip
    assert told["load"]["clients"] >= 1
    assert told["client"]["available"] is True
    assert told["client"]["commands"] >= 20
    assert told["database"]["status"] == "healthy"


async def test_diagnostics_are_null_where_the_server_tells_nothing_and_show_no_secret(
    servers: Callable[..., Server], data_dir: Path
) -> None:
    server = servers(acl=[f"limited on >{SECRET} ~* &* +@all -info"])
    async with opened(server.url, data_dir) as seal:
        server.execute("ACL", "SETUSER", "default", "-info")
        told = await seal.health.detailed_diagnostics()
        server.execute("ACL", "SETUSER", "default", "+info")
        assert (told["memory"], told["persistence"], told["load"]) == (None, None, None)
        assert told["latency"] is not None
        server.kill()
        gone = await seal.health.detailed_diagnostics()
    assert (gone["latency"], gone["memory"]) == (None, None)
    text = json.dumps([told, gone])
    assert SECRET not in text
    assert "127.0.0.1" not in text
    assert str(data_dir) not in text
