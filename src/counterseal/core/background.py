"""Background: the loops that run beside a service, which neither die unseen nor outlive it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_AGAIN_S: Final = 0.1

T = TypeVar("T")


def full_jitter(attempt: int, *, first: float = _FIRST_PAUSE_S, longest: float = _LONGEST_PAUSE_S) -> float:
    """Seconds to wait before attempt number `attempt` (from 1): anything up to a bound that doubles each time."""
    return random.uniform(0, min(longest, first * 2 ** min(attempt - 1, 16)))  # noqa: S311 - spreads load, hides nothing


async def wait_for_event(event: asyncio.Event, seconds: float) -> bool:
    """Wait until an event is set, at most for some seconds; whether it is."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, however they do.

    Again and again, because a cancellation may be lost: `asyncio.wait_for` of Python 3.11, which libraries use,
    swallows one that meets the end of what it waits for. A cancellation of the caller counts once they have ended:
    whoever goes away half-way would leave behind what it was to end.
    """
    given = set(tasks)
    running = {task for task in given if not task.done()}
    cancelled: asyncio.CancelledError | None = None
    while running:
        for task in running:
            task.cancel()
        try:
            _, running = await asyncio.wait(running, timeout=_AGAIN_S)
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
            running = {task for task in running if not task.done()}
    for task in given:
        if not task.cancelled():
            task.exception()  # seen: nobody else asks for it
    if cancelled is not None:
        raise cancelled


async def apart(work: Coroutine[Any, Any, T]) -> T:
    """Let a library work in a task of its own, so that whatever it does with a cancellation, the caller's is kept."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await end((task,))
        raise
    return task.result()


class Background:
    """Tasks of one owner. A loop that raises is logged and started again; `close` ends them all."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run `loop()` until it returns, again after each unexpected error. The task ends when it has returned."""
        task = asyncio.create_task(self._kept(name, loop), name=f"counterseal: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel what still runs and wait until it has ended. Safe to call twice."""
        await end(self._tasks)

    @staticmethod
    async def _kept(name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        attempt = 0
        while True:
            try:
                return await loop()
            except Exception:
                attempt += 1
                logger.exception("%s stopped by an error and starts again", name)
            await asyncio.sleep(full_jitter(attempt))
