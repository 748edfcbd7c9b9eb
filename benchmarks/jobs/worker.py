"""A worker as the driver sees it: a process that it starts and kills, and a pipe on which jobs tell of themselves."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from benchmarks.driver import Request
from benchmarks.jobs.marks import VARIABLE

SIZE = 200
"""Of every payload, in bytes."""

START_SECONDS = 20.0
"""How long a worker may take until its first job runs."""

_SETTLE_SECONDS = 1.0


class WorkerProcess:
    """A worker's process, and the pipe on which its jobs tell of themselves."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        self._process = process
        self._pipe = pipe
        self._lines: list[bytes] = []
        self._rest = b""

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self._process.wait()

    def told(self, seconds: float) -> tuple[int, int]:
        """The next first start and last completion, in nanoseconds. Nothing else runs in this process meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._lines:
            left = deadline - time.monotonic()
            if not select.select([self._pipe], [], [], max(0.0, left))[0]:
                raise TimeoutError(f"no job told of itself within {seconds:.0f} s")
            self._read()
        return self._line()

    def more(self) -> int:
        """How many jobs have told of themselves that nobody has asked about."""
        while select.select([self._pipe], [], [], 0)[0]:
            self._read()
        return len(self._lines)

    async def next(self, seconds: float) -> int:
        """The next start, in nanoseconds. The event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while not self._lines:
                readable = loop.create_future()
                loop.add_reader(self._pipe, _once, readable)
                try:
                    await readable
                finally:
                    loop.remove_reader(self._pipe)
                self._read()
        return self._line()[0]

    async def settled(self) -> None:
        """Return when it has used no CPU for a while, so that it has started and waits."""
        used, still = -1.0, 0
        deadline = time.monotonic() + START_SECONDS
        while still < 5 and time.monotonic() < deadline:
            await asyncio.sleep(_SETTLE_SECONDS / 5)
            now = _cpu_seconds(self._process.pid)
            still = still + 1 if now - used < 0.02 else 0
            used = now

    def _read(self) -> None:
        part = os.read(self._pipe, 65536)
        if not part:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        *lines, self._rest = (self._rest + part).split(b"\n")
        self._lines.extend(lines)

    def _line(self) -> tuple[int, int]:
        size, first, last = map(int, self._lines.pop(0).split())
        if size != SIZE:
            raise ValueError(f"expected a payload of {SIZE} bytes; came {size}")
        return first, last


def _once(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


@contextmanager
def worker_process(request: Request, mode: str, count: int) -> Generator[WorkerProcess]:
    """A worker of this driver's library; ended on the way out."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", sys.argv[0], "worker", request.tcp_url],
            env={**os.environ, VARIABLE: f"{mode}:{count}:{writing}"},
            pass_fds=(writing,),
            stdin=subprocess.DEVNULL,
        )
    finally:
        os.close(writing)
    worker = WorkerProcess(process, reading)
    try:
        yield worker
    finally:
        worker.kill()
        os.close(reading)


def _cpu_seconds(pid: int) -> float:
    """What a process and its threads have used."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as status:  # noqa: PTH123 - nothing is imported for one file
        fields = status.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
