"""Carried: the atomic operations of jobs whose messages somebody else delivers, one typed call for each file in `lua/`.

A carried job has the record, the state and the statistics of any other, but stands in no lane: no worker takes it. Two
more keys of its queue look after it: `carried`, when somebody has to see whether its message is still there, and
`messages`, the id of the last message that was accepted for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

from counterseal.core.errors import CodecError
from counterseal.jobs.scripts import MOST_LOST, Leased, Queue
from counterseal.store.keys import JOB_DEAD_TTL
from counterseal.store.scripts import Script, load_script
from counterseal.store.wire import Argument, Reply

_MS: Final = timedelta(milliseconds=1)
_DEAD_MS: Final = JOB_DEAD_TTL // _MS
_LOST_ERROR: Final = f'["WorkerLost","{MOST_LOST} deliveries in turn did not come back from this job",""]'

UNCONFIRMED_MS: Final = 30_000
"""After so long the message of a job is published again whose publisher has not told how it went."""

HORIZON_MS: Final = 900_000
"""So long after a job should have begun its message counts as lost. It is longer than QStash knows a duplicate."""

EARLY_MS: Final = 5_000
"""What is due within this time is due: the clocks of others differ."""

_CARRY: Final = load_script("counterseal.jobs", "carry")
_BEGIN: Final = load_script("counterseal.jobs", "begin")
_SETTLE: Final = load_script("counterseal.jobs", "settle")
_WITHDRAW: Final = load_script("counterseal.jobs", "withdraw")
_NOTE: Final = load_script("counterseal.jobs", "note")
_LOOK: Final = load_script("counterseal.jobs", "look")
_ADOPT: Final = load_script("counterseal.jobs", "adopt")


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer of `begin`: a lease, or why there is none."""

    leased: Leased | None = None
    refusal: str = ""
    """`gone`, `other` (of another type), `completed`, `failed`, `cancelled`, or why to come again: `running`, `paused`,
    `early` (it is not due yet), `full`."""
    wait_ms: int = 0
    """When to come again."""


class Record(NamedTuple):
    """What a message is made of."""

    part: str
    type: str
    queued_ms: int
    extra: bytes
    schema: int


class Overdue(NamedTuple):
    """A carried job that was claimed, because its message should have come."""

    record: Record
    state: str
    due_ms: int
    message: str
    """The id of the last message that was accepted; '' when none is known to be."""


