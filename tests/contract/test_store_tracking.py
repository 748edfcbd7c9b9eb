"""Tracking: the server tells of every changed key below a prefix, the same over every connection that can have it."""

from __future__ import annotations

import asyncio

import pytest

from counterseal.core.errors import CommandError, StoreUnavailable
from counterseal.store.base import Store
from support.backends import Backend, all_but, cluster, native, only, rest
from support.waiting import eventually

TTL = ("EX", 60)


class Heard:
    """What was told, in order: keys, None for everything, and "LOST"."""

    def __init__(self) -> None:
        self.told: list[str | None] = []

    def on_loss(self) -> None:
        self.told.append("LOST")

    def track(self, store: Store, *prefixes: str):
        return store.track(*prefixes, on_change=self.told.append, on_loss=self.on_loss)


@all_but(cluster, rest)
async def test_every_changed_key_below_a_prefix_is_told_and_no_other(store: Store):
    heard = Heard()
    async with heard.track(store, "a:", "b:"):
        for key in ("a:1", "c:1", "b:1", "a", "a:", "a:😀"):
            await store.command("SET", key, "x", *TTL)
        await store.command("HSET", "b:hash", "field", "x")
        await store.command("EXPIRE", "b:hash", 60)
        await store.command("GET", "a:1")
        await store.command("DEL", "a:1")
        await store.command("DEL", "a:none")
        await eventually(lambda: heard.told[-1:] == ["a:1"] and len(heard.told) > 5)
    # A change that is told again (EXPIRE) is one more; nothing is told of reads and of what was not there.
    assert list(dict.fromkeys(heard.told)) == ["a:1", "b:1", "a:", "a:😀", "b:hash"]
    assert heard.told[-1] == "a:1"


@all_but(cluster, rest)
async def test_what_another_store_changes_is_told_too(backend: Backend, store: Store):
    heard = Heard()
    async with backend.store() as other, heard.track(store, "a:"):
        await other.transaction([("SET", f"a:{number}", "x", *TTL) for number in range(100)])
        await eventually(lambda: len(heard.told) >= 100)
    # The server sorts what changes in one turn of its loop.
    assert sorted(map(str, heard.told)) == sorted(f"a:{number}" for number in range(100))


@all_but(cluster, rest)
async def test_a_key_that_expires_is_told(store: Store):
    heard = Heard()
    async with heard.track(store, "a:"):
        await store.command("SET", "a:1", "x", "PX", 20)
        await eventually(lambda: heard.told.count("a:1") == 2)


@all_but(cluster, rest)
async def test_emptying_the_server_is_told_as_a_change_of_everything(backend: Backend, store: Store):
    heard = Heard()
    async with heard.track(store, "a:"):
        for command in ("FLUSHALL", "FLUSHDB"):
            heard.told.clear()
            backend.nodes[0].execute(command)
            await eventually(lambda: heard.told == [None])


@all_but(cluster, rest)
async def test_two_that_track_hear_each_of_its_own_prefixes_until_they_leave(store: Store):
    one, two = Heard(), Heard()
    async with one.track(store, "a:", "a:b"):
        async with two.track(store, "b:"):
            await store.command("SET", "a:b", "x", *TTL)
            await store.command("SET", "b:1", "x", *TTL)
            await eventually(lambda: one.told == ["a:b"] and two.told == ["b:1"])
        await store.command("SET", "b:1", "x", *TTL)
        await store.command("SET", "a:1", "x", *TTL)
        await eventually(lambda: one.told == ["a:b", "a:1"])
    assert two.told == ["b:1"]


@all_but(cluster, rest)
async def test_closing_the_store_is_a_loss_and_leaves_nothing_behind(backend: Backend):
    before = asyncio.all_tasks()
    heard = Heard()
    async with backend.store() as store, heard.track(store, "a:"):
        await store.close()
        assert heard.told == ["LOST"]
    assert heard.told == ["LOST"]
    await eventually(lambda: asyncio.all_tasks() - before == set())
    await eventually(lambda: tracking_clients(backend) == [])


def tracking_clients(backend: Backend) -> list[str]:
    return [
        line
        for node in backend.nodes
        for line in node.execute("CLIENT", "LIST").decode().splitlines()
        if "B" in dict(part.split("=", 1) for part in line.split(" "))["flags"]
    ]


@all_but(cluster, rest)
async def test_leaving_ends_the_connection_without_a_loss(backend: Backend, store: Store):
    heard = Heard()
    async with heard.track(store, "a:"):
        assert len(tracking_clients(backend)) == 1
    await eventually(lambda: tracking_clients(backend) == [])
    assert heard.told == []


@only(cluster, rest)
async def test_where_the_server_can_not_tell_it_is_said_at_once(store: Store):
    with pytest.raises(CommandError, match="keys"):
        async with Heard().track(store, "a:"):
            pass


@only(native)
async def test_a_store_that_is_not_open_tells_nothing(backend: Backend):
    store = backend.store()
    with pytest.raises(StoreUnavailable):
        async with Heard().track(store, "a:"):
            pass
    with pytest.raises(ValueError, match="at least one prefix"):
        Heard().track(store)
