"""Life: what a store says of itself, its clock, its end, and many tasks at once, the same over every connection."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta

import pytest

from counterseal.core.clock import SystemClock
from counterseal.core.errors import StoreUnavailable
from counterseal.core.settings import Settings
from counterseal.store.base import Store
from counterseal.store.open import open_store
from counterseal.store.scripts import parse_script
from support.backends import Backend
from support.waiting import eventually

TTL = ("PX", 60_000)
NAP = parse_script(
    "nap",
    """-- nap: returns what it is given
-- keys: key
-- args: text
-- returns: the text
-- ttl: none
return ARGV[1]
""",
)


class WrongClock(SystemClock):
    """A machine whose wall clock is a day ahead."""

    def wall_ms(self) -> int:
        return super().wall_ms() + 86_400_000


# -- what it says of itself ------------------------------------------------------------------------------------------


async def test_a_store_tells_what_answers_at_the_other_end(backend: Backend, store: Store):
    text: bytes = backend.nodes[0].execute("INFO", "server")
    said = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    product = "valkey" if "valkey_version" in said else "redis"
    version = tuple(int(part) for part in said[f"{product}_version"].split("."))
    server = store.server
    assert (server.product, server.version, server.mode) == (product, version, backend.mode)


async def test_a_store_tells_its_kind_and_where_it_is_but_no_secret(backend: Backend, store: Store):
    assert store.kind == backend.kind
    assert "://" in store.description
    settings = Settings.load(backend.variables)
    for shown in (store.description, repr(store), str(store), repr(settings), repr(vars(store))):
        assert not any(secret in shown for secret in backend.secrets)


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("redis://app:{0}@127.0.0.1:7000/3", "redis://127.0.0.1:7000/3"),
        ("redis://:{0}@[::1]:7000", "redis://[::1]:7000/0"),
        ("rediss://app:{0}@redis.example:7000", "rediss://redis.example:7000/0"),
        ("unix://app:{0}@/run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        (
            "redis+sentinel://app:{0}@127.0.0.1:7000,127.0.0.1:7001/main/4?sentinel_password={1}",
            "redis+sentinel://127.0.0.1:7000,127.0.0.1:7001/main/4",
        ),
        (
            "redis+cluster://app:{0}@127.0.0.1:7000,127.0.0.1:7001",
            "redis+cluster://127.0.0.1:7000,127.0.0.1:7001",
        ),
    ],
)
async def test_a_url_is_described_without_user_and_password(url: str, description: str):
    words = [secrets.token_urlsafe(12), secrets.token_urlsafe(12)]
    store = open_store(Settings.load({"REDIS_URL": url.format(*words)}))
    assert store.description == description
    assert not any(word in f"{store!r} {vars(store)}" for word in words)


async def test_a_store_is_available_while_it_is_open(backend: Backend):
    store = backend.store()
    assert not store.available
    async with store:
        assert store.available
    assert not store.available


async def test_opening_twice_changes_nothing(backend: Backend, store: Store):
    connections = sum(clients(backend))
    await store.open()
    assert await store.command("ECHO", "x") == b"x"
    assert sum(clients(backend)) == connections


# -- its clock -------------------------------------------------------------------------------------------------------


async def test_a_stores_time_is_the_servers_whatever_the_machine_believes(backend: Backend):
    async with backend.store(clock=WrongClock()) as store:
        before = backend.server_ms()
        seen = store.now_ms()
        after = backend.server_ms()
        assert before - 100 <= seen <= after + 100
        assert store.now_ms() >= seen


# -- its end ---------------------------------------------------------------------------------------------------------


async def test_closing_twice_is_safe_and_calls_afterwards_are_unavailable(backend: Backend):
    before = asyncio.all_tasks()
    store = backend.store()
    await store.open()
    await store.command("ECHO", "x")
    await store.close()
    await store.close()
    await refuses_everything(store)
    assert asyncio.all_tasks() - before == set()


async def test_a_store_that_was_never_opened_is_unavailable(backend: Backend):
    store = backend.store()
    await refuses_everything(store)
    await store.close()


async def test_a_closed_store_can_be_opened_again(backend: Backend):
    store = backend.store()
    for word in ("first", "second"):
        async with store:
            assert await store.command("ECHO", word) == word.encode()
            async with store.subscribe("channel"):
                pass


async def test_opening_and_closing_at_the_same_time_leaves_nothing_behind(backend: Backend):
    before = asyncio.all_tasks()
    opened = backend.store()
    opens = [asyncio.create_task(opened.open()) for _ in range(3)]
    await asyncio.sleep(0)
    await opened.close()
    await asyncio.gather(*opens)
    await opened.close()
    await eventually(lambda: asyncio.all_tasks() - before == set())
    await refuses_everything(opened)


async def test_closing_ends_what_is_under_way_and_lets_the_connections_go(backend: Backend):
    idle = clients(backend)
    store = backend.store()
    await store.open()
    calls = [asyncio.ensure_future(store.command("ECHO", f"{number}")) for number in range(20)]
    calls.append(asyncio.ensure_future(store.run(NAP, key="key", text="x")))
    await store.close()
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, (bytes, StoreUnavailable)) for outcome in outcomes)
    await eventually(lambda: clients(backend) == idle)


async def refuses_everything(store: Store) -> None:
    with pytest.raises(StoreUnavailable):
        await store.command("ECHO", "x")
    with pytest.raises(StoreUnavailable):
        await store.command("GET", "key")
    with pytest.raises(StoreUnavailable):
        await store.pipeline([("ECHO", "x")])
    with pytest.raises(StoreUnavailable):
        await store.transaction([("ECHO", "x")])
    with pytest.raises(StoreUnavailable):
        await store.run(NAP, key="key", text="x")
    if store.kind != "rest":
        with pytest.raises(StoreUnavailable):
            await store.block("BLPOP", "list", 0.01, timeout=timedelta(seconds=1))
    with pytest.raises(StoreUnavailable):
        async with store.subscribe("channel"):
            pass


def clients(backend: Backend) -> list[int]:
    """How many connections each server has from anybody but the kit and the other servers."""
    counts: list[int] = []
    for node in backend.nodes:
        lines: bytes = node.execute("CLIENT", "LIST")
        counts.append(sum(b" name=counterseal" in line for line in lines.splitlines()))
    return counts


# -- many tasks ------------------------------------------------------------------------------------------------------


async def test_a_thousand_tasks_each_see_their_own_value(store: Store):
    async def own(number: int) -> None:
        key, value = f"key {number}", f"value of {number}".encode()
        assert await store.command("SET", key, value, *TTL) == b"OK"
        assert await store.command("GET", key) == value
        assert await store.pipeline([("STRLEN", key), ("GET", key)]) == [len(value), value]

    await asyncio.gather(*(own(number) for number in range(1000)))


async def test_what_tasks_issue_in_one_turn_leaves_together(store: Store):
    await store.command("ECHO", "x")
    before = store.counts.batches
    replies = await asyncio.gather(*(store.command("ECHO", f"{number}") for number in range(100)))
    assert replies == [b"%d" % number for number in range(100)]
    assert store.counts.batches - before == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_a_cancelled_task_never_moves_anothers_reply(store: Store, turns: int):
    async def own(number: int) -> None:
        assert await store.command("ECHO", f"{number}") == b"%d" % number
        assert await store.pipeline([("ECHO", f"{number}"), ("ECHO", "x")]) == [b"%d" % number, b"x"]
        assert await store.transaction([("ECHO", f"{number}")]) == [b"%d" % number]
        assert await store.run(NAP, key="key", text=f"{number}") == b"%d" % number

    tasks = [asyncio.create_task(own(number)) for number in range(30)]
    for _ in range(turns):
        await asyncio.sleep(0)
    victims = {task for task in tasks[::3] if task.cancel()}
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for task, outcome in zip(tasks, outcomes, strict=True):
        assert (type(outcome) is asyncio.CancelledError) == (task in victims)
        assert outcome is None or task in victims, outcome
    await asyncio.gather(*(own(number) for number in range(20)))
