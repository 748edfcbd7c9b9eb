"""The harness's side of the line protocol: one child process for each contestant, asked for one figure at a time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.driver import Request
from benchmarks.plan import ROOT
from benchmarks.server import pinned

_PATIENCE_SECONDS = 30.0
_EXIT_SECONDS = 5.0


class DriverFailed(Exception):
    """A driver raised, died or did not answer in time."""


class DriverProcess:
    """A driver that runs on one core. What it starts itself ends with it."""

    def __init__(self, python: Path, script: Path, core: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`, with the process
        with pinned(core):
            # -P keeps the driver's folder out of the path, where a driver could hide the library it measures.
            self._child = subprocess.Popen(
                [str(python), "-P", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
                start_new_session=True,
            )

    def ask(self, request: Request) -> float:
        """One figure. Raises `DriverFailed`."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise DriverFailed(self._last_words()) from None
        answer = json.loads(self._line(time.monotonic() + _PATIENCE_SECONDS + 3 * request.seconds))
        if "error" in answer:
            raise DriverFailed(answer["error"])
        return float(answer["value"])

    def close(self) -> None:
        """End the process and all that it started."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        # Its output ends when it does. Until `wait` its number is not given to another, so the group is still its own.
        select.select([self._child.stdout], [], [], _EXIT_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._child.stdout.close()
        self._errors.close()

    def _line(self, deadline: float) -> bytes:
        assert self._child.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise DriverFailed("it did not answer in time")
            part = os.read(self._child.stdout.fileno(), 65536)
            if not part:
                raise DriverFailed(self._last_words())
            line += part
        return line

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it died: {lines[-1] if lines else 'it said nothing'}"