@dataclass(frozen=True, slots=True)
class Carried:
    """The calls of one queue. Each is one round trip and raises `StoreUnavailable` when Redis does not answer."""

    queue: Queue

    async def carry(self, jobs: Sequence[Argument]) -> tuple[int, list[str]]:
        """Accept jobs, five arguments each. When they were queued, and for each '' or the part that was there."""
        match await self._run(_CARRY, look_ms=UNCONFIRMED_MS, jobs=jobs):
            case [bytes(queued_ms), *taken]:
                return int(queued_ms), [item.decode() if isinstance(item, bytes) else "" for item in taken]
            case _:
                raise CodecError("accepted jobs can't be read", key=self.queue.prefix)

    async def begin(self, part: str, kind: str, *, lease_ms: int) -> Begun:
        """Lease one job for the delivery of its message."""
        reply = await self._run(
            _BEGIN,
            part=part,
            type=kind,
            lease_ms=lease_ms,
            look_ms=HORIZON_MS,
            early_ms=EARLY_MS,
            most_lost=MOST_LOST,
            lost_error=_LOST_ERROR,
            keep_dead_ms=_DEAD_MS,
        )
        match reply:
            case [b"leased", bytes(), bytes(entry), bytes(record)]:
                kind_, _, _, _, queued_ms, extra, args = record[1:].split(b"\n", 6)
                _, token, attempt, _ = entry.split(b" ", 3)
                leased = Leased(part, token, int(attempt), kind_.decode(), extra, args, int(queued_ms))
                return Begun(leased)
            case [b"wait", bytes(why), int(wait_ms)]:
                return Begun(refusal=why.decode(), wait_ms=wait_ms)
            case [b"ended", bytes(code)]:
                return Begun(refusal={b"c": "completed", b"f": "failed"}.get(code, "cancelled"))
            case [bytes(why)]:
                return Begun(refusal=why.decode())
            case _:
                raise CodecError("a begun job can't be read", key=self.queue.prefix)

    async def settle(self, held: Leased, outcome: str, ms: int, error: bytes) -> bool:
        """Give a job back that has not ended: `retrying`, `parked` or `queued`; whether it was held."""
        return (
            await self._run(
                _SETTLE,
                part=held.part,
                token=held.token,
                outcome=outcome,
                ms=ms,
                error=error,
                look_ms=HORIZON_MS,
            )
            == 1
        )

    async def withdraw(self, part: str) -> bool:
        """Take a job back that never began; whether it was taken back."""
        return await self.queue.store.run(
            _WITHDRAW, queue=self._key, prefix=self.queue.prefix, part=part
        ) == 1  # fmt: skip

    async def note(self, part: str, message: str) -> bool:
        """Note that a message was accepted; False when the job has ended meanwhile."""
        return await self._run(_NOTE, part=part, message=message, look_ms=HORIZON_MS) == 1

    async def look(self, *, ahead_ms: int = 0, count: int = 100) -> list[Overdue]:
        """Claim jobs whose messages should have come, as if it were `ahead_ms` later."""
        reply = await self.queue.store.run(
            _LOOK,
            queue=self._key,
            prefix=self.queue.prefix,
            now_ms=self.queue.store.now_ms() + ahead_ms,
            claim_ms=UNCONFIRMED_MS,
            look_ms=HORIZON_MS,
            count=count,
        )
        return [_overdue(item) for item in reply] if isinstance(reply, list) else []

    async def adopt(self, parts: Sequence[str]) -> list[Record]:
        """Take queued jobs out of their lanes; what their messages are made of. Those not queued are left out."""
        reply = await self._run(_ADOPT, look_ms=UNCONFIRMED_MS, parts=parts)
        records = zip(parts, reply if isinstance(reply, list) else [], strict=False)
        return [_record(part, record) for part, record in records if isinstance(record, bytes) and record]

    async def forget(self, part: str) -> None:
        """Look after a job no more that has ended."""
        prefix = self.queue.prefix
        await self.queue.store.pipeline(
            [("ZREM", f"{prefix}:carried", part), ("HDEL", f"{prefix}:messages", part)]
        )

    async def message(self, part: str) -> str | None:
        """The id of the last message that was accepted for a job; None when none is known."""
        found = await self.queue.store.command("HGET", f"{self.queue.prefix}:messages", part)
        return found.decode() if isinstance(found, bytes) else None

    @property
    def _key(self) -> str:
        return self.queue.keys.jobs_queue(self.queue.name)

    async def _run(self, script: Script, **arguments: Argument | Sequence[Argument]) -> Reply:
        store = self.queue.store
        return await store.run(
            script, queue=self._key, prefix=self.queue.prefix, now_ms=store.now_ms(), **arguments
        )


def _record(part: str, record: bytes) -> Record:
    kind, _, _, _, queued_ms, extra, args = record[1:].split(b"\n", 6)
    version = args.partition(b":")[0]
    return Record(part, kind.decode(), int(queued_ms), extra, int(version) if version.isdigit() else 0)


def _overdue(item: Reply) -> Overdue:
    match item:
        case [bytes(part), bytes(record), bytes(entry), bytes(message)]:
            state, _, _, _, ms, *_ = entry.partition(b"\n")[0].split(b" ")
            return Overdue(_record(part.decode(), record), state.decode(), int(ms), message.decode())
        case _:
            raise CodecError("a carried job can't be read")
