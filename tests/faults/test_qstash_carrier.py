"""No accepted job is lost, wherever between its record, its message and its end a process dies or an answer is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal.core.errors import CarrierUnavailable
from counterseal.jobs.carried import Carried as Calls
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.scripts import Queue
from counterseal.jobs.task import task
from counterseal.store.keys import Keys
from support.ports import free_port
from support.qstash import Carried, carried_on
from support.servers import Server
from support.site import problem, seal_on
from support.stores import travel

SOON = timedelta(seconds=31)
MUCH_LATER = timedelta(minutes=16)
PUBLISHER = Path(__file__).with_name("qstash_publisher.py")

ran: list[str] = []


@task(name="email", retry=2)
async def email(context: JobContext, to: str) -> str:
    ran.append(context.id)
    return to


@pytest.fixture
async def carried(valkey: Server, data_dir: Path) -> AsyncIterator[Carried]:
    ran.clear()
    async with carried_on(valkey, data_dir, tasks=[email]) as carried:
        yield carried


async def only_job(carried: Carried):
    (job,) = await carried.seal.jobs.list()
    return job


async def delivered_once(carried: Carried) -> None:
    await carried.qstash.deliver()
    job = await only_job(carried)
    assert (job.state, job.result) == (State.COMPLETED, "ada@example.org")
    assert ran == [job.id]
    stats = (await carried.seal.jobs.stats())["email"]
    assert (stats.total, stats.completed, stats.pending) == (1, 1, 0)


@pytest.mark.parametrize("stored", [False, True], ids=["message not taken", "message taken"])
async def test_a_process_that_is_killed_between_record_and_message_loses_no_job(
    carried: Carried, valkey: Server, stored: bool
):
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        arrived.set()
        await go_on.wait()
        if not stored:
            raise ConnectionAbortedError("scripted")

    carried.qstash.on_publish = hold
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PUBLISHER),
        env={
            **os.environ,
            **carried.qstash.variables,
            "REDIS_URL": valkey.url,
            "COUNTERSEAL_DATA_DIR": str(carried.seal.settings.data_dir),
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20):
            await arrived.wait()
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    carried.qstash.on_publish = None
    go_on.set()
    job = await only_job(carried)
    assert job.state is State.QUEUED
    assert await carried.carrier.sweep() == 0  # its publisher may still be about to
    assert await carried.carrier.sweep(ahead=SOON) == 1
    assert len(carried.qstash.of(job.id)) == 1
    await delivered_once(carried)


async def test_a_message_whose_answer_is_lost_is_one_message(carried: Carried):
    carried.qstash.lose_answers = True
    made = await carried.seal.jobs.enqueue(email, "ada@example.org")
    assert made.created
    assert carried.qstash.publishes == 2  # it was repeated, and QStash knew the duplicate
    assert await carried.carrier.sweep(ahead=SOON) == 0
    assert len(carried.qstash.messages) == 1
    await delivered_once(carried)


async def test_a_message_of_which_nothing_is_known_is_published_later(carried: Carried):
    async def lost() -> None:
        raise ConnectionAbortedError("scripted")

    carried.qstash.on_publish = lost
    made = await carried.seal.jobs.enqueue(email, "ada@example.org")
    assert (made.created, carried.qstash.messages) == (True, {})
    assert await carried.carrier.sweep(ahead=SOON) == 0  # lost again
    assert carried.carrier.counts.unknown == 2
    carried.qstash.on_publish = None
    assert await carried.carrier.sweep(ahead=2 * SOON) == 1
    await delivered_once(carried)


async def test_a_job_is_not_accepted_when_qstash_can_not_be_reached(valkey: Server, data_dir: Path):
    async with carried_on(valkey, data_dir, tasks=[email]) as carried:
        variables = {**carried.qstash.variables, "QSTASH_URL": f"http://127.0.0.1:{free_port()}"}
        async with seal_on(valkey, data_dir, variables, tasks=[email]) as cut_off:
            with pytest.raises(CarrierUnavailable):
                await cut_off.jobs.enqueue(email, "ada@example.org")
        assert await carried.seal.jobs.list() == []
        assert await carried.carrier.sweep(ahead=SOON) == 0


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_an_answer_that_refuses_a_message_takes_the_job_back(carried: Carried, status: int):
    carried.qstash.refuse = status
    with pytest.raises(CarrierUnavailable):
        await carried.seal.jobs.enqueue(email, "ada@example.org")
    assert await carried.seal.jobs.list() == []
    stats = (await carried.seal.jobs.stats())["email"]
    assert (stats.total, stats.pending) == (0, 0)


async def test_a_job_whose_message_qstash_gave_up_gets_another_one(carried: Carried):
    made = await carried.seal.jobs.enqueue(email, "ada@example.org")
    (message,) = carried.qstash.messages.values()
    message.state = "failed"  # nobody answered, as often as it tried
    assert await carried.carrier.sweep(ahead=SOON) == 0
    assert await carried.carrier.sweep(ahead=MUCH_LATER) == 1
    assert len(carried.qstash.of(made.id)) == 2
    await delivered_once(carried)


async def test_two_processes_look_after_a_message_once(carried: Carried):
    await carried.seal.jobs.enqueue(email, "ada@example.org")
    (message,) = carried.qstash.messages.values()
    message.state = "failed"
    both = await asyncio.gather(*(carried.carrier.sweep(ahead=MUCH_LATER) for _ in range(2)))
    assert sorted(both) == [0, 1]


async def test_a_delivery_whose_process_died_is_taken_over_and_after_three_it_is_a_dead_letter(
    carried: Carried,
):
    made = await carried.seal.jobs.enqueue(email, "ada@example.org")
    (message,) = carried.qstash.messages.values()
    queue = Queue(carried.seal.store, Keys("cs"), "default")
    for lost in range(3):
        begun = await Calls(queue).begin(made.id.partition(".")[2], "email", lease_ms=15_000)
        assert begun.leased is not None  # and the process is gone
        waits = await carried.qstash.send(
            message.url, message.body, carried.qstash.sign(message.url, message.body, exp=2_000_000_000)
        )
        assert waits.status_code == 401  # no signature is good for years
        job = await carried.seal.jobs.get(made.id)
        assert (job.state, job.lost) == (State.RUNNING, lost)
        travel(carried.seal.store, timedelta(seconds=16))
    answer = await carried.qstash.attempt(message)
    problem(answer, 489, "job_failed")
    job = await carried.seal.jobs.get(made.id)
    assert (job.state, job.lost, job.failure.error) == (State.FAILED, 3, "WorkerLost")
    assert [letter.id for letter in await carried.seal.jobs.dead()] == [made.id]
    assert not ran


async def test_a_late_result_is_refused(carried: Carried):
    made = await carried.seal.jobs.enqueue(email, "ada@example.org")
    queue = Queue(carried.seal.store, Keys("cs"), "default")
    begun = await Calls(queue).begin(made.id.partition(".")[2], "email", lease_ms=15_000)
    travel(carried.seal.store, timedelta(seconds=16))
    await delivered_once(carried)
    assert not await Calls(queue).settle(begun.leased, "retrying", 0, b"")


async def test_while_redis_is_away_nothing_runs_and_the_delivery_is_to_come_again(
    carried: Carried, valkey: Server
):
    await carried.seal.jobs.enqueue(email, "ada@example.org")
    (message,) = carried.qstash.messages.values()
    signature = carried.qstash.sign(message.url, message.body)
    valkey.kill()
    answer = await carried.qstash.send(message.url, message.body, signature)
    problem(answer, 503, answer.json()["code"])
    assert not ran
