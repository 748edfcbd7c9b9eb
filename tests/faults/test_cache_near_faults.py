"""Near values under every fault: a late reply takes nothing in, and who can't hear of changes keeps nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta

import pytest

from counterseal.cache.changes import Changes
from counterseal.cache.kind import Kind
from counterseal.cache.near import NearMemory
from counterseal.cache.result import Source
from counterseal.cache.service import Cache
from counterseal.cache.values import KindCache
from counterseal.core.errors import StoreUnavailable
from counterseal.store import feed, tracking
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from counterseal.store.wire import Argument, Command, Reply
from support.relay import Relay
from support.servers import Server
from support.waiting import eventually

KEYS = Keys()
HOUR = timedelta(hours=1)
TEAM = Kind("team", HOUR, near=HOUR, owner="user")
PATIENT = timedelta(seconds=5)
WAYS = ("set", "invalidate", "clear", "tag", "user")
pytestmark = pytest.mark.every_loop


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server(acl=["untold on >secret ~* &* +@all -client|tracking"]) as server:
        yield server


@pytest.fixture
async def relay(shared: Server) -> AsyncIterator[Relay]:
    async with Relay(shared) as relay:
        yield relay
    shared.flush()


@pytest.fixture(params=["default", "untold"], ids=["tracked", "published"])
def login(request: pytest.FixtureRequest) -> str:
    """As the default user the server tells of changes; to the other one it does not, and they are published."""
    return "" if request.param == "default" else "untold:secret@"


class HeldStore(NativeStore):
    """A store that keeps the values it has read back from their reader, once it was told to."""

    def __init__(self, url: str, timeout: timedelta = PATIENT) -> None:
        options = LinkOptions(connect_timeout=PATIENT, command_timeout=timeout)
        super().__init__(FixedRoute(parse_redis_url(url).template), options)
        self.has_read = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.deaf = False

    def track(
        self, *prefixes: str, on_change: Callable[[str | None], None], on_loss: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        def hear(key: str | None) -> None:
            if not self.deaf:
                on_change(key)

        return super().track(*prefixes, on_change=hear, on_loss=on_loss)

    def command(self, *arguments: Argument) -> Awaitable[Reply]:
        reply = super().command(*arguments)
        is_value = arguments[0] == "GET" and ":cache:" in str(arguments[1])
        return self._later(reply) if is_value and not self.go_on.is_set() else reply

    def pipeline(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        replies = super().pipeline(commands)
        return replies if self.go_on.is_set() else self._later(replies)

    async def _later(self, reply: Awaitable) -> object:
        received = await reply
        self.has_read.set()
        await self.go_on.wait()
        return received


@asynccontextmanager
async def cache_at(
    port: int, login: str, timeout: timedelta = PATIENT
) -> AsyncIterator[tuple[HeldStore, Cache]]:
    async with (
        HeldStore(f"redis://{login}127.0.0.1:{port}/0", timeout) as store,
        Cache(store, keys=KEYS, kinds=[TEAM]) as cache,
    ):
        yield store, cache


async def come_near(values: KindCache, identifier: str) -> None:
    async def is_near() -> bool:
        with suppress(StoreUnavailable):
            return (await values.find(identifier)).source is Source.NEAR
        return False

    await eventually(is_near, within=20)


async def change(cache: Cache, how: str) -> None:
    match how:
        case "set":
            await cache.of(TEAM).set("t", {"n": 2})
        case "invalidate":
            await cache.of(TEAM).invalidate("t")
        case "clear":
            await cache.clear("team")
        case "tag":
            await cache.invalidate_tags("x")
        case _:
            await cache.invalidate_user("t")


@pytest.mark.parametrize("reading", ["find", "get_many", "find_or_load"])
@pytest.mark.parametrize("how", WAYS)
async def test_what_changes_between_a_read_and_its_reply_is_not_taken_in(
    shared: Server, relay: Relay, login: str, reading: str, how: str
):
    async with cache_at(shared.port, login) as (store, cache), cache_at(shared.port, login) as (_, other):
        team = cache.of(TEAM)
        await team.set("before", {"n": 0})
        await team.set("t", {"n": 1}, tags=["x"])
        await come_near(team, "before")
        store.go_on.clear()
        match reading:
            case "find":
                late = asyncio.create_task(team.find("t"))
            case "get_many":
                late = asyncio.create_task(team.get_many(["t"]))
            case _:
                late = asyncio.create_task(team.find_or_load("t", never))
        await store.has_read.wait()
        await change(other, how)
        await eventually(
            lambda: reading_of(cache) == 0
        )  # the change was heard of, before the reply is let go
        store.go_on.set()
        if reading != "find_or_load" or how not in {"clear", "tag", "user"}:
            await late
        else:
            with suppress(AssertionError):
                await late
        assert await team.get("t") == ({"n": 2} if how == "set" else None)
        assert await team.get("t") == ({"n": 2} if how == "set" else None)
        assert (await team.find("t")).value == ({"n": 2} if how == "set" else None)


@pytest.mark.parametrize("how", WAYS)
async def test_what_this_process_changes_between_a_read_and_its_reply_is_not_taken_in(
    shared: Server, relay: Relay, login: str, how: str
):
    async with cache_at(shared.port, login) as (store, cache):
        team = cache.of(TEAM)
        await team.set("before", {"n": 0})
        await team.set("t", {"n": 1}, tags=["x"])
        await come_near(team, "before")
        store.go_on.clear()
        late = asyncio.create_task(team.find("t"))
        await store.has_read.wait()
        store.go_on.set()  # for those who come; this one goes on when the loop comes to it
        changing = asyncio.create_task(change(cache, how))
        await changing
        await late
        assert await team.get("t") == ({"n": 2} if how == "set" else None)


@pytest.mark.parametrize("how", WAYS)
async def test_what_this_process_changes_is_near_no_more_before_the_server_tells_of_it(
    shared: Server, relay: Relay, how: str
):
    async with cache_at(shared.port, "") as (store, cache):
        team = cache.of(TEAM)
        await team.set("t", {"n": 1}, tags=["x"])
        await come_near(team, "t")
        store.deaf = True
        await change(cache, how)
        assert await team.get("t") == ({"n": 2} if how == "set" else None)


async def test_what_was_read_before_the_connection_was_lost_is_not_taken_in(
    shared: Server, relay: Relay, login: str
):
    async with cache_at(relay.port, login) as (store, cache), cache_at(shared.port, login) as (_, other):
        team = cache.of(TEAM)
        await team.set("before", {"n": 0})
        await team.set("t", {"n": 1})
        await come_near(team, "before")
        store.go_on.clear()
        late = asyncio.create_task(team.find("t"))
        await store.has_read.wait()
        relay.cut()
        await eventually(lambda: cache.near_bytes == 0)
        await other.of(TEAM).set("t", {"n": 2})
        store.go_on.set()
        assert (await late).value == {"n": 1}

        async def is_new() -> bool:
            with suppress(StoreUnavailable):
                assert await team.get("t") == {"n": 2}
                return True
            return False

        await eventually(is_new)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_with_the_connection_everything_near_is_gone_and_comes_back_with_it(
    shared: Server, relay: Relay, login: str, reset: bool
):
    async with cache_at(relay.port, login) as (_, cache), cache_at(shared.port, login) as (_, other):
        team = cache.of(TEAM)
        await team.set("t", {"n": 1})
        await come_near(team, "t")
        relay.refuse()
        relay.cut(reset=reset)
        await eventually(lambda: cache.near_bytes == 0)
        with pytest.raises(StoreUnavailable):
            await team.get("t")
        await other.of(TEAM).set("t", {"n": 2})
        await relay.accept()
        await come_near(team, "t")
        assert await team.get("t") == {"n": 2}
        await other.of(TEAM).set("t", {"n": 3})
        await eventually(lambda: cache.near_bytes == 0)
        assert await team.get("t") == {"n": 3}


async def test_a_server_that_stands_still_ends_what_is_near(
    shared: Server, login: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed, "_QUIET", 0.5)
    monkeypatch.setattr(tracking, "_PING_EVERY_S", 0.5)
    quick = timedelta(milliseconds=100)
    async with cache_at(shared.port, login, quick) as (_, cache), cache_at(shared.port, login) as (_, other):
        team = cache.of(TEAM)
        await team.set("t", {"n": 1})
        await come_near(team, "t")
        shared.freeze()
        assert await team.get("t") == {"n": 1}  # nobody can know yet
        await eventually(lambda: cache.near_bytes == 0)
        with pytest.raises(StoreUnavailable):
            await team.get("t")
        shared.thaw()

        async def has_set() -> bool:
            with suppress(StoreUnavailable):
                await other.of(TEAM).set("t", {"n": 2})
                return True
            return False

        await eventually(has_set, within=20)
        await come_near(team, "t")
        assert await team.get("t") == {"n": 2}


async def test_a_server_that_was_killed_and_came_back_empty_leaves_nothing_near(shared: Server, login: str):
    async with cache_at(shared.port, login) as (_, cache):
        team = cache.of(TEAM)
        await team.set("t", {"n": 1})
        await come_near(team, "t")
        shared.kill()
        await eventually(lambda: cache.near_bytes == 0)
        shared.start()

        async def is_gone() -> bool:
            with suppress(StoreUnavailable):
                assert await team.get("t") is None
                return True
            return False

        await eventually(is_gone, within=20)


class Losing:
    """A store whose connection is lost in the very turn in which it begins to tell of changes."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()

    @asynccontextmanager
    async def track(self, *prefixes: str, on_change: object, on_loss):
        on_loss()
        self.entered.set()
        yield


async def test_a_connection_that_is_lost_as_it_comes_is_not_taken_for_one_that_is_heard():
    memory = NearMemory(1000)
    memory.add("team")
    store = Losing()
    changes = Changes(store, keys=KEYS, memory=memory)  # type: ignore[arg-type]
    changes.begin()
    await store.entered.wait()
    await asyncio.sleep(0)
    assert memory.active is False
    await changes.close()


def reading_of(cache: Cache) -> int:
    """How many reads are under way that may still be taken in."""
    return sum(len(kind._reading) for kind in cache._memory.kinds.values())


async def never(_: str) -> None:
    raise AssertionError("loaded")
