"""Calls: pipelines, transactions, scripts, blocking commands, and what is refused, the same over every connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from counterseal.core.errors import (
    CommandError,
    ScriptMissing,
    StoreTimeout,
    TransactionAborted,
)
from counterseal.store.base import Store
from counterseal.store.scripts import parse_script
from counterseal.store.wire import Command, Reply
from support.backends import Backend, acl_user, all_but, only, rest
from support.waiting import eventually

TTL = ("PX", 60_000)
LONG = timedelta(seconds=10)

APPEND = parse_script(
    "append",
    """-- append: puts a text and more after each of two lists
-- keys: first others...
-- args: text more...
-- returns: the lengths of the lists
-- ttl: the lists by 60 s
local lengths = {}
for place, key in ipairs(KEYS) do
    lengths[place] = redis.call('RPUSH', key, unpack(ARGV))
    redis.call('PEXPIRE', key, 60000)
end
return lengths
""",
)
FAIL = parse_script(
    "fail",
    """-- fail: sets a key, then fails
-- keys: key
-- args: how
-- returns: nothing
-- ttl: key by 60 s
redis.call('SET', KEYS[1], 'set', 'PX', 60000)
if ARGV[1] == 'reply' then return redis.error_reply('MINE it broke') end
if ARGV[1] == 'command' then return redis.call('INCR', KEYS[1]) end
error('thrown')
""",
)

FAILURES = (("reply", "MINE", "it broke"), ("command", "ERR", "not an integer"), ("", "ERR", "thrown"))

# -- pipelines -------------------------------------------------------------------------------------------------------


async def test_a_pipeline_answers_in_the_order_of_its_commands(store: Store):
    commands = [("SET", f"key {number}", number, *TTL) for number in range(50)]
    assert await store.pipeline(commands) == [b"OK"] * 50
    reads = [("GET", f"key {number}") for number in reversed(range(50))]
    assert await store.pipeline(reads) == [str(number).encode() for number in reversed(range(50))]


async def test_a_pipeline_runs_in_the_order_of_its_commands(store: Store):
    commands: list[Command] = [
        ("SET", "key", 1, *TTL),
        ("INCR", "key"),
        ("GET", "key"),
        ("DEL", "key"),
        ("GET", "key"),
    ]
    assert await store.pipeline(commands) == [b"OK", 2, b"2", 1, None]


async def test_a_failing_command_leaves_its_error_in_its_place(store: Store):
    await store.command("SET", "text", "words", *TTL)
    replies = await store.pipeline(
        [
            ("GET", "text"),
            ("INCR", "text"),
            ("LPUSH", "text", 1),
            ("NOSUCH", "text"),
            ("GET",),
            ("STRLEN", "text"),
        ]
    )
    assert (replies[0], replies[-1]) == (b"words", 5)
    errors = replies[1:-1]
    assert [error.kind for error in errors if isinstance(error, CommandError)] == [
        "ERR",
        "WRONGTYPE",
        "ERR",
        "ERR",
    ]
    assert "not an integer" in str(errors[0])


async def test_a_pipeline_of_one_failing_command_raises_nothing(store: Store):
    await store.command("SET", "text", "words", *TTL)
    (reply,) = await store.pipeline([("INCR", "text")])
    assert isinstance(reply, CommandError)


async def test_an_empty_pipeline_or_transaction_answers_nothing(store: Store):
    assert await store.pipeline([]) == []
    assert await store.transaction([]) == []


async def test_a_pipeline_may_be_long(store: Store):
    replies = await store.pipeline([("ECHO", f"{number}") for number in range(1001)])
    assert replies == [str(number).encode() for number in range(1001)]


async def test_a_command_that_the_server_refuses_raises_its_error(store: Store):
    await store.command("SET", "text", "words", *TTL)
    for command, kind in (
        (("LPUSH", "text", 1), "WRONGTYPE"),
        (("NOSUCH", "text"), "ERR"),
        (("GET",), "ERR"),
    ):
        with pytest.raises(CommandError) as caught:
            await store.command(*command)
        assert caught.value.kind == kind


# -- transactions ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def five(backend: Backend) -> AsyncIterator[list[Store]]:
    """Five stores on one backend, as five processes would have."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(backend.store()) for _ in range(5)]


async def test_transactions_of_fifty_clients_do_not_mix(five: list[Store]):
    async def count(store: Store) -> list[Reply]:
        return [
            await store.transaction(
                [("INCR", "{t}a"), ("ECHO", "x"), ("INCR", "{t}b"), ("MGET", "{t}a", "{t}b")]
            )
            for _ in range(4)
        ]

    outcomes = await asyncio.gather(*(count(store) for store in five for _ in range(10)))
    seen: list[int] = []
    for first, _, second, both in (reply for outcome in outcomes for reply in outcome):
        assert first == second
        assert both == [b"%d" % first, b"%d" % first]
        seen.append(first)
    assert sorted(seen) == list(range(1, 201))
    await five[0].command("DEL", "{t}a", "{t}b")


