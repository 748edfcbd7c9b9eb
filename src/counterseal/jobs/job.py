"""Job: what is known of one piece of work, and the counters of its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from counterseal.core.codec import JsonValue, decode
from counterseal.core.errors import CodecError


class State(StrEnum):
    """Where a job is in its life. `failed` is the dead letter; the last three never change again."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether this is the end."""
        return self in _TERMINAL


_TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
_PENDING: Final = (State.SCHEDULED, State.QUEUED, State.RUNNING, State.RETRYING)


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands in Redis.

    `attempt` counts how often a worker was given it, and `lost` how often its worker did not come back. `error` is one
    sentence when it failed.
    """

    id: str
    type: str
    state: State
    payload: JsonValue
    attempt: int
    lost: int
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class JobStats:
    """The jobs of one type since the beginning.

    `pending` are scheduled, queued, running and retrying; `total` is completed + failed + pending + cancelled;
    `success_rate` is 100 x completed / (completed + failed), to two decimals, 0 when there are none.
    """

    total: int
    completed: int
    failed: int
    pending: int
    success_rate: float


def read_job(identifier: str, fields: Mapping[bytes, bytes], *, key: str) -> Job:
    """A job from the fields of its record. Raises `CodecError` naming `key` when they make none."""
    payload = decode(fields.get(b"payload", b""), key=key)
    try:
        return Job(
            id=identifier,
            type=fields[b"type"].decode(),
            state=State(fields[b"state"].decode()),
            payload=payload,
            attempt=int(fields[b"attempt"]),
            lost=int(fields[b"lost"]),
            queued_at=_moment(fields[b"queued_ms"]),
            started_at=_moment(fields[b"started_ms"]) if b"started_ms" in fields else None,
            ended_at=_moment(fields[b"ended_ms"]) if b"ended_ms" in fields else None,
            error=fields[b"error"].decode() if b"error" in fields else None,
        )
    except (KeyError, ValueError, OverflowError) as fault:
        raise CodecError("a stored job can't be read", key=key) from fault


def read_stats(fields: Mapping[bytes, bytes], *, key: str) -> JobStats:
    """The statistics of a type from its counters by state. Raises `CodecError` naming `key`."""
    try:
        counts = {state: int(fields.get(state.value.encode(), 0)) for state in State}
    except ValueError as fault:
        raise CodecError("a stored counter is not a whole number", key=key) from fault
    completed, failed = counts[State.COMPLETED], counts[State.FAILED]
    pending = sum(counts[state] for state in _PENDING)
    ended = completed + failed
    return JobStats(
        total=ended + pending + counts[State.CANCELLED],
        completed=completed,
        failed=failed,
        pending=pending,
        success_rate=round(100 * completed / ended, 2) if ended else 0.0,
    )


def _moment(ms: bytes) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)
