"""WorkerStatus: a small file in which a worker says that it consumes, for whoever asks from outside.

`<data folder>/workers/<name>.json`, written at once or not at all, and removed at a clean end. Loads nothing but the
standard library, so that asking is quick.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

FOLDER: Final = "workers"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker has told of itself. Moments are seconds since 1970 by the clock of its machine."""

    pid: int
    began: str
    """When the process began, as the system counts; empty where it does not tell."""
    host: str
    name: str
    queues: Mapping[str, int]
    leased_at: float
    """When a lease call of it was last answered."""
    written_at: float
    running: int
    full: bool
    """Whether it runs as many jobs as it may, and so leases none."""
    completed: int

    @property
    def alive(self) -> bool:
        """Whether its process lives."""
        return began(self.pid) == self.began if self.began else _exists(self.pid)

    @property
    def age_s(self) -> float:
        """How long ago it showed that it consumes: by a lease call, or by running as many jobs as it may."""
        return max(0.0, time.time() - (self.written_at if self.full else self.leased_at))

    def write(self, data_dir: Path) -> None:
        """Put it in place of what stood there. Raises `OSError`."""
        folder = data_dir / FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = folder / f".{self.name}.{self.pid}"
        beside.write_text(json.dumps(asdict(self)), "utf-8")
        beside.replace(folder / f"{self.name}.json")


def this_process() -> dict[str, Any]:
    """The fields of a status that tell whose it is."""
    return {"pid": os.getpid(), "began": began(os.getpid()) or "", "host": platform.node()}


def read_statuses(data_dir: Path) -> list[WorkerStatus]:
    """Of the workers of this machine that have told of themselves in a data folder, dead ones too, by name."""
    found: list[WorkerStatus] = []
    for file in sorted((data_dir / FOLDER).glob("*.json")):
        try:
            status = _status(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # removed meanwhile, or none of ours
        if status.host == platform.node():
            found.append(status)
    return found


def remove_status(data_dir: Path, name: str) -> None:
    """Remove the status of a worker, if there is one. Raises `OSError`."""
    (data_dir / FOLDER / f"{name}.json").unlink(missing_ok=True)


def remove_dead(data_dir: Path) -> None:
    """Remove what workers of this machine have left that are dead."""
    for status in read_statuses(data_dir):
        if not status.alive:
            with suppress(OSError):
                remove_status(data_dir, status.name)


def began(pid: int) -> str | None:
    """When a process began, in ticks of the system; empty where that is not told, None when there is no process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return "" if _exists(pid) else None
    # The name of the program, in parentheses, may hold anything.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _status(fields: object) -> WorkerStatus:
    """Raises `TypeError` or `ValueError` for what is none."""
    known = cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
    status = WorkerStatus(**known)
    return replace(
        status,
        pid=int(status.pid),
        leased_at=float(status.leased_at),
        written_at=float(status.written_at),
    )
