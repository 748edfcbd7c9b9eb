"""The outbox on both databases: at least once, in order within an aggregate, and nothing that was rolled back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update

from counterseal.core.codec import JsonValue
from counterseal.core.errors import CodecError
from counterseal.database.engine import Database
from counterseal.database.outbox import AtMost, Backlog, Handler, Outbox, OutboxJob, add_job
from counterseal.database.tables import outbox_jobs
from support.databases import EVERY, Place
from support.waiting import eventually as waited

QUICK = timedelta(milliseconds=20)
NEVER = timedelta(hours=1)
SECRET = "tok_4711_secret"


async def eventually(condition: Callable[[], Any], within: float = 20) -> Any:
    """As the kit's, with the patience that a busy machine needs."""
    return await waited(condition, within)


class Clock:
    """The machine's clock, which a test may move."""

    def __init__(self) -> None:
        self._moved_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self._moved_ms

    def travel(self, by: timedelta) -> None:
        self._moved_ms += by // timedelta(milliseconds=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def statements(database: Database) -> Iterator[list[str]]:
    """The first word of everything that is sent to the database."""
    sent: list[str] = []
    base = database._reading if database.kind == "sqlite" else database._engine
    assert base is not None
    engine = base.sync_engine

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement.split(maxsplit=1)[0])

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


class Runs:
    """A handler that keeps what it was given."""

    def __init__(self, failures: int = 0) -> None:
        self.jobs: list[OutboxJob] = []
        self.failures = failures

    async def __call__(self, job: OutboxJob) -> None:
        self.jobs.append(job)
        if len(self.jobs) <= self.failures:
            raise ConnectionError(SECRET)

    @property
    def numbers(self) -> list[JsonValue]:
        return [number(job) for job in self.jobs]


def number(job: OutboxJob) -> JsonValue:
    assert isinstance(job.payload, dict)
    return job.payload["n"]


def relay(
    database: Database, clock: Clock, handlers: Mapping[str, Handler | AtMost], **options: Any
) -> Outbox:
    return Outbox(
        database, now_ms=clock, handlers=handlers, **({"period": QUICK, "longest_pause": QUICK} | options)
    )


async def add(database: Database, clock: Clock, *payloads: int, kind: str = "note", **options: Any) -> None:
    async with database.begin() as connection:
        for n in payloads:
            assert await add_job(connection, kind, {"n": n}, now_ms=clock(), **options)


async def states(database: Database) -> Counter[str]:
    async with database.read() as connection:
        return Counter((await connection.execute(select(outbox_jobs.c.state))).scalars())


async def rows(database: Database) -> list[Any]:
    async with database.read() as connection:
        return list(await connection.execute(select(outbox_jobs).order_by(outbox_jobs.c.seq)))


def all_done(outbox: Outbox) -> Callable[[], Any]:
    async def check() -> bool:
        return (await outbox.backlog()).pending == 0

    return check


async def test_a_committed_job_runs_once_and_is_done(database: Database, clock: Clock) -> None:
    runs = Runs()
    payload: dict[str, JsonValue] = {"n": 1, "deep": [{"ä": None, "t": "1e3", "f": 0.5}]}
    async with database.begin() as connection:
        assert await add_job(
            connection, "note", payload, now_ms=clock(), aggregate="a", payload_version=3, dedupe_key="k"
        )
    async with relay(database, clock, {"note": runs}) as outbox:
        await eventually(all_done(outbox))
    (job,) = runs.jobs
    assert (job.kind, job.payload, job.payload_version) == ("note", payload, 3)
    assert (job.aggregate, job.attempt) == ("a", 1)
    (row,) = await rows(database)
    assert (row.id, row.state, row.attempts, row.last_error) == (job.id, "done", 1, None)
    assert row.finished_at >= row.created_at


async def test_a_job_that_was_rolled_back_never_runs(database: Database, clock: Clock) -> None:
    async def fail() -> None:
        async with database.begin() as connection:
            await add_job(connection, "note", {"n": 1}, now_ms=clock())
            raise LookupError

    runs = Runs()
    with pytest.raises(LookupError):
        await fail()
    await add(database, clock, 2)
    async with relay(database, clock, {"note": runs}) as outbox:
        await eventually(all_done(outbox))
    assert runs.numbers == [2]
    assert len(await rows(database)) == 1


