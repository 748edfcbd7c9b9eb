"""A process that is killed in the middle of what it does with sessions: `python session_victim.py PLAN`.

PLAN is a file of JSON: where Redis and the database are, and for each operation the sessions that it may use up. The
first is used by a process that is killed before the first step, the next by one that is killed before the second, until
one comes to the end. What was reached is printed, a line of JSON for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.databases import Place
from support.session_faults import FORGIVING
from support.sessions import Process, process
from support.waiting import eventually

Tell = Callable[[dict[str, Any]], None]

_watched: ContextVar[bool] = ContextVar("watched", default=False)


class Steps:
    """Counts the steps of one operation, and stops for ever before one of them: after the one before it, that is."""

    def __init__(self, stop_at: int, tell: Tell) -> None:
        self._left = stop_at
        self._tell = tell

    def watch(self, app: Process) -> None:
        """Count what goes to Redis and to the database."""
        for name in ("run", "command", "pipeline"):
            self._watch_call(app.store, name)
        for name in ("begin", "read"):
            self._watch_transaction(app.database, name)

    async def step(self, name: str) -> None:
        """One of them: where the process may be killed."""
        if not _watched.get():
            return
        if self._left == 0:
            self._tell({"step": name})
            await asyncio.Event().wait()
        self._left -= 1

    def _watch_call(self, store: object, name: str) -> None:
        original: Callable[..., Awaitable[Any]] = getattr(store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            await self.step("before Redis")
            return await original(*arguments, **options)

        setattr(store, name, call)

    def _watch_transaction(self, database: object, name: str) -> None:
        original: Callable[[], Any] = getattr(database, name)

        @asynccontextmanager
        async def transaction() -> AsyncGenerator[Any]:
            await self.step(f"before {name}")
            async with original() as connection:
                yield connection
                await self.step(f"before the end of {name}")

        setattr(database, name, transaction)


async def operate(app: Process, operation: str, subject: dict[str, str]) -> object:
    sessions = app.sessions
    match operation:
        case "revoke":
            return await sessions.revoke(subject["session_id"])
        case "revoke_others":
            return await sessions.revoke_others(subject["kept_id"])
        case "revoke_all":
            return await sessions.revoke_all(subject["user_id"])
        case "rotate" | "rotate_late":
            return await sessions.rotate(subject["refresh_token"])
        case "reissue":
            return await sessions.reissue(subject["session_id"])
        case _:
            return await app.log_in(subject["user_id"])


@asynccontextmanager
async def opened(plan: dict[str, Any]) -> AsyncGenerator[Process]:
    place = Place(plan["kind"], Path(plan["data_dir"]), plan["database"])
    options: LinkOptions = FORGIVING
    async with (
        NativeStore(FixedRoute(parse_redis_url(plan["redis"]).template), options) as store,
        place.database() as database,
        process(store, database, relay=False) as app,
    ):
        yield app


async def die(plan: dict[str, Any], operation: str, stop_at: int, tell: Tell) -> None:
    async with opened(plan) as app:
        Steps(stop_at, tell).watch(app)
        _watched.set(True)
        await operate(app, operation, plan["subjects"][operation][stop_at])
        tell({"step": None})
        await asyncio.Event().wait()


def kill_one(plan: dict[str, Any], operation: str, stop_at: int) -> str | None:
    """Fork a process, and kill it where it stops. What it was about to do; None when it had done everything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)

        def tell(what: dict[str, Any]) -> None:
            os.write(writer, json.dumps(what).encode() + b"\n")

        try:
            asyncio.run(die(plan, operation, stop_at, tell))
        except BaseException as fault:  # noqa: BLE001 - told to whoever waits
            tell({"fault": repr(fault)})
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as told:
        line = told.readline()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return json.loads(line)["step"]


async def revoke_without_database(plan: dict[str, Any]) -> None:
    """Have a revocation accepted while the database is down, and hang."""
    async with opened(plan) as app:
        print("open", flush=True)  # noqa: T201 - what the test waits for
        await eventually(Path(plan["go"]).exists, within=30)
        for subject in plan["subjects"]["pending"]:
            ended = await operate(app, subject["operation"], subject)
            assert ended.pending  # type: ignore[attr-defined]
        print("accepted", flush=True)  # noqa: T201
        await asyncio.Event().wait()


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    if "pending" in plan["subjects"]:
        asyncio.run(revoke_without_database(plan))
        return
    for operation, subjects in plan["subjects"].items():
        for stop_at in range(len(subjects)):
            step = kill_one(plan, operation, stop_at)
            print(json.dumps({"operation": operation, "number": stop_at, "step": step}), flush=True)  # noqa: T201
            if step is None:
                break


main()
