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
from counterseal.jobs import qstash_schedule_api, schedule_carrying
from counterseal.jobs import scheduler as scheduler_module
from counterseal.jobs.carried import Carried as Calls
from counterseal.jobs.cron import Cron, Every
from counterseal.jobs.schedule_job import scheduled
from counterseal.jobs.scripts import Queue
from counterseal.store.keys import Keys
from counterseal.web import create_app
from support.gateway import serving
from support.ports import free_port
from support.qstash import Carried, Scheduled, carried_on
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


def once(carried: Carried, method: str, act) -> None:
    """Have something happen while the first such request about schedules is on its way to QStash."""

    async def on_schedule(asked: str) -> None:
        if asked.startswith(f"{method} "):
            carried.qstash.on_schedule = None
            await act()

    carried.qstash.on_schedule = on_schedule


def at_qstash(carried: Carried, name: str):
    return carried.qstash.schedules.get(carried.seal.carriage.schedules.prefix + name)


async def test_what_arrives_at_qstash_after_a_later_change_is_told_does_not_stay(carried: Carried) -> None:
    schedules = carried.seal.schedules

    async def change() -> None:
        await schedules.put(scheduled(report.call(), Cron("9 * * * *"), id="b"))

    once(carried, "POST", change)
    await schedules.put(scheduled(report.call(), Cron("7 * * * *"), id="b"))
    assert at_qstash(carried, "b").cron == "9 * * * *"


async def test_a_pause_that_arrives_at_qstash_after_the_resume_does_not_stay(carried: Carried) -> None:
    schedules = carried.seal.schedules
    await schedules.put(scheduled(report.call(), HOURLY, id="b"))

    async def resume() -> None:
        await schedules.resume("b")

    once(carried, "PATCH", resume)
    await schedules.pause("b")
    assert not (await schedules.get("b")).schedule.paused
    assert not at_qstash(carried, "b").paused


async def test_what_is_otherwise_at_qstash_than_it_was_told_is_told_anew(carried: Carried) -> None:
    prefix = carried.seal.carriage.schedules.prefix
    at_qstash(carried, "a").paused = True
    await carried.seal.carrying.look(full=True)
    assert not at_qstash(carried, "a").paused
    at_qstash(carried, "a").headers = {**at_qstash(carried, "a").headers, "upstash-cron": "1 1 1 1 1"}
    await carried.seal.carrying.look(full=True)
    assert at_qstash(carried, "a").cron == "0 * * * *"
    carried.qstash.asked.clear()
    await carried.seal.carrying.look(full=True)
    assert [asked for asked in carried.qstash.asked if prefix in asked] == []


async def test_a_schedule_that_is_made_anew_while_its_removal_is_under_way_is_at_qstash(
    carried: Carried,
) -> None:
    schedules = carried.seal.schedules
    await schedules.put(scheduled(report.call(), HOURLY, id="b"))

    async def anew() -> None:
        await schedules.put(scheduled(report.call(), HOURLY, id="b"))

    once(carried, "DELETE", anew)
    await schedules.remove("b")
    assert (await schedules.get("b")).carrier == "qstash"
    assert at_qstash(carried, "b") is not None


async def test_a_schedule_that_is_made_anew_while_a_tick_of_the_former_one_removes_it_is_at_qstash(
    carried: Carried,
) -> None:
    schedules = carried.seal.schedules
    await schedules.put(scheduled(report.call(), HOURLY, id="b"))
    message = carried.qstash.tick(at_qstash(carried, "b").id)
    carried.qstash.refuse = 503
    await schedules.remove("b")
    carried.qstash.refuse = None

    async def anew() -> None:
        await schedules.put(scheduled(report.call(), HOURLY, id="b"))

    once(carried, "DELETE", anew)
    problem(await carried.qstash.attempt(message), 489, "job_gone")
    assert (await schedules.get("b")).carrier == "qstash"
    assert at_qstash(carried, "b") is not None


async def test_a_tick_that_is_gone_removes_no_other_schedule_than_its_own(carried: Carried) -> None:
    await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="b"))
    found = at_qstash(carried, "b")
    await carried.seal.schedules.remove("b")
    more = {"Upstash-Message-Id": "msg_x", "Upstash-Schedule-Id": at_qstash(carried, "a").id}
    signature = carried.qstash.sign(found.url, found.body)
    problem(await carried.qstash.send(found.url, found.body, signature, more), 489, "job_gone")
    assert there(carried)


async def test_a_schedule_of_others_that_the_client_can_not_read_stops_nothing(carried: Carried) -> None:
    class Strange(Scheduled):
        @property
        def told(self) -> dict:
            return {"scheduleId": self.id}

    carried.qstash.schedules["scd_9"] = Strange("scd_9", "https://else.example", b"", {}, 1)
    del carried.qstash.schedules[carried.seal.carriage.schedules.prefix + "a"]
    await carried.seal.carrying.look(full=True)
    assert there(carried)
    assert "scd_9" in carried.qstash.schedules


@pytest.mark.parametrize("status", [None, 401, 429, 503])
async def test_while_qstash_does_not_answer_a_turn_asks_once_and_not_for_every_schedule(
    carried: Carried, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    await carried.seal.carrying.__aexit__(None, None, None)  # only this test looks
    carried.qstash.refuse = 503
    for name in "bcdef":
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id=name))
    carried.qstash.refuse = status
    never = asyncio.Event()
    if status is None:
        monkeypatch.setattr(qstash_schedule_api, "_TIMEOUT_S", 0.1)

        async def hang(_: str) -> None:
            await never.wait()

        carried.qstash.on_schedule = hang
    carried.qstash.asked.clear()
    with pytest.raises(CarrierUnavailable):
        await carried.seal.carrying.look()
    never.set()
    assert len(carried.qstash.asked) == 1


