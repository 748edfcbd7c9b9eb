"""How often a second something is done by tasks that each wait for an answer before they ask again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from typing import Any

_WARM_UP_SECONDS = 0.15

CHUNK = 10


async def rate(
    call: Callable[[str], Awaitable[Any]],
    names: Sequence[str],
    *,
    tasks: int,
    seconds: float,
    chunk: int = CHUNK,
) -> float:
    """Calls per second over `names`, which are dealt out to the tasks in tens, after a short warm-up.

    The clock is read after ten calls and not by a timer, because a call that is answered from memory never lets the
    event loop come round; tasks of which no call waits run one after another. Calls that take milliseconds are dealt
    out one by one, with a `chunk` of 1.
    """
    await _run(call, names, tasks, _WARM_UP_SECONDS, chunk)
    return await _run(call, names, tasks, seconds, chunk)


async def _run(
    call: Callable[[str], Awaitable[Any]], names: Sequence[str], tasks: int, seconds: float, size: int
) -> float:
    chunks = [names[start : start + size] for start in range(0, len(names), size)]
    done = 0
    started = time.perf_counter()
    deadline = started + seconds

    async def work(mine: Sequence[Sequence[str]]) -> None:
        nonlocal done
        for chunk in cycle(mine):
            for name in chunk:
                await call(name)
            done += len(chunk)
            if time.perf_counter() >= deadline:
                return

    await asyncio.gather(*(work(chunks[number::tasks]) for number in range(tasks)))
    return done / (time.perf_counter() - started)
