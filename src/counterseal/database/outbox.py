"""Outbox: jobs written in the transaction of what causes them, and the relay that runs them afterwards.

A job that was rolled back never was; one that was committed runs at least once, whatever dies in between. Jobs of one
aggregate run in the order in which their transactions committed, also across relays and after failures.
"""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from sqlalchemy import Insert, bindparam, case, delete, func, literal_column, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.background import Background, end, full_jitter, wait_for_event
from counterseal.core.codec import JsonValue, to_text
from counterseal.core.errors import CodecError, CountersealError
from counterseal.core.tokens import uuid7
from counterseal.database.claims import Claim, OutboxJob, claims_on, in_state
from counterseal.database.columns import Ts
from counterseal.database.engine import Database
from counterseal.database.tables import outbox_jobs

__all__ = ["AtMost", "Backlog", "Handler", "Outbox", "OutboxJob", "add_job"]

logger = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[OutboxJob], Awaitable[None]]
"""Does the work of one job, and may get the same job again. Returning means done, raising means once more, later."""

KEEP: Final = timedelta(days=30)
"""How long a job is kept after it was done."""

_JOBS: Final = outbox_jobs.c
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_OUTAGE_PAUSE_S: Final = 5.0
_FIRST_RETRY_S: Final = 1.0
_PRUNE_EVERY_MS: Final = 3_600_000
_LOOK_FOR_UNKNOWN_EVERY_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class AtMost:
    """A handler whose jobs are given up as `dead` when they have failed this often."""

    attempts: int
    handle: Handler


@dataclass(frozen=True, slots=True)
class Backlog:
    """What has not been relayed.

    `oldest_age` is how long the job that waits longest has been due; for one that has failed, how long ago it was
    written. `unknown` counts pending jobs of kinds that this relay has no handler for. `dead` ones were given up.
    """

    pending: int
    oldest_age: timedelta | None
    unknown: int
    dead: int


async def add_job(
    connection: AsyncConnection,
    kind: str,
    payload: Mapping[str, JsonValue],
    *,
    now_ms: int,
    dedupe_key: str | None = None,
    aggregate: str = "",
    run_at_ms: int | None = None,
    payload_version: int = 1,
) -> bool:
    """Write a job in the caller's transaction; False when there is a job of this `dedupe_key` already, done or not.

    With an `aggregate` it runs after every job of the same aggregate that was committed before, and nobody else can
    add one until the caller's transaction ends. One statement. After the commit, `Outbox.wake` spares it the wait.
    Raises `CodecError` for a payload that is not JSON, or has a NUL, which PostgreSQL can't keep.
    """
    if _NUL.search(to_text(dict(payload))):
        raise CodecError("the payload of a job has a NUL, which PostgreSQL can't keep")
    job = uuid7(now_ms)
    given = {
        "id": job,
        "kind": kind,
        "dedupe_key": dedupe_key if dedupe_key is not None else str(job),
        "aggregate": aggregate,
        "payload": dict(payload),
        "payload_version": payload_version,
        "run_at": _at(now_ms if run_at_ms is None else run_at_ms),
        "created_at": _at(now_ms),
    }
    statement = _STATEMENTS[connection.dialect.name, bool(aggregate)]
    answer = await connection.execute(statement, {f"the_{name}": value for name, value in given.items()})
    return answer.rowcount == 1


