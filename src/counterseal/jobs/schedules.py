"""Schedules: jobs that are made again and again, told, changed and kept in step with the code.

A `Scheduler` makes the jobs. Those of the code come from `Counterseal(schedules=[scheduled(report.call(), Cron(...))])`
and belong to a source, an application or counterseal itself; what one source declares, no other one removes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final, TypeAlias

import msgspec

from counterseal.core.codec import from_text, to_text
from counterseal.core.errors import ArgumentInvalid, ConfigurationError, StoreBusy, UnknownName
from counterseal.jobs.carrier import ScheduleCarrier
from counterseal.jobs.job import job_id, moment
from counterseal.jobs.schedule import (
    Origin,
    Reconciliation,
    Schedule,
    preview,
    reconcile,
)
from counterseal.jobs.schedule_entries import NO_SOURCE, Carried, Change, CodeSet, Entries, Entry
from counterseal.jobs.schedule_job import (
    call_of,
    read_options,
    tick_part,
    with_task,
    written_options,
)
from counterseal.jobs.service import Enqueued, Jobs
from counterseal.jobs.task import DEFAULT_QUEUE, Call
from counterseal.jobs.types import KNOWN
from counterseal.store.base import Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

APPLICATION: Final = "application"
PRODUCT: Final = "counterseal"
SCHEDULER: Final = "scheduler"
QSTASH: Final = "qstash"

LEAST_GRACE: Final = timedelta(seconds=15)
"""A tick may come so late when a scheduler was killed in the middle of it, or a message got lost."""
IN_USE: Final = timedelta(minutes=3)
"""So long after it was last seen a set of schedules counts as that of a release that runs."""

_ATTEMPTS: Final = 10

Code: TypeAlias = Mapping[str, tuple[Schedule, ...]]


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """A stored schedule and where it stands.

    `source` is whose code declares it (`application` or `counterseal`), None when it was made by `put`. `next` is None
    while it is paused; `last` is the last tick that was fired, and `last_job` the id of its job. `carrier` makes the
    ticks: `scheduler`, or `qstash`.
    """

    schedule: Schedule
    source: str | None
    next: datetime | None
    last: datetime | None
    last_job: str | None
    carrier: str = SCHEDULER


class Schedules:
    """The schedules of one namespace. Every call raises `StoreUnavailable` when Redis does not answer.

    While QStash carries jobs, a change takes one round trip more, and one or two to QStash; what it can't be told now
    it is told later.

    `code` has those that the code declares, by source; nothing is written before `reconcile`, which a scheduler calls
    when it starts. Raises `ConfigurationError` with a sentence for every schedule of the code that can't be.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        jobs: Jobs,
        code: Mapping[str, Iterable[Schedule]],
        carrier: ScheduleCarrier | None = None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._carrier = carrier
        self._entries = Entries(store, keys, jobs.min_replicas)
        faults: list[str] = []
        self.code: Code = {
            source: tuple(self._declared(declared, faults)) for source, declared in code.items()
        }
        """What the code declares, by source, as it will be stored."""
        if faults:
            raise ConfigurationError(faults)

    @property
    def entries(self) -> Entries:
        """What is stored; for the scheduler."""
        return self._entries

    @property
    def gives_back(self) -> bool:
        """Whether schedules are taken back that somebody else makes the ticks of; for the scheduler."""
        return self._carrier is not None and not self._carrier.active

    async def carry(self, *, passed_over: Collection[str] = (), full: bool = False) -> int:
        """Have the carrier of the settings know what is stored, or give back what it has; how many it carries now.

        Raises `CarrierUnavailable` when something could not be told; it is by the next call.
        """
        if self._carrier is None:
            return 0
        return await self._carrier.settle_all(passed_over=passed_over, full=full)

    async def put(self, schedule: Schedule) -> ScheduleStatus:
        """Make a schedule, or change the one with its id, which keeps its pause. Two round trips.

        Ticks are counted from now on; when only arguments or options have changed, from where they stood. Raises
        `ArgumentInvalid` when the arguments do not fit the task, `UnknownName` for a type that is not known here, and
        `ConfigurationError` naming the field, also for an id that the code declares.
        """
        wanted = msgspec.structs.replace(self.checked(schedule), origin=Origin.API)

        def change(before: Entry | None) -> Change:
            if before is not None and before.source != NO_SOURCE:
                raise ConfigurationError(
                    f"schedule.id: expected one that no code declares; came: {wanted.id}"
                )
            return _changed(wanted, before, NO_SOURCE, self._store.now_ms())

        return await self._change(wanted.id, change)

    async def get(self, identifier: str) -> ScheduleStatus | None:
        """A schedule by its id; None when there is none, or it can't be read. One round trip."""
        entry = await self._entries.get(identifier)
        return None if entry is None else self._status(entry)

    async def list(self) -> list[ScheduleStatus]:
        """All schedules, by id. Those that can't be read are passed over, and told in the log. One round trip."""
        entries, _ = await self._entries.all()
        found = (self._status(entries[name]) for name in sorted(entries))
        return [status for status in found if status is not None]

    async def remove(self, identifier: str) -> bool:
        """Remove a schedule; whether there was one. Jobs that it has made stay. Two round trips.

        One that the code declares comes back when a scheduler starts: pause it instead.
        """
        for _ in range(_ATTEMPTS):
            entry = await self._entries.get(identifier)
            if entry is None:
                return False
            if await self._entries.write([Change(identifier, entry)]):
                if self._carrier is not None:
                    await self._carrier.removed(entry)
                return True
        raise _busy(identifier)

    async def pause(self, identifier: str) -> ScheduleStatus:
        """Make no more jobs of a schedule until `resume`; a deploy does not end the pause. Two round trips.

        Raises `UnknownName` when there is none.
        """
        return await self._set_paused(identifier, paused=True)

    async def resume(self, identifier: str) -> ScheduleStatus:
        """Go on with the next tick: nothing is made up for the pause. Two round trips. Raises `UnknownName`."""
        return await self._set_paused(identifier, paused=False)

    async def run_now(self, identifier: str) -> Enqueued:
        """Make a job of a schedule now, besides those of its ticks, also while it is paused. Two round trips.

        Raises `UnknownName` when there is none.
        """
        (made,) = await self._jobs.enqueue_many([call_of(await self._known(identifier))])
        return made

    async def preview(self, schedule: str | Schedule, count: int = 10) -> list[datetime]:
        """The next ticks, from 1 to 1000, of a stored schedule by its id, or of one that may be made.

        One round trip for an id, none for a schedule. Raises `UnknownName` and `ConfigurationError`.
        """
        known = await self._known(schedule) if isinstance(schedule, str) else schedule
        return [moment(tick) for tick in preview(known, self._store.now_ms(), count)]

    async def reconcile(
        self, in_code: Iterable[Schedule], *, source: str = APPLICATION
    ) -> Reconciliation | None:
        """Make the stored schedules of a source those of the code, all at once. Two round trips.

        What is gone from the code is removed, what has changed is changed and keeps its pause, and what belongs to
        somebody else stays as it is. None when this is the code of a former release while a later one runs: a release
        whose set of schedules was replaced by another one comes back only when nobody was seen for 3 minutes who has
        that one. Raises as `put`.
        """
        faults: list[str] = []
        wanted = tuple(self._declared(in_code, faults))
        if faults:
            raise ConfigurationError(faults)
        if not source or not source.isalnum() or not source.isascii():
            raise ConfigurationError(f"source: expected letters and digits; came: {source!r}")
        name = set_name(wanted)
        for _ in range(_ATTEMPTS):
            entries, sets = await self._entries.all()
            stands, now_ms = sets.get(source), self._store.now_ms()
            if stands is not None and is_held_back(stands, name, now_ms):
                return None
            plan = reconcile(wanted, _as_seen_by(source, entries.values()))
            changes = [
                *(
                    _changed(one, entries.get(one.id), source, now_ms)
                    for one in (*plan.to_add, *plan.to_change)
                ),
                *(Change(gone, entries[gone]) for gone in plan.to_remove),
            ]
            after = CodeSet(name, now_ms) if stands is None else stands.followed_by(name, now_ms)
            if await self._entries.write(changes, source=source, before=stands, after=after.line):
                return plan
        raise _busy(source)

    def checked(self, schedule: Schedule) -> Schedule:
        """A schedule as it is stored: its arguments checked, and with the queue and the priority of its task.

        Any scheduler can make its jobs then, also one that does not know the task. Raises as `put`. No round trip.
        """
        task = self._jobs.tasks.get(schedule.type)
        if task is None and schedule.type not in KNOWN:
            raise UnknownName(
                f"no type of job is named {schedule.type!r}; the types are {', '.join(self._jobs.types)}"
            )
        if schedule.grace < LEAST_GRACE:
            raise ConfigurationError(
                f"schedule.grace: expected at least {LEAST_GRACE.seconds} seconds; came: {schedule.grace}"
            )
        value = from_text(schedule.args.encode(), key="schedule.args")
        if not isinstance(value, dict):
            raise ArgumentInvalid("the arguments of a job are a JSON object, by parameter")
        text, schema = to_text(value), schedule.schema or 1
        if task is not None and schedule.schema in {0, task.schema}:
            text, schema = task.encode_json(text).partition(b":")[2], task.schema
        elif task is not None:
            task.decode(b"%d:%b" % (schema, text))  # refuses what can't be brought up to this release
        options = read_options(schedule.options)
        options = with_task(Call(schedule.type, options, b"", task))
        return msgspec.structs.replace(
            schedule,
            args=text.decode(),
            schema=schema,
            options=written_options(options),
            paused=schedule.paused,
        )

    async def enqueue(self, calls: Sequence[Call[Any]]) -> None:
        """Make jobs of schedules; for the scheduler. One round trip for those of a queue."""
        await self._jobs.enqueue_many(calls)

    def _declared(self, declared: Iterable[Schedule], faults: list[str]) -> Iterable[Schedule]:
        """Schedules of the code, checked; what is wrong is added to `faults`."""
        seen: set[str] = set()
        for schedule in declared:
            if schedule.id in seen:
                faults.append(f"schedules: expected different ids; {schedule.id} came twice")
                continue
            seen.add(schedule.id)
            try:
                yield msgspec.structs.replace(self.checked(schedule), origin=Origin.CODE)
            except ConfigurationError as refusal:
                faults += [f"schedules: {schedule.id}: {fault}" for fault in refusal.faults]
            except (ArgumentInvalid, UnknownName) as refusal:
                faults.append(f"schedules: {schedule.id}: {refusal}")

    async def _change(self, identifier: str, change: Callable[[Entry | None], Change]) -> ScheduleStatus:
        for _ in range(_ATTEMPTS):
            wanted = change(await self._entries.get(identifier))
            if wanted.schedule is None:
                raise _unknown(identifier)
            if await self._entries.write([wanted]):
                if self._carrier is None or not (self._carrier.active or wanted.carried.id):
                    return self._told(wanted.schedule, wanted.source, wanted.fired_ms, wanted.carried)
                await self._carrier.settle(identifier)
                entry = await self._entries.get(identifier)
                carried = wanted.carried if entry is None else entry.carried
                return self._told(wanted.schedule, wanted.source, wanted.fired_ms, carried)
        raise _busy(identifier)

    async def _set_paused(self, identifier: str, *, paused: bool) -> ScheduleStatus:
        def change(before: Entry | None) -> Change:
            if before is None or before.schedule is None:
                return Change(identifier, before)
            last_ms = before.last_ms if before.schedule.paused is paused else self._store.now_ms()
            schedule = msgspec.structs.replace(before.schedule, paused=paused)
            return Change(
                identifier, before, schedule, last_ms, before.fired_ms, before.source, before.carried
            )

        return await self._change(identifier, change)

    async def _known(self, identifier: str) -> Schedule:
        entry = await self._entries.get(identifier)
        if entry is None or entry.schedule is None:
            raise _unknown(identifier)
        return entry.schedule

    def _status(self, entry: Entry) -> ScheduleStatus | None:
        if entry.schedule is None:
            logger.error("the schedule %s can't be read: %s", entry.id, entry.fault)
            return None
        return self._told(entry.schedule, entry.source, entry.fired_ms, entry.carried)

    def _told(self, schedule: Schedule, source: str, fired_ms: int, carried: Carried) -> ScheduleStatus:
        next_ms = None if schedule.paused else schedule.next_after(self._store.now_ms())
        queue = schedule.options.get("queue", DEFAULT_QUEUE)
        return ScheduleStatus(
            schedule,
            None if source == NO_SOURCE else source,
            None if next_ms is None else moment(next_ms),
            moment(fired_ms) if fired_ms else None,
            job_id(queue, carried.part or tick_part(schedule.id, fired_ms)) if fired_ms else None,
            QSTASH if carried.id else SCHEDULER,
        )


