"""Replies and values: the same shapes over every connection, and every value comes back as it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from counterseal.core.errors import CommandError, TransactionAborted
from counterseal.store.base import Store
from counterseal.store.wire import Argument, Reply
from support.backends import Backend
from support.exact import same

TTL = ("PX", 60_000)

TEXTS = {
    "empty": "",
    "a float's text": "1e3",
    "leading zeros": "007",
    "null": "null",
    "true": "true",
    "2**63": str(2**63),
    "20 digits": "12345678901234567890",
    "half a JSON object": "[object Object]",
    "JSON": '{"a": [1, "1", null]}',
    "quotes": "\"'\\",
    "OK": "OK",
    "base64": "T0s=",
    "NUL": "a\x00b",
    "line ends": "\r\n\n\r+OK\r\n$-1\r\n",
    "emoji": "👩‍👩‍👧 😀",
    "composed and not": "\u00e9 e\u0301",
    "separators": "\u2028\u2029\ufeff",
    "spaces": "  ",
    "1 MB": "0123456789abcdef" * 2**16,
}
BYTES = {
    "not UTF-8": b"\xff\xfe",
    "every byte": bytes(range(256)),
    "a cut character": "é".encode()[:1],
    "1 MB not UTF-8": b"\xff\x00" * 2**19,
}
NUMBERS = (0, -1, 2**63, -(2**63), 10**30, 0.1, -1.5, 1e300)

READS: dict[str, tuple[Sequence[Argument], Reply]] = {
    "a status": (("PING",), b"PONG"),
    "a status of a key": (("TYPE", "{s}list"), b"list"),
    "a text": (("GET", "{s}text"), b"words"),
    "an empty text": (("GET", "{s}empty"), b""),
    "nothing": (("GET", "{s}missing"), None),
    "no list": (("LPOP", "{s}missing", 2), None),
    "an integer": (("STRLEN", "{s}text"), 5),
    "zero": (("EXISTS", "{s}missing"), 0),
    "a negative integer": (("TTL", "{s}missing"), -2),
    "a list": (("LRANGE", "{s}list", 0, -1), [b"one", b"", b"three"]),
    "an empty list": (("LRANGE", "{s}missing", 0, -1), []),
    "a list with nothing in it": (("MGET", "{s}text", "{s}missing"), [b"words", None]),
    "a hash, flat": (("HGETALL", "{s}hash"), [b"name", b"Ada", b"age", b"36"]),
    "members with scores, flat": (
        ("ZRANGE", "{s}scores", 0, -1, "WITHSCORES"),
        [b"a", b"1", b"b", b"2.5"],
    ),
    "lists in a list": (("XRANGE", "{s}stream", "-", "+"), [[b"1-1", [b"field", b"value"]]]),
    "integers in a list": (("SMISMEMBER", "{s}set", "in", "out"), [1, 0]),
}
NESTED = "return {1, {2, {'three', {}}, false}, {{{}}}, 'end'}"


@pytest.fixture
async def filled(store: Store) -> Store:
    """A store on a server that has a key of every type."""
    await store.transaction(
        [
            ("SET", "{s}text", "words", *TTL),
            ("SET", "{s}empty", "", *TTL),
            ("RPUSH", "{s}list", "one", "", "three"),
            ("HSET", "{s}hash", "name", "Ada", "age", 36),
            ("ZADD", "{s}scores", 1, "a", 2.5, "b"),
            ("SADD", "{s}set", "in"),
            ("XADD", "{s}stream", "1-1", "field", "value"),
            *(("PEXPIRE", f"{{s}}{kind}", 60_000) for kind in ("list", "hash", "scores", "set", "stream")),
        ]
    )
    return store


async def test_every_reply_has_the_shape_of_resp2(filled: Store):
    for name, (command, expected) in READS.items():
        assert same(await filled.command(*command), expected), name


async def test_replies_have_the_same_shapes_in_a_pipeline_and_in_a_transaction(filled: Store):
    commands = [command for command, _ in READS.values()]
    expected = [reply for _, reply in READS.values()]
    assert same(await filled.pipeline(commands), expected)
    assert same(await filled.transaction(commands), expected)


async def test_statuses_and_integers_of_writes(store: Store):
    assert await store.command("SET", "key", "1", *TTL) == b"OK"
    assert await store.command("SET", "key", "2", "NX", *TTL) is None
    assert await store.command("INCRBY", "key", 2**63 - 2) == 2**63 - 1
    assert await store.command("DEL", "key") == 1


async def test_lists_in_lists_keep_their_depth(store: Store):
    expected: Reply = [1, [2, [b"three", []], None], [[[]]], b"end"]
    assert same(await store.command("EVAL", NESTED, 0), expected)
    deep = "local t = {} for _ = 1, 30 do t = {t} end return t"
    reply = await store.command("EVAL", deep, 0)
    for _ in range(30):
        assert isinstance(reply, list)
        (reply,) = reply
    assert reply == []


async def test_an_error_in_a_scripts_table_stands_in_its_place(backend: Backend, store: Store):
    first, error, last = await table(store, "return {1, {err = 'MINE it broke'}, 'x'}")
    assert (first, last) == (1, b"x")
    if backend.kind == "rest":
        assert error == b"MINE it broke"  # the protocol has no error inside an array: it is the error's text
        return
    assert isinstance(error, CommandError)
    assert (error.kind, str(error)) == ("MINE", "MINE it broke")


async def test_every_text_comes_back_as_it_was(store: Store):
    for name, sent in TEXTS.items():
        expected = sent.encode()
        assert await store.command("SET", "text", sent, *TTL) == b"OK", name
        assert await store.command("GET", "text") == expected, name
        appended = await store.pipeline([("GET", "text"), ("APPEND", "text", sent)])
        assert appended == [expected, 2 * len(expected)], name
        assert await store.transaction([("GET", "text")]) == [2 * expected], name
        assert await store.command("EVAL", "return {ARGV[1]}", 0, sent) == [expected], name


async def test_all_bytes_come_back_as_they_were(backend: Backend, store: Store):
    for name, sent in BYTES.items():
        assert await store.command("SET", "bytes", sent, *TTL) == b"OK", name
        assert await store.command("GET", "bytes") == sent, name
        turned = sent[::-1]
        assert await store.pipeline([("SET", "bytes", turned, *TTL), ("GET", "bytes")]) == [b"OK", turned]
        again = [("SETRANGE", "bytes", 0, sent), ("GET", "bytes")]
        if backend.takes_bytes:
            assert await store.transaction(again) == [len(sent), sent], name
        else:
            with pytest.raises(TransactionAborted, match="UTF-8"):
                await store.transaction(again)


async def test_keys_fields_and_members_may_hold_any_text_and_any_bytes(store: Store):
    for name in ("", "a:b", "}{", "ключ", "a\x00b", "with space", "%41", "a/b?c=d&e#f"):
        key = f"{{k}}{name}"
        assert await store.command("HSET", key, name, "value") == 1
        assert await store.command("PEXPIRE", key, 60_000) == 1
        assert await store.command("HGETALL", key) == [name.encode(), b"value"]
    assert await store.command("SET", b"\xff\xfekey", "value", *TTL) == b"OK"
    assert await store.command("GET", b"\xff\xfekey") == b"value"


async def test_numbers_are_sent_as_their_python_text(store: Store):
    for number in NUMBERS:
        assert await store.command("SET", "number", number, *TTL) == b"OK"
        assert await store.command("GET", "number") == str(number).encode()


async def test_what_is_no_text_bytes_or_number_is_refused_before_anything_is_sent(store: Store):
    for wrong in (None, ["a"], {"a": 1}, "\ud800"):
        bad: tuple[Argument, ...] = ("SET", "{k}bad", wrong)  # type: ignore[assignment]
        before = store.counts.bytes_out
        with pytest.raises(TypeError):
            await store.command(*bad)
        with pytest.raises(TypeError):
            await store.pipeline([("SET", "{k}other", 1, *TTL), bad])
        with pytest.raises(TypeError):
            await store.transaction([("SET", "{k}other", 1, *TTL), bad])
        assert store.counts.bytes_out == before
    assert await store.command("EXISTS", "{k}other") == 0


async def test_a_large_reply_does_not_hold_up_or_shift_small_ones(store: Store):
    large = "x" * 2**20
    await store.command("SET", "large", large, *TTL)
    replies = await asyncio.gather(
        store.command("ECHO", "before"), store.command("GET", "large"), store.command("ECHO", "after")
    )
    assert replies == [b"before", large.encode(), b"after"]


async def table(store: Store, script: str) -> list[Reply]:
    reply = await store.command("EVAL", script, 0)
    assert isinstance(reply, list)
    return reply
