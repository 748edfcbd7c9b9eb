"""Tracing: spans of OpenTelemetry that lead from the enqueue of a job to its runs, by the conventions for messages.

No span has arguments, results or texts of errors. Without a tracer provider of the application nothing is made.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer_provider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from counterseal.jobs.job import job_id, read_failure
from counterseal.jobs.options import Extra, Options, changed
from counterseal.jobs.scripts import Leased

SYSTEM: Final = "counterseal"
_FAILED: Final = frozenset({"failed", "retrying"})
_propagator: Final = TraceContextTextMapPropagator()


class Publishing:
    """The span of an enqueue that is under way."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._trace: str | None = None
        if span.is_recording():
            of = span.get_span_context()
            self._trace = f"00-{of.trace_id:032x}-{of.span_id:016x}-{of.trace_flags:02x}"

    def traced(self, options: Options) -> Options:
        """Options of a job that belongs to it; unchanged when nobody records it, or they name a trace already."""
        if self._trace is None or options.trace is not None:
            return options
        return changed(options, trace=self._trace)

    def made(self, identifier: str, *, created: bool = True) -> None:
        """Note the job that came of it."""
        self._span.set_attribute("messaging.message.id", identifier)
        if not created:
            self._span.set_attribute("counterseal.job.created", False)


class Running:
    """The span of a run that is under way."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def ended(self, outcome: tuple[str, int, bytes] | None) -> None:
        """Note what became of the run; None when its job was lost."""
        name = "lost" if outcome is None else outcome[0]
        self._span.set_attribute("counterseal.job.outcome", name)
        if outcome is not None and name in _FAILED:
            _fail(self._span, read_failure(outcome[2]).error)


class Tracing:
    """Makes spans with a tracer of `provider`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("counterseal.jobs", version("counterseal"))

    @contextmanager
    def publish(self, queue: str | None, kind: str | None = None, *, count: int = 1) -> Generator[Publishing]:
        """The span of an enqueue, current meanwhile. `queue` and `kind` are None for a batch that has several."""
        attributes: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
        }
        if queue is not None:
            attributes["messaging.destination.name"] = queue
        if kind is not None:
            attributes["counterseal.job.type"] = kind
        if count != 1:
            attributes["messaging.batch.message_count"] = count
        name = "publish" if queue is None else f"publish {queue}"
        with self._span(name, SpanKind.PRODUCER, attributes) as span:
            yield Publishing(span)

    @contextmanager
    def process(self, leased: Leased, *, queue: str, extra: Extra, now_ms: int) -> Generator[Running]:
        """The span of a run, current meanwhile. It links to the enqueue, which is the parent of a first run."""
        first = leased.attempt <= 1 and extra.retry_of is None
        attributes: dict[str, str | int | float] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": queue,
            "messaging.message.id": job_id(queue, leased.part),
            "counterseal.job.type": leased.type,
            "counterseal.job.attempt": leased.attempt,
        }
        if extra.retry_of is not None:
            attributes["counterseal.job.retry_of"] = job_id(queue, extra.retry_of)
        if first:
            due_ms = max(leased.queued_ms, extra.due or 0)
            attributes["counterseal.job.wait"] = max(0, now_ms - due_ms) / 1000
        published = (
            Context() if extra.trace is None else _propagator.extract({"traceparent": extra.trace}, Context())
        )
        creation = get_current_span(published).get_span_context()
        links = [Link(creation)] if creation.is_valid else []
        # Never the span that was current where the worker was entered.
        parent = published if first else Context()
        with self._span(f"process {leased.type}", SpanKind.CONSUMER, attributes, parent, links) as span:
            yield Running(span)

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind,
        attributes: dict[str, str | int | float] | dict[str, str | int],
        context: Context | None = None,
        links: list[Link] | None = None,
    ) -> Generator[Span]:
        # What was raised is told by its name alone: its text may hold anything.
        with self._tracer.start_as_current_span(
            name, context, kind, attributes, links, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as fault:
                _fail(span, type(fault).__name__)
                raise


def tracing_of(provider: TracerProvider | None = None) -> Tracing | None:
    """Tracing by a provider, else by the one that the application has set up; None when there is none."""
    chosen = get_tracer_provider() if provider is None else provider
    return None if isinstance(chosen, (ProxyTracerProvider, NoOpTracerProvider)) else Tracing(chosen)


def _fail(span: Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)