def set_name(schedules: Iterable[Schedule]) -> str:
    """The name of a set of schedules: the same for the same schedules, whatever their order."""
    lines = sorted(f"{schedule.id} {schedule.fingerprint}" for schedule in schedules)
    return sha256("\n".join(lines).encode()).hexdigest()[:32]


def is_held_back(stands: CodeSet, name: str, now_ms: int) -> bool:
    """Whether the set of this name was replaced by the one that stands, and somebody who has that one still runs."""
    return name in stands.past and now_ms - stands.seen_ms < IN_USE // timedelta(milliseconds=1)


def _changed(wanted: Schedule, before: Entry | None, source: str, now_ms: int) -> Change:
    """Write a schedule in place of another one. Ticks of other times, or for another queue, count from now on."""
    old = None if before is None else before.schedule
    if before is None or old is None:
        return Change(wanted.id, before, wanted, now_ms, 0, source)
    same = (old.when, old.spread, old.options.get("queue")) == (
        wanted.when,
        wanted.spread,
        wanted.options.get("queue"),
    )
    paused = wanted.paused or old.paused
    wanted = msgspec.structs.replace(wanted, paused=paused)
    last_ms = before.last_ms if same and not paused else now_ms
    carried = before.carried if same else replace(before.carried, part="")
    return Change(wanted.id, before, wanted, last_ms, before.fired_ms if same else 0, source, carried)


def _as_seen_by(source: str, entries: Iterable[Entry]) -> list[Schedule]:
    """What is stored, in which whatever another source declares is nobody's to change."""
    seen: list[Schedule] = []
    for entry in entries:
        if entry.schedule is not None:
            origin = Origin.CODE if entry.source == source else Origin.API
            seen.append(msgspec.structs.replace(entry.schedule, origin=origin))
    return seen


def _unknown(identifier: str) -> UnknownName:
    return UnknownName(f"there is no schedule {identifier!r} that can be read")


def _busy(about: str) -> StoreBusy:
    return StoreBusy(
        f"the schedules of {about} are being changed by others again and again; nothing was written"
    )
