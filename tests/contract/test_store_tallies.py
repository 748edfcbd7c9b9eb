"""Tallies: counts of every process by the hour, the same over every connection."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from counterseal.core.errors import CommandError
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.tallies import MAX_FIELDS, OTHER, Tallies
from support.backends import Backend, native, only
from support.stores import travel
from support.waiting import eventually

KEYS = Keys()
LONG = timedelta(hours=1)


def key(hour: str) -> str:
    return KEYS.tallies("test", hour)


def tallies_on(store: Store, *, period: timedelta = LONG, ttl: timedelta = timedelta(days=2)) -> Tallies:
    return Tallies(store, key=key, ttl=ttl, period=period)


def hour_of(store: Store, ago: int = 0) -> str:
    return datetime.fromtimestamp(store.now_ms() // 1000 - ago * 3600, UTC).strftime("%Y-%m-%dT%H")


async def test_what_two_processes_count_is_added_up(store: Store):
    one, two = tallies_on(store), tallies_on(store)
    for _ in range(3):
        one.add("hits")
        two.add("hits", 2)
    two.add("seconds", 0.125)
    await one.flush()
    await two.flush()
    assert list((await one.read(1)).values()) == [{"hits": 9, "seconds": 0.125}]
    assert one.totals == {"hits": 3}
    assert two.totals == {"hits": 6, "seconds": 0.125}
    await one.close()
    await two.close()


async def test_what_is_not_sent_yet_is_read_and_counted_once(store: Store):
    tallies = tallies_on(store)
    for sent in (False, True):
        tallies.add("hits", 5)
        if sent:
            await tallies.flush()
        tallies.add("hits", 1)
    assert list((await tallies.read(1)).values()) == [{"hits": 12}]
    assert list((await tallies.read(1)).values()) == [{"hits": 12}]
    await tallies.close()
    assert list((await tallies.read(1)).values()) == [{"hits": 12}]


async def test_an_hour_has_its_ttl_from_the_first_count_and_gets_a_lost_one_back(store: Store):
    tallies = tallies_on(store)
    tallies.add("hits")
    await tallies.flush()
    name = key(hour_of(store))
    assert 2 * 86_400 - 10 <= await ttl_of(store, name) <= 2 * 86_400
    await store.command("EXPIRE", name, 100)
    tallies.add("hits")
    await tallies.flush()
    assert await ttl_of(store, name) <= 100
    await store.command("PERSIST", name)
    tallies.add("hits")
    await tallies.flush()
    assert await ttl_of(store, name) > 100
    await tallies.close()


async def ttl_of(store: Store, name: str) -> int:
    ttl = await store.command("TTL", name)
    assert isinstance(ttl, int)
    return ttl


async def test_counts_stand_under_the_hour_in_which_they_were_made_newest_last(store: Store):
    tallies = tallies_on(store)
    first = hour_of(store)
    tallies.add("hits", 1)
    await tallies.flush()
    travel(store, timedelta(hours=2))
    tallies.add("hits", 10)
    last = hour_of(store)
    hours = await tallies.read(4)
    assert list(hours) == sorted(hours)
    assert [hours[first], hours[last]] == [{"hits": 1}, {"hits": 10}]
    assert sum(map(len, hours.values())) == 2
    await tallies.close()


async def test_the_background_sends_what_was_counted_and_ends_when_nothing_is_left(
    backend: Backend, store: Store
):
    before = asyncio.all_tasks()
    tallies = tallies_on(store, period=timedelta(milliseconds=5))
    watcher = tallies_on(store)
    for total in (1, 2):
        tallies.add("hits")

        async def arrived(total: int = total) -> bool:
            return list((await watcher.read(1)).values()) == [{"hits": total}]

        await eventually(arrived, within=15)
        await eventually(lambda: not tallies._running)
    await eventually(
        lambda: not [task for task in asyncio.all_tasks() - before if "counted" in task.get_name()]
    )


async def test_fields_beyond_the_limit_are_counted_together_in_a_process_and_in_an_hour(store: Store):
    one, two = tallies_on(store), tallies_on(store)
    for number in range(MAX_FIELDS + 5):
        one.add(f"one {number}")
    assert len(one.totals) == MAX_FIELDS + 1
    assert one.totals[OTHER] == 5
    await one.flush()
    two.add("two")
    two.add("one 7", 2)
    await two.flush()
    (counts,) = (await two.read(1)).values()
    assert counts[OTHER] == 6
    assert counts["one 7"] == 3
    assert "two" not in counts
    await one.close()
    await two.close()


async def test_a_field_may_have_any_name(store: Store):
    tallies = tallies_on(store)
    names = ["", " ", "a:b", "}{", "😀", "a\nb", "hits"]
    for name in names:
        tallies.add(name)
    await tallies.flush()
    assert list((await tallies.read(1)).values()) == [dict.fromkeys(names, 1)]
    await tallies.close()


async def test_many_tasks_that_flush_at_once_send_each_count_once(store: Store):
    tallies = tallies_on(store)

    async def count() -> None:
        for _ in range(5):
            tallies.add("hits")
            await tallies.flush()

    await asyncio.gather(*(count() for _ in range(20)), *(tallies.read(1) for _ in range(5)))
    assert list((await tallies.read(1)).values()) == [{"hits": 100}]
    await tallies.close()


@only(native)
async def test_flushing_and_reading_are_one_round_trip_and_adding_is_none(store: Store):
    tallies = tallies_on(store)
    tallies.add("hits")
    await tallies.flush()  # the server knows the script now
    before = store.counts.batches
    for _ in range(1000):
        tallies.add("hits")
    await asyncio.sleep(0)
    assert store.counts.batches == before
    await tallies.flush()
    assert store.counts.batches == before + 1
    await tallies.flush()
    assert store.counts.batches == before + 1
    await tallies.read(24)
    assert store.counts.batches == before + 2
    await tallies.close()
    assert store.counts.batches == before + 2


@only(native)
async def test_what_is_counted_outside_an_event_loop_is_sent_later(store: Store):
    tallies = tallies_on(store, period=timedelta(milliseconds=5))

    def count() -> None:
        for _ in range(3):
            tallies.add("hits")

    await asyncio.to_thread(count)
    tallies.add("hits")
    await eventually(lambda: not tallies._running)
    assert await store.command("HGET", key(hour_of(store)), "hits") == b"4"
    assert tallies.totals == {"hits": 4}


@only(native)
async def test_an_hour_that_redis_refuses_does_not_hold_the_others_up(store: Store):
    tallies = tallies_on(store)
    name = key(hour_of(store))
    await store.command("SET", name, "text", "EX", 60)
    tallies.add("hits")
    tallies.add("nonsense", float("nan"))
    await tallies.flush()
    with pytest.raises(CommandError, match="WRONGTYPE"):
        await tallies.read(1)
    await store.command("DEL", name)
    tallies.add("hits")
    tallies.add("nonsense", float("inf"))
    await tallies.flush()
    assert list((await tallies.read(1)).values()) == [{"hits": 1}]
    with pytest.raises(ValueError, match="at least 1"):
        await tallies.read(0)
    await tallies.close()
