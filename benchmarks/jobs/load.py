"""The load of the jobs area, the same for every driver: what differs is how a queue is opened and how a worker runs.

A driver's file is also the program of its worker, which is a process of its own on the client's core.
"""

from __future__ import annotations

import asyncio
import math
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from benchmarks.driver import LoopFactory, Request, serve
from benchmarks.jobs.worker import SIZE, START_SECONDS, WorkerProcess, worker_process
from benchmarks.pace import rate

PAYLOAD = "p" * SIZE
BATCH = 100
_EMPTY_SECONDS = 5.0
_ACKNOWLEDGE_SECONDS = 0.1
"""For the last jobs of a drain: they are acknowledged after they have told of themselves."""

_TWICE = 0.01
"""The share of the jobs of a drain that may run twice: SAQ's sweep takes back one or two that were just leased."""

_PAUSE_SECONDS = 0.03
_FEWEST_PICK_UPS = 20
_OWN_COMMANDS = ("cmdstat_config", "cmdstat_info")  # of this module


@dataclass(frozen=True, slots=True)
class Queue:
    """An open queue. `one` enqueues a job with a payload and `many` a list of them; `waiting` counts those not begun.

    With `keeps` those that are done are counted as well.
    """

    one: Callable[[str], Awaitable[Any]]
    many: Callable[[Sequence[str]], Awaitable[Any]]
    waiting: Callable[[], Awaitable[int]]
    keeps: bool = False


Opener = Callable[[str, int], AbstractAsyncContextManager[Queue]]
"""Opens the queue at a URL for a number of concurrent calls, as an application that cares for speed would."""

Work = Callable[[str], Coroutine[Any, Any, None] | None]
"""Runs a worker of the queue at a URL until the process is ended."""


def serve_jobs(opener: Opener, work: Work, *, pace: int, loop_factory: LoopFactory | None = None) -> None:
    """Answer the harness for one library, or be its worker.

    `pace` is about how many jobs a second its worker drains here: so many are enqueued for each second of a
    measurement.
    """
    if sys.argv[1:2] == ["worker"]:
        _work(work, sys.argv[2], loop_factory)
        return

    async def enqueue(request: Request) -> float:
        """Jobs enqueued per second by `tasks` tasks, each waiting for one before it enqueues the next."""
        tasks = request.options["tasks"]
        async with opener(request.tcp_url, tasks) as queue:
            return await _counted(queue, queue.one, [PAYLOAD] * (10 * tasks), tasks, request.seconds)

    async def enqueue_bulk(request: Request) -> float:
        """Jobs enqueued per second by one task, 100 in a call where the library has one."""
        async with opener(request.tcp_url, BATCH) as queue:
            payloads = [PAYLOAD] * BATCH

            async def call(_: str) -> None:
                await queue.many(payloads)

            return await _counted(queue, call, [""], 1, request.seconds, jobs=BATCH)

    async def drain(request: Request) -> float:
        """Jobs per second that one worker process completes, from the first start to the last completion."""
        count = await _fill(opener, request, pace)
        with worker_process(request, "count", count) as worker:
            first, last = worker.told(START_SECONDS + 3 * request.seconds)
            await _check_empty(opener, request, count)
            if (again := worker.more()) > _TWICE * count:
                raise ValueError(f"{again} of {count} jobs ran twice")
        return (count - 1) / ((last - first) / 1e9)

    async def commands(request: Request) -> float:
        """Commands that the server counted for each job of a drain, those that scripts call among them."""
        return await _spent(opener, request, pace, "commandstats")

    async def round_trips(request: Request) -> float:
        """How often the server had to read from a client for each job of a drain."""
        return await _spent(opener, request, pace, "stats")

    async def pickup(request: Request) -> float:
        """Milliseconds from the call that enqueues a job to its start in an idle worker; a percentile of them."""
        async with opener(request.tcp_url, 1) as queue:
            with worker_process(request, "stamp", 0) as worker:
                await queue.one(PAYLOAD)
                await worker.next(START_SECONDS)
                taken = await _pick_ups(queue, worker, request.seconds)
        if request.options["percentile"] == 50:
            return statistics.median(taken)
        return sorted(taken)[math.ceil(0.99 * len(taken)) - 1]

    async def recovery(request: Request) -> float:
        """Seconds from the kill -9 of a worker in the middle of a job until another worker, which is up, starts it."""
        async with opener(request.tcp_url, 1) as queue:
            with worker_process(request, "hold", 0) as victim:
                await queue.one(PAYLOAD)
                await victim.next(START_SECONDS)
                with worker_process(request, "hold", 0) as other:
                    await other.settled()
                    if other.more():
                        raise ValueError("the job ran again while its worker was alive")
                    victim.kill()
                    killed = time.monotonic_ns()
                    started = await other.next(request.seconds)
                    return (started - killed) / 1e9

    serve(
        enqueue,
        enqueue_bulk,
        drain,
        commands,
        round_trips,
        pickup,
        recovery,
        loop_factory=loop_factory,
    )


