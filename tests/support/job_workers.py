"""Job workers: workers in processes of their own, and what tells that jobs were kept through their deaths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from counterseal.core.errors import StoreError
from counterseal.jobs.service import Jobs
from support.client import Argument
from support.forking import start_script
from support.processes import Running, kill_process, stands_still
from support.servers import Server
from support.waiting import eventually

PROGRAM = Path(__file__).parent.parent / "faults" / "job_worker.py"


class JobWorkers:
    """Starts workers of `tests/faults/job_worker.py`; each has a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: list[Running] = []

    def start(self, url: str, *arguments: Argument) -> JobWorker:
        """Start one and return at once."""
        folder = self._folder / f"worker{len(self.processes)}"
        folder.mkdir()
        process = start_script(PROGRAM, [url, *map(str, arguments)], folder / "log", folder)
        self.processes.append(process)
        return JobWorker(process, folder)

    def close(self) -> None:
        """SIGKILL to all."""
        for process in self.processes:
            kill_process(process)


class JobWorker:
    """One of them."""

    def __init__(self, process: Running, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def log(self) -> str:
        """What it has printed and logged so far."""
        return (self.folder / "log").read_text()

    async def printed(self, text: str, within: float = 20) -> None:
        """Wait until it has printed something."""
        await eventually(lambda: text in self.log or self.process.poll() is not None, within=within)
        assert text in self.log, self.log[-2000:]

    async def ended(self, within: float = 20) -> int:
        """Wait until it has ended; its exit code, negative for a signal."""
        await eventually(lambda: self.process.poll() is not None, within=within)
        return self.process.wait(0)

    async def stopped(self, within: float = 20) -> None:
        """Wait until SIGSTOP has stopped it."""
        await eventually(lambda: stands_still(self.process), within=within)


def effects(server: Server) -> dict[bytes, bytes]:
    """By idempotency key, what was done once."""
    flat = server.execute("HGETALL", "{default}effects")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def effects_so_far(server: Server) -> int:
    """How many there are."""
    return int(server.execute("HLEN", "{default}effects"))


def runs_so_far(server: Server) -> int:
    """How often a job was run that far, also when its effect was there."""
    return int(server.execute("GET", "{default}runs") or 0)


async def none_pending(jobs: Jobs, kind: str, total: int) -> bool:
    """Whether so many jobs of a type have ended. False while Redis is away."""
    try:
        stats = (await jobs.stats())[kind]
    except StoreError:
        return False
    return stats.total >= total and stats.pending == 0


def job_states(server: Server, prefix: str, identifiers: Sequence[str]) -> dict[bytes, int]:
    """How many of these jobs have which first letter of their record: c, f and x have ended."""
    keys = [f"{prefix}:job:{identifier.partition('.')[2]}" for identifier in identifiers]
    found: dict[bytes, int] = {}
    for first in range(0, len(keys), 5000):
        for record in server.execute("MGET", *keys[first : first + 5000]):
            letter = record[:1] if record else b"-"
            found[letter] = found.get(letter, 0) + 1
    return found
