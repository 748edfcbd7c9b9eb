"""A Cluster whose slots move and whose nodes die: every key is found again, and no reply is ever another's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import pytest
from hiredis import ReplyError

from counterseal.core.errors import CommandError, StoreUnavailable, TransactionAborted
from counterseal.store.base import Gap, Message
from counterseal.store.breaker import BreakerPolicy
from counterseal.store.cluster import ClusterStore
from counterseal.store.link import LinkOptions
from counterseal.store.scripts import parse_script
from counterseal.store.target import parse_redis_url
from counterseal.store.topology import Topology
from support.cluster import Cluster, Node
from support.load import under_load
from support.waiting import eventually

TTL = ("PX", 60_000)
LONG = timedelta(seconds=10)
OPTIONS = LinkOptions(
    connect_timeout=timedelta(seconds=1),
    command_timeout=timedelta(milliseconds=300),
    breaker=BreakerPolicy(first_wait=timedelta(milliseconds=50), longest_wait=timedelta(milliseconds=200)),
)
MOVE = parse_script(
    "move",
    """-- move: moves a value from one key to another
-- keys: source target
-- args: ttl_ms
-- returns: the value
-- ttl: target by ttl_ms
local value = redis.call('GETDEL', KEYS[1])
redis.call('SET', KEYS[2], value, 'PX', ARGV[1])
return value
""",
)


@asynccontextmanager
async def connected(cluster: Cluster) -> AsyncIterator[ClusterStore]:
    async with ClusterStore(parse_redis_url(cluster.url), OPTIONS) as store:
        yield store


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[ClusterStore]:
    async with connected(cluster) as opened:
        yield opened


def other_primary(cluster: Cluster, slot: int) -> Node:
    """A primary that does not own the slot."""
    owner = cluster.owner(slot)
    return next(node for node in cluster.primaries() if node is not owner)


def refusals(node: Node, kind: str) -> int:
    """How often a node has answered with MOVED or ASK."""
    return int(node.info("errorstats").get(f"errorstat_{kind}", "count=0").removeprefix("count="))


@contextmanager
def refused(node: Node, kind: str, times: int) -> Iterator[None]:
    before = refusals(node, kind)
    yield
    assert refusals(node, kind) - before == times


async def moved(cluster: Cluster, key: str) -> tuple[Node, Node]:
    """Hand the slot of a key over. Returns the former owner and the new one."""
    slot = cluster.slot_of(key)
    source, target = cluster.owner(slot), other_primary(cluster, slot)
    await cluster.migrate_slot_begin(slot, target)
    await cluster.migrate_slot_end(slot, target)
    return source, target


async def half_moved(cluster: Cluster, key: str) -> tuple[Node, Node]:
    """Move a key, but not yet its slot. Returns the slot's owner, who answers ASK, and where the key is."""
    slot = cluster.slot_of(key)
    source, target = cluster.owner(slot), other_primary(cluster, slot)
    await cluster.migrate_slot_begin(slot, target)
    await cluster.migrate_key(key)
    return source, target


# -- slots that move -------------------------------------------------------------------------------------------------


async def test_a_moved_slot_is_learned_from_its_first_refusal(cluster: Cluster, store: ClusterStore):
    await store.command("SET", "{m}key", "before", *TTL)
    former, _ = await moved(cluster, "{m}key")
    with refused(former, "MOVED", 1):
        assert await store.command("GET", "{m}key") == b"before"
        assert await store.command("SET", "{m}key", "after", *TTL) == b"OK"
        assert await store.command("GET", "{m}key") == b"after"


async def test_a_moved_slot_is_followed_within_a_pipeline(cluster: Cluster, store: ClusterStore):
    commands = [("SET", f"{{m}}{number}", number, *TTL) for number in range(5)]
    others = [("SET", f"other {number}", number, *TTL) for number in range(20)]
    await store.pipeline([*commands, *others])
    await moved(cluster, "{m}0")
    replies = await store.pipeline(
        [
            ("INCR", "{m}0"),
            ("GET", "other 1"),
            ("INCR", "{m}0"),
            ("LPUSH", "{m}1", "x"),
            ("GET", "{m}4"),
            ("GET", "other 2"),
        ]
    )
    error = replies.pop(3)
    assert isinstance(error, CommandError)
    assert error.kind == "WRONGTYPE"
    assert replies == [1, b"1", 2, b"4", b"2"]


