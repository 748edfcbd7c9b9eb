"""The atomic operations of the job engine, one typed call for each file in `lua/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from counterseal.core.errors import CodecError
from counterseal.jobs.job import State
from counterseal.store.base import Store
from counterseal.store.keys import JOB_TTL, JOBS_TIME_TTL, Keys
from counterseal.store.scripts import load_script
from counterseal.store.wire import Reply

MOST_LOST: Final = 3
"""A job that did not come back from this many workers is a dead letter."""

_LOST_ERROR: Final = f"{MOST_LOST} workers in turn did not come back from this job"
_TTL_S: Final = JOB_TTL // timedelta(seconds=1)
_TIME_TTL_S: Final = JOBS_TIME_TTL // timedelta(seconds=1)

_ENQUEUE: Final = load_script("counterseal.jobs", "enqueue")
_LEASE: Final = load_script("counterseal.jobs", "lease")
_EXTEND: Final = load_script("counterseal.jobs", "extend")
_FINISH: Final = load_script("counterseal.jobs", "finish")


@dataclass(frozen=True, slots=True)
class Lease:
    """A job that this worker holds. `attempt` is the fencing token that its result must show."""

    id: str
    type: str
    attempt: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Queue:
    """The calls of one queue. Each is one round trip and raises `StoreUnavailable` when Redis does not answer."""

    store: Store
    keys: Keys
    name: str

    async def enqueue(self, identifier: str, task: str, payload: bytes) -> bool:
        """Accept a job. False when there is one with this id already."""
        reply = await self.store.run(
            _ENQUEUE,
            record=self.keys.job(self.name, identifier),
            ready=self.keys.jobs_ready(self.name, task),
            stats=self.keys.jobs_stats(self.name, task),
            id=identifier,
            type=task,
            payload=payload,
            now_ms=self.store.now_ms(),
            wake=self.keys.jobs_wake(self.name),
        )
        return reply == 1

    async def lease(self, tasks: Sequence[str], *, count: int, lease: timedelta) -> list[Lease]:
        """Hold up to `count` queued jobs of these types, after putting back those whose lease has run out."""
        reply = await self.store.run(
            _LEASE,
            time=self.keys.jobs_time(self.name),
            running=self.keys.jobs_running(self.name),
            ready=[self.keys.jobs_ready(self.name, task) for task in tasks],
            prefix=self.keys.jobs_prefix(self.name),
            now_ms=self.store.now_ms(),
            lease_ms=lease // timedelta(milliseconds=1),
            count=count,
            most_lost=MOST_LOST,
            lost_error=_LOST_ERROR,
            ttl_s=_TTL_S,
            time_ttl_s=_TIME_TTL_S,
            wake=self.keys.jobs_wake(self.name),
            done=self.keys.jobs_done(self.name),
        )
        return [self._leased(item) for item in (reply if isinstance(reply, list) else [])]

    async def extend(self, leases: Sequence[Lease], *, lease: timedelta) -> frozenset[str]:
        """Prolong leases. Returns the ids of those that are held no more."""
        reply = await self.store.run(
            _EXTEND,
            time=self.keys.jobs_time(self.name),
            running=self.keys.jobs_running(self.name),
            prefix=self.keys.jobs_prefix(self.name),
            now_ms=self.store.now_ms(),
            lease_ms=lease // timedelta(milliseconds=1),
            time_ttl_s=_TIME_TTL_S,
            leases=[part for held in leases for part in (held.id, held.attempt)],
        )
        lost = reply if isinstance(reply, list) else []
        return frozenset(identifier.decode() for identifier in lost if isinstance(identifier, bytes))

    async def finish(self, held: Lease, state: State, *, error: str | None = None) -> bool:
        """End a lease as `completed` or `failed`, or give the job back as `queued`.

        False when the lease is held no more; then nothing was changed.
        """
        back = state is State.QUEUED
        reply = await self.store.run(
            _FINISH,
            time=self.keys.jobs_time(self.name),
            running=self.keys.jobs_running(self.name),
            record=self.keys.job(self.name, held.id),
            stats=self.keys.jobs_stats(self.name, held.type),
            ready=self.keys.jobs_ready(self.name, held.type),
            id=held.id,
            token=held.attempt,
            state=state.value,
            error=error or "",
            now_ms=self.store.now_ms(),
            ttl_s=_TTL_S,
            time_ttl_s=_TIME_TTL_S,
            channel=self.keys.jobs_wake(self.name) if back else self.keys.jobs_done(self.name),
            message=held.type if back else held.id,
        )
        return reply == 1

    def _leased(self, item: Reply) -> Lease:
        match item:
            case [bytes(identifier), int(attempt), bytes(task), bytes(payload)]:
                return Lease(identifier.decode(), task.decode(), attempt, payload)
            case _:
                raise CodecError("a leased job can't be read", key=self.keys.jobs_running(self.name))
