"""Background: a loop that fails is seen and starts again, and none outlives its owner."""

from __future__ import annotations

import asyncio

import pytest

from counterseal.core.background import Background, end, full_jitter, wait_for_event


async def test_a_loop_that_raises_is_logged_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("no")

    background = Background()
    await asyncio.wait_for(background.keep("a loop", loop), 10)
    assert runs == 3
    assert caplog.text.count("a loop stopped by an error and starts again") == 2


async def test_closing_ends_every_loop_and_waits_for_it() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def loop() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    background = Background()
    task = background.keep("a loop", loop)
    await begun.wait()
    await background.close()
    assert ended.is_set()
    assert task.cancelled()
    await background.close()


async def test_what_swallows_a_cancellation_has_ended_when_its_canceller_is_cancelled_too() -> None:
    begun, swallowed = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await begun.wait()
    ending = asyncio.create_task(end([task]))
    await swallowed.wait()
    ending.cancel()
    await asyncio.wait([ending], timeout=10)
    assert ending.cancelled()
    assert task.done()


def test_pauses_grow_to_their_bound_and_are_spread() -> None:
    first = {full_jitter(1, first=1, longest=8) for _ in range(200)}
    late = {full_jitter(1000, first=1, longest=8) for _ in range(200)}
    assert 0 <= min(first) < max(first) <= 1
    assert 4 < max(late) <= 8
    assert min(late) < 2


async def test_waiting_for_an_event_says_whether_it_came() -> None:
    event = asyncio.Event()
    assert await wait_for_event(event, 0.01) is False
    event.set()
    assert await wait_for_event(event, 10) is True
