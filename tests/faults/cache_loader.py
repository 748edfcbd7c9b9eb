"""Loads through the cache in a process of its own: `python cache_loader.py hang|many URL NAME`.

`hang` loads the document `d` and never ends. `many` waits until somebody pushes to the list `go:NAME`, has 125 callers
ask for the document `d` at once, and prints as JSON what they got and when.
"""

import asyncio
import json
import sys
import time
from datetime import timedelta

from counterseal import Settings
from counterseal.cache.service import Cache
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.open import open_store

CALLERS = 125
LOAD_S = 0.08
WAIT = timedelta(seconds=30)


async def hang(identifier: str) -> None:
    print("begun", flush=True)  # noqa: T201 - what the test waits for
    await asyncio.Event().wait()


async def many(store: Store, cache: Cache, name: str) -> None:
    ended: list[float] = []

    async def load(identifier: str) -> dict[str, object]:
        await store.pipeline([("INCR", "loads"), ("EXPIRE", "loads", 60)])
        await asyncio.sleep(LOAD_S)
        ended.append(time.time())
        return {"loaded by": name}

    async def ask() -> tuple[object, float]:
        found = await cache.documents.find_or_load("d", load)
        return [found.value, found.source], time.time()

    await cache.documents.get("warm")
    print("ready", flush=True)  # noqa: T201 - what the test waits for
    await store.block("BLPOP", f"go:{name}", 20, timeout=WAIT)
    answers = await asyncio.gather(*(ask() for _ in range(CALLERS)))
    told = {
        "answers": [answer for answer, _ in answers],
        "last": max(at for _, at in answers),
        "ended": ended,
    }
    print(json.dumps(told), flush=True)  # noqa: T201 - what the test reads


async def run(what: str, url: str, name: str) -> None:
    settings = Settings.load({"REDIS_URL": url, "COUNTERSEAL_COMMAND_TIMEOUT": "5s"})
    async with open_store(settings) as store, Cache(store, keys=Keys()) as cache:
        if what == "hang":
            await cache.documents.get_or_load("d", hang)
        else:
            await many(store, cache, name)


asyncio.run(run(*sys.argv[1:4]))
