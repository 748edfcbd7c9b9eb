"""Loading over every connection: who loads, what is kept, and what a late fill can't undo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from counterseal.cache.kind import Kind
from counterseal.cache.result import Source
from counterseal.cache.service import Cache
from counterseal.core.errors import CodecError, StoreUnavailable
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.backends import Backend
from support.stores import travel
from support.waiting import eventually

KEYS = Keys()
MINUTE = timedelta(minutes=1)


class Loader:
    """A loader whose calls a test counts, pauses and lets fail."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.calls = 0
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.fault: Exception | None = None

    async def __call__(self, identifier: str) -> object:
        self.calls += 1
        value = self.value
        self.began.set()
        await self.go_on.wait()
        if self.fault is not None:
            raise self.fault
        return value


@pytest.fixture
async def cache(store: Store) -> AsyncIterator[Cache]:
    async with Cache(store, keys=KEYS) as cache:
        yield cache


@pytest.fixture
async def other(backend: Backend) -> AsyncIterator[Cache]:
    """The cache of another process."""
    async with backend.store() as store, Cache(store, keys=KEYS) as cache:
        yield cache


async def test_what_is_missing_is_loaded_once_and_kept(cache: Cache) -> None:
    loader = Loader({"n": 1})
    first = await cache.documents.find_or_load("d", loader)
    again = await cache.documents.find_or_load("d", loader)
    assert (first.value, first.source, again.value, again.source) == (
        {"n": 1}, Source.LOADED, {"n": 1}, Source.HIT,
    )  # fmt: skip
    assert loader.calls == 1
    assert await cache.documents.get("d") == {"n": 1}


@pytest.mark.parametrize("how", ["invalidate", "set", "clear", "tag", "user"])
async def test_a_late_fill_does_not_undo_what_came_meanwhile(cache: Cache, other: Cache, how: str) -> None:
    loader = Loader({"n": "old"})
    loader.go_on.clear()
    late = asyncio.create_task(cache.user_profiles.get_or_load("u", loader, tags=["team:1"]))
    await loader.began.wait()
    match how:
        case "invalidate":
            await other.user_profiles.invalidate("u")
        case "set":
            await other.user_profiles.set("u", {"n": "new"})
        case "clear":
            await other.clear("user_profile")
        case "tag":
            await other.invalidate_tags("team:1")
        case _:
            await other.invalidate_user("u")
    loader.go_on.set()
    assert await late == {"n": "old"}
    expected = {"n": "new"} if how == "set" else None
    assert await cache.user_profiles.get("u") == expected
    assert await other.user_profiles.get("u") == expected


@pytest.mark.parametrize("how", ["invalidate", "clear", "tag"])
async def test_who_asks_after_an_invalidation_does_not_get_what_was_loaded_before(
    cache: Cache, other: Cache, how: str
) -> None:
    loader = Loader({"n": "old"})
    loader.go_on.clear()
    early = asyncio.create_task(cache.documents.get_or_load("d", loader, tags=["t"]))
    await loader.began.wait()
    match how:
        case "invalidate":
            await other.documents.invalidate("d")
        case "clear":
            await other.clear("document")
        case _:
            await other.invalidate_tags("t")
    fresh = Loader({"n": "new"})
    assert await cache.documents.get_or_load("d", fresh, tags=["t"]) == {"n": "new"}
    loader.go_on.set()
    assert await early == {"n": "old"}


async def test_two_processes_load_a_missing_value_once(cache: Cache, other: Cache) -> None:
    loader = Loader({"n": 1})
    loader.go_on.clear()
    asked = [
        asyncio.create_task(one.documents.get_or_load("d", loader))
        for one in (cache, other)
        for _ in range(50)
    ]
    await loader.began.wait()
    await cache.documents.get("x")
    loader.go_on.set()
    values = await asyncio.gather(*asked)
    assert values == [{"n": 1}] * 100
    assert loader.calls == 1
    values[0]["n"] = 2
    assert values[1] == {"n": 1}


async def test_the_first_load_of_a_kind_and_of_a_tag_is_one_as_well(cache: Cache, other: Cache) -> None:
    """Their generations are made by it, and who comes a moment later sees others than who came before."""
    loader = Loader({"n": 1})
    loader.go_on.clear()
    first = asyncio.create_task(cache.documents.get_or_load("d", loader, tags=["new"]))
    await loader.began.wait()
    others = [
        asyncio.create_task(one.documents.get_or_load("d", loader, tags=["new"])) for one in (cache, other)
    ]
    await other.documents.get("x")
    loader.go_on.set()
    assert await asyncio.gather(first, *others) == [{"n": 1}] * 3
    assert loader.calls == 1


