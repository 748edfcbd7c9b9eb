"""streaq, whose client is coredis, with uvloop; its worker runs 100 jobs at once."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import uvloop
from streaq import Worker

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark


async def job(payload: str) -> None:
    if mark(payload):
        await asyncio.sleep(HOLD_SECONDS)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    worker = Worker(redis_url=url)
    task = worker.task(silent=True)(job)

    async def one(payload: str) -> None:
        await task.enqueue(payload)

    async def many(payloads: Sequence[str]) -> None:
        await worker.enqueue_many([task.enqueue(payload) for payload in payloads])

    async with worker:
        yield Queue(one, many, length(url, "XLEN", f"{worker.stream_key}normal"))


async def work(url: str) -> None:
    worker = Worker(redis_url=url, concurrency=100, handle_signals=False)
    worker.task(silent=True)(job)
    await worker.run_async()


if __name__ == "__main__":
    serve_jobs(opened, work, pace=1700, loop_factory=uvloop.new_event_loop)
