"""Every algorithm on a real server against a small model, step by step: decisions, refunds, peeks, lifetimes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.limiter import Backing, Limiter
from counterseal.store.base import Store
from support.ratelimits import KEYS, Expected, Models, StillClock, backing_on, limiter_on
from support.servers import Server
from support.stores import store_on

START = 1_800_000_000_000
ALGORITHMS = pytest.mark.parametrize("algorithm", list(Algorithm), ids=str)
PACE = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
numbers = count()

MS = timedelta(milliseconds=1)
PERIODS = (7, 50, 100, 1000, 60_000, 86_400_000)


@st.composite
def limits_of(draw: st.DrawFn, algorithm: Algorithm) -> tuple[Limit, ...]:
    periods = draw(st.lists(st.sampled_from(PERIODS), min_size=1, max_size=3, unique=True))
    burst = (
        st.none() | st.integers(1, 12) if algorithm in {Algorithm.TOKEN_BUCKET, Algorithm.GCRA} else st.none()
    )
    return tuple(
        Limit(draw(st.integers(1, 4) | st.integers(1, 9)), per * MS, algorithm, draw(burst))
        for per in periods
    )


costs = st.integers(1, 2) | st.integers(1, 4)
pauses = (
    st.integers(0, 6)
    | st.integers(0, 60)
    | st.sampled_from((93, 99, 100, 101, 500, 999, 1000, 1001, 1999, 2000, 30_000, 60_000, 120_000))
)
actions = st.sampled_from(("limit", "limit", "limit", "limit", "refund", "refund", "peek", "reset"))
changes = st.sampled_from(("limit", "limit", "limit", "change", "change", "refund", "peek", "reset"))
counts = st.integers(1, 4) | st.integers(1, 40)
steps = st.lists(st.tuples(actions, costs, st.just(0) | st.integers(0, 6) | pauses), min_size=2, max_size=25)


def told(decision: Decision) -> Expected:
    """A decision in the words of the model."""
    retry_ms = None if decision.retry_after is None else decision.retry_after // MS
    reset_ms = round(decision.reset.timestamp() * 1000)
    assert decision.reason is (Reason.ALLOWED if decision.success else Reason.LIMITED)
    assert not decision.degraded
    return Expected(decision.success, decision.limit, decision.remaining, reset_ms, retry_ms)


class Desk:
    """A store on a loop of its own, with a clock that stands still."""

    def __init__(self, runner: asyncio.Runner, store: Store, backing: Backing) -> None:
        self.runner = runner
        self.store = store
        self.backing = backing
        self.clock = StillClock(START)
        store.now_ms = self.clock.now_ms

    def run(self, work: Coroutine[None, None, None]) -> None:
        self.runner.run(work)


@pytest.fixture
def desk(valkey: Server) -> Iterator[Desk]:
    stack = AsyncExitStack()

    async def begin() -> Desk:
        store = await stack.enter_async_context(store_on(valkey))
        return Desk(runner, store, await stack.enter_async_context(backing_on(store)))

    with asyncio.Runner() as runner:
        yield runner.run(begin())
        runner.run(stack.aclose())


@ALGORITHMS
@PACE
@given(data=st.data())
def test_a_limiter_decides_as_the_model_of_its_algorithm_does(
    desk: Desk, algorithm: Algorithm, data: st.DataObject
) -> None:
    limits = data.draw(limits_of(algorithm))
    walk = data.draw(steps)
    most = min(limit.capacity for limit in limits)

    store, clock, backing = desk.store, desk.clock, desk.backing

    async def work() -> None:
        limiter, model = limiter_on(backing, "tried", *limits), Models(limits)
        who = f"u{next(numbers)}"
        for action, cost, pause_ms in walk:
            clock.travel(pause_ms * MS)
            await take(action, limiter, model, who, cost=min(cost, most), at_ms=clock.at_ms)
            await check_lifetimes(store, model, who, clock.at_ms)

    desk.run(work())


@ALGORITHMS
@PACE
@given(data=st.data())
def test_what_was_used_before_limits_are_changed_stays_used_and_outlives_its_lifetime(
    desk: Desk, algorithm: Algorithm, data: st.DataObject
) -> None:
    limits = data.draw(limits_of(algorithm))
    walk = data.draw(
        st.lists(st.tuples(changes, costs | st.integers(1, 40), pauses), min_size=2, max_size=25)
    )

    store, clock, backing = desk.store, desk.clock, desk.backing

    async def work() -> None:
        limiter, model, known = limiter_on(backing, "tried", *limits), Models(limits), True
        who = f"u{next(numbers)}"
        for action, cost, pause_ms in walk:
            clock.travel(pause_ms * MS)
            if action == "change":
                changed = [
                    Limit(data.draw(counts), limit.per, algorithm, limit.burst and data.draw(counts))
                    for limit in limits
                ]
                limiter = limiter_on(backing, "tried", *changed)
                model.change(changed)
                known = False
                continue
            most = min(limit.capacity for limit in model.limits)
            await take(action, limiter, model, who, cost=min(cost, most), at_ms=clock.at_ms)
            # Nothing is written when limits change: the next call that charges, or is refused, sees to it.
            known = known or action in {"limit", "reset"}
            if known:
                await check_lifetimes(store, model, who, clock.at_ms)

    desk.run(work())


@pytest.mark.parametrize("algorithm", [Algorithm.TOKEN_BUCKET, Algorithm.GCRA], ids=str)
def test_a_debt_that_takes_longer_under_a_lower_count_is_not_forgotten_sooner(
    desk: Desk, algorithm: Algorithm
) -> None:
    hour = 3_600_000
    before, after = Limit(1000, hour * MS, algorithm), Limit(10, hour * MS, algorithm, burst=1000)

    async def work() -> None:
        who = f"u{next(numbers)}"
        key = KEYS.rate_limit("tried", algorithm.value, hour, who)
        await limiter_on(desk.backing, "tried", before).limit(who, 900)
        limiter = limiter_on(desk.backing, "tried", after)
        refused = await limiter.limit(who, 200)
        assert refused.retry_after == timedelta(hours=10)
        left_ms = await desk.store.command("PTTL", key)
        assert isinstance(left_ms, int)
        assert left_ms >= 90 * hour
        await desk.store.command("DEL", key)
        assert (await limiter.peek(who, 200)).success
        assert await desk.store.command("PTTL", key) == -2

    desk.run(work())


@ALGORITHMS
@pytest.mark.parametrize(
    "periods",
    [(100,), (1000,), (50, 1000), (7, 100, 60_000)],
    ids=lambda periods: "+".join(map(str, periods)),
)
def test_a_long_walk_goes_as_the_model_says(
    desk: Desk, algorithm: Algorithm, periods: tuple[int, ...]
) -> None:
    dice = random.Random(f"{algorithm} {periods}")
    limits = tuple(Limit(3 + 2 * place, per * MS, algorithm) for place, per in enumerate(periods))
    clock = desk.clock

    async def work() -> None:
        limiter, model, who = limiter_on(desk.backing, "tried", *limits), Models(limits), f"u{next(numbers)}"
        for _ in range(250):
            clock.travel(dice.choice((0, 0, 1, 5, periods[0] // 3, periods[0], dice.choice(periods))) * MS)
            action = dice.choice(("limit", "limit", "limit", "limit", "refund", "peek"))
            await take(action, limiter, model, who, cost=dice.choice((1, 1, 2, 3)), at_ms=clock.at_ms)

    desk.run(work())


async def take(action: str, limiter: Limiter, model: Models, who: str, *, cost: int, at_ms: int) -> None:
    """Do the same to the limiter and to the model, and compare what they say."""
    match action:
        case "limit":
            assert told(await limiter.limit(who, cost)) == model.limit(at_ms, cost)
        case "peek":
            assert told(await limiter.peek(who, cost)) == model.limit(at_ms, cost, charge=False)
        case "refund":
            assert await limiter.refund(who, cost)
            model.refund(at_ms, cost)
        case _:
            await limiter.reset(who)
            model.clear()


async def check_lifetimes(store: Store, model: Models, who: str, now_ms: int) -> None:
    """No key is immortal, and none ends before it has nothing more to say."""
    for one in model.models:
        key = KEYS.rate_limit("tried", one.limit.algorithm.value, one.limit.per_ms, who)
        left_ms = await store.command("PTTL", key)
        whole = one.used(one.now(now_ms)) == 0
        if left_ms == -2:
            assert whole
            continue
        assert isinstance(left_ms, int)
        assert left_ms > 0
        assert one.used(one.now(now_ms) + left_ms) == 0


@ALGORITHMS
@PACE
@given(data=st.data())
def test_a_refused_call_is_allowed_when_its_time_has_come_and_not_a_millisecond_before(
    desk: Desk, algorithm: Algorithm, data: st.DataObject
) -> None:
    limits = data.draw(limits_of(algorithm))
    most = min(limit.capacity for limit in limits)
    walk = data.draw(st.lists(st.tuples(costs, st.integers(0, 6) | pauses), min_size=3, max_size=30))

    clock, backing = desk.clock, desk.backing

    async def work() -> None:
        limiter = limiter_on(backing, "tried", *limits)
        who = f"u{next(numbers)}"
        for cost, pause_ms in walk:
            clock.travel(pause_ms * MS)
            decision = await limiter.limit(who, min(cost, most))
            if decision.retry_after is None:
                continue
            clock.travel(decision.retry_after - MS)
            assert not (await limiter.limit(who, min(cost, most))).success
            clock.travel(MS)
            assert (await limiter.limit(who, min(cost, most))).success

    desk.run(work())


@ALGORITHMS
@PACE
@given(data=st.data())
def test_clients_whose_clocks_differ_are_judged_by_one_time(
    desk: Desk, algorithm: Algorithm, data: st.DataObject
) -> None:
    skews = data.draw(st.lists(st.integers(-200, 200), min_size=8, max_size=8))
    limits = (Limit(data.draw(st.integers(1, 9)), 1000 * MS, algorithm),)
    walk = data.draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 150)), min_size=1, max_size=60))

    clock, backing = desk.clock, desk.backing

    async def work() -> None:
        clients = [skewed(limiter_on(backing, "tried", *limits), clock, skew) for skew in skews]
        model, who = Models(limits), f"u{next(numbers)}"
        allowed: list[int] = []
        for client, pause_ms in walk:
            clock.travel(pause_ms * MS)
            at = clock.at_ms + skews[client]
            decision = await clients[client].limit(who)
            assert told(decision) == model.limit(at, 1)
            if decision.success:
                allowed.append(clock.at_ms)
        if algorithm is Algorithm.SLIDING_LOG:
            # What one clock would allow in a second, they allow in a second less the widest difference.
            most = limits[0].count
            assert all(later - first >= 600 for first, later in zip(allowed, allowed[most:], strict=False))

    desk.run(work())


def skewed(limiter: Limiter, clock: StillClock, skew_ms: int) -> Limiter:
    """The limiter of a process whose reading of the server's clock is off."""
    limiter._now_ms = lambda: clock.at_ms + skew_ms
    return limiter


