"""Run: one attempt at one job, from its arguments to its result."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any, Final, TypeAlias

import msgspec

from counterseal.core.errors import (
    ArgumentInvalid,
    ConfigurationError,
    CountersealError,
    NonRetryable,
    RetryLater,
    StoreError,
)
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import Failure, job_id, moment, write_failure
from counterseal.jobs.options import NO_EXTRA, Extra, read_extra
from counterseal.jobs.retry import NO_RETRY, pause_ms
from counterseal.jobs.scripts import Leased, Queue, Result
from counterseal.jobs.task import DEFAULT_KEEP, Task
from counterseal.jobs.tracing import Tracing
from counterseal.jobs.types import KNOWN
from counterseal.store.keys import JOB_DEAD_TTL

logger = logging.getLogger(__name__)

Next: TypeAlias = Callable[[], Awaitable[Any]]
Middleware: TypeAlias = Callable[[JobContext, Next], Awaitable[Any]]
"""Wraps every run: `async def timed(context, call): return await call()`. It may raise in place of the task."""

MAX_RESULT: Final = 2**20

_MS: Final = timedelta(milliseconds=1)
_DEAD_MS: Final = JOB_DEAD_TTL // _MS
_encode: Final = msgspec.json.Encoder().encode
_SCHEMA: Final = b":"
_OUTCOME: Final = 3


class Run:
    """A job that this worker holds and has begun."""

    __slots__ = (
        "_abandoned", "_began", "_context", "_extra", "_lines", "_middleware", "_now_ms", "_progress", "_queue",
        "_reason", "_reporting", "_task", "_threads", "_timer", "_tracing", "_why", "leased", "over", "result",
        "running", "seconds",
    )  # fmt: skip

    def __init__(
        self,
        leased: Leased,
        *,
        queue: Queue,
        task: Task[Any, Any] | None,
        middleware: Sequence[Middleware],
        threads: Executor | None,
        now_ms: Callable[[], int],
        tracing: Tracing | None = None,
    ) -> None:
        self.leased = leased
        self.running: asyncio.Task[None] | None = None
        self.result: Result | None = None
        """What is to be handed in; None when the job was lost."""
        self.seconds = 0.0
        self.over = False
        """Whether it has come to its end, so that nobody needs to ask for it."""
        self._abandoned = False
        self._queue = queue
        self._task = task
        self._middleware = middleware
        self._threads = threads
        self._now_ms = now_ms
        self._tracing = tracing
        self._extra: Extra = NO_EXTRA
        self._context: JobContext | None = None
        self._why = ""
        self._reason = ""
        self._timer: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._progress = b""
        self._lines: list[bytes] = []
        self._reporting: asyncio.Task[None] | None = None

    def start(self, on_end: Callable[[], None], within: contextvars.Context | None = None) -> None:
        """Begin. `on_end` is called once, when `result` says what became of it.

        It runs in a copy of `within`, so that it sees no context variable that another job has set.
        """
        context = None if within is None else within.copy()
        self.running = asyncio.get_running_loop().create_task(self._go(on_end), context=context)

    def cancel(self, reason: str) -> None:
        """Ask the job to end, because somebody has cancelled it."""
        self.end("cancel", reason)

    def end(self, why: str, reason: str = "") -> None:
        """Ask the job to end: `cancel`, `timeout`, `deadline`, `drain` or `lost`. The first counts, but for `lost`."""
        if self.over or (self._why and why != "lost"):
            return
        self._why, self._reason = why, reason
        if self._context is not None:
            self._context.ask_to_end(reason or why)
        # Not before its first step: what is cancelled then never begins, and nobody would hear of its end.
        if self._began and self.running is not None and (self._task is None or self._task.is_async):
            self.running.cancel()

    def abandon(self) -> None:
        """Leave a job that does not end to whoever takes it over."""
        self.over = self._abandoned = True
        if self.running is not None:
            self.running.cancel()

    async def _go(self, on_end: Callable[[], None]) -> None:
        self._began = time.perf_counter()
        outcome = None
        try:
            outcome = self._stopped() if self._why else await self._outcome()
        except Exception as fault:  # noqa: BLE001 - of this module or of a retry policy
            failure = _failure(fault)
            logger.error("job %s of type %s can't be run: %s", self._id, self.leased.type, failure)  # noqa: TRY400 - its text may hold anything
            outcome = self._failed(failure)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self.seconds = time.perf_counter() - self._began
            lost, self.over = self._why == "lost", True
            if outcome is not None and not lost and not self._abandoned:
                name, ms, text = outcome
                leased = self.leased
                self.result = Result(leased.part, leased.token, name, ms, int(self.seconds * 1e6), text)
            try:
                if self._lines or self._progress or self._reporting is not None:
                    await self._reported()
            finally:
                on_end()

    async def _outcome(self) -> tuple[str, int, bytes] | None:
        """Outcome, milliseconds and text of the result."""
        task = self._task
        if task is None:
            why = "no handler in this release" if self.leased.type in KNOWN else "unknown task"
            return self._parked(why)
        given = self._given(task)
        refused = given if len(given) == _OUTCOME else self._limit()
        if refused is not None or len(given) == _OUTCOME:
            return refused
        if self._tracing is None:
            return await self._ran(task, *given)
        with self._tracing.process(
            self.leased, queue=self._queue.name, extra=self._extra, now_ms=self._now_ms()
        ) as running:
            outcome = await self._ran(task, *given)
            running.ended(outcome)
            return outcome

    async def _ran(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, int, bytes] | None:
        try:
            value = await self._call(task, self._made_context(), args, kwargs)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except asyncio.CancelledError:
            return self._stopped()
        except BaseException as fault:  # noqa: BLE001 - SystemExit too: it ends a job, and not its worker
            return self._raised(fault)
        if self._why in ("timeout", "deadline"):  # a plain function can't be stopped; it came too late
            return self._stopped()
        return self._completed(value)

    def _given(self, task: Task[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | tuple[str, int, bytes]:
        """The arguments of the task; the outcome when they can't be read."""
        leased = self.leased
        try:
            if leased.extra:
                self._extra = read_extra(leased.extra)
            return task.decode(leased.args)
        except ArgumentInvalid as fault:
            return (
                self._parked(str(fault))
                if fault.later
                else self._failed(Failure("ArgumentInvalid", str(fault)))
            )
        except (msgspec.MsgspecError, ConfigurationError, ValueError):
            return self._failed(Failure("CodecError", "the options of the job can't be read"))

    def _made_context(self) -> JobContext:
        extra, leased = self._extra, self.leased
        whole = job_id(self._queue.name, leased.part)
        context = self._context = JobContext(
            id=whole,
            type=leased.type,
            queue=self._queue.name,
            attempt=leased.attempt,
            token=int(leased.token),
            idempotency_key=extra.key or whole,
            deadline=None if extra.deadline is None else moment(extra.deadline),
            report=self._report,
            loop=None if self._task is None or self._task.is_async else asyncio.get_running_loop(),
        )
        if self._why:
            context.ask_to_end(self._why)
        return context

    def _limit(self) -> tuple[str, int, bytes] | None:
        """Have the run ended in time; the outcome when it may not begin."""
        extra, task = self._extra, self._task
        timeout = extra.timeout / 1000 if extra.timeout else None
        if timeout is None and task is not None and task.timeout is not None:
            timeout = task.timeout / timedelta(seconds=1)
        why = "timeout"
        if extra.deadline is not None:
            left = (extra.deadline - self._now_ms()) / 1000
            if left <= 0:
                return self._failed(
                    Failure("DeadlineExceeded", "the deadline had passed before the job began")
                )
            if timeout is None or left < timeout:
                timeout, why = left, "deadline"
        if timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(timeout, self.end, why)
        return None

    async def _call(
        self, task: Task[Any, Any], context: JobContext, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        function: Any = task.function
        if not self._middleware:
            if task.is_async:
                return await function(context, *args, **kwargs)
            return await self._threaded(lambda: function(context, *args, **kwargs))

        async def innermost() -> Any:
            if task.is_async:
                return await function(context, *args, **kwargs)
            return await self._threaded(lambda: function(context, *args, **kwargs))

        call: Next = innermost
        for layer in reversed(self._middleware):
            call = _layered(layer, context, call)
        return await call()

    async def _threaded(self, call: Callable[[], Any]) -> Any:
        """Run a plain function in a thread. It can't be stopped, so its end is waited for, whatever happens."""
        if self._threads is None:
            raise RuntimeError("a plain function needs a thread")
        within = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, within.run, call)

    def _completed(self, value: Any) -> tuple[str, int, bytes]:
        if value is None:
            return "completed", self._keep_ms(), b""
        try:
            text = _encode(value)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as fault:
            return self._failed(Failure(type(fault).__name__, "the result of the task is not JSON"))
        if len(text) > MAX_RESULT:
            return self._failed(
                Failure("ValueTooLarge", f"the result has {len(text)} bytes; the limit is {MAX_RESULT}")
            )
        return "completed", self._keep_ms(), text

    def _stopped(self) -> tuple[str, int, bytes] | None:
        """What a cancelled run means."""
        if self._why == "cancel":
            return "cancelled", self._keep_ms(), (self._reason or "cancelled").encode()
        if self._why == "timeout":
            return self._again(Failure("TimeoutError", "the task took longer than it may"))
        if self._why == "deadline":
            return self._failed(Failure("DeadlineExceeded", "the deadline passed while the job ran"))
        if self._why == "drain":
            return "queued", 0, b""
        if self._why == "lost" or self.over:
            return None
        return self._again(Failure("CancelledError"))  # its own

    def _raised(self, fault: BaseException) -> tuple[str, int, bytes] | None:
        if self._why and not isinstance(fault, NonRetryable):
            return self._stopped()  # that it was asked to end is why it raised
        failure = _failure(fault)
        if isinstance(fault, NonRetryable):
            logger.error("job %s of type %s failed for good: %s", self._id, self.leased.type, failure)
            return self._failed(failure)
        pause = fault.pause // _MS if isinstance(fault, RetryLater) and fault.pause is not None else None
        return self._again(failure, pause)

    def _again(self, failure: Failure, pause: int | None = None) -> tuple[str, int, bytes]:
        policy = self._extra.retry or (self._task.retry if self._task is not None else NO_RETRY)
        planned = pause_ms(policy, max(1, self.leased.attempt), random.random)
        if planned is None:
            logger.error("job %s of type %s failed for good: %s", self._id, self.leased.type, failure)
            return self._failed(failure)
        chosen = planned if pause is None else pause
        logger.warning(
            "job %s of type %s failed at attempt %d and runs again in %.1f s: %s",
            self._id, self.leased.type, self.leased.attempt, chosen / 1000, failure,
        )  # fmt: skip
        return "retrying", chosen, write_failure(failure)

    def _failed(self, failure: Failure) -> tuple[str, int, bytes]:
        return "failed", _DEAD_MS, write_failure(failure)

    def _parked(self, why: str) -> tuple[str, int, bytes]:
        version = self.leased.args.partition(_SCHEMA)[0]
        logger.warning("job %s of type %s is parked: %s", self._id, self.leased.type, why)
        return "parked", int(version) if version.isdigit() else 0, write_failure(Failure("Parked", why))

    def _keep_ms(self) -> int:
        if self._extra.keep:
            return self._extra.keep
        return (DEFAULT_KEEP if self._task is None else self._task.keep) // _MS

    @property
    def _id(self) -> str:
        return job_id(self._queue.name, self.leased.part)

    # -- progress and log ------------------------------------------------------------------------------------------

    def _report(self, share: float | None, text: str) -> None:
        if self.over:
            return
        if share is None:
            self._lines.append(_encode([self._now_ms(), text]))
        else:
            self._progress = _encode([share, text, self._now_ms()])
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.get_running_loop().create_task(self._reports())

    async def _reports(self) -> None:
        """Send what was told; what is told meanwhile goes next."""
        while self._lines or self._progress:
            progress, lines = self._progress, self._lines[:100]
            self._progress = b""
            del self._lines[:100]
            try:
                await self._queue.report(self.leased, progress, lines)
            except StoreError as fault:
                logger.warning("what job %s told was lost: %s", self._id, fault)
                return

    async def _reported(self) -> None:
        """Wait until what was told has been sent: after the end it would be refused."""
        if self._reporting is not None:
            await asyncio.wait([self._reporting])
        await self._reports()


def _layered(layer: Middleware, context: JobContext, call: Next) -> Next:
    return lambda: layer(context, call)


def _failure(fault: BaseException) -> Failure:
    """What is kept of an error. The text of a foreign one may hold anything: only its name is, and where it arose."""
    frames = traceback.extract_tb(fault.__traceback__)
    where = ""
    if frames:
        last = frames[-1]
        where = f"{last.name}, {last.filename.rpartition('/')[2]}:{last.lineno}"
    return Failure(type(fault).__name__, str(fault) if isinstance(fault, CountersealError) else "", where)
