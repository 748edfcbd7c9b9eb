"""Analytics over every connection: what is counted, for which day, and that a reset really removes it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from counterseal.analytics.scripts import MAX_ENDPOINTS, OTHER
from counterseal.analytics.service import Analytics, DomainToday, EndpointPerformance, Today
from counterseal.core.errors import CodecError, CommandError
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on, travel

KEYS = Keys()
MS = timedelta(milliseconds=1)


@pytest.fixture
def analytics(store: Store) -> Analytics:
    return Analytics(store, keys=KEYS)


def day_of(store: Store) -> str:
    return datetime.fromtimestamp(store.now_ms() / 1000, UTC).date().isoformat()


def keys_of(day: str) -> list[str]:
    return [
        KEYS.analytics_counters(day),
        KEYS.analytics_endpoints(day),
        KEYS.analytics_requests(day),
        KEYS.analytics_users(day),
    ]


async def test_nothing_counted_is_zero(analytics: Analytics) -> None:
    assert await analytics.today() == Today(views=0, signatures=0, requests=0, users=0)
    assert await analytics.today_of("example.org") == DomainToday(views=0, signatures=0)
    assert await analytics.performance() == ()


async def test_views_and_signatures_are_counted_overall_and_by_domain(analytics: Analytics) -> None:
    await asyncio.gather(
        *(analytics.track_document_view("r1", f"u{n % 3}", "example.org") for n in range(10))
    )
    await analytics.track_document_view("r2", "u1")
    await analytics.track_signature_completion("r2", "u4", "example.net")
    assert await analytics.today() == Today(views=11, signatures=1, requests=2, users=4)
    assert await analytics.today_of("example.org") == DomainToday(views=10, signatures=0)
    assert await analytics.today_of("example.net") == DomainToday(views=0, signatures=1)


async def test_no_domain_passes_for_another_counter(analytics: Analytics) -> None:
    await analytics.track_document_view("r", "u", "a:b")
    await analytics.track_document_view("r", "u", "views")
    assert await analytics.today_of("a") == DomainToday(0, 0)
    assert await analytics.today_of("a:b") == DomainToday(1, 0)
    assert (await analytics.today()).views == 2


async def test_a_new_day_begins_at_zero_and_the_old_one_stays(analytics: Analytics, store: Store) -> None:
    yesterday = day_of(store)
    await analytics.track_document_view("r", "u")
    travel(store, timedelta(days=1))
    assert (await analytics.today()).views == 0
    await analytics.track_document_view("r", "u")
    assert (await analytics.today()).views == 1
    assert await store.command("HGET", KEYS.analytics_counters(yesterday), "views") == b"1"


async def test_calls_are_measured_per_endpoint(analytics: Analytics) -> None:
    assert await analytics.track_api_performance("GET /a", 10 * MS, success=True)
    assert await analytics.track_api_performance("GET /a", 30 * MS, success=False)
    assert await analytics.track_api_performance("GET /b", timedelta(0), success=True)
    assert await analytics.performance() == (
        EndpointPerformance("GET /a", calls=2, failures=1, mean=20 * MS),
        EndpointPerformance("GET /b", calls=1, failures=0, mean=timedelta(0)),
    )


async def test_a_measurement_that_makes_no_sense_is_refused_and_not_counted(analytics: Analytics) -> None:
    for endpoint, duration in [("GET /a", -MS), ("", MS), ("x" * 257, MS), ("é" * 129, MS)]:
        assert await analytics.track_api_performance(endpoint, duration, success=True) is False
    for number in (float("nan"), float("inf"), 12.5):
        with pytest.raises(TypeError):
            await analytics.track_api_performance("GET /a", number, success=True)  # type: ignore[arg-type]
    assert await analytics.performance() == ()


async def test_beyond_the_bound_new_endpoints_are_counted_together(valkey: Server) -> None:
    async with store_on(valkey) as store:
        analytics = Analytics(store, keys=KEYS)
        for number in range(MAX_ENDPOINTS + 3):
            await analytics.track_api_performance(f"GET /{number:04}", MS, success=True)
        await analytics.track_api_performance("GET /0000", MS, success=True)
        found = {one.endpoint: one.calls for one in await analytics.performance()}
    assert len(found) == MAX_ENDPOINTS + 1
    assert (found[OTHER], found["GET /0000"]) == (3, 2)


async def test_tracking_is_one_round_trip_each(valkey: Server) -> None:
    async with store_on(valkey) as store:
        analytics = Analytics(store, keys=KEYS)
        await analytics.track_document_view("r", "u", "d")
        await analytics.track_api_performance("GET /a", MS, success=True)
        before = store.counts.commands
        await analytics.track_document_view("r", "u", "d")
        await analytics.track_api_performance("GET /a", MS, success=True)
        assert store.counts.commands - before == 2


async def test_every_key_has_its_ttl_from_birth_and_a_lost_one_is_repaired(
    analytics: Analytics, store: Store
) -> None:
    for _ in range(2):
        await analytics.track_signature_completion("r", "u")
        await analytics.track_api_performance("GET /a", MS, success=True)
        for key in keys_of(day_of(store)):
            ttl_s = await store.command("TTL", key)
            assert isinstance(ttl_s, int)
            assert 39 * 86_400 < ttl_s <= 40 * 86_400
            await store.command("PERSIST", key)
    await analytics.reset()


async def test_more_events_do_not_prolong_a_day(analytics: Analytics, store: Store) -> None:
    await analytics.track_document_view("r", "u")
    key = KEYS.analytics_counters(day_of(store))
    await store.command("EXPIRE", key, 100)
    await analytics.track_document_view("r", "u")
    ttl_s = await store.command("TTL", key)
    assert isinstance(ttl_s, int)
    assert ttl_s <= 100


async def test_a_reset_removes_the_counters_of_every_day_in_retention_and_nothing_else(
    analytics: Analytics, store: Store
) -> None:
    await store.command("SET", "cs:cache:documents:{1}", "1:[]", "PX", 60_000)
    days: list[str] = []
    for _ in range(3):
        days.append(day_of(store))
        await analytics.track_document_view("r", "u")
        await analytics.track_api_performance("GET /a", MS, success=True)
        travel(store, timedelta(days=20))
    travel(store, -timedelta(days=20))
    assert await analytics.reset() == 12
    for day in days:
        assert [await store.command("EXISTS", key) for key in keys_of(day)] == [0, 0, 0, 0]
    assert await analytics.today() == Today(0, 0, 0, 0)
    assert await analytics.reset() == 0
    assert await store.command("EXISTS", "cs:cache:documents:{1}") == 1


async def test_counters_that_can_not_be_read_are_an_error(analytics: Analytics, store: Store) -> None:
    key = KEYS.analytics_counters(day_of(store))
    await store.command("SET", key, "x", "PX", 60_000)
    with pytest.raises(CommandError, match="WRONGTYPE"):
        await analytics.today()
    await store.command("DEL", key)
    await store.command("HSET", key, "views", "many")
    await store.command("EXPIRE", key, 60)
    with pytest.raises(CodecError) as fault:
        await analytics.today()
    assert fault.value.key == key
