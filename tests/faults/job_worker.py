"""A worker in a process of its own, which hurts itself: `python job_worker.py URL LEASE_MS FAULT [BOUNDARY] [NUMBER]`.

FAULT is what happens when BOUNDARY is reached for the NUMBERth time: `kill` (SIGKILL), `stop` (SIGSTOP), `none`; or
what the handler does: `block` holds the event loop up until the file `go` is there.

Effects are in the slot of the queue: replicas have them in the order in which they and the ends of jobs were written.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from counterseal.core.settings import Settings
from counterseal.jobs.context import JobContext
from counterseal.jobs.run import Next
from counterseal.jobs.scripts import Batch, Queue, Result
from counterseal.jobs.task import task
from counterseal.jobs.worker import Worker
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.open import open_store

URL, LEASE_MS, FAULT, BOUNDARY, NUMBER = (*sys.argv[1:], *("none", "", "1")[len(sys.argv) - 3 :])
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

reached = itertools.count(1)
stores: list[Store] = []


def boundary(name: str) -> None:
    if name != BOUNDARY or FAULT not in SIGNALS:
        return
    if next(reached) == int(NUMBER):
        os.kill(os.getpid(), SIGNALS[FAULT])


class HurtQueue(Queue):
    """The calls of a queue, with boundaries around them."""

    async def lease(self, **options: Any) -> Batch:
        boundary("before lease")
        batch = await super().lease(**options)
        if batch.jobs:
            boundary("after lease")
        return batch

    async def finish(self, results: Sequence[Result]) -> list[bool]:
        boundary("before finish")
        kept = await super().finish(results)
        boundary("after finish")
        return kept


async def hurt(context: JobContext, call: Next) -> Any:
    boundary("before handler")
    return await call()


@task(name="effect", retry=5, keep=timedelta(hours=1))
async def effect(context: JobContext, number: int) -> int:
    boundary("in handler")
    if FAULT == "block":
        print(f"blocks {context.id}", flush=True)  # noqa: T201 - what the test waits for
        while not Path("go").exists():
            time.sleep(0.01)  # noqa: ASYNC251 - the fault is that the loop stands still
    await stores[0].pipeline(
        [
            ("HSETNX", "{default}effects", context.idempotency_key, number),
            ("INCR", "{default}runs"),
            ("EXPIRE", "{default}effects", 3600),
            ("EXPIRE", "{default}runs", 3600),
        ]
    )
    boundary("after effect")
    return number


@task(name="endless", retry=5)
def endless(context: JobContext) -> None:
    print(f"begun {context.id}", flush=True)  # noqa: T201 - as above
    threading.Event().wait()


async def work() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = Settings.load({"REDIS_URL": URL, "COUNTERSEAL_COMMAND_TIMEOUT": "2s"})
    async with open_store(settings) as store:
        stores.append(store)
        worker = Worker(
            store,
            keys=Keys(),
            tasks=[effect, endless],
            concurrency=20,
            lease=timedelta(milliseconds=int(LEASE_MS)),
            poll=timedelta(milliseconds=300),
            grace=timedelta(milliseconds=500),
            middleware=[hurt] if BOUNDARY == "before handler" else [],
        )
        for source in worker._sources:
            source.queue = HurtQueue(store, Keys(), source.queue.name)
        async with worker:
            print("ready", flush=True)  # noqa: T201 - as above
            await stop.wait()
        print("closed", flush=True)  # noqa: T201 - as above


logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
asyncio.run(work())
