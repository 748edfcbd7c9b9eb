"""huey with hiredis and worker threads, from whose queue a job is gone when it starts."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from huey import RedisHuey
from huey.api import TaskWrapper
from redis import ConnectionPool
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark

assert HIREDIS_AVAILABLE


def job(payload: str) -> None:
    if mark(payload):
        time.sleep(HOLD_SECONDS)


def _huey(url: str) -> tuple[RedisHuey, TaskWrapper]:
    huey = RedisHuey("bench", connection_pool=ConnectionPool.from_url(url, protocol=2, socket_timeout=None))
    return huey, huey.task(name="job")(job)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    _, task = _huey(url)

    async def one(payload: str) -> None:
        task(payload)

    async def many(payloads: Sequence[str]) -> None:
        for payload in payloads:
            task(payload)

    yield Queue(one, many, length(url, "LLEN", "huey.redis.bench"))


def work(url: str) -> None:
    huey, _ = _huey(url)
    huey.create_consumer(workers=4, periodic=False).run()


if __name__ == "__main__":
    serve_jobs(opened, work, pace=6000)
