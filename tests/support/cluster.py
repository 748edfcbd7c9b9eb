"""Cluster: six nodes of Valkey, three of them replicas, and the ways in which slots move."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hiredis import ReplyError

from counterseal.testing.running import Running
from support.client import PASSWORD, USER
from support.ports import free_port
from support.servers import Server, login
from support.waiting import wait_until

SLOTS = 16_384

_CONFIG = (
    "cluster-enabled yes",
    "cluster-node-timeout 1000",
    "cluster-announce-ip 127.0.0.1",
    "cluster-replica-validity-factor 0",
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one node believes of another."""

    primary: bool
    healthy: bool
    follows: str
    slots: tuple[str, ...]


class Node(Server):
    """A server of a Cluster, with a port for the others."""

    def __init__(self, *, password: str | None = None, config: Sequence[str] = ()) -> None:
        super().__init__(password=password, config=(*_CONFIG, *config))
        self.bus = 0

    def launch(self) -> None:
        if not self._ready:
            self.bus = free_port()
        super().launch()

    def _configuration(self) -> str:
        return f"{super()._configuration()}cluster-port {self.bus}\n"


class Cluster(Running):
    """A real Cluster of `shards` primaries with one replica each: `with Cluster() as cluster`.

    What changes it is `async`, runs in a thread, and returns when every running node agrees on the outcome.
    `heal` brings it back to health after a test, whatever was killed, frozen or left half moved. Slots stay where they
    were moved to, so ask `owner` rather than remember.
    """

    def __init__(self, *, shards: int = 3, password: str | None = None, config: Sequence[str] = ()) -> None:
        self.password = password
        self.nodes = [Node(password=password, config=config) for _ in range(2 * shards)]
        self._shards = shards
        self._ids: dict[str, Node] = {}
        self._moving: set[int] = set()

    @property
    def url(self) -> str:
        """All its nodes as a `REDIS_URL`."""
        return f"redis+cluster://{login(self.password)}{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def start(self) -> None:
        """Start the nodes together and join them. Returns when every node sees a healthy Cluster."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready()
        self._ids = {node.execute("CLUSTER", "MYID").decode(): node for node in self.nodes}
        primaries, replicas = self.nodes[: self._shards], self.nodes[self._shards :]
        for number, node in enumerate(primaries):
            first, last = SLOTS * number // self._shards, SLOTS * (number + 1) // self._shards - 1
            node.execute("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.execute("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        # Everybody is told of everybody, which is sooner done than heard through gossip.
        for node in self.nodes:
            others = [other for other in self.nodes if other is not node]
            node.client.pipeline(
                [("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus) for other in others]
            )
        for node, primary in zip(replicas, primaries, strict=True):
            wait_until(lambda node=node, primary=primary: self._follow(node, primary), within=10)
        self.wait_healthy()

    def primaries(self) -> list[Node]:
        """The running nodes that own slots, in no particular order."""
        return [self._ids[name] for name, seen in self._view().items() if seen.primary and seen.slots]

    def owner(self, slot: int) -> Node:
        """The primary of a slot."""
        for first, last, primary, *_ in self._any_node().execute("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self._ids[primary[2].decode()]
        raise LookupError(f"nobody owns slot {slot}")

    def slot_of(self, key: str | bytes) -> int:
        """The slot of a key."""
        return int(self._any_node().execute("CLUSTER", "KEYSLOT", key))

    def replica_of(self, node: Node) -> Node:
        """The running replica of a primary. Raises `LookupError` when it has none."""
        name = self._name(node)
        for other, seen in self._view().items():
            if not seen.primary and seen.follows == name and self._ids[other].running:
                return self._ids[other]
        raise LookupError(f"the node on port {node.port} has no running replica")

    async def failover(self, where: int | Node) -> Node:
        """CLUSTER FAILOVER of a primary, or of a slot's owner: nothing is lost. Returns the new primary."""
        return await asyncio.to_thread(self._failover, where)

    async def kill_primary(self, slot: int) -> Node:
        """SIGKILL to the owner of a slot, then wait for its replica to take over, about 2 s. Returns that."""
        return await asyncio.to_thread(self._kill_primary, slot)

    async def migrate_slot_begin(self, slot: int, to: Node) -> None:
        """From now on the owner answers ASK for keys of this slot that it does not have."""
        await asyncio.to_thread(self._migrate_slot_begin, slot, to)

    async def migrate_key(self, key: str | bytes) -> None:
        """Move one key of a slot that is being moved. Raises `KeyError` when the owner does not have it."""
        await asyncio.to_thread(self._migrate_key, key)

    async def migrate_slot_end(self, slot: int, to: Node) -> None:
        """Move what is left and hand the slot over: the former owner answers MOVED."""
        await asyncio.to_thread(self._migrate_slot_end, slot, to)

    def heal(self) -> None:
        """Thaw, restart and settle whatever a test left behind. Costs a few milliseconds when nothing is to do."""
        for node in self.nodes:
            if node.frozen and node.running:
                node.thaw()
        for node in self.nodes:
            if not node.running:
                node.start()
        for slot in self._moving:
            for node in self.primaries():
                node.execute("CLUSTER", "SETSLOT", slot, "STABLE")
        self._moving.clear()
        self.wait_healthy()

    def flush(self) -> None:
        """Remove every key and every script."""
        for node in self.nodes:
            node.execute("SCRIPT", "FLUSH", "SYNC")
        for node in self.primaries():
            node.execute("FLUSHALL", "SYNC")

    def wait_healthy(self, within: float = 20.0) -> None:
        """Return when all nodes run, agree, see `cluster_state:ok`, and every replica follows its primary."""
        wait_until(self._healthy, within, step=0.01)

    def close(self) -> None:
        """Kill the nodes and remove their folders."""
        for node in self.nodes:
            node.close()

    def _failover(self, where: int | Node) -> Node:
        primary = self.owner(where) if isinstance(where, int) else where
        replica = self.replica_of(primary)
        replica.execute("CLUSTER", "FAILOVER")
        wait_until(lambda: self._took_over(replica) and self._healthy(), within=15, step=0.01)
        return replica

    def _kill_primary(self, slot: int) -> Node:
        primary = self.owner(slot)
        replica = self.replica_of(primary)
        primary.kill()
        wait_until(lambda: self._took_over(replica) and self._answering(), within=20, step=0.01)
        return replica

    def _migrate_slot_begin(self, slot: int, to: Node) -> None:
        source = self.owner(slot)
        assert source is not to, f"slot {slot} is there already"
        self._moving.add(slot)
        to.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", self._name(source))
        source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", self._name(to))

    def _migrate_key(self, key: str | bytes) -> None:
        slot = self.slot_of(key)
        source = self.owner(slot)
        self._send_keys(source, self._target(source, slot), [key])

    def _migrate_slot_end(self, slot: int, to: Node) -> None:
        source = self.owner(slot)
        while keys := source.execute("CLUSTER", "GETKEYSINSLOT", slot, 100):
            self._send_keys(source, to, keys)
        others = [node for node in self.primaries() if node not in (source, to)]
        for node in (to, source, *others):
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", self._name(to))
        self._moving.discard(slot)
        wait_until(lambda: self._agreed() and self.owner(slot) is to, within=10, step=0.01)

    def _send_keys(self, source: Node, to: Node, keys: Sequence[str | bytes]) -> None:
        answer = source.execute(
            "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "AUTH2", USER, PASSWORD, "KEYS", *keys
        )
        if answer == b"NOKEY":
            raise KeyError(keys[0])

    def _target(self, source: Node, slot: int) -> Node:
        mark = f"[{slot}->-"
        for seen in self._lines(source):
            for part in seen[8:]:
                if part.startswith(mark):
                    return self._ids[part.removeprefix(mark).removesuffix("]")]
        raise LookupError(f"slot {slot} is not being moved")

    def _follow(self, replica: Node, primary: Node) -> bool:
        try:
            replica.execute("CLUSTER", "REPLICATE", self._name(primary))
        except ReplyError as fault:
            if "Unknown node" in str(fault):
                return False
            raise
        return True

    def _name(self, node: Node) -> str:
        return next(name for name, known in self._ids.items() if known is node)

    def _running(self) -> list[Node]:
        return [node for node in self.nodes if node.running and not node.frozen]

    def _any_node(self) -> Node:
        return self._running()[0]

    def _lines(self, node: Node) -> list[list[str]]:
        answer: bytes = node.execute("CLUSTER", "NODES")
        return [line.split(" ") for line in answer.decode().splitlines()]

    def _view(self, node: Node | None = None) -> dict[str, _Seen]:
        view: dict[str, _Seen] = {}
        for name, _, flags, follows, _, _, _, link, *slots in self._lines(node or self._any_node()):
            marks = set(flags.split(","))
            view[name] = _Seen(
                primary="master" in marks,
                healthy=link == "connected" and not marks & {"fail", "fail?", "handshake", "noaddr"},
                follows=follows,
                slots=tuple(part for part in slots if not part.startswith("[")),
            )
        return view

    def _agreed(self) -> bool:
        views = [self._view(node) for node in self._running()]
        return all(view == views[0] for view in views)

    def _healthy(self) -> bool:
        return all(node.running and not node.frozen for node in self.nodes) and self._agreed_on_health()

    def _agreed_on_health(self) -> bool:
        view = self._view()
        return (
            len(view) == len(self.nodes)
            and all(seen.healthy for seen in view.values())
            and sum(seen.primary for seen in view.values()) == self._shards
            and self._agreed()
            and self._answering()
        )

    def _answering(self) -> bool:
        return all(self._node_in_order(node) for node in self._running())

    def _node_in_order(self, node: Node) -> bool:
        state: bytes
        replication: bytes
        state, replication = node.client.pipeline([("CLUSTER", "INFO"), ("INFO", "replication")])
        return b"cluster_state:ok" in state and (
            b"role:master" in replication or b"master_link_status:up" in replication
        )

    def _took_over(self, replica: Node) -> bool:
        name = self._name(replica)
        views: list[Any] = [self._view(node).get(name) for node in self._running()]
        return all(seen is not None and seen.primary and seen.slots for seen in views)
