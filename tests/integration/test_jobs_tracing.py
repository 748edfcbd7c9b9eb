"""Spans of jobs: what leads from an enqueue to its runs, what stands in them, and that nothing is paid without them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, get_current_span

from counterseal import Counterseal, JobContext, Settings, State, task
from counterseal.core.errors import ArgumentInvalid, CommandError
from counterseal.jobs.retry import Fixed
from support.servers import Server
from support.waiting import eventually

SECRET = "not-for-a-span"
SOON = timedelta(seconds=10)


@task(name="greet", queue="mail")
async def greet(context: JobContext, whom: str) -> str:
    with TRACER.start_as_current_span("inside"):
        return f"hello {whom}"


@task(name="stumble", queue="mail", retry=Fixed(2, timedelta(0)))
async def stumble(context: JobContext, whom: str) -> None:
    if context.attempt == 1:
        raise ValueError(whom)


@task(name="break", retry=0)
async def breaks(context: JobContext, whom: str) -> None:
    raise ValueError(whom)


@task(name="in-thread")
def in_thread(context: JobContext) -> str:
    return f"{get_current_span().get_span_context().span_id:016x}"


class Seen:
    """What was exported."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    async def of(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """So many spans with a name: a span ends before its job does, if only just."""
        return await eventually(lambda: found if len(found := self.named(name)) == count else None)


TRACER = TracerProvider().get_tracer("a task")


def context_of(span: ReadableSpan) -> SpanContext:
    assert span.context is not None
    return span.context


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


def told(span: ReadableSpan) -> str:
    """Everything that leaves the house with a span."""
    return span.to_json()


@asynccontextmanager
async def traced_on(server: Server, folder: Path, seen: Seen | None) -> AsyncIterator[Counterseal]:
    settings = Settings.load(
        {
            "REDIS_URL": server.url,
            "COUNTERSEAL_DATA_DIR": str(folder),
            "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
        }
    )
    async with Counterseal.open(
        settings,
        tasks=[greet, stumble, breaks, in_thread],
        tracer_provider=None if seen is None else seen.provider,
    ) as seal:
        yield seal


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def seal(valkey: Server, tmp_path: Path, seen: Seen) -> AsyncIterator[Counterseal]:
    async with traced_on(valkey, tmp_path, seen) as opened:
        yield opened


async def extra_of(seal: Counterseal, identifier: str) -> bytes:
    """The line of a stored job that has its options."""
    queue, _, part = identifier.partition(".")
    record = await seal.store.command("GET", f"cs:jobs:{{{queue}}}:job:{part}")
    assert isinstance(record, bytes)
    return record.split(b"\n")[5]


async def ended(seal: Counterseal, identifier: str, state: State = State.COMPLETED) -> None:
    job = await seal.jobs.wait(identifier, SOON)
    assert job is not None
    assert job.state is state


async def test_the_run_of_a_job_is_a_child_of_its_enqueue_and_linked_to_it(
    seal: Counterseal, seen: Seen
) -> None:
    made = await seal.jobs.enqueue(greet, SECRET)
    async with seal.worker():
        await ended(seal, made.id)
    (publish,), (process,) = await seen.of("publish mail"), await seen.of("process greet")
    assert publish.kind is SpanKind.PRODUCER
    assert process.kind is SpanKind.CONSUMER
    assert process.parent is not None
    assert process.parent.span_id == context_of(publish).span_id
    assert context_of(process).trace_id == context_of(publish).trace_id
    assert links_of(process) == [context_of(publish).span_id]
    for span in (publish, process):
        assert attribute(span, "messaging.system") == "counterseal"
        assert attribute(span, "messaging.message.id") == made.id
        assert attribute(span, "messaging.destination.name") == "mail"
        assert attribute(span, "counterseal.job.type") == "greet"
        assert SECRET not in told(span)
    assert attribute(publish, "messaging.operation.type") == "send"
    assert attribute(process, "messaging.operation.type") == "process"
    assert attribute(process, "counterseal.job.attempt") == 1
    assert attribute(process, "counterseal.job.outcome") == "completed"
    wait = attribute(process, "counterseal.job.wait")
    assert isinstance(wait, float)
    assert 0 <= wait < 60


async def test_the_enqueue_is_a_child_of_what_made_it(seal: Counterseal, seen: Seen) -> None:
    with seen.provider.get_tracer("a request").start_as_current_span("request") as request:
        await seal.jobs.enqueue(greet, "ada")
    (publish,) = seen.named("publish mail")
    assert publish.parent is not None
    assert publish.parent.span_id == request.get_span_context().span_id


async def test_a_second_run_is_a_trace_of_its_own_that_links_to_the_enqueue(
    seal: Counterseal, seen: Seen
) -> None:
    made = await seal.jobs.enqueue(stumble, SECRET)
    async with seal.worker():
        await ended(seal, made.id)
    (publish,) = seen.named("publish mail")
    first, second = await seen.of("process stumble", 2)
    assert links_of(first) == links_of(second) == [context_of(publish).span_id]
    assert context_of(first).trace_id == context_of(publish).trace_id
    assert second.parent is None
    assert context_of(second).trace_id != context_of(publish).trace_id
    assert attribute(first, "counterseal.job.outcome") == "retrying"
    assert attribute(first, "error.type") == "ValueError"
    assert first.status.status_code is StatusCode.ERROR
    assert attribute(second, "counterseal.job.attempt") == 2
    assert attribute(second, "counterseal.job.outcome") == "completed"
    assert second.status.status_code is StatusCode.UNSET
    assert all(SECRET not in told(span) for span in seen.spans)


async def test_a_job_of_a_transaction_is_linked_to_the_span_that_wrote_it(
    seal: Counterseal, seen: Seen
) -> None:
    async with seal.database.begin() as connection:
        identifier = await seal.jobs.enqueue_in(connection, greet, "ada")
    seal.outbox.wake()
    async with seal.worker():
        (process,) = await seen.of("process greet")
    (publish,) = seen.named("publish mail")
    assert attribute(publish, "messaging.message.id") == identifier
    assert attribute(process, "messaging.message.id") == identifier
    assert links_of(process) == [context_of(publish).span_id]


async def test_jobs_of_one_call_share_its_span(seal: Counterseal, seen: Seen) -> None:
    made = await seal.jobs.enqueue_many([greet.call("ada"), greet.call("bob")])
    async with seal.worker():
        for one in made:
            await ended(seal, one.id)
    (publish,) = seen.named("publish mail")
    assert attribute(publish, "messaging.batch.message_count") == 2
    for process in await seen.of("process greet", 2):
        assert links_of(process) == [context_of(publish).span_id]


async def test_a_dead_letter_that_is_run_again_links_to_the_enqueue_of_the_first_job(
    seal: Counterseal, seen: Seen
) -> None:
    made = await seal.jobs.enqueue(breaks, SECRET)
    async with seal.worker():
        await ended(seal, made.id, State.FAILED)
        (again,) = await seal.jobs.retry_dead(made.id)
        await ended(seal, again.id, State.FAILED)
    (publish,) = seen.named("publish default")
    _, second = await seen.of("process break", 2)
    assert attribute(second, "messaging.message.id") == again.id
    assert attribute(second, "counterseal.job.retry_of") == made.id
    assert attribute(second, "counterseal.job.outcome") == "failed"
    assert links_of(second) == [context_of(publish).span_id]
    assert second.parent is None


async def test_a_function_in_a_thread_runs_within_the_span(seal: Counterseal, seen: Seen) -> None:
    made = await seal.jobs.enqueue(in_thread)
    async with seal.worker():
        await ended(seal, made.id)
    (process,) = await seen.of("process in-thread")
    assert await seal.jobs.result(made.id, in_thread) == f"{context_of(process).span_id:016x}"


async def test_a_worker_that_was_entered_within_a_span_makes_no_children_of_it(
    seal: Counterseal, seen: Seen
) -> None:
    made = await seal.jobs.enqueue(stumble, "ada")
    with seen.provider.get_tracer("a program").start_as_current_span("start") as start:
        async with seal.worker():
            await ended(seal, made.id)
    for process in await seen.of("process stumble", 2):
        assert process.parent is None or process.parent.span_id != start.get_span_context().span_id


async def test_a_refused_enqueue_ends_its_span_with_the_name_of_the_error(
    seal: Counterseal, seen: Seen
) -> None:
    await seal.store.command("SET", "cs:jobs:queues", SECRET)  # no set: the queue can't be registered
    with pytest.raises(CommandError):
        await seal.jobs.enqueue(greet, SECRET)
    (publish,) = seen.named("publish mail")
    assert publish.status.status_code is StatusCode.ERROR
    assert attribute(publish, "error.type") == "CommandError"
    assert SECRET not in told(publish)
    with pytest.raises(ArgumentInvalid):
        await seal.jobs.enqueue(greet, 7)  # pyright: ignore[reportArgumentType]
    assert len(seen.named("publish mail")) == 1  # nothing was to be sent


@pytest.mark.parametrize("sampler", [None, ALWAYS_OFF], ids=["no provider", "no span recorded"])
async def test_a_job_that_nobody_traces_is_stored_without_a_word_of_it(
    valkey: Server, tmp_path: Path, sampler: Sampler | None
) -> None:
    seen = None if sampler is None else Seen(sampler)
    async with traced_on(valkey, tmp_path, seen) as seal:
        made = await seal.jobs.enqueue(greet, "ada")
        (of_many,) = await seal.jobs.enqueue_many([greet.call("ada")])
        assert await extra_of(seal, made.id) == b""
        assert await extra_of(seal, of_many.id) == b""
        async with seal.worker():
            await ended(seal, made.id)
    assert seen is None or seen.spans == ()


async def test_a_traced_job_is_stored_with_its_trace_and_nothing_else(seal: Counterseal, seen: Seen) -> None:
    made = await seal.jobs.enqueue(greet, "ada")
    of = context_of(seen.named("publish mail")[0])
    assert await extra_of(seal, made.id) == b'{"trace":"00-%032x-%016x-%02x"}' % (
        of.trace_id,
        of.span_id,
        of.trace_flags,
    )


async def test_a_trace_that_can_not_be_read_costs_the_link_and_not_the_run(
    seal: Counterseal, seen: Seen
) -> None:
    made = await seal.jobs.enqueue(greet.traced("no trace"), "ada")
    async with seal.worker():
        await ended(seal, made.id)
    (process,) = await seen.of("process greet")
    assert links_of(process) == []
    assert process.parent is None
