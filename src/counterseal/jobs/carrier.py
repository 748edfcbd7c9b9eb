"""Carrier: who brings jobs to where they run, in place of the lanes of their queues."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from counterseal.jobs.schedule_entries import Entry
from counterseal.jobs.scripts import Queue
from counterseal.store.wire import Argument


class Taking(Protocol):
    """Accepts the jobs of one queue, as `Intake` does."""

    async def add(self, job: Sequence[Argument], size: int) -> str:
        """Accept one job, five arguments; '' or the part of the job that was there already."""
        ...

    async def add_many(self, jobs: Sequence[Argument]) -> list[str]:
        """Accept many jobs, five arguments each; for each '' or the part that was there."""
        ...

    async def close(self) -> None:
        """Let those that have left arrive. Safe to call twice."""
        ...


class Carrier(Protocol):
    """What `Jobs` asks of a carrier."""

    def taking(self, queue: Queue) -> Taking:
        """What accepts the jobs of a queue."""
        ...

    async def carry_again(self, queue: Queue, parts: Sequence[str]) -> None:
        """Bring queued jobs that came back by themselves: dead letters that are retried, parked jobs."""
        ...

    async def cancelled(self, queue: Queue, part: str) -> None:
        """Bring a job no more that was cancelled before it began. Best effort: it would not begin."""
        ...


class ScheduleCarrier(Protocol):
    """What `Schedules` asks of somebody else who makes the ticks of schedules."""

    active: bool
    """Whether it is to; else it gives back those that it has."""

    async def settle_all(self, *, passed_over: Collection[str] = (), full: bool = False) -> int:
        """Tell it all that it was not told; how many it carries. Raises `CarrierUnavailable`."""
        ...

    async def settle(self, identifier: str) -> None:
        """Tell it of a schedule that was changed. Best effort: it is told later."""
        ...

    async def removed(self, entry: Entry) -> None:
        """Tell it of a schedule that was removed. Best effort: what it makes of it makes no job."""
        ...
