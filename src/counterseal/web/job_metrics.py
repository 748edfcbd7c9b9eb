"""Metrics of jobs for Prometheus: what Redis tells of types and queues, and this process of its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from counterseal.app import Counterseal
from counterseal.core.errors import CountersealError
from counterseal.jobs.job import State
from counterseal.jobs.statistics import JobStats, Quantiles, QueueStats

_JOB_COUNTS = {
    "runs": "Jobs that were given to a worker, each time they were.",
    "failures": "Runs that failed.",
    "lost": "Runs whose worker did not come back.",
}
_JOB_TIMES = {
    "wait": "How long jobs have waited until they began, to 1 %.",
    "run": "How long jobs ran that completed, to 1 %.",
}
_WORKER_OUTCOMES = ("completed", "failed", "retried", "cancelled", "parked", "handed_back", "refused")


class JobMetrics(Collector):
    """Jobs as they were read just before."""

    def __init__(self, seal: Counterseal) -> None:
        self._seal = seal
        self._job_stats: Mapping[str, JobStats] = {}
        self._job_queues: Sequence[QueueStats] = ()
        self._job_times: Mapping[str, tuple[Quantiles, Quantiles]] = {}

    async def read(self) -> None:
        """Ask Redis what jobs there are; nothing is known of them when it does not answer. Raises nothing.

        At most four round trips, each of a call or two for each queue and each type that has had runs.
        """
        jobs = self._seal.jobs
        self._job_stats, self._job_queues, self._job_times = {}, (), {}
        try:
            stats, queues = await asyncio.gather(jobs.stats(), jobs.queues())
            ran = [kind for kind, one in stats.items() if one.runs]
            times = await asyncio.gather(*map(jobs.times, ran))
        except CountersealError:
            return
        self._job_stats, self._job_queues = stats, queues
        self._job_times = dict(zip(ran, times, strict=True))

    def collect(self) -> Iterator[Metric]:
        yield from self._types()
        yield from self._queues()
        yield from self._workers()

    def _types(self) -> Iterable[Metric]:
        by_state = GaugeMetricFamily(
            "counterseal_jobs",
            "Jobs by type and state, pending being the sum of scheduled, queued, running and retrying;"
            " absent while Redis does not answer.",
            labels=("type", "state"),
        )
        counters = {
            name: CounterMetricFamily(f"counterseal_job_{name}", text, labels=("type",))
            for name, text in _JOB_COUNTS.items()
        }
        for kind, stats in self._job_stats.items():
            for state in ("pending", *State):
                by_state.add_metric((kind, state), getattr(stats, state))
            for name, counter in counters.items():
                counter.add_metric((kind,), getattr(stats, name))
        yield by_state
        yield from counters.values()
        for position, (name, text) in enumerate(_JOB_TIMES.items()):
            seconds = Metric(f"counterseal_job_{name}_seconds", text, "summary")
            for kind, times in self._job_times.items():
                _add_summary(seconds, kind, times[position])
            yield seconds

    def _queues(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily(
            "counterseal_queue_jobs",
            "Jobs of a queue by state: queued, running, delayed, parked, dead; absent while Redis does not answer.",
            labels=("queue", "state"),
        )
        gone = CounterMetricFamily(
            "counterseal_queue_gone",
            "Jobs that were found without a record: deleted by somebody else, or evicted.",
            labels=("queue",),
        )
        oldest = GaugeMetricFamily(
            "counterseal_queue_oldest_seconds",
            "How long the job waits that waits longest; 0 when none does.",
            labels=("queue",),
        )
        paused = GaugeMetricFamily(
            "counterseal_queue_paused", "1 while no jobs of the queue are begun.", labels=("queue",)
        )
        for one in self._job_queues:
            for state in ("queued", "running", "delayed", "parked", "dead"):
                jobs.add_metric((one.queue, state), getattr(one, state))
            gone.add_metric((one.queue,), one.gone)
            oldest.add_metric((one.queue,), one.oldest_age.total_seconds() if one.oldest_age else 0)
            paused.add_metric((one.queue,), one.paused)
        yield from (jobs, gone, oldest, paused)

    def _workers(self) -> Iterable[Metric]:
        workers = self._seal.workers
        runs = CounterMetricFamily(
            "counterseal_worker_runs",
            "Runs of the workers of this process by outcome; refused are results that came too late.",
            labels=("outcome",),
        )
        for outcome in _WORKER_OUTCOMES:
            runs.add_metric((outcome,), sum(getattr(worker.counts, outcome) for worker in workers))
        yield runs
        yield GaugeMetricFamily(
            "counterseal_worker_running",
            "Jobs that the workers of this process run now.",
            value=float(sum(worker.running for worker in workers)),
        )


def _add_summary(metric: Metric, kind: str, of: Quantiles) -> None:
    """Quantiles of one type. There is no sum: what is stored are the buckets of a histogram."""
    for share, value in (("0.5", of.p50), ("0.95", of.p95), ("0.99", of.p99)):
        metric.add_sample(metric.name, {"type": kind, "quantile": share}, value.total_seconds())
    metric.add_sample(f"{metric.name}_count", {"type": kind}, of.count)
