"""LiveHash: every process has a copy, and a change reaches all of them, the same over every connection."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from counterseal.core.errors import StoreFull
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.live import LiveHash
from support.backends import Backend, native, only
from support.waiting import eventually

KEYS = Keys()
SELDOM = timedelta(hours=1)


def hash_on(store: Store, *, period: timedelta = SELDOM, **options) -> LiveHash:
    return LiveHash(store, key=KEYS.live("test"), channel=KEYS.live_channel("test"), period=period, **options)


async def listening(backend: Backend, count: int) -> None:
    if backend.kind == "rest":
        count = 1  # its server listens once for all
    await eventually(lambda: backend.subscribers(KEYS.live_channel("test")) >= count, within=15)


async def test_what_one_process_writes_is_in_its_copy_at_once_and_in_the_others_by_a_message(
    backend: Backend,
):
    async with backend.store() as first, backend.store() as second:
        one, two = hash_on(first), hash_on(second)
        await one.set("a", b"1")
        assert one.entries == {"a": b"1"}
        await two.ready()
        assert two.entries == {"a": b"1"}
        await listening(backend, 2)
        await two.set("b", b"\x00\xff")
        assert two.entries == {"a": b"1", "b": b"\x00\xff"}
        await eventually(lambda: one.entries == two.entries)
        assert await one.remove("a")
        assert not await one.remove("a")
        assert one.entries == {"b": b"\x00\xff"}
        await eventually(lambda: two.entries == one.entries)
        assert await two.remove("b")
        await eventually(lambda: one.entries == {})
        await one.close()
        await two.close()


async def test_a_change_whose_message_is_lost_is_seen_within_a_period(store: Store):
    told = hash_on(store)
    deaf = LiveHash(store, key=KEYS.live("test"), channel="elsewhere", period=timedelta(milliseconds=20))
    await deaf.ready()
    await told.set("a", b"1")
    await eventually(lambda: deaf.entries == {"a": b"1"})
    await told.set("a", b"2")
    await eventually(lambda: deaf.entries == {"a": b"2"})
    await told.remove("a")
    await eventually(lambda: deaf.entries == {})
    await told.close()
    await deaf.close()


async def test_a_hash_that_is_emptied_by_other_means_is_empty_in_every_copy(backend: Backend, store: Store):
    live = hash_on(store, period=timedelta(milliseconds=20))
    await live.set("a", b"1")
    await store.command("DEL", KEYS.live("test"))
    await eventually(lambda: live.entries == {})
    await live.set("a", b"1")
    assert live.entries == {"a": b"1"}
    await live.close()


async def test_many_writers_at_once_end_with_one_copy(backend: Backend):
    async with backend.store() as first, backend.store() as second:
        one, two = hash_on(first), hash_on(second)
        await one.ready()
        await two.ready()
        await listening(backend, 2)

        async def write(live: LiveHash, number: int) -> None:
            await live.set(f"{number % 7}", b"%d" % number)
            if number % 3 == 0:
                await live.remove(f"{number % 5}")

        await asyncio.gather(*(write((one, two)[number % 2], number) for number in range(60)))
        flat = await first.command("HGETALL", KEYS.live("test"))
        assert isinstance(flat, list)
        stored = dict(zip(flat[::2], flat[1::2], strict=True))
        del stored[b""]
        expected = {field.decode(): value for field, value in stored.items()}
        await eventually(lambda: one.entries == expected and two.entries == expected)
        await one.close()
        await two.close()


async def test_one_field_too_many_is_refused_and_nothing_is_written(store: Store):
    live = hash_on(store, most=2)
    await live.set("a", b"1")
    await live.set("b", b"1")
    with pytest.raises(StoreFull, match="no more than 2 entries"):
        await live.set("c", b"1")
    await live.set("b", b"2")
    assert live.entries == {"a": b"1", "b": b"2"}
    await live.remove("a")
    await live.set("c", b"1")
    assert live.entries == {"b": b"2", "c": b"1"}
    await live.close()


async def test_a_field_may_have_any_name_but_an_empty_one(store: Store):
    live, other = hash_on(store), hash_on(store)
    names = [" ", "a:b", "}{", "😀", "a\nb", "2001:db8::/32", "x" * 1000]
    for name in names:
        await live.set(name, name.encode())
    await other.ready()
    assert other.entries == live.entries == {name: name.encode() for name in names}
    with pytest.raises(ValueError, match="at least one character"):
        await live.set("", b"1")
    with pytest.raises(ValueError, match="at least one character"):
        await live.remove("")
    await live.close()
    await other.close()


async def test_who_asked_to_be_told_is_told_of_every_change_and_of_nothing_else(
    backend: Backend, store: Store
):
    told: list[dict[str, bytes]] = []
    live = hash_on(store, on_change=lambda: told.append(dict(live.entries)))
    other = hash_on(store)
    await live.ready()
    assert told == []
    await live.set("a", b"1")
    await live.set("a", b"1")
    assert told == [{"a": b"1"}]
    await listening(backend, 1)
    await other.set("b", b"2")
    await eventually(lambda: len(told) == 2)
    await live.remove("no such field")
    assert told == [{"a": b"1"}, {"a": b"1", "b": b"2"}]
    await live.close()
    await other.close()


@only(native)
async def test_the_first_read_is_one_round_trip_for_all_and_is_made_again_after_a_close(store: Store):
    writer = hash_on(store)
    await writer.set("a", b"1")
    await writer.close()
    live = hash_on(store)
    before = store.counts.commands
    await asyncio.gather(*(live.ready() for _ in range(10)))
    assert live.entries == {"a": b"1"}
    assert store.counts.commands == before + 1
    await live.close()
    await writer.set("b", b"2")
    await writer.close()
    await live.ready()
    assert live.entries == {"a": b"1", "b": b"2"}
    await live.close()


@only(native)
async def test_closing_leaves_no_task_and_no_subscription(backend: Backend, store: Store):
    before = asyncio.all_tasks()
    live = hash_on(store)
    await live.ready()
    await listening(backend, 1)
    await live.close()
    await live.close()
    await eventually(lambda: backend.subscribers(KEYS.live_channel("test")) == 0)
    await eventually(lambda: asyncio.all_tasks() - before == set())
