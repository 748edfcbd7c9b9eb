"""Counterseal as a whole: what opening it opens, and that nothing stays open when it fails or is closed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from counterseal import (
    ConfigurationError,
    Counterseal,
    DatabaseUnavailable,
    JobContext,
    Kind,
    Limit,
    Settings,
    StoreUnavailable,
    task,
)
from counterseal.cache.result import Source
from counterseal.core.settings import DatabaseSettings, Environment, RedisSettings
from counterseal.jobs.job import State
from counterseal.jobs.types import EMAIL
from counterseal.ratelimit import Reason
from support.ports import free_port
from support.servers import Server
from support.waiting import eventually


def settings(folder: Path, url: str | None = None, database: str | None = None) -> Settings:
    patient = timedelta(seconds=5)
    redis = RedisSettings(url=url and SecretStr(url), connect_timeout=patient, command_timeout=patient)
    return Settings(
        data_dir=folder, redis=redis, database=DatabaseSettings(url=database and SecretStr(database))
    )


def connections(server: Server) -> int:
    """How many clients besides the kit's own the server has."""
    clients: bytes = server.execute("CLIENT", "LIST")
    return len(clients.splitlines()) - 1


async def test_with_nothing_configured_everything_works_and_is_there_again_later(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with Counterseal.open(settings(folder)) as seal:
        assert (seal.store.kind, seal.database.kind) == ("embedded", "sqlite")
        await seal.cache.user_profiles.set("u", {"name": "Ada"})
        job = await seal.jobs.enqueue_json(EMAIL, {"n": 1})
        await seal.analytics.track_document_view("r", "u")
        assert (await seal.health.check()).healthy
        assert (await seal.health.ready()).ready
    async with Counterseal.open(settings(folder)) as seal:
        assert await seal.cache.user_profiles.get("u") == {"name": "Ada"}
        assert (await seal.jobs.get(job.id)).args == {"n": 1}  # type: ignore[union-attr]
        assert (await seal.analytics.today()).views == 1


async def test_what_was_closed_works_again_when_it_is_entered_again(valkey: Server, tmp_path: Path) -> None:
    profiles = Kind("seen", timedelta(hours=1), near=timedelta(hours=1))
    seal = Counterseal.open(settings(tmp_path, valkey.url), kinds=[profiles])
    pdfs = seal.rate_limits.pdf_generation
    before = asyncio.all_tasks()
    for turn in (1, 2):
        async with seal:
            kind = seal.cache.of(profiles)
            await kind.set("u", {"turn": turn})

            async def near() -> bool:
                return (await kind.find("u")).source is Source.NEAR  # noqa: B023 - it is awaited in this turn

            await eventually(near)
            await seal.rate_limits.set_limits("pdf_generation", Limit(turn, timedelta(minutes=1)))
            await pdfs.limit(f"ada{turn}", turn)

            async def blocked() -> bool:
                return (await pdfs.limit(f"ada{turn}")).reason is Reason.BLOCKED  # noqa: B023 - as above

            await eventually(blocked)
            valkey.execute("PUBLISH", "cs:ratelimit:lifted", f"pdf_generation:ada{turn}")
            await eventually(lambda: asks_again(seal))
        assert asyncio.all_tasks() == before
        await eventually(lambda: connections(valkey) == 0)
    async with seal:
        totals = seal.rate_limits.totals["pdf_generation"]
        stats = await seal.rate_limits.stats(2)
        assert sum(hour.allowed for hour in stats["pdf_generation"].values()) == totals.allowed == 2
        assert sum(hour.refused for hour in stats["pdf_generation"].values()) == totals.refused
        top = dict(await seal.rate_limits.top_refused("pdf_generation", hours=2))
        assert sum(top.values()) == totals.refused
        assert set(top) == {"ada1", "ada2"}


def asks_again(seal: Counterseal) -> bool:
    """Whether this process refuses nobody by itself."""
    return not any(subject.blocks for subject in seal.rate_limits.pdf_generation._default)


def test_building_it_does_no_input_or_output(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    made = Counterseal(settings(folder, f"redis://127.0.0.1:{free_port()}"))
    assert not folder.exists()
    assert made.settings.data_dir == folder
    Counterseal(settings(folder))
    assert not folder.exists()


async def test_closing_it_leaves_no_connection_and_no_task(valkey: Server, tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with Counterseal.open(settings(tmp_path, valkey.url)) as seal, seal.worker():
        await seal.jobs.run_probe()
        await seal.health.check()
        assert connections(valkey) > 0
    await eventually(lambda: connections(valkey) == 0)
    assert asyncio.all_tasks() == before


async def test_when_the_database_fails_redis_is_let_go(valkey: Server, tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    away = f"postgresql://u:p@127.0.0.1:{free_port()}/d"
    with pytest.raises(DatabaseUnavailable):
        await Counterseal.open(settings(tmp_path, valkey.url, away)).__aenter__()
    await eventually(lambda: connections(valkey) == 0)
    assert asyncio.all_tasks() == before


async def test_when_opening_is_cancelled_what_was_open_is_let_go(valkey: Server, tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hangs = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d?connect_timeout=60"
        opening = asyncio.create_task(Counterseal.open(settings(tmp_path, valkey.url, hangs)).__aenter__())
        await eventually(lambda: connections(valkey) > 0)
        silent.setblocking(False)
        accepted = await eventually(lambda: accept(silent))
        opening.cancel()
        await asyncio.wait([opening], timeout=10)
        accepted.close()
    assert opening.cancelled()
    await eventually(lambda: connections(valkey) == 0)
    assert asyncio.all_tasks() == before


def accept(listener: socket.socket) -> socket.socket | None:
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None


async def test_a_block_that_raises_is_closed_as_any_other(valkey: Server, tmp_path: Path) -> None:
    async def fail() -> None:
        async with Counterseal.open(settings(tmp_path, valkey.url)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await eventually(lambda: connections(valkey) == 0)


async def test_without_redis_it_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await Counterseal.open(settings(tmp_path, f"redis://127.0.0.1:{free_port()}")).__aenter__()
    assert not (tmp_path / "counterseal.db").exists()


async def test_settings_come_from_the_environment_when_none_are_given(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", valkey.url)
    monkeypatch.setenv("COUNTERSEAL_NAMESPACE", "mine")
    monkeypatch.setenv("COUNTERSEAL_CACHE_TTL_DOCUMENT", "7s")
    monkeypatch.setenv("COUNTERSEAL_COMMAND_TIMEOUT", "5s")
    async with Counterseal.open() as seal:
        assert seal.cache.documents.kind.ttl == timedelta(seconds=7)
        await seal.cache.documents.set("d", {})
    assert all(key.startswith(b"mine:") for key in valkey.execute("KEYS", "*"))
    assert (tmp_path / ".counterseal" / "counterseal.db").is_file()


def test_a_lifetime_of_a_kind_that_nobody_declared_is_refused_unless_the_application_declares_it(
    tmp_path: Path,
) -> None:
    given = {"COUNTERSEAL_CACHE_TTL_TEAMS": "1min", "COUNTERSEAL_DATA_DIR": str(tmp_path)}
    with pytest.raises(ConfigurationError, match="COUNTERSEAL_CACHE_TTL_TEAMS"):
        Counterseal.open(Settings.load(given))
    seal = Counterseal.open(Settings.load(given), kinds=[Kind("teams", timedelta(hours=1))])
    assert seal.cache.kind("teams").kind.ttl == timedelta(minutes=1)


def test_every_fault_of_the_settings_is_told_at_once(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path,
        environment=Environment.PRODUCTION,
        redis=RedisSettings(url=SecretStr("redis://127.0.0.1?hunter22=1")),
        database=DatabaseSettings(url=SecretStr("postgresql://127.0.0.1/d?hunter22=1")),
        cache_ttl={"teams": timedelta(minutes=1), "document": timedelta(days=8)},
    )
    with pytest.raises(ConfigurationError) as refused:
        Counterseal(settings)
    assert [fault.partition(":")[0] for fault in refused.value.faults] == [
        "COUNTERSEAL_SECRET_KEYS",
        "REDIS_URL",
        "DATABASE_URL",
        "COUNTERSEAL_CACHE_TTL_TEAMS",
        "COUNTERSEAL_CACHE_TTL_DOCUMENT",
    ]


def test_production_without_a_redis_and_without_keys_is_told_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Counterseal(Settings(data_dir=tmp_path, environment=Environment.PRODUCTION))
    assert [fault.partition(":")[0] for fault in refused.value.faults] == [
        "COUNTERSEAL_SECRET_KEYS",
        "REDIS_URL",
    ]


async def test_a_worker_of_it_runs_the_applications_own_handlers(
    servers: Callable[..., Server], tmp_path: Path
) -> None:
    seen: list[str] = []

    @task(name=EMAIL)
    async def mail(context: JobContext, to: str) -> None:
        seen.append(to)

    async with (
        Counterseal.open(settings(tmp_path, servers().url), tasks=[mail]) as seal,
        seal.worker(),
    ):
        await seal.jobs.enqueue_json(EMAIL, {"to": "a@example.org"})
        await eventually(lambda: seen)
        assert (await seal.jobs.run_probe()).state is State.COMPLETED
    assert seen == ["a@example.org"]
