"""A command's slot is read from its first key, wherever it stands."""

import pytest

from counterseal.store.slots import key_of, slot_of


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), b"a"),
        (("get", b"a\x00b"), b"a\x00b"),
        (("EVALSHA", "sum", 2, "k1", "k2", "x"), b"k1"),
        (("EVAL", "return 1", 0, "x"), None),
        (("XREAD", "COUNT", 1, "STREAMS", "s", "0"), b"s"),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), b"s"),
        (("XREADGROUP", "GROUP", "streams", "c", "STREAMS", "s", ">"), b"s"),
        (("MIGRATE", "host", 6379, "k", 0, 100), b"k"),
        (("OBJECT", "HELP"), None),
        (("BITOP", "AND", "dest", "a"), b"dest"),
        (("XINFO", "STREAM", "s"), b"s"),
        (("ZUNION", 2, "a", "b"), b"a"),
        (("BLMPOP", 0, 1, "l", "LEFT"), b"l"),
        (("PING",), None),
        (("PUBLISH", "channel", "x"), None),
        (("SCRIPT", "LOAD", "return 1"), None),
        (("DBSIZE",), None),
    ],
)
def test_the_first_key_is_found(command: tuple, key: bytes | None):
    assert key_of(command) == key


def test_only_what_stands_in_braces_counts():
    assert slot_of(("GET", "a:{user}:1")) == slot_of(("SET", "b:{user}:2", "x"))
    assert slot_of(("GET", "foo")) == 12182