def length(url: str, *command: str) -> Callable[[], Awaitable[int]]:
    """Counts what waits by one command that answers a number, such as `LLEN queue`."""

    async def waiting() -> int:
        return int(_ask(url, " ".join(command)).removeprefix(b":"))

    return waiting


def _work(work: Work, url: str, loop_factory: LoopFactory | None) -> None:
    if asyncio.iscoroutinefunction(work):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(work(url))
    else:
        work(url)


async def _counted(
    queue: Queue,
    call: Callable[[str], Awaitable[Any]],
    payloads: Sequence[str],
    tasks: int,
    seconds: float,
    *,
    jobs: int = 1,
) -> float:
    """Jobs per second of a call, all of which must be there afterwards."""
    before, calls = await queue.waiting(), 0

    async def counted(payload: str) -> None:
        nonlocal calls
        await call(payload)
        calls += 1

    figure = await rate(counted, payloads, tasks=tasks, seconds=seconds, chunk=10 if jobs == 1 else 1)
    if (there := await queue.waiting() - before) != jobs * calls:
        raise ValueError(f"{jobs * calls} jobs were enqueued, and {there} are there")
    return jobs * figure


async def _fill(opener: Opener, request: Request, pace: int) -> int:
    """Enqueue what a worker drains in the time of the measurement, in whole batches."""
    batches = max(1, round(pace * request.seconds / BATCH))
    async with opener(request.tcp_url, BATCH) as queue:
        for _ in range(batches):
            await queue.many([PAYLOAD] * BATCH)
        if (there := await queue.waiting()) != BATCH * batches:
            raise ValueError(f"{BATCH * batches} jobs were enqueued, and {there} are there")
    return BATCH * batches


async def _check_empty(opener: Opener, request: Request, count: int) -> None:
    """Return when no job waits any more: a worker that leaves some would be fast for nothing."""
    async with opener(request.tcp_url, 1) as queue:
        deadline = time.monotonic() + _EMPTY_SECONDS
        while not queue.keeps and (left := await queue.waiting()):
            if time.monotonic() > deadline:
                raise ValueError(f"{count} jobs ran, and {left} are left")
            await asyncio.sleep(0.02)


async def _spent(opener: Opener, request: Request, pace: int, section: str) -> float:
    """What the server counted of a drain for each job, the worker's start among it."""
    count = await _fill(opener, request, pace)
    before = _spending(request.tcp_url, section)
    with worker_process(request, "count", count) as worker:
        worker.told(START_SECONDS + 3 * request.seconds)
        await asyncio.sleep(_ACKNOWLEDGE_SECONDS)
        return (_spending(request.tcp_url, section) - before) / count


def _spending(url: str, section: str) -> int:
    told = dict(
        line.split(":", 1) for line in _ask(url, f"INFO {section}").decode().splitlines() if ":" in line
    )
    if section == "stats":
        return int(told["total_reads_processed"])
    return sum(
        int(numbers.split(",")[0].removeprefix("calls="))
        for name, numbers in told.items()
        if not name.startswith(_OWN_COMMANDS)
    )


async def _pick_ups(queue: Queue, worker: WorkerProcess, seconds: float) -> list[float]:
    taken: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(taken) < _FEWEST_PICK_UPS:
        # The pauses differ, so that they never keep step with a worker that polls.
        await asyncio.sleep(_PAUSE_SECONDS * (1 + len(taken) * 0.618 % 1))
        asked = time.monotonic_ns()
        await queue.one(PAYLOAD)
        taken.append((await worker.next(START_SECONDS) - asked) / 1e6)
    return taken


def _ask(url: str, command: str) -> bytes:
    """The answer of the server to one command: a number, or a text without its length."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(f"{command}\r\n".encode())
        answer = connection.makefile("rb")
        first = answer.readline().rstrip()
        return answer.read(int(first[1:])) if first.startswith(b"$") else first
