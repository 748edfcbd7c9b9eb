"""What a server tells of itself, and how quickly it answers."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from typing import Final, TypeAlias

from counterseal.core.codec import JsonValue
from counterseal.store.base import Store
from counterseal.store.wire import Reply

Facts: TypeAlias = dict[str, JsonValue]

PINGS: Final = 20

_SECTIONS: Final = ("server", "clients", "memory", "persistence", "stats")


def parse_info(reply: Reply) -> dict[str, str]:
    """The fields of an INFO reply, as text; empty when it is none."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in lines if colon}


async def describe_server(store: Store) -> Facts:
    """Memory in bytes, persistence and load, by INFO; what the server does not tell is None.

    One round trip. Raises `CommandError` when INFO is refused.
    """
    replies = await asyncio.gather(*(store.command("INFO", section) for section in _SECTIONS))
    info = {name: value for reply in replies for name, value in parse_info(reply).items()}
    return {
        "memory": {
            "used": _number(info, "used_memory"),
            "peak": _number(info, "used_memory_peak"),
            "limit": _number(info, "maxmemory"),
            "evictionPolicy": info.get("maxmemory_policy"),
        },
        "persistence": {
            "appendOnly": _flag(info, "aof_enabled", "1"),
            "lastAppendOk": _flag(info, "aof_last_write_status", "ok"),
            "lastSnapshotOk": _flag(info, "rdb_last_bgsave_status", "ok"),
            "loading": _flag(info, "loading", "1"),
        },
        "load": {
            "uptimeSeconds": _number(info, "uptime_in_seconds"),
            "clients": _number(info, "connected_clients"),
            "commandsPerSecond": _number(info, "instantaneous_ops_per_sec"),
            "evictedKeys": _number(info, "evicted_keys"),
            "expiredKeys": _number(info, "expired_keys"),
        },
    }


async def evicting_policy(store: Store) -> str | None:
    """The policy by which the server deletes keys once its memory is full; None when it does not, or does not say.

    One round trip. Raises `CommandError` when INFO is refused.
    """
    info = parse_info(await store.command("INFO", "memory"))
    limited = info.get("maxmemory", "0") != "0"
    policy = info.get("maxmemory_policy", "noeviction")
    return policy if limited and policy != "noeviction" else None


async def measure_latency(store: Store) -> Facts:
    """Percentiles in milliseconds of PINGs, one after the other. 20 round trips."""
    taken: list[float] = []
    for _ in range(PINGS):
        started = time.perf_counter()
        await store.command("PING")
        taken.append((time.perf_counter() - started) * 1000)
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    named = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(taken)}
    return {"pings": PINGS, **{name: round(value, 3) for name, value in named.items()}}


def _number(info: Mapping[str, str], name: str) -> int | None:
    text = info.get(name, "")
    return int(text) if text.isdecimal() else None


def _flag(info: Mapping[str, str], name: str, value: str) -> bool | None:
    return info[name] == value if name in info else None
