"""Schedules over every connection: what is stored of them, and that a tick makes one job whoever dies at it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from counterseal.core.errors import ArgumentInvalid, ConfigurationError, UnknownName
from counterseal.jobs.cron import Cron, Every
from counterseal.jobs.schedule import Missed, Schedule
from counterseal.jobs.schedule_job import call_of, scheduled
from counterseal.jobs.scheduler import LEASE, Scheduler
from counterseal.store.base import Store
from support.backends import Backend, cluster, native, only, redis7, rest
from support.schedules import KEYS, Process, next_hour, process_on, report, utc
from support.stores import travel
from support.waiting import eventually

pytestmark = only(native, redis7, cluster, rest)

HOUR_MS = 3_600_000
HOURLY = scheduled(report.call("hourly"), Cron("0 * * * *"))


@pytest.fixture
def one(store: Store) -> Process:
    return process_on(store)


async def test_a_schedule_is_stored_with_what_its_task_says_and_told_again(one: Process) -> None:
    put = await one.schedules.put(
        scheduled(report.using(tags=("a", "b"), retry=7).call("x", copies=2), Cron("0 * * * *"))
    )
    told = await one.schedules.get("report")
    assert told == put
    assert [told] == await one.schedules.list()
    assert told is not None
    assert told.schedule.args == '{"what":"x","copies":2}'
    assert told.schedule.options["queue"] == "default"
    assert (told.source, told.last, told.last_job) == (None, None, None)
    assert told.next == utc(next_hour(one.store))
    assert await one.schedules.preview("report", 2) == [
        utc(next_hour(one.store)), utc(next_hour(one.store) + HOUR_MS)
    ]  # fmt: skip


async def test_a_tick_makes_one_job_with_the_arguments_and_options_of_its_schedule(one: Process) -> None:
    await one.schedules.put(
        scheduled(report.using(tags=("a",), keep=timedelta(hours=3)).call("x"), Cron("0 * * * *"))
    )
    tick = next_hour(one.store)
    await one.at(tick - 60_000)
    assert await one.made() == []
    await one.at(tick)
    await one.at(tick + 10_000)
    (job,) = await one.made()
    assert (job.type, job.args, job.tags, job.schedule) == (
        "report",
        {"what": "x", "copies": 1},
        ("a",),
        "report",
    )
    status = await one.schedules.get("report")
    assert status is not None
    assert (status.last, status.last_job) == (utc(tick), job.id)


async def test_a_scheduler_that_dies_after_it_held_a_tick_is_replaced_when_its_lease_is_over(
    one: Process,
) -> None:
    await one.schedules.put(HOURLY)
    tick = next_hour(one.store)
    travel(one.store, timedelta(milliseconds=tick - one.store.now_ms()))
    claim = await one.schedules.entries.claim(lease_ms=5_000, most=10, seen_every_ms=1, sets={})
    assert [entry.id for entry in claim.entries] == ["report"]
    await one.scheduler.look()
    assert await one.made() == []
    travel(one.store, LEASE)
    await one.scheduler.look()
    assert len(await one.made()) == 1


async def test_a_scheduler_that_dies_after_it_enqueued_a_tick_leaves_one_job(one: Process) -> None:
    await one.schedules.put(HOURLY)
    tick = next_hour(one.store)
    travel(one.store, timedelta(milliseconds=tick - one.store.now_ms()))
    (entry,) = (await one.schedules.entries.claim(lease_ms=5_000, most=10, seen_every_ms=1, sets={})).entries
    assert entry.schedule is not None
    await one.schedules.enqueue([call_of(entry.schedule, tick)])
    travel(one.store, LEASE)
    await one.scheduler.look()
    assert await one.total() == 1
    assert await one.schedules.entries.advance([(entry, tick, tick, tick + 2 * HOUR_MS)]) == [False]
    status = await one.schedules.get("report")
    assert status is not None
    assert status.next == utc(tick + HOUR_MS)


async def test_two_schedulers_that_look_at_once_make_one_job_for_each_tick(
    backend: Backend, one: Process
) -> None:
    async with backend.store() as other_store:
        other = process_on(other_store)
        every = scheduled(report.call(), Every(timedelta(minutes=1)), missed=Missed.ALL)
        # From a second after a tick, so that none comes by itself.
        begin = every.next_after(max(one.store.now_ms(), other_store.now_ms())) + 1_000
        for each in (one.store, other_store):
            travel(each, timedelta(milliseconds=begin - each.now_ms()))
        await one.schedules.put(every)
        for _ in range(20):
            travel(one.store, timedelta(minutes=1))
            travel(other_store, timedelta(minutes=1))
            await asyncio.gather(one.scheduler.look(), other.scheduler.look())
    assert await one.total() == 20
    assert len(await one.made()) == 20


async def test_a_pause_makes_nothing_and_a_resume_makes_nothing_up(one: Process) -> None:
    await one.schedules.put(scheduled(report.call(), Cron("0 * * * *"), missed=Missed.ALL))
    tick = next_hour(one.store)
    assert (await one.schedules.pause("report")).next is None
    await one.at(tick + HOUR_MS + 1)
    assert await one.made() == []
    assert (await one.schedules.resume("report")).next == utc(tick + 2 * HOUR_MS)
    await one.at(tick + HOUR_MS + 60_000)
    assert await one.made() == []
    await one.at(tick + 2 * HOUR_MS)
    assert len(await one.made()) == 1


async def test_run_now_makes_a_job_besides_the_ticks_also_during_a_pause(one: Process) -> None:
    await one.schedules.put(HOURLY)
    await one.schedules.pause("report")
    made = [await one.schedules.run_now("report") for _ in range(2)]
    assert all(outcome.created for outcome in made)
    assert {job.id for job in await one.made()} == {outcome.id for outcome in made}
    status = await one.schedules.get("report")
    assert status is not None
    assert status.last is None


async def test_a_removed_schedule_makes_nothing_more_and_is_unknown(one: Process) -> None:
    await one.schedules.put(HOURLY)
    assert await one.schedules.remove("report")
    assert not await one.schedules.remove("report")
    await one.at(next_hour(one.store))
    assert await one.made() == []
    assert await one.schedules.get("report") is None
    for ask in (one.schedules.pause, one.schedules.resume, one.schedules.run_now, one.schedules.preview):
        with pytest.raises(UnknownName, match="no schedule 'report'"):
            await ask("report")


async def test_what_can_not_be_is_refused_by_its_name_and_nothing_is_written(one: Process) -> None:
    def plain(**fields: object) -> Schedule:
        return Schedule(**{"id": "a", "type": "report", "when": Cron("0 * * * *"), **fields})  # type: ignore[arg-type]

    for fields, error, message in (
        ({"args": '{"copies":"two"}'}, ArgumentInvalid, "report"),
        ({"args": "[1]"}, ArgumentInvalid, "object"),
        ({"type": "reprot"}, UnknownName, "reprot"),
        ({"options": {"queue": "a b"}}, ConfigurationError, "queue"),
        ({"options": {"dedup_id": "x"}}, ConfigurationError, r"options\.dedup_id"),
        ({"options": {"colour": 1}}, ConfigurationError, r"options\.colour"),
        ({"options": {"keep": "soon"}}, ConfigurationError, "keep"),
        ({"grace": timedelta(seconds=1)}, ConfigurationError, r"schedule\.grace"),
    ):
        with pytest.raises(error, match=message):
            await one.schedules.put(plain(**fields))
    with pytest.raises(ConfigurationError, match="zone"):
        Cron("0 * * * *", "Europe/Bärlin")
    assert await one.schedules.list() == []


async def test_a_change_that_somebody_else_meets_is_made_upon_theirs(one: Process) -> None:
    await one.schedules.put(HOURLY)
    await asyncio.gather(
        one.schedules.pause("report"),
        one.schedules.put(scheduled(report.call("new"), Cron("30 * * * *"), id="report")),
    )
    status = await one.schedules.get("report")
    assert status is not None
    assert (status.schedule.paused, status.schedule.args) == (True, '{"what":"new","copies":1}')


async def test_the_schedules_of_the_code_are_written_changed_and_removed(store: Store) -> None:
    first = process_on(store, code=[HOURLY, scheduled(report.call(), Cron("0 6 * * *"), id="morning")])
    await first.scheduler.look()
    await first.schedules.pause("report")
    changed = scheduled(report.call("other"), Cron("0 * * * *"))
    second = process_on(store, code=[changed, scheduled(report.call(), Cron("0 9 * * *"), id="late")])
    await second.scheduler.look()
    found = {status.schedule.id: status for status in await second.schedules.list()}
    assert set(found) == {"report", "late"}
    assert found["report"].schedule.args == '{"what":"other","copies":1}'
    assert (found["report"].schedule.paused, found["report"].source) == (True, "application")


async def test_an_idle_scheduler_that_is_told_of_changes_sleeps_a_minute(store: Store) -> None:
    async with Scheduler(store, keys=KEYS, schedules=process_on(store).schedules) as scheduler:

        async def patient() -> bool:
            return await scheduler.look() == timedelta(seconds=60)

        assert await eventually(patient)
