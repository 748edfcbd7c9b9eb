"""dramatiq with hiredis, its 8 threads and a prefetch of 200, where its default is 16."""

import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

os.environ["dramatiq_queue_prefetch"] = "200"  # noqa: SIM112 - so it is called, and the import reads it

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from redis import Redis
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark

assert HIREDIS_AVAILABLE


def job(payload: str) -> None:
    if mark(payload):
        time.sleep(HOLD_SECONDS)


def _broker(url: str) -> RedisBroker:
    return RedisBroker(client=Redis.from_url(url, protocol=2, socket_timeout=None))


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    broker = _broker(url)
    actor = dramatiq.actor(job, broker=broker)

    async def one(payload: str) -> None:
        actor.send(payload)

    async def many(payloads: Sequence[str]) -> None:
        for payload in payloads:
            actor.send(payload)

    try:
        yield Queue(one, many, length(url, "LLEN", "dramatiq:default"))
    finally:
        broker.close()


def work(url: str) -> None:
    broker = _broker(url)
    dramatiq.actor(job, broker=broker)
    dramatiq.Worker(broker, worker_threads=8).start()
    time.sleep(HOLD_SECONDS)


if __name__ == "__main__":
    serve_jobs(opened, work, pace=8000)
