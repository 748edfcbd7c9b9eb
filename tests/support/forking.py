"""Forking: `python …` as a process of its own, forked from one that has imported counterseal already.

A command spends most of its time on imports, the same ones each time. What is forked is a process like any other: its
own environment, folder, output, signals and exit code. Only that it can be started from nothing is not shown by it, so
each command has tests with `fresh=True` too.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn

from support.processes import Running, start_process

_PRELOADED: Final = (
    "counterseal.cli.checking",
    "counterseal.cli.commands",
    "counterseal.cli.doctor",
    "counterseal.cli.jobs",
    "counterseal.cli.migrating",
    "counterseal.cli.serving",
    "counterseal.cli.working",
)
CAN_FORK: Final = sys.platform == "linux"
"""Elsewhere programs are started from nothing."""

_LONGEST: Final = 65536
_PR_SET_PDEATHSIG: Final = 1
_NO_SUCH_PROCESS: Final = "the process that forks has ended"


class Forked:
    """A forked process, with what is used of `subprocess.Popen`."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        told = line.recv(32)
        if not told:
            raise ChildProcessError(_NO_SUCH_PROCESS)
        self.pid = int(told)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or `None` while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                told = self._line.recv(32)
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            if not told:
                raise ChildProcessError(_NO_SUCH_PROCESS)
            self.returncode = int(told)
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(
    arguments: Sequence[str], *, folder: Path, env: Mapping[str, str], output: int, errors: int
) -> Forked:
    """Start `python -m MODULE …` or `python SCRIPT …`, in a process group of its own.

    `output` and `errors` are descriptors.
    """
    request = {"arguments": list(arguments), "folder": str(folder.absolute()), "env": dict(env)}
    payload = json.dumps(request).encode()
    assert len(payload) < _LONGEST
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(_forking_process(), [payload], [theirs.fileno(), output, errors])
    return Forked(ours)


def start_script(script: Path, arguments: Sequence[str], output: Path, folder: Path) -> Running:
    """Start a program of the tests with their environment, what it prints appended to `output`."""
    command = [str(script), *arguments]
    if not CAN_FORK:
        return start_process([sys.executable, *command], output, folder)
    with output.open("ab") as stream:
        return fork(command, folder=folder, env=os.environ, output=stream.fileno(), errors=stream.fileno())


@cache
def _forking_process() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", __name__, str(theirs.fileno())]
    with theirs:
        start_process(command, Path(os.devnull), Path(__file__).parents[1], pass_fds=[theirs.fileno()])
    return ours


@dataclass(frozen=True, slots=True)
class _Request:
    arguments: list[str]
    folder: str
    env: dict[str, str]
    output: int
    errors: int


def _serve(requests: socket.socket) -> _Request:
    """Fork for each request. Returns in the forked processes alone."""
    parent = os.getpid()
    running: dict[int, socket.socket] = {}
    woken, waker = socket.socketpair()
    for one in (woken, waker):
        one.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _note)

    poller = select.poll()
    poller.register(requests, select.POLLIN)
    poller.register(woken, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if woken.fileno() in ready:
            with suppress(BlockingIOError):
                woken.recv(4096)
        if requests.fileno() in ready:
            payload, descriptors, _, _ = socket.recv_fds(requests, _LONGEST, 3)
            if not payload:
                _end(running)
            line, output, errors = descriptors
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (requests, woken, waker, *running.values()):
                    one.close()
                os.close(line)
                _bind_to(parent)
                return _Request(**json.loads(payload), output=output, errors=errors)
            with suppress(ProcessLookupError, PermissionError):
                os.setpgid(pid, pid)  # here too: whoever hears of it may signal its group at once
            running[pid] = socket.socket(fileno=line)
            running[pid].send(b"%d" % pid)
            os.close(output)
            os.close(errors)
        _reap(running)


def _note(_number: int, _frame: object) -> None:
    """Only to be woken."""


def _reap(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as line, suppress(BrokenPipeError, ConnectionError):
            line.send(b"%d" % os.waitstatus_to_exitcode(status))


def _end(running: Mapping[int, object]) -> NoReturn:
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    sys.exit()


def _bind_to(parent: int) -> None:
    """Have the kernel see to it that it cannot outlive the process that forked it."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _become(request: _Request) -> None:
    """Be `python …` as if it had been started so."""
    for target, source in ((1, request.output), (2, request.errors)):
        os.dup2(source, target)
        os.close(source)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.env)
    sys.orig_argv = [sys.executable, *request.arguments]
    gc.enable()
    first, *rest = request.arguments
    if first == "-m":
        module = rest[0]
        sys.argv = rest
        sys.path[0] = request.folder
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = request.arguments
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def _main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    gc.disable()
    for name in _PRELOADED:
        import_module(name)
    assert threading.active_count() == 1, "a thread does not survive a fork"
    gc.freeze()
    _become(_serve(requests))


if __name__ == "__main__":
    _main()
