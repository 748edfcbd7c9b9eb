"""Celery with late acknowledgement, in one process, without gossip, mingle, heartbeat and rate limits."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from celery import Celery
from celery.app.task import Task
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark

assert HIREDIS_AVAILABLE


def job(payload: str) -> None:
    if mark(payload):
        time.sleep(HOLD_SECONDS)


def _app(url: str) -> tuple[Celery, Task]:
    app = Celery("benchmark", broker=url)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=100,
        worker_disable_rate_limits=True,
        worker_enable_remote_control=False,
        broker_transport_options={"visibility_timeout": 30},
    )
    return app, app.task(name="job")(job)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    app, task = _app(url)
    with app, app.producer_pool.acquire(block=True) as producer:

        async def one(payload: str) -> None:
            task.apply_async((payload,), producer=producer)

        async def many(payloads: Sequence[str]) -> None:
            for payload in payloads:
                task.apply_async((payload,), producer=producer)

        yield Queue(one, many, length(url, "LLEN", "celery"))


def work(url: str) -> None:
    app, _ = _app(url)
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")
    app.worker_main(["worker", "--pool", "solo", *quiet])


if __name__ == "__main__":
    serve_jobs(opened, work, pace=1400)
