"""What the load of the jobs area promises: figures of a worker process, and none for a queue that cheats."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

_DRIVER = """
import asyncio
from contextlib import asynccontextmanager
from redis.asyncio import Redis
from benchmarks.jobs.load import Queue, length, serve_jobs
from benchmarks.jobs.marks import HOLD_SECONDS, mark

@asynccontextmanager
async def opened(url, concurrency):
    async with Redis.from_url(url) as redis:
        async def many(payloads):
            await redis.lpush("jobs", *payloads[{lost}:])
        yield Queue(lambda payload: redis.lpush("jobs", payload), many, length(url, "LLEN", "jobs"))

async def hold(redis, payload):
    await redis.rpush("held", payload)
    while {leased}:
        await redis.set("lease", "", px=500)
        await asyncio.sleep(0.1)
    await asyncio.sleep(HOLD_SECONDS)

async def next_payload(redis):
    while True:
        if not await redis.exists("lease") and (payload := await redis.rpop("held")):
            return payload
        if taken := await redis.brpop("jobs", timeout=0.3):
            return taken[1]

async def work(url):
    async with Redis.from_url(url) as redis:
        while True:
            payload = await next_payload(redis)
            for again in range({times}):
                if mark(payload.decode()):
                    await hold(redis, payload)

serve_jobs(opened, work, pace=1000)
"""


class Bench:
    """A server, and drivers of a queue that is a plain list."""

    def __init__(self, stack: ExitStack, folder: Path, modules: dict[str, Any]) -> None:
        self._stack = stack
        self._folder = folder
        self._modules = modules
        self._core = min(os.sched_getaffinity(0))
        self._server = stack.enter_context(modules["server"].running(self._core))

    def figure(
        self, handler: str, *, lost: int = 0, times: int = 1, leased: bool = True, **options: object
    ) -> float:
        """What a driver answers: of a list that loses jobs, of a worker that runs them twice or keeps no lease."""
        script = self._folder / "driver.py"
        script.write_text(_DRIVER.format(lost=lost, times=times, leased=leased))
        driver = self._modules["process"].DriverProcess(Path(sys.executable), script, self._core)
        self._stack.callback(driver.close)
        self._server.clear()
        request = self._modules["driver"].Request(
            handler=handler, seconds=10.0 if handler == "recovery" else 0.2, options=options,
            tcp_url=self._server.tcp_url,
            unix_url=self._server.unix_url, server_core=self._core, client_core=self._core,
        )  # fmt: skip
        return driver.ask(request)

    @property
    def failed(self) -> type[Exception]:
        """What a driver that answers with an error raises."""
        return self._modules["process"].DriverFailed


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bench]:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    names = ("driver", "process", "server")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    with ExitStack() as stack:
        yield Bench(stack, tmp_path, modules)


def test_jobs_are_enqueued_one_by_one_by_many_tasks_and_in_bulk(bench: Bench) -> None:
    assert bench.figure("enqueue", tasks=1) > 0
    assert bench.figure("enqueue", tasks=20) > 0
    assert bench.figure("enqueue_bulk") > 0


def test_a_batch_that_is_not_all_there_is_no_figure(bench: Bench) -> None:
    with pytest.raises(bench.failed, match=r"jobs were enqueued, and \d+ are there"):
        bench.figure("enqueue_bulk", lost=1)
    with pytest.raises(bench.failed, match=r"^ValueError: 200 jobs were enqueued, and 198 are there$"):
        bench.figure("drain", lost=1)


def test_a_worker_process_drains_the_queue_and_its_commands_are_counted(bench: Bench) -> None:
    assert bench.figure("drain") > 0
    # EXISTS, RPOP and BRPOP for each job, and what opens the worker's connection.
    assert 3 <= bench.figure("commands") < 3.5
    assert 3 <= bench.figure("round_trips") < 3.5


def test_a_worker_that_runs_jobs_twice_is_no_figure(bench: Bench) -> None:
    with pytest.raises(bench.failed, match=r"^ValueError: \d+ of 200 jobs ran twice$"):
        bench.figure("drain", times=2)


def test_an_idle_worker_picks_a_job_up(bench: Bench) -> None:
    half, most = bench.figure("pickup", percentile=50), bench.figure("pickup", percentile=99)
    assert 0 < half < 1000
    assert most > 0


def test_a_job_whose_worker_was_killed_is_seen_to_run_again(bench: Bench) -> None:
    assert 0 < bench.figure("recovery") < 10


def test_a_job_that_runs_again_while_its_worker_is_alive_is_no_figure(bench: Bench) -> None:
    with pytest.raises(bench.failed, match=r"^ValueError: the job ran again while its worker was alive$"):
        bench.figure("recovery", leased=False)