async def test_what_a_loader_raises_reaches_everybody_and_is_not_kept(cache: Cache) -> None:
    loader = Loader({"n": 1})
    loader.fault = RuntimeError("no database")
    outcomes = await asyncio.gather(
        *(cache.documents.get_or_load("d", loader) for _ in range(5)), return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["no database"] * 5
    assert loader.calls == 1
    loader.fault = None
    assert await cache.documents.get_or_load("d", loader) == {"n": 1}


async def test_a_none_is_kept_for_a_while_of_its_own_and_told_from_a_miss(cache: Cache, store: Store) -> None:
    loader = Loader(None)
    assert (await cache.documents.find("d")).found is False
    for source in (Source.LOADED, Source.HIT):
        found = await cache.documents.find_or_load("d", loader)
        assert (found.found, found.value, found.source) == (True, None, source)
    assert loader.calls == 1
    travel(store, timedelta(seconds=34))
    assert (await cache.documents.find("d")).found is False


async def test_a_loaders_value_that_is_not_json_is_refused(cache: Cache, store: Store) -> None:
    with pytest.raises(CodecError, match=r"document.* at \$\.a"):
        await cache.documents.get_or_load("d", Loader({"a": (1,)}))
    assert await store.command("EXISTS", KEYS.cache_value("document", "d")) == 0
    assert await cache.documents.get_or_load("d", Loader({"a": 1})) == {"a": 1}


async def test_a_value_too_large_is_answered_and_not_kept(store: Store) -> None:
    async with Cache(store, keys=KEYS, kinds=[Kind("small", MINUTE, max_value_bytes=20)]) as cache:
        small = cache.kind("small")
        loader = Loader({"text": "x" * 100})
        assert await small.get_or_load("s", loader) == {"text": "x" * 100}
        assert (await small.find("s")).found is False
        with pytest.raises(CodecError, match="small takes values of at most 20 bytes"):
            await small.set("s", {"text": "x" * 100})


async def test_an_unreadable_value_is_loaded_anew(cache: Cache, store: Store) -> None:
    await store.command("SET", KEYS.cache_value("document", "d"), "[object Object]", "PX", 60_000)
    with pytest.raises(CodecError):
        await cache.documents.get("d")
    assert await cache.documents.get_or_load("d", Loader({"n": 1})) == {"n": 1}
    assert await cache.documents.get("d") == {"n": 1}


async def test_a_stale_value_is_handed_out_while_a_new_one_is_loaded(store: Store) -> None:
    kind = Kind("slow", MINUTE, stale_while_revalidate=MINUTE)
    async with Cache(store, keys=KEYS, kinds=[kind]) as cache:
        slow = cache.of(kind)
        await slow.set("s", {"n": 1})
        travel(store, timedelta(seconds=70))
        loader = Loader({"n": 2})
        loader.go_on.clear()
        for _ in range(3):
            found = await slow.find_or_load("s", loader)
            assert (found.value, found.source) == ({"n": 1}, Source.STALE)
        await loader.began.wait()
        assert loader.calls == 1
        assert await slow.get("s") is None
        assert (await slow.find("s")).source is Source.STALE
        loader.go_on.set()
        while (found := await slow.find_or_load("s", loader)).source is not Source.HIT:
            await asyncio.sleep(0)
        assert found.value == {"n": 2}
        assert loader.calls == 1


async def test_an_ended_value_is_the_answer_while_its_loader_fails(store: Store) -> None:
    kind = Kind("fragile", MINUTE, stale_if_error=timedelta(hours=1))
    async with Cache(store, keys=KEYS, kinds=[kind]) as cache:
        fragile = cache.of(kind)
        await fragile.set("f", {"n": 1})
        travel(store, timedelta(minutes=2))
        loader = Loader({"n": 2})
        loader.fault = RuntimeError("down")
        found = await fragile.find_or_load("f", loader)
        assert (found.value, found.source, loader.calls) == ({"n": 1}, Source.STALE, 1)
        travel(store, timedelta(hours=1))
        with pytest.raises(RuntimeError, match="down"):
            await fragile.find_or_load("f", loader)


async def test_values_with_a_tag_are_forgotten_together(cache: Cache, other: Cache) -> None:
    await cache.documents.set("1", {"n": 1}, tags=["domain:a.example", "x y=z"])
    await cache.documents.set("2", {"n": 2}, tags=["domain:b.example"])
    await cache.domain_settings.set("a.example", {"n": 3})
    assert await other.documents.get_many(["1", "2", "3"]) == {"1": {"n": 1}, "2": {"n": 2}}
    await other.invalidate_domain("a.example")
    assert await cache.documents.get_many(["1", "2"]) == {"2": {"n": 2}}
    assert await cache.domain_settings.get("a.example") is None
    await cache.documents.set("1", {"n": 4}, tags=["x y=z"])
    assert await cache.documents.get("1") == {"n": 4}
    await other.invalidate_tags("x y=z")
    assert await cache.documents.get("1") is None


async def test_a_warm_up_loads_what_is_missing(cache: Cache) -> None:
    await cache.documents.set("1", {"n": "1"})
    seen: list[tuple[int, int]] = []

    async def load(identifier: str) -> dict[str, object] | None:
        if identifier == "bad":
            raise RuntimeError
        return {"n": identifier}

    warmed = await cache.documents.warm(
        ["1", "2", "3", "bad"], load, progress=lambda done, all_: seen.append((done, all_))
    )
    assert (warmed.loaded, warmed.present, warmed.failed) == (2, 1, 1)
    assert seen[-1] == (4, 4)
    assert await cache.documents.get_many(["1", "2", "3"]) == {n: {"n": n} for n in "123"}
    for concurrency in (0, -1):
        with pytest.raises(ValueError, match=f"concurrency: expected at least 1; came: {concurrency}"):
            await cache.documents.warm(["4"], load, concurrency=concurrency)


async def test_a_warm_up_loads_no_more_at_once_than_it_may(cache: Cache) -> None:
    now = most = 0

    async def load(identifier: str) -> dict[str, object]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await eventually(lambda: most >= 3)
        now -= 1
        return {"n": identifier}

    warmed = await cache.documents.warm(map(str, range(20)), load, concurrency=3)
    assert (warmed.loaded, warmed.present, warmed.failed, most) == (20, 0, 0, 3)


async def test_one_who_goes_away_takes_the_load_from_nobody(cache: Cache) -> None:
    loader = Loader({"n": 1})
    loader.go_on.clear()
    asked = [asyncio.create_task(cache.documents.get_or_load("d", loader)) for _ in range(3)]
    await loader.began.wait()
    asked[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked[0]
    loader.go_on.set()
    assert await asyncio.gather(*asked[1:]) == [{"n": 1}] * 2
    assert loader.calls == 1
    assert await cache.documents.get("d") == {"n": 1}


async def test_a_closed_cache_lets_nobody_wait_for_a_load(cache: Cache) -> None:
    loader = Loader({"n": 1})
    loader.go_on.clear()
    asked = asyncio.create_task(cache.documents.get_or_load("d", loader))
    await loader.began.wait()
    await cache.close()
    with pytest.raises(StoreUnavailable, match="the cache is closed"):
        await asked
    await cache.close()


async def test_a_kind_that_keeps_no_none_asks_its_loader_each_time(store: Store) -> None:
    strict = Kind("strict", MINUTE, negative_ttl=None)
    async with Cache(store, keys=KEYS, kinds=[strict]) as cache:
        loader = Loader(None)
        for calls in (1, 2):
            found = await cache.of(strict).find_or_load("s", loader)
            assert (found.value, loader.calls) == (None, calls)
        assert (await cache.of(strict).find("s")).found is False
        with pytest.raises(CodecError, match="strict has no negative_ttl, so it keeps no None"):
            await cache.of(strict).set("s", None)


async def test_a_value_tells_its_own_lifetime_and_whether_it_may_be_stale(store: Store) -> None:
    def lives(value: dict[str, Any]) -> timedelta | None:
        return timedelta(seconds=value["lives"]) if "lives" in value else None

    kind = Kind(
        "own", MINUTE, stale_if_error=MINUTE, lives=lives, may_be_stale=lambda value: not value.get("strict")
    )
    async with Cache(store, keys=KEYS, kinds=[kind]) as cache:
        values = cache.of(kind)
        failing = Loader({})
        failing.fault = RuntimeError("down")
        assert (await values.find_or_load("none", Loader({"lives": 0}))).kept is False
        assert (await values.find("none")).found is False
        for identifier, value in (("lax", {"lives": 5}), ("strict", {"lives": 5, "strict": True})):
            assert (await values.find_or_load(identifier, Loader(value))).kept is True
            await values.set(f"{identifier} set", value)
        travel(store, timedelta(seconds=6))
        for identifier in ("lax", "lax set"):
            assert await values.get(identifier) is None
            assert (await values.find_or_load(identifier, failing)).source is Source.STALE
        for identifier in ("strict", "strict set"):
            assert (await values.find(identifier)).found is False
            with pytest.raises(RuntimeError, match="down"):
                await values.find_or_load(identifier, failing)
