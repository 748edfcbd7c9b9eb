"""Schedule: what is enqueued again and again, and which of its moments (ticks) are due."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, cast

import msgspec

from counterseal.core.codec import decode_as, encode, from_text, to_text
from counterseal.core.errors import CodecError, ConfigurationError
from counterseal.jobs.cron import Cron, Every, When, place
from counterseal.jobs.duration import MS, NONE, checked_ms

SCHEMA: Final = 1
MOST_MADE_UP: Final = 1_000
MOST_PREVIEWED: Final = 1_000

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,96}")
_DAY: Final = timedelta(days=1)
_MINUTE_MS: Final = 60_000
_TEN_YEARS_MS: Final = 10 * 366 * 86_400_000


class Missed(StrEnum):
    """What becomes of ticks that came while no scheduler ran, and are late by more than the grace."""

    SKIP = "skip"
    """Nothing: the schedule goes on with its next tick."""
    ONCE = "once"
    """The latest of them runs, unless a later tick is still within the grace."""
    ALL = "all"
    """Each of them runs, oldest first; when more than 1000 were missed, the latest 1000."""


class Origin(StrEnum):
    """Who made a schedule."""

    CODE = "code"
    """The code declares it; when the code no longer does, it is removed."""
    API = "api"
    """It was made while the program ran, and stays until somebody removes it."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is enqueued at moments: `Schedule(id="reports", type="report", when=Cron("H 6 * * *"))`.

    `args` is the JSON text of the arguments and `schema` their version, 0 for the one that the task has when the
    schedule is stored; `options` are those of the job. `spread` delays every tick by a hash of the
    id, by less than that long: for many schedules that would all start at the full hour. A tick that is late by at most
    `grace` runs as if it were on time; `missed` says what becomes of later ones, and of those only the ones not older
    than `made_up` (None: whatever their age) are looked at. Nothing is made up for the time in which a schedule is
    `paused`.

    Raises `ConfigurationError` naming the field.
    """

    id: str
    type: str
    when: When
    args: str = "{}"
    schema: int = 0
    options: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    spread: timedelta = NONE
    missed: Missed = Missed.ONCE
    grace: timedelta = timedelta(minutes=1)
    made_up: timedelta | None = None
    paused: bool = False
    origin: Origin = Origin.CODE

    def __post_init__(self) -> None:
        identifier = cast("object", self.id)
        if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
            raise ConfigurationError(
                f"schedule.id: expected 1 to 96 letters, digits, '.', '_' or '-'; came: {identifier!r}"
            )
        if not self.type or not isinstance(cast("object", self.type), str):
            raise ConfigurationError(f"schedule.type: expected the name of a task; came: {self.type!r}")
        if type(cast("object", self.schema)) is not int or self.schema < 0:
            raise ConfigurationError(
                f"schedule.schema: expected a whole number from 0 on; came: {self.schema!r}"
            )
        when = cast("object", self.when)
        if not isinstance(when, (Cron, Every)):
            raise ConfigurationError(
                f"schedule.when: expected a Cron or an Every; came: {type(when).__name__}"
            )
        if isinstance(when, Cron):
            when.placed(self.id)
        try:
            from_text(self.args.encode(), key="schedule.args")
        except (CodecError, AttributeError, UnicodeEncodeError):
            raise ConfigurationError("schedule.args: expected the JSON text of the arguments") from None
        try:
            to_text(self.options)
        except CodecError as fault:
            raise ConfigurationError(f"schedule.options: expected JSON: {fault}") from None
        checked_ms("schedule.spread", self.spread, least=NONE, most=_DAY)
        checked_ms("schedule.grace", self.grace, least=NONE)
        if self.made_up is not None:
            checked_ms("schedule.made_up", self.made_up, least=NONE)
        for field, value, kind in (("missed", self.missed, Missed), ("origin", self.origin, Origin)):
            if not isinstance(cast("object", value), kind):
                raise ConfigurationError(
                    f"schedule.{field}: expected one of {', '.join(kind)}; came: {value!r}"
                )

    def next_after(self, moment_ms: int) -> int:
        """The first tick after a moment, both in milliseconds since 1970."""
        delay = self.delay_ms
        return self.when.next_after(moment_ms - delay, seed=self.id) + delay

    def between(self, from_ms: int, to_ms: int, limit: int) -> list[int]:
        """The ticks after `from_ms` and not after `to_ms`, the first `limit` of them."""
        delay = self.delay_ms
        ticks = self.when.between(from_ms - delay, to_ms - delay, limit, seed=self.id)
        return [tick + delay for tick in ticks]

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over all that the code declares; the pause and the origin don't count."""
        declared = msgspec.structs.replace(self, paused=False, origin=Origin.CODE)
        return sha256(to_text(msgspec.to_builtins(declared, order="sorted"))).hexdigest()[:32]

    @property
    def delay_ms(self) -> int:
        """By how much `spread` delays every tick."""
        spread = self.spread // MS
        return place(self.id, "spread", spread) if spread else 0