@PACE
@given(steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), max_size=60))
@example(steps=[(1, 1)] * 40)
def test_a_long_log_is_shortened_without_losing_what_still_counts(
    desk: Desk, steps: list[tuple[int, int]]
) -> None:
    limits = (Limit(40, 300 * MS, Algorithm.SLIDING_LOG),)

    store, clock, backing = desk.store, desk.clock, desk.backing

    async def work() -> None:
        limiter, model, who = limiter_on(backing, "tried", *limits), Models(limits), f"u{next(numbers)}"
        for pause_ms, cost in steps:
            clock.travel(pause_ms * MS)
            assert told(await limiter.limit(who, cost)) == model.limit(clock.at_ms, cost)
        entries = await store.command("LLEN", KEYS.rate_limit("tried", "sliding_log", 300, who))
        assert isinstance(entries, int)
        assert entries <= 40

    desk.run(work())


@ALGORITHMS
def test_the_largest_numbers_are_exact(desk: Desk, algorithm: Algorithm) -> None:
    period_ms = 366 * 86_400_000
    most = 2**52 // period_ms
    limits = (Limit(most, period_ms * MS, algorithm),)

    clock, backing = desk.clock, desk.backing

    async def work() -> None:
        limiter, model, who = limiter_on(backing, "tried", *limits), Models(limits), f"u{next(numbers)}"
        for cost, pause_ms in [(most - 1, 1), (1, 1), (1, 12_345), (most, 0), (7, 1)]:
            clock.travel(pause_ms * MS)
            assert told(await limiter.limit(who, cost)) == model.limit(clock.at_ms, cost)

    desk.run(work())


@pytest.mark.parametrize("algorithm", [Algorithm.TOKEN_BUCKET, Algorithm.GCRA], ids=str)
def test_what_takes_longer_to_come_back_than_a_calendar_has_is_told_by_its_last_second(
    desk: Desk, algorithm: Algorithm
) -> None:
    burst = 2**52 // 86_400_000
    limiter = limiter_on(desk.backing, "tried", Limit(1, 86_400_000 * MS, algorithm, burst))

    async def work() -> None:
        who = f"u{next(numbers)}"
        assert (await limiter.limit(who, burst)).reset.year == 9999
        refused = await limiter.limit(who, burst)
        assert refused.retry_after == burst * timedelta(days=1)
        left_ms = await desk.store.command("PTTL", KEYS.rate_limit("tried", algorithm.value, 86_400_000, who))
        assert isinstance(left_ms, int)
        assert left_ms > burst * 86_400_000

    desk.run(work())
