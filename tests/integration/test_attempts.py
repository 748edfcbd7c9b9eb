"""Attempts: what is limited strictly is counted in the database while Redis does not answer. On both databases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from counterseal.accounts.attempts import Attempts
from counterseal.accounts.policies import COUNTED_ELSEWHERE, POLICIES
from counterseal.core.errors import DatabaseUnavailable, UnknownName
from counterseal.database.engine import Database
from counterseal.database.tables import auth_attempts
from counterseal.ratelimit.decision import Reason
from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.policy import Elsewhere, WithoutRedis

MINUTE = timedelta(minutes=1)
START_MS = 1_800_000_000_000
"""The first millisecond of a minute, not of a day."""


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self, at_ms: int = START_MS) -> None:
        self.at_ms = at_ms

    def __call__(self) -> int:
        return self.at_ms

    def travel(self, by: timedelta) -> None:
        self.at_ms += by // timedelta(milliseconds=1)


def attempts_on(database: Database, *limits: Limit, clock: Clock | None = None) -> Attempts:
    return Attempts(database, now_ms=clock or Clock(), policies={"auth": limits or (Limit(3, MINUTE),)})


async def rows(database: Database) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(auth_attempts))).scalar_one()


async def test_as_many_as_the_limit_are_allowed_in_a_window_and_no_more(database: Database) -> None:
    clock = Clock()
    attempts = attempts_on(database, clock=clock)
    allowed = [await attempts.charge("auth", "a", 1) for _ in range(3)]
    assert [decision.success for decision in allowed] == [True] * 3
    assert [decision.remaining for decision in allowed] == [2, 1, 0]
    clock.travel(timedelta(seconds=20))
    refused = await attempts.charge("auth", "a", 1)
    assert (refused.success, refused.remaining, refused.reason) == (False, 0, Reason.LIMITED)
    assert refused.retry_after == timedelta(seconds=40)
    assert refused.reset == datetime.fromtimestamp(START_MS / 1000, UTC) + MINUTE
    assert (refused.limit, refused.per, refused.degraded) == (3, MINUTE, True)
    assert (await attempts.charge("auth", "b", 1)).success
    clock.travel(timedelta(seconds=40))
    assert (await attempts.charge("auth", "a", 1)).success


async def test_of_fifty_at_once_as_many_pass_as_the_limit_allows(database: Database) -> None:
    attempts = attempts_on(database, Limit(10, MINUTE))
    decisions = await asyncio.gather(*(attempts.charge("auth", "a", 1) for _ in range(50)))
    assert sum(decision.success for decision in decisions) == 10
    assert sorted(decision.remaining for decision in decisions if decision.success) == list(range(10))


async def test_two_processes_count_together(database: Database) -> None:
    one, other = attempts_on(database), attempts_on(database)
    assert (await one.charge("auth", "a", 2)).success
    assert (await other.charge("auth", "a", 1)).success
    assert not (await one.charge("auth", "a", 1)).success


async def test_a_refusal_charges_nothing(database: Database) -> None:
    attempts = attempts_on(database)
    assert (await attempts.charge("auth", "a", 2)).success
    assert not (await attempts.charge("auth", "a", 2)).success
    assert (await attempts.charge("auth", "a", 1)).success


async def test_a_cost_above_the_limit_is_never_allowed(database: Database) -> None:
    attempts = attempts_on(database)
    refused = await attempts.charge("auth", "a", 4)
    assert (refused.success, refused.retry_after) == (False, None)
    assert await rows(database) == 0


async def test_several_limits_are_charged_together_or_not_at_all(database: Database) -> None:
    clock = Clock()
    hour = timedelta(hours=1)
    attempts = attempts_on(database, Limit(4, hour), Limit(3, MINUTE), clock=clock)
    assert (await attempts.charge("auth", "a", 3)).per == MINUTE
    clock.travel(MINUTE)
    refused = await attempts.charge("auth", "a", 2)  # the minute has room, the hour has not
    assert (refused.success, refused.per) == (False, hour)
    last = await attempts.charge("auth", "a", 1)
    assert (last.success, last.per, last.remaining) == (True, hour, 0)
    clock.travel(hour)
    assert (await attempts.charge("auth", "a", 3)).success  # what was refused was not charged to the minute


async def test_what_is_given_back_can_be_used_again(database: Database) -> None:
    attempts = attempts_on(database)
    for _ in range(3):
        await attempts.charge("auth", "a", 1)
    assert await attempts.refund("auth", "a", 1)
    assert (await attempts.charge("auth", "a", 1)).success
    assert not (await attempts.charge("auth", "a", 1)).success


async def test_no_more_is_given_back_than_was_charged(database: Database) -> None:
    attempts = attempts_on(database)
    assert not await attempts.refund("auth", "a", 1)
    await attempts.charge("auth", "a", 1)
    assert await attempts.refund("auth", "a", 50)
    assert not await attempts.refund("auth", "a", 1)
    assert (await attempts.charge("auth", "a", 3)).success
    assert not (await attempts.charge("auth", "a", 1)).success


async def test_charges_and_refunds_at_once_lose_none(database: Database) -> None:
    attempts = attempts_on(database, Limit(1000, MINUTE))
    await attempts.charge("auth", "a", 20)
    await asyncio.gather(
        *(attempts.charge("auth", "a", 2) for _ in range(20)),
        *(attempts.refund("auth", "a", 1) for _ in range(20)),
    )
    assert (await attempts.charge("auth", "a", 1)).remaining == 1000 - (20 + 40 - 20 + 1)


async def test_an_identifier_may_be_long_and_is_not_kept(database: Database) -> None:
    attempts = attempts_on(database)
    identifier = "ada@example.com" + "x" * 1000
    await attempts.charge("auth", identifier, 1)
    async with database.read() as connection:
        key = (await connection.execute(select(auth_attempts.c.key))).scalar_one()
    assert "ada" not in key
    assert len(key) < 100


async def test_a_limiter_that_nobody_told_of_is_an_error(database: Database) -> None:
    with pytest.raises(UnknownName, match="auth"):
        await attempts_on(database).charge("uploads", "a", 1)


async def test_windows_that_count_no_more_are_removed_and_others_stay(database: Database) -> None:
    clock = Clock()
    attempts = attempts_on(database, clock=clock)
    for name in "abc":
        await attempts.charge("auth", name, 1)
    clock.travel(timedelta(days=2))
    await attempts.charge("auth", "d", 3)
    assert await attempts.cleanup_expired() == 0
    clock.travel(timedelta(seconds=1))
    assert await attempts.cleanup_expired(limit=2) == 2
    assert await attempts.cleanup_expired() == 1
    assert await attempts.cleanup_expired() == 0
    assert not (await attempts.charge("auth", "d", 1)).success


async def test_an_outage_is_let_out(database: Database) -> None:
    attempts = attempts_on(database)
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        await attempts.charge("auth", "a", 1)


async def test_every_strict_limiter_is_counted_here(database: Database) -> None:
    attempts = Attempts(database, now_ms=Clock(), policies=COUNTED_ELSEWHERE)
    assert isinstance(attempts, Elsewhere)
    assert all(policy.without_redis is WithoutRedis.CLOSED for policy in POLICIES)
    for name in ("auth", "totp", *(policy.name for policy in POLICIES)):
        assert (await attempts.charge(name, "a", 1)).success
