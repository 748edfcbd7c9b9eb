"""counterseal as an application opens it: from REDIS_URL, with its time-outs, breaker, lists and statistics."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

from benchmarks.ratelimit.load import PERIOD_SECONDS, Algorithm, Limit, serve_ratelimit
from counterseal.core.settings import Settings
from counterseal.ratelimit.limit import Algorithm as By
from counterseal.ratelimit.limit import Limit as Rule
from counterseal.ratelimit.policy import Policy, WithoutRedis
from counterseal.ratelimit.service import RateLimits
from counterseal.store.keys import Keys
from counterseal.store.open import open_store


@asynccontextmanager
async def opened(url: str, concurrency: int, algorithm: Algorithm, count: int) -> AsyncGenerator[Limit]:
    settings = Settings.load({"REDIS_URL": url})
    by = By("sliding_window" if algorithm == "any" else algorithm)
    period = timedelta(seconds=PERIOD_SECONDS)
    policy = Policy("benchmark", (Rule(count, period, by),), WithoutRedis.CLOSED)
    async with open_store(settings) as store:
        limits = RateLimits(store, keys=Keys(settings.namespace), policies=(policy,))
        limiter = limits.limiter("benchmark")

        async def limit(identifier: str) -> bool:
            return (await limiter.limit(identifier)).success

        try:
            yield limit
            if lost := limits.totals[policy.name].degraded:
                raise RuntimeError(f"{lost} decisions were made without Redis")
        finally:
            await limits.close()


serve_ratelimit(opened)
