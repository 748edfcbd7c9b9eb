"""Doctor: examines the Redis that is configured, and says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum

import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from counterseal.cli.faults import naming_settings
from counterseal.cli.loading import end_loading
from counterseal.cli.logs import configure_logs
from counterseal.core.clock import Clock, SystemClock
from counterseal.core.errors import CommandError, StoreError
from counterseal.core.settings import Settings
from counterseal.store.base import Store
from counterseal.store.info import PINGS, measure_latency, parse_info
from counterseal.store.keys import Keys
from counterseal.store.link import MINIMUM_VERSIONS
from counterseal.store.open import open_store
from counterseal.store.scripts import load_script

SKEW_WARNING = timedelta(milliseconds=500)
SKEW_FAULT = timedelta(seconds=5)
MEMORY_WARNING = 0.8
MEMORY_FAULT = 0.95
LATENCY_WARNING = timedelta(milliseconds=20)
SLOTS = 16384

_HOSTED = "managed by Upstash"


class State(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked at, how it is, what was seen, and what to do (empty when nothing)."""

    check: str
    status: State
    found: str
    advice: str = ""


def run_doctor(settings: Settings, *, as_json: bool) -> int:
    """Examine, print, and return the exit code: 1 when there is a fault, else 0.

    Raises `ConfigurationError` when the server can't be asked at all.
    """
    end_loading()
    configure_logs(settings)
    with naming_settings(settings), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        heading, findings = runner.run(_examine(settings))
    if as_json:
        print(json.dumps({"redis": heading, "checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print_table(heading, findings)
    return int(any(finding.status is State.FAULT for finding in findings))


async def _examine(settings: Settings) -> tuple[str, list[Finding]]:
    async with open_store(settings) as store:
        return store.description, await examine(store, settings)


async def examine(store: Store, settings: Settings, *, clock: Clock | None = None) -> list[Finding]:
    """Every check, in the order in which they are worth reading. About 30 round trips.

    `clock` is this machine's, which the server's is compared with.
    """
    clock = clock or SystemClock()
    try:
        info = parse_info(await store.command("INFO"))
    except CommandError as refusal:
        info = {}
        unread = f"the server did not answer INFO ({refusal.kind})"
    else:
        unread = "INFO does not say"
    hosted = store.server.product == "upstash"
    findings = [
        check_version(store),
        check_persistence(info, unread, hosted=hosted),
        check_eviction(info, unread, hosted=hosted),
        check_memory(info, unread, hosted=hosted),
        check_replicas(info, settings.redis.min_replicas),
        await _attempt("clock", lambda: check_clock(store, clock)),
        await _attempt("cluster", lambda: check_cluster(store, info)),
        await _attempt("rights", lambda: check_rights(store, Keys(settings.namespace))),
        await _attempt("latency", lambda: check_latency(store)),
    ]
    return [finding for finding in findings if finding is not None]


def check_version(store: Store) -> Finding:
    """What answers, and what is needed. A server that is too old is refused before any check."""
    product, version = store.server.product, store.server.version
    if not version:
        return Finding("version", State.OK, product.capitalize())
    least = ".".join(map(str, MINIMUM_VERSIONS.get(product, ())))
    shown = f"{product.capitalize()} {'.'.join(map(str, version))}"
    return Finding("version", State.OK, f"{shown} (at least {least})" if least else shown)


def check_persistence(info: Mapping[str, str], unread: str, *, hosted: bool) -> Finding:
    """The append-only file must be on and be written."""
    if hosted:
        return Finding("persistence", State.OK, _HOSTED)
    if "aof_enabled" not in info:
        return Finding("persistence", State.WARNING, unread, "make sure that appendonly is yes")
    if info["aof_enabled"] != "1":
        return Finding(
            "persistence",
            State.FAULT,
            "the append-only file is off: jobs and sessions are lost when the server stops",
            "set appendonly yes, and appendfsync everysec or always",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding(
            "persistence", State.FAULT, "the last write of the append-only file failed", "look at the disk"
        )
    return Finding("persistence", State.OK, "the append-only file is on")


def check_eviction(info: Mapping[str, str], unread: str, *, hosted: bool) -> Finding:
    """Nothing may be thrown away when memory is short: a queue that is evicted is a lost job."""
    policy = info.get("maxmemory_policy")
    if policy is None:
        advice = (
            "leave Eviction off for this database"
            if hosted
            else "make sure that maxmemory-policy is noeviction"
        )
        return Finding(
            "eviction", State.OK if hosted else State.WARNING, _HOSTED if hosted else unread, advice
        )
    if policy == "noeviction":
        return Finding("eviction", State.OK, policy)
    limited = info.get("maxmemory", "0") != "0"
    return Finding(
        "eviction",
        State.FAULT if limited else State.WARNING,
        f"{policy}: {'jobs and sessions' if limited else 'once maxmemory is set, jobs and sessions'} can be evicted",
        "set maxmemory-policy noeviction",
    )


def check_memory(info: Mapping[str, str], unread: str, *, hosted: bool) -> Finding:
    """How much is used of what there may be: of `maxmemory`, else of the machine's memory."""
    if "used_memory" not in info:
        return Finding("memory", State.OK if hosted else State.WARNING, _HOSTED if hosted else unread)
    used = int(info["used_memory"])
    limit = int(info.get("maxmemory", "0"))
    whole = limit or int(info.get("total_system_memory", "0"))
    share = used / whole if whole else 0.0
    found = f"{_megabytes(used)} used of {_megabytes(whole)}" if whole else f"{_megabytes(used)} used"
    if share >= MEMORY_WARNING:
        state = State.FAULT if share >= MEMORY_FAULT else State.WARNING
        return Finding(
            "memory", state, f"{found} ({share:.0%})", "raise maxmemory, or give the machine more memory"
        )
    return Finding("memory", State.OK, found)


def check_replicas(info: Mapping[str, str], needed: int) -> Finding | None:
    """As many replicas as `COUNTERSEAL_MIN_REPLICAS` asks for."""
    if not needed:
        return None
    present = int(info.get("connected_slaves", "0"))
    found = f"{present} connected, COUNTERSEAL_MIN_REPLICAS is {needed}"
    if present < needed:
        return Finding(
            "replicas", State.FAULT, found, "connect more replicas, or lower COUNTERSEAL_MIN_REPLICAS"
        )
    return Finding("replicas", State.OK, found)


async def check_clock(store: Store, clock: Clock) -> Finding:
    """This machine's clock against the server's. One round trip."""
    before = clock.wall_ms()
    reply = await store.command("TIME")
    after = clock.wall_ms()
    if not isinstance(reply, list) or len(reply) != 2:
        return Finding("clock", State.WARNING, "TIME was not answered with a time")
    seconds, microseconds = (int(part) for part in reply if isinstance(part, (bytes, int)))
    skew = timedelta(milliseconds=(before + after) / 2 - seconds * 1000 - microseconds / 1000)
    apart = abs(skew)
    found = f"this machine is {apart // timedelta(milliseconds=1)} ms {'ahead' if skew > timedelta(0) else 'behind'}"
    if apart > SKEW_WARNING:
        state = State.FAULT if apart > SKEW_FAULT else State.WARNING
        return Finding("clock", state, found, "run a time service (NTP) on both machines")
    return Finding("clock", State.OK, found)


async def check_cluster(store: Store, info: Mapping[str, str]) -> Finding:
    """Every slot must be served. One round trip on a Cluster."""
    if store.server.mode != "cluster" and info.get("cluster_enabled", "0") != "1":
        return Finding("cluster", State.OK, "not a Cluster")
    state = parse_info(await store.command("CLUSTER", "INFO"))
    served = int(state.get("cluster_slots_ok", "0"))
    found = f"{state.get('cluster_size', '?')} primaries, {served} of {SLOTS} slots served"
    if state.get("cluster_state") != "ok" or served != SLOTS:
        return Finding("cluster", State.FAULT, found, "CLUSTER NODES on any node shows which one is missing")
    return Finding("cluster", State.OK, found)


async def check_rights(store: Store, keys: Keys) -> Finding:
    """Write, run a script, publish and delete: what counterseal does all the time. Four round trips."""
    probe = keys.doctor_probe(secrets.token_hex(8))
    script = load_script("counterseal.cli", "doctor_probe")
    steps: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
        ("write", lambda: store.command("SET", probe, "1", "PX", 60_000)),
        ("run scripts", lambda: store.run(script, probe=probe)),
        ("publish", lambda: store.command("PUBLISH", probe, "1")),
        ("delete", lambda: store.command("DEL", probe)),
    )
    refused: dict[str, str] = {}
    for name, step in steps:
        try:
            await step()
        except CommandError as refusal:
            refused[name] = refusal.kind
    if refused:
        found = ", ".join(f"{name} ({kind})" for name, kind in refused.items())
        return Finding("rights", State.FAULT, f"may not {found}", _advise(store, refused))
    return Finding("rights", State.OK, "may write, run scripts, publish and delete")


def _advise(store: Store, refused: Collection[str]) -> str:
    if store.kind != "rest":
        return "give the user +@all -@dangerous on ~* &*"
    if set(refused) == {"publish"}:
        return "set another COUNTERSEAL_NAMESPACE: a counterseal that serves Redis over REST keeps its own channels"
    return "use a token that may do all of this"


async def check_latency(store: Store) -> Finding:
    """Twenty PINGs, one after the other."""
    taken = await measure_latency(store)
    median, worst = taken["p50"], taken["max"]
    found = f"{median} ms median, {worst} ms worst of {PINGS} PINGs"
    if isinstance(median, float) and median > LATENCY_WARNING / timedelta(milliseconds=1):
        return Finding("latency", State.WARNING, found, "run counterseal in the region of the server")
    return Finding("latency", State.OK, found)


async def _attempt(check: str, ask: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        return await ask()
    except CommandError as refusal:
        return Finding(
            check, State.WARNING, f"the server refused to answer ({refusal.kind})", "ask as another user"
        )
    except StoreError as error:
        return Finding(check, State.FAULT, str(error), "look at the server's log and at the network")


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MB"


def _print_table(heading: str, findings: list[Finding]) -> None:
    colours = {State.OK: "green", State.WARNING: "yellow", State.FAULT: "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        seen = Text(finding.found)
        if finding.advice:
            seen.append(f"\n-> {finding.advice}", style="bold")
        table.add_row(Text(finding.status, style=colours[finding.status]), finding.check, seen)
    console = Console()
    console.print(Text(heading, style="bold"), soft_wrap=True)
    console.print(table)
