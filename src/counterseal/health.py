"""Health: whether every service does its work, found out by letting each of them do some.

It knows no service: it is given a callable for each thing to try. What is true in an answer has been tried for that
answer; a number that could not be read is 0 beside `"status": "unhealthy"`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from counterseal.core.codec import JsonValue
from counterseal.core.errors import (
    CodecError,
    CommandError,
    CountersealError,
    DatabaseError,
    StoreBusy,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from counterseal.core.settings import Settings
from counterseal.core.shared import Shared
from counterseal.store.base import Store
from counterseal.store.info import describe_server, evicting_policy, measure_latency

logger = logging.getLogger(__name__)

BUDGET: Final = timedelta(milliseconds=700)
"""How long each thing that is tried may take; all are tried at the same time."""

CHECK_PERIOD: Final = timedelta(milliseconds=250)
READY_PERIOD: Final = timedelta(seconds=1)
JOB_TYPES: Final = ("email", "pdf-generation", "notification", "audit-log", "analytics-aggregation")
"""The types of jobs whose statistics are told."""

_SENTENCES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (StoreTimeout, "Redis did not answer in time."),
    (StoreBusy, "Too much is under way to Redis."),
    (StoreUnavailable, "Redis can't be reached."),
    (CommandError, "Redis refused a command."),
    (StoreError, "Redis gave an answer that can't be used."),
    (CodecError, "A stored value can't be read."),
    (DatabaseError, "The database can't be used."),
)
_KIND: Final = re.compile(r"[A-Z]{2,20}")

Body: TypeAlias = dict[str, JsonValue]
_T = TypeVar("_T")


class CacheOutcome(Protocol):
    """What the cache did with a value of its own."""

    @property
    def set(self) -> bool: ...
    @property
    def get(self) -> bool: ...
    @property
    def delete(self) -> bool: ...
    @property
    def fault(self) -> Exception | None: ...


class JobCounts(Protocol):
    """The jobs of one type."""

    @property
    def total(self) -> int: ...
    @property
    def completed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def success_rate(self) -> float: ...


class TodayCounts(Protocol):
    """What has been counted today."""

    @property
    def views(self) -> int: ...
    @property
    def signatures(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What is tried of each service. Each is called anew for every answer, and raises when it does not work."""

    cache: Callable[[], Awaitable[CacheOutcome]]
    job_stats: Callable[[], Awaitable[Mapping[str, JobCounts]]]
    can_access_jobs: Callable[[], Awaitable[bool]]
    today: Callable[[], Awaitable[TodayCounts]]
    performance: Callable[[], Awaitable[object]]
    database: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The answer of a health check: whether all is well, and the members of the JSON that says so."""

    healthy: bool
    body: Body


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether what is needed to serve is there; what is not there is told in `faults`, by name."""

    ready: bool
    faults: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Tried(Generic[_T]):
    """The outcome of one try: its value, or a sentence that says why there is none; and how long it took."""

    value: _T | None
    fault: str | None
    ms: int


