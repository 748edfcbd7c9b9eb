"""Waiting for a job: what it costs, and that its end is not missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from counterseal.jobs import watch
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.scripts import Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.store.base import Gap, Subscription
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.monitor import monitored
from support.servers import Server
from support.stores import store_on
from support.subscriptions import Messages, Through
from support.waiting import eventually

KEYS = Keys()
PATIENT = LinkOptions(connect_timeout=timedelta(seconds=5), command_timeout=timedelta(seconds=5))


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


class UnheardStore(NativeStore):
    """A store whose messages all get lost, and nobody is told."""

    def __init__(self, server: Server) -> None:
        super().__init__(FixedRoute(parse_redis_url(server.url).template), PATIENT, kind="sentinel")

    def subscribe(
        self, *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        return Through(super().subscribe(*channels, limit=limit, on_loss=on_loss), gaps_only)


async def gaps_only(messages: Messages) -> Messages:
    async for message in messages:
        if isinstance(message, Gap):
            yield message


async def by_wait(jobs: Jobs, identifier: str) -> State | None:
    job = await jobs.wait(identifier, timedelta(minutes=10))
    return job and job.state


async def by_watch(jobs: Jobs, identifier: str) -> State | None:
    states = [update.job.state async for update in jobs.watch(identifier) if update.job is not None]
    assert states == [State.RUNNING, State.COMPLETED]  # nothing is told twice
    return states[-1]


@pytest.mark.parametrize("following", [by_wait, by_watch])
async def test_the_end_of_a_job_is_seen_though_its_message_got_lost_unseen(
    servers: Any, following: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = servers()
    monkeypatch.setattr(watch, "_LOOK_AGAIN_S", 0.05)
    async with UnheardStore(server) as store:
        jobs = Jobs(store, keys=KEYS, tasks=[nothing])
        queue = Queue(store, KEYS, "default")
        made = await jobs.enqueue(nothing)
        (leased,) = (await queue.lease(room=1, worker="w", call="1", lease_ms=15_000)).jobs
        before = int(server.info("commandstats")["cmdstat_evalsha"].split(",")[0].removeprefix("calls="))
        follower = asyncio.create_task(following(jobs, made.id))
        await eventually(
            lambda: (
                int(server.info("commandstats")["cmdstat_evalsha"].split(",")[0].removeprefix("calls="))
                >= before + 3
            )
        )
        assert await queue.finish([Result(leased.part, leased.token, "completed", 60_000, 0, b"")]) == [True]
        assert await asyncio.wait_for(follower, 20) is State.COMPLETED


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
