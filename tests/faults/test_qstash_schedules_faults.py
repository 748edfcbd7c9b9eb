"""Schedules while QStash or Redis is away, and when a process dies between the steps: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal import JobContext, State, task
from counterseal.core.errors import CarrierUnavailable
from counterseal.jobs.carried import Carried as Calls
from counterseal.jobs.cron import Cron
from counterseal.jobs.schedule_job import scheduled
from counterseal.jobs.scripts import Queue
from counterseal.store.keys import Keys
from support.ports import free_port
from support.qstash import Carried, carried_on
from support.servers import Server
from support.site import problem, seal_on
from support.stores import travel
from support.waiting import eventually

HOURLY = Cron("0 * * * *")
ran: list[str] = []


@task(name="report", retry=3)
async def report(context: JobContext) -> None:
    ran.append(context.id)


CODE = [scheduled(report.call(), HOURLY, id="a")]


@pytest.fixture
async def carried(valkey: Server, data_dir: Path) -> AsyncIterator[Carried]:
    ran.clear()
    async with carried_on(valkey, data_dir, tasks=[report], schedules=CODE) as carried:
        await carried.seal.carrying.look(full=True)
        yield carried


def there(carried: Carried) -> bool:
    return carried.seal.carriage.schedules.prefix + "a" in carried.qstash.schedules


def tick(carried: Carried):
    message = carried.qstash.tick(carried.seal.carriage.schedules.prefix + "a")
    assert message is not None
    return message


@pytest.mark.parametrize("status", [401, 412, 429, 500, 503])
async def test_while_qstash_refuses_a_scheduler_has_the_schedule_and_later_it_is_handed_over(
    carried: Carried, status: int
) -> None:
    carried.qstash.refuse = status
    put = await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="b"))
    assert put.carrier == "scheduler"
    with pytest.raises(CarrierUnavailable):
        await carried.seal.carrying.look()
    carried.qstash.refuse = None
    await carried.seal.carrying.look()
    assert (await carried.seal.schedules.get("b")).carrier == "qstash"


async def test_a_start_while_qstash_is_away_is_told_of_once_and_made_good(
    valkey: Server, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with carried_on(valkey, data_dir) as carried:
        carried.qstash.refuse = 503
        with caplog.at_level(logging.WARNING):
            async with seal_on(
                valkey, data_dir, carried.qstash.variables, tasks=[report], schedules=CODE
            ) as seal:
                asked = len(carried.qstash.asked)

                async def tried_again() -> bool:
                    return len(carried.qstash.asked) >= asked + 3

                assert await eventually(tried_again)
                carried.qstash.refuse = None

                async def is_carried() -> bool:
                    found = await seal.schedules.get("a")
                    return found is not None and found.carrier == "qstash"

                assert await eventually(is_carried)
        told = [one for one in caplog.records if "are brought to QStash later" in one.getMessage()]
        assert 1 <= len(told) <= 2  # one for each of the two processes here


async def test_while_qstash_can_not_be_reached_nothing_is_lost_and_no_token_is_told(
    valkey: Server, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with carried_on(valkey, data_dir, tasks=[report]) as carried:
        variables = {**carried.qstash.variables, "QSTASH_URL": f"http://127.0.0.1:{free_port()}"}
        async with seal_on(valkey, data_dir, variables, tasks=[report], schedules=CODE) as cut_off:
            with pytest.raises(CarrierUnavailable):
                await cut_off.carrying.look(full=True)
            assert (await cut_off.schedules.get("a")).carrier == "scheduler"
            scheduler = cut_off.scheduler()
            await scheduler.look()
            await cut_off.schedules.pause("a")
            assert (await cut_off.schedules.get("a")).schedule.paused
        await carried.seal.carrying.look(full=True)
        assert carried.qstash.schedules[carried.seal.carriage.schedules.prefix + "a"].paused
        assert carried.qstash.token not in caplog.text


async def test_a_process_that_dies_after_qstash_was_told_and_before_that_was_noted_is_repeated(
    carried: Carried,
) -> None:
    entries = carried.seal.schedules.entries
    before = await entries.get("a")
    await carried.seal.schedules.put(scheduled(report.call(), Cron("7 * * * *"), id="b"))
    found = await entries.get("b")
    # As it stood before the note: a scheduler has it, and QStash too.
    key = carried.seal.store
    head, _, definition = (await key.command("HGET", "cs:jobs:{schedules}:schedules", "b")).partition(b"\n")
    await key.command(
        "HSET", "cs:jobs:{schedules}:schedules", "b", b" ".join(head.split(b" ")[:4]) + b"\n" + definition
    )
    assert (await carried.seal.schedules.get("b")).carrier == "scheduler"
    await carried.seal.carrying.look(full=True)
    after = await entries.get("b")
    assert (after.carried.id, after.carried.told) == (found.carried.id, found.carried.told)
    assert (await entries.get("a")).head == before.head


async def test_a_tick_whose_process_dies_before_its_job_begins_is_one_job(carried: Carried) -> None:
    message = tick(carried)
    deliveries = carried.seal.carriage.deliveries
    await carried.seal.jobs.pause()  # it is made, and may not begin
    problem(await carried.qstash.attempt(message), 503, "job_paused")
    (job,) = await carried.seal.jobs.list()
    assert job.state is State.QUEUED
    # Nobody was there for the retries of QStash: some process publishes a message of the job itself.
    message.state = "failed"
    await carried.seal.jobs.resume()
    assert await carried.carrier.sweep(ahead=timedelta(minutes=16)) == 1
    await carried.qstash.deliver()
    assert ran == [job.id]
    assert deliveries.counts.accepted == 2


async def test_a_tick_whose_process_dies_while_it_runs_is_taken_over(carried: Carried) -> None:
    message = tick(carried)
    await carried.seal.jobs.pause()
    await carried.qstash.attempt(message)
    (job,) = await carried.seal.jobs.list()
    await carried.seal.jobs.resume()
    queue = Queue(carried.seal.store, Keys("cs"), "default")
    begun = await Calls(queue).begin(job.id.partition(".")[2], "report", lease_ms=15_000)
    assert begun.leased is not None  # and the process is gone
    problem(await carried.qstash.attempt(message), 503, "job_running")
    travel(carried.seal.store, timedelta(seconds=16))
    carried.qstash.ahead += timedelta(seconds=16)
    assert (await carried.qstash.attempt(message)).status_code == 200
    assert ran == [job.id]


async def test_two_deliveries_of_one_tick_at_once_make_one_job(carried: Carried) -> None:
    message = tick(carried)
    more = {"Upstash-Message-Id": message.id, "Upstash-Schedule-Id": message.schedule}
    answers = await asyncio.gather(
        *(
            carried.qstash.send(
                message.url, message.body, carried.qstash.sign(message.url, message.body), more
            )
            for _ in range(4)
        )
    )
    assert 200 in {answer.status_code for answer in answers}
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert len(await carried.seal.jobs.list()) == len(ran) == 1


async def test_while_redis_is_away_a_tick_is_to_come_again(carried: Carried, valkey: Server) -> None:
    message = tick(carried)
    signature = carried.qstash.sign(message.url, message.body)
    valkey.kill()
    answer = await carried.qstash.send(message.url, message.body, signature)
    problem(answer, 503, answer.json()["code"])
    assert not ran


async def test_a_carrier_that_is_away_when_it_is_changed_keeps_the_schedule_until_it_can_forget_it(
    carried: Carried, valkey: Server, data_dir: Path
) -> None:
    variables = {**carried.qstash.variables, "COUNTERSEAL_JOBS_CARRIER": "redis"}
    carried.qstash.refuse = 503
    async with seal_on(valkey, data_dir, variables, tasks=[report], schedules=CODE) as after:
        scheduler = after.scheduler()
        await scheduler.look()
        assert (await after.schedules.get("a")).carrier == "qstash"
        carried.qstash.refuse = None
        travel(after.store, timedelta(seconds=61))
        await scheduler.look()
        assert not there(carried)
        assert (await after.schedules.get("a")).carrier == "scheduler"
        # A process that still has the former carrier hands it over again, and it comes back.
        await carried.seal.carrying.look(full=True)
        assert there(carried)
        travel(after.store, timedelta(seconds=61))
        await scheduler.look()
        assert not there(carried)