async def test_one_schedule_that_qstash_refuses_keeps_no_other_one_up(carried: Carried) -> None:
    carried.qstash.refuse = 503
    for name in ("b", "bad", "c"):
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id=name))
    carried.qstash.refuse = None
    carried.qstash.refused_id = at = carried.seal.carriage.schedules.prefix + "bad"
    with pytest.raises(CarrierUnavailable):
        await carried.seal.carrying.look()
    carriers = {one.schedule.id: one.carrier for one in await carried.seal.schedules.list()}
    assert (carriers["b"], carriers["c"], carriers["bad"]) == ("qstash", "qstash", "scheduler")
    assert at not in carried.qstash.schedules


async def test_a_tick_that_came_while_nobody_had_the_schedule_is_made_when_qstash_gets_it(
    carried: Carried,
) -> None:
    carried.qstash.refuse = 503
    await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="b"))
    await carried.seal.carrying.__aexit__(None, None, None)
    travel(carried.seal.store, timedelta(hours=3))
    carried.qstash.ahead += timedelta(hours=3)
    carried.qstash.refuse = None
    await carried.seal.carrying.look()
    told = await carried.seal.schedules.get("b")
    assert told.carrier == "qstash"
    (job,) = [job for job in await carried.seal.jobs.list() if job.schedule == "b"]
    assert told.last_job == job.id
    await carried.seal.carrying.look(full=True)
    await carried.qstash.deliver()
    assert ran == [job.id]


async def test_a_tick_that_comes_under_the_former_and_the_new_public_url_is_one_job(
    carried: Carried, valkey: Server, data_dir: Path
) -> None:
    travel(carried.seal.store, timedelta(minutes=10))  # long after QStash was given it first
    carried.qstash.ahead += timedelta(minutes=10)
    former = tick(carried)
    moved_url = "https://moved.example"
    variables = {**carried.qstash.variables, "COUNTERSEAL_PUBLIC_URL": moved_url}
    async with seal_on(valkey, data_dir, variables, tasks=[report], schedules=CODE) as moved:
        travel(moved.store, timedelta(minutes=10))
        await moved.carrying.look(full=True)
        new = carried.qstash.tick(moved.carriage.schedules.prefix + "a")
        assert (await carried.qstash.attempt(former)).status_code == 200
        async with serving(create_app(moved)) as target:
            url = new.url.replace(moved_url, target)
            more = {"Upstash-Message-Id": new.id, "Upstash-Schedule-Id": new.schedule}
            signature = carried.qstash.sign(new.url, new.body)
            assert (await carried.qstash.send(url, new.body, signature, more)).status_code == 200
    assert len([job for job in await carried.seal.jobs.list() if job.schedule == "a"]) == 1


async def test_a_resume_of_a_schedule_that_qstash_has_lost_makes_it_anew(carried: Carried) -> None:
    await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="b"))
    await carried.seal.schedules.pause("b")
    del carried.qstash.schedules[at_qstash(carried, "b").id]
    await carried.seal.schedules.resume("b")
    assert not at_qstash(carried, "b").paused


async def test_while_qstash_hangs_a_scheduler_that_takes_schedules_back_makes_its_own_ticks(
    carried: Carried, valkey: Server, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "TAKE_BACK", timedelta(seconds=0.1))
    never = asyncio.Event()

    async def hang(_: str) -> None:
        await never.wait()

    carried.qstash.on_schedule = hang
    variables = {**carried.qstash.variables, "COUNTERSEAL_JOBS_CARRIER": "redis"}
    code = [*CODE, scheduled(report.call(), Every(timedelta(hours=1)), id="here")]
    async with seal_on(valkey, data_dir, variables, tasks=[report], schedules=code) as after:
        scheduler = after.scheduler()
        async with asyncio.timeout(6):  # one request would be waited for longer
            await scheduler.look()
            travel(after.store, timedelta(hours=1))
            await scheduler.look()
        assert {job.schedule for job in await after.jobs.list()} == {"here"}
        never.set()
        carried.qstash.on_schedule = None
        travel(after.store, timedelta(seconds=61))
        await scheduler.look()
        assert not there(carried)


async def test_while_qstash_is_slow_the_code_is_noted_to_be_in_use(
    valkey: Server, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_carrying, "_LOOK_S", 0.5)
    monkeypatch.setattr(schedule_carrying, "_FIRST_S", 0.0)
    never = asyncio.Event()

    async def hang(_: str) -> None:
        await never.wait()

    async with carried_on(valkey, data_dir, tasks=[report]) as carried:
        carried.qstash.on_schedule = hang
        async with seal_on(
            valkey, data_dir, carried.qstash.variables, tasks=[report], schedules=CODE
        ) as seal:

            async def seen_ms() -> int:
                _, sets = await seal.schedules.entries.all()
                return sets["application"].seen_ms if "application" in sets else 0

            first_ms = await eventually(seen_ms)
            travel(seal.store, timedelta(minutes=1))

            async def is_seen_again() -> bool:
                return await seen_ms() > first_ms

            assert await eventually(is_seen_again, within=5)  # one request would be waited for longer
        never.set()