async def test_a_moved_slot_is_followed_by_a_transaction_a_script_and_a_blocking_call(
    cluster: Cluster, store: ClusterStore
):
    await store.pipeline([("SET", "{a}key", 1, *TTL), ("SET", "{b}key", 2, *TTL), ("SET", "{c}key", 3, *TTL)])
    for key in ("{a}key", "{b}key", "{c}key"):
        await moved(cluster, key)
    assert await store.transaction([("INCR", "{a}key"), ("GET", "{a}key")]) == [2, b"2"]
    assert await store.run(MOVE, source="{b}key", target="{b}target", ttl_ms=60_000) == b"2"
    assert await store.command("GET", "{b}target") == b"2"
    assert await store.block("BLPOP", "{c}list", 0.02, timeout=LONG) is None


async def test_a_key_that_moved_ahead_of_its_slot_is_asked_for(cluster: Cluster, store: ClusterStore):
    await store.pipeline([("SET", "{h}gone", "gone", *TTL), ("SET", "{h}here", "here", *TTL)])
    owner, _ = await half_moved(cluster, "{h}gone")
    with refused(owner, "ASK", 2):
        assert await store.command("GET", "{h}gone") == b"gone"
        assert await store.command("GET", "{h}here") == b"here"
        assert await store.command("SET", "{h}new", "new", *TTL) == b"OK"
    slot = cluster.slot_of("{h}gone")
    await cluster.migrate_slot_end(slot, other_primary(cluster, slot))
    assert await store.pipeline([("GET", f"{{h}}{word}") for word in ("gone", "here", "new")]) == [
        b"gone",
        b"here",
        b"new",
    ]


async def test_a_key_that_moved_ahead_of_its_slot_is_asked_for_within_a_pipeline(
    cluster: Cluster, store: ClusterStore
):
    await store.pipeline([("SET", "{h}gone", 1, *TTL), ("SET", "{h}here", 2, *TTL)])
    owner, _ = await half_moved(cluster, "{h}gone")
    with refused(owner, "ASK", 3):
        replies = await store.pipeline(
            [("INCR", "{h}gone"), ("GET", "{h}here"), ("INCR", "{h}gone"), ("GET", "{h}gone")]
        )
    assert replies == [2, b"2", 3, b"3"]


async def test_a_key_that_moved_ahead_of_its_slot_is_asked_for_by_a_transaction_and_a_script(
    cluster: Cluster, store: ClusterStore
):
    await store.command("SET", "{h}gone", 1, *TTL)
    await half_moved(cluster, "{h}gone")
    assert await store.transaction([("INCR", "{h}gone"), ("GET", "{h}gone")]) == [2, b"2"]
    with pytest.raises(TransactionAborted, match="NOSUCH"):
        await store.transaction([("INCR", "{h}gone"), ("NOSUCH", "{h}gone")])
    assert await store.transaction([("INCR", "{h}gone"), ("LPUSH", "{h}gone", 1), ("INCR", "{h}gone")]) != []
    assert await store.command("GET", "{h}gone") == b"4"
    once = parse_script(
        "once",
        "-- once: reads\n-- keys: key\n-- args: none\n-- returns: it\n-- ttl: none\nreturn redis.call('GET', KEYS[1])",
    )
    assert await store.run(once, key="{h}gone") == b"4"


async def test_a_blocking_call_asks_where_its_key_moved(cluster: Cluster, store: ClusterStore):
    await store.transaction([("RPUSH", "{h}list", "x"), ("PEXPIRE", "{h}list", 60_000)])
    await half_moved(cluster, "{h}list")
    assert await store.block("BLPOP", "{h}list", 1, timeout=LONG) == [b"{h}list", b"x"]


