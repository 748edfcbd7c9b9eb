"""Statistics: what queues hold and types of jobs have done, from counters that are right for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from counterseal.core.errors import CodecError
from counterseal.jobs.job import State

GAMMA: Final = 1.01 / 0.99
"""Bucket n of a histogram holds what is above GAMMA^(n-1) and at most GAMMA^n: DDSketch's mapping for 1 %."""

_PENDING: Final = (State.SCHEDULED, State.QUEUED, State.RUNNING, State.RETRYING)


@dataclass(frozen=True, slots=True)
class JobStats:
    """The jobs of one type since the beginning, in all queues.

    `pending` are scheduled, queued, running and retrying; `total` is completed + failed + pending + cancelled;
    `success_rate` is 100 x completed / (completed + failed), to two decimals, 0 when there are none.
    """

    total: int
    completed: int
    failed: int
    pending: int
    success_rate: float
    cancelled: int = 0
    scheduled: int = 0
    queued: int = 0
    running: int = 0
    retrying: int = 0
    runs: int = 0
    """How often a job was given to a worker."""
    failures: int = 0
    """How many runs failed."""
    lost: int = 0
    """How often a worker did not come back."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a duration, each to 1 %. All zero when there is none."""

    count: int
    p50: timedelta
    p95: timedelta
    p99: timedelta


@dataclass(frozen=True, slots=True)
class Throughput:
    """Jobs that ended in the last whole minutes: completed and failed."""

    completed_last_minute: int
    completed_last_hour: int
    failed_last_minute: int
    failed_last_hour: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What one queue holds now. `oldest_age` is how long the job waits that waits longest; None when none does.

    Of flows the first hundred that may be served are looked at for it.
    """

    queue: str
    paused: bool
    parallelism: int | None
    queued: int
    running: int
    delayed: int
    parked: int
    dead: int
    gone: int
    """How many jobs were found without a record: somebody else deleted it, or the server evicted it."""
    oldest_age: timedelta | None


def read_stats(counters: Mapping[str, int]) -> JobStats:
    """The statistics of a type from its counters."""
    counts = {state: counters.get(state.value, 0) for state in State}
    completed, failed, cancelled = counts[State.COMPLETED], counts[State.FAILED], counts[State.CANCELLED]
    pending = sum(counts[state] for state in _PENDING)
    ended = completed + failed
    return JobStats(
        total=ended + pending + cancelled,
        completed=completed,
        failed=failed,
        pending=pending,
        success_rate=round(100 * completed / ended, 2) if ended else 0.0,
        cancelled=cancelled,
        scheduled=counts[State.SCHEDULED],
        queued=counts[State.QUEUED],
        running=counts[State.RUNNING],
        retrying=counts[State.RETRYING],
        runs=counters.get("leased", 0),
        failures=counters.get("failures", 0),
        lost=counters.get("lost", 0),
    )


def read_quantiles(buckets: Mapping[int, int], unit: timedelta) -> Quantiles:
    """Quantiles of a histogram: how many are in which bucket, -1 standing for nothing at all."""
    count = sum(buckets.values())
    found: list[timedelta] = []
    for share in (0.5, 0.95, 0.99):
        rank, seen, value = share * (count - 1), 0, 0.0
        for bucket in sorted(buckets):
            seen += buckets[bucket]
            if seen > rank:
                value = 0.0 if bucket < 0 else 2 * math.pow(GAMMA, bucket) / (GAMMA + 1)
                break
        found.append(value * unit)
    return Quantiles(count, *found)


def read_counters(flat: list[bytes], *, key: str) -> dict[str, int]:
    """Counters from the reply of HGETALL. Raises `CodecError` naming `key`."""
    try:
        return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    except ValueError as fault:
        raise CodecError("a stored counter is not a whole number", key=key) from fault
