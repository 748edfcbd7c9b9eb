"""The life of sessions against a plain model: two processes call anything, time passes, and Redis comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
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
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import UserBlocked
from counterseal.core.settings import SessionSettings
from counterseal.database.tables import users
from counterseal.sessions import Reason, SessionReuseDetected
from counterseal.sessions.refresh_token import new_refresh_token
from counterseal.store.breaker import BreakerPolicy
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.databases import Databases
from support.ratelimits import StillClock
from support.relay import Relay
from support.servers import Server
from support.session_rows import parts_of, set_status
from support.sessions import Process, process
from support.waiting import eventually

START = 1_800_000_000_000
MOST = 3
IDLE_MS = 24 * 3_600_000
ABSOLUTE_MS = 36 * 3_600_000
GRACE_MS = 10_000
NOTED_MS = 120_000
"""A use is noted at most once a minute in Redis, and again in the database."""

SETTINGS = SessionSettings(
    max_per_user=MOST,
    idle=timedelta(milliseconds=IDLE_MS),
    absolute=timedelta(milliseconds=ABSOLUTE_MS),
)
QUICK = LinkOptions(
    command_timeout=timedelta(seconds=5),
    connect_timeout=timedelta(seconds=5),
    breaker=BreakerPolicy(first_wait=timedelta(milliseconds=20), longest_wait=timedelta(milliseconds=40)),
)
PACE = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

numbers = count()
T = TypeVar("T")

processes = st.integers(0, 1)
which = st.integers(0, 5)


class Desk:
    """Two processes on a loop of their own, whose clock stands still and whose Redis can be taken away."""

    def __init__(self, runner: asyncio.Runner, server: Server, databases: Databases, folder: Path) -> None:
        self.stack = AsyncExitStack()
        self.clock = StillClock(START)
        self.server = server
        self.relay = Relay(server)
        self.apps: list[Process] = []
        self._runner = runner
        self._databases = databases
        self._folder = folder

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def begin(self) -> None:
        enter = self.stack.enter_async_context
        place = await enter(self._databases.place("sqlite", self._folder))
        await enter(self.relay)
        for _ in range(2):
            store = NativeStore(FixedRoute(parse_redis_url(self.relay.url).template), QUICK)
            store.now_ms = self.clock.now_ms
            await enter(store)
            database = await enter(place.database())
            self.apps.append(await enter(process(store, database, settings=SETTINGS, relay=False)))
        for app in self.apps:
            await eventually(lambda app=app: not app.sessions._backing.pending.unsettled)

    async def take_redis_away(self) -> None:
        self.relay.refuse()
        self.relay.cut(reset=True)
        for app in self.apps:
            await eventually(lambda app=app: not app.store.available)

    async def give_redis_back(self) -> None:
        await self.relay.accept()
        for app in self.apps:
            await eventually(lambda app=app: app.store.available)

    async def written(self, work: Coroutine[Any, Any, T]) -> T:
        """The answer of a call; the database knows of the use at once, not some seconds later."""
        answer = await work
        for app in self.apps:
            await app.sessions._uses.write()
        return answer


@dataclass
class Known:
    """What the model knows of one session. `low` and `high` are when it was used last, at the earliest and latest."""

    id: str
    user: str
    absolute: int
    low: int
    high: int
    current: str
    access: str
    access_until: int
    previous: str | None = None
    has_successor: bool = False
    rotated: int = 0
    older: list[str] = field(default_factory=list[str])
    ended: bool = False

    def has_ended(self, now: int) -> bool:
        """Whether it must be over."""
        return self.ended or now >= self.absolute or now >= self.high + IDLE_MS

    def is_live(self, now: int) -> bool:
        """Whether it must be live; it may be neither for a while, near the end of its idle time."""
        return not self.ended and now < self.absolute and now < self.low + IDLE_MS

    def learn(self, found: bool, now: int) -> None:
        """Compare an answer with what has to be, and take from it what can't be known."""
        assert not (found and self.has_ended(now)), f"{self} is alive"
        assert found or not self.is_live(now), f"{self} is gone"
        if found:
            self.low, self.high = max(self.low, now - NOTED_MS), now
        else:
            self.ended = True

    def replaced(self, token: str, now: int, *, has_successor: bool) -> None:
        if self.previous is not None:
            self.older.append(self.previous)
        self.previous, self.current = self.current, token
        self.has_successor = has_successor
        self.rotated = self.low = self.high = now