async def test_a_job_is_not_run_before_its_transaction_ends(database: Database, clock: Clock) -> None:
    runs = Runs()
    async with relay(database, clock, {"note": runs}) as outbox:
        async with database.begin() as connection:
            await add_job(connection, "note", {"n": 1}, now_ms=clock())
            outbox.wake()
            assert await eventually(outbox.backlog) == Backlog(0, None, 0, 0)
            assert runs.jobs == []
        await eventually(lambda: runs.jobs)


async def test_a_dedupe_key_is_taken_once_also_when_the_job_is_done(database: Database, clock: Clock) -> None:
    runs = Runs()
    async with database.begin() as connection:
        for aggregate in ("", "a"):
            key = f"key{aggregate}"
            for expected in (True, False):
                assert expected is await add_job(
                    connection, "note", {"n": 1}, now_ms=clock(), dedupe_key=key, aggregate=aggregate
                )
    async with relay(database, clock, {"note": runs}) as outbox:
        await eventually(all_done(outbox))
    async with database.begin() as connection:
        assert not await add_job(connection, "note", {"n": 2}, now_ms=clock(), dedupe_key="key")
    assert len(await rows(database)) == len(runs.jobs) == 2


@pytest.mark.parametrize("bad", [{"when": datetime(2026, 1, 1, tzinfo=UTC)}, {"a": "\x00"}, {"a\\\x00": 1}])
async def test_a_payload_that_can_not_be_kept_is_refused(
    database: Database, clock: Clock, bad: dict[str, Any]
) -> None:
    async with database.begin() as connection:
        with pytest.raises(CodecError):
            await add_job(connection, "note", bad, now_ms=clock())
        assert await add_job(connection, "note", {"n": "\\u0000"}, now_ms=clock())
    assert [row.payload for row in await rows(database)] == [{"n": "\\u0000"}]


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_two_relays_keep_the_order_of_each_aggregate_and_run_no_job_together(
    place: Place, clock: Clock
) -> None:
    seen: dict[str, list[JsonValue]] = {}
    under_way: Counter[str] = Counter()
    together = 0

    async def handle(job: OutboxJob) -> None:
        nonlocal together
        key = job.aggregate or str(job.id)
        under_way[key] += 1
        together = max(together, under_way[key])
        await asyncio.sleep(0)
        under_way[key] -= 1
        if isinstance(place_in := number(job), int) and place_in % 4 == 1 and job.attempt < 3:
            raise ConnectionError
        seen.setdefault(job.aggregate, []).append(place_in)

    async with place.database() as one, place.database() as other:
        for n in range(8):
            for aggregate in ("a", "b", "c", ""):
                await add(one, clock, n, aggregate=aggregate)
        async with relay(one, clock, {"note": handle}) as outbox, relay(other, clock, {"note": handle}):
            await eventually(all_done(outbox))
        attempts = [row.attempts for row in await rows(one)]
    assert together == 1
    assert {name: seen[name] for name in "abc"} == {name: list(range(8)) for name in "abc"}
    assert sorted(seen[""]) == list(range(8))  # type: ignore[type-var]
    assert sorted(attempts) == [1] * 24 + [3] * 8


async def test_jobs_of_an_aggregate_run_in_the_order_of_their_commits(place: Place, clock: Clock) -> None:
    runs = Runs()
    async with (
        place.database() as database,
        place.database() as other,
        relay(database, clock, {"note": runs}, period=NEVER) as outbox,
    ):
        async with database.begin() as connection:
            await add_job(connection, "note", {"n": 1}, now_ms=clock(), aggregate="a")
            second = asyncio.create_task(add(other, clock, 2, aggregate="a"))
            for _ in range(20):
                outbox.wake()
                assert (await outbox.backlog()).pending == 0
            assert not second.done()
        await second
        outbox.wake()
        await eventually(all_done(outbox))
    assert runs.numbers == [1, 2]


