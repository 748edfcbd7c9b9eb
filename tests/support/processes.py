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

# The kernel kills a child with the *thread* that started it. All are started by this one, which lives as long as the
# process: a restart from a short-lived thread would otherwise end with that thread.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
_running: set[subprocess.Popen[bytes]] = set()


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


def kill_process(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and its children; returns when it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    _running.discard(process)


def end_process(
    process: subprocess.Popen[bytes], within: float = 5.0, *, by: signal.Signals = signal.SIGTERM
) -> None:
    """SIGTERM, or another signal, then SIGKILL when it takes too long; returns when it has ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(by)
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            kill_process(process)
    _running.discard(process)


def freeze_process(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP; returns when it stands still. Raises `ProcessLookupError` when it has ended."""
    process.send_signal(signal.SIGSTOP)
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if state is None or state.si_code != os.CLD_STOPPED:
        raise ProcessLookupError(f"process {process.pid} has ended")


def thaw_process(process: subprocess.Popen[bytes]) -> None:
    """SIGCONT."""
    process.send_signal(signal.SIGCONT)


@atexit.register
def _kill_the_rest() -> None:
    for process in tuple(_running):
        kill_process(process)
