"""The chain of an audit stream: the one text of a body, the hash of an entry, and every change of one found."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest

from counterseal.audit.chain import (
    FIRST_PREV,
    AuditEntry,
    BrokenEntry,
    Flaw,
    canonical_text,
    commitment_of,
    hash_entry,
    verify_entries,
)
from counterseal.core.errors import CodecError

AT = datetime(2026, 11, 23, 0, 9, 21, 538000, tzinfo=UTC)


class Word(StrEnum):
    ONE = "one"


def chain(stream: str, count: int) -> list[AuditEntry]:
    """Entries as they are written, a second apart."""
    entries: list[AuditEntry] = []
    prev = FIRST_PREV
    for seq in range(1, count + 1):
        at = AT + timedelta(seconds=seq)
        body = canonical_text({"action": "signer.viewed", "n": seq, "who": {"ids": [seq, {"deep": "a"}]}})
        digest = hash_entry(stream, seq, prev, at, body)
        entries.append(AuditEntry(stream, seq, digest, prev, at, "signer.viewed", body))
        prev = digest
    return entries


def changed(entries: list[AuditEntry], index: int, **values: Any) -> list[AuditEntry]:
    return [*entries[:index], replace(entries[index], **values), *entries[index + 1 :]]


def test_an_entry_is_hashed_line_by_line() -> None:
    lines = (
        "request:7\n2\n" + "ab" * 32 + '\n2026-11-23T00:09:21.538000Z\n{"action":"request.sent","n":1}'
    ).encode()
    digest = hash_entry("request:7", 2, b"\xab" * 32, AT, '{"action":"request.sent","n":1}')
    assert digest == hashlib.sha256(lines).digest()


def test_the_first_entry_has_32_zero_bytes_before_it() -> None:
    assert bytes(32) == FIRST_PREV


def test_the_same_moment_in_another_zone_has_the_same_hash() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert hash_entry("system", 1, FIRST_PREV, elsewhere, "{}") == hash_entry(
        "system", 1, FIRST_PREV, AT, "{}"
    )


def test_no_two_entries_have_the_same_lines_when_a_stream_has_a_line_feed() -> None:
    zeros = FIRST_PREV.hex()
    assert hash_entry(f"account:a\n1\n{zeros}", 2, FIRST_PREV, AT, "{}") != hash_entry(
        "account:a", 1, FIRST_PREV, AT, f"2\n{zeros}"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": 2, "": 3}, '{"":3,"a":2,"b":1}'),
        ({"z": {"b": [], "a": {}}, "l": [{"y": None, "x": True}, False]},
         '{"l":[{"x":true,"y":null},false],"z":{"a":{},"b":[]}}'),
        ({"é": "ü 😀 /", "e": '"\\'}, '{"e":"\\"\\\\","é":"ü 😀 /"}'),
        ({"t": "\b\t\n\f\r\x00\x1f\x7f\u2028"}, '{"t":"\\b\\t\\n\\f\\r\\u0000\\u001f\x7f\u2028"}'),
        ({"\ufb33": 1, "😀": 2}, '{"😀":2,"\ufb33":1}'),  # RFC 8785 sorts by UTF-16, not by character
        ({"n": -(2**53) + 1, "m": 2**53 - 1, "o": 0}, '{"m":9007199254740991,"n":-9007199254740991,"o":0}'),
    ],
)  # fmt: skip
def test_an_object_has_one_text(value: dict[str, Any], text: str) -> None:
    assert canonical_text(value) == text
    assert json.loads(text) == value


def test_the_order_of_members_does_not_matter() -> None:
    value = {name: {"b": 1, "a": [{"d": 1, "c": 2}]} for name in "qwertyuiop"}
    mirrored = {name: {"a": [{"c": 2, "d": 1}], "b": 1} for name in reversed("qwertyuiop")}
    assert canonical_text(value) == canonical_text(mirrored)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"b": [1, 1.0]}}, "$.a.b[1]"),
        ({"a": float("nan")}, "$.a"),
        ({"a": 2**53}, "$.a"),
        ({"a": -(2**53)}, "$.a"),
        ({"a": "\ud800"}, "$.a"),
        ({"\ud800": 1}, "$"),
        ({"a": (1,)}, "$.a"),
        ({"a": Word.ONE}, "$.a"),
        ({"a": b"x"}, "$.a"),
        ({"a": {1: 2}}, "$.a"),
    ],
)
def test_what_has_no_one_text_is_refused_with_its_place(value: Any, path: str) -> None:
    with pytest.raises(CodecError) as fault:
        canonical_text(value)
    assert fault.value.path == path


def test_a_body_that_is_too_deep_is_refused() -> None:
    value: Any = {}
    for _ in range(5000):
        value = {"a": value}
    with pytest.raises(CodecError):
        canonical_text(value)


def test_a_commitment_is_over_salt_and_value() -> None:
    assert commitment_of(b"salt", "é") == hashlib.sha256(b"salt\xc3\xa9").digest()


def test_entries_as_they_were_written_verify() -> None:
    mixed = [
        entry
        for pair in zip(chain("request:1", 5), chain("account:1", 5), strict=True)
        for entry in pair
    ]  # fmt: skip
    assert verify_entries(mixed) is None
    assert verify_entries([]) is None


@pytest.mark.parametrize(
    ("values", "flaw"),
    [
        ({"body": canonical_text({"action": "signer.viewed", "n": 3, "who": {"ids": [3, {"deep": "b"}]}})},
         Flaw.HASH),
        ({"at": AT + timedelta(seconds=3, microseconds=1)}, Flaw.HASH),
        ({"hash": bytes(32)}, Flaw.HASH),
        ({"prev": bytes(32)}, Flaw.PREV),
        ({"action": "signer.signed"}, Flaw.ACTION),
        ({"seq": 4}, Flaw.GAP),
    ],
)  # fmt: skip
def test_one_changed_value_is_found_where_it_is(values: dict[str, Any], flaw: Flaw) -> None:
    broken = changed(chain("request:1", 5), 2, **values)
    assert verify_entries(broken) == BrokenEntry("request:1", values.get("seq", 3), flaw)


def test_an_entry_that_was_hashed_anew_breaks_the_one_after_it() -> None:
    entries = chain("request:1", 5)
    third = entries[2]
    body = canonical_text({"action": "signer.viewed", "n": 99})
    forged = hash_entry(third.stream, third.seq, third.prev, third.at, body)
    broken = changed(entries, 2, body=body, hash=forged)
    assert verify_entries(broken) == BrokenEntry("request:1", 4, Flaw.PREV)


@pytest.mark.parametrize("body", ["{}", "[]", "", '{"action":1}', "\x00"])
def test_a_body_without_its_action_is_found(body: str) -> None:
    digest = hash_entry("system", 1, FIRST_PREV, AT, body)
    entry = AuditEntry("system", 1, digest, FIRST_PREV, AT, "value.erased", body)
    assert verify_entries([entry]) == BrokenEntry("system", 1, Flaw.ACTION)


def test_missing_moved_and_foreign_entries_are_found() -> None:
    entries = chain("request:1", 5)
    assert verify_entries(entries[1:]) == BrokenEntry("request:1", 2, Flaw.GAP)
    assert verify_entries(entries[:2] + entries[3:]) == BrokenEntry("request:1", 4, Flaw.GAP)
    assert verify_entries([entries[0], entries[2], entries[1]]) == BrokenEntry("request:1", 3, Flaw.GAP)
    foreign = [replace(entry, stream="request:2") for entry in entries]
    assert verify_entries(foreign) == BrokenEntry("request:2", 1, Flaw.HASH)


def test_a_long_stream_is_verified_in_a_moment() -> None:
    entries = chain("request:1", 20_000)
    began = time.process_time()
    assert verify_entries(entries) is None
    assert time.process_time() - began < 2  # measured: 0.1 s
