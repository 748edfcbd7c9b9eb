"""Context: what a task is told of the job that it runs, and how it tells of it in turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from counterseal.core.errors import ConfigurationError


class JobContext:
    """The first argument of every task. Safe to use from a thread.

    `attempt` is 1 for the first run. A job may run more than once, also after it had done its work: key what it does
    by `idempotency_key`, which stays the same, also for a dead letter that is retried. `token` grows with every lease
    and fences: whoever stores it with an effect can refuse a smaller one.
    """

    __slots__ = (
        "_asked", "_loop", "_report", "attempt", "deadline", "id", "idempotency_key", "queue", "reason", "token",
        "type",
    )  # fmt: skip

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - what it is called everywhere
        type: str,  # noqa: A002
        queue: str,
        attempt: int,
        token: int,
        idempotency_key: str,
        deadline: datetime | None,
        report: Callable[[float | None, str], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.id = id
        self.type = type
        self.queue = queue
        self.attempt = attempt
        self.token = token
        self.idempotency_key = idempotency_key
        self.deadline = deadline
        self.reason: str | None = None
        """Why the job is to end, once somebody has cancelled it, its time is over, or its worker ends."""
        self._report = report
        self._loop = loop
        self._asked: threading.Event | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the job is to end. An async task is cancelled then; a function in a thread has to look."""
        return self.reason is not None

    @property
    def time_left(self) -> timedelta | None:
        """Until the deadline; None without one."""
        return None if self.deadline is None else self.deadline - datetime.now(UTC)

    def progress(self, share: float, message: str = "") -> None:
        """Tell how far the job has come, from 0 to 1, to whoever watches it. Costs nothing here: it is sent along.

        Several within one turn count as the last one. Raises `ConfigurationError` for another share.
        """
        if not 0 <= share <= 1:
            raise ConfigurationError("share: expected a number from 0 to 1")
        self._send(float(share), message)

    def log(self, text: str) -> None:
        """Add a line to the log of the job, of which the last 200 are kept with it. Costs nothing here."""
        self._send(None, text)

    def wait_cancelled(self, timeout: timedelta) -> bool:
        """In a thread: wait until the job is to end, at most so long; whether it is to."""
        if self._asked is None:
            self._asked = threading.Event()
            if self.reason is not None:
                self._asked.set()
        return self._asked.wait(timeout / timedelta(seconds=1))

    def ask_to_end(self, reason: str) -> None:
        """Note that the job is to end. The worker calls it."""
        if self.reason is None:
            self.reason = reason
        if self._asked is not None:
            self._asked.set()

    def _send(self, share: float | None, text: str) -> None:
        if self._loop is None:
            self._report(share, text)
        else:
            self._loop.call_soon_threadsafe(self._report, share, text)
