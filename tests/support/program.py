"""Program: `counterseal` as a user runs it, in a process and a folder of its own, with only the settings given here."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.forking import CAN_FORK, Forked, fork
from support.waiting import wait_until

_LISTENS = re.compile(r"listens at (http://\S+)")
THIS = (sys.executable, "-m", "counterseal")
"""The program of the environment that runs the tests."""


class Program:
    """A running command: `with Program(["serve", "--port", "0"], folder=tmp_path) as program`.

    `settings` are environment variables; nothing else of the tests' environment reaches it. It cannot outlive the run.
    It is forked from a process that has imported counterseal already; with `fresh`, or as another `program`, it is
    started from nothing.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        program: Sequence[str] = THIS,
        fresh: bool = False,
    ) -> None:
        self.folder = folder
        self._output = folder / "program.out"
        self._errors = folder / "program.err"
        env = environment(settings)
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            if program is THIS and not fresh and CAN_FORK:
                self._process: Forked | subprocess.Popen[bytes] = fork(
                    ["-m", "counterseal", *arguments],
                    folder=folder,
                    env=env,
                    output=output.fileno(),
                    errors=errors.fileno(),
                )
                return
            setpriv = shutil.which("setpriv")
            bound = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
            self._process = subprocess.Popen(
                [*bound, *program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=folder,
                env=env,
                process_group=0,
            )

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text("utf-8", "replace")

    @property
    def errors(self) -> str:
        """What it has printed to stderr, its logs too."""
        return self._errors.read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def url(self, within: float = 20.0) -> str:
        """Where `serve` listens, as soon as it says so. Raises `AssertionError` when it ends instead."""

        def said_or_ended() -> str | None:
            if found := _LISTENS.search(self.output):
                return found[1]
            return "" if self._process.poll() is not None else None

        url = wait_until(lambda: (said_or_ended(),) if said_or_ended() is not None else None, within)[0]
        assert url, f"it ended with {self._process.returncode}: {self.errors}"
        return url

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone."""
        self._process.send_signal(number)

    def wait(self, within: float = 20.0) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(within)

    def close(self) -> None:
        """Kill it and the processes that it started. Safe to call twice."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program: what every process needs, and the settings given."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "COLUMNS": "120", **(settings or {})}


def run_program(
    *arguments: str,
    folder: Path,
    settings: Mapping[str, str] | None = None,
    within: float = 60.0,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, at most `within` seconds, and return what it printed. `fresh` as for `Program`."""
    env = environment(settings)
    if fresh or not CAN_FORK:
        return subprocess.run(
            [*THIS, *arguments],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
    output, to_output = os.pipe()
    errors, to_errors = os.pipe()
    try:
        process = fork(
            ["-m", "counterseal", *arguments], folder=folder, env=env, output=to_output, errors=to_errors
        )
    finally:
        os.close(to_output)
        os.close(to_errors)
    told = _read_to_end({output: bytearray(), errors: bytearray()}, within, process)
    return subprocess.CompletedProcess(
        [*THIS, *arguments], process.wait(within), told[output].decode(), told[errors].decode()
    )


def _read_to_end(told: dict[int, bytearray], within: float, process: Forked) -> dict[int, bytearray]:
    """Read pipes until nobody can write to them any more, and close them."""
    deadline = time.monotonic() + within
    with selectors.DefaultSelector() as selector:
        for pipe in told:
            selector.register(pipe, selectors.EVENT_READ)
        try:
            while selector.get_map():
                ready = selector.select(max(deadline - time.monotonic(), 0))
                assert ready, f"after {within:g} s somebody can still write to what it prints"
                for key, _ in ready:
                    if part := os.read(key.fd, 65536):
                        told[key.fd] += part
                    else:
                        selector.unregister(key.fd)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            raise
        finally:
            for pipe in told:
                os.close(pipe)
    return told