async def test_keys_of_which_some_moved_already_are_unavailable_until_all_have(
    cluster: Cluster, store: ClusterStore
):
    await store.pipeline([("SET", "{h}gone", 1, *TTL), ("SET", "{h}here", 2, *TTL)])
    await half_moved(cluster, "{h}gone")
    both = ("MGET", "{h}gone", "{h}here")
    with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
        await store.command(*both)
    here, not_now = await store.pipeline([("GET", "{h}here"), both])
    assert (here, isinstance(not_now, CommandError) and not_now.kind) == (b"2", "TRYAGAIN")
    with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
        await store.transaction([both])
    slot = cluster.slot_of("{h}gone")
    await cluster.migrate_slot_end(slot, other_primary(cluster, slot))
    assert await store.command(*both) == [b"1", b"2"]


async def test_tasks_that_read_and_write_while_a_slot_moves_never_notice(
    cluster: Cluster, store: ClusterStore
):
    stop = asyncio.Event()
    keys = [f"{{w}}{number}" for number in range(40)]

    async def work(key: str) -> int:
        number = 0
        while not stop.is_set() or number < 20:
            number += 1
            assert await store.command("SET", key, f"{key} {number}", *TTL) == b"OK"
            assert await store.pipeline([("GET", key), ("STRLEN", key)]) == [
                f"{key} {number}".encode(),
                len(f"{key} {number}"),
            ]
            assert await store.transaction([("GET", key)]) == [f"{key} {number}".encode()]
        return number

    workers = [asyncio.create_task(work(key)) for key in keys]
    slot = cluster.slot_of(keys[0])
    target = other_primary(cluster, slot)
    await eventually(lambda: all(node.execute("PING") == b"PONG" for node in cluster.nodes))
    await cluster.migrate_slot_begin(slot, target)
    for key in keys[::2]:
        await eventually(lambda key=key: moves(cluster, key))
    await cluster.migrate_slot_end(slot, target)
    stop.set()
    assert min(await asyncio.gather(*workers)) >= 20


async def moves(cluster: Cluster, key: str) -> bool:
    try:
        await cluster.migrate_key(key)
    except KeyError:
        return False
    return True


# -- what one command can't do ---------------------------------------------------------------------------------------


async def test_commands_whose_keys_are_in_different_slots_are_refused(cluster: Cluster, store: ClusterStore):
    assert cluster.slot_of("a") != cluster.slot_of("b")
    with pytest.raises(CommandError) as caught:
        await store.command("MGET", "a", "b")
    assert caught.value.kind == "CROSSSLOT"
    (reply,) = await store.pipeline([("MGET", "a", "b")])
    assert isinstance(reply, CommandError)
    assert reply.kind == "CROSSSLOT"
    with pytest.raises(CommandError, match="CROSSSLOT"):
        await store.run(MOVE, source="a", target="b", ttl_ms=60_000)
    with pytest.raises(TransactionAborted, match="CROSSSLOT"):
        await store.transaction([("SET", "a", 1, *TTL), ("SET", "b", 1, *TTL)])
    assert await store.pipeline([("EXISTS", "a"), ("EXISTS", "b")]) == [0, 0]


async def test_scripts_run_where_their_hash_tag_is_whichever_node_that_is(
    cluster: Cluster, store: ClusterStore
):
    tags = [f"tag {number}" for number in range(30)]
    assert {cluster.owner(cluster.slot_of(tag)) for tag in tags} == set(cluster.primaries())
    await store.pipeline([("SET", f"from:{{{tag}}}", tag, *TTL) for tag in tags])
    moved_values = await asyncio.gather(
        *(store.run(MOVE, source=f"from:{{{tag}}}", target=f"to:{{{tag}}}", ttl_ms=60_000) for tag in tags)
    )
    assert moved_values == [tag.encode() for tag in tags]
    assert await store.pipeline([("GET", f"to:{{{tag}}}") for tag in tags]) == [tag.encode() for tag in tags]


# -- nodes that fail -------------------------------------------------------------------------------------------------


