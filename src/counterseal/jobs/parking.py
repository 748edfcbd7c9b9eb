"""Parking: puts jobs back that were parked by a worker that did not know their task, or not its arguments.

A worker of another release may park them again. So one that can run them puts back no more than it has room for, and
leases in the same round trip. Whether something was parked since it last looked a lease tells, by a moment: that at
which the last one was parked that waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final

from counterseal.core.errors import StoreError
from counterseal.jobs.scripts import Batch, Queue
from counterseal.jobs.task import Task

_AGAIN_S: Final = 1.0
"""Two releases hand jobs to and fro no more often than this."""
_SURE_MS: Final = 1_000
"""For so long another one may be parked that has the same moment."""
_AT_ONCE: Final = 100


class Parking:
    """The parked jobs of one queue, as a worker sees them."""

    def __init__(self, tasks: Mapping[str, Task[Any, Any]]) -> None:
        self.due_at = math.inf
        """When some are to be put back, by the loop's clock."""
        self._known = {name: known.schema for name, known in tasks.items()}
        self._parked_ms = 0
        self._seen_ms = 0
        """Of those that were parked until then none is for this worker."""
        self._again_at = 0.0
        self._back: frozenset[str] = frozenset()
        """As many as there was room for. When this worker gets them there may be more."""

    def note(self, batch: Batch) -> float:
        """Take note of what a lease has told. Seconds until the next one is to come."""
        if self._back:
            if self._back <= {leased.part for leased in batch.jobs}:
                self._again_at = 0.0
            self._back = frozenset()
        self._parked_ms = parked_ms = batch.parked_ms
        if parked_ms in (0, self._seen_ms):
            self.due_at = math.inf
            return math.inf
        now = asyncio.get_running_loop().time()
        self.due_at = max(now, self._again_at)
        return self.due_at - now

    async def put_back(self, queue: Queue, room: int) -> None:
        """Put back what this worker can run and has room for. One round trip."""
        asked, parked_ms = min(room, _AT_ONCE), self._parked_ms
        self._again_at = asyncio.get_running_loop().time() + _AGAIN_S
        try:
            back = await queue.unpark(self._known, count=asked)
        except StoreError:
            return
        if len(back) == asked:
            self._back = frozenset(back)
        elif not back and queue.store.now_ms() - parked_ms > _SURE_MS:
            self._seen_ms = parked_ms
