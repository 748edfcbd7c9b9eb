"""The load of the rate limit area, the same for every driver: what differs is only how a limiter is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from benchmarks.driver import Request, serve
from benchmarks.pace import rate

IDENTIFIERS = tuple(f"user-{number:04}" for number in range(1000))

NEVER_REACHED = 1_000_000

PERIOD_SECONDS = 3600

Algorithm = Literal["fixed_window", "sliding_window", "gcra", "any"]
"""`any` is the one that the library refuses fastest with."""

Limit = Callable[[str], Awaitable[bool]]
"""Charges an identifier with one and says whether it was allowed."""


class Opener(Protocol):
    """Opens a limiter of `count` in an hour, as an application that cares for speed would."""

    def __call__(
        self, url: str, concurrency: int, algorithm: Algorithm, count: int
    ) -> AbstractAsyncContextManager[Limit]: ...


def serve_ratelimit(opener: Opener) -> None:
    """Answer the harness for one library."""
    import uvloop  # noqa: PLC0415 - the harness itself reads this module's constants without it

    async def allowed(request: Request) -> float:
        """Decisions per second over 1,000 identifiers that never reach their limit."""
        tasks, algorithm = request.options["tasks"], request.options["algorithm"]
        await _check(opener, request.tcp_url, algorithm)
        async with opener(request.tcp_url, tasks, algorithm, NEVER_REACHED) as limit:
            return await rate(limit, IDENTIFIERS, tasks=tasks, seconds=request.seconds)

    async def refused(request: Request) -> float:
        """Decisions per second over 1,000 identifiers that have used up their hour."""
        tasks, algorithm = request.options["tasks"], request.options["algorithm"]
        async with opener(request.tcp_url, tasks, algorithm, 1) as limit:
            for expected in (True, False):
                for identifier in IDENTIFIERS:
                    if await limit(identifier) is not expected:
                        raise ValueError(f"{identifier} should {'' if expected else 'not '}have been allowed")
            figure = await rate(limit, IDENTIFIERS, tasks=tasks, seconds=request.seconds)
            if await limit(IDENTIFIERS[0]):
                raise ValueError("an identifier was allowed again before its hour was over")
            return figure

    serve(allowed, refused, loop_factory=uvloop.new_event_loop)


async def _check(opener: Opener, url: str, algorithm: Algorithm) -> None:
    """A limiter that does not limit would be fast for nothing."""
    async with opener(url, 1, algorithm, 3) as limit:
        answers = [await limit("check") for _ in range(5)]
    if answers != [True, True, True, False, False]:
        raise ValueError(f"expected three of five to be allowed; came {answers!r}")
