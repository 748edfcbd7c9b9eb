"""Job: what is known of one piece of work, as it stands in Redis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from counterseal.core.codec import JsonValue, from_text
from counterseal.core.errors import CodecError, ConfigurationError
from counterseal.jobs.options import NO_EXTRA, Priority, read_extra
from counterseal.store.wire import Reply


class State(StrEnum):
    """Where a job is in its life. `failed` is the dead letter; the last three never change again.

    | from | to |
    | --- | --- |
    | scheduled | queued, cancelled |
    | queued | running, cancelled |
    | running | completed, failed, cancelled, retrying; queued when it is handed back or its worker was lost |
    | retrying | queued, cancelled |
    """

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
        return not TRANSITIONS[self]


TRANSITIONS: Final = {
    State.SCHEDULED: frozenset({State.QUEUED, State.CANCELLED}),
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.RETRYING, State.QUEUED}),
    State.RETRYING: frozenset({State.QUEUED, State.CANCELLED}),
    State.COMPLETED: frozenset[State](),
    State.FAILED: frozenset[State](),
    State.CANCELLED: frozenset[State](),
}
"""What may follow each state."""

_ENDS: Final = {b"c": State.COMPLETED, b"f": State.FAILED, b"x": State.CANCELLED}
_ID: Final = re.compile(r"([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]{1,64})")
_QUEUE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come, by its own account: a share from 0 to 1, and a message that may be empty."""

    share: float
    message: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed. `error` is the name of what was raised, `message` its text when it is one of ours."""

    error: str
    message: str = ""
    where: str = ""
    """The function, file and line that raised it."""

    def __str__(self) -> str:
        """One sentence."""
        text = f"{self.error}: {self.message}" if self.message else self.error
        return f"{text} (in {self.where})" if self.where else text


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands in Redis.

    `attempt` counts how often its handler was begun, those cut off by the end of a worker not among them, and `lost`
    how often its worker did not come back. `args` is what its task was given. `failure` says why the last run failed,
    or why it is parked; `reason` why it was cancelled, or shall be.
    """

    id: str
    type: str
    queue: str
    state: State
    priority: Priority
    args: JsonValue
    schema: int
    """Of the arguments: the version of the task that they were written for."""
    attempt: int
    lost: int
    queued_at: datetime
    due_at: datetime | None
    """When it runs at the earliest, while it is scheduled or is to run again."""
    started_at: datetime | None
    ended_at: datetime | None
    run_time: timedelta | None
    """Of the last run, by the worker's clock; None while there is none that has ended."""
    result: JsonValue
    failure: Failure | None
    reason: str | None
    parked: bool
    """Whether it waits for a release that can run it. It stands among the dead letters then."""
    progress: Progress | None
    tags: tuple[str, ...]
    idempotency_key: str
    """What its effects are keyed by: its own id, when none was given."""
    parent: str | None
    flow: str | None
    unique: str | None
    holds_unique: bool
    """Whether it has its unique key: not when it has ended, gave it back, or the key's time has passed."""
    deadline: datetime | None
    retry_of: str | None
    """The dead letter that this job was made from."""
    schedule: str | None


def job_id(queue: str, part: str) -> str:
    """The public id of a job."""
    return f"{queue}.{part}"


def split_job_id(identifier: str) -> tuple[str, str] | None:
    """Queue and part of a public id; None for what is none."""
    found = _ID.fullmatch(identifier)
    return None if found is None else (found[1], found[2])


def is_queue_name(name: str) -> bool:
    """Whether a queue may have this name: 1 to 64 letters, digits, `-` or `_`."""
    return _QUEUE.fullmatch(name) is not None


def read_job(queue: str, part: str, reply: Reply) -> Job | None:
    """A job from the reply of `read`; None when there is none, or it has ended and is kept no more.

    Raises `CodecError` when it can't be read.
    """
    if not isinstance(reply, list):
        raise CodecError("a stored job can't be read", key=part)
    if not isinstance(reply[0], bytes):
        return None
    try:
        return _job(queue, part, reply[0], reply[1:])
    except (
        ValueError,
        IndexError,
        OverflowError,
        KeyError,
        TypeError,
        msgspec.MsgspecError,
        ConfigurationError,
    ) as fault:
        raise CodecError("a stored job can't be read", key=part) from fault


