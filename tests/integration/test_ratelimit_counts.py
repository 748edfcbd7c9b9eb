"""Who is refused most: counted in memory, kept by the hour, bounded everywhere."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from counterseal.core.errors import StoreBusy
from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.policy import Policy
from counterseal.ratelimit.refused import Refused
from counterseal.ratelimit.scripts import MOST_REFUSED
from counterseal.ratelimit.service import RateLimits
from counterseal.store.keys import Keys
from counterseal.store.wire import Reply
from support.servers import Server
from support.stores import store_on, travel
from support.waiting import eventually

KEYS = Keys()
HOUR = timedelta(hours=1)


async def test_of_very_many_refused_identifiers_those_refused_most_are_kept(valkey: Server) -> None:
    async with store_on(valkey) as store:
        refused = Refused(store, keys=KEYS)
        for number in range(15_000):
            refused.of("api").add(f"once-{number}")
        assert len(refused.of("api").counts) == 10_000
        await refused.flush()
        for _ in range(3):
            refused.of("api").add("mallory")
        refused.of("api").add("once-1")
        await refused.flush()
        (key,) = valkey.execute("KEYS", "cs:ratelimitrefused:api:*")
        assert valkey.execute("ZCARD", key) == MOST_REFUSED
        assert timedelta(days=7) < timedelta(seconds=valkey.execute("TTL", key)) <= timedelta(days=8)
        assert (await refused.top("api", 1, 1)) == [("mallory", 3)]
        await refused.close()


async def test_counts_are_sent_by_themselves_and_added_over_processes_and_hours(valkey: Server) -> None:
    async with store_on(valkey) as store, store_on(valkey) as other:
        half_past = HOUR + HOUR / 2 - timedelta(milliseconds=store.now_ms() % 3_600_000)
        travel(store, half_past)
        travel(other, half_past)
        mine = Refused(store, keys=KEYS, period=timedelta(milliseconds=20))
        mine.of("api").add("ada")
        await eventually(lambda: valkey.execute("KEYS", "cs:ratelimitrefused:api:*"))
        theirs = Refused(other, keys=KEYS)
        travel(other, HOUR)
        travel(store, HOUR)
        for who in ("ada", "bob"):
            theirs.of("api").add(who)
        assert await theirs.top("api", 10, 2) == [("ada", 2), ("bob", 1)]
        await theirs.close()
        assert await mine.top("api", 10, 2) == [("ada", 2), ("bob", 1)]
        assert await mine.top("api", 10, 1) == [("ada", 1), ("bob", 1)]
        await mine.close()
        assert len(valkey.execute("KEYS", "cs:ratelimitrefused:api:*")) == 2


async def test_what_can_not_be_sent_is_kept_while_redis_is_away(valkey: Server) -> None:
    async with store_on(valkey) as store:
        refused = Refused(store, keys=KEYS)
        refused.of("api").add("ada")
        valkey.kill()
        await eventually(lambda: not store.available)
        await refused.flush()
        assert refused.of("api").counts == {"ada": 1}
        valkey.start()
        await eventually(lambda: store.available, within=30)
        await refused.close()
        assert refused.of("api").counts == {}
        assert await refused.top("api", 10, 1) == [("ada", 1)]


async def test_a_refusal_belongs_to_the_hour_in_which_it_was_counted(valkey: Server) -> None:
    async with store_on(valkey) as store:
        refused = Refused(store, keys=KEYS)
        travel(store, HOUR + HOUR / 2 - timedelta(milliseconds=store.now_ms() % 3_600_000))
        refused.of("api").add("ada")
        travel(store, HOUR)
        assert await refused.top("api", 10, 1) == []
        assert await refused.top("api", 10, 2) == [("ada", 1)]
        await refused.flush()
        assert await refused.top("api", 10, 1) == []
        assert await refused.top("api", 10, 2) == [("ada", 1)]
        await refused.close()


async def test_refusals_of_several_hours_wait_until_redis_is_back_of_each_the_most_refused(
    valkey: Server,
) -> None:
    async with store_on(valkey) as store:
        refused = Refused(store, keys=KEYS)
        travel(store, HOUR + HOUR / 2 - timedelta(milliseconds=store.now_ms() % 3_600_000))
        valkey.kill()
        refused.of("api").add("ada")
        await eventually(lambda: not store.available)
        for _ in range(30):
            for number in range(MOST_REFUSED + 100):
                refused.of("api").add(f"u{number}")
            refused.of("api").add("ada")
            travel(store, HOUR)
            await refused.flush()
        waiting = refused.of("api")._waiting
        assert len(waiting) == 24
        assert {len(counts) for counts in waiting.values()} == {MOST_REFUSED}
        valkey.start()
        await eventually(lambda: store.available, within=30)
        await refused.close()
        assert len(valkey.execute("KEYS", "cs:ratelimitrefused:api:*")) == 24


async def test_what_was_not_sent_because_the_connection_was_full_is_sent_later(valkey: Server) -> None:
    async with store_on(valkey) as store:
        refused = Refused(store, keys=KEYS)
        refused.of("api").add("ada")
        run = store.run

        async def full(*_: object, **__: object) -> Reply:
            raise StoreBusy

        store.run = full  # type: ignore[method-assign]
        await refused.flush()
        refused.of("api").add("ada")
        store.run = run  # type: ignore[method-assign]
        assert await refused.top("api", 10, 2) == [("ada", 2)]
        await refused.close()
        assert await refused.top("api", 10, 2) == [("ada", 2)]


@pytest.mark.filterwarnings("error")
async def test_a_closed_service_still_decides_and_leaves_no_task_behind(valkey: Server) -> None:
    async with store_on(valkey) as store:
        before = asyncio.all_tasks()
        limits = RateLimits(store, keys=KEYS, policies=[Policy("one", (Limit(1, HOUR),))])
        await limits.limiter("one").limit("ada")
        await limits.close()
        await limits.close()
        assert not (await limits.limiter("one").limit("ada")).success
        never_begun = RateLimits(store, keys=KEYS)
        await never_begun.close()
        assert (await never_begun.api.limit("ada")).success
        await limits.close()
        await never_begun.close()
        assert asyncio.all_tasks() == before
