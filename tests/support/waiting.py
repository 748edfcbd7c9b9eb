"""Waiting: for a condition, with a deadline. The only place of the tests that lets time pass."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

Seen = TypeVar("Seen")

_STEP = 0.005


async def eventually(condition: Callable[[], Seen | Awaitable[Seen]], within: float = 20.0) -> Seen:
    """Ask a sync or async condition until its answer is true, and return that answer.

    A condition that fails an assertion is not true yet. After `within` seconds it raises `AssertionError` that tells
    what was seen last; a condition that does not answer by then is cancelled.
    """
    deadline = time.monotonic() + within
    last = "no answer"
    while True:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), _STEP)):
                found = condition()
                seen = cast("Seen", await found if inspect.isawaitable(found) else found)
            if seen:
                return seen
            last = repr(seen)
        except AssertionError as fault:
            last = f"AssertionError: {fault}"
        except TimeoutError:
            if time.monotonic() < deadline:
                raise
        if time.monotonic() >= deadline:
            raise AssertionError(_failure(condition, within, last))
        await asyncio.sleep(_STEP)


def wait_until(condition: Callable[[], Seen], within: float = 20.0, step: float = _STEP) -> Seen:
    """`eventually` for code without an event loop: blocks the thread."""
    deadline = time.monotonic() + within
    while True:
        try:
            seen = condition()
            if seen:
                return seen
            last = repr(seen)
        except AssertionError as fault:
            last = f"AssertionError: {fault}"
        if time.monotonic() >= deadline:
            raise AssertionError(_failure(condition, within, last))
        time.sleep(step)


def _failure(condition: Callable[[], object], within: float, last: str) -> str:
    name = getattr(condition, "__qualname__", repr(condition)).removeprefix("<locals>.")
    return f"{name} was not true within {within:g} s; it last saw {last}"
