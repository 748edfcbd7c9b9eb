"""Jobs that QStash carries are the same jobs: the same task runs, with the same states and statistics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from counterseal.core.errors import CarrierUnavailable, NonRetryable, RetryLater
from counterseal.jobs.context import JobContext
from counterseal.jobs.cron import Every
from counterseal.jobs.job import State
from counterseal.jobs.options import Flow
from counterseal.jobs.qstash import retry_delay
from counterseal.jobs.retry import Exponential, Fixed, Formula, Listed
from counterseal.jobs.schedule_job import scheduled
from counterseal.jobs.statistics import JobStats
from counterseal.jobs.task import task
from support.qstash import Carried, QStashServer, carried_on
from support.servers import Server
from support.site import BASE, problem, seal_on
from support.stores import travel
from support.waiting import eventually

AT_ONCE = Fixed(3, timedelta(0))
ran: list[tuple[str, int]] = []
gate = asyncio.Event()


@task(name="greet", retry=AT_ONCE)
async def greet(context: JobContext, name: str) -> str:
    ran.append((context.id, context.attempt))
    await context_told(context)
    return f"Hello {name}"


async def context_told(context: JobContext) -> None:
    context.progress(0.5, "half")
    context.log("greeting")


@task(name="plain", retry=AT_ONCE)
def plain(context: JobContext) -> int:
    ran.append((context.id, context.attempt))
    return context.attempt


@task(name="fail", retry=AT_ONCE)
async def fail(context: JobContext, until: int = 99) -> None:
    ran.append((context.id, context.attempt))
    if context.attempt < until:
        raise RuntimeError


@task(name="give-up", retry=AT_ONCE)
async def give_up(context: JobContext) -> None:
    raise NonRetryable("no")


@task(name="later", retry=AT_ONCE)
async def later(context: JobContext) -> None:
    raise RetryLater(pause=timedelta(seconds=90))


@task(name="hold", retry=AT_ONCE, timeout=timedelta(minutes=1))
async def hold(context: JobContext) -> None:
    ran.append((context.id, context.attempt))
    await gate.wait()


@task(name="hang", retry=0, timeout=timedelta(milliseconds=50))
async def hang(context: JobContext) -> None:
    await asyncio.Event().wait()


TASKS = (greet, plain, fail, give_up, later, hold, hang)


@pytest.fixture
async def carried(valkey: Server, data_dir: Path) -> AsyncIterator[Carried]:
    global gate  # noqa: PLW0603 - each test has a loop of its own
    gate = asyncio.Event()
    ran.clear()
    async with carried_on(valkey, data_dir, {"COUNTERSEAL_JOBS_LEASE": "3s"}, tasks=TASKS) as carried:
        yield carried


def counts(stats: JobStats) -> tuple[int, ...]:
    return (stats.completed, stats.failed, stats.cancelled, stats.pending)


async def run_all(seal) -> list[str]:
    made = [
        await seal.jobs.enqueue(greet, "Ada"),
        await seal.jobs.enqueue(plain),
        await seal.jobs.enqueue(fail, 2),
        await seal.jobs.enqueue(fail),
        await seal.jobs.enqueue(give_up),
        await seal.jobs.enqueue(hang),
    ]
    return [one.id for one in made]


async def outcome(seal, identifiers: list[str]) -> list[tuple]:
    jobs = [await seal.jobs.get(identifier) for identifier in identifiers]
    return [(job.type, job.state, job.attempt, job.lost, job.result, str(job.failure)) for job in jobs]


async def test_the_same_tasks_end_the_same_under_both_carriers(carried: Carried, valkey: Server):
    seal, kinds = carried.seal, [one.name for one in TASKS]
    identifiers = await run_all(seal)
    assert [job.state for job in [await seal.jobs.get(one) for one in identifiers]] == [State.QUEUED] * 6
    stats = await seal.jobs.stats()
    assert all(stats[kind].pending for kind in ("greet", "plain", "fail", "give-up", "hang"))
    assert {job.id for job in await seal.jobs.list(state=State.QUEUED)} == set(identifiers)
    await carried.qstash.deliver()
    found = await outcome(seal, identifiers)
    stats = await seal.jobs.stats()
    assert [state for _, state, *_ in found] == [
        State.COMPLETED, State.COMPLETED, State.COMPLETED, State.FAILED, State.FAILED, State.FAILED,
    ]  # fmt: skip
    assert found[0][4] == "Hello Ada"
    assert [len(message.answers) for message in carried.qstash.messages.values()] == [1, 1, 2, 3, 1, 1]
    async with seal_on(
        valkey, carried.seal.settings.data_dir, {"COUNTERSEAL_NAMESPACE": "other"}, tasks=TASKS
    ) as other:
        same = await run_all(other)
        async with other.worker():
            for identifier in same:
                job = await other.jobs.wait(identifier)
                assert job is not None
                assert job.state.terminal
        assert await outcome(other, same) == found
        others = await other.jobs.stats()
    assert {kind: counts(stats[kind]) for kind in kinds} == {kind: counts(others[kind]) for kind in kinds}
    assert not valkey.client.execute("ZRANGE", "cs:jobs:{default}:carried", 0, -1)
    assert not valkey.client.execute("HGETALL", "cs:jobs:{default}:messages")


async def test_a_message_names_its_job_and_nothing_else(carried: Carried):
    made = await carried.seal.jobs.enqueue(greet, "a secret")
    (message,) = carried.qstash.messages.values()
    assert json.loads(message.body) == {"id": made.id, "type": "greet"}
    assert message.url == f"{BASE}/api/jobs/greet"
    assert message.headers["upstash-retries"] == "2"
    assert message.headers["upstash-retry-delay"] == "0"
    assert message.headers["upstash-timeout"] == "310s"
    assert made.id in message.headers["upstash-deduplication-id"]
    assert not any("a secret" in value for value in message.headers.values())


async def test_a_delay_is_a_time_before_which_qstash_does_not_deliver(carried: Carried):
    made = await carried.seal.jobs.enqueue(greet.using(delay=timedelta(minutes=10)), "Ada")
    at = datetime.now(UTC) + timedelta(hours=2)
    await carried.seal.jobs.enqueue(greet.using(at=at), "Bob")
    first, second = carried.qstash.messages.values()
    assert 590 < int(first.headers["upstash-not-before"]) - time.time() < 602
    assert int(second.headers["upstash-not-before"]) - at.timestamp() < 1
    assert (await carried.seal.jobs.get(made.id)).state is State.SCHEDULED
    early = await carried.qstash.attempt(first)
    assert early.status_code == 503
    assert 580 < int(early.headers["Retry-After"]) <= 600
    assert not ran
    travel(carried.seal.store, timedelta(minutes=10))
    assert (await carried.qstash.attempt(first)).status_code == 401  # signed by a clock that did not travel
    sent = carried.qstash.sign(first.url, first.body, exp=int(time.time()) + 900)
    assert (await carried.qstash.send(first.url, first.body, sent)).status_code == 200
    assert (await carried.seal.jobs.get(made.id)).state is State.COMPLETED


async def test_a_failed_attempt_says_when_to_come_again_and_the_last_one_that_it_was_the_last(
    carried: Carried,
):
    made = await carried.seal.jobs.enqueue(fail)
    (message,) = carried.qstash.messages.values()
    first = await carried.qstash.attempt(message)
    assert first.status_code == 500
    assert first.headers["Retry-After"] == "0"
    problem(first, 500, "job_retrying")
    job = await carried.seal.jobs.get(made.id)
    assert (job.state, job.attempt, job.failure.error) == (State.RETRYING, 1, "RuntimeError")
    await carried.qstash.deliver()
    problem(message.answers[-1], 489, "job_failed")
    assert message.answers[-1].headers["Upstash-NonRetryable-Error"] == "true"
    assert (await carried.seal.jobs.get(made.id)).state is State.FAILED
    assert [job.id for job in await carried.seal.jobs.dead()] == [made.id]
    assert [attempt for _, attempt in ran] == [1, 2, 3]


async def test_what_must_not_be_retried_is_not(carried: Carried):
    await carried.seal.jobs.enqueue(give_up)
    (message,) = carried.qstash.messages.values()
    problem(await carried.qstash.attempt(message), 489, "job_failed")
    assert message.state == "failed"


async def test_a_task_says_itself_when_it_runs_again(carried: Carried):
    await carried.seal.jobs.enqueue(later)
    (message,) = carried.qstash.messages.values()
    answer = await carried.qstash.attempt(message)
    assert (answer.status_code, answer.headers["Retry-After"]) == (500, "90")
    problem(await carried.qstash.attempt(message), 503, "job_early")
    (job,) = await carried.seal.jobs.list(type="later", state=State.RETRYING)
    assert job.attempt == 1


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Fixed(3, timedelta(seconds=2)), "2000"),
        (Exponential(3, timedelta(seconds=1), timedelta(minutes=1)), "min(60000, 1000 * pow(2, retried))"),
        (Listed((timedelta(seconds=1),) * 2), "1000"),
        (Listed((timedelta(seconds=1), timedelta(seconds=9))), None),
        (Listed(()), None),
        (Formula(3, "1000 * (1 + retried)"), "1000 * (1 + retried)"),
        (Formula(3, "1000 * (retried % 2)"), None),
    ],
)
def test_a_policy_is_said_where_it_can_be(policy, said):
    assert retry_delay(policy) == said


async def test_a_job_is_made_once_and_its_message_too(carried: Carried):
    once = greet.using(dedup_id="d", unique="u", id="given")
    first = await carried.seal.jobs.enqueue(once, "Ada")
    second = await carried.seal.jobs.enqueue(once, "Ada")
    assert (first.created, second.created, second.id) == (True, False, first.id)
    assert len(carried.qstash.messages) == carried.qstash.publishes == 1


async def test_many_jobs_are_many_messages(carried: Carried):
    made = await carried.seal.jobs.enqueue_many([greet.call(str(number)) for number in range(50)])
    assert {message.job for message in carried.qstash.messages.values()} == {one.id for one in made}
    assert (await carried.seal.jobs.stats())["greet"].pending == 50


async def test_the_job_of_a_tick_is_carried_too(carried: Carried):
    await carried.seal.schedules.put(scheduled(greet.call("Ada"), Every(timedelta(days=1)), id="daily"))
    made = await carried.seal.schedules.run_now("daily")
    await carried.qstash.deliver()
    job = await carried.seal.jobs.get(made.id)
    assert (job.state, job.schedule) == (State.COMPLETED, "daily")


async def test_a_job_of_the_outbox_is_carried_too(carried: Carried):
    async with carried.seal.database.begin() as connection:
        identifier = await carried.seal.jobs.enqueue_in(connection, greet, "Ada")
    carried.seal.outbox.wake()
    await eventually(lambda: carried.qstash.of(identifier))
    await carried.qstash.deliver()
    assert (await carried.seal.jobs.get(identifier)).state is State.COMPLETED


async def test_flow_control_is_that_of_qstash(carried: Carried):
    flow = Flow("tenant:1", parallelism=2, rate=10, period=timedelta(minutes=1))
    made = await carried.seal.jobs.enqueue(greet.using(flow=flow), "Ada")
    (message,) = carried.qstash.messages.values()
    assert message.headers["upstash-flow-control-key"] == "default.tenant_3A1"
    assert message.headers["upstash-flow-control-value"] == "parallelism=2, rate=10, period=60s"
    await carried.qstash.deliver()
    assert (await carried.seal.jobs.get(made.id)).state is State.COMPLETED


async def test_a_cancelled_job_is_cancelled_at_qstash_and_its_delivery_runs_nothing(carried: Carried):
    made = await carried.seal.jobs.enqueue(greet, "Ada")
    (message,) = carried.qstash.messages.values()
    assert await carried.seal.jobs.cancel(made.id, "no more") is State.CANCELLED
    assert message.state == "cancelled"
    late = await carried.qstash.send(
        message.url, message.body, carried.qstash.sign(message.url, message.body)
    )
    assert (late.status_code, late.json()["state"]) == (200, "cancelled")
    assert not ran
    assert counts((await carried.seal.jobs.stats())["greet"]) == (0, 0, 1, 0)


async def test_a_job_can_be_cancelled_while_it_runs(carried: Carried):
    made = await carried.seal.jobs.enqueue(hold)
    (message,) = carried.qstash.messages.values()
    delivery = asyncio.create_task(carried.qstash.attempt(message))
    await eventually(lambda: ran)
    assert await carried.seal.jobs.cancel(made.id, "stop") is State.RUNNING
    answer = await delivery
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    job = await carried.seal.jobs.get(made.id)
    assert (job.state, job.reason) == (State.CANCELLED, "stop")


async def test_two_deliveries_of_one_job_run_it_once(carried: Carried):
    made = await carried.seal.jobs.enqueue(hold)
    (message,) = carried.qstash.messages.values()
    delivery = asyncio.create_task(carried.qstash.attempt(message))
    await eventually(lambda: ran)
    assert (await carried.seal.jobs.get(made.id)).state is State.RUNNING
    second = await carried.qstash.send(
        message.url, message.body, carried.qstash.sign(message.url, message.body)
    )
    problem(second, 503, "job_running")
    assert 1 <= int(second.headers["Retry-After"]) <= 3
    gate.set()
    assert (await delivery).status_code == 200
    third = await carried.qstash.send(
        message.url, message.body, carried.qstash.sign(message.url, message.body)
    )
    assert third.status_code == 200
    assert len(ran) == 1


async def test_a_task_may_take_longer_than_the_lease(carried: Carried):
    await carried.seal.jobs.enqueue(hold)
    (message,) = carried.qstash.messages.values()
    delivery = asyncio.create_task(carried.qstash.attempt(message))
    await eventually(lambda: ran)
    running = "cs:jobs:{default}:running"
    before = await carried.seal.store.command("ZRANGE", running, 0, 0, "WITHSCORES")

    async def prolonged() -> bool:
        return await carried.seal.store.command("ZRANGE", running, 0, 0, "WITHSCORES") != before

    await eventually(prolonged)
    gate.set()
    assert (await delivery).status_code == 200


async def test_a_refused_message_makes_no_job(carried: Carried, valkey: Server):
    carried.qstash.refuse = 400
    with pytest.raises(CarrierUnavailable):
        await carried.seal.jobs.enqueue(greet.using(dedup_id="d", unique="u", tags=("t",)), "Ada")
    assert counts((await carried.seal.jobs.stats())["greet"]) == (0, 0, 0, 0)
    assert not valkey.client.execute("KEYS", "cs:jobs:{default}:job:*")
    carried.qstash.refuse = None
    assert (await carried.seal.jobs.enqueue(greet.using(dedup_id="d", unique="u"), "Ada")).created


async def test_a_dead_letter_that_is_retried_is_carried_again(carried: Carried):
    made = await carried.seal.jobs.enqueue(fail)
    await carried.qstash.deliver()
    (new,) = await carried.seal.jobs.retry_dead(made.id)
    (message,) = carried.qstash.of(new.id)
    await carried.qstash.deliver()
    assert message.state == "failed"
    job = await carried.seal.jobs.get(new.id)
    assert (job.state, job.retry_of, job.attempt) == (State.FAILED, made.id, 3)
    assert counts((await carried.seal.jobs.stats())["fail"]) == (0, 2, 0, 0)


async def test_a_job_that_this_release_can_not_run_is_parked_until_one_comes_that_can(
    carried: Carried, valkey: Server
):
    made = await carried.seal.jobs.enqueue_json("email", {"to": "ada@example.org"})
    (message,) = carried.qstash.messages.values()
    problem(await carried.qstash.attempt(message), 503, "job_parked")
    job = await carried.seal.jobs.get(made.id)
    assert (job.state, job.parked, job.failure.message) == (
        State.RETRYING,
        True,
        "no handler in this release",
    )
    assert await carried.carrier.sweep(ahead=timedelta(hours=1)) == 0

    @task(name="email")
    async def email(context: JobContext, to: str) -> str:
        return to

    async with carried_on(valkey, carried.seal.settings.data_dir, tasks=[email]) as later_release:
        assert await later_release.carrier.sweep(ahead=timedelta(hours=2)) == 1
        await later_release.qstash.deliver()
        job = await later_release.seal.jobs.get(made.id)
        assert (job.state, job.result, job.attempt) == (State.COMPLETED, "ada@example.org", 1)


async def test_a_paused_queue_begins_nothing(carried: Carried):
    await carried.seal.jobs.enqueue(greet, "Ada")
    await carried.seal.jobs.pause()
    (message,) = carried.qstash.messages.values()
    problem(await carried.qstash.attempt(message), 503, "job_paused")
    await carried.seal.jobs.resume()
    assert (await carried.qstash.attempt(message)).status_code == 200


async def test_forged_deliveries_run_nothing_and_all_get_the_same_answer(carried: Carried):
    await carried.seal.jobs.enqueue(greet, "Ada")
    (message,) = carried.qstash.messages.values()
    qstash, url, body = carried.qstash, message.url, message.body
    forged = {
        "missing": None,
        "no token": "x",
        "another key": qstash.sign(url, body, key="sig_" + "0" * 28),
        "another url": qstash.sign(f"{BASE}/api/jobs/fail", body),
        "the address it came to": qstash.sign(url.replace(BASE, qstash.target), body),
        "another body": qstash.sign(url, body + b" "),
        "expired": qstash.sign(url, body, exp=int(time.time()) - 60),
        "another issuer": qstash.sign(url, body, iss="Somebody"),
    }
    answers = {name: await qstash.send(url, body, signature) for name, signature in forged.items()}
    assert {answer.content for answer in answers.values()} == {answers["missing"].content}
    for answer in answers.values():
        problem(answer, 401, "unauthorized")
    deliveries = carried.seal.carriage.deliveries
    assert deliveries is not None
    assert (deliveries.counts.forged, deliveries.counts.accepted) == (len(forged), 0)
    async with httpx.AsyncClient() as client:
        metrics = (await client.get(f"{qstash.target}/metrics")).text
    assert f'counterseal_job_deliveries_total{{outcome="forged"}} {len(forged)}.0' in metrics
    assert not ran


async def test_a_replayed_delivery_is_refused(carried: Carried):
    await carried.seal.jobs.enqueue(fail)
    (message,) = carried.qstash.messages.values()
    signature = carried.qstash.sign(message.url, message.body)
    assert (await carried.qstash.send(message.url, message.body, signature)).status_code == 500
    problem(await carried.qstash.send(message.url, message.body, signature), 401, "unauthorized")
    assert len(ran) == 1
    assert carried.seal.carriage.deliveries.counts.replayed == 1


async def test_keys_may_be_rotated_between_publish_and_delivery(carried: Carried):
    await carried.seal.jobs.enqueue(greet, "Ada")
    (message,) = carried.qstash.messages.values()
    signature = carried.qstash.sign(message.url, message.body, key=carried.qstash.next)
    assert (await carried.qstash.send(message.url, message.body, signature)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("greet", b"{", "job_malformed"),
        ("greet", b"[]", "job_malformed"),
        ("greet", b'{"id":"x","type":"greet"}', "job_malformed"),
        ("greet", b'{"id":"default.x","type":"fail"}', "job_malformed"),
        ("greet", b'{"id":"default.x","type":"greet","more":1}', "job_malformed"),
        ("greet", b'{"id":"default.none","type":"greet"}', "job_gone"),
        ("greet", b'{"id":"default.given","type":"greet"}', "job_other"),
    ],
)
async def test_a_signed_message_that_makes_no_sense_is_not_sent_again(carried: Carried, path, body, code):
    await carried.seal.jobs.enqueue(plain.using(id="given"))
    url = f"{BASE}/api/jobs/{path}"
    answer = await carried.qstash.send(url, body, carried.qstash.sign(url, body))
    problem(answer, 489, code)
    assert answer.headers["Upstash-NonRetryable-Error"] == "true"
    assert not ran


async def test_a_long_body_is_refused_before_it_is_read(carried: Carried):
    url = f"{BASE}/api/jobs/greet"
    problem(await carried.qstash.send(url, b"x" * 5000, carried.qstash.sign(url, b"")), 413, "body_too_large")


async def test_without_signing_keys_there_is_no_such_route(valkey: Server, data_dir: Path):
    qstash = QStashServer()
    keys = {name: value for name, value in qstash.variables.items() if "SIGNING" in name}
    for variables, deliveries in (
        ({}, False),
        ({"COUNTERSEAL_PUBLIC_URL": BASE}, False),
        ({"COUNTERSEAL_PUBLIC_URL": BASE, **keys}, True),
    ):
        async with seal_on(valkey, data_dir, variables) as seal:
            assert (seal.carriage.deliveries is not None) is deliveries
            assert seal.carriage.carrier is None
