"""Metrics for Prometheus, in a registry of the application's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from counterseal.app import Counterseal
from counterseal.core.errors import CountersealError
from counterseal.database.outbox import Backlog, Outbox
from counterseal.web.job_metrics import JobMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BACKLOG_FRESH_S = 5.0
_BACKLOG_TIMEOUT_S = 1.0
_STORE_COUNTS = {
    "commands": "Commands sent to Redis.",
    "batches": "Writes to Redis; commands of one turn of the event loop share one.",
    "timeouts": "Commands that Redis did not answer in time.",
    "failures": "Commands that failed for lack of a connection or an answer.",
    "reconnects": "Connections that replaced a lost one.",
    "bytes_out": "Bytes sent to Redis.",
    "bytes_in": "Bytes received from Redis.",
}
_LIMIT_COUNTS = {
    "allowed": "Calls that a rate limiter allowed.",
    "refused": "Calls that a rate limiter refused, those it answered without asking Redis among them.",
    "blocked": "Calls that a rate limiter refused without asking Redis, because the answer was known.",
    "degraded": "Calls that a rate limiter decided without Redis, because it did not answer.",
}


class HttpMetrics:
    """HTTP requests by method, route template and status, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "counterseal_http_requests",
            "HTTP requests answered; 499 stands for a client that went away first.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "counterseal_http_request_seconds",
            "Time from the arrival of a request to the end of its response.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class ServiceMetrics(Collector):
    """What the services say of themselves at the moment of asking."""

    def __init__(self, seal: Counterseal) -> None:
        self._seal = seal

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("counterseal", "What runs here.", value={"version": version("counterseal")})
        yield from self._store()
        yield from self._limits()
        yield from self._cache()
        yield from self._sessions()
        yield from self._deliveries()

    def _store(self) -> Iterable[Metric]:
        store = self._seal.store
        server = store.server
        yield InfoMetricFamily(
            "counterseal_store",
            "The Redis that is used.",
            value={
                "connection": store.kind,
                "product": server.product,
                "version": ".".join(map(str, server.version)),
                "mode": server.mode,
            },
        )
        yield GaugeMetricFamily(
            "counterseal_store_available",
            "1 when the next command would be sent; 0 while the connection is down or the breaker is open.",
            value=float(store.available),
        )
        for name, text in _STORE_COUNTS.items():
            yield CounterMetricFamily(
                f"counterseal_store_{name}", text, value=float(getattr(store.counts, name))
            )

    def _limits(self) -> Iterable[Metric]:
        totals = self._seal.rate_limits.totals
        for name, text in _LIMIT_COUNTS.items():
            metric = CounterMetricFamily(f"counterseal_rate_limit_{name}", text, labels=("limiter",))
            for limiter, counts in totals.items():
                metric.add_metric((limiter,), float(getattr(counts, name)))
            yield metric

    def _cache(self) -> Iterable[Metric]:
        reads = CounterMetricFamily(
            "counterseal_cache_reads",
            "Reads of cached values by outcome: hit, near, stale, miss; degraded ones were loaded without Redis.",
            labels=("kind", "outcome"),
        )
        loads = CounterMetricFamily(
            "counterseal_cache_loads", "Values that were asked of their loader.", labels=("kind",)
        )
        seconds = CounterMetricFamily(
            "counterseal_cache_load_seconds", "Time that loaders took.", labels=("kind",)
        )
        size = CounterMetricFamily(
            "counterseal_cache_bytes", "Bytes of stored values.", labels=("kind", "direction")
        )
        for kind, stats in self._seal.cache.totals.items():
            outcomes = {
                "hit": stats.hits,
                "near": stats.near,
                "stale": stats.stale,
                "miss": stats.misses,
                "degraded": stats.degraded,
            }
            for outcome, count in outcomes.items():
                reads.add_metric((kind, outcome), count)
            loads.add_metric((kind,), stats.loads)
            seconds.add_metric((kind,), stats.load_ms / 1000)
            size.add_metric((kind, "read"), stats.bytes_read)
            size.add_metric((kind, "written"), stats.bytes_written)
        yield from (reads, loads, seconds, size)
        yield GaugeMetricFamily(
            "counterseal_cache_near_bytes",
            "Bytes of cached values in the memory of this process.",
            value=float(self._seal.cache.near_bytes),
        )

    def _sessions(self) -> Iterable[Metric]:
        counts = self._seal.sessions.counts
        reads = CounterMetricFamily(
            "counterseal_session_reads",
            "Reads of sessions: a hit needs Redis alone, checked ones the database too; stale ones had no database,"
            " and those without_redis no Redis.",
            labels=("outcome",),
        )
        outcomes = {
            "hit": counts.hits,
            "checked": counts.checked,
            "stale": counts.stale,
            "without_redis": counts.without_redis,
        }
        for outcome, count in outcomes.items():
            reads.add_metric((outcome,), count)
        events = CounterMetricFamily(
            "counterseal_session_events", "What happened to sessions here, by event.", labels=("event",)
        )
        for name in sorted(counts.events):
            events.add_metric((name,), counts.events[name])
        yield from (reads, events)
        yield GaugeMetricFamily(
            "counterseal_session_pending_seconds",
            "How long the oldest change of a session has waited for the database, which was down when it was made.",
            value=self._seal.sessions.pending_age.total_seconds(),
        )

    def _deliveries(self) -> Iterable[Metric]:
        deliveries = self._seal.carriage.deliveries
        if deliveries is None:
            return
        outcomes = CounterMetricFamily(
            "counterseal_job_deliveries",
            "Deliveries of QStash: accepted, and refused because they were forged or had come before (replayed).",
            labels=("outcome",),
        )
        for name in ("accepted", "forged", "replayed"):
            outcomes.add_metric((name,), float(getattr(deliveries.counts, name)))
        yield outcomes


