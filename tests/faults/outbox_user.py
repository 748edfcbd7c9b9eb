"""A process with an outbox, which never ends by itself: `python outbox_user.py TASK DATA_DIR [URL]`.

`relay` runs jobs whose handler never returns, `commit` commits a job, `write` writes one and commits nothing.
"""

import asyncio
import sys
import time
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from counterseal.database.engine import Database
from counterseal.database.outbox import Outbox, OutboxJob, add_job


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def hang(job: OutboxJob) -> None:
    print(f"begun {job.attempt}", flush=True)  # noqa: T201 - what the test waits for
    await asyncio.Event().wait()


async def use(task: str, data_dir: Path, url: SecretStr | None) -> None:
    async with Database(url, data_dir=data_dir, timeout=timedelta(seconds=30)) as database:
        if task == "relay":
            async with Outbox(
                database, now_ms=now_ms, handlers={"note": hang}, period=timedelta(milliseconds=20)
            ):
                await asyncio.Event().wait()
        async with database.begin() as connection:
            await add_job(connection, "note", {"n": 1}, now_ms=now_ms(), aggregate="a")
            if task == "write":
                print("written", flush=True)  # noqa: T201
                await asyncio.Event().wait()
        print("committed", flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(use(sys.argv[1], Path(sys.argv[2]), SecretStr(sys.argv[3]) if sys.argv[3:] else None))
