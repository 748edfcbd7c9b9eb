"""Counterseal: builds every service from the settings, opens them in order and closes them in reverse."""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from opentelemetry.trace import TracerProvider

from counterseal.accounts.attempts import Attempts
from counterseal.accounts.policies import COUNTED_ELSEWHERE, POLICIES
from counterseal.accounts.service import Accounts
from counterseal.analytics.service import Analytics
from counterseal.audit.service import Audit
from counterseal.cache.kind import Kind, configured
from counterseal.cache.service import Cache
from counterseal.core.background import Background
from counterseal.core.errors import ConfigurationError, DatabaseError
from counterseal.core.events import Events, Listener
from counterseal.core.keyring import Keyring
from counterseal.core.settings import Environment, Settings
from counterseal.database.engine import Database
from counterseal.database.outbox import Outbox
from counterseal.health import Health, Probes
from counterseal.jobs.carriage import Carriage
from counterseal.jobs.context import JobContext
from counterseal.jobs.cron import Cron
from counterseal.jobs.options import Priority
from counterseal.jobs.run import Middleware
from counterseal.jobs.schedule import Schedule
from counterseal.jobs.schedule_carrying import ScheduleCarrying
from counterseal.jobs.scheduler import Scheduler
from counterseal.jobs.schedules import APPLICATION, PRODUCT, Schedules
from counterseal.jobs.service import OUTBOX_KIND, Jobs
from counterseal.jobs.task import DEFAULT_QUEUE, Task, task
from counterseal.jobs.tracing import tracing_of
from counterseal.jobs.types import CLEANUP_EXPIRED
from counterseal.jobs.worker import POLL, REST_POLL, Worker
from counterseal.ratelimit.policy import Elsewhere, Policy
from counterseal.ratelimit.service import RateLimits
from counterseal.sessions.service import Sessions
from counterseal.store.keys import Keys
from counterseal.store.open import open_store

_T = TypeVar("_T")

_CLEAN_EVERY_S: Final = 600.0
_OWN_SCHEDULES: Final = (
    Schedule(id=CLEANUP_EXPIRED, type=CLEANUP_EXPIRED, when=Cron("H * * * *"), grace=timedelta(minutes=5)),
)
_CLEAN_AT_ONCE: Final = 1000


