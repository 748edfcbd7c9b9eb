"""Intake: jobs that are made in one turn of the event loop leave together, in one call of their queue."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from counterseal.core.background import end
from counterseal.core.errors import StoreUnavailable
from counterseal.jobs.scripts import Queue
from counterseal.store.wire import Argument

AT_ONCE: Final = 250
"""So many jobs one call of the script takes: more would keep everybody else waiting."""

_MOST_BYTES: Final = 4 * 2**20
_FIELDS: Final = 5
_TOLD_TOGETHER: Final = 64
_TURNS: Final = 4
"""Until the next jobs of those who were told first have left: made, put into a call, sent, and written."""


class Parts:
    """Makes the parts of job ids: 32 hex digits that sort by time, unlike those of any other process."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._pid = 0
        self._process = ""
        self._count = 0

    def new(self) -> str:
        """Another one. Nobody needs to guess it, so the process counts."""
        if self._pid != os.getpid():  # the first one, or the first one after a fork
            self._pid, self._process, self._count = os.getpid(), secrets.token_hex(6), secrets.randbits(24)
        self._count = (self._count + 1) & 0xFFFFFFFF
        return f"{self._now_ms():012x}{self._process}{self._count:08x}"


@dataclass(slots=True)
class _Load:
    """Jobs of one queue that leave together, and who waits for which of them, in order."""

    arguments: list[Argument]
    size: int
    waiting: list[asyncio.Future[str]] = field(default_factory=list[asyncio.Future[str]])

    @property
    def full(self) -> bool:
        """Whether the next job begins another one."""
        return len(self.waiting) >= AT_ONCE or self.size > _MOST_BYTES


class Intake:
    """Accepts jobs of one queue; with `min_replicas` only when so many replicas have them, else `NotReplicated`."""

    def __init__(self, queue: Queue, *, min_replicas: int = 0) -> None:
        self._queue = queue
        self._min_replicas = min_replicas
        self._load: _Load | None = None
        self._turn = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, job: Sequence[Argument], size: int) -> str:
        """Accept one job, five arguments: '' or the part that was there. One round trip, shared with this turn's jobs.

        Who comes first in a turn of the event loop, while no others are on their way, goes by itself; the others of
        that turn share a call.
        """
        if not self._turn:
            self._turn = True
            asyncio.get_running_loop().call_soon(self._end_turn)
            if not self._tasks:
                part, kind, priority, args, extra = job
                if extra or self._min_replicas:
                    return (await self._accepted(job))[0]
                await self._queue.enqueue_one(str(part), str(kind), str(priority), cast("bytes", args))
                return ""
        load = self._load
        if load is None:
            load = self._load = _Load([], 0)
        load.arguments += job
        load.size += size
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        load.waiting.append(future)
        if load.full:
            self._load = None
            self._send(load)
        return await future

    async def add_many(self, jobs: Sequence[Argument]) -> list[str]:
        """Accept many jobs, five arguments each, in calls of 250 that leave together: one round trip.

        Raises what the first failing call raised, once all have ended: others may have been accepted.
        """
        calls = [self._accepted(call) for call in _calls(jobs)]
        answers: list[str] = []
        failure: BaseException | None = None
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                failure = failure or outcome
            else:
                answers += outcome
        if failure is not None:
            raise failure
        return answers

    async def close(self) -> None:
        """Let those that have left arrive, or fail. Safe to call twice."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=1)
        await end(self._tasks)

    async def _accepted(self, jobs: Sequence[Argument]) -> list[str]:
        answers = await self._queue.enqueue(jobs)
        if self._min_replicas:
            # A script is one write for replicas: who has one of its jobs has all.
            new = next((jobs[n * _FIELDS] for n, taken in enumerate(answers) if not taken), "")
            await self._queue.confirm(str(new), replicas=self._min_replicas)
        return answers

    def _end_turn(self) -> None:
        """Send what came after the first."""
        self._turn = False
        load, self._load = self._load, None
        if load is not None:
            self._send(load)

    def _send(self, load: _Load) -> None:
        # In a task of its own, so that the cancellation of one takes the job of nobody else along.
        task = asyncio.get_running_loop().create_task(self._sent(load), name="counterseal: enqueue jobs")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sent(self, load: _Load) -> None:
        try:
            answers = await self._accepted(load.arguments)
        except BaseException as fault:
            shown = fault if isinstance(fault, Exception) else StoreUnavailable("the jobs are closed")
            for future in load.waiting:
                if not future.done():
                    future.set_exception(shown)
            if not isinstance(fault, Exception):
                raise
            return
        many = len(answers)
        first = many if many < _TOLD_TOGETHER else many // 2
        _tell(load.waiting, answers, 0, first)
        try:
            if first < many:
                # The server works on the next jobs of the first half while the second half makes its own.
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
        finally:
            _tell(load.waiting, answers, first, many)


def _tell(waiting: Sequence[asyncio.Future[str]], answers: Sequence[str], start: int, end: int) -> None:
    for at in range(start, end):
        if not waiting[at].done():
            waiting[at].set_result(answers[at])


def _calls(jobs: Sequence[Argument]) -> list[Sequence[Argument]]:
    """Jobs by the call that they leave in, each of bounded number and length."""
    calls: list[Sequence[Argument]] = []
    first = size = 0
    for at in range(0, len(jobs), _FIELDS):
        if at - first >= AT_ONCE * _FIELDS or size > _MOST_BYTES:
            calls.append(jobs[first:at])
            first, size = at, 0
        args = jobs[at + 3]
        size += len(args) if isinstance(args, (bytes, str)) else 0
    return [*calls, jobs[first:]] if jobs else []
