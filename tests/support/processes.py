"""Processes: children that cannot outlive the run of the tests, however it ends."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from support.waiting import wait_until


class Running(Protocol):
    """A process that was started, here or by the process that forks."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


# The kernel kills a child with the *thread* that started it. All are started by this one, which lives as long as the
# process: a restart from a short-lived thread would otherwise end with that thread.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
_running: set[Running] = set()


def start_process(
    arguments: Sequence[str], output: Path, folder: Path, *, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, what it prints appended to `output`."""
    setpriv = shutil.which("setpriv")
    command = [setpriv, "--pdeathsig", "KILL", *arguments] if setpriv else list(arguments)

    def start() -> subprocess.Popen[bytes]:
        with output.open("ab") as stream:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=folder,
                process_group=0,
                pass_fds=pass_fds,
            )

    process = _starter.submit(start).result()
    _running.add(process)
    return process


def kill_process(process: Running) -> None:
    """SIGKILL to a process and its children; returns when it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    _running.discard(process)


def end_process(process: Running, within: float = 5.0, *, by: signal.Signals = signal.SIGTERM) -> None:
    """SIGTERM, or another signal, then SIGKILL when it takes too long; returns when it has ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(by)
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            kill_process(process)
    _running.discard(process)


def freeze_process(process: Running) -> None:
    """SIGSTOP; returns when it stands still. Raises `ProcessLookupError` when it has ended."""
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: stands_still(process), step=0.0005)


def stands_still(process: Running) -> bool:
    """Whether SIGSTOP has stopped all of it. Raises `ProcessLookupError` when it has ended."""
    if not isinstance(process, subprocess.Popen):
        if process.poll() is None:
            return _threads_are_stopped(process.pid)
    elif process.returncode is None:
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state is None or state.si_code == os.CLD_STOPPED:
            return state is not None
    raise ProcessLookupError(f"process {process.pid} has ended")


def _threads_are_stopped(pid: int) -> bool:
    """What `waitid` tells the parent of a process alone."""
    try:
        states = [
            stat.read_text().rpartition(") ")[2][0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")
        ]
    except (FileNotFoundError, ProcessLookupError):  # one ended meanwhile
        return False
    return set(states) == {"T"}


def thaw_process(process: Running) -> None:
    """SIGCONT."""
    process.send_signal(signal.SIGCONT)


@atexit.register
def _kill_the_rest() -> None:
    for process in tuple(_running):
        kill_process(process)
