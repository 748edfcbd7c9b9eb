"""The kit's sentinels: they name the primary, and another one after a failover."""

from __future__ import annotations

import secrets

import pytest
from hiredis import ReplyError

from support.client import Client
from support.sentinel import SERVICE, SentinelGroup


def test_every_sentinel_names_the_primary_and_knows_the_group(sentinels: SentinelGroup) -> None:
    assert sentinels.url.endswith(f"/{SERVICE}")
    for sentinel in sentinels.sentinels:
        assert f"127.0.0.1:{sentinel.port}" in sentinels.url
        address = sentinel.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        assert address == [b"127.0.0.1", str(sentinels.primary.port).encode()]
        assert sentinel.execute("SENTINEL", "CKQUORUM", SERVICE).startswith(b"OK 3 usable")


async def test_failover_changes_the_primary_without_loss(sentinels: SentinelGroup) -> None:
    former = sentinels.primary
    former.execute("SET", "cs:x", "kept", "PX", 60_000)
    new = await sentinels.failover()
    assert new is sentinels.primary is not former
    assert sentinels.replica is former
    assert new.execute("GET", "cs:x") == b"kept"
    with pytest.raises(ReplyError, match="READONLY"):
        former.execute("SET", "cs:x", "lost", "PX", 60_000)


async def test_the_replica_takes_over_from_a_killed_primary(sentinels: SentinelGroup) -> None:
    former = sentinels.kill_primary()
    new = await sentinels.wait_for_new_primary(former)
    new.execute("SET", "cs:x", "written", "PX", 60_000)
    sentinels.heal()
    assert sentinels.primary is new
    assert sentinels.replica is former


def test_passwords_are_asked_of_servers_and_sentinels() -> None:
    password, other = secrets.token_hex(8), secrets.token_hex(8)
    with SentinelGroup(password=password, sentinel_password=other) as group:
        assert group.url.startswith(f"redis+sentinel://:{password}@")
        for server, right in (
            (group.primary, password),
            (group.replica, password),
            (group.sentinels[0], other),
        ):
            with Client(server.socket, user="default", password=right) as client:
                assert client.execute("PING") == b"PONG"
            stranger = Client(server.socket, user="default", password="no")
            with stranger, pytest.raises(ReplyError, match="WRONGPASS"):
                stranger.execute("PING")
