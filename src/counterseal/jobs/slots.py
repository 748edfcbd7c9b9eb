"""Slots: what a worker holds: jobs that run, jobs leased ahead for the next free slot, results to be handed in."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from counterseal.jobs.parking import Parking
from counterseal.jobs.run import Middleware, Run, Workplace
from counterseal.jobs.scripts import Leased, Queue, Result
from counterseal.jobs.task import Task
from counterseal.jobs.threads import Threads
from counterseal.jobs.tracing import Tracing

_MOST_AHEAD: Final = 100
_AHEAD_S: Final = 0.02
"""So long a job may wait for its turn in a worker that leased it ahead."""
_STALE_S: Final = 0.1
"""What has waited so long in a worker goes back to its queue, for others."""


@dataclass(slots=True)
class Source:
    """One queue that a worker takes jobs from, and what it holds of it."""

    queue: Queue
    weight: int
    parking: Parking
    ahead: deque[Leased] = field(default_factory=deque[Leased])
    """Leased, and not begun."""
    results: list[Result] = field(default_factory=list[Result])
    """To be handed in."""
    running: dict[str, Run] = field(default_factory=dict[str, Run])
    calls: int = 0
    lost_call: str = ""
    """A lease call whose answer did not come: what it leased nobody knows of."""
    refused: bool = False
    """Whether results could not be handed in: nothing is leased before they are."""
    failures: int = 0
    """How many times in a row it could not be served."""
    rests_until: float = 0.0
    """When to try again then, by the loop's clock."""
    recalled: str = ""
    """A job that was sent here and given back unseen."""

    def holds(self, part: str) -> bool:
        """Whether this worker knows of a job."""
        return (
            part in self.running
            or any(leased.part == part for leased in self.ahead)
            or any(result.part == part for result in self.results)
        )


class Slots:
    """Runs what was put into `ahead` of its sources, `concurrency` jobs at once, and sets `wake` when one has ended."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        concurrency: int,
        tasks: Mapping[str, Task[Any, Any]],
        middleware: Sequence[Middleware],
        now_ms: Callable[[], int],
        tracing: Tracing | None,
        wake: asyncio.Event,
    ) -> None:
        self.sources = sources
        self.concurrency = concurrency
        self.closing = False
        """Whether no job begins any more."""
        self._tasks = tasks
        self._middleware = tuple(middleware)
        self._now_ms = now_ms
        self._tracing = tracing
        self._wake = wake
        self._threads: Threads | None = None
        self._places: dict[str, Workplace] = {}
        self._average_s = 1.0
        self._stale: asyncio.TimerHandle | None = None
        self._ends = 0
        self._none_ahead = False
        """Whether nothing is leased ahead: what was had to go back, and no job has ended since."""

    def open(self) -> None:
        """Let jobs begin, each in a copy of the context variables that are set now."""
        self.closing = False
        within = contextvars.copy_context()
        if any(not task.is_async for task in self._tasks.values()):
            self._threads = Threads(self.concurrency)
        for source in self.sources:
            self._places[source.queue.name] = Workplace(
                source.queue,
                ended=partial(self._ended, source),
                middleware=self._middleware,
                threads=self._threads,
                now_ms=self._now_ms,
                tracing=self._tracing,
                within=within,
            )

    def close(self) -> None:
        """Leave to others what still runs."""
        for run in self.runs():
            run.abandon()
        if self._stale is not None:
            self._stale.cancel()
            self._stale = None
        if self._threads is not None:
            self._threads.shutdown()

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return sum(len(source.running) for source in self.sources)

    def room(self) -> int:
        """How many jobs may be leased: for the free slots, and ahead of them when jobs are short."""
        if self.closing:
            return 0
        taken = sum(len(source.running) + len(source.ahead) + len(source.results) for source in self.sources)
        ahead = min(_MOST_AHEAD, int(_AHEAD_S * self.concurrency / max(self._average_s, 1e-6)))
        if self._none_ahead:
            ahead = 0
        return self.concurrency + ahead - taken

    def free(self) -> int:
        """How many slots nothing is leased for."""
        return max(0, self.concurrency - sum(len(one.running) + len(one.ahead) for one in self.sources))

    def start(self) -> None:
        """Begin jobs while there are slots."""
        free = self.concurrency - self.running
        for source in self.sources:
            while free > 0 and source.ahead:
                self.run(source, source.ahead.popleft())
                free -= 1
        if self._stale is None and any(source.ahead for source in self.sources):
            self._stale = asyncio.get_running_loop().call_later(_STALE_S, self._return_stale, self._ends)

    def run(self, source: Source, leased: Leased) -> None:
        """Begin a job."""
        run = source.running[leased.part] = Run(
            leased, self._tasks.get(leased.type), self._places[source.queue.name]
        )
        run.start()

    def give_back(self, source: Source) -> None:
        """Have what has not begun handed back to its queue."""
        if not source.ahead:
            return
        # The first one goes to the front last.
        for leased in reversed(source.ahead):
            source.results.append(Result(leased.part, leased.token, "queued", 0, 0, b""))
        self._average_s = max(self._average_s, _STALE_S)
        self._none_ahead = True
        source.ahead.clear()
        self._wake.set()

    def leave_behind(self) -> None:
        """Hand back what can't be ended: a plain function goes on in its thread, until the process ends."""
        for source in self.sources:
            for run in list(source.running.values()):
                source.results.append(Result(run.leased.part, run.leased.token, "queued", 0, 0, b""))
                run.abandon()
                source.running.pop(run.leased.part, None)

    def runs(self) -> list[Run]:
        """Those that run now."""
        return [run for source in self.sources for run in source.running.values()]

    def under_way(self) -> list[asyncio.Task[None]]:
        """The tasks in which they run."""
        return [run.running for run in self.runs() if run.running is not None and not run.running.done()]

    def _ended(self, source: Source, run: Run) -> None:
        if source.running.get(run.leased.part) is run:
            del source.running[run.leased.part]
        self._ends += 1
        self._none_ahead = False
        self._average_s += (run.seconds - self._average_s) * 0.2
        if run.result is not None:
            source.results.append(run.result)
        if not self.closing:
            if source.ahead:
                self.run(source, source.ahead.popleft())
            elif len(self.sources) > 1:
                self.start()
        self._wake.set()

    def _return_stale(self, ends: int) -> None:
        """Give back what has waited behind jobs that take longer than expected: none has ended meanwhile."""
        self._stale = None
        if self.running >= self.concurrency and ends == self._ends:
            for source in self.sources:
                self.give_back(source)
        elif any(source.ahead for source in self.sources):
            self.start()
