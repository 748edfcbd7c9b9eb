"""The cache over every connection: what is kept, for how long, and what a clear does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from counterseal.cache.kind import KINDS, Kind
from counterseal.cache.probe import CacheProbe
from counterseal.cache.service import Cache
from counterseal.core.errors import (
    CodecError,
    CommandError,
    ConfigurationError,
    StoreUnavailable,
    UnknownName,
)
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.backends import Backend
from support.exact import same
from support.servers import Server
from support.stores import native_store, store_on, travel

KEYS = Keys()
PROFILE = {
    "name": "Ada",
    "id": 12345678901234567890,
    "ratio": 1.0,
    "admin": True,
    "tags": ["1e3", "007", None],
}


@pytest.fixture
def cache(store: Store) -> Cache:
    return Cache(store, keys=KEYS)


async def test_each_kind_gives_back_what_was_set_and_forgets_what_is_invalidated(cache: Cache) -> None:
    for kind in KINDS:
        values = cache.kind(kind.name)
        assert await values.get("u1") is None
        await values.set("u1", PROFILE)
        assert same(await values.get("u1"), PROFILE)
        assert await values.invalidate("u1") is True
        assert await values.get("u1") is None
        assert await values.invalidate("u1") is False


async def test_the_five_kinds_have_their_names_and_lifetimes(cache: Cache) -> None:
    named = [cache.user_profiles, cache.documents, cache.totp_configs, cache.domain_settings,
             cache.notification_preferences]  # fmt: skip
    assert [values.kind for values in named] == list(KINDS) == list(cache.kinds)
    assert [kind.ttl.total_seconds() / 60 for kind in KINDS] == [15, 5, 30, 60, 60]


async def test_one_identifier_in_two_kinds_is_two_values(cache: Cache) -> None:
    await cache.user_profiles.set("1", {"kind": "profile"})
    await cache.notification_preferences.set("1", {"kind": "preferences"})
    assert await cache.user_profiles.get("1") == {"kind": "profile"}
    assert await cache.notification_preferences.get("1") == {"kind": "preferences"}


@pytest.mark.parametrize("identifier", ["a:b", "}{", "{}", "é😀", " ", "x" * 1024, "*", "%7B", "a\x00b\r\n"])
async def test_an_identifier_of_any_text_has_a_value_of_its_own(cache: Cache, identifier: str) -> None:
    await cache.documents.set(identifier, {"id": identifier})
    assert await cache.documents.get(identifier) == {"id": identifier}
    assert await cache.documents.get(identifier + "x") is None


async def test_a_value_ends_with_the_lifetime_of_its_kind_give_or_take_a_tenth(
    cache: Cache, store: Store
) -> None:
    await cache.documents.set("d", PROFILE)
    travel(store, timedelta(minutes=4, seconds=29))
    assert await cache.documents.get("d") == PROFILE
    travel(store, timedelta(minutes=1, seconds=2))
    assert await cache.documents.get("d") is None


async def test_every_key_of_the_cache_ends_by_itself_and_the_generation_last(
    cache: Cache, store: Store
) -> None:
    await cache.domain_settings.set("example.org", PROFILE)
    value_ms = await store.command("PTTL", KEYS.cache_value("domain_settings", "example.org"))
    generation_ms = await store.command("PTTL", KEYS.cache_generation("domain_settings"))
    assert isinstance(value_ms, int)
    assert isinstance(generation_ms, int)
    assert 3_240_000 + 120_000 - 5_000 < value_ms <= 3_960_000 + 120_000
    assert generation_ms > 29 * 86_400_000


async def test_clearing_a_kind_forgets_its_values_and_no_others(cache: Cache) -> None:
    await cache.documents.set("1", {"v": 1})
    await cache.documents.set("2", {"v": 2})
    await cache.user_profiles.set("1", {"v": 3})
    await cache.clear("document")
    assert await cache.documents.get("1") is None
    assert await cache.documents.get("2") is None
    assert await cache.user_profiles.get("1") == {"v": 3}
    await cache.documents.set("1", {"v": 4})
    assert await cache.documents.get("1") == {"v": 4}


async def test_clearing_everything_forgets_every_kind_also_the_applications_own(store: Store) -> None:
    cache = Cache(store, keys=KEYS, kinds=[Kind("teams", timedelta(minutes=1))])
    for kind in cache.kinds:
        await cache.kind(kind.name).set("1", PROFILE)
    await cache.clear()
    assert [await cache.kind(kind.name).get("1") for kind in cache.kinds] == [None] * 6


async def test_a_cleared_value_stays_away_when_its_generation_is_lost(cache: Cache, store: Store) -> None:
    await cache.documents.set("1", {"v": 1})
    await cache.documents.clear()
    await store.command("DEL", KEYS.cache_generation("document"))
    assert await cache.documents.get("1") is None
    await cache.documents.set("2", {"v": 2})
    assert await cache.documents.get("1") is None
    assert await cache.documents.get("2") == {"v": 2}


async def test_two_first_writers_agree_on_one_generation(store: Store) -> None:
    caches = [Cache(store, keys=KEYS) for _ in range(20)]
    await asyncio.gather(
        *(cache.documents.set(str(number), {"v": number}) for number, cache in enumerate(caches))
    )
    assert [await caches[0].documents.get(str(number)) for number in range(20)] == [
        {"v": number} for number in range(20)
    ]


async def test_a_read_is_one_turn_and_a_clear_does_not_depend_on_how_much_there_is(valkey: Server) -> None:
    async with store_on(valkey) as store:
        cache = Cache(store, keys=KEYS)
        for number in range(50):
            await cache.documents.set(str(number), PROFILE)
        before = store.counts.batches
        await cache.documents.get("1")
        assert store.counts.batches - before == 1
        await cache.clear("user_profile")  # from here on the server knows the script
        before = store.counts.commands
        await cache.clear("document")
        assert store.counts.commands - before == 1


async def test_what_can_not_be_read_is_an_error_that_names_the_key(cache: Cache, store: Store) -> None:
    await cache.documents.set("d", PROFILE)
    key = KEYS.cache_value("document", "d")
    for data, reason in [
        (b"[object Object]", "schema version"),
        (b"9:[]", "schema version 9"),
        (b'1:{"a":1}', "can't be read"),
        (b"1:[1", "can't be read"),
    ]:
        await store.command("SET", key, data, "PX", 60_000)
        with pytest.raises(CodecError, match=reason) as fault:
            await cache.documents.get("d")
        assert fault.value.key == key


async def test_a_value_that_is_no_json_object_is_refused_before_anything_is_written(
    cache: Cache, store: Store
) -> None:
    for value, path in [
        ([1], "$"),
        ("text", "$"),
        ({"a": (1,)}, "$.a"),
        ({"a": float("nan")}, "$.a"),
    ]:
        with pytest.raises(CodecError) as fault:
            await cache.documents.set("d", value)  # type: ignore[arg-type]
        assert fault.value.path == path
    assert await store.command("EXISTS", KEYS.cache_value("document", "d")) == 0
    assert await store.command("EXISTS", KEYS.cache_generation("document")) == 0


async def test_a_totp_configuration_never_holds_a_secret(cache: Cache) -> None:
    await cache.totp_configs.set("u", {"enabled": True, "methods": [{"type": "app"}]})
    for member in ("secret", "backup_codes", "last_step"):
        for value in ({member: "x"}, {"methods": [{"inner": {member: 1}}]}):
            with pytest.raises(CodecError, match=f"never holds a member named {member}"):
                await cache.totp_configs.set("u", value)
    await cache.user_profiles.set("u", {"secret": "is a word like another"})


async def test_an_unknown_kind_is_named_with_the_known_ones(cache: Cache) -> None:
    with pytest.raises(UnknownName, match="document, domain_settings"):
        cache.kind("documet")
    with pytest.raises(UnknownName):
        await cache.clear("documet")


async def test_lifetimes_come_from_the_settings(valkey: Server) -> None:
    async with store_on(valkey) as store:
        cache = Cache(store, keys=KEYS, ttls={"document": timedelta(seconds=2)})
        await cache.documents.set("d", PROFILE)
        travel(store, timedelta(seconds=3))
        assert await cache.documents.get("d") is None
        faulty = {"documet": timedelta(1), "document": timedelta(days=8)}
        with pytest.raises(ConfigurationError) as fault:
            Cache(store, keys=KEYS, ttls=faulty)
    assert "COUNTERSEAL_CACHE_TTL_DOCUMET: no cache kind has this name; the kinds are document" in str(
        fault.value
    )
    assert "COUNTERSEAL_CACHE_TTL_DOCUMENT: expected a duration from 1ms to 7d" in str(fault.value)


async def test_a_kind_that_is_declared_twice_is_refused(valkey: Server) -> None:
    team = Kind("team", timedelta(1))
    with pytest.raises(ConfigurationError, match="team is declared twice"):
        Cache(native_store(valkey), keys=KEYS, kinds=[team, team])


async def test_an_application_may_declare_one_of_the_five_for_itself(store: Store) -> None:
    own = Kind("totp_config", timedelta(hours=2), refused=frozenset({"pin"}))
    cache = Cache(store, keys=KEYS, kinds=[own], ttls={"totp_config": timedelta(hours=3)})
    assert cache.totp_configs.ttl == timedelta(hours=3)
    for member in ("pin", "secret"):
        with pytest.raises(CodecError, match=f"never holds a member named {member}"):
            await cache.totp_configs.set("u", {member: 1})


async def test_a_probe_of_a_sound_cache_finds_all_three_true_and_leaves_no_value(
    cache: Cache, backend: Backend
) -> None:
    assert await cache.probe() == CacheProbe(set=True, get=True, delete=True)
    left = [key for node in backend.nodes for key in node.execute("KEYS", "cs:cache:*")]
    assert left == []


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ("-pttl", (True, True, True)),
        ("-get", (False, False, False)),
        ("-unlink", (True, True, False)),
        ("-exists", (True, True, False)),
        ("-set", (False, False, False)),
    ],
)
async def test_a_probe_says_which_operation_a_user_may_not_do(
    servers: Callable[..., Server], refused: str, expected: tuple[bool, bool, bool]
) -> None:
    server = servers(acl=[f"limited on >secret ~* &* +@all {refused}"])
    async with native_store(server, user="limited", password="secret") as store:
        probe = await Cache(store, keys=KEYS).probe()
    assert (probe.set, probe.get, probe.delete) == expected
    assert (probe.fault is None) is all(expected)
    assert isinstance(probe.fault, CommandError | None)


@pytest.mark.parametrize(
    ("values", "expected"), [("%R~*", (False, True, False)), ("%W~*", (True, False, True))]
)
async def test_a_probe_whose_value_may_only_be_read_or_only_be_written_says_so(
    servers: Callable[..., Server], values: str, expected: tuple[bool, bool, bool]
) -> None:
    server = servers(acl=[f"limited on >secret resetkeys ~cs:cachegen:* {values} &* +@all"])
    async with native_store(server, user="limited", password="secret") as store:
        probe = await Cache(store, keys=KEYS).probe()
    assert (probe.set, probe.get, probe.delete) == expected


async def test_a_probe_without_a_server_is_false_in_all_three(servers: Callable[..., Server]) -> None:
    server = servers()
    async with native_store(server) as store:
        server.kill()
        probe = await Cache(store, keys=KEYS).probe()
    assert (probe.set, probe.get, probe.delete) == (False, False, False)
    assert isinstance(probe.fault, StoreUnavailable)