def _job(queue: str, part: str, record: bytes, beside: Sequence[Reply]) -> Job | None:
    entry, progress, cancel, now, *holder = beside
    now_ms = now if isinstance(now, int) else 0
    code = record[:1]
    kind, priority, _, _, queued_ms, extra_text, *rest = record[1:].split(b"\n")
    extra = read_extra(extra_text) if extra_text else NO_EXTRA
    args, schema = read_args(rest[0], key=part)
    known: dict[str, Any] = {
        "due_at": None, "started_at": None, "ended_at": None, "run_time": None, "result": None,
        "failure": None, "reason": _text(cancel), "parked": False,
    }  # fmt: skip
    if code in _ENDS:
        state = _ENDS[code]
        _, attempt, lost, started_ms, ended_ms, run_us, *keep_ms = map(int, rest[1].split(b" "))
        if (
            keep_ms and ended_ms + keep_ms[0] <= now_ms
        ):  # a former release wrote no time: it is there with its key
            return None
        known["started_at"] = moment(started_ms) if started_ms else None
        known["ended_at"] = moment(ended_ms)
        known["run_time"] = timedelta(microseconds=run_us)
        if state is State.COMPLETED:
            known["result"] = from_text(rest[2], key=part) if rest[2] else None
        elif state is State.FAILED:
            known["failure"] = read_failure(rest[2])
        else:
            known["reason"] = rest[2].decode()
    else:
        words, _, error = (entry if isinstance(entry, bytes) else b"queued 0 0 0 0").partition(b"\n")
        name, _, attempt, lost, at_ms, *_ = words.split(b" ")
        attempt, lost = int(attempt), int(lost)
        known["parked"] = name == b"parked"
        state = State.RETRYING if known["parked"] else State(name.decode())
        known["failure"] = read_failure(error) if error else None
        if state is State.RUNNING:
            known["started_at"] = moment(int(at_ms))
        elif state in (State.SCHEDULED, State.RETRYING) and not known["parked"]:
            known["due_at"] = moment(int(at_ms))
    return Job(
        id=job_id(queue, part),
        type=kind.decode(),
        queue=queue,
        state=state,
        priority=Priority(int(priority)),
        args=args,
        schema=schema,
        attempt=attempt,
        lost=lost,
        queued_at=moment(int(queued_ms)),
        progress=_progress(progress),
        tags=tuple(map(unquote, extra.tags)),
        idempotency_key=extra.key or job_id(queue, part),
        parent=extra.parent,
        flow=unquote(extra.flow[0]) if extra.flow else None,
        unique=unquote(extra.unique[0]) if extra.unique else None,
        holds_unique=any(read_holder(one, now_ms=now_ms) == part for one in holder),
        deadline=moment(extra.deadline) if extra.deadline else None,
        retry_of=None if extra.retry_of is None else job_id(queue, extra.retry_of),
        schedule=extra.schedule,
        **known,
    )


def read_args(data: bytes, *, key: str) -> tuple[JsonValue, int]:
    """The arguments of a job and their schema version. Raises `CodecError` naming `key`."""
    version, colon, text = data.partition(b":")
    if not (colon and version.isdigit() and len(version) < 10):
        raise CodecError("the arguments of a job do not begin with a schema version", key=key)
    return from_text(text, key=key), int(version)


def read_holder(text: Reply, *, now_ms: int) -> str | None:
    """The part that holds a unique key, from what is stored; None for nothing, and when its time has passed.

    What a former release wrote has no time: it holds as long as its key is there.
    """
    if not isinstance(text, bytes):
        return None
    part, _, until_ms = text.decode().partition(" ")
    return part if not until_ms or int(until_ms) > now_ms else None


def write_failure(failure: Failure) -> bytes:
    """A failure as it is stored: one line."""
    return msgspec.json.encode([failure.error, failure.message, failure.where])


def read_failure(text: bytes) -> Failure:
    """What `write_failure` wrote; any other text as the name of an error."""
    try:
        return Failure(*msgspec.json.decode(text, type=tuple[str, str, str]))
    except msgspec.MsgspecError:
        return Failure(text.decode(errors="replace"))


def moment(ms: int) -> datetime:
    """A moment from milliseconds since 1970."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def _progress(text: Reply) -> Progress | None:
    if not isinstance(text, bytes):
        return None
    share, message, at_ms = msgspec.json.decode(text, type=tuple[float, str, int])
    return Progress(share, message, moment(at_ms))


def _text(reply: Reply) -> str | None:
    return reply.decode() if isinstance(reply, bytes) else None
