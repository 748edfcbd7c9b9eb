"""Room: how many bytes may be unanswered on a connection, and who waits for some to become free.

It is soft by one command: who finds any room may take more than is left, so a command larger than the limit passes too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from counterseal.core.errors import StoreBusy, StoreUnavailable

_PUNCTUAL_S: Final = 0.005


class Room:
    """Counts what is taken, and lets callers in by the order of asking. Every call reads `taken` and `waiting`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._granted = 0

    @property
    def full(self) -> bool:
        """Whether the next caller has to wait."""
        return self.taken >= self.limit or bool(self.waiting)

    async def wait(self, size: int, seconds: float) -> None:
        """Wait for room, at most so long; time in which the event loop stood still is added. Raises `StoreBusy`.

        The caller takes it in the same turn. What was granted is booked until then, so that no more are let in.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((size, turn))
        try:
            await self._wait_for(turn, seconds)
        except BaseException:
            if not turn.cancel() and turn.exception() is None:
                self._granted -= size
            self.let_in()
            raise
        self._granted -= size

    def free(self, size: int) -> None:
        """What was taken has been answered."""
        self.taken -= size
        if self.waiting:
            self.let_in()

    def let_in(self) -> None:
        """Grant room to those who wait, in their order, and forget those who went away."""
        while self.waiting:
            size, turn = self.waiting[0]
            if turn.done():
                self.waiting.popleft()
            elif self.taken + self._granted < self.limit:
                self.waiting.popleft()
                self._granted += size
                turn.set_result(None)
            else:
                return

    def close(self, reason: str) -> None:
        """Turn everybody away who waits."""
        for _, turn in self.waiting:
            if not turn.done():
                turn.set_exception(StoreUnavailable(reason))
        self.waiting.clear()

    async def _wait_for(self, turn: asyncio.Future[None], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            await asyncio.wait({turn}, timeout=seconds)
            if turn.done():
                turn.result()
                return
            seconds = loop.time() - started - seconds
            if seconds < _PUNCTUAL_S:
                raise StoreBusy(f"more than {self.limit} bytes are under way to Redis; nothing was sent")