class OutboxMetrics(Collector):
    """What waits in the outbox, as the database told at most 5 s ago; nothing while it does not answer."""

    def __init__(self, outbox: Outbox, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._outbox = outbox
        self._clock = clock
        self._read_at: float | None = None
        self._backlog: Backlog | None = None

    async def read(self) -> None:
        """Ask the database when what is known is old, for at most a second. Raises nothing."""
        now = self._clock()
        if self._read_at is not None and now - self._read_at < _BACKLOG_FRESH_S:
            return
        self._read_at = now
        try:
            async with asyncio.timeout(_BACKLOG_TIMEOUT_S):
                self._backlog = await self._outbox.backlog()
        except (CountersealError, TimeoutError):
            self._backlog = None

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(
            "counterseal_outbox_jobs",
            "Jobs of the outbox: pending, those among them that nobody handles here (unknown), and given up (dead).",
            labels=("state",),
        )
        age = GaugeMetricFamily(
            "counterseal_outbox_oldest_seconds",
            "How long the job of the outbox that waits longest has been due; 0 when none is.",
        )
        backlog = self._backlog
        if backlog is not None:
            jobs.add_metric(("pending",), backlog.pending)
            jobs.add_metric(("unknown",), backlog.unknown)
            jobs.add_metric(("dead",), backlog.dead)
            age.add_metric((), backlog.oldest_age.total_seconds() if backlog.oldest_age else 0)
        yield from (jobs, age)


def install_metrics(app: FastAPI, seal: Counterseal, registry: CollectorRegistry) -> None:
    """Add `/metrics`."""
    outbox = OutboxMetrics(seal.outbox)
    jobs = JobMetrics(seal)
    registry.register(ServiceMetrics(seal))
    registry.register(jobs)
    registry.register(outbox)
    reading = asyncio.Lock()

    @app.get("/metrics", response_class=Response, include_in_schema=False)
    async def metrics() -> Response:
        """Always 200: what Redis or the database can't tell is left out; `counterseal_store_available` is of Redis."""
        async with reading:
            await outbox.read()
            await jobs.read()
            return Response(
                generate_latest(registry), headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE
            )
