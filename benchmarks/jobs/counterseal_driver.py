"""counterseal as an application opens it, with records, results, statistics, leases and deadlines; 200 jobs at once."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import uvloop

from benchmarks.jobs.load import Queue, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark
from counterseal import Counterseal, Settings
from counterseal.jobs.context import JobContext
from counterseal.jobs.task import task

_CONCURRENCY = 200
_MEMORY = "/dev/shm"  # jobs never ask the database, so it need not wait for a disk to be filled


@task(name="benchmark")
async def job(context: JobContext, payload: str) -> None:
    if mark(payload):
        await asyncio.sleep(HOLD_SECONDS)


@asynccontextmanager
async def _opened(url: str) -> AsyncGenerator[Counterseal]:
    with tempfile.TemporaryDirectory(prefix="counterseal-bench-", dir=_MEMORY) as folder:
        settings = Settings.load({"REDIS_URL": url, "COUNTERSEAL_DATA_DIR": folder})
        async with Counterseal.open(settings, tasks=[job]) as seal:
            yield seal


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    async with _opened(url) as seal:

        async def one(payload: str) -> None:
            await seal.jobs.enqueue(job, payload)

        async def many(payloads: Sequence[str]) -> None:
            await seal.jobs.enqueue_many([job.call(payload) for payload in payloads])

        async def waiting() -> int:
            stats = await seal.jobs.stats()
            return stats["benchmark"].pending if "benchmark" in stats else 0

        yield Queue(one, many, waiting)


async def work(url: str) -> None:
    async with _opened(url) as seal, seal.worker(concurrency=_CONCURRENCY):
        await asyncio.Event().wait()


if __name__ == "__main__":
    serve_jobs(opened, work, pace=30_000, loop_factory=uvloop.new_event_loop)
