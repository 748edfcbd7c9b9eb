"""Leaks: keys without a TTL that no line of `counterseal.store.keys` allows."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from counterseal.store.keys import WITHOUT_TTL
from support.client import Client

_SHOWN = 10


def find_leaks(client: Client, allowed: Iterable[str] = WITHOUT_TTL) -> list[str]:
    """The keys of a server that will live for ever and may not, as `db0 cs:x`, in order.

    `allowed` has patterns that a whole key has to match. Costs one round trip when every key has a TTL.
    """
    patterns = [re.compile(pattern) for pattern in allowed]
    leaks: list[str] = []
    for database in _databases_with_lasting_keys(client):
        client.execute("SELECT", database)
        lasting = _lasting_keys(client)
        client.execute("SELECT", 0)
        leaks += [
            f"db{database} {key}"
            for key in lasting
            if not any(pattern.fullmatch(key) for pattern in patterns)
        ]  # fmt: skip
    return sorted(leaks)


def check_leaks(item: pytest.Item, clients: Iterable[Client]) -> None:
    """Fail a test that left a key without a TTL on one of these servers, unless it is marked `leaves_keys`.

    To be called by a fixture after the test, while the servers still run.
    """
    mark = item.get_closest_marker("leaves_keys")
    if mark is not None:
        if not (mark.args and str(mark.args[0]).strip()):
            pytest.fail("the mark leaves_keys needs a reason", pytrace=False)
        return
    leaks = [leak for client in clients for leak in find_leaks(client)]
    if leaks:
        shown = ", ".join(leaks[:_SHOWN]) + (
            f" and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
        )
        pytest.fail(
            f"the test left keys without a TTL: {shown}. Give them one at birth, add a line to WITHOUT_TTL in "
            "counterseal.store.keys that says why not, or mark the test leaves_keys with a reason.",
            pytrace=False,
        )


def _databases_with_lasting_keys(client: Client) -> list[int]:
    text: bytes = client.execute("INFO", "keyspace")
    found = re.findall(r"^db(\d+):keys=(\d+),expires=(\d+)", text.decode(), re.MULTILINE)
    return [int(database) for database, keys, expires in found if int(keys) > int(expires)]


def _lasting_keys(client: Client) -> list[str]:
    lasting: list[str] = []
    cursor = b"0"
    while True:
        cursor, keys = client.execute("SCAN", cursor, "COUNT", 1000)
        ttls = client.pipeline([("PTTL", key) for key in keys]) if keys else []
        lasting += [
            key.decode("utf-8", "backslashreplace") for key, ttl in zip(keys, ttls, strict=True) if ttl == -1
        ]
        if cursor == b"0":
            return lasting
