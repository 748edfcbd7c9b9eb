"""Jobs: work that is accepted now and done by a worker, at least once.

What an application needs besides `Counterseal`, `task` and `JobContext`; nothing is loaded before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from counterseal.jobs.cron import Cron, Every
    from counterseal.jobs.job import Failure, Job, Progress, State
    from counterseal.jobs.options import Flow, Options, Priority
    from counterseal.jobs.retry import NO_RETRY, Exponential, Fixed, Formula, Listed
    from counterseal.jobs.run import Middleware
    from counterseal.jobs.schedule import Missed, Schedule
    from counterseal.jobs.schedule_job import scheduled
    from counterseal.jobs.service import Enqueued, Jobs
    from counterseal.jobs.statistics import JobStats, Quantiles, QueueStats, Throughput
    from counterseal.jobs.task import Call, Task
    from counterseal.jobs.watch import JobEvent, JobUpdate
    from counterseal.jobs.worker import Worker

__all__ = [
    "NO_RETRY",
    "Call",
    "Cron",
    "Enqueued",
    "Every",
    "Exponential",
    "Failure",
    "Fixed",
    "Flow",
    "Formula",
    "Job",
    "JobEvent",
    "JobStats",
    "JobUpdate",
    "Jobs",
    "Listed",
    "Middleware",
    "Missed",
    "Options",
    "Priority",
    "Progress",
    "Quantiles",
    "QueueStats",
    "Schedule",
    "State",
    "Task",
    "Throughput",
    "Worker",
    "scheduled",
]

_HOMES: Final = {
    "NO_RETRY": "retry",
    "Call": "task",
    "Cron": "cron",
    "Enqueued": "service",
    "Every": "cron",
    "Exponential": "retry",
    "Failure": "job",
    "Fixed": "retry",
    "Flow": "options",
    "Formula": "retry",
    "Job": "job",
    "JobEvent": "watch",
    "JobStats": "statistics",
    "JobUpdate": "watch",
    "Jobs": "service",
    "Listed": "retry",
    "Middleware": "run",
    "Missed": "schedule",
    "Options": "options",
    "Priority": "options",
    "Progress": "job",
    "Quantiles": "statistics",
    "QueueStats": "statistics",
    "Schedule": "schedule",
    "State": "job",
    "Task": "task",
    "Throughput": "statistics",
    "Worker": "worker",
    "scheduled": "schedule_job",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
