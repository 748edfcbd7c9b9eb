"""`counterseal doctor`: what it finds wrong with a server, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal.cli.doctor import Finding, State, examine
from counterseal.core.clock import SystemClock
from counterseal.core.settings import Settings
from counterseal.store.base import Store
from counterseal.store.cluster import ClusterStore
from counterseal.store.target import parse_redis_url
from support.cluster import Cluster
from support.gateway import gateway_on
from support.program import run_program
from support.relay import Relay
from support.servers import Server
from support.stores import native_store, store_on

CHECKS = ["version", "persistence", "eviction", "memory", "clock", "cluster", "rights", "latency"]


class ShiftedClock(SystemClock):
    """A machine's clock that goes wrong by so much."""

    def __init__(self, by: timedelta) -> None:
        self._by_ms = by // timedelta(milliseconds=1)

    def wall_ms(self) -> int:
        return super().wall_ms() + self._by_ms


class AgeingRelay(Relay):
    """A relay behind which a server seems to be of an older version."""

    def allow(self, data: bytes) -> tuple[bytes, bool]:
        return data.replace(b"$7\r\nversion\r\n$5\r\n9.", b"$7\r\nversion\r\n$5\r\n6."), False


async def examined(store: Store, *, clock: SystemClock | None = None, **variables: str) -> dict[str, Finding]:
    """The findings of a store by the name of their check."""
    findings = await examine(store, Settings.load(variables), clock=clock)
    return {finding.check: finding for finding in findings}


