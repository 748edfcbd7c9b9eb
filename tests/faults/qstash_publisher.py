"""A process that enqueues one job over QStash, by the settings of its environment. It is killed while it does."""

from __future__ import annotations

import asyncio

from counterseal.app import Counterseal


async def main() -> None:
    async with Counterseal.open() as seal:
        await seal.jobs.enqueue_json("email", {"to": "ada@example.org"})


if __name__ == "__main__":
    asyncio.run(main())
