"""A process that calls limiters of every algorithm as often as it can: `python ratelimit_hammer.py URL COUNT CALLS`.

It prints `ready`, waits for the list `go`, then prints of each limiter how much it was allowed.
"""

import asyncio
import sys
from datetime import timedelta

from counterseal.core.settings import Settings
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.policy import Policy
from counterseal.ratelimit.service import RateLimits
from counterseal.store.keys import Keys
from counterseal.store.open import open_store

TASKS = 20


async def hammer(url: str, count: int, calls: int) -> None:
    settings = Settings.load({"REDIS_URL": url, "COUNTERSEAL_COMMAND_TIMEOUT": "20s"})
    limits_of = [Limit(count, timedelta(days=366), algorithm) for algorithm in Algorithm]
    policies = [Policy(limit.algorithm.value, (limit,)) for limit in limits_of]
    async with open_store(settings) as store:
        limits = RateLimits(store, keys=Keys(), policies=policies)
        await limits.api.peek("ada")
        print("ready", flush=True)  # noqa: T201 - what the test waits for
        await store.block("BLPOP", "go", 60, timeout=timedelta(seconds=70))
        for algorithm in Algorithm:
            limiter = limits.limiter(algorithm.value)

            async def call(limit=limiter.limit) -> int:
                costs = [1 + number % 2 for number in range(calls)]
                return sum([cost for cost in costs if (await limit("ada", cost)).success])

            allowed = await asyncio.gather(*(call() for _ in range(TASKS)))
            print(f"allowed {algorithm} {sum(allowed)}", flush=True)  # noqa: T201 - what the test reads
        await limits.close()
        print("done", flush=True)  # noqa: T201 - what the test waits for


asyncio.run(hammer(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