async def test_a_command_that_fails_in_a_transaction_leaves_the_others_standing(store: Store):
    first, error, last = await store.transaction(
        [("SET", "{t}text", "words", *TTL), ("INCR", "{t}text"), ("APPEND", "{t}text", "!")]
    )
    assert (first, last) == (b"OK", 6)
    assert isinstance(error, CommandError)
    assert "not an integer" in str(error)
    assert await store.command("GET", "{t}text") == b"words!"


async def test_a_transaction_with_a_command_that_is_no_command_does_nothing_and_says_which(store: Store):
    with pytest.raises(TransactionAborted, match="NOSUCH"):
        await store.transaction([("SET", "{t}text", 1, *TTL), ("NOSUCH", "{t}text"), ("GET",)])
    with pytest.raises(TransactionAborted, match="wrong number of arguments"):
        await store.transaction([("SET", "{t}text", 1, *TTL), ("GET", "{t}text", 1, 2)])
    assert await store.command("EXISTS", "{t}text") == 0
    assert await store.transaction([("SET", "{t}text", 1, *TTL), ("GET", "{t}text")]) == [b"OK", b"1"]


# -- scripts ---------------------------------------------------------------------------------------------------------


async def test_a_script_takes_keys_and_arguments_by_name(store: Store):
    first = await store.run(APPEND, text="one", more=["two", 3], first="{s}a", others=["{s}b", "{s}c"])
    assert first == [3, 3, 3]
    assert await store.run(APPEND, first="{s}a", others=[], text="four", more=[]) == [4]
    assert await store.command("LRANGE", "{s}a", 0, -1) == [b"one", b"two", b"3", b"four"]


async def test_a_script_takes_text_and_bytes_of_any_kind(store: Store):
    for sent in (b"\xff\xfe\x00", b"\r\n", "😀\x00".encode()):
        assert await store.run(APPEND, first="{s}a", others=[], text=sent, more=[]) == [1]
        assert await store.command("LPOP", "{s}a") == sent


async def test_a_script_that_the_server_forgot_is_sent_again(backend: Backend, store: Store):
    for _ in range(2):
        backend.forget_scripts()
        with pytest.raises(ScriptMissing):
            await store.command("EVALSHA", APPEND.sha, 1, "{s}a", "x")
        replies = await asyncio.gather(
            *(store.run(APPEND, first=f"{{s}}{number}", others=[], text="x", more=[]) for number in range(20))
        )
        assert replies == [[1]] * 20
        assert await store.command("EVALSHA", APPEND.sha, 1, "{s}0", "x") == [2]
        await store.command("UNLINK", *(f"{{s}}{number}" for number in range(20)))


async def test_a_script_that_fails_raises_the_servers_error(backend: Backend, store: Store):
    for forgotten in (True, False):
        for how, kind, words in FAILURES:
            if forgotten:
                backend.forget_scripts()
            with pytest.raises(CommandError, match=words) as caught:
                await store.run(FAIL, key="{s}a", how=how)
            assert caught.value.kind == kind
            assert not isinstance(caught.value, ScriptMissing)
    assert await store.command("GET", "{s}a") == b"set"


async def test_a_script_called_with_the_wrong_names_is_a_type_error(store: Store):
    with pytest.raises(TypeError, match="needs the argument text"):
        await store.run(APPEND, first="a", others=[], more=[])
    with pytest.raises(TypeError, match="no argument named wrong"):
        await store.run(APPEND, first="a", others=[], text="x", more=[], wrong=1)
    with pytest.raises(TypeError, match="a sequence as others"):
        await store.run(APPEND, first="a", others="b", text="x", more=[])


# -- blocking --------------------------------------------------------------------------------------------------------


@only(rest)
async def test_over_rest_no_command_may_block(store: Store):
    with pytest.raises(CommandError, match="BLPOP waits on the server, which REST can't do"):
        await store.block("BLPOP", "{b}list", 1, timeout=LONG)


@all_but(rest)
async def test_a_blocking_command_waits_for_what_others_send_and_holds_nobody_up(
    backend: Backend, store: Store
):
    waiting = [
        asyncio.create_task(store.block("BLPOP", f"{{b}}list {number}", 8, timeout=LONG))
        for number in range(10)
    ]
    await eventually(lambda: blocked(backend) == 10)
    assert await store.command("ECHO", "meanwhile") == b"meanwhile"
    assert not any(task.done() for task in waiting)
    for number in range(10):
        await store.command("RPUSH", f"{{b}}list {number}", number)
    assert await asyncio.gather(*waiting) == [
        [f"{{b}}list {number}".encode(), b"%d" % number] for number in range(10)
    ]


