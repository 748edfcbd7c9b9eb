"""JobTables: jobs, statistics and schedules as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import Any, Final, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from counterseal.jobs.cron import Cron, When
from counterseal.jobs.job import Job, State
from counterseal.jobs.schedules import ScheduleStatus
from counterseal.jobs.statistics import JobStats, Quantiles, QueueStats, Throughput

_PIPE_WIDTH: Final = 240
_COLOURS: Final = {
    State.RUNNING: "cyan",
    State.COMPLETED: "green",
    State.FAILED: "bold red",
    State.RETRYING: "yellow",
}


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as JSON: moments as ISO 8601, durations in milliseconds under a name that ends with `_ms`."""
    made: dict[str, Any] = {}
    for field in fields(value):
        found = getattr(value, field.name)
        if isinstance(found, timedelta):
            made[f"{field.name}_ms"] = _ms(found)
        elif isinstance(found, IntEnum):
            made[field.name] = found.name.lower()
        elif isinstance(found, Enum):
            made[field.name] = found.value
        elif isinstance(found, datetime):
            made[field.name] = found.isoformat()
        elif hasattr(found, "__dataclass_fields__"):
            made[field.name] = to_json(found)
        else:
            made[field.name] = list(cast("tuple[Any, ...]", found)) if isinstance(found, tuple) else found
    return made


def schedule_json(status: ScheduleStatus) -> dict[str, Any]:
    """A schedule and where it stands as JSON."""
    schedule = status.schedule
    return {
        "id": schedule.id,
        "type": schedule.type,
        "when": when_text(schedule.when),
        "paused": schedule.paused,
        "source": status.source,
        "carrier": status.carrier,
        "next": None if status.next is None else status.next.isoformat(),
        "last": None if status.last is None else status.last.isoformat(),
        "last_job": status.last_job,
    }


def print_json(value: object) -> None:
    """On stdout, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_jobs(jobs: Sequence[Job]) -> None:
    """A line each."""
    table = _table("Job", "Type", "State", "Attempt", "Queued", "Note")
    for job in jobs:
        table.add_row(
            job.id,
            job.type,
            Text("parked" if job.parked else job.state, style=_COLOURS.get(job.state, "")),
            str(job.attempt),
            moment_text(job.queued_at),
            Text(_note(job)),
        )
    _print(table)
    _tell(count_of(len(jobs), "job"))


def print_job(job: Job, logs: Sequence[tuple[int, str]]) -> None:
    """All of one job, and its log."""
    table = _table(header=False)
    for name, value in to_json(job).items():
        if value is None or value in ([], ""):
            continue
        found = getattr(job, name, None)
        if isinstance(found, datetime):
            shown = moment_text(found)
        elif name == "failure":
            shown = str(job.failure)
        elif name == "progress" and job.progress is not None:
            shown = f"{job.progress.share:.0%} {job.progress.message}"
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        table.add_row(Text(name.replace("_", " "), style="bold"), Text(shown))
    _print(table)
    for at_ms, text in logs:
        print(f"{moment_text(datetime.fromtimestamp(at_ms / 1000, UTC))}  {text}")


def print_stats(
    stats: Mapping[str, JobStats],
    times: Mapping[str, tuple[Quantiles, Quantiles]],
    throughput: Mapping[str, Throughput],
    queues: Sequence[QueueStats],
) -> None:
    """Types, then queues."""
    table = _table(
        "Type", "Total", "Completed", "Failed", "Pending", "Cancelled", "Success", "Wait p50/p95/p99",
        "Run p50/p95/p99", "Last minute", "Last hour", right=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    )  # fmt: skip
    for kind, of in stats.items():
        wait, run = times[kind]
        lately = throughput[kind]
        table.add_row(
            kind,
            *(str(count) for count in (of.total, of.completed, of.failed, of.pending, of.cancelled)),
            f"{of.success_rate:g} %" if of.completed or of.failed else "-",
            _quantiles(wait),
            _quantiles(run),
            str(lately.completed_last_minute + lately.failed_last_minute),
            str(lately.completed_last_hour + lately.failed_last_hour),
        )
    _print(table)
    print()
    table = _table(
        "Queue", "Queued", "Oldest", "Running", "Delayed", "Parked", "Dead", "Parallelism", "",
        right=(1, 2, 3, 4, 5, 6, 7),
    )  # fmt: skip
    for queue in queues:
        table.add_row(
            queue.queue,
            str(queue.queued),
            "-" if queue.oldest_age is None else duration_text(queue.oldest_age),
            *(str(count) for count in (queue.running, queue.delayed, queue.parked, queue.dead)),
            str(queue.parallelism or "-"),
            Text("paused" if queue.paused else "", style="yellow"),
        )
    _print(table)


def print_schedules(found: Sequence[ScheduleStatus]) -> None:
    """A line each."""
    table = _table("Schedule", "Type", "When", "Next", "Last", "Source", "Carrier", "")
    for status in found:
        table.add_row(
            status.schedule.id,
            status.schedule.type,
            Text(when_text(status.schedule.when)),
            moment_text(status.next),
            moment_text(status.last),
            status.source or "-",
            status.carrier,
            Text("paused" if status.schedule.paused else "", style="yellow"),
        )
    _print(table)
    _tell(count_of(len(found), "schedule"))


def when_text(when: When) -> str:
    """A cron expression with its zone, or an interval."""
    if isinstance(when, Cron):
        return f"{when.expression} {when.zone}"
    return f"every {duration_text(when.interval)}"


def moment_text(moment: datetime | None) -> str:
    """In UTC, to the second."""
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def duration_text(duration: timedelta) -> str:
    """In the unit that fits."""
    ms = _ms(duration)
    if ms < 1000:
        return f"{ms:.3g} ms"
    if ms < 120_000:
        return f"{ms / 1000:.3g} s"
    if ms < 7_200_000:
        return f"{ms / 60_000:.3g} min"
    return f"{ms / 3_600_000:.3g} h"


def count_of(count: int, what: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _note(job: Job) -> str:
    if job.failure is not None:
        return str(job.failure)
    if job.progress is not None and not job.state.terminal:
        return f"{job.progress.share:.0%} {job.progress.message}".rstrip()
    if job.due_at is not None:
        return f"due {moment_text(job.due_at)}"
    return job.reason or ""


def _quantiles(of: Quantiles) -> str:
    return " / ".join(duration_text(one) for one in (of.p50, of.p95, of.p99)) if of.count else "-"


def _ms(duration: timedelta) -> float:
    return round(duration / timedelta(milliseconds=1), 3)


def _table(*columns: str, header: bool = True, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, show_header=header, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", no_wrap=number == 0)
    return table


def _print(table: Table) -> None:
    # What reads a pipe wants a line for each row.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False).print(table)


def _tell(text: str) -> None:
    """To people alone."""
    if sys.stdout.isatty():
        print(text)
