"""Reporting: a worker of this process tells that it consumes, in the file that `worker --check` reads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from counterseal.core.background import Background
from counterseal.core.complaints import Complaints
from counterseal.jobs.worker import Worker
from counterseal.jobs.worker_status import WorkerStatus, remove_dead, remove_status, this_process

logger = logging.getLogger(__name__)

_EVERY_S: Final = 1.0


@asynccontextmanager
async def reporting(worker: Worker, *, data_dir: Path) -> AsyncGenerator[None]:
    """Write the status of a worker at most once a second, as often as it has leased; remove it at the end.

    A folder that can't be written to is told of in the log, and the worker goes on.
    """
    background = Background()
    complaints = Complaints(logger)
    process = this_process()
    told = -1.0

    def status() -> WorkerStatus:
        loop_now, now = asyncio.get_running_loop().time(), time.time()
        return WorkerStatus(
            **process,
            name=worker.name,
            queues=worker.queues,
            leased_at=now - (loop_now - (worker.leased_at or loop_now)),
            written_at=now,
            running=worker.running,
            full=worker.running >= worker.concurrency,
            completed=worker.counts.completed,
        )

    async def report() -> None:
        nonlocal told
        await asyncio.to_thread(remove_dead, data_dir)
        while True:
            if worker.leased_at is not None:
                current = status()
                if worker.leased_at != told or current.full:
                    told = worker.leased_at
                    try:
                        await asyncio.to_thread(current.write, data_dir)
                    except OSError as fault:
                        complaints.tell(
                            "the status of the worker can't be written: %s",
                            fault,
                            now_ms=round(time.time() * 1000),
                        )
            await asyncio.sleep(_EVERY_S if worker.leased_at is not None else _EVERY_S / 20)

    background.keep("tell that the worker consumes", report)
    try:
        yield
    finally:
        await background.close()
        with suppress(OSError):
            remove_status(data_dir, worker.name)
