"""Load: what the cache calls to have the response of a request made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from counterseal.web.capture import Capture, Complete
from counterseal.web.freshness import Refusal
from counterseal.web.stored import StoredResponse


class NotKeptError(Exception):
    """The response of this run says nothing about the next one. What a loader tells its flight; nobody else hears."""


class Load:
    """What loads the response of one request: it has its handler run, at most once, whatever the cache does."""

    def __init__(
        self,
        begin: Callable[[], Capture],
        *,
        judged: Callable[[Complete | Refusal], StoredResponse | Refusal],
        left: set[asyncio.Task[None]],
    ) -> None:
        self.run: Capture | None = None
        self.refusal: Refusal | None = None
        self.failed = False
        """Whether a run failed that this request waited for."""
        self._begin = begin
        self._judged = judged
        self._left = left
        self._gone = False

    async def __call__(self, key: str) -> StoredResponse | None:
        """The response when it may be kept. None is kept in its place when none is: then nobody waits for another."""
        if self.run is None:
            self.run = self._begin()
            if self._gone:
                self._leave(self.run)
        found = self._judged(await self.run.verdict())
        if isinstance(found, StoredResponse):
            return found
        self.refusal = found
        if found.passes:
            raise NotKeptError
        return None

    def taken(self) -> Capture:
        """The run, which from now on is somebody else's to end."""
        run, self.run = self.run, None
        assert run is not None
        return run

    def leave(self) -> None:
        """Say that the request has its answer: what runs now, or is begun later, runs for the cache alone."""
        self._gone = True
        if self.run is not None:
            self._leave(self.run)

    def _leave(self, run: Capture) -> None:
        task = run.leave()
        self._left.add(task)
        task.add_done_callback(self._left.discard)
