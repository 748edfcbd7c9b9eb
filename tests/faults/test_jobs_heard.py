"""What a worker goes on with: other queues when one is broken, what was sent while nobody heard, what it put back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from counterseal.core.errors import SubscriberTooSlow
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.options import Flow, Priority
from counterseal.jobs.scripts import Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.jobs.worker import Worker
from counterseal.store.base import Message, Subscription
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.servers import Server
from support.stores import store_on
from support.subscriptions import Messages, Through
from support.waiting import eventually

KEYS = Keys()
PREFIX = KEYS.jobs_prefix("default")
PATIENT = LinkOptions(connect_timeout=timedelta(seconds=5), command_timeout=timedelta(seconds=5))


@task(name="nothing")
async def nothing(context: JobContext) -> None:
    """Ends at once."""


@pytest.fixture
async def store(valkey: Server) -> AsyncIterator[NativeStore]:
    async with store_on(valkey) as store:
        yield store


async def ended(jobs: Jobs, identifier: str) -> bool:
    job = await jobs.get(identifier)
    return job is not None and job.state is State.COMPLETED


# -- one queue that is broken ------------------------------------------------------------------------------------------


async def test_a_queue_that_can_not_be_served_keeps_no_other_up(
    store: NativeStore, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(store, keys=KEYS, tasks=[nothing])
    await store.command("SET", KEYS.jobs_queue("broken"), "no hash")
    queues = {"broken": 1_000_000, "sound": 1}
    async with Worker(store, keys=KEYS, tasks=[nothing], queues=queues) as worker:
        for number in range(1, 31):
            await jobs.enqueue(nothing.using(queue="sound"))
            await eventually(lambda number=number: worker.counts.completed == number)
        told = [one for one in caplog.records if one.levelno == logging.WARNING and "broken" in one.message]
        assert len(told) == 1
        await store.command("DEL", KEYS.jobs_queue("broken"))
        made = await jobs.enqueue(nothing.using(queue="broken"))
        await eventually(lambda: ended(jobs, made.id))


async def test_a_worker_that_ends_hands_in_what_it_has_though_another_queue_is_broken(
    store: NativeStore,
) -> None:
    jobs = Jobs(store, keys=KEYS, tasks=[])
    gate, begun = asyncio.Event(), asyncio.Event()

    @task(name="gated", queue="sound")
    async def gated(context: JobContext) -> None:
        begun.set()
        await gate.wait()

    made = await Jobs(store, keys=KEYS, tasks=[gated]).enqueue(gated)
    queues = {"broken": 1_000_000, "sound": 1}
    async with Worker(store, keys=KEYS, tasks=[gated], queues=queues) as worker:
        await asyncio.wait_for(begun.wait(), 10)
        await store.command("SET", KEYS.jobs_queue("broken"), "no hash")
        worker._sources[0].lost_call = "1"
        gate.set()
    assert await ended(jobs, made.id)


# -- what was sent while nobody heard ----------------------------------------------------------------------------------


class CutOffStore(NativeStore):
    """A store whose subscriptions end with the first job that is sent."""

    def __init__(self, server: Server) -> None:
        super().__init__(FixedRoute(parse_redis_url(server.url).template), PATIENT)
        self.cut: list[str] = []

    def subscribe(
        self, *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        return Through(super().subscribe(*channels, limit=limit, on_loss=on_loss), self._told)

    async def _told(self, messages: Messages) -> Messages:
        async for message in messages:
            if isinstance(message, Message) and self._is_first(message):
                raise SubscriberTooSlow("more messages were waiting to be read than may")
            yield message

    def _is_first(self, message: Message) -> bool:
        if ":to:" not in message.channel or self.cut:
            return False
        self.cut.append(message.channel)
        return True


async def test_a_job_that_was_sent_to_a_worker_which_is_cut_off_goes_back_to_its_queue_at_once(
    valkey: Server, store: NativeStore
) -> None:
    jobs = Jobs(store, keys=KEYS, tasks=[nothing])
    async with CutOffStore(valkey) as far:
        async with Worker(far, keys=KEYS, tasks=[nothing], lease=timedelta(minutes=10)):

            async def is_idle() -> bool:
                return await store.command("SCARD", f"{PREFIX}:idle") == 1

            await eventually(is_idle)
            made = await jobs.enqueue(nothing)
            await eventually(lambda: ended(jobs, made.id))
        assert far.cut
    job = await jobs.get(made.id)
    assert job is not None
    assert (job.attempt, job.lost) == (1, 0)


# -- what was put back -------------------------------------------------------------------------------------------------


@task(name="late")
async def late(context: JobContext) -> None:
    """What only the newer release knows."""


class CountingQueue(Queue):
    """Notes when parked jobs were asked for, and whether some came."""

    asked: ClassVar[list[float]] = []

    async def unpark(self, *args: Any, **options: Any) -> Any:
        self.asked.append(asyncio.get_running_loop().time())
        return await Queue.unpark(self, *args, **options)


class Former:
    """A worker of the former release: it parks what it does not know."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._calls = 0

    async def parks(self) -> bool:
        """Whether it has met a job of the later release."""
        self._calls += 1
        held = await self._queue.lease(room=1, worker="former", call=str(self._calls), lease_ms=15_000)
        why = b'["Parked","unknown task",""]'
        parked = [Result(one.part, one.token, "parked", 1, 0, why) for one in held.jobs if one.type == "late"]
        other = [Result(one.part, one.token, "queued", 0, 0, b"") for one in held.jobs if one.type != "late"]
        if held.jobs:
            assert await self._queue.finish([*parked, *other]) == [True]
        return bool(parked)


