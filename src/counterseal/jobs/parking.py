"""Parking: puts jobs back that were parked by a worker that did not know their task, or not its arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from counterseal.core.background import Background
from counterseal.core.errors import StoreError
from counterseal.jobs.slots import Source
from counterseal.jobs.task import Task

_LONGEST_PAUSE_S: Final = 60.0
_AT_ONCE: Final = 100


class Parking:
    """The parked jobs of one queue, as a worker sees them."""

    def __init__(self, source: Source, *, tasks: Mapping[str, Task[Any, Any]], pause_s: float) -> None:
        self._source = source
        self._tasks = tasks
        self._first_pause_s = pause_s
        self._pause_s = pause_s
        self._seen = -1
        self._again_at = 0.0
        self._trying: asyncio.Task[None] | None = None

    def look(self, parked: int, background: Background) -> None:
        """Try to put parked jobs back: at once when their number is another one, else after longer and longer pauses.

        The number alone tells nothing: what was put back may have been parked again by a worker of another release.
        """
        now = asyncio.get_running_loop().time()
        if self._trying is not None and not self._trying.done():
            return
        if parked != self._seen:
            self._pause_s = self._first_pause_s
        elif now < self._again_at:
            return
        self._seen = parked
        self._again_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._trying = background.keep("unpark jobs", self._unpark)

    async def _unpark(self) -> None:
        for name, known in self._tasks.items():
            try:
                back = _AT_ONCE
                while back == _AT_ONCE:
                    back = await self._source.queue.unpark(name, known.schema, count=_AT_ONCE)
                    if back:
                        self._pause_s = self._first_pause_s
            except StoreError:
                return
