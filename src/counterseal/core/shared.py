"""Shared: one run of something for all who ask for it at about the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Generic, TypeVar

from counterseal.core.background import end

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Runs something at most once in a period; those who ask in between, or meanwhile, get the same outcome.

    Whoever asks first starts the run, in a task of its own; `close` ends one that is under way.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, _T]], period: timedelta, *, name: str) -> None:
        self._run = run
        self._name = f"counterseal: {name}"
        self._period_s = period / timedelta(seconds=1)
        self._task: asyncio.Task[_T] | None = None
        self._began = 0.0

    async def get(self) -> _T:
        """The outcome, at most a period old. Raises what the run raised."""
        now = time.monotonic()
        task = self._task
        if task is None or (task.done() and (task.cancelled() or now - self._began >= self._period_s)):
            self._began = now
            task = self._task = asyncio.create_task(self._run(), name=self._name)
        # One asker who goes away takes the answer from nobody.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel a run that is under way and wait until it has ended. Safe to call twice."""
        if self._task is not None:
            await end((self._task,))
