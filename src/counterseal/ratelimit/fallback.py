"""Fallback: how a limiter decides while Redis does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar, cast

import msgspec

from counterseal.core.complaints import Complaints
from counterseal.core.errors import CommandError, StoreError, StoreUnavailable
from counterseal.ratelimit.decision import Decision, Reason, instant
from counterseal.ratelimit.local import Subject
from counterseal.ratelimit.policy import Elsewhere, WithoutRedis

logger = logging.getLogger(__name__)

ELSEWHERE_WITHIN: Final = timedelta(seconds=2)
"""How long counting elsewhere may take."""


_T = TypeVar("_T")


class Fallback:
    """What one limiter does, by its policy. Nothing here asks Redis."""

    def __init__(self, name: str, without_redis: WithoutRedis | Elsewhere, *, processes: int) -> None:
        self._name = name
        self._open = without_redis is WithoutRedis.OPEN
        self._elsewhere = None if isinstance(without_redis, WithoutRedis) else without_redis
        self._processes = processes
        self._complaints = Complaints(logger)

    @property
    def warm(self) -> bool:
        """Whether local windows have to know of every call that Redis allows."""
        return self._open

    async def charge(self, subject: Subject, identifier: str, cost: int, now_ms: int) -> Decision:
        """Decide, and charge what is allowed. It does not raise."""
        if self._open:
            return self._locally(subject, cost, now_ms, charge=True)
        if (elsewhere := self._elsewhere) is not None:
            decision = await self._ask(
                lambda: elsewhere.charge(self._name, identifier, cost), Decision, now_ms
            )
            if decision is not None:
                per = decision.per or (subject.periods[0] if len(subject.periods) == 1 else None)
                return msgspec.structs.replace(decision, degraded=True, per=per)
        return _unavailable(subject, now_ms)

    def peek(self, subject: Subject, cost: int, now_ms: int) -> Decision:
        """What this process would decide by itself."""
        if self._open:
            return self._locally(subject, cost, now_ms, charge=False)
        return _unavailable(subject, now_ms)

    async def refund(self, subject: Subject, identifier: str, cost: int, now_ms: int) -> bool:
        """Give back what `charge` has charged; whether that was done. It does not raise."""
        if (elsewhere := self._elsewhere) is not None:
            return bool(await self._ask(lambda: elsewhere.refund(self._name, identifier, cost), bool, now_ms))
        for window in subject.windows:
            window.refund(now_ms, cost)
        return self._open

    def complain(self, error: StoreError, now_ms: int) -> None:
        """Log what is not an outage, of which the store tells by itself."""
        if not isinstance(error, StoreUnavailable):
            kind = error.kind if isinstance(error, CommandError) else error.code
            self._log("Redis refuses the calls of the limiter %s: %s", kind, now_ms)

    def _locally(self, subject: Subject, cost: int, now_ms: int, *, charge: bool) -> Decision:
        """By this process's own windows, of which each process has a share."""
        wait_ms, share, remaining, reset_ms, per = subject.judge(now_ms, cost, self._processes)
        if wait_ms or cost > subject.most:
            wait = timedelta(milliseconds=wait_ms) if cost <= subject.most else None
            return Decision(False, share, remaining, instant(reset_ms), wait, Reason.LIMITED, True, per)
        if charge:
            for window in subject.windows:
                window.charge(now_ms, cost)
            _, share, remaining, reset_ms, per = subject.judge(now_ms, 0, self._processes)
        return Decision(True, share, remaining, instant(reset_ms), None, Reason.ALLOWED, True, per)

    async def _ask(self, ask: Callable[[], Awaitable[_T | None]], kind: type[_T], now_ms: int) -> _T | None:
        """What is answered elsewhere; None when it is nothing, of another kind, an error, or late."""
        try:
            async with asyncio.timeout(ELSEWHERE_WITHIN.total_seconds()):
                answer = await ask()
            if answer is not None and not isinstance(cast("object", answer), kind):
                raise TypeError  # noqa: TRY301 - whatever is wrong there has one end
        except Exception as error:  # noqa: BLE001 - what somebody else wrote may raise anything
            # Its text is not told: a database names in it who asked.
            what = type(error).__name__
            self._log(
                "what counts for the limiter %s while Redis does not answer has failed: %s", what, now_ms
            )
            return None
        return answer

    def _log(self, message: str, what: str, now_ms: int) -> None:
        self._complaints.tell(message, self._name, what, now_ms=now_ms)


def _unavailable(subject: Subject, now_ms: int) -> Decision:
    return Decision(False, subject.most, 0, instant(now_ms), None, Reason.UNAVAILABLE, True)
