"""QStashSchedule: a schedule as QStash has it, when QStash makes the same ticks of it that a scheduler would."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim

from counterseal.jobs.cron import Cron
from counterseal.jobs.options import changed
from counterseal.jobs.qstash import job_parameters
from counterseal.jobs.schedule import Missed, Schedule
from counterseal.jobs.schedule_job import read_options
from counterseal.jobs.task import DEFAULT_QUEUE, Task

_MS: Final = timedelta(milliseconds=1)
_MINUTE: Final = timedelta(minutes=1)
_STEP: Final = timedelta(minutes=15)
_DAY: Final = timedelta(days=1)
_DAY_MS: Final = 86_400_000
_LOOKED_AHEAD: Final = timedelta(days=3 * 366)
_TERM: Final = re.compile(r"(?:\*|[0-9]+|[A-Z]{3})(?:-(?:[0-9]+|[A-Z]{3}))?(?:/[0-9]+)?")
_START: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - clock time


class Tick(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of what QStash makes of a schedule: it names the schedule, and has no arguments."""

    schedule: str
    type: str
    queue: str


@dataclass(frozen=True, slots=True)
class Told:
    """What QStash is told of a schedule: the parameters of the client's `schedule.create`, save destination and id."""

    parameters: dict[str, Any]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits: others when something has changed."""
        plain = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in self.parameters.items()
        }
        return sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:16]


def told_of(schedule: Schedule, task: Task[Any, Any] | None) -> Told:
    """What QStash is told of a schedule that it can carry. Raises `ConfigurationError` for options that can't be."""
    options = read_options(schedule.options)
    queue = options.queue or (DEFAULT_QUEUE if task is None else task.queue)
    found = job_parameters(queue, schedule.type, changed(options, delay=None).stored(0), task)
    found["cron"] = _cron(cast("Cron", schedule.when), schedule.id)
    found["body"] = msgspec.json.encode(Tick(schedule.id, schedule.type, queue))
    if delay_s := delay_of(schedule):
        found["delay"] = delay_s
    return Told(found)


def delay_of(schedule: Schedule) -> int:
    """By how many seconds QStash delays the jobs of a schedule: for its spread, and the delay that they ask for."""
    own = read_options(schedule.options).delay
    return -(-(schedule.delay_ms + (0 if own is None else own // _MS)) // 1000)


def refusal(schedule: Schedule, now_ms: int) -> str:
    """Why QStash can't carry a schedule, beginning with the name of the field; '' when it can."""
    if schedule.missed is not Missed.ONCE:
        return f"missed: QStash knows nothing of {schedule.missed}"
    if schedule.made_up is not None:
        return "made_up: QStash does not tell how old a tick is"
    if not isinstance(schedule.when, Cron):
        return "when: an interval is no cron expression"
    return _refusal_of_cron(schedule.when, schedule.id, now_ms)


def _refusal_of_cron(when: Cron, seed: str, now_ms: int) -> str:
    fields = when.placed(seed).split()
    day, weekday = fields[2], fields[4]
    if any(not _TERM.fullmatch(term) for field in fields for term in field.split(",")):
        return "when: QStash has no word for L, W and #"
    if "*" not in {day, weekday} and (day.startswith("*") or weekday.startswith("*")):
        return "when: QStash may read a step in one of two day fields otherwise"
    if fields[1] != "*" and _meets_change(when, fields, now_ms):
        return "when: at this time of day clocks are changed, of which QStash promises nothing"
    return ""


def _cron(when: Cron, seed: str) -> str:
    """Five fields without `H`, and the zone. Steps are told by their numbers, save those that begin with `*`."""
    fields = when.placed(seed).split()
    known = CronSim(" ".join(fields), _START)
    sets = (known.minutes, known.hours, known.days, known.months, known.weekdays)
    said = " ".join(
        ",".join(str(number) for number in sorted(cast("set[int]", numbers)))
        if any("/" in term and not term.startswith("*") for term in field.split(","))
        else field
        for field, numbers in zip(fields, sets, strict=True)
    )
    return said if when.zone == "UTC" else f"CRON_TZ={when.zone} {said}"


def _meets_change(when: Cron, fields: Sequence[str], now_ms: int) -> bool:
    """Whether some time of day of these fields is one that clocks skip or show twice within the next three years."""
    meeting = _changed_minutes(when.zone, now_ms // _DAY_MS)
    if not meeting:
        return False
    known = CronSim(" ".join(fields), _START)
    return any(60 * hour + minute in meeting for hour in known.hours for minute in known.minutes)


@lru_cache(maxsize=256)
def _changed_minutes(name: str, day: int) -> frozenset[int]:
    """The minutes of the day that clocks of a zone skip or show twice within three years from a day since 1970."""
    zone = ZoneInfo(name)
    moment = datetime.fromtimestamp(day * _DAY_MS // 1000, UTC)
    end, offset = moment + _LOOKED_AHEAD, _offset(moment, zone)
    found: set[int] = set()
    while moment < end:
        later = moment + _DAY
        if _offset(later, zone) == offset:
            moment = later
            continue
        # The change is within this day, at a quarter of an hour as all of them are.
        while _offset(moment, zone) == offset:
            moment += _STEP
        before, offset = offset, _offset(moment, zone)
        clock = moment.replace(tzinfo=None) + min(before, offset)
        for _ in range(abs(offset - before) // _MINUTE):
            found.add(60 * clock.hour + clock.minute)
            clock += _MINUTE
    return frozenset(found)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return cast("timedelta", moment.astimezone(zone).utcoffset())