class LifeOfSessions(RuleBasedStateMachine):
    """Each example has users of its own; the processes and their stores live on."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk
        self.number = next(numbers)
        self.known: list[Known] = []
        self.suspended: set[str] = set()
        self.is_away = False
        self.reuses = 0

    @property
    def now(self) -> int:
        return self.desk.clock.at_ms

    def app(self, process: int) -> Process:
        return self.desk.apps[process]

    def name(self, user: str) -> str:
        return f"{user}{self.number}"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.desk.run(self.desk.written(work))

    def of(self, user: str) -> list[Known]:
        return [one for one in self.known if one.user == user]

    def one(self, index: int) -> Known:
        """One of the sessions, the newest first."""
        return self.known[-1 - index % len(self.known)]

    def told_of_reuse(self) -> int:
        return sum(len(app.told(SessionReuseDetected)) for app in self.desk.apps)

    @initialize(count=st.integers(1, MOST))
    def begin(self, count: int) -> None:
        self.reuses = self.told_of_reuse()
        for _ in range(count):
            self.log_in("ada", 0)

    @rule(user=st.sampled_from(("ada", "ada", "ada", "bob")), process=processes)
    def somebody_logs_in(self, user: str, process: int) -> None:
        self.log_in(user, process)
        if user in self.suspended:
            self.suspend_or_restore(user, process)

    @precondition(lambda self: self.known)
    @rule(how=st.sampled_from(("id", "id", "fresh", "token")), index=which, process=processes)
    def a_session_is_used(self, how: str, index: int, process: int) -> None:
        if how == "token":
            self.use_by_token(index, process)
        else:
            self.use(index, process, fresh=how == "fresh")

    @precondition(lambda self: self.known)
    @rule(
        how=st.sampled_from(("current", "current", "current", "before", "before", "older", "none", "anew")),
        index=which,
        process=processes,
    )
    def tokens_are_asked_for(self, how: str, index: int, process: int) -> None:
        if how == "anew":
            self.log_in_anew_within(index, process)
        elif how == "none":
            self.refresh_with_no_token(index, process, invented=index % 2 == 0)
        elif how == "older" and any(one.older for one in self.known):
            self.refresh_with_an_older_token(index, process)
        elif how in ("older", "before") and any(one.previous for one in self.known):
            self.refresh_with_the_token_before(index, process)
        else:
            self.refresh(index, process)

    @precondition(lambda self: self.known)
    @rule(
        how=st.sampled_from(("one", "one", "one", "away", "away", "others", "all", "block", "everybody")),
        index=which,
        process=processes,
    )
    def sessions_are_ended(self, how: str, index: int, process: int) -> None:
        if how == "one":
            self.log_out(index, process)
        elif how == "away":
            self.log_out_while_redis_is_away(index, process)
        elif how == "others":
            self.end_the_others(index, process)
        elif how == "all":
            self.end_all(self.one(index).user, process)
        elif how == "block":
            self.suspend_or_restore(self.one(index).user, process)
        else:
            self.end_everybody(process)

    @rule(seconds=st.sampled_from((1, 9, 11, 61, 301, 3_600, 43_200, 82_800, 86_520, 300_000)))
    def time_passes(self, seconds: int) -> None:
        self.desk.clock.travel(timedelta(seconds=seconds))

    @precondition(lambda self: self.known)
    @rule(index=which, process=processes)
    def a_session_is_used_for_long(self, index: int, process: int) -> None:
        for _ in range(2):
            self.time_passes(72_000)
            self.use(index, process, fresh=False)

    @rule(what=st.sampled_from(("redis", "redis", "emptied", "cleaned")), process=processes)
    def something_happens(self, what: str, process: int) -> None:
        if what == "redis":
            self.redis_goes_or_comes()
        elif what == "emptied":
            self.desk.server.flush()
        else:
            self.clean_up(process)

    # -- what users do -------------------------------------------------------------------------------------------

    def log_in(self, user: str, process: int) -> None:
        app, name = self.app(process), self.name(user)
        if user in self.suspended:
            with pytest.raises(UserBlocked):
                self.run(app.log_in(name))
            return
        counting = [one for one in self.of(user) if not one.has_ended(self.now)]
        certain = [one for one in counting if one.is_live(self.now)]
        made = self.run(app.log_in(name))
        evicted = [one for one in counting if one.id in made.evicted]
        assert len(evicted) == len(made.evicted)
        assert max(0, len(certain) + 1 - MOST) <= len(evicted) <= max(0, len(counting) + 1 - MOST)
        for gone in evicted:
            assert all(gone.low <= kept.high for kept in certain if kept not in evicted)
            gone.ended = True
        self.known.append(
            Known(
                made.session_id,
                user,
                self.now + ABSOLUTE_MS,
                self.now,
                self.now,
                made.refresh_token,
                made.access_token,
                round(made.tokens.access_expires_at.timestamp() * 1000),
            )
        )

    def use(self, index: int, process: int, fresh: bool) -> None:
        one = self.one(index)
        found = self.run(self.app(process).sessions.get(one.id, fresh=fresh))
        one.learn(found is not None, self.now)

    def use_by_token(self, index: int, process: int) -> None:
        one = self.one(index)
        found = self.run(self.app(process).sessions.authenticate(one.access))
        if self.now >= one.access_until:
            assert found is None
        else:
            one.learn(found is not None, self.now)

    def refresh(self, index: int, process: int) -> None:
        one = self.one(index)
        answer = self.run(self.app(process).sessions.rotate(one.current))
        one.learn(answer is not None, self.now)
        if answer is not None:
            assert answer.tokens.refresh_token != one.current
            one.replaced(answer.tokens.refresh_token, self.now, has_successor=True)
            self.keep_access(one, answer)

    def refresh_with_the_token_before(self, index: int, process: int) -> None:
        replaced = [one for one in self.known if one.previous]
        one = replaced[-1 - index % len(replaced)]
        assert one.previous is not None
        answer = self.run(self.app(process).sessions.rotate(one.previous))
        if self.now - one.rotated > GRACE_MS:
            assert answer is None
            self.ends_by_reuse(one)
        elif one.has_ended(self.now) or not one.has_successor:
            assert answer is None
        else:
            assert answer is not None or not one.is_live(self.now)
            if answer is None:
                one.ended = True
            else:
                assert answer.tokens.refresh_token == one.current
                self.keep_access(one, answer)

    def refresh_with_an_older_token(self, index: int, process: int) -> None:
        used = [one for one in self.known if one.older]
        one = used[-1 - index % len(used)]
        assert self.run(self.app(process).sessions.rotate(one.older[index % len(one.older)])) is None
        self.ends_by_reuse(one)

    def refresh_with_no_token(self, index: int, process: int, invented: bool) -> None:
        one, app = self.one(index), self.app(process)
        if invented:
            assert self.run(app.sessions.rotate(f"v1.{one.id}.{'A' * 59}")) is None
            return
        lost = new_refresh_token(*parts_of(one.id), app.sessions._backing.keyring)
        assert self.run(app.sessions.rotate(lost.text)) is None
        self.ends_by_reuse(one)

    def log_in_anew_within(self, index: int, process: int) -> None:
        one = self.one(index)
        answer = self.run(self.app(process).sessions.reissue(one.id, authenticated=True))
        one.learn(answer is not None, self.now)
        if answer is not None:
            one.replaced(answer.tokens.refresh_token, self.now, has_successor=False)
            self.keep_access(one, answer)

    # -- what ends sessions --------------------------------------------------------------------------------------

    def log_out(self, index: int, process: int) -> None:
        one = self.one(index)
        self.run(self.app(process).sessions.revoke(one.id))
        one.ended = True

    def end_the_others(self, index: int, process: int) -> None:
        one = self.one(index)
        self.run(self.app(process).sessions.revoke_others(one.id))
        for other in self.of(one.user):
            other.ended = other.ended or other is not one

    def end_all(self, user: str, process: int) -> None:
        self.run(self.app(process).sessions.revoke_all(self.name(user)))
        for one in self.of(user):
            one.ended = True

    def suspend_or_restore(self, user: str, process: int) -> None:
        name, app = self.name(user), self.app(process)
        if user in self.suspended:
            self.run(set_status(app.database, name, "active"))
            self.suspended.discard(user)
        elif self.of(user):

            async def suspend(connection: AsyncConnection) -> None:
                await connection.execute(update(users).where(users.c.id == name).values(status="suspended"))

            self.run(app.sessions.revoke_all(name, reason=Reason.SUSPENDED, also=suspend))
            self.suspended.add(user)
            for one in self.of(user):
                one.ended = True

    def end_everybody(self, process: int) -> None:
        self.run(self.app(process).sessions.revoke_everybody())
        self.desk.clock.travel(timedelta(seconds=1))
        for one in self.known:
            one.ended = True

    # -- what happens --------------------------------------------------------------------------------------------

    def clean_up(self, process: int) -> None:
        self.run(self.app(process).sessions.cleanup_expired())

    def redis_goes_or_comes(self) -> None:
        self.desk.run(self.desk.give_redis_back() if self.is_away else self.desk.take_redis_away())
        self.is_away = not self.is_away

    def log_out_while_redis_is_away(self, index: int, process: int) -> None:
        self.use(index, 1 - process, fresh=False)
        if not self.is_away:
            self.redis_goes_or_comes()
        self.log_out(index, process)
        self.redis_goes_or_comes()
        self.use(index, 1 - process, fresh=False)

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def the_list_has_who_is_live(self) -> None:
        for user in {one.user for one in self.known}:
            listed = {device.session_id for device in self.run(self.app(0).sessions.list(self.name(user)))}
            mine = self.of(user)
            assert listed <= {one.id for one in mine if not one.has_ended(self.now)}
            assert listed >= {one.id for one in mine if one.is_live(self.now)}
            assert len(listed) <= MOST

    @invariant()
    def reuse_is_told_once(self) -> None:
        assert self.told_of_reuse() == self.reuses

    def teardown(self) -> None:
        """Nobody comes back, whichever process is asked; and then Redis is there again for the next example."""
        for again in (False, True):
            for one in self.known:
                for app in self.desk.apps:
                    one.learn(self.run(app.sessions.get(one.id)) is not None, self.now)
                if one.ended:
                    assert self.run(app.sessions.rotate(one.current)) is None
            if self.is_away and not again:
                self.redis_goes_or_comes()

    # -- steps ---------------------------------------------------------------------------------------------------

    def ends_by_reuse(self, one: Known) -> None:
        if one.is_live(self.now) or (not one.has_ended(self.now) and self.told_of_reuse() > self.reuses):
            self.reuses += 1
        one.ended = True

    def keep_access(self, one: Known, answer: Any) -> None:
        one.access = answer.tokens.access_token
        one.access_until = round(answer.tokens.access_expires_at.timestamp() * 1000)


@pytest.fixture
def desk(valkey: Server, databases: Databases, tmp_path: Path) -> Iterator[Desk]:
    with asyncio.Runner() as runner:
        desk = Desk(runner, valkey, databases, tmp_path / "data")
        try:
            runner.run(desk.begin())
            yield desk
        finally:
            runner.run(desk.stack.aclose())


def test_any_calls_of_two_processes_leave_what_the_model_has(desk: Desk) -> None:
    run_state_machine_as_test(lambda: LifeOfSessions(desk), settings=PACE)