class Counterseal:
    """All services of one configuration: `async with Counterseal.open() as seal`.

    The constructor does no input or output, so an application can be built before there is an event loop. `tasks`,
    `kinds` of cached values and `limits` are the application's own, besides those that are always there or in place of
    one of the same name. `elsewhere` counts for a limiter, by its name, while Redis does not answer. `listeners` are
    told of events, by their class: `{SessionRevoked: [tell_somebody]}`.

    `schedules` are those that the code declares: what it declared before and does no longer is removed from the store
    when a scheduler starts. None declares nothing, and leaves those of the application as they are.

    Jobs make spans of OpenTelemetry by `tracer_provider`, else by the one that the application has set up before this.

    Raises `ConfigurationError` with a sentence for every fault: settings that do not fit together, a URL that is not
    understood, a lifetime of a kind that nobody declared.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tasks: Iterable[Task[Any, Any]] = (),
        schedules: Iterable[Schedule] | None = None,
        kinds: Iterable[Kind[Any]] = (),
        limits: Iterable[Policy] = (),
        elsewhere: Mapping[str, Elsewhere] | None = None,
        listeners: Mapping[type, Sequence[Listener]] | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        kinds = tuple(kinds)
        faults: list[str] = []
        store = _made(faults, lambda: open_store(settings))
        database = _made(
            faults,
            lambda: Database(
                settings.database.url, data_dir=settings.data_dir, timeout=settings.database.timeout
            ),
        )
        keyring = _made(faults, lambda: _keyring(settings))
        _made(faults, lambda: configured(kinds, settings.cache_ttl))
        if faults or store is None or database is None or keyring is None:
            raise ConfigurationError(faults)
        keys = Keys(settings.namespace)
        self.settings = settings
        self.store = store
        self.database = database
        self.cache = Cache(
            store,
            keys=keys,
            kinds=kinds,
            ttls=settings.cache_ttl,
            near_bytes=settings.cache.near_bytes,
        )
        attempts = Attempts(database, now_ms=store.now_ms, policies=COUNTED_ELSEWHERE)
        own = tuple(limits)
        names = {policy.name for policy in own}
        self.rate_limits = RateLimits(
            store,
            keys=keys,
            policies=(*(policy for policy in POLICIES if policy.name not in names), *own),
            elsewhere={**dict.fromkeys(COUNTED_ELSEWHERE.keys() - names, attempts), **(elsewhere or {})},
            processes=settings.processes,
        )
        self.events = Events(listeners or {})
        self.audit = Audit(database, now_ms=store.now_ms)
        self.sessions = Sessions(
            store,
            database,
            keys=keys,
            keyring=keyring,
            settings=settings.sessions,
            audit=self.audit.append,
            audit_many=self.audit.append_many,
            emit=self.events.emit,
            wake=self._wake,
        )
        own_tasks = self._own_tasks(tasks)
        self._tracing = tracing_of(tracer_provider)
        self._workers = weakref.WeakSet[Worker]()
        self.carriage = Carriage(settings, store, keys=keys, tasks=own_tasks, tracing=self._tracing)
        self.jobs = Jobs(
            store,
            keys=keys,
            tasks=own_tasks,
            carrier=self.carriage.carrier,
            max_payload=settings.jobs.max_payload,
            min_replicas=settings.redis.min_replicas,
            tracing=self._tracing,
        )
        carrier = self.carriage.schedules
        self.schedules = Schedules(store, keys=keys, jobs=self.jobs, code=_code(schedules), carrier=carrier)
        self.carrying: ScheduleCarrying | None = None
        """Brings the schedules to QStash, when that is the carrier."""
        if carrier.active:
            self.carrying = ScheduleCarrying(store, schedules=self.schedules)
        self.outbox = Outbox(
            database, now_ms=store.now_ms, handlers={**self.sessions.handlers, OUTBOX_KIND: self.jobs.relay}
        )
        self.accounts = Accounts(
            database,
            sessions=self.sessions,
            rate_limits=self.rate_limits,
            keyring=keyring,
            audit=self.audit,
            events=self.events,
            cache=self.cache,
            now_ms=store.now_ms,
        )
        self.analytics = Analytics(self.store, keys=keys)
        self.health = Health(self.store, probes=self._probes(), settings=settings)
        self._keys = keys
        self.keyring = keyring
        self._background = Background()
        self._open: AsyncExitStack | None = None

    @classmethod
    def open(
        cls,
        settings: Settings | None = None,
        *,
        tasks: Iterable[Task[Any, Any]] = (),
        schedules: Iterable[Schedule] | None = None,
        kinds: Iterable[Kind[Any]] = (),
        limits: Iterable[Policy] = (),
        elsewhere: Mapping[str, Elsewhere] | None = None,
        listeners: Mapping[type, Sequence[Listener]] | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> Self:
        """The services of these settings, by default of the environment's, to be used as `async with`.

        Raises `ConfigurationError` with a sentence for every fault of the settings.
        """
        chosen = settings if settings is not None else Settings.load()
        return cls(
            chosen,
            tasks=tasks,
            schedules=schedules,
            kinds=kinds,
            limits=limits,
            elsewhere=elsewhere,
            listeners=listeners,
            tracer_provider=tracer_provider,
        )

    def worker(
        self,
        *,
        queues: Sequence[str] | Mapping[str, int] | None = None,
        concurrency: int | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> Worker:
        """A worker for the jobs of these services, to be used as `async with` inside this one.

        By default it works off the queues of the tasks, and the default queue, as `COUNTERSEAL_JOBS_CONCURRENCY` says.
        """
        tasks = self.jobs.tasks.values()
        named = queues or sorted({DEFAULT_QUEUE, *(task.queue for task in tasks)})
        worker = Worker(
            self.store,
            keys=self._keys,
            tasks=tasks,
            queues=named,
            concurrency=concurrency or self.settings.jobs.concurrency,
            lease=self.settings.jobs.lease,
            poll=REST_POLL if self.store.kind == "rest" else POLL,
            grace=self.settings.web.grace / 2,
            middleware=middleware,
            tracing=self._tracing,
        )
        self._workers.add(worker)
        return worker

    @property
    def workers(self) -> list[Worker]:
        """The workers of this process that were made here and are still about, entered or not."""
        return list(self._workers)

    def scheduler(self) -> Scheduler:
        """Makes the jobs of the schedules, to be used as `async with` inside this one.

        Any number of processes may have one: each tick makes one job. At least one must, beside the workers; when
        QStash is the carrier, only for schedules that it can't carry.
        """
        return Scheduler(self.store, keys=self._keys, schedules=self.schedules)

    async def __aenter__(self) -> Self:
        """Read the keys, connect to Redis, then to the database. When one fails, what was opened is closed again.

        Raises `ConfigurationError`, `StoreUnavailable` or `DatabaseUnavailable`.
        """
        async with AsyncExitStack() as stack:
            await self.keyring.open()
            await stack.enter_async_context(self.store)
            await stack.enter_async_context(self.cache)
            await stack.enter_async_context(self.rate_limits)
            await stack.enter_async_context(self.database)
            await self.database.prepare()
            stack.push_async_callback(self.events.close)
            await stack.enter_async_context(self.sessions)
            stack.push_async_callback(self.jobs.close)
            await stack.enter_async_context(self.carriage)
            if self.carrying is not None:
                await stack.enter_async_context(self.carrying)
            await stack.enter_async_context(self.outbox)
            stack.push_async_callback(self.health.close)
            stack.push_async_callback(self._background.close)
            self._background.keep("clean up what has expired", self._clean_up)
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._open = self._open, None
        if stack is not None:
            await stack.aclose()

    async def clean_up(self) -> None:
        """Remove sessions, tokens and jobs of the outbox that have expired: what `cleanup-expired` does."""
        while await self.sessions.cleanup_expired(_CLEAN_AT_ONCE) == _CLEAN_AT_ONCE:
            pass
        await self.accounts.cleanup_expired()
        while await self.outbox.prune(_CLEAN_AT_ONCE) == _CLEAN_AT_ONCE:
            pass

    async def _clean_up(self) -> None:
        """Remove what has expired, every ten minutes. Processes do it in turn, or at once: it does no harm.

        Besides the schedule, for programs that run neither a scheduler nor a worker, and for the time without Redis.
        """
        while True:
            await asyncio.sleep(_CLEAN_EVERY_S * random.uniform(0.5, 1))  # noqa: S311 - spreads load, hides nothing
            with suppress(DatabaseError):  # it is told of where somebody waits for it
                await self.clean_up()

    def _own_tasks(self, tasks: Iterable[Task[Any, Any]]) -> list[Task[Any, Any]]:
        """Those of this release, unless the application gives one of the same name; then the application's."""
        given = list(tasks)
        names = {one.name for one in given}

        @task(name=CLEANUP_EXPIRED, retry=2, timeout=timedelta(minutes=10), priority=Priority.LOW)
        async def cleanup_expired(context: JobContext) -> None:
            await self.clean_up()

        return [*(one for one in (cleanup_expired,) if one.name not in names), *given]

    def _wake(self) -> None:
        self.outbox.wake()

    def _probes(self) -> Probes:
        return Probes(
            cache=self.cache.probe,
            job_stats=self.jobs.stats,
            can_access_jobs=self.jobs.can_access,
            today=self.analytics.today,
            performance=self.analytics.performance,
            database=self.database.ping,
        )


def _keyring(settings: Settings) -> Keyring:
    """The keys of the settings; in development those of a file, which is made when there is none."""
    file = None if settings.environment is Environment.PRODUCTION else settings.data_dir / "secrets"
    return Keyring(settings.secret_keys, file=file)


def _code(schedules: Iterable[Schedule] | None) -> dict[str, tuple[Schedule, ...]]:
    """What the code declares, by source. An application may have one of its own in place of one of this release."""
    if schedules is None:
        return {PRODUCT: _OWN_SCHEDULES}
    given = tuple(schedules)
    ids = {schedule.id for schedule in given}
    return {PRODUCT: tuple(own for own in _OWN_SCHEDULES if own.id not in ids), APPLICATION: given}


def _made(faults: list[str], make: Callable[[], _T]) -> _T | None:
    """What `make` makes; None when it is refused, and why is added to `faults`."""
    try:
        return make()
    except ConfigurationError as refusal:
        faults.extend(refusal.faults)
        return None