class Health:
    """Checks the services, at most four times a second however many ask."""

    def __init__(
        self, store: Store, *, probes: Probes, settings: Settings, budget: timedelta = BUDGET
    ) -> None:
        self._store = store
        self._probes = probes
        self._settings = settings
        self._budget = budget
        self._checks = Shared(self._check, CHECK_PERIOD, name="health")
        self._readiness = Shared(self._ready, READY_PERIOD, name="readiness")

    async def check(self) -> HealthReport:
        """The state of all services, at most 250 ms old. It takes no longer than the budget, and never raises.

        About eight round trips, most of them at the same time.
        """
        return await self._checks.get()

    async def ready(self) -> Readiness:
        """Whether Redis and the database answer, at most 1 s old. One round trip to each.

        With `COUNTERSEAL_REQUIRE_NOEVICTION` also whether Redis keeps what it has when its memory is full.
        """
        return await self._readiness.get()

    async def detailed_diagnostics(self) -> Body:
        """What an operator asks for: server, latency, memory, persistence, database, and this connection's counters.

        A part that the server does not tell is null. No secret and no address is among it. About 22 round trips.
        """
        latency, info, database = await asyncio.gather(
            self._try(lambda: measure_latency(self._store)),
            self._try(lambda: describe_server(self._store)),
            self._try(self._probes.database),
        )
        server = self._store.server
        return {
            "server": {
                "product": server.product,
                "version": ".".join(map(str, server.version)),
                "mode": server.mode,
                "connection": self._store.kind,
            },
            "latency": latency.value,
            **(info.value or {"memory": None, "persistence": None, "load": None}),
            "client": {"available": self._store.available, **asdict(self._store.counts)},
            "database": {"status": _status(database.fault), **_error(database.fault), "latency": database.ms},
        }

    async def close(self) -> None:
        """End a check that is under way."""
        await self._checks.close()
        await self._readiness.close()

    async def _check(self) -> HealthReport:
        started = time.perf_counter()
        redis, cache, jobs, analytics = await asyncio.gather(
            self._redis(), self._cache(), self._job_queue(), self._analytics()
        )
        services = {"redis": redis, "cache": cache, "jobQueue": jobs, "analytics": analytics}
        healthy = all("error" not in service for service in services.values())
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body: Body = {
            "status": "healthy" if healthy else "unhealthy",
            "timestamp": moment,
            "responseTime": _ms_since(started),
            "services": {**services},
            "environment": self._environment(),
        }
        return HealthReport(healthy, body)

    async def _redis(self) -> Body:
        tried = await self._try(lambda: self._store.command("PING"))
        return {"status": _status(tried.fault), "latency": tried.ms, **_error(tried.fault)}

    async def _cache(self) -> Body:
        tried = await self._try(self._probes.cache)
        done = tried.value
        operations: Body = {
            "set": done is not None and done.set,
            "get": done is not None and done.get,
            "delete": done is not None and done.delete,
        }
        fault = tried.fault
        if done is not None and not all(operations.values()):
            failed = ", ".join(name for name, worked in operations.items() if not worked)
            cause = _sentence(done.fault) if done.fault else "A value was not what it had to be."
            fault = f"{cause.removesuffix('.')}; what did not work: {failed}."
        return {"status": _status(fault), "operations": operations, **_error(fault)}

    async def _job_queue(self) -> Body:
        stats, access = await asyncio.gather(
            self._try(self._probes.job_stats), self._try(self._probes.can_access_jobs)
        )
        read = stats.value or {}
        fault = stats.fault or access.fault or (None if access.value else "The lists of jobs can't be read.")
        return {
            "status": _status(fault),
            "stats": {name: _counts(read.get(name)) for name in JOB_TYPES},
            "canAccessJobs": access.value is True,
            **_error(fault),
        }

    async def _analytics(self) -> Body:
        today, performance = await asyncio.gather(
            self._try(self._probes.today), self._try(self._probes.performance)
        )
        fault = today.fault or performance.fault
        return {
            "status": _status(fault),
            "hasAnalytics": today.fault is None,
            "hasPerformanceMetrics": performance.fault is None,
            "todayViews": today.value.views if today.value else 0,
            "todaySignatures": today.value.signatures if today.value else 0,
            **_error(fault),
        }

    async def _ready(self) -> Readiness:
        redis, database = await asyncio.gather(self._try(self._eviction), self._try(self._probes.database))
        found = {"redis": redis.fault or redis.value or None, "database": database.fault}
        faults = {name: fault for name, fault in found.items() if fault is not None}
        return Readiness(not faults, faults)

    async def _eviction(self) -> str:
        """What is wrong with a Redis that answers."""
        if not self._settings.redis.require_noeviction:
            await self._store.command("PING")
            return ""
        policy = await evicting_policy(self._store)
        return (
            f"Redis may evict jobs and sessions: maxmemory-policy is {policy} and has to be noeviction."
            if policy
            else ""
        )

    def _environment(self) -> Body:
        redis = self._settings.redis
        return {
            "hasRedisUrl": redis.url is not None or redis.upstash_url is not None,
            "hasRedisToken": redis.upstash_token is not None,
            "hasQStashToken": self._settings.qstash.token is not None,
            "nodeEnv": self._settings.environment.value,
        }

    async def _try(self, call: Callable[[], Awaitable[_T]]) -> _Tried[_T]:
        """Let something happen within the budget. Whatever it raises becomes a sentence."""
        started = time.perf_counter()
        value: _T | None = None
        fault: str | None = None
        try:
            async with asyncio.timeout(self._budget / timedelta(seconds=1)):
                value = await call()
        except TimeoutError:
            fault = f"No answer came within {self._budget // timedelta(milliseconds=1)} ms."
        except CountersealError as error:
            fault = _sentence(error)
        except Exception as error:
            logger.exception("a health check met an unexpected error")
            fault = _sentence(error)
        return _Tried(value, fault, _ms_since(started))


def _counts(counts: JobCounts | None) -> Body:
    if counts is None:
        return {"total": 0, "completed": 0, "failed": 0, "pending": 0, "successRate": 0}
    rate = counts.success_rate
    return {
        "total": counts.total,
        "completed": counts.completed,
        "failed": counts.failed,
        "pending": counts.pending,
        "successRate": int(rate) if rate == int(rate) else rate,
    }


def _sentence(error: BaseException) -> str:
    """One sentence for anybody to read: nothing that the server or the driver said is repeated."""
    if isinstance(error, CommandError) and _KIND.fullmatch(error.kind):
        return f"Redis refused a command ({error.kind})."
    return next(
        (text for kind, text in _SENTENCES if isinstance(error, kind)), "An unexpected error occurred."
    )


def _status(fault: str | None) -> str:
    return "healthy" if fault is None else "unhealthy"


def _error(fault: str | None) -> Body:
    return {} if fault is None else {"error": fault}


def _ms_since(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)
