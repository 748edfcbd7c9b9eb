"""SentinelGroup: a primary, a replica and the three sentinels that watch them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from hiredis import ReplyError

from counterseal.testing.running import Running
from support.client import PASSWORD, USER
from support.servers import Server, login
from support.waiting import wait_until

SERVICE = "mymaster"

_BRISK = ("INFO-PERIOD", 100, "PING-PERIOD", 300, "ASK-PERIOD", 100, "TILT-TRIGGER", 30_000)
"""Sentinels ask more often than usual, and do not take a slow machine for a clock that jumped.

Two times have to stay long. What a replica said is good for five PING-PERIODs once its primary is down, and it is asked
once a second then. A sentinel that missed a failover lets a new primary be for four PUBLISH-PERIODs, then degrades it.
"""


class SentinelGroup(Running):
    """Sentinel as it is deployed, with short times: `with SentinelGroup() as sentinels`.

    `failover`, `kill_primary` and `wait_for_new_primary` leave the group with another primary; ask `primary` rather
    than remember. `heal` brings everything back to life after a test. `password` is that of the servers,
    `sentinel_password` that of the sentinels.
    """

    def __init__(
        self, *, password: str | None = None, sentinel_password: str | None = None, config: Sequence[str] = ()
    ) -> None:
        self.password = password
        self.sentinel_password = sentinel_password
        self.servers = [Server(password=password, config=config) for _ in range(2)]
        self.sentinels: list[Server] = []

    @property
    def url(self) -> str:
        """The sentinels and the service as a `REDIS_URL`."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        option = (
            f"?sentinel_password={quote(self.sentinel_password, safe='')}" if self.sentinel_password else ""
        )
        return f"redis+sentinel://{login(self.password)}{hosts}/{SERVICE}{option}"

    @property
    def primary(self) -> Server:
        """The server that the sentinels name, running or not."""
        ports = {port for sentinel in self.sentinels if (port := self._named_by(sentinel)) is not None}
        assert len(ports) == 1, f"the sentinels name different primaries: {ports}"
        return self._on(ports.pop())

    @property
    def replica(self) -> Server:
        """The other server."""
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def start(self) -> None:
        """Start everything. Returns when the replica is in step and every sentinel knows the whole group."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_ready()
        primary, replica = self.servers
        replica.execute("REPLICAOF", "127.0.0.1", primary.port)
        self._make_sentinels(primary, replica)
        for sentinel in self.sentinels:
            sentinel.launch()
        self._ready_sentinels(self.sentinels)
        self.wait_healthy()

    async def failover(self) -> Server:
        """SENTINEL FAILOVER, and wait until the group is whole again. Returns the new primary."""
        return await asyncio.to_thread(self._failover)

    def kill_primary(self) -> Server:
        """SIGKILL to the primary. Returns it; `wait_for_new_primary` waits for the outcome."""
        primary = self.primary
        primary.kill()
        return primary

    async def wait_for_new_primary(self, former: Server, within: float = 15.0) -> Server:
        """Return the new primary once every sentinel names it and it takes writes."""
        return await asyncio.to_thread(self._wait_for_new_primary, former, within)

    def heal(self) -> None:
        """Thaw and restart whatever a test left frozen or dead. Costs a few milliseconds when nothing is to do."""
        everything = [*self.servers, *self.sentinels]
        for server in everything:
            if server.frozen and server.running:
                server.thaw()
        dead = [server for server in everything if not server.running]
        for server in dead:
            server.start()
        self._ready_sentinels([sentinel for sentinel in self.sentinels if sentinel in dead])
        primary = wait_until(lambda: self.primary, within=15, step=0.01)
        for server in self.servers:
            if server in dead and server is not primary:
                self._demote(server, primary)
        self.wait_healthy()

    def flush(self) -> None:
        """Remove every key and every script."""
        self.primary.flush()

    def wait_healthy(self, within: float = 20.0) -> None:
        """Return when the replica is in step and the sentinels agree that nobody is down."""
        wait_until(self._healthy, within, step=0.01)

    def close(self) -> None:
        """Kill everything and remove the folders."""
        for server in (*self.sentinels, *self.servers):
            server.close()

    def _make_sentinels(self, primary: Server, replica: Server) -> None:
        """Each is told in its file what it would else hear from the others within seconds."""
        names = [secrets.token_hex(20) for _ in range(3)]
        watch = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
            f"sentinel auth-user {SERVICE} {USER}",
            f"sentinel auth-pass {SERVICE} {PASSWORD}",
            f"sentinel failover-timeout {SERVICE} 1500",
            f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}",
            f"sentinel sentinel-user {USER}",
            f"sentinel sentinel-pass {PASSWORD}",
        ]
        self.sentinels = [Server(sentinel=True, password=self.sentinel_password) for _ in names]
        for number, (sentinel, name) in enumerate(zip(self.sentinels, names, strict=True)):
            others = [
                f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other.port} {known}"
                for other, known in zip(self.sentinels, names, strict=True)
                if other is not sentinel
            ]
            # They notice one after another, so that they do not all stand for election at once and tie.
            down_after = f"sentinel down-after-milliseconds {SERVICE} {500 + 200 * number}"
            sentinel.add_config(f"sentinel myid {name}", *watch, down_after, *others)

    def _ready_sentinels(self, sentinels: Sequence[Server]) -> None:
        for sentinel in sentinels:
            sentinel.wait_ready()
            sentinel.execute("SENTINEL", "DEBUG", *_BRISK)

    def _failover(self) -> Server:
        former = self.primary
        wait_until(self._ask_for_failover, within=10, step=0.02)
        new = self._wait_for_new_primary(former, within=15)
        self._demote(former, new)
        self.wait_healthy()
        return new

    def _demote(self, former: Server, primary: Server) -> None:
        """What Sentinel does to a former primary, word for word; it would take eight seconds to do so."""
        commands: list[tuple[str | int, ...]] = [
            ("MULTI",),
            ("REPLICAOF", "127.0.0.1", primary.port),
            ("CONFIG", "REWRITE"),
            ("CLIENT", "KILL", "TYPE", "normal"),
            ("CLIENT", "KILL", "TYPE", "pubsub"),
            ("EXEC",),
        ]
        former.client.pipeline(commands)

    def _ask_for_failover(self) -> bool:
        try:
            self.sentinels[0].execute("SENTINEL", "FAILOVER", SERVICE)
        except ReplyError as fault:
            if str(fault).startswith(("INPROG", "NOGOODSLAVE")):
                return False
            raise
        return True

    def _wait_for_new_primary(self, former: Server, within: float) -> Server:
        def agreed() -> Server | None:
            ports = {self._named_by(sentinel) for sentinel in self._running_sentinels()}
            if len(ports) != 1 or ports == {former.port}:
                return None
            new = self._on(ports.pop())
            with suppress(ConnectionError):
                return new if new.info("replication")["role"] == "master" else None
            return None

        found = wait_until(agreed, within, step=0.01)
        assert found is not None
        return found

    def _running_sentinels(self) -> list[Server]:
        return [sentinel for sentinel in self.sentinels if sentinel.running and not sentinel.frozen]

    def _named_by(self, sentinel: Server) -> int | None:
        if not sentinel.running or sentinel.frozen:
            return None
        address = sentinel.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(address[1])

    def _on(self, port: int | None) -> Server:
        return next(server for server in self.servers if server.port == port)

    def _healthy(self) -> bool:
        for server in (*self.servers, *self.sentinels):
            assert server.running, f"{server.port} is dead"
            assert not server.frozen, f"{server.port} is frozen"
        primary, replica = self.primary, self.replica
        try:
            self._check_replication(primary, replica)
            for sentinel in self.sentinels:
                self._check_sentinel(sentinel, replica)
        except ConnectionError as fault:
            # A server whose role is changed ends every connection, the kit's as well.
            raise AssertionError(str(fault)) from fault
        return True

    def _check_replication(self, primary: Server, replica: Server) -> None:
        assert primary.info("replication")["role"] == "master", f"{primary.port} is not a primary yet"
        state = replica.info("replication")
        assert state["role"] == "slave", f"{replica.port} is not a replica yet"
        assert state["master_port"] == str(primary.port), f"{replica.port} follows {state['master_port']}"
        assert state["master_link_status"] == "up", f"{replica.port} is not in step"

    def _check_sentinel(self, sentinel: Server, replica: Server) -> None:
        primary, replicas, others = sentinel.client.pipeline(
            [("SENTINEL", verb, SERVICE) for verb in ("MASTER", "REPLICAS", "SENTINELS")]
        )
        seen = _fields(primary)
        assert seen["flags"] == "master", f"{sentinel.port} sees the primary as {seen['flags']}"
        assert len(replicas) == 1, f"{sentinel.port} sees {len(replicas)} replicas"
        follower = _fields(replicas[0])
        state = {name: follower[name] for name in ("port", "flags", "master-port", "master-link-status")}
        wanted = {
            "port": str(replica.port), "flags": "slave", "master-port": seen["port"], "master-link-status": "ok"
        }  # fmt: skip
        assert state == wanted, f"{sentinel.port} sees the replica as {state}"
        flags = [_fields(entry)["flags"].removesuffix(",master_down") for entry in others]
        assert flags == ["sentinel"] * (len(self.sentinels) - 1), (
            f"{sentinel.port} sees the others as {flags}"
        )


def _fields(flat: list[Any]) -> dict[str, str]:
    texts = [part.decode() for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))