@all_but(rest)
async def test_a_blocking_command_that_waits_in_vain_answers_none(store: Store):
    assert await store.block("BLPOP", "{b}list", 0.02, timeout=LONG) is None
    await store.command("SET", "{b}text", 1, *TTL)
    with pytest.raises(CommandError, match="WRONGTYPE"):
        await store.block("BLPOP", "{b}text", 1, timeout=LONG)
    async with asyncio.timeout(3):
        with pytest.raises(StoreTimeout, match="50 ms"):
            await store.block("BLPOP", "{b}list", 8, timeout=timedelta(milliseconds=50))
    assert store.available


@all_but(rest)
async def test_a_cancelled_blocking_command_is_given_up_on_the_server_too(backend: Backend, store: Store):
    waiting = asyncio.create_task(store.block("BLPOP", "{b}list", 8, timeout=LONG))
    await eventually(lambda: blocked(backend) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(lambda: blocked(backend) == 0)
    assert await store.transaction([("RPUSH", "{b}list", "kept"), ("PEXPIRE", "{b}list", 60_000)]) == [1, 1]
    assert await store.command("LPOP", "{b}list") == b"kept"


def blocked(backend: Backend) -> int:
    """How many connections wait on the servers."""
    text = b"".join(node.execute("INFO", "clients") for node in backend.nodes).decode()
    return sum(int(line.split(":")[1]) for line in text.splitlines() if line.startswith("blocked_clients:"))


# -- refused ---------------------------------------------------------------------------------------------------------


STATEFUL: tuple[Command, ...] = (
    ("SELECT", 1),
    ("select", 1),
    (b"SELECT", 1),
    ("MULTI",),
    ("EXEC",),
    ("DISCARD",),
    ("WATCH", "key"),
    ("HELLO", 3),
    ("AUTH", "user", "word"),
    ("RESET",),
    ("QUIT",),
    ("SUBSCRIBE", "channel"),
    ("MONITOR",),
    ("CLIENT", "REPLY", "OFF"),
    ("client", "tracking", "on"),
)
WAITING: tuple[Command, ...] = (
    ("BLPOP", "key", 0),
    ("blmove", "a", "b", "LEFT", "LEFT", 0),
    ("WAIT", 1, 0),
    ("XREAD", "BLOCK", 0, "STREAMS", "key", "$"),
    ("XREADGROUP", "GROUP", "g", "c", "block", 0, "STREAMS", "key", ">"),
)


async def test_what_would_change_the_shared_connection_is_refused_before_anything_is_sent(store: Store):
    await store.command("PING")
    before = store.counts.bytes_out
    for command in STATEFUL:
        with pytest.raises(CommandError, match="changes the connection"):
            await store.command(*command)
        with pytest.raises(CommandError, match="changes the connection"):
            await store.pipeline([("SET", "{r}key", 1, *TTL), command])
        with pytest.raises(CommandError, match="changes the connection"):
            await store.transaction([("SET", "{r}key", 1, *TTL), command])
    assert store.counts.bytes_out == before
    assert await store.command("EXISTS", "{r}key") == 0


async def test_what_would_hold_up_the_shared_connection_is_refused_before_anything_is_sent(store: Store):
    await store.command("PING")
    before = store.counts.bytes_out
    for command in WAITING:
        with pytest.raises(CommandError, match=r"run it by block\(\)"):
            await store.command(*command)
        with pytest.raises(CommandError, match=r"run it by block\(\)"):
            await store.pipeline([("SET", "{r}key", 1, *TTL), command])
    assert store.counts.bytes_out == before
    assert await store.command("EXISTS", "{r}key") == 0


async def test_in_a_transaction_a_command_that_would_wait_does_not(store: Store):
    async with asyncio.timeout(5):
        replies = await store.transaction(
            [("RPUSH", "{r}list", "x"), ("BLPOP", "{r}list", 0), ("BLPOP", "{r}list", 0)]
        )
    assert replies == [1, [b"{r}list", b"x"], None]


@only(acl_user)
async def test_an_acl_users_missing_right_is_an_error_of_that_command_only(store: Store):
    for command in (("KEYS", "*"), ("CONFIG", "GET", "maxmemory")):
        with pytest.raises(CommandError) as caught:
            await store.command(*command)
        assert caught.value.kind == "NOPERM"
    assert await store.command("ECHO", "on") == b"on"