async def test_a_failing_job_holds_up_its_aggregate_and_nobody_else(database: Database, clock: Clock) -> None:
    runs, failing = Runs(), Runs(failures=1_000_000)
    await add(database, clock, 1, kind="fails", aggregate="a")
    await add(database, clock, 2, aggregate="a")
    await add(database, clock, 3, aggregate="b")
    await add(database, clock, 4)
    async with relay(database, clock, {"note": runs, "fails": failing}) as outbox:
        await eventually(lambda: len(failing.jobs) >= 5)
        await eventually(lambda: len(runs.jobs) == 2)
        assert sorted(runs.numbers) == [3, 4]  # type: ignore[type-var]
        failing.failures = 0
        await eventually(all_done(outbox))
    assert runs.numbers[2:] == [2]


async def test_a_slow_job_holds_nobody_up(database: Database, clock: Clock) -> None:
    release = asyncio.Event()
    runs = Runs()

    async def slow(job: OutboxJob) -> None:
        await release.wait()

    await add(database, clock, 1, kind="slow")
    await add(database, clock, 2, 3)
    async with relay(database, clock, {"note": runs, "slow": slow}, period=NEVER) as outbox:

        async def only_the_slow_one_is_left() -> bool:
            return (await outbox.backlog()).pending == 1

        await eventually(only_the_slow_one_is_left)
        release.set()
        await eventually(all_done(outbox))


