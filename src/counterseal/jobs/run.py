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
_DEFAULT_KEEP_MS: Final = DEFAULT_KEEP // _MS
_encode: Final = msgspec.json.Encoder().encode
_SCHEMA: Final = b":"
_LINES_AT_ONCE: Final = 100
_NAME: Final = "counterseal: job"

Outcome: TypeAlias = tuple[str, int, bytes]
"""The outcome of a `Result`, its milliseconds and its text."""


class Workplace:
    """What the runs of one queue have in common. `ended` is called once for each, when its `result` is known.

    They run in copies of `within`, so that none sees a context variable that another job has set.
    """

    __slots__ = (
        "_unarmed", "ended", "middleware", "now_ms", "queue", "threads", "tracing", "within",
    )  # fmt: skip

    def __init__(
        self,
        queue: Queue,
        *,
        ended: Callable[[Run], None],
        now_ms: Callable[[], int],
        middleware: Sequence[Middleware] = (),
        threads: Executor | None = None,
        tracing: Tracing | None = None,
        within: contextvars.Context | None = None,
    ) -> None:
        self.queue = queue
        self.ended = ended
        self.now_ms = now_ms
        self.middleware = middleware
        self.threads = threads
        self.tracing = tracing
        self.within = within
        self._unarmed: list[Run] = []

    def arm(self, run: Run) -> None:
        """Have a run ended in time. Most have come to their end a turn of the event loop later, and need no timer."""
        if not self._unarmed:
            asyncio.get_running_loop().call_soon(self._arm_all)
        self._unarmed.append(run)

    def _arm_all(self) -> None:
        runs, self._unarmed = self._unarmed, []
        for run in runs:
            if not run.over:
                run.arm()


