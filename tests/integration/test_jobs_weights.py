"""A worker asks its queues by their weights."""

from __future__ import annotations

import asyncio
import random

import pytest

from counterseal.jobs import slots
from counterseal.jobs.context import JobContext
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import task
from counterseal.jobs.worker import Worker
from counterseal.store.keys import Keys
from support.servers import Server
from support.stores import store_on

COUNTED = 400


async def test_of_two_queues_that_are_never_empty_each_gets_its_share(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_AHEAD_S", 0.0)  # one job a turn: every lease is a choice
    random.seed(20)
    ran: list[str] = []
    enough = asyncio.Event()

    @task(name="note")
    async def note(context: JobContext) -> None:
        ran.append(context.queue)
        if len(ran) == COUNTED:
            enough.set()

    async with store_on(valkey) as store:
        jobs = Jobs(store, keys=Keys(), tasks=[note])
        for queue in ("heavy", "light"):
            await jobs.enqueue_many([note.using(queue=queue).call() for _ in range(COUNTED + 50)])
        weights = {"heavy": 3, "light": 1}
        async with Worker(store, keys=Keys(), tasks=[note], queues=weights, concurrency=1):
            await asyncio.wait_for(enough.wait(), 30)
    # Three of four by chance: 0.1 is more than four standard deviations.
    assert ran[:COUNTED].count("heavy") / COUNTED == pytest.approx(0.75, abs=0.1)