async def test_what_failed_is_told_by_its_type_alone(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(job: OutboxJob) -> None:
        if job.attempt == 1:
            raise CodecError(SECRET)

    runs = Runs(failures=2)
    await add(database, clock, 1)
    await add(database, clock, 2, kind="refuse")
    async with relay(database, clock, {"note": runs, "refuse": refuse}) as outbox:
        await eventually(all_done(outbox))
    assert [row.last_error for row in await rows(database)] == [
        "ConnectionError",
        "CodecError (value_unreadable)",
    ]
    assert [job.attempt for job in runs.jobs] == [1, 2, 3]
    assert "ConnectionError in __call__" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr(await rows(database))


async def test_a_handler_that_takes_too_long_is_cut_off_and_tried_again(
    database: Database, clock: Clock
) -> None:
    attempts: list[int] = []

    async def hang(job: OutboxJob) -> None:
        attempts.append(job.attempt)
        if job.attempt == 1:
            await asyncio.Event().wait()

    await add(database, clock, 1)
    async with relay(database, clock, {"note": hang}, timeout=QUICK) as outbox:
        await eventually(all_done(outbox))
    assert attempts == [1, 2]
    assert [row.last_error for row in await rows(database)] == ["TimeoutError"]


async def test_a_cancellation_that_a_handler_made_itself_is_a_failure(
    database: Database, clock: Clock
) -> None:
    async def cancelled(job: OutboxJob) -> None:
        if job.attempt == 1:
            raise asyncio.CancelledError

    await add(database, clock, 1)
    async with relay(database, clock, {"note": cancelled}) as outbox:
        await eventually(all_done(outbox))
    assert [row.last_error for row in await rows(database)] == ["CancelledError"]


async def test_a_job_is_given_up_only_where_its_handler_allows_it(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn, limited, after = Runs(failures=12), Runs(failures=100), Runs()
    await add(database, clock, 1, kind="stubborn")
    await add(database, clock, 2, kind="limited", aggregate="a")
    await add(database, clock, 3, kind="after", aggregate="a")
    handlers = {"stubborn": stubborn, "limited": AtMost(3, limited), "after": after}
    async with relay(database, clock, handlers) as outbox:
        await eventually(all_done(outbox))
        assert (await outbox.backlog()).dead == 1
    assert (len(stubborn.jobs), len(limited.jobs), len(after.jobs)) == (13, 3, 1)
    first, second, third = await rows(database)
    assert (first.state, second.state, third.state) == ("done", "dead", "done")
    assert (second.attempts, second.last_error) == (3, "ConnectionError")
    assert second.finished_at is not None
    assert "is given up after 3 attempts" in caplog.text


async def test_a_kind_that_nobody_handles_waits_and_is_shown(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await add(database, clock, 1, kind="foreign", aggregate="a")
    await add(database, clock, 2, aggregate="a")
    runs = Runs()
    async with relay(database, clock, {"note": runs}) as outbox:
        await eventually(lambda: "jobs of kind foreign wait in the outbox" in caplog.text)
        backlog = await outbox.backlog()
    assert (backlog.pending, backlog.unknown, backlog.dead) == (2, 1, 0)
    assert runs.jobs == []
    async with relay(database, clock, {"note": runs, "foreign": runs}) as outbox:
        await eventually(all_done(outbox))
    assert runs.numbers == [1, 2]


async def test_a_relay_without_handlers_leaves_everything(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await add(database, clock, 1)
    async with relay(database, clock, {}) as outbox:
        await eventually(lambda: "jobs of kind note wait" in caplog.text)
        backlog = await outbox.backlog()
    assert (backlog.pending, backlog.unknown) == (1, 1)


async def test_a_job_for_later_waits_for_its_time(database: Database, clock: Clock) -> None:
    runs = Runs()
    later = clock() + 3_600_000
    await add(database, clock, 1, run_at_ms=later)
    await add(database, clock, 2)
    async with relay(database, clock, {"note": runs}) as outbox:

        async def only_the_later_one_waits() -> bool:
            return await outbox.backlog() == Backlog(pending=1, oldest_age=None, unknown=0, dead=0)

        await eventually(only_the_later_one_waits)
        assert runs.numbers == [2]
        clock.travel(timedelta(hours=1))
        await eventually(all_done(outbox))
    assert runs.numbers == [2, 1]


async def test_a_woken_relay_does_not_wait_for_its_period(database: Database, clock: Clock) -> None:
    runs = Runs()
    async with relay(database, clock, {"note": runs}, period=NEVER) as outbox:
        for n in range(3):
            await add(database, clock, n)
            outbox.wake()
            await eventually(lambda: len(runs.jobs) == n + 1)  # noqa: B023


async def test_many_jobs_need_one_call_to_wake(database: Database, clock: Clock) -> None:
    runs = Runs()
    async with relay(database, clock, {"note": runs}, period=NEVER) as outbox:
        await add(database, clock, *range(100))
        outbox.wake()
        await eventually(lambda: len(runs.jobs) == 100)
        await eventually(all_done(outbox))
    assert sorted(runs.numbers) == list(range(100))  # type: ignore[type-var]


async def test_the_backlog_is_counted_and_its_age_measured(database: Database, clock: Clock) -> None:
    outbox = relay(database, clock, {"note": Runs()})
    assert await outbox.backlog() == Backlog(pending=0, oldest_age=None, unknown=0, dead=0)
    await add(database, clock, 1)
    clock.travel(timedelta(seconds=60))
    await add(database, clock, 2, 3, kind="foreign")
    clock.travel(timedelta(seconds=30))
    backlog = await outbox.backlog()
    assert (backlog.pending, backlog.unknown) == (3, 2)
    assert backlog.oldest_age is not None
    assert timedelta(seconds=90) <= backlog.oldest_age < timedelta(seconds=120)


async def test_the_age_of_a_job_that_failed_counts_from_when_it_was_written(
    database: Database, clock: Clock
) -> None:
    await add(database, clock, 1)
    clock.travel(timedelta(seconds=90))
    async with database.begin() as connection:
        at = datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=60)
        await connection.execute(update(outbox_jobs).values(attempts=5, run_at=at))
    backlog = await relay(database, clock, {"note": Runs()}).backlog()
    assert backlog.oldest_age is not None
    assert timedelta(seconds=90) <= backlog.oldest_age < timedelta(seconds=120)


async def test_done_jobs_are_removed_after_thirty_days(database: Database, clock: Clock) -> None:
    handlers = {"note": Runs(), "dies": AtMost(1, Runs(failures=1))}
    await add(database, clock, 1, 2, 3)
    await add(database, clock, 4, kind="dies")
    async with relay(database, clock, handlers) as outbox:
        await eventually(all_done(outbox))
        await add(database, clock, 5, kind="foreign")
    clock.travel(timedelta(days=29))
    outbox = relay(database, clock, handlers)
    assert await outbox.prune() == 0
    clock.travel(timedelta(days=1, minutes=1))
    assert await outbox.prune(2) == 2
    assert await outbox.prune(2) == 1
    assert await outbox.prune() == 0
    assert await states(database) == {"dead": 1, "pending": 1}


async def test_the_relay_removes_old_jobs_by_itself(database: Database, clock: Clock) -> None:
    async def none_left() -> bool:
        return not await rows(database)

    await add(database, clock, 1, 2)
    async with relay(database, clock, {"note": Runs()}) as outbox:
        await eventually(all_done(outbox))
        clock.travel(timedelta(days=31))
        await eventually(none_left)


async def test_an_idle_relay_asks_one_thing_a_period(
    database: Database, clock: Clock, statements: list[str]
) -> None:
    period = timedelta(milliseconds=50)
    async with relay(database, clock, {"note": Runs()}, period=period):
        await eventually(lambda: "DELETE" in statements)  # the tidying of the start
        await eventually(lambda: statements[-1] == "SELECT")
        statements.clear()
        began = time.monotonic()
        await eventually(lambda: statements.count("SELECT") == 10)
        took = time.monotonic() - began
    assert set(statements) <= {"SELECT", "BEGIN"}
    assert took > 9 * period.total_seconds() * 0.9


async def test_a_handler_may_write_to_the_database_and_add_jobs(database: Database, clock: Clock) -> None:
    runs = Runs()

    async def chain(job: OutboxJob) -> None:
        await add(database, clock, 2, aggregate=job.aggregate)

    await add(database, clock, 1, kind="chain", aggregate="a")
    async with relay(database, clock, {"note": runs, "chain": chain}) as outbox:
        await eventually(all_done(outbox))
    assert runs.numbers == [2]


async def test_closing_ends_soon_and_the_job_that_was_cut_off_runs_again(
    database: Database, clock: Clock
) -> None:
    begun = asyncio.Event()
    runs = Runs()

    async def hang(job: OutboxJob) -> None:
        begun.set()
        await asyncio.Event().wait()

    await add(database, clock, 1)
    outbox = relay(database, clock, {"note": hang}, grace=QUICK)
    async with outbox:
        await begun.wait()
        began = time.monotonic()
    await outbox.close()
    assert time.monotonic() - began < 2
    async with relay(database, clock, {"note": runs}) as outbox:
        await eventually(all_done(outbox))
    assert [job.attempt for job in runs.jobs] == [1]


async def test_closing_lets_a_job_end_that_is_nearly_done(database: Database, clock: Clock) -> None:
    begun = asyncio.Event()
    closing = asyncio.Event()

    async def handle(job: OutboxJob) -> None:
        begun.set()
        await closing.wait()

    await add(database, clock, 1)
    outbox = relay(database, clock, {"note": handle}, grace=timedelta(seconds=30))
    async with outbox:
        await begun.wait()
        closed = asyncio.create_task(outbox.close())
        closing.set()
        await closed
    assert await states(database) == {"done": 1}


async def test_a_relay_can_be_entered_again(database: Database, clock: Clock) -> None:
    runs = Runs()
    outbox = relay(database, clock, {"note": runs})
    for n in range(2):
        async with outbox:
            await add(database, clock, n)
            await eventually(all_done(outbox))
    assert runs.numbers == [0, 1]


async def test_nothing_of_a_payload_is_in_a_repr(database: Database, clock: Clock) -> None:
    runs = Runs()
    async with database.begin() as connection:
        await add_job(connection, "note", {"n": 1, "token": SECRET}, now_ms=clock())
    async with relay(database, clock, {"note": runs}) as outbox:
        await eventually(all_done(outbox))
    assert SECRET not in repr(runs.jobs)


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "counterseal")
