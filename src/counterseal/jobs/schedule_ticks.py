"""ScheduleTicks: makes the jobs of the ticks that QStash delivers, of each message one.

The id of a job comes from that of its message, so a delivery that comes again finds the job that it has made. Near a
change of who makes the ticks, when a scheduler may make the same one, the tick is the deduplication id besides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final

from counterseal.core.complaints import Complaints
from counterseal.core.errors import CarrierUnavailable, CountersealError, StoreError
from counterseal.jobs.carried import Carried
from counterseal.jobs.job import job_id, split_job_id
from counterseal.jobs.options import changed
from counterseal.jobs.qstash_schedule import Tick, delay_of
from counterseal.jobs.qstash_schedules import QStashSchedules
from counterseal.jobs.schedule import Schedule, latest, tick_key
from counterseal.jobs.schedule_entries import Entries, Entry
from counterseal.jobs.schedule_job import TICK_WINDOW, call_of, read_options
from counterseal.jobs.scripts import Queue
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import Call, Task
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.wire import Argument

logger = logging.getLogger(__name__)

CHANGE: Final = timedelta(minutes=2)
"""So long after QStash was given a schedule a scheduler may still make its ticks."""

_CHANGE_MS: Final = CHANGE // timedelta(milliseconds=1)
_BEHIND_MS: Final = 60_000
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Sent:
    """What a request says of itself besides its body. None of it is signed."""

    message: str = ""
    schedule: str = ""
    retried: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a tick: the id of its job, and whether that is to run. `created`: it was made now."""

    id: str
    runs: bool
    created: bool = False
    refusal: str = ""
    """Why there is none that runs: `skipped`, `gone` or `malformed`."""


class ScheduleTicks:
    """Makes jobs of ticks. `schedules` removes from QStash what is not stored here any more."""

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        tasks: Iterable[Task[Any, Any]],
        max_payload: int,
        schedules: QStashSchedules | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._entries = Entries(store, keys)
        self._jobs = Jobs(store, keys=keys, tasks=tasks, max_payload=max_payload, carrier=_Arrived())
        self._schedules = schedules
        self._complaints = Complaints(logger)

    async def make(self, tick: Tick, sent: Sent) -> Made:
        """Make the job of a tick, unless it is there. At most two round trips, four for a new one."""
        part = sha256(f"{tick.schedule}@{sent.message}".encode()).hexdigest()[:32]
        identifier = job_id(tick.queue, part)
        if split_job_id(identifier) is None:
            return Made(identifier, runs=False, refusal="malformed")
        entry = await self._entries.get(tick.schedule)
        if entry is None or entry.schedule is None:
            return await self._not_fired(tick, part, sent, "gone")
        if entry.carried.part == part:  # the last job was made of this message, whatever is kept of it
            return Made(identifier, runs=True)
        schedule = entry.schedule
        if schedule.paused:
            return await self._not_fired(tick, part, sent, "skipped")
        now_ms = self._store.now_ms()
        tick_ms = _tick(schedule, now_ms)
        try:
            (made,) = await self._jobs.enqueue_many(
                [_call(tick, schedule, part, _named(entry, schedule, tick_ms, sent, now_ms))]
            )
        except StoreError:
            raise
        except CountersealError as fault:
            self._complaints.tell(
                "no job of the schedule %s can be made: %s", entry.id, fault, now_ms=now_ms, about=entry.id
            )
            return Made(identifier, runs=False, refusal="malformed")
        if made.created:
            await Carried(self._queue(tick.queue)).note(part, sent.message)
            await self._note(entry, tick_ms, part)
        is_its_own = made.id == identifier
        return Made(made.id, is_its_own, made.created, refusal="" if is_its_own else "skipped")

    async def _not_fired(self, tick: Tick, part: str, sent: Sent, why: str) -> Made:
        """A tick that makes no job. One that was made of this message before goes on."""
        identifier = job_id(tick.queue, part)
        if await self._jobs.get(identifier) is not None:
            return Made(identifier, runs=True)
        schedules = self._schedules
        if why == "gone" and schedules is not None and sent.schedule == schedules.prefix + tick.schedule:
            try:
                await schedules.gone(tick.schedule)
            except CarrierUnavailable as fault:
                logger.warning("a schedule that is not stored here is still at QStash: %s", fault)
        return Made(identifier, runs=False, refusal=why)

    async def _note(self, entry: Entry, tick_ms: int, part: str) -> None:
        """Note the tick as the last one, unless others change the schedule again and again."""
        for _ in range(_ATTEMPTS):
            if await self._entries.fired(entry, tick_ms, part):
                return
            met = await self._entries.get(entry.id)
            if met is None or met.fired_ms > tick_ms:
                return
            entry = met

    def _queue(self, name: str) -> Queue:
        return Queue(self._store, self._keys, name)


class _Arrived:
    """The carrier of jobs whose message is there already."""

    def taking(self, queue: Queue) -> _Taking:
        return _Taking(Carried(queue))

    async def carry_again(self, queue: Queue, parts: Sequence[str]) -> None:
        """Nothing comes back here."""

    async def cancelled(self, queue: Queue, part: str) -> None:
        """Nothing is cancelled here."""


@dataclass(frozen=True, slots=True)
class _Taking:
    """Accepts jobs and publishes nothing."""

    carried: Carried

    async def add(self, job: Sequence[Argument], size: int) -> str:
        return (await self.add_many(job))[0]

    async def add_many(self, jobs: Sequence[Argument]) -> list[str]:
        _, taken = await self.carried.carry(jobs)
        return taken

    async def close(self) -> None:
        """Nothing is under way."""


def _tick(schedule: Schedule, now_ms: int) -> int:
    """The tick of a message that comes now, but for the time that QStash has kept it: the last one.

    The next one when that is near, as the clock of Redis may be behind that of QStash.
    """
    now_ms += schedule.delay_ms - 1000 * delay_of(schedule)
    after_ms = schedule.next_after(now_ms)
    before_ms = latest(schedule, now_ms)
    if before_ms is None or after_ms - now_ms <= min(_BEHIND_MS, (after_ms - before_ms) // 4):
        return after_ms
    return before_ms


def _call(tick: Tick, schedule: Schedule, part: str, name: str) -> Call[Any]:
    call = call_of(schedule)
    options = changed(
        call.options, id=part, queue=tick.queue, delay=None, dedup_id=name, dedup_window=TICK_WINDOW
    )
    return replace(call, options=options)


def _named(entry: Entry, schedule: Schedule, tick_ms: int, sent: Sent, now_ms: int) -> str:
    """The deduplication id: the name of the tick while a scheduler may make it too, else that of the message.

    The tick is only inferred from the time, at which a message that was kept by a flow, or not answered, says nothing.
    """
    known = not sent.retried and read_options(schedule.options).flow is None
    near = not entry.carried.id or now_ms - entry.last_ms < _CHANGE_MS
    if known and near:
        return tick_key(entry.id, tick_ms)
    return sha256(f"{entry.id}@{sent.message}".encode()).hexdigest()
