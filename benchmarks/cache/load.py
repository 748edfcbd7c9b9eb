"""The load of the cache area, the same for every driver: what differs is only how a client is opened."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from benchmarks.driver import Request, serve
from benchmarks.pace import rate

IDENTIFIERS = tuple(f"user-{number:04}" for number in range(1000))

TTL_SECONDS = 3600

LOAD_SECONDS = 0.05
_PROCESSES = 4
_TASKS = 50
_READY_SECONDS = 20

Use = Literal["redis", "near", "near_immutable", "stampede"]

Loader = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Client:
    """An open cache. `get_many` answers in the order of its identifiers; `get_or_load` may load only on a miss."""

    set: Callable[[str, Any], Awaitable[Any]]
    get: Callable[[str], Awaitable[Any]]
    get_many: Callable[[Sequence[str]], Awaitable[Sequence[Any]]]
    get_or_load: Callable[[str, Loader], Awaitable[Any]]


class Opener(Protocol):
    """Opens a cache for a use and a number of concurrent calls, as an application that cares for speed would."""

    def __call__(self, url: str, concurrency: int, use: Use) -> AbstractAsyncContextManager[Client]: ...


def value(identifier: str) -> dict[str, Any]:
    """A user's profile: JSON of 1 KB with what such a thing has, a nested object and a list among it."""
    return {
        "id": identifier,
        "name": "Ada Lovelace",
        "email": f"{identifier}@example.com",
        "locale": "en-GB",
        "verified": True,
        "created": 1764000000,
        "domain": "example.com",
        "notifications": {"email": True, "push": False, "digest": "weekly"},
        "roles": ["signer", "sender", "corporate_admin"],
        "signature": "s" * 320,
        "about": "a" * 421,
    }


def serve_cache(opener: Opener, make: Callable[[dict[str, Any]], Any] = lambda one: one) -> None:
    """Answer the harness for one library. `make` turns a profile into the library's immutable form of it."""
    import uvloop  # noqa: PLC0415 - the harness itself reads this module's constants without it

    async def hits(request: Request) -> float:
        """Hits per second of `tasks` tasks over 1,000 values that are in Redis."""
        tasks = request.options["tasks"]
        async with opener(request.tcp_url, tasks, "redis") as client:
            await _fill(client, value)
            return await rate(client.get, IDENTIFIERS, tasks=tasks, seconds=request.seconds)

    async def near(request: Request) -> float:
        """Hits per second of one task over 1,000 values that this process has in its memory."""
        immutable = request.options["immutable"]
        async with opener(request.tcp_url, 1, "near_immutable" if immutable else "near") as client:
            await _fill(client, (lambda identifier: make(value(identifier))) if immutable else value)
            return await rate(client.get, IDENTIFIERS, tasks=1, seconds=request.seconds)

    async def many(request: Request) -> float:
        """Values per second of one task that asks for 100 of 1,000 at once."""
        async with opener(request.tcp_url, 1, "redis") as client:
            await _fill(client, value)
            hundreds = {str(first): IDENTIFIERS[first : first + 100] for first in range(0, 1000, 100)}

            async def once(first: str) -> None:
                await client.get_many(hundreds[first])

            return 100 * await rate(once, list(hundreds), tasks=1, seconds=request.seconds)

    def stampede(request: Request) -> float:
        """What 200 misses of one key at once bring about: 50 in each of four processes, the load taking 50 ms.

        `figure` says what is told: the number of loads, or how many milliseconds longer than the load the slowest
        caller waited. A process is forked off this one, which has used nothing yet: the case has `fresh=True`.
        """
        fork = multiprocessing.get_context("fork")
        gate, answers = fork.Barrier(_PROCESSES), fork.SimpleQueue()

        def member() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                answers.put(runner.run(_miss(opener, request.tcp_url, gate.wait)))

        members = [fork.Process(target=member, daemon=True) for _ in range(_PROCESSES)]
        for one in members:
            one.start()
        for one in members:
            one.join(_READY_SECONDS)
        if any(one.exitcode != 0 for one in members):
            raise RuntimeError("one of the four processes failed")
        outcome = [answers.get() for _ in members]
        loads, waited = sum(one[0] for one in outcome), max(one[1] for one in outcome)
        return loads if request.options["figure"] == "loads" else 1000 * (waited - LOAD_SECONDS)

    serve(hits, near, many, stampede, loop_factory=uvloop.new_event_loop)


async def _fill(client: Client, content: Callable[[str], Any]) -> None:
    """Store all values and read them back: a cache that does not return what it got would be fast for nothing."""
    for identifier in IDENTIFIERS:
        await client.set(identifier, content(identifier))
    expected = {identifier: content(identifier) for identifier in IDENTIFIERS}
    # Where the first read of a value brings it near, the second is answered there.
    for identifier in (*IDENTIFIERS, *IDENTIFIERS[:100]):
        _same(await client.get(identifier), expected[identifier])
    several = await client.get_many(IDENTIFIERS[:100])
    for identifier, one in zip(IDENTIFIERS[:100], several, strict=True):
        _same(one, expected[identifier])


def _same(came: object, expected: object) -> None:
    if type(came) is not type(expected) or came != expected:
        raise ValueError(f"expected {expected!r}; came {came!r}")


async def _miss(opener: Opener, url: str, gate: Callable[[], Any]) -> tuple[int, float]:
    """How often this process loaded, and how long its slowest caller waited."""
    loads = 0
    wanted = value("stampede")

    async def load() -> Any:
        nonlocal loads
        loads += 1
        await asyncio.sleep(LOAD_SECONDS)
        return value("stampede")

    async def ready() -> Any:
        return value("ready")

    async with opener(url, _TASKS, "stampede") as client:
        # Connections, scripts and code paths are warm on every side before it counts.
        await asyncio.gather(*(client.get_or_load(f"ready-{number}", ready) for number in range(_TASKS)))

        async def call() -> float:
            started = time.perf_counter()
            _same(await client.get_or_load("stampede", load), wanted)
            return time.perf_counter() - started

        gate()
        waited = await asyncio.gather(*(call() for _ in range(_TASKS)))
        # Nobody takes his connections down while others still wait.
        await asyncio.get_running_loop().run_in_executor(None, gate)
    return loads, max(waited)
