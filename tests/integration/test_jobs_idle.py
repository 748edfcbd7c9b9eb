"""What a worker that has nothing to do costs: one command each time it looks by itself."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from counterseal.jobs.context import JobContext
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.jobs.worker import POLL, Worker
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.gateway import gateway_on
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

KEYS = Keys()
POLL_S = 0.05
POLLS = 12


@task(name="nothing")
async def nothing(context: JobContext) -> None:
    """Ends at once."""


@asynccontextmanager
async def native(server: Server) -> AsyncGenerator[Store]:
    async with store_on(server) as store:
        yield store


@asynccontextmanager
async def rest(server: Server) -> AsyncGenerator[Store]:
    async with gateway_on(server) as gateway, gateway.rest_store() as store:
        yield store


@asynccontextmanager
async def monitored(server: Server) -> AsyncGenerator[list[str]]:
    """Lists the commands that connections send, without what scripts call, readings of the clock and heartbeats."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    commands: list[str] = []

    async def read() -> None:
        while line := (await reader.readline()).decode(errors="replace"):
            found = re.match(r"\+[\d.]+ \[\d+ (\S+)\] \"(\w+)\"", line)
            if found and found[1] != "lua" and found[2].lower() not in ("time", "ping"):
                commands.append(found[2].lower())

    reading = asyncio.create_task(read())
    try:
        yield commands
    finally:
        writer.close()
        await writer.wait_closed()
        await reading


@pytest.mark.parametrize("connection", [native, rest])
async def test_a_worker_that_has_nothing_to_do_sends_one_command_for_each_poll(
    servers: Any, connection: Any
) -> None:
    server: Server = servers()
    loop = asyncio.get_running_loop()
    async with connection(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[nothing])
        async with Worker(store, keys=KEYS, tasks=[nothing], poll=timedelta(seconds=POLL_S)) as worker:
            await jobs.enqueue_many([nothing.call() for _ in range(20)])
            await eventually(lambda: worker.counts.completed == 20)
            await eventually(lambda: heard(server))
            await looks_after(worker, 3)
            async with monitored(server) as commands:
                began = loop.time()
                await looks_after(worker, POLLS)
                await eventually(lambda: len(commands) >= POLLS - 1)
                polls = (loop.time() - began) / POLL_S
                # The first may have been on its way.
                assert len(commands) <= polls + 1, commands
                assert set(commands) == {"evalsha"}


def heard(server: Server) -> bool:
    """Whether the worker listens, so that nothing is left to be done."""
    return server.execute("PUBSUB", "NUMSUB", f"{KEYS.jobs_prefix('default')}:wake")[1] >= 1


async def looks_after(worker: Worker, many: int) -> None:
    """Wait until a worker has looked so many times."""
    seen = {worker.leased_at}

    def looked() -> bool:
        seen.add(worker.leased_at)
        return len(seen) > many

    await eventually(looked)


def test_a_worker_looks_by_itself_no_more_often_than_every_five_seconds() -> None:
    assert inspect.signature(Worker).parameters["poll"].default == POLL
    assert timedelta(seconds=5) <= POLL
