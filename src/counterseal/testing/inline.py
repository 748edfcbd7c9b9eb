"""Inline: runs jobs where the test runs, by the real worker and scripts, with everything written and read."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from counterseal.app import Counterseal
from counterseal.jobs.job import State
from counterseal.jobs.worker_counts import WorkerCounts

_STEP_S = 0.005
_MOST = 10_000


async def drain(seal: Counterseal, *, within: timedelta = timedelta(seconds=10)) -> WorkerCounts:
    """Run jobs in this event loop until nothing is due any more, those too that they make; what was done.

    Jobs that are due later stay, and so do those of paused queues: see `travel`. Raises `AssertionError` that says what
    is left when that takes longer than `within`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within / timedelta(seconds=1)
    known: set[str] = set()
    counts = WorkerCounts()
    while True:
        named = [queue.queue for queue in await seal.jobs.queues() if not queue.paused]
        if set(named) == known:
            return counts
        known = set(named)
        async with seal.worker(queues=named) as worker:
            while left := await _left(seal, known):
                if loop.time() >= deadline:
                    raise AssertionError(f"after {within.total_seconds():g} s there are left: {left}")
                await asyncio.sleep(_STEP_S)
        for name in WorkerCounts.__dataclass_fields__:
            setattr(counts, name, getattr(counts, name) + getattr(worker.counts, name))


async def _left(seal: Counterseal, queues: set[str]) -> str:
    """What is to be run now; empty when nothing is."""
    told: list[str] = []
    for queue in await seal.jobs.queues():
        if queue.queue not in queues:
            continue
        due = await _due(seal, queue.queue) if queue.delayed else 0
        if queue.queued or queue.running or due:
            told.append(f"{queue.queue}: {queue.queued} queued, {queue.running} running, {due} due")
    return "; ".join(told)


async def _due(seal: Counterseal, queue: str) -> int:
    now = seal.store.now_ms()
    waiting = [
        *await seal.jobs.list(queue=queue, state=State.SCHEDULED, limit=_MOST),
        *await seal.jobs.list(queue=queue, state=State.RETRYING, limit=_MOST),
    ]
    return sum(job.due_at is not None and job.due_at.timestamp() * 1000 <= now for job in waiting)
