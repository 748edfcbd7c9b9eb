"""The environments that peers run in: one for each file of pins, made when it is first needed."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.plan import ROOT, Contestant

ENVIRONMENTS = ROOT / "environments"


class EnvironmentFailed(Exception):
    """The pinned packages of a peer could not be installed."""


def is_made(peer: Contestant) -> bool:
    """Whether the peer's environment exists and holds what its pins say."""
    stamp = _folder(peer) / "pins.sha256"
    return stamp.is_file() and stamp.read_text(encoding="ascii") == _digest(peer)


def python_of(peer: Contestant) -> Path:
    """The peer's Python, in an environment that is made now unless it stands. Raises `EnvironmentFailed`."""
    folder = _folder(peer)
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made(peer):
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, peer.pins)
            (folder / "pins.sha256").write_text(_digest(peer), encoding="ascii")
    return folder / "bin" / "python"


def _folder(peer: Contestant) -> Path:
    return ENVIRONMENTS / peer.pins.stem


def _digest(peer: Contestant) -> str:
    return hashlib.sha256(peer.pins.read_bytes() + sys.version.encode()).hexdigest()


def _make(folder: Path, pins: Path) -> None:
    python = str(folder / "bin" / "python")
    beside = Path(sys.executable).with_name("uv")
    uv = shutil.which("uv") or (str(beside) if beside.is_file() else None)
    if uv:
        _run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "--quiet", "--no-deps", "--python", python, "-r", str(pins))
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(pins))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise EnvironmentFailed(f"{' '.join(command[1:3])} failed: {lines[-1]}")
