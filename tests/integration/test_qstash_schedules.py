"""Schedules that QStash carries are the same schedules: what QStash is told of them, and what comes of its ticks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal import ConfigurationError, Counterseal, JobContext, Settings, State, task
from counterseal.jobs.cron import Cron, Every, When
from counterseal.jobs.job import Job
from counterseal.jobs.options import Flow
from counterseal.jobs.qstash_schedule import refusal, told_of
from counterseal.jobs.retry import Fixed
from counterseal.jobs.schedule import Missed, Schedule
from counterseal.jobs.schedule_job import call_of, scheduled
from counterseal.jobs.types import CLEANUP_EXPIRED
from counterseal.web import create_app
from support.gateway import serving
from support.program import run_program
from support.qstash import Carried, Scheduled, carried_on
from support.servers import Server
from support.site import BASE, problem, seal_on
from support.stores import travel
from support.waiting import eventually

HOURLY = Cron("0 * * * *")
NOW_MS = 1_780_000_000_000
ran: list[str] = []


@task(name="report", retry=Fixed(3, timedelta(0)), timeout=timedelta(minutes=1))
async def report(context: JobContext, what: str = "daily") -> str:
    ran.append(context.id)
    return what


@task(name="fail", retry=Fixed(3, timedelta(0)))
async def fail(context: JobContext, until: int = 99) -> None:
    ran.append(context.id)
    if context.attempt < until:
        raise RuntimeError


TASKS = (report, fail)


@pytest.fixture
async def carried(valkey: Server, data_dir: Path) -> AsyncIterator[Carried]:
    ran.clear()
    async with carried_on(valkey, data_dir, tasks=TASKS, schedules=[]) as carried:
        await carried.seal.carrying.look(full=True)
        yield carried


def at_qstash(carried: Carried, name: str) -> Scheduled | None:
    return carried.qstash.schedules.get(carried.seal.carriage.schedules.prefix + name)


def ours(carried: Carried) -> set[str]:
    """The ids of the schedules of the application that QStash has."""
    prefix = carried.seal.carriage.schedules.prefix
    return {one.removeprefix(prefix) for one in carried.qstash.schedules} - {CLEANUP_EXPIRED}


def later(carried: Carried, ahead: timedelta) -> None:
    """Move the clocks of the store and of QStash."""
    travel(carried.seal.store, ahead)
    carried.qstash.ahead += ahead


async def tick(carried: Carried, name: str) -> tuple[int, Job | None]:
    """Deliver one tick once: the status of the answer, and the job that it names."""
    message = carried.qstash.tick(carried.seal.carriage.schedules.prefix + name)
    assert message is not None
    answer = await carried.qstash.attempt(message)
    found = await carried.seal.jobs.get(answer.json().get("id", ""))
    return answer.status_code, found


class TestTold:
    async def test_it_is_told_at_the_start_of_what_serves_without_a_scheduler(
        self, valkey: Server, data_dir: Path
    ) -> None:
        code = [scheduled(report.call("weekly"), Cron("H 6 * * MON", "Europe/Berlin"), id="weekly")]
        async with carried_on(valkey, data_dir, tasks=TASKS, schedules=code) as carried:

            async def is_told() -> bool:
                return (
                    at_qstash(carried, "weekly") is not None
                    and at_qstash(carried, CLEANUP_EXPIRED) is not None
                )

            assert await eventually(is_told)
            found = at_qstash(carried, "weekly")
            assert found is not None
            minute = code[0].when.placed("weekly").split()[0]
            assert found.cron == f"CRON_TZ=Europe/Berlin {minute} 6 * * MON"
            assert found.url == f"{BASE}/api/jobs/report"
            assert json.loads(found.body) == {"schedule": "weekly", "type": "report", "queue": "default"}
            assert found.headers["upstash-retries"] == "2"
            assert found.headers["upstash-retry-delay"] == "0"
            assert found.headers["upstash-timeout"] == "70s"
            assert found.headers["upstash-label"] == "report"
            assert not any("weekly" in value for name, value in found.headers.items() if "id" not in name)

    async def test_what_is_put_changed_paused_and_removed_is_so_there(self, carried: Carried) -> None:
        schedules = carried.seal.schedules
        put = await schedules.put(scheduled(report.call(), HOURLY, id="a"))
        assert put.carrier == "qstash"
        assert put in await schedules.list()
        assert at_qstash(carried, "a").cron == "0 * * * *"
        await schedules.put(scheduled(report.call(), Cron("30 2 * * *", "Asia/Tokyo"), id="a"))
        assert at_qstash(carried, "a").cron == "CRON_TZ=Asia/Tokyo 30 2 * * *"
        paused = await schedules.pause("a")
        assert (paused.carrier, paused.next, at_qstash(carried, "a").paused) == ("qstash", None, True)
        await schedules.put(scheduled(report.call(), HOURLY, id="a"))
        assert at_qstash(carried, "a").paused
        assert (await schedules.resume("a")).next is not None
        assert not at_qstash(carried, "a").paused
        assert await schedules.remove("a")
        assert ours(carried) == set()

    async def test_a_deploy_adds_changes_and_removes_there_and_nothing_is_asked_when_nothing_has_changed(
        self, valkey: Server, data_dir: Path
    ) -> None:
        first = [scheduled(report.call(), HOURLY, id="a"), scheduled(report.call(), HOURLY, id="b")]
        second = [scheduled(report.call(), Cron("5 * * * *"), id="b"), scheduled(fail.call(), HOURLY, id="c")]
        async with carried_on(valkey, data_dir, tasks=TASKS, schedules=first) as carried:
            await carried.seal.carrying.look(full=True)
            assert ours(carried) == {"a", "b"}
            variables = {**carried.qstash.variables}
            async with seal_on(valkey, data_dir, variables, tasks=TASKS, schedules=second) as later:
                await later.carrying.look(full=True)
                assert ours(carried) == {"b", "c"}
                assert at_qstash(carried, "b").cron == "5 * * * *"
                carried.qstash.asked.clear()
                await later.carrying.look()
                assert carried.qstash.asked == []
                await carried.seal.carrying.look()  # the release before does not undo it
                assert ours(carried) == {"b", "c"}

    async def test_schedules_of_others_are_neither_changed_nor_removed(self, carried: Carried) -> None:
        theirs = ["scd_1", "their.report", "counterseal-000000000000.a"]
        for one in theirs:
            carried.qstash.schedules[one] = Scheduled(
                one, "https://else.example", b"", {"upstash-cron": "* * * * *"}, 1
            )
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY))
        await carried.seal.schedules.remove("report")
        await carried.seal.carrying.look(full=True)
        assert set(theirs) <= set(carried.qstash.schedules)
        assert not any(one in asked for one in theirs for asked in carried.qstash.asked)

    async def test_what_is_lost_there_is_made_anew_and_what_is_left_over_is_removed(
        self, carried: Carried
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        prefix = carried.seal.carriage.schedules.prefix
        lost = carried.qstash.schedules.pop(f"{prefix}a")
        carried.qstash.schedules[f"{prefix}gone"] = replace(lost, id=f"{prefix}gone")
        await carried.seal.carrying.look(full=True)
        assert ours(carried) == {"a"}

    async def test_a_process_that_does_not_know_the_task_can_pause_and_changes_nothing_else(
        self, carried: Carried, valkey: Server, data_dir: Path
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        before = at_qstash(carried, "a").headers
        async with seal_on(valkey, data_dir, carried.qstash.variables) as operator:
            assert (await operator.schedules.pause("a")).carrier == "qstash"
            assert at_qstash(carried, "a").paused
            await operator.schedules.resume("a")
            await operator.carrying.look(full=True)
        assert at_qstash(carried, "a").headers == before
        assert not at_qstash(carried, "a").paused

    async def test_options_are_told_as_those_of_single_jobs(self, carried: Carried) -> None:
        flow = Flow("tenant%1", parallelism=2, rate=10, period=timedelta(minutes=1))
        call = report.using(
            queue="slow", delay=timedelta(seconds=90), flow=flow, retry=Fixed(6, timedelta(seconds=2))
        )
        await carried.seal.schedules.put(scheduled(call.call(), HOURLY, id="a"))
        headers = at_qstash(carried, "a").headers
        assert headers["upstash-delay"] == "90s"
        assert headers["upstash-retries"] == "5"
        assert headers["upstash-retry-delay"] == "2000"
        assert headers["upstash-flow-control-value"] == "parallelism=2, rate=10, period=60s"
        assert headers["upstash-flow-control-key"].startswith("slow.")


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (Cron("*/5 * * * *"), "*/5 * * * *"),
        (Cron("@daily"), "0 0 * * *"),
        (Cron("1-10/3 9-17 * JAN-MAR MON-FRI"), "1,4,7,10 9-17 * JAN-MAR MON-FRI"),
        (Cron("0 12 * * 7", "America/New_York"), "CRON_TZ=America/New_York 0 12 * * 7"),
        (Cron("* * * * *", "Europe/Berlin"), "CRON_TZ=Europe/Berlin * * * * *"),
        (Cron("30 2 * * *", "Asia/Tokyo"), "CRON_TZ=Asia/Tokyo 30 2 * * *"),
    ],
)
def test_a_cron_expression_is_told_with_its_zone(when: When, said: str) -> None:
    schedule = scheduled(report.call(), when)
    assert refusal(schedule, NOW_MS) == ""
    assert told_of(schedule, report).parameters["cron"] == said


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"when": Every(timedelta(minutes=5))}, "when"),
        ({"when": Cron("0 9 LW * *")}, "when"),
        ({"when": Cron("0 9 * * MON#2")}, "when"),
        ({"when": Cron("0 9 */2 * MON")}, "when"),
        ({"when": Cron("30 2 * * *", "Europe/Berlin")}, "when"),
        ({"when": Cron("0 1-3 * * *", "America/New_York")}, "when"),
        ({"when": HOURLY, "missed": Missed.ALL}, "missed"),
        ({"when": HOURLY, "missed": Missed.SKIP}, "missed"),
        ({"when": HOURLY, "made_up": timedelta(hours=1)}, "made_up"),
    ],
)
def test_what_qstash_can_not_say_is_refused_by_its_field(options: dict, field: str) -> None:
    assert refusal(scheduled(report.call(), **options), NOW_MS).startswith(f"{field}: ")


class TestTicks:
    async def test_a_tick_is_a_job_as_any_other(self, carried: Carried) -> None:
        call = report.using(queue="slow", tags=("t",), delay=timedelta(minutes=10)).call("weekly")
        await carried.seal.schedules.put(scheduled(call, HOURLY, id="a"))
        status, job = await tick(carried, "a")
        assert status == 200
        assert (job.type, job.state, job.result, job.schedule, job.queue, job.tags) == (
            "report", State.COMPLETED, "weekly", "a", "slow", ("t",),
        )  # fmt: skip
        assert ran == [job.id]
        stats = (await carried.seal.jobs.stats())["report"]
        assert (stats.total, stats.completed, stats.pending) == (1, 1, 0)
        told = await carried.seal.schedules.get("a")
        assert told.last_job == job.id
        assert told.last is not None
        later(carried, timedelta(hours=1))
        assert (await tick(carried, "a"))[1].id != job.id

    async def test_a_tick_that_is_delivered_again_is_one_job(self, carried: Carried) -> None:
        await carried.seal.schedules.put(scheduled(fail.call(3), HOURLY, id="a"))
        message = carried.qstash.tick(carried.seal.carriage.schedules.prefix + "a")
        await carried.qstash.deliver()
        assert [answer.status_code for answer in message.answers] == [500, 500, 200]
        (job,) = await carried.seal.jobs.list()
        assert (job.state, job.attempt) == (State.COMPLETED, 3)
        message.state = "pending"  # the answer was lost
        assert (await carried.qstash.attempt(message)).status_code == 200
        assert ran == [job.id] * 3

    @pytest.mark.parametrize("after", [timedelta(0), timedelta(minutes=5)])
    async def test_a_tick_whose_job_is_not_kept_any_more_runs_it_no_second_time(
        self, carried: Carried, valkey: Server, after: timedelta
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        later(carried, after)
        message = carried.qstash.tick(carried.seal.carriage.schedules.prefix + "a")
        await carried.qstash.deliver()
        for key in valkey.client.execute("KEYS", "cs:jobs:{default}:job:*"):
            valkey.client.execute("DEL", key)
        message.state, message.retried = "pending", 1  # the answer was lost
        assert (await carried.qstash.attempt(message)).status_code == 200
        assert len(ran) == 1

    async def test_a_paused_schedule_makes_nothing_also_when_qstash_does_not_know(
        self, carried: Carried
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        carried.qstash.refuse = 503
        await carried.seal.schedules.pause("a")
        carried.qstash.refuse = None
        assert not at_qstash(carried, "a").paused
        assert await tick(carried, "a") == (200, None)
        await carried.seal.carrying.look()
        assert at_qstash(carried, "a").paused
        assert not ran

    async def test_a_pause_does_not_stop_a_job_that_a_tick_has_made(self, carried: Carried) -> None:
        await carried.seal.schedules.put(scheduled(fail.call(2), HOURLY, id="a"))
        message = carried.qstash.tick(carried.seal.carriage.schedules.prefix + "a")
        assert (await carried.qstash.attempt(message)).status_code == 500
        await carried.seal.schedules.pause("a")
        assert (await carried.qstash.attempt(message)).status_code == 200

    async def test_a_removed_schedule_makes_nothing_and_is_removed_there_when_it_comes(
        self, carried: Carried
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        carried.qstash.refuse = 503
        await carried.seal.schedules.remove("a")
        carried.qstash.refuse = None
        message = carried.qstash.tick(carried.seal.carriage.schedules.prefix + "a")
        problem(await carried.qstash.attempt(message), 489, "job_gone")
        assert ours(carried) == set()
        assert not ran

    async def test_with_unique_a_tick_makes_no_job_while_the_former_one_waits(self, carried: Carried) -> None:
        await carried.seal.schedules.put(scheduled(fail.using(unique="u").call(), HOURLY, id="a"))
        assert (await tick(carried, "a"))[0] == 500
        (job,) = await carried.seal.jobs.list()
        later(carried, timedelta(hours=1))
        assert await tick(carried, "a") == (200, await carried.seal.jobs.get(job.id))
        assert ran == [job.id]

    async def test_run_now_is_a_message_of_its_own(self, carried: Carried) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        await carried.seal.schedules.pause("a")
        made = await carried.seal.schedules.run_now("a")
        await carried.qstash.deliver()
        assert ran == [made.id]

    async def test_a_tick_without_a_message_id_makes_no_sense(self, carried: Carried) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        found = at_qstash(carried, "a")
        answer = await carried.qstash.send(found.url, found.body, carried.qstash.sign(found.url, found.body))
        problem(answer, 489, "job_malformed")


class TestWhoMakesTicks:
    async def test_a_scheduler_makes_the_ticks_that_qstash_does_not(self, carried: Carried) -> None:
        seal = carried.seal
        await seal.schedules.put(scheduled(report.call("q"), HOURLY, id="at-qstash"))
        await seal.schedules.put(
            scheduled(report.call("s"), Every(timedelta(hours=1)), id="here", missed=Missed.ALL)
        )
        carriers = {one.schedule.id: one.carrier for one in await seal.schedules.list()}
        assert carriers == {CLEANUP_EXPIRED: "qstash", "at-qstash": "qstash", "here": "scheduler"}
        scheduler = seal.scheduler()
        travel(seal.store, timedelta(hours=3))
        await scheduler.look()
        assert {job.schedule for job in await seal.jobs.list()} == {"here"}
        assert len(await seal.jobs.list()) == 3

    async def test_a_schedule_that_becomes_one_that_qstash_can_not_carry_is_taken_back(
        self, carried: Carried
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        put = await carried.seal.schedules.put(scheduled(report.call(), Every(timedelta(hours=1)), id="a"))
        assert put.carrier == "scheduler"
        assert ours(carried) == set()
        travel(carried.seal.store, timedelta(hours=1))
        await carried.seal.scheduler().look()
        assert len(await carried.seal.jobs.list()) == 1

    async def test_a_change_of_the_carrier_hands_schedules_over_and_back(
        self, valkey: Server, data_dir: Path
    ) -> None:
        code = [scheduled(report.call(), HOURLY, id="a")]
        async with seal_on(valkey, data_dir, tasks=TASKS, schedules=code) as before:
            await before.scheduler().look()
            assert (await before.schedules.get("a")).carrier == "scheduler"
        async with carried_on(valkey, data_dir, tasks=TASKS, schedules=code) as carried:
            await carried.seal.carrying.look(full=True)
            assert (await carried.seal.schedules.get("a")).carrier == "qstash"
            variables = {**carried.qstash.variables, "COUNTERSEAL_JOBS_CARRIER": "redis"}
            async with seal_on(valkey, data_dir, variables, tasks=TASKS, schedules=code) as after:
                scheduler = after.scheduler()
                await scheduler.look()
                assert carried.qstash.schedules == {}
                assert (await after.schedules.get("a")).carrier == "scheduler"
                travel(after.store, timedelta(hours=1))
                await scheduler.look()
                assert len([job for job in await after.jobs.list() if job.schedule == "a"]) == 1

    @pytest.mark.parametrize("first", ["scheduler", "qstash"])
    async def test_a_tick_that_was_under_way_when_the_carrier_was_changed_is_one_job(
        self, carried: Carried, valkey: Server, data_dir: Path, first: str
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        variables = {**carried.qstash.variables, "COUNTERSEAL_JOBS_CARRIER": "redis"}
        async with seal_on(valkey, data_dir, variables, tasks=TASKS) as after:
            schedule = (await after.schedules.get("a")).schedule
            now_ms = after.store.now_ms()
            ahead = timedelta(milliseconds=schedule.next_after(now_ms) - now_ms - 1_000)
            travel(after.store, ahead)
            message = carried.qstash.tick(carried.seal.carriage.schedules.prefix + "a")
            scheduler = after.scheduler()
            await scheduler.look()  # takes it back just before the tick
            travel(after.store, timedelta(seconds=2))
            carried.qstash.ahead += ahead + timedelta(seconds=2)
            async with serving(create_app(after)) as carried.qstash.target:
                if first == "scheduler":
                    await scheduler.look()
                assert (await carried.qstash.attempt(message)).status_code == 200
                if first == "qstash":
                    await scheduler.look()
            (job,) = [job for job in await after.jobs.list() if job.schedule == "a"]
            assert (await after.schedules.get("a")).last is not None
            assert ran == ([job.id] if first == "qstash" else [])

    async def test_with_another_public_url_qstash_has_each_schedule_once(
        self, carried: Carried, valkey: Server, data_dir: Path
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        variables = {**carried.qstash.variables, "COUNTERSEAL_PUBLIC_URL": "https://moved.example"}
        async with seal_on(valkey, data_dir, variables, tasks=TASKS) as moved:
            await moved.carrying.look(full=True)
            (found,) = [one for one in carried.qstash.schedules.values() if one.id.endswith(".a")]
            assert found.url == "https://moved.example/api/jobs/report"

    async def test_without_a_token_a_scheduler_takes_over_and_says_what_stays(
        self, carried: Carried, valkey: Server, data_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await carried.seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        async with seal_on(valkey, data_dir, tasks=TASKS) as after:
            await after.scheduler().look()
            assert (await after.schedules.get("a")).carrier == "scheduler"
        (line,) = [record.getMessage() for record in caplog.records if "schedule a " in record.getMessage()]
        assert at_qstash(carried, "a").id in line
        assert "QSTASH_TOKEN" in line

    @pytest.mark.parametrize("first", ["scheduler", "qstash"])
    async def test_near_a_change_a_tick_that_both_make_is_one_job(self, carried: Carried, first: str) -> None:
        seal = carried.seal
        await seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        entry = await seal.schedules.entries.get("a")
        tick_ms = entry.schedule.next_after(seal.store.now_ms())
        later(carried, timedelta(milliseconds=tick_ms - seal.store.now_ms() - 30_000))
        await seal.schedules.put(
            scheduled(report.call(), Cron("0 */1 * * *"), id="a")
        )  # it is handed over now
        later(carried, timedelta(seconds=31))
        here = [call_of(entry.schedule, tick_ms)]
        if first == "scheduler":
            await seal.schedules.enqueue(here)
        assert (await tick(carried, "a"))[0] == 200
        if first == "qstash":
            await seal.schedules.enqueue(here)
        assert len([job for job in await seal.jobs.list() if job.schedule == "a"]) == 1

    @pytest.mark.parametrize("ahead_s", [-20, -10, 0, 10, 30])
    async def test_near_a_change_a_tick_is_made_though_the_clock_of_redis_is_not_that_of_qstash(
        self, carried: Carried, ahead_s: int
    ) -> None:
        seal = carried.seal
        await seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
        schedule = (await seal.schedules.get("a")).schedule
        former_ms = schedule.next_after(seal.store.now_ms())
        await seal.schedules.enqueue([call_of(schedule, former_ms)])  # a scheduler has made the one before
        tick_ms = schedule.next_after(former_ms)
        later(carried, timedelta(milliseconds=tick_ms - seal.store.now_ms() - 60_000))
        await seal.schedules.put(scheduled(report.call(), Cron("0 */1 * * *"), id="a"))  # handed over
        later(carried, timedelta(seconds=60 + ahead_s))
        carried.qstash.ahead -= timedelta(seconds=ahead_s)
        status, job = await tick(carried, "a")
        assert (status, job is not None and job.state) == (200, State.COMPLETED)
        await seal.schedules.enqueue([call_of(schedule, tick_ms)])
        assert len([job for job in await seal.jobs.list() if job.schedule == "a"]) == 2


@pytest.mark.parametrize("missing", ["COUNTERSEAL_PUBLIC_URL", "QSTASH_TOKEN"])
async def test_without_a_public_url_or_a_token_the_start_is_refused(
    carried: Carried, valkey: Server, data_dir: Path, missing: str
) -> None:
    variables = {"REDIS_URL": valkey.url, "COUNTERSEAL_DATA_DIR": str(data_dir), **carried.qstash.variables}
    del variables[missing]
    with pytest.raises(ConfigurationError, match=missing):
        Counterseal.open(Settings.load(variables))


def test_a_schedule_with_a_spread_is_delayed_there() -> None:
    spread: Schedule = scheduled(report.call(), HOURLY, spread=timedelta(hours=1))
    seconds = told_of(spread, report).parameters["delay"]
    assert 0 <= seconds * 1000 - spread.delay_ms < 1000


async def test_the_commands_rule_schedules_that_qstash_carries(
    carried: Carried, valkey: Server, tmp_path: Path
) -> None:
    seal = carried.seal
    await seal.schedules.put(scheduled(report.call(), HOURLY, id="a"))
    await seal.schedules.put(scheduled(report.call(), Every(timedelta(hours=1)), id="b"))
    folder = tmp_path / "operator"
    folder.mkdir()
    settings = {"REDIS_URL": valkey.url, **carried.qstash.variables}

    async def ask(*arguments: str, code: int = 0) -> str:
        ended = await asyncio.to_thread(
            run_program, "jobs", "schedules", *arguments, folder=folder, settings=settings
        )
        assert ended.returncode == code, ended.stderr
        return ended.stdout if code == 0 else ended.stderr

    listed = json.loads(await ask("list", "--json"))
    assert {one["id"]: one["carrier"] for one in listed} == {
        "a": "qstash", "b": "scheduler", CLEANUP_EXPIRED: "qstash",
    }  # fmt: skip
    assert "qstash" in await ask("list")
    await ask("pause", "a")
    assert at_qstash(carried, "a").paused
    await ask("resume", "a")
    assert not at_qstash(carried, "a").paused
    assert len(json.loads(await ask("preview", "a", "--count", "3", "--json"))) == 3
    made = json.loads(await ask("run", "a", "--json"))
    assert len(carried.qstash.of(made["id"])) == 1
    await ask("remove", "a")
    assert ours(carried) == set()
    carried.qstash.schedules.clear()
    await ask("reconcile")
    assert at_qstash(carried, CLEANUP_EXPIRED) is not None
    carried.qstash.refuse = 503
    assert "QStash" in await ask("reconcile", code=1)


@pytest.mark.parametrize(
    ("zone", "hour", "goes"),
    [
        ("Europe/Berlin", 1, True),
        ("Europe/Berlin", 2, False),
        ("Europe/Berlin", 3, True),
        ("America/New_York", 1, False),
        ("America/New_York", 2, False),
        ("America/New_York", 3, True),
        ("Australia/Lord_Howe", 1, False),
        ("Australia/Lord_Howe", 4, True),
        ("Asia/Kolkata", 2, True),
        ("UTC", 2, True),
    ],
)
def test_only_times_of_day_at_which_clocks_are_changed_stay_here(zone: str, hour: int, goes: bool) -> None:
    schedule = scheduled(report.call(), Cron(f"45 {hour} * * *", zone))
    assert (refusal(schedule, NOW_MS) == "") is goes
