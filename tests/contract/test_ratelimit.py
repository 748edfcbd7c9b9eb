"""Rate limits over every connection: decisions, what is charged together, lists, live changes, blocks, counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from counterseal.core.errors import ConfigurationError, UnknownName
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.limiter import Limiter
from counterseal.ratelimit.policy import Policy
from counterseal.ratelimit.service import LimiterCounts, RateLimits
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.backends import Backend
from support.stores import travel
from support.waiting import eventually

KEYS = Keys()
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
POLICIES = (
    *(Policy(algorithm.value, (Limit(5, MINUTE, algorithm),)) for algorithm in Algorithm),
    Policy("uploads", (Limit(3, MINUTE), Limit(4, DAY))),
    Policy("planned", (Limit(2, MINUTE),), plans={"gold": (Limit(4, MINUTE),)}),
)
ALGORITHMS = pytest.mark.parametrize("algorithm", list(Algorithm), ids=str)


@pytest.fixture
async def limits(store: Store) -> AsyncIterator[RateLimits]:
    made = RateLimits(store, keys=KEYS, policies=POLICIES)
    yield made
    await made.close()


@pytest.fixture
async def others(backend: Backend) -> AsyncIterator[RateLimits]:
    """The limits of another process."""
    async with backend.store() as store:
        made = RateLimits(store, keys=KEYS, policies=POLICIES)
        yield made
        await made.close()


async def blocked(limiter: Limiter, identifier: str, cost: int = 1) -> Decision:
    """The refusal that this process answers by itself, once it listens to what lifts it."""

    async def refused_here() -> Decision | None:
        decision = await limiter.limit(identifier, cost)
        return decision if decision.reason is Reason.BLOCKED else None

    return await eventually(refused_here)  # type: ignore[return-value]


@ALGORITHMS
async def test_as_many_as_the_limit_says_are_allowed_among_many_at_once(
    limits: RateLimits, store: Store, algorithm: Algorithm
) -> None:
    limiter = limits.limiter(algorithm.value)
    await start_of_a_window(store)
    decisions = await asyncio.gather(*(limiter.limit("ada") for _ in range(20)))
    assert sum(decision.success for decision in decisions) == 5
    assert sorted(decision.remaining for decision in decisions if decision.success) == [0, 1, 2, 3, 4]
    refused = next(decision for decision in decisions if not decision.success)
    assert (refused.limit, refused.remaining, refused.reason) == (5, 0, Reason.LIMITED)
    assert refused.retry_after is not None
    assert timedelta(0) < refused.retry_after < 2 * MINUTE
    assert refused.reset.tzinfo is UTC
    travel(store, refused.retry_after)
    assert (await limiter.limit("ada")).success
    assert (await limiter.limit("bob")).remaining == 4


async def start_of_a_window(store: Store) -> None:
    """Move to where a minute has just begun, so that none ends in the middle of a test."""
    travel(store, timedelta(milliseconds=60_000 - store.now_ms() % 60_000))


async def test_limits_of_a_policy_are_charged_all_or_none_in_one_round_trip(
    limits: RateLimits, store: Store
) -> None:
    uploads = limits.limiter("uploads")
    await start_of_a_window(store)
    costs: list[int] = []
    for who in ("eve", "bob", "ada"):
        assert (await uploads.limit(who)).remaining == 2
        before = store.counts.commands
        assert (await uploads.limit(who, 2)).success
        costs.append(store.counts.commands - before)
    assert min(costs) == 1  # what runs beside it only ever adds
    refused = await uploads.limit("ada", 1)
    assert (refused.success, refused.limit) == (False, 3)
    travel(store, 2 * MINUTE)
    assert (await uploads.limit("ada")).limit == 4  # the refused call was charged to neither
    refused = await uploads.limit("ada")
    assert (refused.success, refused.limit) == (False, 4)
    assert refused.retry_after is not None
    assert refused.retry_after > timedelta(hours=1)


async def test_a_cost_that_can_never_be_allowed_is_refused_without_an_end_and_blocks_nobody(
    limits: RateLimits,
) -> None:
    decision = await limits.pdf_generation.limit("ada", 6)
    assert (decision.success, decision.limit, decision.remaining) == (False, 5, 5)
    assert (decision.retry_after, decision.reason) == (None, Reason.LIMITED)
    assert (await limits.pdf_generation.limit("ada", 5)).success


async def test_an_identifier_of_any_text_has_a_count_of_its_own(limits: RateLimits) -> None:
    identifiers = ["a:b", "}{", "{}", "é😀", " ", "x" * 1024, "x" * 1023, "*", "%7B", "a\x00b\r\n", "A:B"]
    for _ in range(2):
        remaining = {who: (await limits.api.limit(who)).remaining for who in identifiers}
    assert remaining == dict.fromkeys(identifiers, 98)


@ALGORITHMS
async def test_peek_charges_nothing_refund_gives_back_and_reset_forgets(
    limits: RateLimits, store: Store, algorithm: Algorithm
) -> None:
    limiter = limits.limiter(algorithm.value)
    await start_of_a_window(store)
    await limiter.limit("ada", 5)
    assert (await limiter.peek("ada")).success is False
    assert (await limiter.peek("ada")).remaining == 0
    assert await limiter.refund("ada", 2) is True
    assert (await limiter.peek("ada")).remaining == 2
    await limiter.refund("ada", 100)
    assert (await limiter.peek("ada")).remaining == 5
    await limiter.limit("ada", 5)
    await limiter.reset("ada")
    whole = await limiter.peek("ada")
    assert (whole.success, whole.remaining) == (True, 5)
    assert abs(whole.reset - datetime.fromtimestamp(store.now_ms() / 1000, UTC)) < timedelta(seconds=5)


@ALGORITHMS
async def test_a_refused_identifier_is_answered_without_redis_until_it_may_be_allowed(
    limits: RateLimits, store: Store, algorithm: Algorithm
) -> None:
    limiter = limits.limiter(algorithm.value)
    await start_of_a_window(store)
    await limiter.limit("ada", 5)
    refusal = await blocked(limiter, "ada", 3)
    before = store.counts.commands
    again = await limiter.limit("ada", 3)
    assert store.counts.commands == before
    assert (again.reason, again.limit, again.reset) == (Reason.BLOCKED, 5, refusal.reset)
    assert again.retry_after is not None
    travel(store, again.retry_after)
    assert (await limiter.limit("ada", 3)).success


async def test_a_refusal_of_a_high_cost_does_not_block_a_low_one(limits: RateLimits) -> None:
    await limits.pdf_generation.limit("ada", 4)
    assert (await blocked(limits.pdf_generation, "ada", 2)).remaining == 1
    assert (await limits.pdf_generation.limit("ada", 1)).success


@pytest.mark.parametrize("lift", ["refund", "reset", "set_limits", "unset_limits", "allow"])
async def test_what_another_process_gives_back_or_changes_lifts_a_block_at_once(
    limits: RateLimits, others: RateLimits, lift: str
) -> None:
    if lift == "unset_limits":
        await limits.set_limits("pdf_generation", Limit(1, MINUTE))
    await limits.pdf_generation.limit("ada", limits.pdf_generation.limits()[0].count)
    await blocked(limits.pdf_generation, "ada")
    match lift:
        case "refund":
            await others.pdf_generation.refund("ada")
        case "reset":
            await others.pdf_generation.reset("ada")
        case "set_limits":
            await others.set_limits("pdf_generation", Limit(6, MINUTE))
        case "unset_limits":
            await others.unset_limits("pdf_generation")
        case _:
            await others.allow("ada")

    async def allowed() -> bool:
        return (await limits.pdf_generation.limit("ada")).success

    await eventually(allowed, within=4)  # well before the period after which a lost message is made up for


async def test_limits_are_changed_for_everybody_for_a_plan_and_for_one_identifier(limits: RateLimits) -> None:
    planned = limits.limiter("planned")

    async def limit_of(identifier: str, plan: str | None = None) -> int:
        return (await planned.peek(identifier, plan=plan)).limit

    assert [await limit_of("ada"), await limit_of("ada", "gold"), await limit_of("ada", "unheard of")] == [
        2,
        4,
        2,
    ]
    await limits.set_limits("planned", Limit(7, MINUTE))
    await limits.set_limits("planned", [Limit(8, MINUTE), Limit(80, DAY)], plan="gold")
    await limits.set_limits("planned", Limit(9, MINUTE, Algorithm.GCRA, burst=3), identifier="bob")
    assert [await limit_of("ada"), await limit_of("ada", "gold")] == [7, 8]
    assert [await limit_of("bob"), await limit_of("bob", "gold")] == [3, 3]
    await limits.set_limits("planned", Limit(5, MINUTE), plan="new")
    assert await limit_of("ada", "new") == 5
    assert await limits.unset_limits("planned", identifier="bob") is True
    assert await limits.unset_limits("planned", identifier="bob") is False
    assert [await limit_of("bob"), await limit_of("bob", "gold")] == [7, 8]


async def test_changed_limits_keep_what_was_used_in_the_same_period(limits: RateLimits, store: Store) -> None:
    await start_of_a_window(store)
    await limits.pdf_generation.limit("ada", 4)
    await limits.set_limits("pdf_generation", Limit(10, MINUTE))
    assert (await limits.pdf_generation.limit("ada")).remaining == 5
    await limits.set_limits("pdf_generation", Limit(3, MINUTE))
    decision = await limits.pdf_generation.limit("ada")
    assert (decision.success, decision.limit, decision.remaining) == (False, 3, 0)


async def test_who_is_denied_is_refused_and_who_is_allowed_is_exempt_everywhere(
    limits: RateLimits, others: RateLimits
) -> None:
    await limits.deny("mallory")
    await limits.deny("203.0.113.0/24")
    await limits.allow("203.0.113.7")
    await limits.allow("2001:db8::/32")
    await limits.allow("bot")
    expected = {
        "mallory": Reason.DENIED,
        "203.0.113.9": Reason.DENIED,
        "203.0.113.7": Reason.DENIED,
        "::ffff:203.0.113.9": Reason.DENIED,
        "203.0.114.9": Reason.ALLOWED,
        "2001:db8:1::5": Reason.EXEMPT,
        "2001:db8:1::/64": Reason.EXEMPT,
        "bot": Reason.EXEMPT,
        "ada": Reason.ALLOWED,
    }
    for service in (limits, others):
        found = {who: (await service.api.limit(who)).reason for who in expected}
        assert found == expected
    assert limits.listed("203.0.113.250") is Reason.DENIED
    assert await limits.lists() == {
        "mallory": Reason.DENIED,
        "203.0.113.0/24": Reason.DENIED,
        "203.0.113.7": Reason.EXEMPT,
        "2001:db8::/32": Reason.EXEMPT,
        "bot": Reason.EXEMPT,
    }
    assert await others.forget("mallory") is True
    assert await others.forget("mallory") is False

    async def forgotten() -> bool:
        return (await limits.api.limit("mallory")).success

    await eventually(forgotten, within=4)


async def test_an_exempt_identifier_is_charged_nothing_and_asks_nobody(
    limits: RateLimits, store: Store
) -> None:
    await limits.allow("bot")
    await limits.api.limit("bot")
    before = store.counts.commands
    decision = await limits.api.limit("bot")
    assert (decision.success, decision.remaining, decision.retry_after) == (True, 100, None)
    assert store.counts.commands == before
    await limits.forget("bot")
    assert (await limits.api.peek("bot")).remaining == 100


async def test_what_was_allowed_and_refused_is_counted_with_what_was_answered_here(
    limits: RateLimits, others: RateLimits
) -> None:
    await limits.api.limit("ada")
    await limits.pdf_generation.limit("ada", 5)
    await limits.pdf_generation.limit("ada")
    await blocked(limits.pdf_generation, "ada")
    await limits.pdf_generation.limit("bob", 6)
    mine = limits.totals["pdf_generation"]
    assert (mine.allowed, mine.degraded) == (1, 0)
    assert mine.refused >= 3
    assert mine.blocked >= 1
    await limits.close()
    stats = await others.stats(2)
    assert total(stats["api"]) == LimiterCounts(allowed=1)
    assert total(stats["pdf_generation"]) == mine
    assert total(stats["totp"]) == LimiterCounts()
    top = await others.top_refused("pdf_generation", hours=2)
    assert top == [("ada", mine.refused - 1), ("bob", 1)]
    assert await others.top_refused("pdf_generation", 1, hours=2) == top[:1]


def total(hours: dict[str, LimiterCounts]) -> LimiterCounts:
    return LimiterCounts(
        sum(counts.allowed for counts in hours.values()),
        sum(counts.refused for counts in hours.values()),
        sum(counts.blocked for counts in hours.values()),
        sum(counts.degraded for counts in hours.values()),
    )


@ALGORITHMS
async def test_a_script_that_the_server_forgot_is_sent_again(
    limits: RateLimits, backend: Backend, algorithm: Algorithm
) -> None:
    limiter = limits.limiter(algorithm.value)
    await limiter.limit("ada")
    backend.forget_scripts()
    assert (await limiter.limit("ada")).remaining == 3
    backend.forget_scripts()
    assert (await limiter.peek("ada")).remaining == 3
    backend.forget_scripts()
    assert await limiter.refund("ada")
    backend.forget_scripts()
    await limiter.reset("ada")
    assert (await limiter.peek("ada")).remaining == 5


@ALGORITHMS
async def test_a_key_that_lost_its_lifetime_gets_it_back(
    limits: RateLimits, store: Store, algorithm: Algorithm
) -> None:
    limiter = limits.limiter(algorithm.value)
    key = KEYS.rate_limit(algorithm.value, algorithm.value, 60_000, "ada")
    await limiter.limit("ada", 3)
    for cost in (1, 4):  # the first is allowed, the second is refused
        await store.command("PERSIST", key)
        assert await lifetime_ms(store, key) == -1
        await limiter.limit("ada", cost)
        assert await lifetime_ms(store, key) > 0


async def lifetime_ms(store: Store, key: str) -> int:
    left = await store.command("PTTL", key)
    assert isinstance(left, int)
    return left


@ALGORITHMS
async def test_what_somebody_else_wrote_into_a_counter_begins_anew(
    limits: RateLimits, store: Store, algorithm: Algorithm
) -> None:
    limiter = limits.limiter(algorithm.value)
    key = KEYS.rate_limit(algorithm.value, algorithm.value, 60_000, "ada")
    if algorithm is Algorithm.SLIDING_LOG:
        await store.command("RPUSH", key, "[object Object]")
    else:
        await store.command("SET", key, "[object Object]")
    assert (await limiter.limit("ada")).remaining == 4
    assert await lifetime_ms(store, key) > 0


async def test_unknown_limiters_are_named_with_the_known_ones(limits: RateLimits) -> None:
    with pytest.raises(
        UnknownName, match="no limiter is named 'apu'; the limiters are api, auth, corporate_admin"
    ):
        limits.limiter("apu")
    with pytest.raises(UnknownName):
        await limits.set_limits("apu", Limit(1, MINUTE))
    with pytest.raises(UnknownName):
        await limits.top_refused("apu")


async def test_bad_arguments_are_refused_with_field_expectation_and_value(limits: RateLimits) -> None:
    await limits.pdf_generation.limit("ada", 5)
    await blocked(limits.pdf_generation, "ada")
    await limits.deny("mallory")
    for cost in (0, -1, 1.5, 1.0, True, "1", None, [1]):
        with pytest.raises(ConfigurationError, match="cost: expected a whole number of at least 1; came: "):
            await limits.pdf_generation.limit("ada", cost)  # type: ignore[arg-type]
        for who in ("ada", "mallory"):
            for call in (limits.api.limit, limits.api.peek, limits.api.refund):
                with pytest.raises(ConfigurationError, match="cost: expected"):
                    await call(who, cost)  # type: ignore[arg-type]
    for bad in ("", "x" * 1025, "é" * 513, "\ud800", 7, ["ada"], None):
        for call in (limits.api.limit, limits.api.peek, limits.api.refund):
            with pytest.raises(ConfigurationError, match="identifier: expected text of 1 to 1024 bytes"):
                await call(bad)  # type: ignore[arg-type]
            if bad is not None:
                with pytest.raises(ConfigurationError, match="plan: expected"):
                    await call("ada", plan=bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="identifier: expected text of 1 to 1024 bytes"):
            await limits.api.reset(bad)  # type: ignore[arg-type]
        for change in (limits.deny, limits.allow, limits.forget):
            with pytest.raises(ConfigurationError, match="who: expected text of 1 to 1024 bytes"):
                await change(bad)  # type: ignore[arg-type]
        if bad is not None:
            with pytest.raises(ConfigurationError, match="identifier: expected text of 1 to 1024 bytes"):
                await limits.set_limits("api", Limit(1, MINUTE), identifier=bad)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="plan: expected"):
                await limits.unset_limits("api", plan=bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="who: expected text of 1 to 1024 bytes; came: int"):
        limits.listed(7)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"who: expected .* as 10\.0\.0\.0/8; came: 10\.0\.0\.1/8"):
        await limits.deny("10.0.0.1/8")
    with pytest.raises(ConfigurationError, match=r"who: expected .* came: 10\.0\.0\.1-10\.0\.0\.9"):
        await limits.deny("10.0.0.1-10.0.0.9")
    with pytest.raises(UnknownName, match="no limiter is named"):
        await limits.set_limits(["api"], Limit(1, MINUTE))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="expected a plan or an identifier; came: both"):
        await limits.set_limits("api", Limit(1, MINUTE), plan="a", identifier="b")
    with pytest.raises(ConfigurationError, match="limits: expected one Limit or several; came: none"):
        await limits.set_limits("api", [])
    with pytest.raises(ValueError, match="hours: expected 1 to 192; came: 0"):
        await limits.stats(0)
    assert (await limits.api.limit("ada")).remaining == 99


async def test_a_decision_tells_the_period_of_the_limit_it_tells_of(limits: RateLimits, store: Store) -> None:
    uploads = limits.limiter("uploads")
    await start_of_a_window(store)
    assert (await uploads.limit("ada", 3)).per == MINUTE
    assert (await uploads.limit("ada")).per == MINUTE
    assert (await uploads.peek("ada")).per == MINUTE
    assert (await uploads.limit("ada", 4)).per is not None
    travel(store, 2 * MINUTE)
    assert (await uploads.limit("ada")).per == DAY
    assert (await blocked(uploads, "ada")).per == DAY
    assert (await limits.email.limit("ada")).per == timedelta(hours=1)
    await limits.deny("mallory")
    assert (await limits.email.limit("mallory")).per is None


async def test_a_block_ends_after_ten_seconds_though_nobody_lifts_it_and_tells_the_whole_time(
    limits: RateLimits, store: Store
) -> None:
    """So that a message that was lost, or could not be sent, costs no more."""
    await start_of_a_window(store)
    await limits.pdf_generation.limit("ada", 5)
    refusal = await blocked(limits.pdf_generation, "ada")
    assert refusal.retry_after is not None
    assert refusal.retry_after > MINUTE
    await store.command("DEL", KEYS.rate_limit("pdf_generation", "sliding_window", 60_000, "ada"))
    assert (await limits.pdf_generation.limit("ada")).reason is Reason.BLOCKED
    travel(store, timedelta(seconds=10))
    assert (await limits.pdf_generation.limit("ada")).success


async def test_what_was_not_charged_is_not_given_back(limits: RateLimits, store: Store) -> None:
    await start_of_a_window(store)
    await limits.pdf_generation.limit("ada", 4)
    refused = await limits.pdf_generation.limit("ada", 2)
    before = store.counts.commands
    assert await limits.pdf_generation.refund("ada", 2, decision=refused) is False
    assert store.counts.commands == before
    assert (await limits.pdf_generation.peek("ada")).remaining == 1
    allowed = await limits.pdf_generation.limit("ada")
    await limits.allow("ada")
    exempt = await limits.pdf_generation.limit("ada")
    await limits.forget("ada")
    assert await limits.pdf_generation.refund("ada", decision=exempt) is False
    assert (await limits.pdf_generation.peek("ada")).remaining == 0
    assert await limits.pdf_generation.refund("ada", decision=allowed) is True
    assert (await limits.pdf_generation.peek("ada")).remaining == 1


async def test_a_reset_forgets_what_was_used_under_every_plan(limits: RateLimits, store: Store) -> None:
    planned = limits.limiter("planned")
    await limits.set_limits("planned", Limit(3, DAY), plan="new")
    await limits.set_limits("planned", Limit(3, timedelta(hours=1)), identifier="bob")
    for plan in (None, "gold", "new"):
        await planned.limit("ada", 2, plan=plan)
    await planned.limit("bob", 2)
    await planned.reset("ada")
    await planned.reset("bob")
    found = [await planned.peek("ada", plan=plan) for plan in (None, "gold", "new")]
    assert [decision.remaining for decision in found] == [2, 4, 3]
    assert (await planned.peek("bob")).remaining == 3


async def test_a_plan_whose_limits_were_taken_back_is_no_plan(limits: RateLimits) -> None:
    planned = limits.limiter("planned")
    await limits.set_limits("planned", Limit(9, MINUTE), plan="new")
    assert (await planned.limit("ada", plan="new")).limit == 9
    await planned.limit("ada", plan="gold")
    assert set(planned._plans) == {None, "new", "gold"}
    await limits.unset_limits("planned", plan="new")
    assert set(planned._plans) == {None, "gold"}
    assert (await planned.limit("ada", plan="new")).limit == 2


async def test_who_is_denied_counts_as_refused_and_who_is_exempt_as_allowed(limits: RateLimits) -> None:
    await limits.deny("mallory")
    await limits.allow("bot")
    for who in ("mallory", "mallory", "bot"):
        await limits.api.limit(who)
    assert limits.totals["api"] == LimiterCounts(allowed=1, refused=2)
    assert await limits.top_refused("api") == [("mallory", 2)]


async def test_a_service_that_was_closed_works_again_when_it_is_entered_again(
    limits: RateLimits, others: RateLimits
) -> None:
    for _ in range(2):
        async with limits:
            await limits.pdf_generation.limit("ada", 5)
            await blocked(limits.pdf_generation, "ada")
            await others.pdf_generation.reset("ada")

            async def allowed() -> bool:
                return (await limits.pdf_generation.peek("ada")).success and (
                    await limits.pdf_generation.limit("ada")
                ).success

            await eventually(allowed, within=4)
            await others.pdf_generation.reset("ada")
            assert (limits._tallies._running, limits._refused._running) == (
                True,
                True,
            )  # counts are sent by themselves
        # Closed, it does not hear what lifts a block, so it asks.
        await limits.pdf_generation.limit("bob", 5)
        assert [(await limits.pdf_generation.limit("bob")).reason for _ in range(2)] == [Reason.LIMITED] * 2
        await others.pdf_generation.reset("bob")
    await others.set_limits("pdf_generation", Limit(7, MINUTE))
    async with limits:
        assert (await limits.pdf_generation.limit("ada")).limit == 7  # read anew
    await limits.close()
    assert total((await others.stats(2))["pdf_generation"]) == limits.totals["pdf_generation"]
