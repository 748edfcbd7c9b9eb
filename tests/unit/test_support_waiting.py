"""Waiting ends when the condition is true, and tells what it saw when it never was."""

from __future__ import annotations

import asyncio

import pytest

from support.waiting import eventually, wait_until


async def test_eventually_returns_the_first_true_answer() -> None:
    answers = iter([0, "", None, 7, 8])
    assert await eventually(lambda: next(answers)) == 7


async def test_eventually_awaits_an_async_condition() -> None:
    seen = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, seen.set)

    async def condition() -> bool:
        return seen.is_set()

    assert await eventually(condition)


async def test_eventually_tells_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"it last saw \[\]"):
        await eventually(list, within=0.02)


async def test_a_failed_assertion_is_not_true_yet() -> None:
    tries = iter(range(10))

    def condition() -> bool:
        assert next(tries) == 3, "too early"
        return True

    assert await eventually(condition)


async def test_the_last_failed_assertion_is_told() -> None:
    def condition() -> bool:
        raise AssertionError("never so")

    with pytest.raises(AssertionError, match="never so"):
        await eventually(condition, within=0.02)


async def test_an_async_condition_that_hangs_is_cut_off() -> None:
    with pytest.raises(AssertionError, match="no answer"):
        await eventually(lambda: asyncio.Event().wait(), within=0.02)


async def test_another_error_of_a_condition_ends_the_wait() -> None:
    def condition() -> bool:
        raise LookupError("broken")

    with pytest.raises(LookupError):
        await eventually(condition)


async def test_a_timeout_of_the_condition_itself_is_not_swallowed() -> None:
    async def condition() -> bool:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await eventually(condition)


def test_wait_until_does_the_same_without_a_loop() -> None:
    answers = iter([0, 5])
    assert wait_until(lambda: next(answers)) == 5
    with pytest.raises(AssertionError, match="it last saw 0"):
        wait_until(lambda: 0, within=0.02)
