"""Schedules for tests: a process that may run a scheduler, on a store whose clock the test moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Job
from counterseal.jobs.schedule import Schedule
from counterseal.jobs.scheduler import Scheduler
from counterseal.jobs.schedules import APPLICATION, Schedules
from counterseal.jobs.service import MAX_PAYLOAD, Jobs
from counterseal.jobs.task import Task, task
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.stores import travel

KEYS = Keys()


@task(name="report")
async def report(context: JobContext, what: str = "daily", copies: int = 1) -> None:
    """What most schedules of tests run."""


@dataclass(frozen=True, slots=True)
class Process:
    """The parts of one process, all on one store."""

    store: Store
    jobs: Jobs
    schedules: Schedules
    scheduler: Scheduler

    async def at(self, moment: datetime | int) -> None:
        """Move the clock forward to a moment, and let the scheduler look."""
        ms = moment if isinstance(moment, int) else round(moment.timestamp() * 1000)
        travel(self.store, timedelta(milliseconds=max(0, ms - self.store.now_ms())))
        await self.scheduler.look()

    async def made(self, schedule: str = "report") -> list[Job]:
        """The jobs of a schedule, in the order in which they were made."""
        jobs = [job for job in await self.jobs.list(limit=10_000) if job.schedule == schedule]
        return sorted(jobs, key=lambda job: job.queued_at)

    async def total(self, kind: str = "report") -> int:
        """How many jobs of a type were ever made."""
        return (await self.jobs.stats())[kind].total


def process_on(
    store: Store,
    *,
    tasks: Iterable[Task[Any, Any]] = (report,),
    code: Iterable[Schedule] | None = None,
    max_payload: int = MAX_PAYLOAD,
) -> Process:
    """A process that has these tasks and, when it declares any, these schedules in its code.

    Shortly before a full hour its clock is moved past it, so that no hour begins in the middle of a test.
    """
    if next_hour(store) - store.now_ms() < 300_000:
        travel(store, timedelta(minutes=10))
    jobs = Jobs(store, keys=KEYS, tasks=tasks, max_payload=max_payload)
    declared = {} if code is None else {APPLICATION: tuple(code)}
    schedules = Schedules(store, keys=KEYS, jobs=jobs, code=declared)
    return Process(store, jobs, schedules, Scheduler(store, keys=KEYS, schedules=schedules))


def next_hour(store: Store) -> int:
    """The next full hour by a store's clock, in milliseconds."""
    return (store.now_ms() // 3_600_000 + 1) * 3_600_000


def utc(ms: int) -> datetime:
    """A moment from milliseconds since 1970."""
    return datetime.fromtimestamp(ms / 1000, UTC)
