"""Shared: one run for all who ask, and another only when the period has passed."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from counterseal.core.shared import Shared


async def test_a_period_has_one_run_and_the_next_another() -> None:
    runs = 0

    async def run() -> int:
        nonlocal runs
        runs += 1
        return runs

    long, short = Shared(run, timedelta(hours=1), name="x"), Shared(run, timedelta(0), name="x")
    assert [await long.get() for _ in range(3)] == [1, 1, 1]
    assert [await short.get() for _ in range(3)] == [2, 3, 4]


async def test_a_run_that_outlasts_its_period_is_still_one() -> None:
    go = asyncio.Event()
    runs = 0

    async def run() -> int:
        nonlocal runs
        runs += 1
        await go.wait()
        return runs

    shared = Shared(run, timedelta(0), name="x")
    asking = [asyncio.create_task(shared.get()) for _ in range(10)]
    asyncio.get_running_loop().call_soon(go.set)
    assert await asyncio.gather(*asking) == [1] * 10


async def test_an_error_reaches_all_who_asked_and_a_closed_run_is_not_shared() -> None:
    outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run() -> int:
        return await outcome

    shared = Shared(run, timedelta(hours=1), name="x")
    asking = [asyncio.create_task(shared.get()) for _ in range(2)]
    asyncio.get_running_loop().call_soon(outcome.set_exception, ValueError("no"))
    for task in asking:
        with pytest.raises(ValueError, match="no"):
            await task
    closing = Shared(asyncio.Event().wait, timedelta(hours=1), name="x")
    first = asyncio.create_task(closing.get())
    second = asyncio.create_task(closing.get())
    await asyncio.wait([first], timeout=0)
    await closing.close()
    await asyncio.wait([first, second])
    assert first.cancelled()
    await closing.close()
