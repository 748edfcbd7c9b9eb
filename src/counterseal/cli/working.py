"""Working: a process that does nothing but run jobs, from its first lease to its last signal."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, NoReturn

import uvloop

from counterseal.app import Counterseal
from counterseal.cli.ending import SIGNALS, Ending
from counterseal.cli.eviction import warning_of_eviction
from counterseal.cli.faults import naming_settings
from counterseal.cli.logs import configure_logs
from counterseal.cli.reporting import reporting
from counterseal.core.errors import ConfigurationError
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import is_queue_name
from counterseal.jobs.run import Middleware, Next

logger = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(KB|MB|GB)\s*", re.IGNORECASE)
_UNITS: Final = {"KB": 2**10, "MB": 2**20, "GB": 2**30}
_MOST_WEIGHT: Final = 1000


class _Why(Enum):
    SIGNAL = "a signal came"
    JOBS = "it has begun as many jobs as --max-jobs says"
    MEMORY = "it takes more memory than --max-memory says"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker process may use up before it replaces itself; None for no limit."""

    jobs: int | None = None
    memory: int | None = None
    """Bytes that are resident."""


class _Recycling:
    """Watches what the process uses up. `over` is set when it is to be replaced, or to end."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.over = asyncio.Event()
        self.why = _Why.SIGNAL
        self._begun = 0

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """Counts jobs, when they are limited."""
        return (self._count,) if self.limits.jobs is not None else ()

    def end(self, why: _Why) -> None:
        """Ask for the end, for a reason; the first one holds, unless a signal comes after it."""
        if not self.over.is_set() or why is _Why.SIGNAL:
            self.why = why
        self.over.set()

    async def _count(self, context: JobContext, call: Next) -> Any:
        self._begun += 1
        if self.limits.jobs is not None and self._begun >= self.limits.jobs:
            self.end(_Why.JOBS)
        return await call()

    async def watch(self) -> None:
        """Return when it is over."""
        while not self.over.is_set():
            if self.limits.memory is not None and resident_bytes() > self.limits.memory:
                self.end(_Why.MEMORY)
                return
            try:
                async with asyncio.timeout(None if self.limits.memory is None else _LOOK_EVERY_S):
                    await self.over.wait()
            except TimeoutError:
                continue


def run_worker(
    seal: Counterseal, *, queues: Mapping[str, int] | None, concurrency: int | None, limits: Limits
) -> None:
    """Run jobs until a signal comes; replace the process when a limit is reached.

    Raises `ConfigurationError` for what keeps it from starting.
    """
    configure_logs(seal.settings)
    with naming_settings(seal.settings), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        again = runner.run(_work(seal, queues, concurrency, limits))
    if again:
        _replace()


async def _work(
    seal: Counterseal, queues: Mapping[str, int] | None, concurrency: int | None, limits: Limits
) -> bool:
    """Whether the process is to be replaced."""
    ending = Ending(seal.settings.web.grace)
    recycling = _Recycling(limits)
    starting = asyncio.current_task()
    if starting is None:
        raise RuntimeError("a task is needed")
    begun = False

    def ask() -> None:
        recycling.end(_Why.SIGNAL)
        if not begun:
            starting.cancel()

    ending.install(ask)
    try:
        async with (
            seal,
            seal.worker(queues=queues, concurrency=concurrency, middleware=recycling.middleware) as worker,
            warning_of_eviction(seal.store),
            reporting(worker, data_dir=seal.settings.data_dir),
            seal.scheduler(),
        ):
            begun = True
            _check_memory(limits)
            logger.info(
                "the worker %s runs up to %d jobs at once of the queues %s; Redis: %s",
                worker.name,
                worker.concurrency,
                ", ".join(f"{name}={weight}" for name, weight in worker.queues.items()),
                seal.store.description,
            )
            await recycling.watch()
            if recycling.why is not _Why.SIGNAL:
                logger.info("the worker %s drains and is replaced: %s", worker.name, recycling.why.value)
    except asyncio.CancelledError:
        if not ending.asked:
            raise
    return not ending.asked


def _replace() -> NoReturn:
    """Begin this program anew in this process, which keeps its id and its arguments."""
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that comes meanwhile is kept for the new one.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - it is this program itself


def _check_memory(limits: Limits) -> None:
    """Raises `ConfigurationError` for a limit at which the process would be replaced for ever."""
    if limits.memory is not None and (taken := resident_bytes()) > limits.memory:
        raise ConfigurationError(
            f"--max-memory: expected more than the {taken / 2**20:.0f} MB that the worker takes before its first job"
        )


def resident_bytes() -> int:
    """How much memory this process takes; its highest, where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return pages * resource.getpagesize()


def parse_queues(text: str | None) -> dict[str, int] | None:
    """Queues with their weights, of `default=3,pdf`. Raises `ConfigurationError`."""
    if text is None:
        return None
    queues: dict[str, int] = {}
    for item in text.split(","):
        name, equals, weight = (part.strip() for part in item.partition("="))
        good = is_queue_name(name) and name not in queues
        if not good or (equals and not (weight.isdecimal() and 1 <= int(weight) <= _MOST_WEIGHT)):
            raise ConfigurationError(
                "--queues: expected different names, each with a weight from 1 to 1000 if need be, as default=3,pdf=1;"
                f" came: {ascii(text[:60])[1:-1]}"
            )
        queues[name] = int(weight) if equals else 1
    return queues


def parse_size(text: str | None) -> int | None:
    """Bytes, of `512MB`. Raises `ConfigurationError`."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"--max-memory: expected a size such as 512MB; came: {ascii(text[:60])[1:-1]}"
        )
    return int(float(found[1]) * _UNITS[found[2].upper()])
