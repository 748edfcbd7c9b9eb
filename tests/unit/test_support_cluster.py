"""The kit's Cluster: forms, fails over and moves slots by the server's own commands."""

from __future__ import annotations

import pytest
from hiredis import ReplyError

from support.cluster import SLOTS, Cluster


def test_every_slot_has_an_owner_and_every_primary_a_replica(cluster: Cluster) -> None:
    ranges = cluster.nodes[0].execute("CLUSTER", "SLOTS")
    assert sum(last - first + 1 for first, last, *_ in ranges) == SLOTS
    assert len(cluster.primaries()) == 3
    for primary in cluster.primaries():
        replica = cluster.replica_of(primary)
        assert replica.info("replication")["master_port"] == str(primary.port)


def test_its_url_names_every_node(cluster: Cluster) -> None:
    assert cluster.url.startswith("redis+cluster://127.0.0.1:")
    assert all(f"127.0.0.1:{node.port}" in cluster.url for node in cluster.nodes)


async def test_failover_swaps_primary_and_replica_without_loss(cluster: Cluster) -> None:
    slot = cluster.slot_of("cs:{a}:x")
    former = cluster.owner(slot)
    former.execute("SET", "cs:{a}:x", "kept", "PX", 60_000)
    new = await cluster.failover(slot)
    assert new is cluster.owner(slot) is not former
    assert cluster.replica_of(new) is former
    assert new.execute("GET", "cs:{a}:x") == b"kept"
    with pytest.raises(ReplyError, match=f"MOVED {slot} 127.0.0.1:{new.port}"):
        former.execute("GET", "cs:{a}:x")


async def test_a_replica_takes_over_from_a_killed_primary(cluster: Cluster) -> None:
    former = cluster.owner(100)
    new = await cluster.kill_primary(100)
    assert not former.running
    assert cluster.owner(100) is new is not former
    cluster.heal()
    assert cluster.replica_of(new) is former


async def test_a_moving_slot_answers_ask_then_moved(cluster: Cluster) -> None:
    slot = cluster.slot_of("cs:{m}:here")
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries() if node is not source)
    for name in ("here", "there", "last"):
        source.execute("SET", f"cs:{{m}}:{name}", name, "PX", 60_000)
    await cluster.migrate_slot_begin(slot, target)
    await cluster.migrate_key("cs:{m}:there")
    assert source.execute("GET", "cs:{m}:here") == b"here"
    with pytest.raises(ReplyError, match=f"ASK {slot} 127.0.0.1:{target.port}"):
        source.execute("GET", "cs:{m}:there")
    with pytest.raises(KeyError):
        await cluster.migrate_key("cs:{m}:there")
    await cluster.migrate_slot_end(slot, target)
    with pytest.raises(ReplyError, match=f"MOVED {slot} 127.0.0.1:{target.port}"):
        source.execute("GET", "cs:{m}:here")
    assert target.client.pipeline([("GET", f"cs:{{m}}:{name}") for name in ("here", "there", "last")]) == [
        b"here",
        b"there",
        b"last",
    ]


async def test_heal_settles_what_a_test_left_half_done(cluster: Cluster) -> None:
    slot = cluster.slot_of("cs:{h}")
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries() if node is not source)
    await cluster.migrate_slot_begin(slot, target)
    cluster.replica_of(target).kill()
    source.freeze()
    cluster.heal()
    assert cluster.owner(slot).execute("GET", "cs:{h}") is None
    assert all(node.running and not node.frozen for node in cluster.nodes)
