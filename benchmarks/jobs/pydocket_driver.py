"""pydocket with hiredis and uvloop; its worker runs 100 jobs at once and looks for more as soon as it can."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import uvloop
from docket import Docket, Worker
from redis.utils import HIREDIS_AVAILABLE

from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark

assert HIREDIS_AVAILABLE


async def job(payload: str) -> None:
    if mark(payload):
        await asyncio.sleep(HOLD_SECONDS)


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Queue]:
    async with Docket(name="bench", url=url) as docket:
        docket.register(job)

        async def one(payload: str) -> None:
            await docket.add(job)(payload)

        async def many(payloads: Sequence[str]) -> None:
            await docket.add_many([docket.call(job)(payload) for payload in payloads])

        yield Queue(one, many, length(url, "XLEN", docket.stream_key))


async def work(url: str) -> None:
    logging.disable(logging.INFO)
    async with Docket(name="bench", url=f"{url}?max_connections=400") as docket:
        docket.register(job)
        check = timedelta(milliseconds=10)
        async with Worker(docket, concurrency=100, minimum_check_interval=check) as worker:
            await worker.run_forever()


if __name__ == "__main__":
    serve_jobs(opened, work, pace=2500, loop_factory=uvloop.new_event_loop)
