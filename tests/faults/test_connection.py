"""A shared connection under every fault: nobody ever gets another's reply, and everything works again afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from counterseal.core.errors import (
    CommandError,
    ReplyTooLarge,
    StoreBusy,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from counterseal.store.breaker import BreakerPolicy
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.scripts import parse_script
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.relay import Relay
from support.servers import Server
from support.waiting import eventually

PATIENT = LinkOptions(command_timeout=timedelta(seconds=5), connect_timeout=timedelta(seconds=5))
QUICK_BREAKER = BreakerPolicy(first_wait=timedelta(milliseconds=50), longest_wait=timedelta(milliseconds=100))
LENGTH = parse_script(
    "length",
    """-- length: of a value
-- keys: key
-- args: none
-- returns: bytes
-- ttl: none
return redis.call('STRLEN', KEYS[1])
""",
)
pytestmark = pytest.mark.every_loop


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


@asynccontextmanager
async def connected(url: str, options: LinkOptions = PATIENT) -> AsyncIterator[NativeStore]:
    async with NativeStore(FixedRoute(parse_redis_url(url).template), options) as store:
        yield store


async def own_value(store: NativeStore, name: str) -> None:
    """Write and read a value of one's own; a reply that belongs to somebody else shows at once."""
    assert await store.command("SET", name, f"of {name}", "PX", 60_000) == b"OK"
    assert await store.command("GET", name) == f"of {name}".encode()


async def test_what_is_issued_in_one_turn_leaves_in_one_write(shared: Server):
    async with Relay(shared) as relay, connected(relay.url) as store:
        before = relay.segments_in
        replies = await asyncio.gather(*(store.command("ECHO", f"{number}") for number in range(100)))
        assert replies == [f"{number}".encode() for number in range(100)]
        assert relay.segments_in - before == 1
        assert store.counts.batches <= 4


