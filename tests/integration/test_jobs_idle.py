"""What a worker that has nothing to do costs: one command each time it looks by itself."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from counterseal import Counterseal, Settings
from counterseal.jobs import scheduler
from counterseal.jobs.context import JobContext
from counterseal.jobs.listener import REFUSED_S
from counterseal.jobs.schedules import LEAST_GRACE, Schedules
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.jobs.worker import LEASE, POLL, REST_POLL, Worker
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.gateway import gateway_for, gateway_on
from support.monitor import monitored
from support.servers import Server
from support.stores import native_store, store_on
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


@asynccontextmanager
async def rest_without_channels(server: Server) -> AsyncGenerator[Store]:
    """A REST service of a user who may use no channel."""
    server.execute("ACL", "SETUSER", "deaf", "on", "nopass", "~*", "+@all", "resetchannels")
    async with (
        native_store(server, user="deaf", password="any") as behind,
        gateway_for(behind) as gateway,
        gateway.rest_store() as store,
    ):
        yield store


@pytest.mark.parametrize("connection", [rest, rest_without_channels])
async def test_a_worker_and_a_scheduler_over_rest_look_at_most_once_in_five_seconds(
    servers: Any, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred times as fast as they are. The clock of the store, which is read as often as ever, counts apart."""
    server: Server = servers()
    for name in ("LOOK", "LOOK_UNTOLD", "LOOK_UNTOLD_REST"):
        monkeypatch.setattr(scheduler, name, getattr(scheduler, name) / 100)
    async with connection(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[nothing])
        schedules = Schedules(store, keys=KEYS, jobs=jobs, code={})
        worker = Worker(store, keys=KEYS, tasks=[nothing], poll=REST_POLL / 100)
        async with worker, scheduler.Scheduler(store, keys=KEYS, schedules=schedules):
            await looks_after(worker, 3)
            if connection is rest:
                await eventually(lambda: heard(server))
                await looks_after(worker, 3)
            async with monitored(server) as commands:
                began = asyncio.get_running_loop().time()
                await looks_after(worker, 12)
                seconds = (asyncio.get_running_loop().time() - began) * 100
        looks = [command for command in commands if command == "evalsha"]
        assert len(looks) - 2 <= seconds / 5, (looks, seconds)  # the first ones may have been on their way


async def test_a_worker_that_can_not_listen_looks_again_soon_after_it_had_something_to_do(
    servers: Any,
) -> None:
    server: Server = servers()
    async with rest_without_channels(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[nothing])
        async with Worker(store, keys=KEYS, tasks=[nothing], poll=timedelta(hours=1)) as worker:
            for number in range(1, 4):
                await jobs.enqueue(nothing)
                await eventually(lambda number=number: worker.counts.completed == number)


def test_the_looks_of_a_worker_and_a_scheduler_over_rest_stay_below_one_in_five_seconds() -> None:
    settings = Settings.load(
        {"UPSTASH_REDIS_REST_URL": "https://example.com", "UPSTASH_REDIS_REST_TOKEN": "token"}
    )
    worker = Counterseal(settings).worker()
    second = timedelta(seconds=1)
    subscriptions = 2 * (second / timedelta(seconds=REFUSED_S) + second / scheduler.REFUSED)
    assert second / worker.poll + second / scheduler.LOOK_UNTOLD_REST + subscriptions <= 1 / 5 + 1e-9
    assert worker.poll < LEASE  # jobs of a worker that died are seen in time
    assert scheduler.LOOK_UNTOLD_REST < LEAST_GRACE
