"""Rate limits when much happens at once, and when Redis does not answer, dies or comes back empty."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from counterseal.core.errors import StoreUnavailable, UnknownName
from counterseal.ratelimit import fallback
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.policy import Elsewhere, Policy, WithoutRedis
from counterseal.ratelimit.service import RateLimits
from counterseal.store.base import Gap, Message, Store, Subscription
from counterseal.store.feed import Inbox
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.wire import Argument, Reply
from support.forking import start_script
from support.processes import kill_process
from support.servers import Server
from support.stores import native_store, store_on, travel
from support.waiting import eventually

KEYS = Keys()
MINUTE = timedelta(minutes=1)
HAMMER = Path(__file__).with_name("ratelimit_hammer.py")
PROMPT = LinkOptions(command_timeout=timedelta(milliseconds=200), connect_timeout=timedelta(seconds=5))
POLICIES = (
    Policy("open", (Limit(6, MINUTE),)),
    Policy("closed", (Limit(6, MINUTE),), WithoutRedis.CLOSED),
    Policy("several", (Limit(4, MINUTE), Limit(6, timedelta(hours=1)))),
)


@asynccontextmanager
async def limits_on(
    server: Server, *, processes: int = 1, elsewhere: dict[str, Elsewhere] | None = None
) -> AsyncIterator[tuple[RateLimits, Store]]:
    async with native_store(server, options=PROMPT) as store:
        limits = RateLimits(store, keys=KEYS, policies=POLICIES, processes=processes, elsewhere=elsewhere)
        yield limits, store
        await limits.close()


async def test_eight_processes_together_never_exceed_a_limit_by_one(valkey: Server, tmp_path: Path) -> None:
    """The period is so long that meanwhile nothing comes back, in a bucket less than one."""
    count = 301
    logs = [tmp_path / f"{number}.log" for number in range(8)]
    processes = [start_script(HAMMER, [valkey.url, str(count), "20"], log, tmp_path) for log in logs]

    def all_say(word: str) -> bool:
        return all(word in log.read_text() for log in logs)

    try:
        await eventually(lambda: all_say("ready"), within=60)
        valkey.execute("RPUSH", "go", *["now"] * 8)
        await eventually(lambda: all_say("done"), within=60)
    finally:
        for process in processes:
            kill_process(process)
    told = [re.findall(r"allowed (\w+) (\d+)", log.read_text()) for log in logs]
    allowed = {
        algorithm: sum(int(number) for each in told for name, number in each if name == algorithm)
        for algorithm in Algorithm
    }
    assert allowed == dict.fromkeys(Algorithm, count)


async def test_an_open_limiter_goes_on_with_what_this_process_had_counted(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        limiter = limits.limiter("open")
        assert [(await limiter.limit("ada")).remaining for _ in range(4)] == [5, 4, 3, 2]
        valkey.kill()
        degraded = [await limiter.limit("ada") for _ in range(3)]
        assert [(d.success, d.remaining, d.reason) for d in degraded] == [
            (True, 1, Reason.ALLOWED),
            (True, 0, Reason.ALLOWED),
            (False, 0, Reason.LIMITED),
        ]
        assert all(decision.degraded for decision in degraded)
        refused = degraded[-1]
        assert refused.retry_after is not None
        travel(store, refused.retry_after)
        assert (await limiter.limit("ada")).success
        assert limits.totals["open"].degraded == 4


async def test_each_process_allows_its_share_while_redis_is_away_and_at_least_one(valkey: Server) -> None:
    async with limits_on(valkey, processes=3) as (limits, store):
        await start_of_a_window(store)
        valkey.kill()
        decisions = [await limits.limiter("open").limit("ada") for _ in range(3)]
        assert [(d.success, d.limit) for d in decisions] == [(True, 2), (True, 2), (False, 2)]
        assert [(await limits.limiter("several").limit("ada")).success for _ in range(2)] == [True, False]
        too_much = await limits.limiter("open").limit("bob", 5)
        assert (too_much.success, too_much.degraded) == (False, True)
        never = await limits.limiter("open").limit("bob", 7)
        assert (never.success, never.retry_after) == (False, None)
        assert (await limits.limiter("open").peek("eve")).degraded
        assert (await limits.limiter("open").peek("eve")).remaining == 2


async def test_auth_and_totp_are_closed_until_somebody_counts_elsewhere(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, _):
        valkey.kill()
        for limiter in (limits.auth, limits.totp, limits.limiter("closed")):
            decision = await limiter.limit("ada")
            assert (decision.success, decision.reason, decision.degraded) == (False, Reason.UNAVAILABLE, True)
            assert (decision.remaining, decision.retry_after) == (0, None)
            assert (await limiter.peek("ada")).reason is Reason.UNAVAILABLE
        for limiter in (limits.api, limits.email, limits.pdf_generation, limits.verification):
            assert (await limiter.limit("ada")).success


async def test_what_is_counted_elsewhere_decides_and_is_closed_when_that_fails_too(valkey: Server) -> None:
    asked: list[tuple[str, str, int]] = []
    answers: list[Decision | Exception | None] = [
        Decision(True, 10, 9, datetime.now(UTC), None, Reason.ALLOWED),
        Decision(False, 10, 0, datetime.now(UTC), MINUTE, Reason.LIMITED),
        None,
        RuntimeError("the database is away"),
    ]

    class Ledger(Elsewhere):
        async def charge(self, name: str, identifier: str, cost: int) -> Decision | None:
            asked.append((name, identifier, cost))
            answer = answers[len(asked) - 1]
            if isinstance(answer, Exception):
                raise answer
            return answer

    async with limits_on(valkey, elsewhere={"auth": Ledger()}) as (limits, _):
        assert (await limits.auth.limit("ada")).remaining == 9
        assert asked == []
        valkey.kill()
        found = [await limits.auth.limit("ada", 1 + place) for place in range(4)]
        assert asked == [("auth", "ada", 1), ("auth", "ada", 2), ("auth", "ada", 3), ("auth", "ada", 4)]
        assert [decision.reason for decision in found] == [
            Reason.ALLOWED,
            Reason.LIMITED,
            Reason.UNAVAILABLE,
            Reason.UNAVAILABLE,
        ]
        assert all(decision.degraded for decision in found)


async def test_what_fails_elsewhere_is_logged_once_and_without_what_it_says_of_anybody(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    class Ledger(Elsewhere):
        async def charge(self, name: str, identifier: str, cost: int) -> Decision | None:
            raise RuntimeError(f"INSERT INTO attempts [parameters: ({identifier!r},)]")

    async with limits_on(valkey, elsewhere={"auth": Ledger()}) as (limits, _):
        valkey.kill()
        for _ in range(20):
            assert (await limits.auth.limit("ada@example.com")).reason is Reason.UNAVAILABLE
    told = [caplog.handler.format(record) for record in caplog.records if "ratelimit" in record.name]
    assert len(told) == 1
    assert "has failed: RuntimeError" in told[0]
    assert "ada@example.com" not in told[0]


async def test_what_hangs_elsewhere_or_answers_something_else_is_a_refusal(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ledger(Elsewhere):
        async def charge(self, name: str, identifier: str, cost: int) -> Decision | None:
            if identifier == "odd":
                return True  # type: ignore[return-value]
            await asyncio.Event().wait()
            return None

        async def refund(self, name: str, identifier: str, cost: int) -> bool:
            await asyncio.Event().wait()
            return True

    assert timedelta(seconds=2) == fallback.ELSEWHERE_WITHIN
    monkeypatch.setattr(fallback, "ELSEWHERE_WITHIN", timedelta(milliseconds=50))
    async with limits_on(valkey, elsewhere={"auth": Ledger()}) as (limits, _):
        valkey.kill()
        async with asyncio.timeout(10):
            assert (await limits.auth.limit("ada")).reason is Reason.UNAVAILABLE
            assert (await limits.auth.limit("odd")).reason is Reason.UNAVAILABLE
            assert await limits.auth.refund("ada") is False


async def test_a_correct_code_is_given_back_where_it_was_counted(valkey: Server) -> None:
    class Ledger(Elsewhere):
        used = 0

        async def charge(self, name: str, identifier: str, cost: int) -> Decision | None:
            self.used += cost
            return Decision(True, 10, 10 - self.used, datetime.now(UTC), None, Reason.ALLOWED)

        async def refund(self, name: str, identifier: str, cost: int) -> bool:
            self.used -= cost
            return True

    ledger = Ledger()
    async with limits_on(valkey, elsewhere={"auth": ledger}) as (limits, store):
        await start_of_a_window(store)
        there = await limits.auth.limit("ada", 3)
        valkey.freeze()
        here = await limits.auth.limit("ada", 4)
        assert (here.degraded, here.per, ledger.used) == (True, MINUTE, 4)
        assert await limits.auth.refund("ada", 3, decision=there) is False
        assert ledger.used == 4
        assert await limits.auth.refund("ada", 4, decision=here) is True
        assert ledger.used == 0
        await limits.auth.limit("ada", 2)
        assert await limits.auth.refund("ada", 2) is True
        assert ledger.used == 0
        valkey.thaw()
        await eventually(lambda: well(limits), within=60)
        left = (await limits.auth.peek("ada")).remaining
        assert await limits.auth.refund("ada", 4, decision=here) is True
        assert (ledger.used, (await limits.auth.peek("ada")).remaining) == (-4, left)
        assert await limits.auth.refund("ada", 3, decision=there) is True
        assert (await limits.auth.peek("ada")).remaining == left + 3


async def test_what_a_local_window_allowed_is_given_back_to_it_alone(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        limiter = limits.limiter("open")
        await limiter.limit("ada", 2)
        valkey.freeze()
        alone = await limiter.limit("ada", 4)
        assert (alone.success, alone.degraded, alone.remaining, alone.per) == (True, True, 0, MINUTE)
        assert (await limiter.limit("ada")).per == MINUTE
        assert await limiter.refund("ada", 4, decision=alone) is True
        assert (await limiter.peek("ada")).remaining == 4
        valkey.thaw()
        await eventually(lambda: well(limits), within=60)
        left = (await limiter.peek("ada")).remaining
        assert await limiter.refund("ada", 1, decision=alone) is True
        assert (await limiter.peek("ada")).remaining == left
        closed = limits.limiter("closed")
        valkey.kill()
        assert await closed.refund("ada", decision=await closed.limit("ada")) is False


async def test_a_live_change_leaves_what_this_process_had_counted(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        await limits.limiter("open").limit("ada", 4)
        await limits.set_limits("open", [Limit(5, MINUTE), Limit(9, timedelta(hours=1))])
        await limits.limiter("open").peek("ada")
        valkey.kill()
        decision = await limits.limiter("open").limit("ada", 2)
        assert (decision.success, decision.degraded, decision.limit) == (False, True, 5)
        assert (await limits.limiter("open").limit("ada", 1)).success


async def test_a_reset_clears_what_this_process_had_counted(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        await limits.limiter("open").limit("ada", 6)
        await limits.limiter("open").reset("ada")
        valkey.kill()
        decision = await limits.limiter("open").limit("ada", 6)
        assert (decision.success, decision.degraded) == (True, True)


async def test_whoever_listens_again_after_a_lost_connection_blocks_again(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        await limits.limiter("closed").limit("ada", 6)
        await eventually(lambda: reason_is(limits, Reason.BLOCKED))
        for _ in range(3):
            losses = limits._losses
            valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda before=losses: limits._losses > before)
            assert (await limits.limiter("closed").limit("ada")).reason is Reason.LIMITED
            await eventually(lambda: reason_is(limits, Reason.BLOCKED))
        valkey.execute("DEL", KEYS.rate_limit("closed", "sliding_window", 60_000, "ada"))
        valkey.execute("PUBLISH", KEYS.rate_limit_lifted(), "closed:ada")
        await eventually(lambda: reason_is(limits, Reason.ALLOWED), within=4)


class _HandFed:
    """Stands where a connection feeds a subscription: the test itself hands in what arrives."""

    async def add(self, inbox: Inbox) -> None: ...

    async def remove(self, inbox: Inbox) -> None: ...


async def test_only_the_gap_of_the_last_loss_lets_it_believe_that_it_hears(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        inboxes: list[Inbox] = []

        others = store.subscribe

        def subscribe(
            *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
        ) -> Subscription:
            if channels != (KEYS.rate_limit_lifted(),):
                return others(*channels, limit=limit, on_loss=on_loss)
            inboxes.append(Inbox(_HandFed(), channels, limit=limit, on_loss=on_loss))
            return inboxes[-1]

        store.subscribe = subscribe  # type: ignore[method-assign]
        await limits.api.limit("ada")
        await eventually(lambda: limits._backing.hearing)
        (inbox,) = inboxes
        gap, message = Gap(inbox.channels), Message(inbox.channels[0], b"api:ada")

        async def read() -> bool:
            await eventually(inbox._queue.empty)
            await asyncio.sleep(0)
            return limits._backing.hearing

        inbox.put(message)
        inbox.lose()  # before the message was read
        assert await read() is False
        inbox.put(gap)
        inbox.lose()  # before that one was read
        assert await read() is False
        inbox.put(gap)
        assert await read() is True


async def test_a_refusal_asked_for_before_it_hears_blocks_nobody_afterwards(valkey: Server) -> None:
    """What was given back meanwhile was told to nobody here."""
    async with limits_on(valkey) as (limits, store), limits_on(valkey) as (others, other_store):
        await start_of_a_window(store)
        await start_of_a_window(other_store)
        await others.limiter("closed").limit("ada", 6)
        ask, arrived = limits.limiter("closed")._command, asyncio.Event()

        async def slow(*arguments: Argument) -> Reply:
            answer = await ask(*arguments)
            await arrived.wait()
            return answer

        limits.limiter("closed")._command = slow
        asked = asyncio.create_task(limits.limiter("closed").limit("ada"))
        await eventually(lambda: limits._backing.hearing)
        arrived.set()
        assert (await asked).reason is Reason.LIMITED
        assert not any(subject.blocks for subject in limits.limiter("closed")._default)


async def test_a_closed_service_hears_nothing_and_blocks_nobody(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        await limits.limiter("closed").limit("ada", 6)
        await eventually(lambda: reason_is(limits, Reason.BLOCKED))
        await limits.close()
        assert limits._backing.hearing is False
        found = [(await limits.limiter("closed").limit("ada")).reason for _ in range(2)]
        assert found == [Reason.LIMITED] * 2


async def well(limits: RateLimits) -> bool:
    return not (await limits.api.limit("bob")).degraded


async def test_elsewhere_for_a_limiter_that_does_not_exist_is_refused(valkey: Server) -> None:
    class Ledger(Elsewhere): ...

    async with store_on(valkey) as store:
        with pytest.raises(UnknownName, match="no limiter is named 'atuh'"):
            RateLimits(store, keys=KEYS, elsewhere={"atuh": Ledger()})


@pytest.mark.every_loop
async def test_a_frozen_server_delays_a_few_calls_and_then_none_until_it_is_back(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        loop = asyncio.get_running_loop()
        await limits.api.limit("ada")
        valkey.freeze()
        began = loop.time()
        for _ in range(50):
            decision = await limits.api.limit("ada")
            assert (decision.success, decision.degraded) == (True, True)
        assert loop.time() - began < 5
        valkey.thaw()

        async def well() -> bool:
            return not (await limits.api.limit("bob")).degraded

        await eventually(well, within=60)
        assert store.available


async def test_a_restarted_empty_server_counts_anew_and_blocks_are_asked_about_again(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        limiter = limits.limiter("closed")
        await limiter.limit("ada", 6)
        await eventually(lambda: reason_is(limits, Reason.BLOCKED))
        valkey.kill()
        # Nobody may hear now that it is lifted, so nobody is blocked: the limiter says what it says without Redis.
        await eventually(lambda: reason_is(limits, Reason.UNAVAILABLE))
        valkey.start()
        await eventually(lambda: reason_is(limits, Reason.ALLOWED), within=60)


async def test_a_refusal_that_is_lifted_while_its_answer_is_on_the_way_blocks_nobody(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        limiter = limits.limiter("closed")
        await limiter.limit("ada", 6)
        await limiter.limit("bob", 6)
        await eventually(lambda: reason_is(limits, Reason.BLOCKED))  # so it hears
        ask = limiter._command

        async def slow(*arguments: Argument) -> Reply:
            answer = await ask(*arguments)
            limiter.lift("bob")  # the message of a refund that comes before this answer
            return answer

        limiter._command = slow
        assert (await limiter.limit("bob")).reason is Reason.LIMITED
        limiter._command = ask
        assert (await limiter.limit("bob")).reason is Reason.LIMITED
        assert (await limiter.limit("bob")).reason is Reason.BLOCKED


async def reason_is(limits: RateLimits, reason: Reason) -> bool:
    return (await limits.limiter("closed").limit("ada")).reason is reason


async def test_a_refund_and_a_reset_say_when_redis_did_not_take_them(valkey: Server) -> None:
    async with limits_on(valkey) as (limits, store):
        await start_of_a_window(store)
        limiter = limits.limiter("open")
        await limiter.limit("ada", 6)
        valkey.kill()
        assert (await limiter.limit("ada")).success is False
        assert await limiter.refund("ada") is False
        assert (await limiter.limit("ada")).success is True
        with pytest.raises(StoreUnavailable):
            await limiter.reset("ada")


async def test_a_server_that_refuses_writes_is_an_outage_that_is_logged_once(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.execute("SET", KEYS.rate_limit("open", "sliding_log", 60_000, "ada"), "text", "PX", 60_000)
    async with store_on(valkey) as store:
        policy = Policy("open", (Limit(6, MINUTE, Algorithm.SLIDING_LOG),))
        limits = RateLimits(store, keys=KEYS, policies=[policy])
        for _ in range(3):
            assert (await limits.limiter("open").limit("ada")).degraded
        await limits.close()
    complaints = [record.message for record in caplog.records if "rate" in record.name]
    assert complaints == ["Redis refuses the calls of the limiter open: WRONGTYPE"]


async def test_rules_nobody_can_read_are_logged_and_do_not_count(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    key = KEYS.live("ratelimits")
    bad = {
        "limits:api": b"1:[]",
        "limits:auth": b'1:[{"count":0,"per_ms":60000,"algorithm":"gcra"}]',
        "limits:email": b'1:[{"count":1,"per_ms":60000,"algorithm":"leaky"}]',
        "limits:totp": b"\xff\x00",
        "limits:nobody": b'1:[{"count":1,"per_ms":60000,"algorithm":"gcra"}]',
        "list:ada": b'1:"maybe"',
        "list:10.0.0.1%2F8": b'1:"deny"',
        "colour:red": b"1:1",
    }
    for field, value in bad.items():
        valkey.execute("HSET", key, field, value)
    valkey.execute(
        "HSET", key, "limits:verification", b'1:[{"count":3,"per_ms":1000,"algorithm":"gcra","burst":null}]'
    )
    valkey.execute("HSET", key, "", "version")
    async with limits_on(valkey) as (limits, _):
        assert (await limits.api.limit("ada")).limit == 100
        assert (await limits.verification.limit("ada")).limit == 3
        assert [limiter.limits() for limiter in (limits.auth, limits.email, limits.totp)] == [
            limiter.policy.limits for limiter in (limits.auth, limits.email, limits.totp)
        ]
    assert (
        sum(
            "does not count" in record.message or "does not know" in record.message
            for record in caplog.records
        )
        == 7
    )


async def start_of_a_window(store: Store) -> None:
    """Move to where an hour has just begun, so that no window ends in the middle of a test."""
    travel(store, timedelta(milliseconds=3_600_000 - store.now_ms() % 3_600_000))
