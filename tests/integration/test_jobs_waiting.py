"""Waiting for a job: what it costs, and that its end is not missed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.scripts import Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.store.keys import Keys
from support.monitor import monitored
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

KEYS = Keys()


@task(name="nothing")
async def nothing(context: JobContext) -> None:
    """Ends at once."""


async def test_waiting_for_a_job_costs_two_commands_however_long_it_takes(servers: Any) -> None:
    server: Server = servers()
    async with store_on(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[nothing])
        made = await jobs.enqueue(nothing)
        await jobs.get(made.id)
        async with monitored(server) as commands:
            job = await jobs.wait(made.id, timedelta(seconds=1.5))
            assert job is not None
            assert job.state is State.QUEUED
            await eventually(lambda: commands.count("evalsha") == 2)
            assert set(commands) <= {"evalsha", "subscribe", "unsubscribe", "client", "hello", "info"}


async def test_who_waits_for_a_job_hears_of_its_end_after_a_lost_connection(servers: Any) -> None:
    server: Server = servers()
    async with store_on(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[nothing])
        queue = Queue(store, KEYS, "default")
        made = await jobs.enqueue(nothing)
        (leased,) = (await queue.lease(room=1, worker="w", call="1", lease_ms=15_000)).jobs
        waiting = asyncio.create_task(jobs.wait(made.id, timedelta(seconds=20)))
        await eventually(
            lambda: server.execute("PUBSUB", "NUMSUB", f"{KEYS.jobs_prefix('default')}:ended")[1] == 1
        )
        await jobs.get(made.id)  # it was read before this
        server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        assert await queue.finish([Result(leased.part, leased.token, "completed", 60_000, 0, b"")]) == [True]
        job = await asyncio.wait_for(waiting, 10)
        assert job is not None
        assert job.state is State.COMPLETED