class Outbox:
    """The relay: runs the jobs of the outbox for as long as it is entered, one loop with a query every `period`.

    Several processes may run one. Up to `concurrency` jobs run at once, each for at most `timeout`; a job that fails
    runs again after a pause of up to 1 s that doubles with every attempt, to `longest_pause`, and meanwhile holds up
    its aggregate alone. Jobs of a kind that nobody handles wait, and are told of in the log and in `backlog`.

    While the database is down it goes on trying. Jobs done are removed after 30 days.
    """

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int],
        handlers: Mapping[str, Handler | AtMost],
        period: timedelta = timedelta(seconds=1),
        concurrency: int = 4,
        timeout: timedelta = timedelta(seconds=30),
        longest_pause: timedelta = timedelta(minutes=5),
        grace: timedelta = timedelta(seconds=1),
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        self._handlers = {
            kind: handler if isinstance(handler, AtMost) else AtMost(0, handler)
            for kind, handler in handlers.items()
        }
        self._kinds = sorted(self._handlers)
        self._claims = claims_on(database)
        self._period_s = period / timedelta(seconds=1)
        self._concurrency = concurrency
        self._timeout_s = timeout / timedelta(seconds=1)
        self._longest_pause_s = longest_pause / timedelta(seconds=1)
        self._grace_s = grace / timedelta(seconds=1)
        self._background = Background()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self._failures = 0
        self._prune_at_ms = 0
        self._look_for_unknown_at_ms = 0
        self._told: set[str] = set()

    async def __aenter__(self) -> Self:
        self._closing = False
        self._background.keep("relay the outbox", self._relay)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Take no more jobs and give those under way a moment; one that is cut off runs again. Safe to call twice."""
        self._closing = True
        await self._background.close()
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=self._grace_s)
        await end(self._deliveries)

    def wake(self) -> None:
        """Look for jobs now. To be called after a commit that added one. No round trip."""
        self._wake.set()

    async def backlog(self) -> Backlog:
        """What has not been relayed, counted now. One transaction with one statement. Raises as the database does."""
        now_ms = self._now_ms()
        now = _at(now_ms)
        since = case((_JOBS.attempts == 0, _JOBS.run_at), else_=_JOBS.created_at)
        waiting = select(
            func.count().label("pending"),
            func.min(case((or_(_JOBS.run_at <= now, _JOBS.attempts > 0), since)), type_=Ts()).label("since"),
            func.count(case((_JOBS.kind.not_in(self._kinds), 1))).label("unknown"),
        ).where(in_state("pending"))
        dead = select(func.count()).where(in_state("dead")).scalar_subquery()
        async with self._database.read() as connection:
            row = (await connection.execute(waiting.add_columns(dead.label("dead")))).one()
        age = None if row.since is None else max(now - row.since, timedelta(0))
        return Backlog(pending=row.pending, oldest_age=age, unknown=row.unknown, dead=row.dead)

    async def prune(self, limit: int = 1000) -> int:
        """Remove at most `limit` jobs that were done or cancelled 30 days ago. One transaction. Answers how many."""
        old = (
            select(_JOBS.id)
            .where(
                _JOBS.state.in_(("done", "cancelled")),
                _JOBS.finished_at < _at(self._now_ms()) - KEEP,
            )
            .limit(limit)
        )
        async with self._database.begin() as connection:
            answer = await connection.execute(delete(outbox_jobs).where(_JOBS.id.in_(old)))
            return answer.rowcount

    async def _relay(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
                await self._tidy()
            except CountersealError as fault:
                self._failed(fault)
            pause = self._period_s
            if self._failures:
                pause = full_jitter(self._failures, first=pause, longest=_LONGEST_OUTAGE_PAUSE_S)
            await wait_for_event(self._wake, pause)

    async def _look(self) -> None:
        if not self._kinds or len(self._deliveries) >= self._concurrency:
            return
        if not await self._claims.any_due(self._kinds, self._now()):
            self._answered()
            return
        delivery = asyncio.create_task(self._deliver(), name="counterseal: jobs of the outbox")
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self) -> None:
        """Run one job after another until none is due."""
        try:
            while not self._closing:
                async with self._claims.claim(self._kinds, self._now()) as claim:
                    if claim is None:
                        return
                    self._wake.set()  # there may be another, which need not wait for this one
                    await self._run(claim)
                self._answered()
        except CountersealError as fault:
            self._failed(fault)
        except Exception as fault:  # noqa: BLE001 - the loop looks again, and nobody else would hear of it
            logger.error("a delivery from the outbox was broken off (%s)", _where(fault))  # noqa: TRY400 - no text

    async def _run(self, claim: Claim) -> None:
        job = claim.job
        fault = await self._handle(job)
        now = self._now()
        if fault is None:
            await claim.write({"state": "done", "attempts": job.attempt, "finished_at": now})
            return
        error = _named(fault)
        limit = self._handlers[job.kind].attempts
        if limit and job.attempt >= limit:
            logger.error(
                "job %s of kind %s is given up after %d attempts (%s)",
                job.id, job.kind, job.attempt, _where(fault),
            )  # fmt: skip
            await claim.write(
                {"state": "dead", "attempts": job.attempt, "finished_at": now, "last_error": error}
            )
            return
        pause_s = full_jitter(job.attempt, first=_FIRST_RETRY_S, longest=self._longest_pause_s)
        logger.warning(
            "job %s of kind %s failed at attempt %d and runs again in %.1f s (%s)",
            job.id, job.kind, job.attempt, pause_s, _where(fault),
        )  # fmt: skip
        again = now + timedelta(seconds=pause_s)
        await claim.write({"attempts": job.attempt, "run_at": again, "last_error": error})

    async def _handle(self, job: OutboxJob) -> BaseException | None:
        """Run the handler of a job; what it failed with."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._handlers[job.kind].handle(job)
        except asyncio.CancelledError as cancellation:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return cancellation  # the handler's own
        except Exception as fault:  # noqa: BLE001 - whatever it is, the job runs again
            return fault
        return None

    async def _tidy(self) -> None:
        """What has to be done now and then: remove old jobs, and tell of those that nobody handles."""
        now_ms = self._now_ms()
        if now_ms >= self._look_for_unknown_at_ms:
            unknown = select(_JOBS.kind).where(in_state("pending"), _JOBS.kind.not_in(self._kinds)).distinct()
            async with self._database.read() as connection:
                kinds = set((await connection.execute(unknown)).scalars())
            for kind in sorted(kinds - self._told):
                logger.warning("jobs of kind %s wait in the outbox: nobody handles them here", kind)
            self._told = kinds
            self._look_for_unknown_at_ms = now_ms + _LOOK_FOR_UNKNOWN_EVERY_MS
        if now_ms >= self._prune_at_ms:
            limit = 1000
            while await self.prune(limit) == limit:
                pass
            self._prune_at_ms = now_ms + _PRUNE_EVERY_MS

    def _failed(self, fault: CountersealError) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning("jobs of the outbox can't be relayed, which is tried again and again: %s", fault)

    def _answered(self) -> None:
        if self._failures:
            logger.info("jobs of the outbox are relayed again")
        self._failures = 0

    def _now(self) -> datetime:
        return _at(self._now_ms())


