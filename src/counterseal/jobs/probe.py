"""Probe: a job that does nothing, sent through the queue to see whether that works."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from counterseal.core.codec import JsonValue
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Job, State
from counterseal.jobs.task import task
from counterseal.jobs.types import PROBE


@task(name=PROBE, retry=0, timeout=timedelta(seconds=10))
async def probe(context: JobContext) -> None:
    """Does nothing."""


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """A `probe` job that was sent through the queue: the state it reached in time, and after how many milliseconds.

    `state` is None when somebody removed the job meanwhile.
    """

    id: str
    state: State | None
    ms: int


class Probed(Protocol):
    """What is probed."""

    async def enqueue_json(self, kind: str, args: JsonValue = None) -> Any: ...
    async def wait(self, identifier: str, timeout: timedelta) -> Job | None: ...


async def run_probe(jobs: Probed, timeout: timedelta) -> ProbeRun:
    """Send a `probe` job and wait for its end."""
    started = time.perf_counter()
    made = await jobs.enqueue_json(PROBE)
    spent = timedelta(seconds=time.perf_counter() - started)
    job = await jobs.wait(made.id, max(timedelta(0), timeout - spent))
    return ProbeRun(made.id, job.state if job else None, round((time.perf_counter() - started) * 1000))
