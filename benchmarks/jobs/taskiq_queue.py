"""taskiq with hiredis, orjson and uvloop, over any of its brokers; as it comes it keeps no results."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from redis.utils import HIREDIS_AVAILABLE
from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask
from taskiq.api import run_receiver_task
from taskiq.serializers import ORJSONSerializer

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark

assert HIREDIS_AVAILABLE


async def job(payload: str) -> None:
    if mark(payload):
        await asyncio.sleep(HOLD_SECONDS)


def _task(broker: AsyncBroker) -> AsyncTaskiqDecoratedTask[[str], Any]:
    return broker.with_serializer(ORJSONSerializer()).register_task(job, task_name="job")


def serve_taskiq(broker_class: Callable[..., AsyncBroker], count: str) -> None:
    """Answer the harness for a broker, whose queue is counted by this command."""

    def broker_of(url: str, connections: int) -> AsyncBroker:
        # redis-py's time-out would cost it something with each command.
        return broker_class(url, max_connection_pool_size=connections, protocol=2, socket_timeout=None)

    @asynccontextmanager
    async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
        broker = broker_of(url, concurrency)
        task = _task(broker)
        await broker.startup()

        async def many(payloads: Sequence[str]) -> None:
            await asyncio.gather(*map(task.kiq, payloads))

        try:
            yield Queue(task.kiq, many, length(url, count, "taskiq"), keeps=count == "XLEN")
        finally:
            await broker.shutdown()

    async def work(url: str) -> None:
        broker = broker_of(url, 100)
        _task(broker)
        await run_receiver_task(
            broker, run_startup=True, validate_params=False, max_async_tasks=200, max_prefetch=200
        )

    serve_jobs(opened, work, pace=4000, loop_factory=uvloop.new_event_loop)