def _at(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _named(fault: BaseException) -> str:
    """What is kept of a failure. The text of an error may hold anything, so only its type is, and our own code."""
    name = type(fault).__name__
    return f"{name} ({fault.code})" if isinstance(fault, CountersealError) else name


def _where(fault: BaseException) -> str:
    frames = traceback.extract_tb(fault.__traceback__)
    if not frames:
        return _named(fault)
    last = frames[-1]
    return f"{_named(fault)} in {last.name}, {last.filename.rpartition('/')[2]}:{last.lineno}"


def _statement(dialect: str, *, ordered: bool) -> Insert:
    """The insert of a job on a database, `ordered` when it has an aggregate."""
    names = ("id", "kind", "dedupe_key", "aggregate", "payload", "payload_version", "run_at", "created_at")
    given: dict[str, Any] = {name: bindparam(f"the_{name}", type_=_JOBS[name].type) for name in names}
    if dialect == "sqlite":
        # The transaction is the only writer, so numbers come in the order of the commits.
        given["seq"] = select(func.coalesce(func.max(_JOBS.seq), 0) + 1).scalar_subquery()
        return sqlite.insert(outbox_jobs).values(given).on_conflict_do_nothing(index_elements=["dedupe_key"])
    insert = postgresql.insert(outbox_jobs)
    if ordered:
        # The lock is taken before the row gets its number and ends with the transaction: within an aggregate, numbers
        # come in the order of the commits, and none that is smaller appears later.
        lock = func.pg_advisory_xact_lock(
            func.hashtextextended(literal_column("'counterseal outbox '").concat(given["aggregate"]), 0)
        ).alias("lock")
        insert = insert.from_select(list(given), select(*given.values()).select_from(lock))
    else:
        insert = insert.values(given)
    return insert.on_conflict_do_nothing(index_elements=["dedupe_key"])


_STATEMENTS: Final = {
    (dialect, ordered): _statement(dialect, ordered=ordered)
    for dialect in ("postgresql", "sqlite")
    for ordered in (False, True)
}
