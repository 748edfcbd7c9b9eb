"""A breaker opens after a few failures close together, and closes when a probe succeeds."""

import asyncio
from datetime import timedelta

import pytest

from counterseal.core.errors import CommandError, StoreTimeout
from counterseal.store.breaker import Breaker, BreakerPolicy


class Machine:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ms = 0

    def wall_ms(self) -> int:
        return self.ms

    def steady_ns(self) -> int:
        return (self.ms) * 1_000_000


def test_three_failures_within_ten_seconds_open_it():
    machine = Machine()
    breaker = Breaker(clock=machine)
    for _ in range(2):
        breaker.failed()
        machine.ms += 4_999
    assert not breaker.refusing
    breaker.failed()
    assert breaker.refusing


def test_failures_far_apart_leave_it_closed():
    machine = Machine()
    breaker = Breaker(clock=machine)
    for _ in range(50):
        breaker.failed()
        machine.ms += 5_001
    assert not breaker.refusing


def test_waits_double_from_two_to_thirty_seconds_and_start_again_after_closing():
    breaker = Breaker(draw=lambda: 0.5)
    assert [breaker.next_wait().total_seconds() for _ in range(6)] == [2, 4, 8, 16, 30, 30]
    breaker.close()
    assert breaker.next_wait().total_seconds() == 2


@pytest.mark.parametrize(("draw", "seconds"), [(0.0, 1.6), (1.0, 2.4)])
def test_a_wait_is_jittered_by_a_fifth(draw: float, seconds: float):
    assert Breaker(draw=lambda: draw).next_wait().total_seconds() == pytest.approx(seconds)


async def test_one_probe_runs_at_a_time_until_one_succeeds():
    changes: list[bool] = []
    quick = BreakerPolicy(first_wait=timedelta(milliseconds=1), longest_wait=timedelta(milliseconds=2))
    breaker = Breaker(quick, on_change=lambda: changes.append(breaker.refusing))
    under_way = 0
    outcomes = [False, False, True]
    finished = asyncio.Event()

    async def probe() -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0)
        under_way -= 1
        if not outcomes.pop(0):
            raise StoreTimeout("still silent")
        finished.set()

    watch = asyncio.create_task(breaker.watch(probe))
    for _ in range(3):
        breaker.failed()
    assert breaker.refusing
    async with asyncio.timeout(5):
        await finished.wait()
        while breaker.refusing:
            await asyncio.sleep(0)
    assert (changes, outcomes, breaker.opened) == ([True, False], [], 1)
    watch.cancel()


async def test_a_breaker_that_was_closed_from_outside_begins_anew():
    policy = BreakerPolicy(first_wait=timedelta(seconds=60))
    breaker = Breaker(policy)
    probes = 0
    probed = asyncio.Event()

    async def probe() -> None:
        nonlocal probes
        probes += 1
        probed.set()

    watch = asyncio.create_task(breaker.watch(probe))
    for _ in range(3):
        breaker.failed()
    await asyncio.sleep(0)
    breaker.close()  # a new connection answers
    breaker.policy = BreakerPolicy(first_wait=timedelta(milliseconds=1))
    breaker._wait = breaker.policy.first_wait
    await asyncio.sleep(0)
    for _ in range(3):
        breaker.failed()
    async with asyncio.timeout(5):
        await probed.wait()
    assert probes == 1
    watch.cancel()


async def test_a_probe_that_is_refused_was_answered():
    breaker = Breaker(BreakerPolicy(first_wait=timedelta(milliseconds=1)))

    async def probe() -> None:
        raise CommandError("NOPERM this user may not PING")

    watch = asyncio.create_task(breaker.watch(probe))
    for _ in range(3):
        breaker.failed()
    async with asyncio.timeout(5):
        while breaker.refusing:
            await asyncio.sleep(0)
    watch.cancel()
