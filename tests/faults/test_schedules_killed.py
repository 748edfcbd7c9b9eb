"""Schedulers that are killed, and that race: whatever happens, a tick makes one job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from counterseal.jobs.cron import Cron, Every
from counterseal.jobs.schedule import Missed
from counterseal.jobs.schedule_job import scheduled, tick_part
from counterseal.jobs.scheduler import LEASE
from support.forking import start_script
from support.processes import Running, kill_process
from support.schedules import next_hour, process_on, report
from support.servers import Server
from support.stores import store_on
from support.waiting import eventually

PROGRAM = Path(__file__).with_name("schedule_victim.py")
HOUR_MS = 3_600_000
LEASE_MS = LEASE // timedelta(milliseconds=1)
EVERY_HOUR = scheduled(report.call(), Cron("0 * * * *"), missed=Missed.ALL)

Start = Callable[..., tuple[Running, Path]]


@pytest.fixture
def start(valkey: Server, tmp_path: Path) -> Iterator[Start]:
    """Starts a scheduler in a process of its own; it and the file of what it says."""
    begun: list[Running] = []

    def run(boundary: str, begin_ms: int, hours: int = 1) -> tuple[Running, Path]:
        folder = tmp_path / str(len(begun))
        folder.mkdir()
        said = folder / "said.log"
        arguments = [valkey.url, boundary, str(begin_ms), str(hours)]
        begun.append(start_script(PROGRAM, arguments, said, folder))
        return begun[-1], said

    yield run
    for process in begun:
        kill_process(process)


@pytest.mark.parametrize("boundary", ["claimed", "enqueued", "advanced"])
async def test_a_tick_at_which_a_scheduler_was_killed_makes_one_job(
    boundary: str, valkey: Server, start: Start
) -> None:
    async with store_on(valkey) as store:
        one = process_on(store)
        await one.schedules.put(EVERY_HOUR)
        tick = next_hour(store)
        victim, said = start(boundary, tick)
        await eventually(lambda: boundary in said.read_text(), within=30)
        kill_process(victim)
        assert await one.total() == (0 if boundary == "claimed" else 1)
        # Its clock began at the tick; this one comes when the lease is over, however long starting took.
        await one.at(tick + LEASE_MS + 40_000)
        await one.at(tick + HOUR_MS)
        assert await one.total() == 2
        assert {job.id.partition(".")[2] for job in await one.made()} == {
            tick_part("report", tick),
            tick_part("report", tick + HOUR_MS),
        }


async def test_processes_that_race_make_one_job_for_each_tick_though_one_is_killed(
    valkey: Server, start: Start
) -> None:
    hours = 150
    async with store_on(valkey) as store:
        one = process_on(store)
        await one.schedules.put(EVERY_HOUR)
        tick = next_hour(store)
        racers = [start("run", tick, hours) for _ in range(2)]
        await eventually(lambda: all("done 20\n" in said.read_text() for _, said in racers), within=30)
        kill_process(racers[0][0])
        survivor, said = racers[1]
        await eventually(lambda: "over" in said.read_text(), within=60)
        assert survivor.wait(10) == 0
        await one.at(tick + hours * HOUR_MS)  # also what the killed one held
        assert await one.total() == hours + 1
        assert {job.id.partition(".")[2] for job in await one.made()} == {
            tick_part("report", tick + hour * HOUR_MS) for hour in range(hours + 1)
        }


async def test_a_scheduler_goes_on_when_redis_is_there_again(servers: Callable[..., Server]) -> None:
    server = servers(appendonly=True)
    async with store_on(server) as store:
        one = process_on(store)
        await one.schedules.put(scheduled(report.call(), Every(timedelta(seconds=1))))

        async def more_than(count: int) -> bool:
            return await one.total() > count

        async with one.scheduler:
            await eventually(lambda: more_than(0), within=10)
            server.kill()
            await eventually(lambda: not store.available)
            server.start()
            await eventually(lambda: store.available, within=10)
            made = await one.total()
            await eventually(lambda: more_than(made + 1), within=15)
