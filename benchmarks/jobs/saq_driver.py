"""SAQ with hiredis, orjson and uvloop; 100 jobs at once, each with the retries that its sweep needs."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvloop
from redis.asyncio import Redis
from redis.utils import HIREDIS_AVAILABLE
from saq import Worker
from saq.queue.redis import RedisQueue

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark

assert HIREDIS_AVAILABLE


async def job(context: dict[str, Any], *, payload: str) -> None:
    if mark(payload):
        await asyncio.sleep(HOLD_SECONDS)


def _queue(url: str, concurrency: int) -> RedisQueue:
    return RedisQueue(
        Redis.from_url(url), dump=orjson.dumps, load=orjson.loads, max_concurrent_ops=max(20, concurrency)
    )


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    queue = _queue(url, concurrency)

    async def one(payload: str) -> None:
        await queue.enqueue("job", payload=payload, retries=3)

    async def many(payloads: Sequence[str]) -> None:
        await asyncio.gather(*map(one, payloads))

    try:
        yield Queue(one, many, length(url, "LLEN", "saq:default:queued"))
    finally:
        await queue.disconnect()


async def work(url: str) -> None:
    queue = _queue(url, 100)
    await queue.connect()
    await Worker(queue, [job], concurrency=100).start()


if __name__ == "__main__":
    serve_jobs(opened, work, pace=3000, loop_factory=uvloop.new_event_loop)
