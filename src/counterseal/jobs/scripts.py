"""The atomic operations of the job engine, one typed call for each file in `lua/`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NamedTuple, cast

from counterseal.core.errors import CodecError
from counterseal.jobs.confirmation import confirm
from counterseal.jobs.job import read_holder
from counterseal.store.base import Store
from counterseal.store.keys import JOB_DEAD_TTL, Keys
from counterseal.store.scripts import load_script
from counterseal.store.wire import Argument, Reply, raised

MOST_LOST: Final = 3
"""A job that did not come back from this many workers is a dead letter."""

LEASED_AT_ONCE: Final = 200
"""So many jobs one call leases at most."""

_SENT: Final = "-to"
_SENT_CALL: Final = "0"

LOG_LINES: Final = 200

_MS: Final = timedelta(milliseconds=1)
_DEAD_MS: Final = JOB_DEAD_TTL // _MS
_LOST_ERROR: Final = f'["WorkerLost","{MOST_LOST} workers in turn did not come back from this job",""]'
_REPORT_MS: Final = timedelta(days=7) // _MS

_ENQUEUE: Final = load_script("counterseal.jobs", "enqueue")
_ENQUEUE_ONE: Final = load_script("counterseal.jobs", "enqueue_one")
_LEASE: Final = load_script("counterseal.jobs", "lease")
_EXTEND: Final = load_script("counterseal.jobs", "extend")
_FINISH: Final = load_script("counterseal.jobs", "finish")
_CANCEL: Final = load_script("counterseal.jobs", "cancel")
_REPORT: Final = load_script("counterseal.jobs", "report")
_RECALL: Final = load_script("counterseal.jobs", "recall")
_UNPARK: Final = load_script("counterseal.jobs", "unpark")
_DISCARD: Final = load_script("counterseal.jobs", "discard")
_READ: Final = load_script("counterseal.jobs", "read")
_RELEASE: Final = load_script("counterseal.jobs", "release")


class Leased(NamedTuple):
    """A job that this worker holds. `token` fences: its result must show it."""

    part: str
    token: bytes
    attempt: int
    type: str
    extra: bytes
    args: bytes
    queued_ms: int


class Batch(NamedTuple):
    """The answer of `lease`."""

    jobs: list[Leased]
    next_ms: int
    """Until something is due; -1 when nothing is."""
    gone: int
    """How many jobs had no record any more: somebody else has deleted it."""
    parked_ms: int
    """When one of the jobs was parked, the last of those that wait for a release that can run them; 0 without any."""


class Result(NamedTuple):
    """What became of a leased job. `ms` is how long it is kept; of `retrying` the pause, of `parked` its schema."""

    part: str
    token: bytes
    outcome: str
    ms: int
    run_us: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Queue:
    """The calls of one queue. Each is one round trip and raises `StoreUnavailable` when Redis does not answer."""

    store: Store
    keys: Keys
    name: str

    prefix: str = field(init=False)
    """What every key of the queue begins with."""
    _spelled: dict[tuple[str, str], tuple[str, str, str, str, str, str, str, bytes]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", self.keys.jobs_prefix(self.name))

    async def enqueue(self, jobs: Sequence[Argument]) -> list[str]:
        """Accept jobs, five arguments each as the script says; for each '' or the part that was there already."""
        reply = await self.store.run(
            _ENQUEUE,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            jobs=jobs,
        )
        return [item.decode() if isinstance(item, bytes) else "" for item in _items(reply)]

    def enqueue_one(self, part: str, kind: str, priority: str, args: bytes) -> Awaitable[Reply]:
        """Accept a job that asks for nothing, and has a part that nobody else has."""
        spelled = self._spelled.get((kind, priority)) or self._spell(kind, priority)
        record, queue, lane, ring, stats, events, prefix, head = spelled
        now_ms = self.store.now_ms()
        text = b"%b%d\n\n%b" % (head, now_ms, args)
        return self.store.run_in_order(
            _ENQUEUE_ONE, queue, record + part, lane, ring, stats, events, prefix, part, kind, now_ms, text
        )

    def _spell(self, kind: str, priority: str) -> tuple[str, str, str, str, str, str, str, bytes]:
        """What `enqueue_one` needs for a type and a priority: spelled once."""
        prefix = self.prefix
        spelled = self._spelled[kind, priority] = (
            f"{prefix}:job:",
            f"{prefix}:queue",
            f"{prefix}:ready:{priority}",
            f"{prefix}:ring:{priority}",
            f"{prefix}:stats:{kind}",
            f"{prefix}:events",
            prefix,
            f"p{kind}\n{priority}\n\n\n".encode(),
        )
        return spelled

    async def confirm(self, part: str = "", *, replicas: int) -> None:
        """Wait until what was written is on so many replicas, see `confirmation`."""
        await confirm(self.store, self.prefix, part=part, replicas=replicas)

    async def lease(self, *, room: int, worker: str, call: str, lease_ms: int, idle: int = -1) -> Batch:
        """Hold up to `room` queued jobs, after putting back those that are due or lost.

        `idle` is the number of free slots: a job that comes alone is sent to this worker while it has one, see `sent`.
        Nothing is sent with -1.
        """
        reply = await self.store.run(
            _LEASE,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            lease_ms=lease_ms,
            room=min(room, LEASED_AT_ONCE),
            worker=worker,
            call=call,
            most_lost=MOST_LOST,
            lost_error=_LOST_ERROR,
            keep_dead_ms=_DEAD_MS,
            idle=idle,
        )
        match reply:
            case [list() as found, int(next_ms), int(gone), int(parked_ms)]:
                return Batch([self._leased(item) for item in found], next_ms, gone, parked_ms)
            case _:
                raise CodecError("leased jobs can't be read", key=self.prefix)

    def sent_to(self, worker: str) -> str:
        """The channel on which jobs are sent to a worker."""
        return f"{self.prefix}:to:{worker}"

    def sent(self, data: bytes) -> Leased:
        """A job that was sent to this worker, which holds it."""
        head, _, record = data.partition(b"\n")
        part, _, entry = head.partition(b" ")
        return self._leased([part, entry, record])

    async def held(self, worker: str) -> str | None:
        """The part of the last job that was sent to a worker, while its lease lasts; None when there is none."""
        found = await self.store.command("GET", f"{self.prefix}:held:{worker}{_SENT}")
        words = found.split() if isinstance(found, bytes) else []
        return words[1].decode() if len(words) > 1 else None

    async def recall_sent(self, worker: str) -> int:
        """Give back the last job that was sent to a worker who never saw it."""
        return await self.recall(worker=f"{worker}{_SENT}", call=_SENT_CALL)

    async def leave(self, worker: str, *, lease_ms: int) -> None:
        """Have no more jobs sent to a worker."""
        await self.store.command("SREM", f"{self.prefix}:idle", f"{worker} {lease_ms}")

    async def extend(self, leases: Sequence[Leased], *, lease_ms: int) -> list[str]:
        """Prolong leases; for each '' when it is held, `lost`, or `cancel` and a reason."""
        reply = await self.store.run(
            _EXTEND,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            lease_ms=lease_ms,
            leases=[part for held in leases for part in (held.part, held.token)],
        )
        return [item.decode() if isinstance(item, bytes) else "lost" for item in _items(reply)]

    async def finish(self, results: Sequence[Result]) -> list[bool]:
        """End leases; for each whether it was held. What was not is unchanged."""
        arguments: list[Argument] = []
        for result in results:
            arguments += result
        reply = await self.store.run(
            _FINISH,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            results=arguments,
        )
        return [item == 1 for item in _items(reply)]

    async def cancel(self, part: str, reason: str, *, keep_ms: int) -> str | None:
        """End a job that has not begun, or ask its worker to: `cancelled`, `asked`, the state of its end, or None."""
        reply = await self.store.run(
            _CANCEL,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            part=part,
            reason=reason,
            keep_ms=keep_ms,
        )
        return reply.decode() if isinstance(reply, bytes) else None

    async def report(self, held: Leased, progress: bytes, lines: Sequence[bytes]) -> bool:
        """Note progress and lines of the log; False when the lease is held no more."""
        reply = await self.store.run(
            _REPORT,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            part=held.part,
            token=held.token,
            progress=progress,
            keep_ms=_REPORT_MS,
            most=LOG_LINES,
            lines=lines,
        )
        return reply == 1

    async def recall(self, *, worker: str, call: str) -> int:
        """Give back the jobs of a lease call whose answer got lost; how many."""
        reply = await self.store.run(
            _RECALL,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            worker=worker,
            call=call,
        )
        return reply if isinstance(reply, int) else 0

    async def unpark(self, known: Mapping[str, int], *, count: int) -> list[str]:
        """Put parked jobs of these types back, of at most these schemas; their parts, at most `count`.

        They go before all others, and nobody is told of them: who puts them back leases them.
        """
        reply = await self.store.run(
            _UNPARK,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            count=count,
            known=[word for name, schema in known.items() for word in (name, schema)],
        )
        return [item.decode() for item in _items(reply) if isinstance(item, bytes)]

    async def discard(self, parts: Sequence[str], reason: str, *, keep_ms: int) -> int:
        """Take dead letters away; how many there were."""
        reply = await self.store.run(
            _DISCARD,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            reason=reason,
            keep_ms=keep_ms,
            keep_dead_ms=_DEAD_MS,
            parts=parts,
        )
        return reply if isinstance(reply, int) else 0

    async def read(self, parts: Sequence[str]) -> list[Reply]:
        """What is stored of jobs, fewer when they are large, at least one; `read_job` understands each item."""
        reply = await self.store.run(
            _READ,
            queue=self.keys.jobs_queue(self.name),
            prefix=self.prefix,
            now_ms=self.store.now_ms(),
            parts=parts,
        )
        return _items(reply)

    async def release(self, unique: str, part: str) -> bool:
        """Give back a unique key that this job holds; whether it held it."""
        reply = await self.store.run(
            _RELEASE,
            key=self.keys.jobs_unique(self.name, unique),
            queue=self.keys.jobs_queue(self.name),
            part=part,
            now_ms=self.store.now_ms(),
        )
        return reply == 1

    async def holder(self, unique: str) -> str | None:
        """The part of the job that holds a unique key; None when none does, or its time has passed."""
        now_ms = self.store.now_ms()
        found, time = await self.store.pipeline(
            [
                ("GET", self.keys.jobs_unique(self.name, unique)),
                ("HGET", self.keys.jobs_queue(self.name), "time"),
            ]
        )
        latest = raised(time)
        return read_holder(
            raised(found), now_ms=max(now_ms, int(latest)) if isinstance(latest, bytes) else now_ms
        )

    def _leased(self, item: Reply) -> Leased:
        """As the script wrote it. It is run for every job."""
        try:
            part, entry, record = cast("list[bytes]", item)
            kind, _, _, _, queued_ms, extra, args = record[1:].split(b"\n", 6)
            _, token, attempt, _ = entry.split(b" ", 3)
            return Leased(part.decode(), token, int(attempt), kind.decode(), extra, args, int(queued_ms))
        except (TypeError, ValueError, AttributeError) as fault:
            raise CodecError("a leased job can't be read", key=self.prefix) from fault


def _items(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise CodecError("a script of the job engine answered something unexpected")
    return reply
