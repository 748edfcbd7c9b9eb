"""A worker in a process of its own, whose handler never returns: `python job_worker.py URL`."""

import asyncio
import sys
from datetime import timedelta

from counterseal import Counterseal, Settings, Task, Worker
from counterseal.store.keys import Keys


async def hang(task: Task) -> None:
    print(f"begun {task.id}", flush=True)  # noqa: T201 - what the test waits for
    await asyncio.Event().wait()


async def work(url: str) -> None:
    settings = Settings.load({"REDIS_URL": url, "COUNTERSEAL_COMMAND_TIMEOUT": "5s"})
    async with (
        Counterseal.open(settings) as seal,
        Worker(seal.store, keys=Keys(), handlers={"email": hang}, lease=timedelta(milliseconds=500)),
    ):
        await asyncio.Event().wait()


asyncio.run(work(sys.argv[1]))
