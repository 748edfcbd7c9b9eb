"""A scheduler to be killed, in a process of its own: `schedule_victim.py URL claimed|enqueued|advanced|run MS HOURS`.

Its clock begins at a moment, in milliseconds since 1970. It says so and stands still when it has come to the boundary;
with `run` it goes on for so many hours, one after the other, and says of each that it is done.
"""

import asyncio
import sys
from datetime import timedelta
from typing import Any

from counterseal import Counterseal, Settings
from counterseal.jobs.schedule_entries import Entries
from counterseal.jobs.schedules import Schedules


async def stand_still(word: str) -> None:
    print(word, flush=True)  # noqa: T201 - what the test waits for
    await asyncio.Event().wait()


def stop_at(boundary: str) -> None:
    """Have a scheduler stand still at a boundary."""
    claim, enqueue, advance = Entries.claim, Schedules.enqueue, Entries.advance

    async def claiming(self: Entries, **arguments: Any) -> Any:
        found = await claim(self, **arguments)
        if found.entries and boundary == "claimed":
            await stand_still(boundary)
        return found

    async def enqueueing(self: Schedules, calls: Any) -> None:
        await enqueue(self, calls)
        if calls and boundary == "enqueued":
            await stand_still(boundary)

    async def advancing(self: Entries, items: Any) -> Any:
        answers = await advance(self, items)
        if items and boundary == "advanced":
            await stand_still(boundary)
        return answers

    Entries.claim, Schedules.enqueue, Entries.advance = claiming, enqueueing, advancing  # type: ignore[method-assign]


async def main(url: str, boundary: str, begin_ms: int, hours: int) -> None:
    stop_at(boundary)
    settings = Settings.load({"REDIS_URL": url, "COUNTERSEAL_COMMAND_TIMEOUT": "5s"})
    async with Counterseal.open(settings) as seal:
        scheduler = seal.scheduler()
        for hour in range(hours):
            ahead_ms = begin_ms + hour * 3_600_000 - seal.store.now_ms()
            seal.store.clock.travel(timedelta(milliseconds=ahead_ms))
            await scheduler.look()
            print(f"done {hour}", flush=True)  # noqa: T201
    print("over", flush=True)  # noqa: T201


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
