"""What every call of the cache and of the rate limits costs in round trips, counted and held against its docstring."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from counterseal.app import Counterseal
from counterseal.cache.function import CachedFunction
from counterseal.cache.kind import Kind
from counterseal.cache.result import Source
from counterseal.cache.service import Cache
from counterseal.cache.values import KindCache
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.limiter import Limiter
from counterseal.ratelimit.policy import Policy
from counterseal.ratelimit.service import RateLimits
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.web import ResponseCache, response_kind
from support.round_trips import come_to_rest, costs_of
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

KEYS = Keys()
HOUR = timedelta(hours=1)
BARE = Kind("bare", HOUR, early_refresh=False)
PAGES = response_kind("page", HOUR)
NEAR = Kind("near", HOUR, near=HOUR, owner="user")
SEVERAL = Policy("several", (Limit(1_000_000, HOUR), Limit(1_000_000, 2 * HOUR)))
ONCE = Policy("once", (Limit(1, HOUR),))
OFTEN = Policy("often", (Limit(1_000_000, HOUR),), plans={"gold": (Limit(2_000_000, HOUR),)})

TRIES = 3
"""What runs beside a call only ever adds to its count."""


@dataclass
class House:
    """The services on one store, warm: their scripts are known, their loops begun."""

    store: Store
    server: Server
    cache: Cache
    limits: RateLimits

    @property
    def bare(self) -> KindCache[Any]:
        return self.cache.of(BARE)

    @property
    def near(self) -> KindCache[Any]:
        return self.cache.of(NEAR)


THREE = {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}

Step = Callable[[House], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """A call, what it costs, and what has to be done before it."""

    method: Callable[..., Any]
    what: str
    cost: int
    call: Step
    before: Step | None = None


async def load(_: str) -> dict[str, object]:
    return {"n": 1}


async def put(house: House) -> None:
    await house.bare.set("d", {"n": 1})


async def put_tagged(house: House) -> None:
    await house.bare.set("d", {"n": 1}, tags=["t"])


async def put_near(house: House) -> None:
    await house.near.set("d", {"n": 1})

    async def is_near() -> bool:
        return (await house.near.find("d")).source is Source.NEAR

    await eventually(is_near)


async def gone(house: House) -> None:
    await house.bare.invalidate_many(["d", "e"])


async def bare_server(house: House) -> None:
    house.server.flush()


async def no_generation(house: House) -> None:
    await house.store.command("DEL", KEYS.cache_generation("bare"))


async def old_generation(house: House) -> None:
    house.cache._generations._lasting.clear()
    await house.store.command("EXPIRE", KEYS.cache_generation("bare"), 86_400)


async def block(house: House) -> None:
    await house.limits.limiter("once").limit("blocked")
    await house.limits.limiter("once").limit("blocked")


async def use_up(house: House) -> None:
    await house.limits.limiter("once").reset("refused")
    await house.limits.limiter("once").limit("refused")


async def deny(house: House) -> None:
    await house.limits.deny("mallory")


async def allow(house: House) -> None:
    await house.limits.allow("bot")


async def refund_refused(house: House) -> bool:
    now = datetime.now(UTC)
    refused = Decision(False, 1, 0, now, HOUR, Reason.LIMITED)
    return await house.limits.limiter("once").refund("refused", decision=refused)


async def refuse_everywhere(house: House) -> None:
    for limiter in house.limits.limiters:
        await limiter.limit("a", 10_000_000)


async def count(house: House) -> None:
    await house.bare.find("none")
    await house.limits.limiter("often").limit("x")


def decorated(house: House) -> CachedFunction:
    return house.bare.cached(load)


def pages(house: House) -> ResponseCache:
    return ResponseCache(cast("Counterseal", house), kind=PAGES)


CASES = [
    Case(KindCache.get, "there", 1, lambda h: h.bare.get("d"), put),
    Case(KindCache.get, "not there", 1, lambda h: h.bare.get("d"), gone),
    Case(KindCache.get, "with tags", 2, lambda h: h.bare.get("d"), put_tagged),
    Case(KindCache.get, "near", 0, lambda h: h.near.get("d"), put_near),
    Case(KindCache.find, "there", 1, lambda h: h.bare.find("d"), put),
    Case(KindCache.find, "with tags", 2, lambda h: h.bare.find("d"), put_tagged),
    Case(KindCache.find, "near", 0, lambda h: h.near.find("d"), put_near),
    Case(KindCache.get_many, "some", 1, lambda h: h.bare.get_many(["d", "e", "f"]), put),
    Case(KindCache.get_many, "with tags", 2, lambda h: h.bare.get_many(["d", "e"]), put_tagged),
    Case(KindCache.get_many, "near", 0, lambda h: h.near.get_many(["d"]), put_near),
    Case(KindCache.get_many, "nothing asked", 0, lambda h: h.bare.get_many([])),
    Case(KindCache.get_or_load, "there", 1, lambda h: h.bare.get_or_load("d", load), put),
    Case(KindCache.get_or_load, "missing", 3, lambda h: h.bare.get_or_load("d", load), gone),
    Case(KindCache.get_or_load, "on an empty server", 8, lambda h: h.bare.get_or_load("d", load), bare_server),
    Case(KindCache.get_or_load, "near", 0, lambda h: h.near.get_or_load("d", load), put_near),
    Case(KindCache.find_or_load, "there", 1, lambda h: h.bare.find_or_load("d", load), put),
    Case(KindCache.find_or_load, "its tags named", 1, lambda h: h.bare.find_or_load("d", load, tags=["t"]), put_tagged),
    Case(KindCache.find_or_load, "its tags not named", 2, lambda h: h.bare.find_or_load("d", load), put_tagged),
    Case(KindCache.find_or_load, "near", 0, lambda h: h.near.find_or_load("d", load), put_near),
    Case(KindCache.find_or_load, "on an empty server", 8, lambda h: h.bare.find_or_load("d", load), bare_server),
    Case(KindCache.warm, "all there", 1, lambda h: h.bare.warm(["d"], load), put),
    Case(KindCache.warm, "one missing", 4, lambda h: h.bare.warm(["d"], load), gone),
    Case(KindCache.set, "of a known kind", 2, lambda h: h.bare.set("d", {"n": 1}), put),
    Case(KindCache.set, "of a new kind", 3, lambda h: h.bare.set("d", {"n": 1}), no_generation),
    Case(KindCache.set, "its generation to be prolonged", 3, lambda h: h.bare.set("d", {"n": 1}), old_generation),
    Case(KindCache.set, "near", 2, lambda h: h.near.set("d", {"n": 1}), put_near),
    Case(KindCache.set_many, "three", 2, lambda h: h.bare.set_many(THREE), put),
    Case(KindCache.set_many, "three near", 2, lambda h: h.near.set_many(THREE), put_near),
    Case(KindCache.set_many, "of a new kind", 3, lambda h: h.bare.set_many({"d": {"n": 1}}), no_generation),
    Case(KindCache.invalidate, "there", 1, lambda h: h.bare.invalidate("d"), put),
    Case(KindCache.invalidate_many, "three", 1, lambda h: h.bare.invalidate_many("abc")),
    Case(KindCache.clear, "a kind", 1, lambda h: h.bare.clear(), put),
    Case(KindCache.clear, "a near kind", 1, lambda h: h.near.clear(), put_near),
    Case(CachedFunction.invalidate, "there", 1, lambda h: decorated(h).invalidate("d"), put),
    Case(Cache.clear, "a kind", 1, lambda h: h.cache.clear("bare"), put),
    Case(Cache.clear, "everything", 1, lambda h: h.cache.clear(), put),
    Case(Cache.invalidate_tags, "two", 1, lambda h: h.cache.invalidate_tags("t", "u"), put_tagged),
    Case(Cache.invalidate_user, "one", 1, lambda h: h.cache.invalidate_user("u"), put_near),
    Case(Cache.invalidate_domain, "one", 1, lambda h: h.cache.invalidate_domain("d"), put_near),
    Case(Cache.set_ttl, "set", 1, lambda h: h.cache.set_ttl("bare", HOUR)),
    Case(Cache.set_ttl, "taken back", 1, lambda h: h.cache.set_ttl("bare", None)),
    Case(Cache.stats, "a day", 1, lambda h: h.cache.stats(24), count),
    Case(Cache.probe, "sound", 2, lambda h: h.cache.probe(), lambda h: h.cache.probe()),
    Case(Cache.close, "something counted", 1, lambda h: h.cache.close(), count),
    Case(ResponseCache.invalidate, "two", 1, lambda h: pages(h).invalidate("/a", "/b")),
    Case(Limiter.limit, "allowed", 1, lambda h: h.limits.limiter("often").limit("a")),
    Case(Limiter.limit, "refused", 1, lambda h: h.limits.limiter("once").limit("refused"), use_up),
    Case(Limiter.limit, "several limits", 1, lambda h: h.limits.limiter("several").limit("a")),
    Case(Limiter.limit, "a plan", 1, lambda h: h.limits.limiter("often").limit("a", plan="gold")),
    Case(Limiter.limit, "more than the limit", 1, lambda h: h.limits.limiter("once").limit("a", 2)),
    Case(Limiter.limit, "denied", 0, lambda h: h.limits.limiter("often").limit("mallory"), deny),
    Case(Limiter.limit, "exempt", 0, lambda h: h.limits.limiter("often").limit("bot"), allow),
    Case(Limiter.peek, "denied", 0, lambda h: h.limits.limiter("often").peek("mallory"), deny),
    Case(Limiter.refund, "refused", 0, refund_refused, use_up),
    Case(Limiter.limit, "refused lately", 0, lambda h: h.limits.limiter("once").limit("blocked"), block),
    Case(Limiter.peek, "some", 1, lambda h: h.limits.limiter("often").peek("a")),
    Case(Limiter.refund, "some", 1, lambda h: h.limits.limiter("often").refund("a")),
    Case(Limiter.reset, "some", 1, lambda h: h.limits.limiter("often").reset("a")),
    Case(RateLimits.set_limits, "for all", 1, lambda h: h.limits.set_limits("often", Limit(9, HOUR))),
    Case(RateLimits.unset_limits, "for all", 1, lambda h: h.limits.unset_limits("often")),
    Case(RateLimits.deny, "one", 1, lambda h: h.limits.deny("a")),
    Case(RateLimits.allow, "one", 1, lambda h: h.limits.allow("a")),
    Case(RateLimits.forget, "one", 1, lambda h: h.limits.forget("a")),
    Case(RateLimits.lists, "again", 0, lambda h: h.limits.lists()),
    Case(RateLimits.stats, "a day", 1, lambda h: h.limits.stats(24), count),
    Case(RateLimits.top_refused, "ten", 1, lambda h: h.limits.top_refused("once"), block),
    Case(RateLimits.close, "something counted", 1, lambda h: h.limits.close(), count),
    Case(RateLimits.close, "somebody refused", 2, lambda h: h.limits.close(), refuse_everywhere),
]  # fmt: skip

SERVICES = (KindCache, CachedFunction, Cache, Limiter, RateLimits, ResponseCache)
WITHIN = {"look", "generations", "keep"}
"""What the parts of the cache ask one another, at a cost that is in that of the calls above."""


@asynccontextmanager
async def open_house(server: Server) -> AsyncIterator[House]:
    async with (
        store_on(server) as store,
        Cache(store, keys=KEYS, kinds=[BARE, NEAR, PAGES]) as cache,
    ):
        limits = RateLimits(store, keys=KEYS, policies=[ONCE, OFTEN, SEVERAL])
        try:
            await limits.lists()
            await come_to_rest(store)
            yield House(store, server, cache, limits)
        finally:
            await limits.close()


async def counted(house: House, case: Case) -> int:
    """The round trips of a call, of which everything has been called once before."""
    if case.before is not None:
        await case.before(house)
    before = house.store.counts.batches
    await case.call(house)
    return house.store.counts.batches - before


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method.__qualname__} {case.what}")
async def test_a_call_costs_what_its_docstring_says(valkey: Server, case: Case) -> None:
    costs: list[int] = []
    while len(costs) < TRIES and case.cost not in costs:
        async with open_house(valkey) as house:
            if case.method.__name__ != "close":
                await counted(house, case)
            costs.append(await counted(house, case))
    assert case.cost == min(costs)
    stated, most = costs_of(case.method)
    assert case.cost in stated or (most is not None and case.cost <= most)


async def test_the_first_call_and_a_script_the_server_does_not_know_cost_one_more(valkey: Server) -> None:
    async with store_on(valkey) as store:
        limits = RateLimits(store, keys=KEYS, policies=[OFTEN])
        costs: list[int] = []
        before = store.counts.batches
        await limits.limiter("often").limit("a")
        costs.append(store.counts.batches - before)
        await eventually(lambda: limits._backing.hearing)
        await come_to_rest(store)
        for _ in range(TRIES):
            valkey.execute("SCRIPT", "FLUSH")
            before = store.counts.batches
            await limits.limiter("often").limit("a")
            costs.append(store.counts.batches - before)
        await limits.close()
    assert costs[0] == 3  # the rules, the script that is not known, and the script
    assert min(costs[1:]) == 2


def test_every_public_call_says_what_it_costs_and_is_counted_here() -> None:
    counted_here = {case.method.__qualname__ for case in CASES}
    calls = {
        member.__qualname__: member
        for service in SERVICES
        for name, member in vars(service).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_") and name not in WITHIN
    }
    assert len(calls) > 30
    assert set(calls) == counted_here
    silent = [name for name, call in calls.items() if costs_of(call) == (set(), None)]
    assert silent == []
