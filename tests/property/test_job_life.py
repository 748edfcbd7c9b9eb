"""The life of jobs against a plain model: two workers call anything of a queue, time passes, the server restarts.

Which job is next the server says; the model says which may be, and that none is left that could have been.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from counterseal.jobs.dead_letters import retry_letters
from counterseal.jobs.job import State, read_job
from counterseal.jobs.options import Flow, Options, write_extra
from counterseal.jobs.scripts import MOST_LOST, Leased, Queue, Result
from counterseal.store.keys import JOB_DEAD_TTL, Keys
from counterseal.store.valkey import NativeStore
from support.servers import Server
from support.stores import native_store
from support.waiting import eventually

KEYS = Keys()
LEASE_MS = 15_000
KEEP_MS = 30_000
DEAD_MS = JOB_DEAD_TTL // timedelta(milliseconds=1)
UNIQUE_MS = 20_000
WINDOW_MS = 10_000
PERIOD_MS = 1000
FLOWS = {"a": (1, 0), "b": (0, 2), "c": (2, 3)}
"""Parallelism and rate by key; 0 is none."""
TERMINAL = (State.COMPLETED, State.FAILED, State.CANCELLED)
PACE = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

numbers = count()
T = TypeVar("T")
workers = st.sampled_from(["w1", "w2"])
flows = st.sampled_from([None, None, *FLOWS])


@dataclass
class Known:
    """What the model knows of a job."""

    priority: int
    flow: str | None
    unique: str | None
    state: State
    due: int = 0
    token: int = 0
    attempt: int = 0
    lost: int = 0
    until: int = 0
    started: int = 0
    parked: bool = False
    asked: bool = False
    letter: bool = False
    held_until: int = 0
    kept_until: int = 0


class Life(RuleBasedStateMachine):
    """One queue. `server` and `runner` are given before it runs."""

    server: Server
    runner: asyncio.Runner
    store: NativeStore

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_800_000_000_000 + next(numbers) * 10**9
        self.store.now_ms = lambda: self.now  # type: ignore[method-assign]
        self.queue = Queue(self.store, KEYS, f"life{next(numbers)}")
        self.jobs: dict[str, Known] = {}
        self.dedup: dict[str, tuple[str, int]] = {}
        self.leases: list[Leased] = []
        self.calls = Counter[str]()
        self.last: dict[str, list[Leased]] = {}
        self.windows: dict[tuple[str, int], int] = {}
        self.paused = False
        self.parallelism = 0
        self.restarts = self.cuts = 1

    @initialize(outages=st.integers(0, 4))
    def outages(self, outages: int) -> None:
        # A store that loses its server again and again waits longer each time: only some queues live through it.
        self.restarts = self.cuts = int(outages != 4)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def command(self, *arguments: Any) -> Any:
        return self.server.execute(*arguments)

    # -- what is made ------------------------------------------------------------------------------------------------

    @rule(
        priority=st.integers(0, 2),
        delay=st.sampled_from([0, 0, 500, 20_000]),
        flow=flows,
        unique=st.sampled_from([None, None, "u", "v"]),
        dedup=st.sampled_from([None, None, None, "d"]),
        many=st.integers(1, 3),
    )
    def enqueue(
        self, *, priority: int, delay: int, flow: str | None, unique: str | None, dedup: str | None, many: int
    ) -> None:
        arguments: list[Any] = []
        expected: list[str] = []
        for _ in range(many):
            part = f"j{len(self.jobs)}"
            most, rate = FLOWS.get(flow or "", (0, 0))
            options = Options(
                delay=timedelta(milliseconds=delay),
                unique=unique,
                unique_ttl=timedelta(milliseconds=UNIQUE_MS),
                dedup_id=dedup,
                dedup_window=timedelta(milliseconds=WINDOW_MS),
                flow=Flow(flow, most or None, rate or None, timedelta(milliseconds=PERIOD_MS))
                if flow
                else None,
            )
            arguments += [part, "t", str(priority), b"1:{}", write_extra(options.stored(self.now))]
            held = [self.dedup[dedup][0]] if dedup and self.dedup.get(dedup, ("", 0))[1] > self.now else []
            held += [n for n, job in self.jobs.items() if unique and self._holds(job, unique)]
            expected.append(held[0] if held else "")
            if not held:
                state = State.SCHEDULED if delay else State.QUEUED
                until = self.now + UNIQUE_MS
                self.jobs[part] = Known(priority, flow, unique, state, due=self.now + delay, held_until=until)
                if dedup:
                    self.dedup[dedup] = (part, self.now + WINDOW_MS)
        assert self.run(self.queue.enqueue(arguments)) == expected

    def _holds(self, job: Known, unique: str) -> bool:
        return job.unique == unique and job.state not in TERMINAL and job.held_until > self.now

    # -- what is done ------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """What a lease call finds due or lost."""
        for job in self.jobs.values():
            if job.state in (State.SCHEDULED, State.RETRYING) and not job.parked and job.due <= self.now:
                job.state = State.QUEUED
            elif job.state is State.RUNNING and job.until <= self.now:
                job.lost += 1
                if job.asked:
                    job.state, job.asked, job.kept_until = State.CANCELLED, False, self.now + DEAD_MS
                elif job.lost >= MOST_LOST:
                    job.state, job.letter, job.kept_until = State.FAILED, True, self.now + DEAD_MS
                else:
                    job.state = State.QUEUED

    def _running(self, flow: str | None = None) -> int:
        return sum(
            job.state is State.RUNNING and (flow is None or job.flow == flow) for job in self.jobs.values()
        )

    def _flow(self, flow: str) -> tuple[int, int]:
        start, used = self.command("HMGET", f"{self.queue.prefix}:flow:{flow}", "start_ms", "used")
        return int(start or 0), int(used or 0)

    def _open(self, job: Known) -> bool:
        """Whether a queued job may begin, the queue's own limits apart."""
        if job.flow is None:
            return True
        most, rate = FLOWS[job.flow]
        start, used = self._flow(job.flow)
        full = most and self._running(job.flow) >= most
        return not full and not (rate and used >= rate and self.now < start + PERIOD_MS)

    @rule(worker=workers, room=st.integers(1, 4))
    def lease(self, worker: str, room: int) -> None:
        self.calls[worker] += 1
        call = str(self.calls[worker])
        batch = self.run(self.queue.lease(room=room, worker=worker, call=call, lease_ms=LEASE_MS))
        assert batch.gone == 0
        self._judge()
        strict = self.parallelism == 1
        waits = strict and any(job.state is State.RETRYING and not job.parked for job in self.jobs.values())
        room = 0 if self.paused or waits else room
        if self.parallelism:
            room = min(room, self.parallelism - self._running())
        assert len(batch.jobs) <= max(0, room)
        for leased in batch.jobs:
            job = self.jobs[leased.part]
            assert job.state is State.QUEUED
            job.state, job.token, job.attempt = State.RUNNING, int(leased.token), leased.attempt
            job.until, job.started = self.now + LEASE_MS, self.now
            if job.flow is not None:
                most, rate = FLOWS[job.flow]
                window = (job.flow, self._flow(job.flow)[0])
                self.windows[window] = self.windows.get(window, 0) + 1
                assert not most or self._running(job.flow) <= most
                assert not rate or self.windows[window] <= rate
        left = [job for job in self.jobs.values() if job.state is State.QUEUED and self._open(job)]
        if len(batch.jobs) < room:
            assert not left
        if batch.jobs and left:
            assert max(self.jobs[one.part].priority for one in batch.jobs) <= min(
                job.priority for job in left
            )
        self.leases += batch.jobs
        if batch.jobs:
            self.last[worker] = batch.jobs
        else:
            self.last.pop(worker, None)

    @precondition(lambda self: self.leases)
    @rule(
        which=st.integers(0, 30),
        outcome=st.sampled_from(
            ["completed", "completed", "failed", "cancelled", "retrying", "queued", "parked"]
        ),
        twice=st.booleans(),
    )
    def finish(self, which: int, outcome: str, twice: bool) -> None:
        leased = self.leases[which % len(self.leases)]
        job = self.jobs.get(leased.part)
        held = job is not None and job.state is State.RUNNING and job.token == int(leased.token)
        text = {"completed": b"1", "cancelled": b"why"}.get(outcome, b'["E","",""]')
        ms = {"retrying": 700, "parked": 1, "failed": DEAD_MS}.get(outcome, KEEP_MS)
        result = Result(leased.part, leased.token, outcome, ms, 5, text)
        answers = self.run(self.queue.finish([result, result] if twice else [result]))
        if job is None or not held:
            self._refused(job, int(leased.token), answers)
            return
        assert answers[0]
        if outcome in ("retrying", "queued", "parked") and job.asked:
            outcome, ms = "cancelled", 86_400_000
        job.asked = False
        if outcome == "retrying":
            job.state, job.due = State.RETRYING, self.now + ms
        elif outcome in ("queued", "parked"):
            job.state = State.QUEUED if outcome == "queued" else State.RETRYING
            job.parked = outcome == "parked"
            job.attempt -= 1
        else:
            job.state, job.kept_until = State(outcome), self.now + ms
            job.letter = outcome == "failed"

    @staticmethod
    def _refused(job: Known | None, token: int, answers: list[bool]) -> None:
        # The same result of the same lease may be said to have been taken; what changed nothing shows in the states.
        if job is None or job.token != token:
            assert not any(answers)

    @precondition(lambda self: self.leases)
    @rule(which=st.lists(st.integers(0, 30), min_size=1, max_size=4))
    def extend(self, which: list[int]) -> None:
        leases = [self.leases[one % len(self.leases)] for one in which]
        for leased, answer in zip(
            leases, self.run(self.queue.extend(leases, lease_ms=LEASE_MS)), strict=True
        ):
            job = self.jobs.get(leased.part)
            if job is not None and job.state is State.RUNNING and job.token == int(leased.token):
                assert answer == ("cancel enough" if job.asked else "")
                job.until = self.now + LEASE_MS
            else:
                assert answer == "lost"

    @rule(worker=workers, late=st.booleans())
    def recall(self, worker: str, late: bool) -> None:
        """The answer of the last lease call got lost; perhaps it comes again."""
        call = str(self.calls[worker])
        back = 0
        expected = self.last.pop(worker, [])
        mine = [one for one in expected if (job := self.jobs.get(one.part)) and job.token == int(one.token)]
        for leased in mine:
            job = self.jobs[leased.part]
            if job.state is not State.RUNNING:
                continue
            if job.asked:
                job.until = 0
                continue
            job.state, job.attempt = State.QUEUED, job.attempt - 1
            back += 1
            if job.flow is not None and job.started >= (start := self._flow(job.flow)[0]):
                self.windows[job.flow, start] = self.windows.get((job.flow, start), 0) - 1
        assert self.run(self.queue.recall(worker=worker, call=call)) == back
        if late:
            again = self.run(self.queue.lease(room=4, worker=worker, call=call, lease_ms=LEASE_MS))
            assert again.jobs == []

    # -- what people do ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        part = sorted(self.jobs)[which % len(self.jobs)]
        job = self.jobs[part]
        answer = self.run(self.queue.cancel(part, "enough", keep_ms=KEEP_MS))
        if job.state is State.RUNNING:
            assert answer == "asked"
            job.asked = True
        elif job.state in TERMINAL:
            assert answer == (job.state if job.kept_until > self.now else None)
        else:
            assert answer == "cancelled"
            job.state, job.parked, job.kept_until = State.CANCELLED, False, self.now + KEEP_MS

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        key = KEYS.jobs_queue(self.queue.name)
        self.command(*(("HSET", key, "paused", 1) if paused else ("HDEL", key, "paused")))
        self.paused = paused

    @rule(parallelism=st.sampled_from([0, 0, 1, 2]))
    def limit(self, parallelism: int) -> None:
        self.command("HSET", KEYS.jobs_queue(self.queue.name), "parallelism", parallelism)
        self.parallelism = parallelism

    @precondition(lambda self: any(job.letter or job.parked for job in self.jobs.values()))
    @rule(which=st.integers(0, 30), discard=st.booleans())
    def settle_letter(self, which: int, discard: bool) -> None:
        letters = sorted(part for part, job in self.jobs.items() if job.letter or job.parked)
        part = letters[which % len(letters)]
        job = self.jobs[part]
        if discard:
            assert self.run(self.queue.discard([part], "deleted", keep_ms=KEEP_MS)) == 1
            if job.letter:
                del self.jobs[part]
                job.letter, job.kept_until = False, 0
                self.jobs[f"{part}-gone"] = job  # it still counts as failed
            else:
                job.state, job.parked, job.kept_until = State.CANCELLED, False, self.now + KEEP_MS
            return
        new = f"j{len(self.jobs)}r"
        ((_, answer),) = self.run(retry_letters(self.queue, [part], new_part=lambda: new))
        if job.letter:
            assert answer == new
            free = not any(job.unique and self._holds(other, job.unique) for other in self.jobs.values())
            unique, until = job.unique if free else None, self.now + UNIQUE_MS
            self.jobs[new] = Known(job.priority, job.flow, unique, State.QUEUED, held_until=until)
            job.letter = False
        else:
            assert answer == part
            job.state, job.parked = State.QUEUED, False

    @rule(schema=st.integers(0, 2))
    def unpark(self, schema: int) -> None:
        parked = [job for job in self.jobs.values() if job.parked and schema >= 1]
        assert len(self.run(self.queue.unpark({"t": schema}, count=100))) == len(parked)
        for job in parked:
            job.state, job.parked = State.QUEUED, False

    @rule(ms=st.sampled_from([1, 300, 1000, 6000, 15_000, 40_000]))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @precondition(lambda self: self.cuts == 0 and len(self.jobs) > 2)
    @rule()
    def connection_is_cut(self) -> None:
        self.cuts += 1
        self.run(self._cut())

    async def _cut(self) -> None:
        before = self.store.counts.reconnects
        self.store.link.renew("the test has cut it")
        await eventually(lambda: self.store.counts.reconnects > before and self.store.available, within=10)

    @precondition(lambda self: self.restarts == 0 and len(self.jobs) > 4)
    @rule()
    def server_is_killed_and_restarted(self) -> None:
        self.restarts += 1
        before = self.store.counts.reconnects
        self.server.kill()
        self.server.start()
        self.run(self._back(before))

    async def _back(self, before: int) -> None:
        await eventually(lambda: self.store.counts.reconnects > before and self.store.available, within=10)

    # -- what holds always -------------------------------------------------------------------------------------------

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        parts = [part for part in self.jobs if not part.endswith("-gone")]
        replies = self.run(self.queue.read(parts)) if parts else []
        for part, reply in zip(parts, replies, strict=True):
            job, found = self.jobs[part], read_job(self.queue.name, part, reply)
            if job.state in TERMINAL and job.kept_until <= self.now:
                assert found is None, f"{part} is kept too long"
                continue
            assert found is not None, f"{part} is lost"
            assert found.holds_unique == bool(job.unique and self._holds(job, job.unique)), part
            assert (found.state, found.parked) == (job.state, job.parked), part
            assert (found.attempt, found.lost) == (job.attempt, job.lost), part

    @invariant()
    def counters_are_those_of_the_model(self) -> None:
        flat = self.command("HGETALL", f"{self.queue.prefix}:stats:t")
        counters = {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
        expected = Counter(job.state.value for job in self.jobs.values())
        assert {state: counters.get(state, 0) for state in State} == {
            state: expected[state] for state in State
        }
        retrying = sum(job.state is State.RETRYING and not job.parked for job in self.jobs.values())
        assert int(self.command("HGET", KEYS.jobs_queue(self.queue.name), "retrying") or 0) == retrying
        for flow in FLOWS:
            known = int(self.command("HGET", f"{self.queue.prefix}:flow:{flow}", "running") or 0)
            assert known == self._running(flow), flow

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        prefix = self.queue.prefix
        lists = [f"{prefix}:ready:{priority}" for priority in range(3)]
        lists += [f"{prefix}:lane:{priority}:{flow}" for priority in range(3) for flow in FLOWS]
        sets = {name: f"{prefix}:{name}" for name in ("delayed", "running", "parked", "dead")}
        places: dict[str, list[str]] = {}
        for key in lists:
            for part in self.command("LRANGE", key, 0, -1):
                if self.jobs[part.decode()].state not in TERMINAL:  # a cancelled one is passed over
                    places.setdefault(part.decode(), []).append("queued")
        for name, key in sets.items():
            for part in self.command("ZRANGE", key, 0, -1):
                places.setdefault(part.decode(), []).append(name)
        expected = {part: [place] for part, job in self.jobs.items() if (place := _place(job))}
        assert places == expected


def _place(job: Known) -> str | None:
    if job.letter:
        return None if job.state is not State.FAILED else "dead"
    if job.parked:
        return "parked"
    return {
        State.SCHEDULED: "delayed",
        State.RETRYING: "delayed",
        State.QUEUED: "queued",
        State.RUNNING: "running",
    }.get(job.state)


def test_a_queue_keeps_to_its_model(servers: Callable[..., Server]) -> None:
    server = servers(appendonly=True)
    with asyncio.Runner() as runner:
        store = native_store(server)
        runner.run(store.open())
        Life.server, Life.runner, Life.store = server, runner, store
        try:
            run_state_machine_as_test(Life, settings=PACE)
        finally:
            runner.run(store.close())
