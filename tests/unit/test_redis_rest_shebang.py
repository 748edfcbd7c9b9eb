"""The script flag that only Upstash knows: taken out, and the script still found by the sum that its client knows."""

from __future__ import annotations

import hashlib

import pytest

from counterseal.upstash.commands import CommandPolicy, Send
from counterseal.upstash.shebang import ScriptSums, library_without_flag, without_flag

SCRIPT = "#!lua flags=allow-key-locking\nreturn 1"
STRIPPED = "\nreturn 1"


def sha1(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("source", "sent"),
    [
        (b"#!lua flags=allow-key-locking\nreturn 1", b"\nreturn 1"),
        (b"#!lua flags=allow-key-locking", b""),
        (b"#!lua flags=no-writes,allow-key-locking\nx", b"#!lua flags=no-writes\nx"),
        (b"#!lua flags=allow-key-locking,no-writes\nx", b"#!lua flags=no-writes\nx"),
        (b"#!lua name=lib flags=allow-key-locking\nx", b"#!lua name=lib\nx"),
        (b"#!lua flags=allow-key-locking\r\nx", b"\nx"),
    ],
)
def test_only_the_one_flag_goes_and_lines_keep_their_numbers(source: bytes, sent: bytes) -> None:
    assert without_flag(source) == sent


@pytest.mark.parametrize(
    "source",
    [b"return 1", b"#!lua\nreturn 1", b"#!lua flags=no-writes\nx", b"return '#!lua flags=allow-key-locking'",
     b"#!lua flags=allow-key-locking-x\nx", b"#!lua\n-- flags=allow-key-locking", b""],
)  # fmt: skip
def test_a_script_without_the_flag_stays_as_it_is(source: bytes) -> None:
    assert without_flag(source) is source


def test_the_flag_goes_from_the_code_of_a_library() -> None:
    source = (
        b"redis.register_function{function_name='f', callback=f, flags={'allow-key-locking', \"no-writes\"}}"
    )
    assert library_without_flag(source) == (
        b"redis.register_function{function_name='f', callback=f, flags={ \"no-writes\"}}"
    )
    assert library_without_flag(b"flags = {'allow-key-locking'}") == b"flags = {}"
    assert library_without_flag(b"-- allow-key-locking") == b"-- allow-key-locking"


def test_a_stripped_script_is_found_by_the_sum_that_the_client_knows() -> None:
    commands = CommandPolicy()
    known = sha1(SCRIPT)
    assert commands.step(["EVALSHA", known, "0"]) is None, "nothing is known yet: the server answers NOSCRIPT"
    assert commands.step(["EVAL", SCRIPT, "0"]) == Send(["EVAL", STRIPPED.encode(), "0"])
    for spelled in (known, known.upper(), known.encode()):
        assert commands.step(["EVALSHA", spelled, "0"]) == Send(["EVALSHA", sha1(STRIPPED), "0"])
        assert commands.step(["evalsha_ro", spelled, "0"]) == Send(["evalsha_ro", sha1(STRIPPED), "0"])
    assert commands.step(["SCRIPT", "EXISTS", known, "x"]) == Send(["SCRIPT", "EXISTS", sha1(STRIPPED), "x"])


def test_loading_a_stripped_script_answers_the_sum_that_the_client_knows() -> None:
    step = CommandPolicy().step(["SCRIPT", "load", SCRIPT])
    assert isinstance(step, Send)
    assert step.arguments == ["SCRIPT", "load", STRIPPED.encode()]
    assert step.finish is not None
    assert step.finish(sha1(STRIPPED).encode()) == sha1(SCRIPT).encode()


def test_the_sums_are_bounded_and_the_least_used_goes() -> None:
    sums = ScriptSums(limit=2)
    first, second = (sums.add(b"#!a%d" % number, b"a%d" % number) for number in (1, 2))
    assert sums.sent(first) == sha1("a1")
    third = sums.add(b"#!a3", b"a3")
    assert sums.sent(second) is None
    assert (sums.sent(first), sums.sent(third)) == (sha1("a1"), sha1("a3"))
