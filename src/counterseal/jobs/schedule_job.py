"""The jobs of schedules: what a schedule keeps of a call, and which calls come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final

import msgspec

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.cron import When
from counterseal.jobs.duration import NONE
from counterseal.jobs.job import is_queue_name
from counterseal.jobs.options import Options, changed
from counterseal.jobs.schedule import Missed, Schedule, tick_key
from counterseal.jobs.task import Call

TICK_WINDOW: Final = timedelta(days=1)
"""So long a tick that was fired is known, should it be fired again."""

_NOT_OF_A_SCHEDULE: Final = ("id", "at", "dedup_id", "deadline", "idempotency_key", "schedule", "trace")
"""Options that can't hold for more than one job."""
_DEFAULTS: Final[dict[str, Any]] = msgspec.to_builtins(Options())


def scheduled(
    call: Call[Any],
    when: When,
    *,
    id: str | None = None,  # noqa: A002 - what it is called everywhere
    spread: timedelta = NONE,
    missed: Missed = Missed.ONCE,
    grace: timedelta = timedelta(minutes=1),
    made_up: timedelta | None = None,
) -> Schedule:
    """The schedule of a call: `scheduled(report.call("weekly"), Cron("0 6 * * MON", "Europe/Berlin"))`.

    Its id is by default the name of the task. Options are those of the call, `report.using(queue="slow").call()`. The
    rest is said at `Schedule`. Raises `ConfigurationError` naming the field.
    """
    version, _, text = call.args.partition(b":")
    return Schedule(
        id=call.type if id is None else id,
        type=call.type,
        when=when,
        args=text.decode(),
        schema=int(version),
        options=written_options(with_task(call)),
        spread=spread,
        missed=missed,
        grace=grace,
        made_up=made_up,
    )


def call_of(schedule: Schedule, tick_ms: int | None = None) -> Call[Any]:
    """The job of one tick of a stored schedule, made once however often it is enqueued; without a tick another one."""
    options = changed(read_options(schedule.options), schedule=schedule.id)
    if tick_ms is not None:
        options = changed(
            options,
            id=tick_part(schedule.id, tick_ms),
            dedup_id=tick_key(schedule.id, tick_ms),
            dedup_window=TICK_WINDOW,
        )
    return Call(schedule.type, options, b"%d:%b" % (schedule.schema or 1, schedule.args.encode()))


def with_task(call: Call[Any]) -> Options:
    """The options of a call with the queue and the priority that its task would give."""
    options, task = call.options, call.task
    if task is None:
        return options
    return changed(
        options,
        queue=options.queue or task.queue,
        priority=task.priority if options.priority is None else options.priority,
    )


def written_options(options: Options) -> dict[str, Any]:
    """Options as JSON, without those that were not given. Raises `ConfigurationError` for one that is for one job."""
    written = {
        name: value for name, value in msgspec.to_builtins(options).items() if value != _DEFAULTS[name]
    }
    for name in _NOT_OF_A_SCHEDULE:
        if name in written:
            raise ConfigurationError(f"schedule.options.{name}: expected none, it can hold for one job only")
    return _plain(written)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The same of the types of JSON alone, as it comes back from the store."""
    return msgspec.json.decode(msgspec.json.encode(value))


def read_options(written: Mapping[str, Any]) -> Options:
    """Options of a schedule. Raises `ConfigurationError` naming the one that can't be."""
    known = {field.name for field in fields(Options)}
    for name in written:
        if name not in known or name in _NOT_OF_A_SCHEDULE:
            raise ConfigurationError(f"schedule.options.{name}: expected no option of this name")
    try:
        options = msgspec.convert(dict(written), Options)
    except msgspec.ValidationError as fault:
        raise ConfigurationError(f"schedule.options: {fault}") from fault
    if options.queue is not None and not is_queue_name(options.queue):
        raise ConfigurationError("schedule.options.queue: expected 1 to 64 letters, digits, '_' or '-'")
    return options


def tick_part(identifier: str, tick_ms: int) -> str:
    """The part of the id that the job of a tick has."""
    return sha256(tick_key(identifier, tick_ms).encode()).hexdigest()[:32]
