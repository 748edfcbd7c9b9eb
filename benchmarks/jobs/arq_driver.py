"""arq with hiredis and uvloop, 100 jobs at once and a poll each 10 ms; by default it is 10 jobs and 500 ms."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import default_queue_name
from arq.worker import Worker

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark


async def job(context: dict[Any, Any], payload: str) -> None:
    if mark(payload):
        await asyncio.sleep(HOLD_SECONDS)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    redis: ArqRedis = await create_pool(RedisSettings.from_dsn(url))

    async def one(payload: str) -> None:
        await redis.enqueue_job("job", payload)

    async def many(payloads: Sequence[str]) -> None:
        await asyncio.gather(*map(one, payloads))

    try:
        yield Queue(one, many, length(url, "ZCARD", default_queue_name))
    finally:
        await redis.aclose()


async def work(url: str) -> None:
    worker = Worker(
        [job],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=100,
        poll_delay=0.01,
        log_results=False,
        handle_signals=False,
    )
    await worker.async_run()


if __name__ == "__main__":
    serve_jobs(opened, work, pace=3000, loop_factory=uvloop.new_event_loop)
