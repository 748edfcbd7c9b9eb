"""Load: tasks that use a store in every way while a test does harm to its servers, and check every reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from counterseal.core.errors import StoreUnavailable
from counterseal.store.base import Store
from counterseal.store.wire import raised
from support.waiting import eventually

TTL = ("PX", 60_000)


class Load:
    """Tasks that write and check values of their own, and count what was done and what failed.

    Their keys are `load 0`, `load 1` and so on: with 24 of them every node of a Cluster has some.
    """

    def __init__(self, store: Store, tasks: int = 24) -> None:
        self.done = 0
        self.failed = 0
        self._store = store
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(tasks)]

    async def finish(self) -> None:
        """Stop, and raise what a task has met besides `StoreUnavailable`."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def goes_on(self) -> None:
        """Return when a good deal more is done, or a task has ended by a fault, which `finish` raises."""
        reached = self.done
        await eventually(
            lambda: self.done > reached + 200 or any(task.done() for task in self._tasks), within=10
        )

    async def _work(self, number: int) -> None:
        key, turn = f"load {number}", 0
        while not self._stop.is_set():
            turn += 1
            value = f"{number}:{turn}"
            try:
                await self._use(key, value)
                self.done += 1
            except StoreUnavailable:
                self.failed += 1
                await asyncio.sleep(0)

    async def _use(self, key: str, value: str) -> None:
        store, sent = self._store, value.encode()
        assert await store.command("SET", key, value, *TTL) == b"OK"
        replies = await store.pipeline([("GET", key), ("ECHO", value)])
        assert [raised(reply) for reply in replies] == [sent, sent]
        assert await store.transaction([("GET", key), ("STRLEN", key)]) == [sent, len(sent)]
        assert await store.command("GET", key) == sent


@asynccontextmanager
async def under_load(store: Store) -> AsyncIterator[Load]:
    """A load that is well under way. It ends with the block, and raises what its tasks have met."""
    load = Load(store)
    try:
        await load.goes_on()
        yield load
    finally:
        await load.finish()
