"""The load of the connection area, the same for every driver: what differs is only how a client is opened."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.driver import Request, private_bytes, serve

KEY = "benchmark:value"
VALUE = "v" * 32
_WARM_UP_SECONDS = 0.15
_SETTLE_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Client:
    """An open client. `get` reads KEY; `pipeline(n)` reads it n times in one round trip; `put` writes it."""

    put: Callable[[], Awaitable[Any]]
    get: Callable[[], Awaitable[Any]]
    pipeline: Callable[[int], Awaitable[Sequence[Any]]]


class Opener(Protocol):
    """Opens a client for a number of concurrent calls, as an application that cares for speed would."""

    def __call__(self, url: str, concurrency: int) -> AbstractAsyncContextManager[Client]: ...


def serve_connection(opener: Opener) -> None:
    """Answer the harness for one library."""
    import uvloop  # noqa: PLC0415 - the harness itself reads this module's constants without it

    async def tasks(request: Request) -> float:
        """GETs per second of `tasks` tasks, each waiting for its own before it asks again."""
        count = request.options["tasks"]
        async with opener(_url(request), count) as client:
            await _check(client)
            await _rate(client.get, count, _WARM_UP_SECONDS)
            return await _rate(client.get, count, request.seconds)

    async def pipelines(request: Request) -> float:
        """GETs per second of one task that sends `commands` in each round trip."""
        commands = request.options["commands"]
        async with opener(_url(request), 1) as client:
            await _check(client)

            async def once() -> None:
                await client.pipeline(commands)

            await _rate(once, 1, _WARM_UP_SECONDS)
            return commands * await _rate(once, 1, request.seconds)

    async def memory(request: Request) -> float:
        """KiB that this process grows by for each of `clients`, every one with a connection that was used.

        As many are opened before them, so that what Python freed after its imports is used up.
        """
        count = request.options["clients"]
        async with AsyncExitStack() as stack:

            async def grow() -> int:
                for _ in range(count):
                    await _check(await stack.enter_async_context(opener(_url(request), 1)))
                gc.collect()
                return private_bytes()

            before = await grow()
            return (await grow() - before) / count / 1024

    async def idle(request: Request) -> float:
        """Milliseconds of CPU a second, in all threads of this process, while an open client waits."""
        async with opener(_url(request), 1) as client:
            await _check(client)
            await asyncio.sleep(_SETTLE_SECONDS)
            before, started = time.process_time(), time.perf_counter()
            await asyncio.sleep(request.seconds)
            return 1000 * (time.process_time() - before) / (time.perf_counter() - started)

    serve(tasks, pipelines, memory, idle, loop_factory=uvloop.new_event_loop)


def _url(request: Request) -> str:
    return request.tcp_url if request.options["socket"] == "tcp" else request.unix_url


async def _check(client: Client) -> None:
    """A client that does not return the value would be fast for nothing."""
    await client.put()
    replies = [await client.get(), *await client.pipeline(3)]
    if replies != [VALUE.encode()] * 4:
        raise ValueError(f"expected the value four times; came {replies!r}")


async def _rate(call: Callable[[], Awaitable[Any]], tasks: int, seconds: float) -> float:
    running, done = True, 0

    def stop() -> None:
        nonlocal running
        running = False

    async def work() -> None:
        nonlocal done
        while running:
            await call()
            done += 1

    asyncio.get_running_loop().call_later(seconds, stop)
    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    return done / (time.perf_counter() - started)