@dataclass(frozen=True, slots=True)
class Due:
    """What a schedule asks for now: the `ticks` to fire, oldest first, and when to look again."""

    ticks: tuple[int, ...]
    next_ms: int


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What makes the stored schedules those of the code.

    `taken` are those of the code whose id belongs to a schedule that was made by the API: they are not to be written.
    """

    to_add: tuple[Schedule, ...]
    to_change: tuple[Schedule, ...]
    to_remove: tuple[str, ...]
    taken: tuple[Schedule, ...]


def due(schedule: Schedule, last_ms: int, now_ms: int) -> Due:
    """The ticks after `last_ms` and not after `now_ms` that are to be fired, and the next tick after both.

    `last_ms` is the moment up to which ticks have been dealt with; afterwards that is `now_ms`, for a paused schedule
    too, which fires nothing. A clock that goes back fires nothing again. At most 1000 are fired at once, the latest.
    """
    next_ms = schedule.next_after(max(last_ms, now_ms))
    if schedule.paused:
        return Due((), next_ms)
    on_time_ms = max(last_ms, now_ms - schedule.grace // MS - 1)
    on_time = _latest(schedule, on_time_ms, now_ms, MOST_MADE_UP)
    if schedule.missed is Missed.SKIP or (schedule.missed is Missed.ONCE and on_time):
        return Due(tuple(on_time), next_ms)
    oldest_ms = last_ms if schedule.made_up is None else max(last_ms, now_ms - schedule.made_up // MS - 1)
    most = 1 if schedule.missed is Missed.ONCE else MOST_MADE_UP - len(on_time)
    late = _latest(schedule, oldest_ms, on_time_ms, most)
    return Due((*late, *on_time), next_ms)


def preview(schedule: Schedule, from_ms: int, count: int) -> list[int]:
    """The next ticks after a moment, from 1 to 1000, also of a paused schedule. Raises `ConfigurationError`."""
    if not 1 <= count <= MOST_PREVIEWED:
        raise ConfigurationError(
            f"count: expected a whole number from 1 to {MOST_PREVIEWED}; came: {count!r}"
        )
    ticks: list[int] = []
    for _ in range(count):
        from_ms = schedule.next_after(from_ms)
        ticks.append(from_ms)
    return ticks


def latest(schedule: Schedule, until_ms: int) -> int | None:
    """The last tick that is not after a moment, within ten years before it."""
    return next(iter(_latest(schedule, until_ms - _TEN_YEARS_MS, until_ms, 1)), None)


def tick_key(schedule_id: str, tick_ms: int) -> str:
    """The name of one tick, the same wherever it is reckoned: at most 128 bytes, as `reports@1774746000000`."""
    return f"{schedule_id}@{tick_ms}"


def reconcile(in_code: Iterable[Schedule], stored: Iterable[Schedule]) -> Reconciliation:
    """What is to be written and removed, so that the store has the schedules of the code.

    Those made by the API stay as they are. What is changed keeps the pause that it has in the store. Raises
    `ConfigurationError` for two of the code with one id, and for one that says it is made by the API.
    """
    declared: dict[str, Schedule] = {}
    for schedule in in_code:
        if schedule.id in declared:
            raise ConfigurationError(f"schedule.id: expected different ones; came twice: {schedule.id}")
        if schedule.origin is not Origin.CODE:
            raise ConfigurationError(
                f"schedule.origin: expected code; came: {schedule.origin} of {schedule.id}"
            )
        declared[schedule.id] = schedule
    known = {schedule.id: schedule for schedule in stored}
    there = [(schedule, known[schedule.id]) for schedule in declared.values() if schedule.id in known]
    return Reconciliation(
        to_add=tuple(schedule for schedule in declared.values() if schedule.id not in known),
        to_change=tuple(
            msgspec.structs.replace(new, paused=old.paused)
            for new, old in there
            if old.origin is Origin.CODE and new.fingerprint != old.fingerprint
        ),
        to_remove=tuple(
            old.id for old in known.values() if old.origin is Origin.CODE and old.id not in declared
        ),
        taken=tuple(new for new, old in there if old.origin is not Origin.CODE),
    )


def write_schedule(schedule: Schedule) -> bytes:
    """The stored form: the schema version, a colon and JSON text."""
    return encode(msgspec.to_builtins(schedule), schema=SCHEMA)


def read_schedule(data: bytes, *, key: str) -> Schedule:
    """What `write_schedule` wrote. Raises `CodecError` naming `key`, also for a schema of a later release."""
    try:
        return decode_as(data, Schedule, key=key, schemas=(SCHEMA,))
    except ConfigurationError as fault:
        raise CodecError("a stored schedule can't be read: " + "; ".join(fault.faults), key=key) from fault


def _latest(schedule: Schedule, after_ms: int, until_ms: int, most: int) -> list[int]:
    """The last `most` ticks after one moment and not after another, looked for from the end in growing steps."""
    found: deque[int] = deque()
    step = most * _MINUTE_MS
    while after_ms < until_ms and len(found) < most:
        from_ms = max(after_ms, until_ms - step)
        ticks = schedule.between(from_ms, until_ms, step // 1_000)
        found.extendleft(reversed(ticks))
        if len(ticks) <= most // 2:
            step *= 2
        until_ms = from_ms
    return list(found)[-most:] if most else []
