"""The cache when Redis is down, full, late, or sends more than fits: nothing hangs, and what was forgotten stays so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from counterseal.cache.kind import JsonObject, Kind
from counterseal.cache.result import Source
from counterseal.cache.service import Cache
from counterseal.core.errors import ConfigurationError, StoreUnavailable
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from support.servers import Server
from support.stores import native_store, store_on
from support.waiting import eventually

KEYS = Keys()
MINUTE = timedelta(minutes=1)


async def test_loads_inside_of_loads_end_without_redis(servers: Callable[..., Server]) -> None:
    server = servers()

    async def settings(domain: str) -> JsonObject:
        await asyncio.sleep(0)
        return {"domain": domain}

    async with native_store(server) as store, Cache(store, keys=KEYS) as cache:

        async def document(identifier: str) -> JsonObject:
            await asyncio.sleep(0)
            shared = await cache.domain_settings.get_or_load("shared", settings)
            own = await cache.domain_settings.get_or_load(identifier, settings)
            return {"shared": shared, "own": own}

        server.kill()
        async with asyncio.timeout(20):
            found = await asyncio.gather(
                *(cache.documents.find_or_load(str(number), document) for number in range(200))
            )
    assert {one.source for one in found} == {Source.DEGRADED}
    assert found[7].value == {"shared": {"domain": "shared"}, "own": {"domain": "7"}}


async def test_a_loader_that_asks_for_the_value_that_it_loads_is_told(valkey: Server) -> None:
    async with store_on(valkey) as store, Cache(store, keys=KEYS) as cache:

        async def document(identifier: str) -> JsonObject:
            return {"again": await cache.documents.get_or_load(identifier, document)}

        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match="the loader of a value of document asked for the value"):
                await cache.documents.get_or_load("d", document)


async def test_a_loader_that_was_cancelled_is_told_from_a_cache_that_was_closed(valkey: Server) -> None:
    waiting = asyncio.Event()

    async def cancelled(_: str) -> JsonObject:
        raise asyncio.CancelledError

    async def hangs(_: str) -> JsonObject:
        waiting.set()
        await asyncio.Event().wait()
        return {}

    async with store_on(valkey) as store:
        cache = Cache(store, keys=KEYS)
        with pytest.raises(RuntimeError, match="the loader of a cached value was cancelled"):
            await cache.documents.get_or_load("d", cancelled)
        asking = asyncio.create_task(cache.documents.get_or_load("e", hangs))
        await waiting.wait()
        await cache.close()
        with pytest.raises(StoreUnavailable, match="the cache is closed"):
            await asking


async def test_a_cache_works_again_after_it_was_closed(valkey: Server) -> None:
    near = Kind("near", MINUTE, near=MINUTE)
    async with store_on(valkey) as store:
        cache = Cache(store, keys=KEYS, kinds=[near])
        values = cache.of(near)

        async def is_near() -> bool:
            return (await values.find("n")).source is Source.NEAR

        for round_ in range(2):
            async with cache:
                await values.set("n", {"round": round_})
                await eventually(is_near)
                assert await values.get("n") == {"round": round_}
        clients = len(valkey.execute("CLIENT", "LIST").splitlines())
        assert (await values.find("n")).source is Source.HIT  # and nothing begins to listen
        assert len(valkey.execute("CLIENT", "LIST").splitlines()) == clients
        stats = cache.totals["near"]
        read = await cache.stats(1)
        assert sum(one.bytes_written for one in read["near"].values()) == stats.bytes_written


async def test_what_was_dropped_is_not_held_in_memory(valkey: Server) -> None:
    class Big(msgspec.Struct, frozen=True, weakref=True):
        text: str

    big = Kind("big", MINUTE, type=Big, near=MINUTE)
    async with store_on(valkey) as store, Cache(store, keys=KEYS, kinds=[big]) as cache:
        values = cache.of(big)
        near: Any = cache._memory

        async def is_near() -> bool:
            return (await values.find("hot")).source is Source.NEAR

        for number in range(30):
            await values.set("hot", Big(f"{number}" * 1000))
            await eventually(is_near)
        held = [entry.kept for _, _, entry in near._order if entry.kept is not None]
        assert [value.text for value in held] == ["29" * 1000]


async def test_many_large_values_come_without_a_reply_that_is_too_large(valkey: Server) -> None:
    large = Kind("large", MINUTE)
    options = LinkOptions(
        command_timeout=timedelta(seconds=20), connect_timeout=MINUTE, max_reply_bytes=40 * 2**20
    )
    async with (
        native_store(valkey, options=options) as store,
        Cache(store, keys=KEYS, kinds=[large]) as cache,
    ):
        values = cache.of(large)
        names = [str(number) for number in range(48)]
        for name in names:
            await values.set(name, {"text": "x" * (2**20 - 100)})
        found = await values.get_many(names)
    assert len(found) == 48
    assert {len(value["text"]) for value in found.values() if value} == {2**20 - 100}


@pytest.mark.parametrize(
    ("one", "other"), [(["x", "y"], ["y", "x"]), (["x"], []), (["x", "y"], ["y", "z"]), ({"b", "a"}, {"a"})]
)
async def test_callers_with_other_tags_or_another_order_wait_for_one_load(
    valkey: Server, one: list[str], other: list[str]
) -> None:
    loads = 0
    go_on = asyncio.Event()
    began = asyncio.Event()

    async def load(_: str) -> JsonObject:
        nonlocal loads
        loads += 1
        began.set()
        await go_on.wait()
        return {"n": loads}

    async with (
        store_on(valkey) as first_store,
        store_on(valkey) as second_store,
        Cache(first_store, keys=KEYS) as first,
        Cache(second_store, keys=KEYS) as second,
    ):
        for cache in (first, second):  # so that their generations are there
            await cache.documents.set("other", {}, tags={*one, *other})
        early = asyncio.create_task(first.documents.get_or_load("d", load, tags=one))
        await began.wait()
        late = [
            asyncio.create_task(cache.documents.get_or_load("d", load, tags=other))
            for cache in (first, second)
        ]
        await eventually(lambda: valkey.execute("PUBSUB", "NUMSUB", KEYS.cache_loaded())[1] >= 1)
        go_on.set()
        assert await asyncio.gather(early, *late) == [{"n": 1}] * 3
    assert loads == 1


async def test_a_tag_that_both_have_and_that_was_cleared_meanwhile_is_not_waited_for(valkey: Server) -> None:
    go_on, began = asyncio.Event(), asyncio.Event()

    async def slow(_: str) -> JsonObject:
        began.set()
        await go_on.wait()
        return {"n": "old"}

    async def quick(_: str) -> JsonObject:
        return {"n": "new"}

    async with store_on(valkey) as store, Cache(store, keys=KEYS) as cache:
        await cache.documents.set("other", {}, tags=["a", "b", "c"])
        early = asyncio.create_task(cache.documents.get_or_load("d", slow, tags=["a", "b"]))
        await began.wait()
        await cache.invalidate_tags("b")
        async with asyncio.timeout(3):
            assert await cache.documents.get_or_load("d", quick, tags=["b", "c"]) == {"n": "new"}
        go_on.set()
        assert await early == {"n": "old"}
        assert await cache.documents.get("d") == {"n": "new"}


async def test_a_lease_that_was_granted_too_late_holds_nobody_up(servers: Callable[..., Server]) -> None:
    server = servers()
    options = LinkOptions(command_timeout=timedelta(milliseconds=300), connect_timeout=MINUTE)

    async def load(_: str) -> JsonObject:
        return {"n": 1}

    async with (
        native_store(server, options=options) as store,
        store_on(server) as other_store,
        Cache(store, keys=KEYS) as cache,
        Cache(other_store, keys=KEYS) as other,
    ):
        await cache.documents.get_or_load("other", load)  # so that the server knows the scripts
        place: Any = cache.documents

        async def freeze_then_look(identifier: str, tags: tuple[str, ...]) -> Any:
            look = await place._looks.look(identifier, tags)
            server.freeze()
            return look

        look = await freeze_then_look("d", ())
        flight = asyncio.create_task(place._board("d", load, (), look))
        assert (await flight).source is Source.DEGRADED
        server.thaw()
        async with asyncio.timeout(3):
            found = await other.documents.find_or_load("d", load)
        assert found.value == {"n": 1}


async def test_a_full_server_still_forgets(servers: Callable[..., Server]) -> None:
    server = servers(config=["maxmemory-policy noeviction"])
    async with store_on(server) as store, Cache(store, keys=KEYS) as cache:
        for identifier in ("1", "2", "3"):
            await cache.documents.set(identifier, {"v": "old"}, tags=["t"] if identifier == "2" else [])
        await cache.user_profiles.set("u", {"v": "old"})
        server.execute("CONFIG", "SET", "maxmemory", "1")
        assert await cache.documents.invalidate("1") is True
        await cache.invalidate_tags("t")
        assert await cache.documents.get_many(["1", "2", "3"]) == {"3": {"v": "old"}}
        await cache.invalidate_user("u")
        assert await cache.user_profiles.get("u") is None
        await cache.clear()
        assert await cache.documents.get("3") is None
        server.execute("CONFIG", "SET", "maxmemory", "0")
        assert await cache.documents.get_many(["1", "2", "3"]) == {}


@pytest.mark.parametrize("how", ["invalidate", "clear", "tag"])
async def test_a_full_server_forgets_what_is_being_loaded_as_well(
    servers: Callable[..., Server], how: str
) -> None:
    server = servers(config=["maxmemory-policy noeviction"])
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: str) -> JsonObject:
        began.set()
        await go_on.wait()
        return {"v": "old"}

    async def quick(_: str) -> JsonObject:
        return {"v": "new"}

    async with (
        store_on(server) as store,
        store_on(server) as other_store,
        Cache(store, keys=KEYS) as cache,
        Cache(other_store, keys=KEYS) as other,
    ):
        early = asyncio.create_task(cache.documents.find_or_load("d", slow, tags=["t"]))
        await began.wait()
        server.execute("CONFIG", "SET", "maxmemory", "1")
        match how:
            case "invalidate":
                await other.documents.invalidate("d")
            case "clear":
                await other.clear("document")
            case _:
                await other.invalidate_tags("t")
        async with asyncio.timeout(10):
            assert await cache.documents.get_or_load("d", quick, tags=["t"]) == {"v": "new"}
        server.execute("CONFIG", "SET", "maxmemory", "0")
        go_on.set()
        assert (await early).value == {"v": "old"}
        assert (await cache.documents.get("d")) in (None, {"v": "new"})


async def test_a_process_that_keeps_nothing_near_tells_of_cleared_tags_all_the_same(valkey: Server) -> None:
    async with store_on(valkey) as store, store.subscribe(KEYS.cache_changed()) as messages:
        plain = Cache(store, keys=KEYS)
        await plain.invalidate_tags("t")
        await plain.documents.clear()
        heard = [await anext(messages) for _ in range(2)]
    assert [getattr(message, "data", b"") for message in heard] == [
        KEYS.cache_tag("t").encode(),
        KEYS.cache_generation("document").encode(),
    ]


@pytest.mark.parametrize("identifier", ["", 7, None, "\ud800", b"x"])
async def test_what_is_no_identifier_is_refused_by_name(valkey: Server, identifier: Any) -> None:
    async def load(_: str) -> JsonObject:
        return {}

    async with store_on(valkey) as store, Cache(store, keys=KEYS) as cache:
        documents = cache.documents
        for call in (
            lambda: documents.get(identifier),
            lambda: documents.find(identifier),
            lambda: documents.get_many([identifier]),
            lambda: documents.set(identifier, {}),
            lambda: documents.invalidate(identifier),
            lambda: documents.get_or_load(identifier, load),
        ):
            with pytest.raises(ConfigurationError, match="identifier of document: expected text"):
                await call()
        with pytest.raises(ConfigurationError, match="tags: expected several names"):
            await documents.set("d", {}, tags="user")
        with pytest.raises(ConfigurationError, match="tags: expected several names"):
            await documents.get_or_load("d", load, tags="user")