@pytest.mark.parametrize("turns", range(8))
async def test_a_task_cancelled_at_any_await_moves_nobody_elses_reply(shared: Server, turns: int):
    async with connected(shared.url) as store:

        async def block() -> object:
            return await store.block("BLPOP", "nothing", 1, timeout=timedelta(seconds=2))

        async def listen() -> None:
            async with store.subscribe("channel") as messages:
                await anything(messages)

        calls = [
            lambda: store.command("ECHO", "mine"),
            lambda: store.pipeline([("ECHO", "mine")] * 3),
            lambda: store.transaction([("ECHO", "mine")] * 3),
            lambda: store.run(LENGTH, key="mine"),
            block,
            listen,
        ]
        for call in calls:

            async def issue(call=call) -> object:
                return await call()

            others = [asyncio.create_task(own_value(store, f"before-{number}")) for number in range(5)]
            victim = asyncio.create_task(issue())
            others += [asyncio.create_task(own_value(store, f"after-{number}")) for number in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            victim.cancel()
            await asyncio.gather(victim, return_exceptions=True)
            await asyncio.gather(*others)
        await own_value(store, "at the end")


async def write_on(store: NativeStore) -> None:
    while True:
        await store.command("SET", "key", 1, "PX", 60_000)


async def anything(messages: AsyncIterator[object]) -> None:
    await anext(messages)


async def test_a_cancelled_calls_reply_is_dropped_when_it_comes_late(shared: Server):
    async with Relay(shared) as relay, connected(relay.url) as store:
        relay.hold()
        victims = [asyncio.create_task(own_value(store, f"victim-{number}")) for number in range(3)]
        survivor = asyncio.create_task(own_value(store, "survivor"))
        await eventually(lambda: relay.bytes_in > 0 and store.counts.batches > 0)
        for victim in victims:
            victim.cancel()
        await asyncio.gather(*victims, return_exceptions=True)
        relay.release()
        await survivor


async def test_a_frozen_server_costs_three_time_outs_then_nothing_until_it_is_back():
    options = LinkOptions(breaker=QUICK_BREAKER, connect_timeout=timedelta(seconds=5))
    with Server() as server:
        async with connected(server.url, options) as store:
            await own_value(store, "before")
            server.freeze()
            for _ in range(3):
                started = time.monotonic()
                with pytest.raises(StoreTimeout, match="within 50 ms"):
                    await store.command("GET", "before")
                assert time.monotonic() - started < 1
            assert not store.available
            with pytest.raises(StoreUnavailable, match="refused until"):
                store.command("GET", "before")  # raised by the call itself: nothing is waited for
            server.thaw()
            await eventually(lambda: store.available)
            await own_value(store, "after")


async def test_a_reply_that_comes_after_its_time_out_is_nobody_elses(shared: Server):
    options = replace(PATIENT, command_timeout=timedelta(milliseconds=50))
    async with Relay(shared) as relay, connected(relay.url, options) as store:
        await store.command("SET", "late", "of late", "PX", 60_000)
        relay.hold()
        with pytest.raises(StoreTimeout):
            await store.command("GET", "late")
        relay.release()
        store.link.breaker.close()
        await own_value(store, "next")


async def test_an_event_loop_that_stood_still_fails_no_call_and_no_breaker(shared: Server):
    options = LinkOptions(connect_timeout=timedelta(seconds=5))
    async with connected(shared.url, options) as store:
        for _ in range(4):
            before = store.counts.batches
            calls = [asyncio.ensure_future(store.command("ECHO", f"{number}")) for number in range(50)]
            while store.counts.batches == before:
                await asyncio.sleep(0)
            time.sleep(0.2)  # noqa: ASYNC251 - the loop stands still while the replies wait in the socket
            assert await asyncio.gather(*calls) == [f"{number}".encode() for number in range(50)]
        assert (store.counts.timeouts, store.link.breaker.opened, store.counts.reconnects) == (0, 0, 0)


async def test_too_large_a_reply_fails_its_caller_and_the_connection_comes_back(shared: Server):
    options = replace(PATIENT, max_reply_bytes=2**18)
    async with connected(shared.url, options) as store:
        await store.command("SET", "big", "x" * 2**22, "PX", 60_000)
        outcomes = await asyncio.gather(
            store.command("GET", "big"),
            *(store.command("ECHO", "x") for _ in range(3)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [ReplyTooLarge] + [StoreUnavailable] * 3
        await eventually(lambda: store.available)
        await own_value(store, "after")
        assert store.counts.bytes_in < 2**20


async def test_a_server_killed_under_load_fails_what_is_under_way_and_works_again_after_its_restart():
    with Server() as server:
        async with connected(server.url) as store:
            failures = 0
            done = 0
            stop = asyncio.Event()

            async def work(name: str) -> None:
                nonlocal failures, done
                while not stop.is_set():
                    try:
                        await own_value(store, name)
                        done += 1
                    except StoreUnavailable:
                        failures += 1
                        await asyncio.sleep(0)

            workers = [asyncio.create_task(work(f"worker-{number}")) for number in range(20)]
            for _ in range(3):
                reached = done
                await eventually(lambda reached=reached: done > reached + 200)
                server.kill()
                failed = failures
                await eventually(lambda failed=failed: failures > failed)
                server.start()
                await eventually(lambda: store.available)
            reached = done
            await eventually(lambda: done > reached + 200)
            stop.set()
            await asyncio.gather(*workers)
            assert store.counts.reconnects == 3


@pytest.mark.parametrize("count", [1, 4, 5, 17, 40, 41, 399])
async def test_a_connection_cut_in_the_middle_of_a_reply_gives_no_wrong_one(shared: Server, count: int):
    async with Relay(shared) as relay, connected(relay.url) as store:
        relay.cut_after(count)
        outcomes = await asyncio.gather(
            *(store.command("ECHO", f"value {number}") for number in range(50)), return_exceptions=True
        )
        answered = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        assert answered == [f"value {number}".encode() for number in range(len(answered))]
        sizes = [len(f"$7\r\nvalue {number}\r\n") for number in range(50)]
        assert sum(sizes[: len(answered)]) <= count < sum(sizes[: len(answered) + 1])
        assert all(type(outcome) is StoreUnavailable for outcome in outcomes[len(answered) :])
        await eventually(lambda: store.available)
        await own_value(store, "after")


async def test_an_idle_connection_that_was_closed_is_replaced_before_it_is_needed(shared: Server):
    async with connected(shared.url) as store:
        shared.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually(lambda: store.counts.reconnects == 1)
        await own_value(store, "after")


async def test_a_forgotten_script_is_sent_again_once(shared: Server):
    async with connected(shared.url) as store:
        await store.command("SET", "text", "four", "PX", 60_000)
        shared.execute("SCRIPT", "FLUSH", "SYNC")
        for commands in (2, 1):
            before = store.counts.commands
            assert await store.run(LENGTH, key="text") == 4
            assert store.counts.commands - before == commands


async def test_pushes_of_the_server_do_not_shift_replies(shared: Server):
    async with connected(shared.url) as store:
        await store.link.send(("HELLO", "3"))
        await store.link.send(("CLIENT", "TRACKING", "ON", "BCAST"))
        for number in range(20):
            shared.execute("SET", "watched", number, "PX", 60_000)
            await own_value(store, f"own-{number}")


async def test_callers_wait_for_room_when_too_much_is_under_way(shared: Server):
    options = replace(PATIENT, max_inflight_bytes=2**16)
    async with Relay(shared) as relay, connected(relay.url, options) as store:
        relay.hold()
        calls = [asyncio.create_task(own_value(store, f"{number}" + "x" * 2**14)) for number in range(40)]
        await eventually(lambda: relay.bytes_in >= 2**16)
        assert store.counts.bytes_out < 2**17
        relay.release()
        await asyncio.gather(*calls)


async def test_who_waits_for_room_in_vain_is_told_that_nothing_was_sent(shared: Server):
    options = replace(PATIENT, max_inflight_bytes=2**16, command_timeout=timedelta(milliseconds=200))
    async with Relay(shared) as relay, connected(relay.url, options) as store:
        relay.hold()
        first = [asyncio.ensure_future(store.command("ECHO", "x" * 2**14)) for _ in range(4)]
        with pytest.raises(StoreBusy, match="nothing was sent"):
            await store.command("SET", "never", 1)
        await asyncio.gather(*first, return_exceptions=True)
        relay.release()
    assert shared.execute("EXISTS", "never") == 0


async def test_room_that_was_granted_to_a_cancelled_caller_goes_to_the_next(shared: Server):
    options = replace(PATIENT, max_inflight_bytes=2**16)
    async with Relay(shared) as relay, connected(relay.url, options) as store:
        relay.hold()
        big = [asyncio.ensure_future(store.command("ECHO", "x" * 2**16))]
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(own_value(store, f"{number}" + "y" * 2**16)) for number in range(4)]
        await eventually(lambda: relay.bytes_in >= 2**16)
        granting = asyncio.get_running_loop().create_future()
        big[0].add_done_callback(lambda _: granting.set_result(None))
        relay.release()
        await granting
        waiting[0].cancel()  # in the turn in which the room was granted to it, or before
        await asyncio.gather(*waiting[1:], *big)


async def test_callers_who_wait_for_room_outlive_an_event_loop_that_stood_still(shared: Server):
    options = replace(PATIENT, max_inflight_bytes=2**16, command_timeout=timedelta(milliseconds=100))
    async with connected(shared.url, options) as store:
        calls = [asyncio.ensure_future(store.command("ECHO", "x" * 2**15)) for _ in range(8)]
        before = store.counts.batches
        while store.counts.batches == before:
            await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - the loop stands still while the replies wait in the socket
        assert [len(reply) for reply in await asyncio.gather(*calls)] == [2**15] * 8


async def test_a_silent_connection_that_is_full_is_found_out_all_the_same():
    options = LinkOptions(
        max_inflight_bytes=2**16, connect_timeout=timedelta(seconds=5), breaker=QUICK_BREAKER
    )
    with Server() as server:
        async with connected(server.url, options) as store:
            server.freeze()
            with pytest.raises(StoreTimeout):
                await store.command("SET", "big", "x" * 2**17, "PX", 60_000)

            async def refused() -> bool:
                with pytest.raises(StoreUnavailable):
                    await store.command("GET", "big")
                return store.counts.failures > 0

            await eventually(refused)
            assert store.link.breaker.opened > 0
            server.thaw()
            await eventually(lambda: store.available)
            await own_value(store, "after")


async def test_many_small_replies_are_not_taken_for_one_too_large(shared: Server):
    options = replace(PATIENT, max_reply_bytes=2**16)
    async with connected(shared.url, options) as store:
        await store.command("SET", "small", "x" * 100, "PX", 60_000)
        replies = await asyncio.gather(*(store.command("GET", "small") for _ in range(4000)))
        assert set(replies) == {b"x" * 100}


async def test_a_dead_server_is_dialled_less_and_less_often():
    with Server() as server:
        async with connected(server.url) as store:
            await eventually(lambda: asyncio.get_running_loop().time() - store.link._connected_at > 1.05)
            attempts = 0
            dial = store.link._dial

            async def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal attempts
                attempts += 1
                return await dial(*arguments, **options)

            store.link._dial = counted
            server.kill()
            await eventually(lambda: not store.available)
            gone = asyncio.get_running_loop().time()
            await eventually(lambda: asyncio.get_running_loop().time() - gone > 2)
            assert 2 <= attempts <= 20  # full jitter from 50 ms, doubling: about 7
            server.start()
            await eventually(lambda: store.available)


async def test_a_store_that_was_closed_with_its_breaker_open_can_be_opened_again():
    options = LinkOptions(connect_timeout=timedelta(seconds=5))
    with Server() as server:
        store = NativeStore(FixedRoute(parse_redis_url(server.url).template), options)
        async with store:
            server.freeze()
            for _ in range(3):
                with pytest.raises(StoreTimeout):
                    await store.command("GET", "x")
            assert not store.available
        server.thaw()
        async with store:
            await own_value(store, "after")


async def test_a_blocking_call_ends_with_its_store(shared: Server):
    async with connected(shared.url) as store:
        call = asyncio.create_task(store.block("BLPOP", "nothing", 30, timeout=timedelta(seconds=31)))
        await eventually(lambda: b"cmd=blpop" in shared.execute("CLIENT", "LIST"))
    with pytest.raises(StoreUnavailable, match="closed"):
        await call


async def test_opening_and_closing_at_once_leaves_nothing_behind(shared: Server):
    before = asyncio.all_tasks()
    store = NativeStore(FixedRoute(parse_redis_url(shared.url).template), PATIENT)
    opens = [asyncio.create_task(store.open()) for _ in range(3)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*opens)
    await store.close()
    assert asyncio.all_tasks() - before == set()
    await eventually(lambda: b"name=counterseal" not in shared.execute("CLIENT", "LIST"))


async def test_pipelines_and_transactions_notice_a_replica_too():
    for call in ("pipeline", "transaction"):
        with Server() as other, Server() as server:
            async with connected(server.url) as store:
                server.execute("REPLICAOF", "127.0.0.1", other.port)
                with suppress(StoreUnavailable):
                    await getattr(store, call)([("SET", "key", 1, "PX", 60_000)])
                await eventually(lambda store=store: not store.available)


async def test_a_server_that_still_loads_is_unavailable_and_not_wrong(shared: Server):
    async with connected(shared.url) as store:
        script = asyncio.create_task(
            store.block("EVAL", "while true do end", 0, timeout=timedelta(seconds=20))
        )
        await eventually(lambda: store.counts.commands > 0)

        async def busy() -> bool:
            try:
                await store.command("GET", "x")
            except StoreUnavailable as error:
                return "BUSY" in str(error)
            return False

        shared.execute("CONFIG", "SET", "busy-reply-threshold", 1)
        await eventually(busy)
        (item,) = await store.pipeline([("GET", "x")])
        assert isinstance(item, CommandError)
        assert item.kind == "BUSY"
        with pytest.raises(StoreUnavailable, match="BUSY"):
            await store.transaction([("GET", "x")])
        shared.execute("SCRIPT", "KILL")
        with pytest.raises(CommandError):
            await script
        await own_value(store, "after")


async def test_a_failing_command_leaves_its_neighbours_alone(shared: Server):
    async with connected(shared.url) as store:
        await store.command("SET", "text", "x", "PX", 60_000)
        good, bad, last = await store.pipeline([("GET", "text"), ("INCR", "text"), ("GET", "text")])
        assert (good, last) == (b"x", b"x")
        assert isinstance(bad, CommandError)
        with pytest.raises(CommandError, match="not an integer"):
            await store.command("INCR", "text")


async def test_a_primary_that_becomes_a_replica_is_left_until_it_takes_writes_again():
    with Server() as other, Server() as server:
        async with connected(server.url) as store:
            server.execute("REPLICAOF", "127.0.0.1", other.port)
            with pytest.raises(StoreError):
                await write_on(store)
            await eventually(lambda: not store.available)
            server.execute("REPLICAOF", "NO", "ONE")
            await eventually(lambda: store.available)
            await own_value(store, "after")


async def test_what_does_not_speak_the_protocol_is_called_so():
    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(chatter, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(StoreUnavailable, match="not its protocol"):
            async with connected(f"redis://127.0.0.1:{port}"):
                pass


async def test_closing_fails_what_is_under_way_and_leaves_no_task(shared: Server):
    before = asyncio.all_tasks()
    async with Relay(shared) as relay:
        async with connected(relay.url) as store:
            relay.hold()
            call = asyncio.ensure_future(store.command("GET", "x"))
            await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="closed"):
            await call
        with pytest.raises(StoreUnavailable, match="closed"):
            store.command("GET", "x")
        await store.close()
    assert asyncio.all_tasks() - before == set()