class Run:
    """A job that this worker holds and has begun."""

    running: asyncio.Task[None] | None = None
    result: Result | None = None
    """What is to be handed in; None when the job was lost."""
    seconds = 0.0
    over = False
    """Whether it has come to its end, so that nobody needs to ask for it."""

    # Of the class until they are set: most runs set few of them.
    _abandoned = False
    _extra: Extra = NO_EXTRA
    _context: JobContext | None = None
    _why = ""
    _reason = ""
    _limit_s = 0.0
    _limit_why = ""
    _timer: asyncio.TimerHandle | None = None
    _began = 0.0
    _progress = b""
    _lines: list[bytes] | None = None
    _reporting: asyncio.Task[None] | None = None

    def __init__(self, leased: Leased, task: Task[Any, Any] | None, place: Workplace) -> None:
        self.leased = leased
        self._task = task
        self._place = place

    def start(self) -> None:
        """Begin."""
        within = self._place.within
        context = None if within is None else within.copy()
        self.running = asyncio.get_running_loop().create_task(self._go(), name=_NAME, context=context)

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

    def arm(self) -> None:
        """Have it ended when its time is over."""
        left_s = self._limit_s - (time.perf_counter() - self._began)
        self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self.end, self._limit_why)

    async def _go(self) -> None:
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
                self._place.ended(self)

    async def _outcome(self) -> Outcome | None:
        task, leased = self._task, self.leased
        if task is None:
            return self._parked("no handler in this release" if leased.type in KNOWN else "unknown task")
        try:
            if leased.extra:
                self._extra = read_extra(leased.extra)
            args, kwargs = task.decode(leased.args)
        except (ArgumentInvalid, msgspec.MsgspecError, ConfigurationError, ValueError) as fault:
            return self._unreadable(fault)
        if (refused := self._limit(task)) is not None:
            return refused
        place = self._place
        if place.tracing is None:
            return await self._ran(task, args, kwargs)
        with place.tracing.process(
            leased, queue=place.queue.name, extra=self._extra, now_ms=place.now_ms()
        ) as running:
            outcome = await self._ran(task, args, kwargs)
            running.ended(outcome)
            return outcome

    def _unreadable(self, fault: Exception) -> Outcome:
        if not isinstance(fault, ArgumentInvalid):
            return self._failed(Failure("CodecError", "the options of the job can't be read"))
        if fault.later:
            return self._parked(str(fault))
        return self._failed(Failure("ArgumentInvalid", str(fault)))

    async def _ran(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome | None:
        context = self._made_context(task)
        try:
            if task.is_async and not self._place.middleware:
                value = await task.function(context, *args, **kwargs)
            else:
                value = await self._call(task, context, args, kwargs)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except asyncio.CancelledError:
            return self._stopped()
        except BaseException as fault:  # noqa: BLE001 - SystemExit too: it ends a job, and not its worker
            return self._raised(fault)
        if self._why in ("timeout", "deadline"):  # a plain function can't be stopped; it came too late
            return self._stopped()
        return self._completed(value)

    def _made_context(self, task: Task[Any, Any]) -> JobContext:
        extra, leased, queue = self._extra, self.leased, self._place.queue.name
        whole = job_id(queue, leased.part)
        context = self._context = JobContext(
            id=whole,
            type=leased.type,
            queue=queue,
            attempt=leased.attempt,
            token=int(leased.token),
            idempotency_key=extra.key or whole,
            deadline=None if extra.deadline is None else moment(extra.deadline),
            report=self._report,
            loop=None if task.is_async else asyncio.get_running_loop(),
        )
        if self._why:
            context.ask_to_end(self._why)
        return context

    def _limit(self, task: Task[Any, Any]) -> Outcome | None:
        """Have the run ended in time; the outcome when it may not begin."""
        extra = self._extra
        timeout_s = extra.timeout / 1000 if extra.timeout else task.timeout_s
        why = "timeout"
        if extra.deadline is not None:
            left_s = (extra.deadline - self._place.now_ms()) / 1000
            if left_s <= 0:
                return self._failed(
                    Failure("DeadlineExceeded", "the deadline had passed before the job began")
                )
            if timeout_s is None or left_s < timeout_s:
                timeout_s, why = left_s, "deadline"
        if timeout_s is not None:
            self._limit_s, self._limit_why = timeout_s, why
            self._place.arm(self)
        return None

    async def _call(
        self, task: Task[Any, Any], context: JobContext, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a plain function, or one within middleware."""
        function: Any = task.function

        async def innermost() -> Any:
            if task.is_async:
                return await function(context, *args, **kwargs)
            return await self._threaded(lambda: function(context, *args, **kwargs))

        call: Next = innermost
        for layer in reversed(self._place.middleware):
            call = _layered(layer, context, call)
        return await call()

    async def _threaded(self, call: Callable[[], Any]) -> Any:
        """Run a plain function in a thread. It can't be stopped, so its end is waited for, whatever happens."""
        if self._place.threads is None:
            raise RuntimeError("a plain function needs a thread")
        within = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._place.threads, within.run, call)

    def _completed(self, value: Any) -> Outcome:
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

    def _stopped(self) -> Outcome | None:
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

    def _raised(self, fault: BaseException) -> Outcome | None:
        if self._why and not isinstance(fault, NonRetryable):
            return self._stopped()  # that it was asked to end is why it raised
        failure = _failure(fault)
        if isinstance(fault, NonRetryable):
            logger.error("job %s of type %s failed for good: %s", self._id, self.leased.type, failure)
            return self._failed(failure)
        pause = fault.pause // _MS if isinstance(fault, RetryLater) and fault.pause is not None else None
        return self._again(failure, pause)

    def _again(self, failure: Failure, pause: int | None = None) -> Outcome:
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

    def _failed(self, failure: Failure) -> Outcome:
        return "failed", _DEAD_MS, write_failure(failure)

    def _parked(self, why: str) -> Outcome:
        version = self.leased.args.partition(_SCHEMA)[0]
        logger.warning("job %s of type %s is parked: %s", self._id, self.leased.type, why)
        return "parked", int(version) if version.isdigit() else 0, write_failure(Failure("Parked", why))

    def _keep_ms(self) -> int:
        if self._extra.keep:
            return self._extra.keep
        return _DEFAULT_KEEP_MS if self._task is None else self._task.keep_ms

    @property
    def _id(self) -> str:
        return job_id(self._place.queue.name, self.leased.part)

    # -- progress and log ------------------------------------------------------------------------------------------

    def _report(self, share: float | None, text: str) -> None:
        if self.over:
            return
        now_ms = self._place.now_ms()
        if share is None:
            if self._lines is None:
                self._lines = []
            self._lines.append(_encode([now_ms, text]))
        else:
            self._progress = _encode([share, text, now_ms])
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.get_running_loop().create_task(self._reports())

    async def _reports(self) -> None:
        """Send what was told; what is told meanwhile goes next."""
        while self._lines or self._progress:
            waiting = self._lines or []
            progress, lines = self._progress, waiting[:_LINES_AT_ONCE]
            self._progress, self._lines = b"", waiting[_LINES_AT_ONCE:]
            try:
                await self._place.queue.report(self.leased, progress, lines)
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
