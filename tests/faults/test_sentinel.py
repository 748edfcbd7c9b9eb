"""Sentinel: the store finds the primary wherever it is now, and gives no wrong reply on the way."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest

from counterseal.core.errors import ConfigurationError, StoreTimeout, StoreUnavailable
from counterseal.core.settings import Settings
from counterseal.store.base import Gap, Message, Store
from counterseal.store.breaker import BreakerPolicy
from counterseal.store.link import LinkOptions
from counterseal.store.open import open_store
from counterseal.store.route import SentinelRoute
from counterseal.store.target import Target, parse_redis_url
from counterseal.store.valkey import NativeStore
from support.load import under_load
from support.ports import free_port
from support.relay import Relay, TlsRelay
from support.sentinel import SERVICE, SentinelGroup
from support.waiting import eventually

TTL = ("PX", 60_000)
OPTIONS = LinkOptions(
    connect_timeout=timedelta(seconds=1),
    command_timeout=timedelta(milliseconds=300),
    breaker=BreakerPolicy(first_wait=timedelta(milliseconds=50), longest_wait=timedelta(milliseconds=200)),
)


@pytest.fixture
async def store(sentinels: SentinelGroup) -> AsyncIterator[NativeStore]:
    route = SentinelRoute(parse_redis_url(sentinels.url))
    async with NativeStore(route, OPTIONS, kind="sentinel") as opened:
        yield opened


@pytest.fixture(scope="module")
def locked() -> Iterator[SentinelGroup]:
    """A group whose servers and sentinels want passwords, which differ."""
    with SentinelGroup(
        password=secrets.token_urlsafe(12), sentinel_password=secrets.token_urlsafe(12)
    ) as group:
        yield group


class FallsSilent(SentinelRoute):
    """A route whose sentinel, behind a relay, falls silent once it has answered."""

    def __init__(self, url: str, relay: Relay) -> None:
        super().__init__(parse_redis_url(url))
        self._relay = relay

    async def resolve(self) -> Target:
        target = await super().resolve()
        self._relay.hold()
        return target


def at(url: str) -> Store:
    return open_store(Settings.load({"REDIS_URL": url}))


async def test_a_planned_failover_under_load_ends_at_the_new_primary(
    sentinels: SentinelGroup, store: NativeStore
):
    former = sentinels.primary
    async with under_load(store) as load:
        new = await sentinels.failover()
        await eventually(lambda: store.available)
        await load.goes_on()
        assert new is not former
        await store.command("SET", "after", "failover", *TTL)
        assert new.execute("GET", "after") == b"failover"


async def test_a_killed_primary_under_load_is_replaced_by_its_replica(
    sentinels: SentinelGroup, store: NativeStore
):
    async with under_load(store) as load:
        former = sentinels.kill_primary()
        new = await sentinels.wait_for_new_primary(former)
        await eventually(lambda: store.available, within=10)
        await load.goes_on()
        assert load.failed > 0
        await store.command("SET", "after", "death", *TTL)
        assert new.execute("GET", "after") == b"death"


async def test_a_frozen_primary_under_load_is_replaced_by_its_replica(
    sentinels: SentinelGroup, store: NativeStore
):
    async with under_load(store) as load:
        former = sentinels.primary
        former.freeze()
        new = await sentinels.wait_for_new_primary(former)
        await eventually(lambda: store.available, within=10)
        await load.goes_on()
        assert load.failed > 0
        await store.command("SET", "after", "frost", *TTL)
        assert new.execute("GET", "after") == b"frost"
    former.kill()  # thawed, it would wait for eight seconds to be made a replica


async def test_a_store_that_nobody_uses_finds_the_new_primary_all_the_same(
    sentinels: SentinelGroup, store: NativeStore
):
    await sentinels.wait_for_new_primary(sentinels.kill_primary())
    await eventually(lambda: store.available, within=10)
    assert await store.command("SET", "key", 1, *TTL) == b"OK"
    assert sentinels.primary.execute("GET", "key") == b"1"


async def test_a_subscriber_follows_the_primary_and_is_told_of_the_gap(
    sentinels: SentinelGroup, store: NativeStore
):
    async with store.subscribe("channel") as messages:
        await sentinels.wait_for_new_primary(sentinels.kill_primary())
        async with asyncio.timeout(10):
            assert await anext(messages) == Gap(("channel",))
        await eventually(lambda: store.available)
        await store.command("PUBLISH", "channel", "after")
        async with asyncio.timeout(5):
            assert await anext(messages) == Message("channel", b"after")


async def test_one_sentinel_is_enough(sentinels: SentinelGroup):
    for sentinel in sentinels.sentinels[:2]:
        sentinel.kill()
    async with at(sentinels.url) as store:
        assert await store.command("ECHO", "x") == b"x"


async def test_a_connection_outlives_the_sentinels_and_once_lost_waits_for_them(
    sentinels: SentinelGroup, store: NativeStore
):
    primary = sentinels.primary
    for sentinel in sentinels.sentinels:
        sentinel.kill()
    assert await store.command("ECHO", "x") == b"x"
    primary.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await eventually(lambda: not store.available)
    with pytest.raises(StoreUnavailable):
        await store.command("ECHO", "x")
    await asyncio.to_thread(sentinels.heal)
    await eventually(lambda: store.available)
    assert await store.command("ECHO", "x") == b"x"


async def test_without_a_sentinel_opening_says_so(sentinels: SentinelGroup):
    for sentinel in sentinels.sentinels:
        sentinel.kill()
    with pytest.raises(StoreUnavailable, match=r"^no sentinel can be reached$"):
        await at(sentinels.url).open()


async def test_who_asks_at_once_makes_nobody_forget_a_sentinel(sentinels: SentinelGroup):
    url = sentinels.url.replace("://", f"://127.0.0.1:{free_port()},", 1)  # the first one is down
    route = SentinelRoute(parse_redis_url(url))
    known = set(route._sentinel.sentinels)
    assert len(known) > 1
    try:
        found = await asyncio.gather(*(route.resolve() for _ in range(5)))
        assert len({target.port for target in found}) == 1
        assert set(route._sentinel.sentinels) == known
    finally:
        await route.close()


async def test_a_service_that_the_sentinels_do_not_know_is_named_as_a_fault_of_the_setting(
    sentinels: SentinelGroup,
):
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL: .* service"):
        await at(sentinels.url.replace(SERVICE, "another")).open()


async def test_a_primary_that_is_down_is_not_taken_for_a_wrong_service(sentinels: SentinelGroup):
    sentinels.replica.kill()
    sentinels.kill_primary()

    async def refused() -> bool:
        with pytest.raises(StoreUnavailable) as caught:
            await at(sentinels.url).open()
        return str(caught.value) == "the sentinels know of no primary that is up"

    await eventually(refused, within=10)


async def test_servers_that_are_no_sentinels_are_named_as_a_fault_of_the_setting(sentinels: SentinelGroup):
    port = sentinels.primary.port
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL: .* came: a server that is none$"):
        await at(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}").open()


async def test_sentinels_behind_tls_are_asked_over_tls(sentinels: SentinelGroup):
    async with TlsRelay(sentinels.sentinels[0]) as relay:
        url = f"rediss+sentinel://localhost:{relay.port}/{SERVICE}?ssl_ca_certs={relay.ca_file}"
        route = SentinelRoute(parse_redis_url(url))
        try:
            assert (await route.resolve()).port == sentinels.primary.port
        finally:
            await route.close()


async def test_a_sentinel_that_takes_no_leave_does_not_hide_why_opening_failed(sentinels: SentinelGroup):
    async with TlsRelay(sentinels.sentinels[0]) as tls, Relay(tls.port) as relay:
        url = f"rediss+sentinel://localhost:{relay.port}/{SERVICE}?ssl_ca_certs={tls.ca_file}"
        route = FallsSilent(url, relay)
        async with asyncio.timeout(10):
            with pytest.raises(StoreTimeout, match="no TLS connection"):
                await NativeStore(route, OPTIONS, kind="sentinel").open()  # the primary speaks no TLS
        assert relay.held


@pytest.mark.parametrize("frozen", ["sentinels", "primary"])
async def test_opening_says_within_seconds_that_nobody_answers(sentinels: SentinelGroup, frozen: str):
    group = sentinels.sentinels if frozen == "sentinels" else [sentinels.primary]
    for server in group:
        server.freeze()
    route = SentinelRoute(parse_redis_url(sentinels.url), timeout=0.3)
    store = NativeStore(route, OPTIONS, kind="sentinel")
    try:
        async with asyncio.timeout(5):
            with pytest.raises(
                StoreUnavailable, match=r"no sentinel can be reached|did not answer within 300 ms"
            ):
                await store.open()
    finally:
        for server in group:
            server.thaw()


async def test_whoever_opens_during_a_failover_is_let_in_or_refused_at_once(sentinels: SentinelGroup):
    async def opened() -> bool:
        store = NativeStore(SentinelRoute(parse_redis_url(sentinels.url)), OPTIONS, kind="sentinel")
        try:
            async with asyncio.timeout(5), store:
                return store.available
        except StoreUnavailable:
            return False

    former = sentinels.kill_primary()
    finding = asyncio.create_task(sentinels.wait_for_new_primary(former))
    refused = 0
    while not finding.done():
        refused += not await opened()
    await finding
    healing = asyncio.create_task(asyncio.to_thread(sentinels.heal))
    await eventually(opened, within=5)
    await healing
    assert refused > 0


async def test_sentinels_and_servers_may_want_different_passwords(locked: SentinelGroup):
    async with at(locked.url) as store:
        assert await store.command("SET", "key", 1, *TTL) == b"OK"
        async with store.subscribe("channel") as messages:
            await store.command("PUBLISH", "channel", "x")
            assert await anext(messages) == Message("channel", b"x")
        for shown in (store.description, repr(store), repr(vars(store))):
            assert str(locked.password) not in shown
            assert str(locked.sentinel_password) not in shown


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("none", "sentinel_password.* none is given"),
        ("wrong", "sentinel_password.* refused"),
        ("wrong for the servers", "user and password that the server accepts"),
    ],
)
async def test_a_wrong_password_is_named_as_a_fault_of_the_setting(
    locked: SentinelGroup, setting: str, words: str
):
    assert locked.password
    assert locked.sentinel_password
    url = {
        "none": locked.url.partition("?")[0],
        "wrong": locked.url.replace(locked.sentinel_password, "wrong-word"),
        "wrong for the servers": locked.url.replace(f":{locked.password}@", ":wrong-word@"),
    }[setting]
    with pytest.raises(ConfigurationError, match=f"^REDIS_URL: .*{words}") as caught:
        await at(url).open()
    for secret in (locked.password, locked.sentinel_password, "wrong-word"):
        assert secret not in str(caught.value)
