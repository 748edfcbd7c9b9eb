"""WorkerProcess: `counterseal worker` in a process of its own, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from counterseal.jobs.worker_status import WorkerStatus, read_statuses

_STEP_S: Final = 0.02
_KEPT: Final = ("PATH", "HOME", "LANG", "TMPDIR")


class WorkerProcess:
    """A worker for an application: `with WorkerProcess("shop.jobs:create", folder=here, variables=server.variables())`.

    `folder` is the one that the application can be imported from, `variables` is its environment: nothing else of that
    of the test reaches it but PATH, HOME, LANG and TMPDIR. It is killed at the end.
    """

    def __init__(
        self, app: str, *, folder: Path, variables: Mapping[str, str], arguments: Sequence[str] = ()
    ) -> None:
        self._command = [sys.executable, "-m", "counterseal", "worker", "--app", app, *arguments]
        self._folder = folder
        self._variables = {"COUNTERSEAL_ENV": "test", **variables}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running().pid

    def start(self, within: float = 30.0) -> None:
        """Start it, and return when it has leased. Raises `RuntimeError` when it ends instead, or takes too long."""
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603 - the program of this environment
            self._command,
            cwd=self._folder,
            env={**environment, **self._variables},
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        deadline = time.monotonic() + within
        while self.status() is None:
            if self._process.poll() is not None:
                raise RuntimeError(f"the worker ended with {self._process.returncode}; it says why on stderr")
            if time.monotonic() >= deadline:
                raise RuntimeError(f"the worker has not leased within {within:g} s")
            time.sleep(_STEP_S)

    def status(self) -> WorkerStatus | None:
        """What it tells of itself; None before its first lease."""
        folder = self._folder / self._variables.get("COUNTERSEAL_DATA_DIR", ".counterseal")
        found = [status for status in read_statuses(folder) if status.pid == self.pid]
        return found[0] if found else None

    def kill(self) -> None:
        """SIGKILL; returns when it is dead. Its jobs are taken over when their lease has run out."""
        process = self._running()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def stop(self, within: float = 30.0) -> int:
        """SIGTERM; its exit code, once it has drained."""
        self._running().send_signal(signal.SIGTERM)
        return self._running().wait(within)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            if self._process is not None:
                self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process