def holds(node: Node, key: str) -> bool:
    """Whether a node has the key and serves it."""
    try:
        return node.execute("EXISTS", key) == 1
    except ReplyError:
        return False


async def test_a_planned_failover_under_load_loses_nothing(cluster: Cluster, store: ClusterStore):
    async with under_load(store) as load:
        slot = cluster.slot_of("load 0")
        new = await cluster.failover(slot)
        await eventually(lambda: store.available)
        await load.goes_on()
        assert cluster.owner(slot) is new
        await eventually(lambda: holds(new, "load 0"))


async def test_a_killed_primary_under_load_is_replaced_by_its_replica(cluster: Cluster, store: ClusterStore):
    async with under_load(store) as load:
        slot = cluster.slot_of("load 0")
        new = await cluster.kill_primary(slot)
        await eventually(lambda: store.available, within=10)
        await load.goes_on()
        assert load.failed > 0
        await eventually(lambda: holds(new, "load 0"))


async def test_a_frozen_primary_under_load_is_replaced_by_its_replica(cluster: Cluster, store: ClusterStore):
    async with under_load(store) as load:
        slot = cluster.slot_of("load 0")
        former = cluster.owner(slot)
        replica = cluster.replica_of(former)
        former.freeze()
        await eventually(lambda: cluster.owner(slot) is replica, within=15)
        await eventually(lambda: store.available, within=10)
        await load.goes_on()
        await eventually(lambda: holds(replica, "load 0"))
        former.thaw()
        await load.goes_on()
        assert load.failed > 0


async def test_a_store_that_nobody_uses_finds_the_new_primary_all_the_same(
    cluster: Cluster, store: ClusterStore
):
    await cluster.kill_primary(cluster.slot_of("key"))
    await eventually(lambda: store.available, within=10)
    assert await store.command("SET", "key", 1, *TTL) == b"OK"


async def test_a_dead_node_of_the_url_is_no_hindrance(cluster: Cluster):
    await cluster.kill_primary(cluster.slot_of("key"))
    async with connected(cluster) as store:
        assert await store.command("SET", "key", 1, *TTL) == b"OK"


# -- messages --------------------------------------------------------------------------------------------------------


async def test_a_message_published_on_any_node_arrives(cluster: Cluster, store: ClusterStore):
    async with store.subscribe("channel") as messages:
        for node in cluster.nodes:
            node.execute("PUBLISH", "channel", f"from {node.port}")
            async with asyncio.timeout(5):
                assert await anext(messages) == Message("channel", f"from {node.port}".encode())


async def test_a_subscriber_whose_node_died_is_told_of_the_gap_and_hears_another(
    cluster: Cluster, store: ClusterStore
):
    async with store.subscribe("channel") as messages:
        listened = [node for node in cluster.primaries() if node.execute("PUBSUB", "NUMSUB", "channel")[1]]
        assert len(listened) == 1
        listened[0].kill()
        async with asyncio.timeout(15):
            assert await anext(messages) == Gap(("channel",))
        survivor = next(node for node in cluster.nodes if node.running)
        survivor.execute("PUBLISH", "channel", "after")
        async with asyncio.timeout(5):
            assert await anext(messages) == Message("channel", b"after")


@pytest.mark.parametrize("turns", range(0, 24, 2))
async def test_closing_in_the_middle_of_a_reading_of_the_topology_comes_to_an_end(
    cluster: Cluster, turns: int
):
    async with asyncio.timeout(10):
        async with connected(cluster) as store:
            store._stale.set()
            while not store._topology._reading.locked():
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(0, 24, 2))
async def test_a_cancelled_reading_of_the_topology_is_cancelled(cluster: Cluster, turns: int):
    topology = Topology(parse_redis_url(cluster.url))
    await topology.read()
    reading = asyncio.create_task(topology.read())
    for _ in range(turns):
        await asyncio.sleep(0)
    over = reading.done()
    reading.cancel()
    await asyncio.wait({reading})
    assert reading.cancelled() or over
    await topology.close()