@pytest.mark.parametrize("flow", [None, Flow("tenant")], ids=["none", "a flow"])
async def test_what_is_put_back_goes_before_what_waits_in_other_lanes(
    store: NativeStore, flow: Flow | None
) -> None:
    jobs = Jobs(store, keys=KEYS, tasks=[nothing, late])
    queue = Queue(store, KEYS, "default")
    await jobs.enqueue(late if flow is None else late.using(flow=flow))
    assert await Former(queue).parks()
    await jobs.enqueue_many([nothing.using(flow=Flow(f"other{number}")).call() for number in range(5)])
    await queue.unpark({"late": 1}, count=1)
    leased = await queue.lease(room=1, worker="new", call="1", lease_ms=15_000)
    assert [one.type for one in leased.jobs] == ["late"]


async def test_two_releases_hand_a_job_to_and_fro_no_more_often_than_once_a_second(
    store: NativeStore,
) -> None:
    gates = asyncio.Semaphore(0)
    begun = 0

    @task(name="urgent")
    async def urgent(context: JobContext) -> None:
        nonlocal begun
        begun += 1
        await gates.acquire()

    jobs = Jobs(store, keys=KEYS, tasks=[urgent, late])
    former = Former(Queue(store, KEYS, "default"))
    made = await jobs.enqueue(late.using(priority=Priority.LOW))
    assert await former.parks()
    CountingQueue.asked.clear()
    worker = Worker(store, keys=KEYS, tasks=[urgent, late], concurrency=1)
    worker._sources[0].queue = CountingQueue(store, KEYS, "default")
    high = urgent.using(priority=Priority.HIGH)
    loop = asyncio.get_running_loop()
    await jobs.enqueue(high)
    async with worker:
        await eventually(lambda: begun == 1)
        await eventually(former.parks) if CountingQueue.asked else None
        began, asked = loop.time(), len(CountingQueue.asked)
        for number in range(2, 12):
            # The worker puts the late job back, but has room only for what is urgent; so the former one meets it.
            await jobs.enqueue(high)
            gates.release()
            await eventually(lambda number=number: begun == number)
            await former.parks()
        assert len(CountingQueue.asked) - asked <= 1 + loop.time() - began
        gates.release()
        await eventually(lambda: ended(jobs, made.id))