def test_nothing_is_wrong_with_the_embedded_server(tmp_path: Path) -> None:
    ended = run_program("doctor", "--json", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    found = json.loads(ended.stdout)
    assert [check["check"] for check in found["checks"]] == CHECKS
    # How much memory this machine has left, and how busy it is, are not the server's faults.
    of_the_server = [check for check in found["checks"] if check["check"] not in ("memory", "latency")]
    assert {check["status"] for check in of_the_server} == {"ok"}


def test_a_fault_ends_it_with_exit_code_1_and_says_what_to_do(valkey: Server, tmp_path: Path) -> None:
    ended = run_program("doctor", folder=tmp_path, settings={"REDIS_URL": valkey.url}, fresh=True)
    assert (ended.returncode, ended.stderr) == (1, "")
    lines = ended.stdout.splitlines()
    assert lines[0] == f"redis://127.0.0.1:{valkey.port}/0"
    assert [line.split()[1] for line in lines[1:] if line[:1].strip()] == CHECKS
    assert any(line.startswith("fault") and "append-only file is off" in line for line in lines)
    assert "-> set appendonly yes, and appendfsync everysec or always" in ended.stdout


async def test_a_server_that_seems_too_old_is_refused(valkey: Server, tmp_path: Path) -> None:
    async with AgeingRelay(valkey) as relay:
        for command in ("serve", "doctor"):
            ended = await asyncio.to_thread(
                run_program, command, folder=tmp_path, settings={"REDIS_URL": relay.url}
            )
            assert ended.returncode == 2, ended.stderr
            assert ended.stderr.startswith("counterseal: REDIS_URL: expected ")
            assert "Valkey 7.2 or newer" in ended.stderr
            assert "came: Valkey 6." in ended.stderr
            assert ended.stderr.count("\n") == 1


async def test_an_eviction_policy_is_a_fault_once_memory_is_limited(servers: Callable[..., Server]) -> None:
    server = servers(config=["maxmemory-policy allkeys-lru"])
    async with store_on(server) as store:
        assert (await examined(store))["eviction"].status is State.WARNING
        server.execute("CONFIG", "SET", "maxmemory", "100mb")
        finding = (await examined(store))["eviction"]
        assert finding.status is State.FAULT
        assert finding.advice == "set maxmemory-policy noeviction"
        server.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
        assert (await examined(store))["eviction"].status is State.OK


async def test_memory_that_is_nearly_used_up_is_a_warning_then_a_fault(
    servers: Callable[..., Server],
) -> None:
    server = servers()
    server.execute("SETEX", "large", 60, b"x" * 2**24)
    async with store_on(server) as store:
        used = int(server.info("memory")["used_memory"])
        for limit, state in ((used * 4, State.OK), (used * 1.15, State.WARNING), (used * 1.01, State.FAULT)):
            server.execute("CONFIG", "SET", "maxmemory", int(limit))
            assert (await examined(store))["memory"].status is state


async def test_the_append_only_file_must_be_on(servers: Callable[..., Server]) -> None:
    server = servers(appendonly=True)
    async with store_on(server) as store:
        assert (await examined(store))["persistence"].status is State.OK
        server.execute("CONFIG", "SET", "appendonly", "no")
        assert (await examined(store))["persistence"].status is State.FAULT


@pytest.mark.parametrize(
    ("by", "state", "words"),
    [
        (timedelta(0), State.OK, ""),
        (timedelta(seconds=1), State.WARNING, "ahead"),
        (timedelta(seconds=-1), State.WARNING, "behind"),
        (timedelta(minutes=1), State.FAULT, "ahead"),
    ],
)
async def test_clocks_that_differ_are_told(valkey: Server, by: timedelta, state: State, words: str) -> None:
    async with store_on(valkey) as store:
        finding = (await examined(store, clock=ShiftedClock(by)))["clock"]
    assert finding.status is state
    assert words in finding.found


async def test_a_user_who_may_not_write_or_run_scripts_is_a_fault(servers: Callable[..., Server]) -> None:
    server = servers(acl=["reader on >secret ~* &* +@all -@write -@scripting"])
    async with native_store(server, user="reader", password="secret") as store:
        finding = (await examined(store))["rights"]
    assert finding.status is State.FAULT
    assert "write (NOPERM)" in finding.found
    assert "run scripts (NOPERM)" in finding.found
    assert "publish" not in finding.found


async def test_what_a_user_may_not_ask_is_a_warning(servers: Callable[..., Server]) -> None:
    server = servers(acl=["app on >secret ~* &* +@all -@dangerous +info|server"])
    async with native_store(server, user="app", password="secret") as store:
        found = await examined(store)
    assert {found[name].status for name in ("persistence", "eviction", "memory")} == {State.WARNING}
    assert found["rights"].status is State.OK


async def test_missing_replicas_are_a_fault_when_they_are_asked_for(valkey: Server) -> None:
    async with store_on(valkey) as store:
        assert "replicas" not in await examined(store)
        finding = (await examined(store, COUNTERSEAL_MIN_REPLICAS="1"))["replicas"]
    assert (finding.status, finding.found) == (State.FAULT, "0 connected, COUNTERSEAL_MIN_REPLICAS is 1")


async def test_a_cluster_serves_every_slot(cluster: Cluster) -> None:
    async with ClusterStore(parse_redis_url(cluster.url)) as store:
        found = await examined(store)
    assert (found["cluster"].status, found["cluster"].found) == (
        State.OK,
        "3 primaries, 16384 of 16384 slots served",
    )
    assert found["rights"].status is State.OK


async def test_a_server_over_rest_is_examined_as_far_as_it_tells(valkey: Server) -> None:
    async with gateway_on(valkey) as gateway, gateway.rest_store() as store:
        found = await examined(store)
    assert list(found) == CHECKS
    assert found["rights"].status is State.OK
    assert found["latency"].status is not State.FAULT


async def test_channels_that_a_counterseal_over_rest_keeps_to_itself_need_another_namespace(
    valkey: Server,
) -> None:
    async with gateway_on(valkey, reserved="cs:") as gateway, gateway.rest_store() as store:
        finding = (await examined(store))["rights"]
        other = (await examined(store, COUNTERSEAL_NAMESPACE="mine"))["rights"]
    assert finding.status is State.FAULT
    assert finding.found.startswith("may not publish (")
    assert finding.advice.startswith("set another COUNTERSEAL_NAMESPACE")
    assert other.status is State.OK


async def test_the_doctor_leaves_no_key(valkey: Server) -> None:
    async with store_on(valkey) as store:
        await examined(store)
    assert valkey.execute("DBSIZE") == 0
