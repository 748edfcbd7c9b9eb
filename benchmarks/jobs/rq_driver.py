"""RQ with hiredis and its SimpleWorker, which runs jobs in its own process: without a fork for each."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import rq
from redis import Redis
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.jobs.load import Queue, length, serve_jobs

assert HIREDIS_AVAILABLE

_JOB = "benchmarks.jobs.rq_job.job"


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    with Redis.from_url(url, protocol=2, socket_timeout=None) as redis:
        queue = rq.Queue(connection=redis)

        async def one(payload: str) -> None:
            queue.enqueue(_JOB, payload)

        async def many(payloads: Sequence[str]) -> None:
            queue.enqueue_many([rq.Queue.prepare_data(_JOB, (payload,)) for payload in payloads])

        yield Queue(one, many, length(url, "LLEN", queue.key))


def work(url: str) -> None:
    redis = Redis.from_url(url)
    rq.SimpleWorker([rq.Queue(connection=redis)], connection=redis).work(logging_level="ERROR")


if __name__ == "__main__":
    serve_jobs(opened, work, pace=400)
