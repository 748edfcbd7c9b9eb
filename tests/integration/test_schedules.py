"""Schedules through the engine, with the clock moved: when jobs are made, what is made up, and what a deploy does."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from counterseal import ConfigurationError, Counterseal, JobContext, Settings, State, task
from counterseal.jobs.cron import Cron, Every
from counterseal.jobs.schedule import Missed, Reconciliation, Schedule
from counterseal.jobs.schedule_job import call_of, scheduled
from counterseal.jobs.schedules import IN_USE
from counterseal.jobs.types import CLEANUP_EXPIRED, EMAIL
from counterseal.jobs.worker import Worker
from counterseal.store.base import Store
from support.schedules import KEYS, Process, next_hour, process_on, report, utc
from support.servers import Server
from support.stores import store_on, travel
from support.waiting import eventually

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
HOURLY = Cron("0 * * * *")


@pytest.fixture
async def store(valkey: Server) -> AsyncIterator[Store]:
    async with store_on(valkey) as opened:
        yield opened


@pytest.fixture
def one(store: Store) -> Process:
    return process_on(store)


def settings_of(server: Server, data_dir: Path) -> Settings:
    return Settings.load(
        {
            "REDIS_URL": server.url,
            "COUNTERSEAL_DATA_DIR": str(data_dir),
            "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
        }
    )


async def ids(process: Process) -> set[str]:
    return {status.schedule.id for status in await process.schedules.list()}


class TestTicks:
    async def test_a_thousand_schedules_of_one_hour_start_spread_over_it(self, store: Store) -> None:
        code = [
            scheduled(report.call(), HOURLY, id=f"tenant-{number}", spread=timedelta(hours=1))
            for number in range(1000)
        ]
        one = process_on(store, code=code)
        begin = next_hour(store)
        await one.at(begin - 1)
        before = await one.total()
        started: list[int] = []
        for minute in range(60):
            await one.at(begin + minute * MINUTE_MS + MINUTE_MS - 1)
            after = await one.total()
            started.append(after - before)
            before = after
        assert sum(started) == 1000
        assert max(started) <= 40  # 17 on average
        assert min(started) >= 3

    async def test_a_thousand_schedules_of_one_moment_all_start_in_one_turn(self, store: Store) -> None:
        one = process_on(
            store, code=[scheduled(report.call(), HOURLY, id=f"all-{number}") for number in range(1000)]
        )
        begin = next_hour(store)
        await one.at(begin - MINUTE_MS)
        await one.at(begin)
        assert await one.total() == 1000
        made = await one.made("all-7")
        assert [job.type for job in made] == ["report"]

    @pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
    @pytest.mark.parametrize("ahead", [True, False], ids=["lost", "twice"])
    async def test_on_the_day_on_which_clocks_are_changed(self, store: Store, zone: str, ahead: bool) -> None:
        change = change_of_clocks(zone, store.now_ms(), ahead=ahead)
        # The clock shows this when it is set: 02:00 in spring, 03:00 or 02:00 in autumn.
        local = utc(change).astimezone(ZoneInfo(zone))
        missing = (local - timedelta(hours=1)) if ahead else local
        half = f"30 {missing.hour} * * *"
        one = process_on(
            store,
            code=[
                scheduled(report.call(), Cron(half, zone), id="fixed"),
                scheduled(report.call(), Cron("0 * * * *", zone), id="hourly"),
                scheduled(report.call(), Cron("0 12 * * *", zone), id="noon"),
            ],
        )
        begin = change - 20 * HOUR_MS
        await one.at(begin + MINUTE_MS)
        for step in range(1, 2 * 44):
            await one.at(begin + step * HOUR_MS // 2)
        ticks = {
            name: [round(job.queued_at.timestamp() // 60) * MINUTE_MS for job in await one.made(name)]
            for name in ("fixed", "hourly", "noon")
        }
        # Every real hour once, whatever the clock shows.
        assert ticks["hourly"] == [begin + hour * HOUR_MS for hour in range(1, 44)]
        # The time that does not exist runs when the clock is set; the one that comes twice runs the first time.
        half_ms = HOUR_MS // 2
        assert ticks["fixed"] == ([change, change + 24 * HOUR_MS - half_ms] if ahead else [change - half_ms])
        # A day of 23 or 25 hours lies between.
        noons = [utc(tick).astimezone(ZoneInfo(zone)) for tick in ticks["noon"]]
        assert [(noon.hour, noon.minute) for noon in noons] == [(12, 0), (12, 0)]
        assert ticks["noon"][1] - ticks["noon"][0] == (23 if ahead else 25) * HOUR_MS


def change_of_clocks(zone: str, after_ms: int, *, ahead: bool) -> int:
    """The next moment, in milliseconds, at which the clocks of a zone are set forward, or back."""
    place = ZoneInfo(zone)
    hour_ms = after_ms // HOUR_MS * HOUR_MS + 48 * HOUR_MS

    def offset(ms: int) -> timedelta:
        found = datetime.fromtimestamp(ms / 1000, place).utcoffset()
        assert found is not None
        return found

    while True:
        hour_ms += HOUR_MS
        step = offset(hour_ms) - offset(hour_ms - HOUR_MS)
        if step == timedelta(hours=1 if ahead else -1):
            return hour_ms


class TestMissed:
    @pytest.mark.parametrize(
        ("missed", "made_up", "count"),
        [
            (Missed.SKIP, None, 0),
            (Missed.ONCE, None, 1),
            (Missed.ALL, None, 6),
            (Missed.ALL, timedelta(hours=3), 3),
            (Missed.ONCE, timedelta(minutes=5), 0),
        ],
    )
    async def test_what_was_missed_while_no_scheduler_ran(
        self, one: Process, missed: Missed, made_up: timedelta | None, count: int
    ) -> None:
        await one.schedules.put(scheduled(report.call(), HOURLY, missed=missed, made_up=made_up))
        tick = next_hour(one.store)
        await one.at(tick + 5 * HOUR_MS + 10 * MINUTE_MS)
        assert len(await one.made()) == count
        await one.at(tick + 6 * HOUR_MS)
        assert len(await one.made()) == count + 1

    async def test_a_tick_that_is_late_by_less_than_the_grace_is_not_missed(self, one: Process) -> None:
        await one.schedules.put(
            scheduled(report.call(), HOURLY, missed=Missed.SKIP, grace=timedelta(minutes=5))
        )
        tick = next_hour(one.store)
        await one.at(tick + 5 * MINUTE_MS - 1_000)
        await one.at(tick + HOUR_MS + 5 * MINUTE_MS + 1_000)
        assert len(await one.made()) == 1

    async def test_other_arguments_make_nothing_up_twice_and_another_time_counts_from_now(
        self, one: Process
    ) -> None:
        await one.schedules.put(scheduled(report.call(), HOURLY, missed=Missed.ALL))
        tick = next_hour(one.store)
        await one.at(tick)
        travel(one.store, timedelta(hours=2))
        await one.schedules.put(scheduled(report.call("new"), HOURLY, missed=Missed.ALL))
        await one.at(tick + 2 * HOUR_MS + MINUTE_MS)
        assert Counter(job.args["what"] for job in await one.made()) == {"daily": 1, "new": 2}
        travel(one.store, timedelta(hours=3))
        await one.schedules.put(scheduled(report.call(), Cron("45 * * * *"), missed=Missed.ALL))
        await one.scheduler.look()
        assert len(await one.made()) == 3


class TestDeploys:
    async def test_an_old_release_that_starts_again_does_not_undo_a_new_one(self, store: Store) -> None:
        old = process_on(store, code=[scheduled(report.call(), HOURLY, id="old")])
        new = process_on(store, code=[scheduled(report.call(), HOURLY, id="new")])
        await old.scheduler.look()
        assert await ids(old) == {"old"}
        await new.scheduler.look()
        assert await ids(old) == {"new"}
        again = process_on(store, code=[scheduled(report.call(), HOURLY, id="old")])
        await again.scheduler.look()
        await old.scheduler.look()
        assert await ids(new) == {"new"}
        # It still makes the jobs of the new one, and the new one is seen for as long as it looks.
        for _ in range(5):
            travel(store, IN_USE / 2)
            await new.scheduler.look()
            await old.scheduler.look()
            await again.scheduler.look()
        assert await ids(new) == {"new"}

    async def test_a_release_that_is_rolled_back_to_takes_over_when_the_other_is_gone(
        self, store: Store
    ) -> None:
        old = process_on(store, code=[scheduled(report.call(), HOURLY, id="old")])
        new = process_on(store, code=[scheduled(report.call(), HOURLY, id="new")])
        await old.scheduler.look()
        await new.scheduler.look()
        again = process_on(store, code=[scheduled(report.call(), HOURLY, id="old")])
        await again.scheduler.look()
        assert await ids(again) == {"new"}
        travel(store, IN_USE)
        await again.scheduler.look()  # finds that nobody has the new one any more
        await again.scheduler.look()
        assert await ids(again) == {"old"}
        await new.scheduler.look()
        assert await ids(again) == {"old"}

    async def test_two_releases_that_start_at_once_come_to_one_set(self, store: Store) -> None:
        sets = [[scheduled(report.call(), HOURLY, id=f"{name}-{n}") for n in range(3)] for name in "ab"]
        processes = [process_on(store, code=code) for code in sets]
        await asyncio.gather(*(each.scheduler.look() for each in processes))
        first = await ids(processes[0])
        assert first in ({"a-0", "a-1", "a-2"}, {"b-0", "b-1", "b-2"})
        for _ in range(3):
            await asyncio.gather(*(each.scheduler.look() for each in processes))
        assert await ids(processes[0]) == first

    async def test_what_others_made_stays_and_an_id_that_is_taken_is_told_of(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        plain = process_on(store)
        await plain.schedules.put(scheduled(report.call("theirs"), HOURLY, id="shared"))
        coded = process_on(store, code=[scheduled(report.call("ours"), HOURLY, id="shared")])
        with caplog.at_level(logging.WARNING):
            await coded.scheduler.look()
        assert "the schedule shared of the code is not used" in caplog.text
        status = await coded.schedules.get("shared")
        assert status is not None
        assert (status.schedule.args, status.source) == ('{"what":"theirs","copies":1}', None)
        await process_on(store, code=[]).scheduler.look()
        assert await ids(plain) == {"shared"}

    async def test_a_schedule_of_the_code_can_not_be_put_and_comes_back_when_it_was_removed(
        self, store: Store
    ) -> None:
        code = [scheduled(report.call(), HOURLY)]
        one = process_on(store, code=code)
        await one.scheduler.look()
        with pytest.raises(ConfigurationError, match="no code declares"):
            await one.schedules.put(scheduled(report.call(), HOURLY))
        assert await one.schedules.remove("report")
        await one.scheduler.look()
        assert await ids(one) == set()
        await process_on(store, code=code).scheduler.look()
        assert await ids(one) == {"report"}

    async def test_nothing_is_written_when_the_code_is_that_of_the_store(self, store: Store) -> None:
        code = [scheduled(report.call(), HOURLY)]
        first = await process_on(store).schedules.reconcile(code)
        second = await process_on(store).schedules.reconcile(code)
        assert first is not None
        assert [added.id for added in first.to_add] == ["report"]
        assert second == Reconciliation((), (), (), ())

    async def test_schedules_of_an_emptied_store_come_back(self, store: Store, valkey: Server) -> None:
        one = process_on(store, code=[scheduled(report.call(), HOURLY)])
        await one.scheduler.look()
        valkey.client.execute("FLUSHALL")
        await one.scheduler.look()
        await one.scheduler.look()
        assert await ids(one) == {"report"}


class TestFaults:
    async def test_a_schedule_that_can_not_be_read_keeps_no_other_one_up(
        self, one: Process, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("a", "b", "c", "d", "e"):
            await one.schedules.put(scheduled(report.call(), HOURLY, id=name))
        key = KEYS.schedules()
        entry = await one.store.command("HGET", key, "b")
        assert isinstance(entry, bytes)
        await one.store.command("HSET", key, "b", entry.replace(b"\n1:", b"\n9:"))
        await one.store.command("HSET", key, "c", "rubbish")
        await one.store.command("HSET", key, "d", entry[:-20])
        await one.at(next_hour(one.store))
        assert await one.total() == 2
        assert await ids(one) == {"a", "e"}
        assert await one.schedules.get("c") is None
        for name in ("b", "c", "d"):
            assert f"no jobs of the schedule {name} can be made" in caplog.text
        assert await one.schedules.remove("c")
        await one.schedules.put(scheduled(report.call(), HOURLY, id="d"))
        assert await ids(one) == {"a", "d", "e"}

    async def test_a_job_that_is_refused_keeps_no_other_schedule_up(
        self, one: Process, caplog: pytest.LogCaptureFixture
    ) -> None:
        await one.schedules.put(scheduled(report.call(), HOURLY, id="good"))
        await one.schedules.put(scheduled(report.call("x" * 2_000), HOURLY, id="bad"))
        tick = next_hour(one.store)
        small = process_on(one.store, max_payload=1_024)
        await small.at(tick)
        assert len(await one.made("good")) == 1
        assert await one.made("bad") == []
        assert "no jobs of the schedule bad can be made" in caplog.text
        await one.at(tick + 20_000)
        assert len(await one.made("bad")) == 1
        assert await one.total() == 2

    async def test_a_tick_is_not_run_again_though_its_job_is_done_and_forgotten(self, one: Process) -> None:
        brief = report.using(keep=timedelta(milliseconds=1))
        await one.schedules.put(scheduled(brief.call(), HOURLY))
        tick = next_hour(one.store)
        travel(one.store, timedelta(milliseconds=tick - one.store.now_ms()))
        entries = one.schedules.entries
        (entry,) = (await entries.claim(lease_ms=5_000, most=10, seen_every_ms=1, sets={})).entries
        assert entry.schedule is not None
        call = call_of(entry.schedule, tick)
        (job,) = await one.jobs.enqueue_many([call])
        async with Worker(one.store, keys=KEYS, tasks=[report]) as worker:
            await eventually(lambda: worker.counts.completed == 1)

            async def forgotten() -> bool:
                return await one.jobs.get(job.id) is None

            await eventually(forgotten)
            await one.at(tick + 10_000)  # who held it died before it could note the tick
            assert await one.total() == 1
            await one.at(tick + HOUR_MS)
            assert await one.total() == 2

    async def test_a_scheduler_makes_jobs_of_tasks_that_it_does_not_know(self, store: Store) -> None:
        @task(name="later", queue="slow", schema=3)
        async def later(context: JobContext, n: int) -> None: ...

        await process_on(store, tasks=[later]).schedules.put(scheduled(later.call(5), HOURLY))
        other = process_on(store)
        await other.at(next_hour(store))
        (job,) = await other.made("later")
        assert (job.type, job.queue, job.args, job.schema) == ("later", "slow", {"n": 5}, 3)

    async def test_a_tick_whose_former_job_still_runs_makes_none_when_the_schedule_asks_so(
        self, one: Process
    ) -> None:
        await one.schedules.put(scheduled(report.using(unique="report").call(), HOURLY))
        tick = next_hour(one.store)
        await one.at(tick)
        await one.at(tick + HOUR_MS)
        assert len(await one.made()) == 1


class TestApplication:
    async def test_a_schedule_of_an_application_runs_and_one_that_is_put_wakes_the_scheduler(
        self, valkey: Server, data_dir: Path
    ) -> None:
        ran: list[tuple[str, str]] = []

        @task(name="tick")
        async def tick(context: JobContext, who: str) -> None:
            ran.append((who, context.id))

        code = [scheduled(tick.call("code"), Every(timedelta(seconds=1)), id="every-second")]
        async with Counterseal.open(settings_of(valkey, data_dir), tasks=[tick], schedules=code) as seal:
            async with seal.worker(), seal.scheduler():
                await eventually(lambda: sum(who == "code" for who, _ in ran) >= 2, within=15)
                await seal.schedules.put(scheduled(tick.call("put"), Every(timedelta(seconds=1)), id="put"))
                await eventually(lambda: any(who == "put" for who, _ in ran), within=15)
            status = await seal.schedules.get("every-second")
            assert status is not None
            assert status.last_job is not None
            job = await seal.jobs.get(status.last_job)
            assert job is not None
            assert job.schedule == "every-second"
            assert [found.schedule.id for found in await seal.schedules.list()] == [
                CLEANUP_EXPIRED, "every-second", "put"
            ]  # fmt: skip
        assert len({identifier for _, identifier in ran}) == len(ran)

    async def test_what_has_expired_is_cleaned_up_every_hour(self, valkey: Server, data_dir: Path) -> None:
        async with Counterseal.open(settings_of(valkey, data_dir)) as seal:
            scheduler = seal.scheduler()
            await scheduler.look()
            for _ in range(3):
                status = await seal.schedules.get(CLEANUP_EXPIRED)
                assert status is not None
                assert status.next is not None
                ahead = round(status.next.timestamp() * 1000) - seal.store.now_ms()
                travel(seal.store, timedelta(milliseconds=ahead))
                await scheduler.look()
            made = [job for job in await seal.jobs.list() if job.type == CLEANUP_EXPIRED]
            assert len(made) == 3
            async with seal.worker():
                for job in made:
                    done = await seal.jobs.wait(job.id, timedelta(seconds=10))
                    assert done is not None
                    assert done.state is State.COMPLETED

    async def test_a_process_without_schedules_leaves_those_of_the_application(
        self, valkey: Server, data_dir: Path
    ) -> None:
        settings = settings_of(valkey, data_dir)
        async with (
            Counterseal.open(settings, tasks=[report], schedules=[scheduled(report.call(), HOURLY)]) as seal,
            Counterseal.open(settings) as plain,
        ):
            await seal.scheduler().look()
            await plain.scheduler().look()
            found = {status.schedule.id: status.source for status in await plain.schedules.list()}
            assert found == {CLEANUP_EXPIRED: "counterseal", "report": "application"}
            async with Counterseal.open(settings, schedules=[]) as empty:
                await empty.scheduler().look()
            assert [status.schedule.id for status in await plain.schedules.list()] == [CLEANUP_EXPIRED]

    def test_every_fault_of_the_schedules_of_the_code_is_told_at_once(self, data_dir: Path) -> None:
        settings = Settings.load({"COUNTERSEAL_DATA_DIR": str(data_dir)})
        with pytest.raises(ConfigurationError) as refused:
            Counterseal(
                settings,
                tasks=[report],
                schedules=[
                    Schedule(id="a", type="reprot", when=HOURLY),
                    Schedule(id="b", type="report", when=HOURLY, args='{"copies":"two"}'),
                    Schedule(id="c", type=EMAIL, when=HOURLY),
                    Schedule(id="c", type=EMAIL, when=HOURLY),
                ],
            )
        assert len(refused.value.faults) == 3
        assert ["a" in refused.value.faults[0], "b" in refused.value.faults[1]] == [True, True]
        assert "c came twice" in refused.value.faults[2]
