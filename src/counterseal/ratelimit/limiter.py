"""Limiter: decides, for one policy, whether an identifier may go on."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from counterseal.core.errors import (
    CommandError,
    ConfigurationError,
    ScriptMissing,
    StoreError,
    StoreUnavailable,
)
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.local import Subject, Subjects
from counterseal.ratelimit.policy import Elsewhere, Policy, WithoutRedis, checked_plan
from counterseal.ratelimit.refused import Refused
from counterseal.ratelimit.rules import Rules
from counterseal.ratelimit.scripts import charge_of, counted_keys, lift_message, numbers, reset
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.tallies import Tallies

logger = logging.getLogger(__name__)

LONGEST_IDENTIFIER: Final = 1024
"""Bytes of UTF-8 that an identifier may have."""

_COMPLAIN_EVERY_MS: Final = 60_000
_LAST_MS: Final = (
    253_402_300_799_000  # the last second that a datetime has; a burst may take longer to come back
)
_ALLOWED: Final = Reason.ALLOWED
_BLOCKED: Final = Reason.BLOCKED


@dataclass(slots=True)
class Backing:
    """What the limiters of one service share."""

    store: Store
    keys: Keys
    rules: Rules
    tallies: Tallies
    refused: Refused
    processes: int
    begin: Callable[[], Awaitable[None]]
    """Read the rules for the first time."""
    begun: bool = False
    hearing: bool = False
    """Whether a message that lifts a block would be heard now."""


class Limiter:
    """One of the limiters of `RateLimits`. Every identifier has its own count, shared by all processes."""

    def __init__(self, policy: Policy, *, backing: Backing, without_redis: WithoutRedis | Elsewhere) -> None:
        self.name = policy.name
        self.policy = policy
        self._backing = backing
        self._without_redis = without_redis
        self._plans: dict[str | None, Subjects] = {None: Subjects()}
        self._default = self._plans[None]
        self._version = 0
        self._lifts = 0
        self._complained_ms = 0
        self._reset_ms, self._reset = (
            0,
            _at(0),
        )  # the last one told: most are the same, and making one takes long
        self._now_ms = backing.store.now_ms
        self._command = backing.store.command
        self._tally = backing.tallies.add
        self._allowed, self._refused = f"{self.name}:allowed", f"{self.name}:refused"
        self._blocked, self._degraded = f"{self.name}:blocked", f"{self.name}:degraded"
        self._note_refused = backing.refused.of(self.name).add

    # -- calls ---------------------------------------------------------------------------------------------------

    async def limit(self, identifier: str, cost: int = 1, *, plan: str | None = None) -> Decision:
        """Whether this identifier may go on; if so, `cost` is charged. One round trip.

        Without one: somebody on a list, and somebody whom this process refused lately and who can't be allowed yet.
        The first call of a service takes one more, which reads the rules.
        `plan` chooses limits of the policy; one that has none of its own has everybody's. Raises `ConfigurationError`
        with field, expectation and value for a cost that is not a whole number of at least 1, and for an identifier
        that is not text of 1 to 1024 bytes. It does not raise when Redis does not answer.
        """
        subjects = self._default if plan is None else self._subjects_of(plan)
        subject = subjects.young.get(identifier)
        if subject is None:
            subject = await self._meet(subjects, identifier, plan)
        now_ms = self._now_ms()
        if (block := subject.blocks.get(cost)) is not None:
            until_ms, refusal = block
            if now_ms < until_ms:
                self._tally(self._blocked)
                self._note_refused(identifier)
                wait = timedelta(0, 0, (until_ms - now_ms) * 1000)
                return Decision(False, refusal.limit, refusal.remaining, refusal.reset, wait, _BLOCKED)
            del subject.blocks[cost]
        if subject.fixed is not None or cost.__class__ is not int or not 0 < cost <= subject.most:
            return await self._special(subject, identifier, cost, now_ms)
        lifts = self._lifts
        try:
            try:
                reply = await self._command(*subject.head, now_ms, cost, *subject.tail)
            except ScriptMissing:
                reply = await subject.charge.retry(self._backing.store, now_ms, cost)
        except StoreError as error:
            return await self._without(error, subject, identifier, cost, now_ms)
        if isinstance(reply, int):
            limit = subject.most
            remaining, reset_ms = subject.charge.allowed(now_ms, reply)
        else:
            wait_ms, which, remaining, reset_ms = numbers(reply)
            limit = subject.capacities[which - 1]
            if wait_ms:
                wait = timedelta(milliseconds=wait_ms)
                refusal = Decision(False, limit, remaining, _at(reset_ms), wait, Reason.LIMITED)
                if lifts == self._lifts and self._backing.hearing:
                    subject.block(cost, now_ms + wait_ms, refusal)
                return self._count_refused(refusal, identifier)
        for window in subject.windows:
            window.charge(now_ms, cost)
        self._tally(self._allowed)
        if reset_ms != self._reset_ms:
            self._reset_ms, self._reset = reset_ms, _at(reset_ms)
        return Decision(True, limit, remaining, self._reset, None, _ALLOWED)

    async def peek(self, identifier: str, cost: int = 1, *, plan: str | None = None) -> Decision:
        """What `limit` would answer; nothing is charged or counted. One round trip.

        Without Redis it tells what this process alone would do; of what is counted elsewhere it tells nothing.
        """
        subject = await self._meet(self._subjects_of(plan), identifier, plan)
        now_ms = self._now_ms()
        if subject.fixed is not None:
            return _fixed(subject.fixed, now_ms)
        _check_cost(cost)
        try:
            return await self._peek(subject, cost, now_ms)
        except StoreError as error:
            self._complain(error, now_ms)
            if self._without_redis is WithoutRedis.OPEN:
                return self._locally(subject, cost, now_ms, charge=False)
            return self._unavailable(subject, now_ms)

    async def refund(
        self, identifier: str, cost: int = 1, *, plan: str | None = None, decision: Decision | None = None
    ) -> bool:
        """Give back what was charged, as for a code that was right; whether it was given back. One round trip.

        `decision` is what `limit` answered: of one that charged nothing (refused, exempt) nothing is given back, and
        of a degraded one only where it was counted, without a round trip. At most what was charged in the current
        window comes back. Every process hears of it, so nobody stays blocked.
        False when Redis does not answer: then only this process's own window has it back.
        """
        if decision is not None and (not decision.success or decision.reason is Reason.EXEMPT):
            return False
        subject = await self._meet(self._subjects_of(plan), identifier, plan)
        _check_cost(cost)
        now_ms = self._now_ms()
        for window in subject.windows:
            window.refund(now_ms, cost)
        self.lift(identifier)
        store, keys = self._backing.store, self._backing.keys
        try:
            await subject.charge.refund(
                store,
                now_ms,
                cost,
                channel=keys.rate_limit_lifted(),
                message=lift_message(self.name, identifier),
            )
        except StoreError as error:
            self._complain(error, now_ms)
            return False
        self.lift(identifier)
        return True

    async def reset(self, identifier: str) -> None:
        """Forget what an identifier has used, whatever its plan. One round trip. Raises `StoreUnavailable`.

        Every process hears of it, so nobody stays blocked.
        """
        _check_identifier(identifier)
        await self._begin()
        for subjects in self._plans.values():
            if (subject := subjects.find(identifier)) is not None:
                for window in subject.windows:
                    window.clear()
        store, keys = self._backing.store, self._backing.keys
        every = list(self._backing.rules.every_limit(self.policy, identifier))
        await reset(
            store,
            counted_keys(keys, self.name, every, identifier),
            channel=keys.rate_limit_lifted(),
            message=lift_message(self.name, identifier),
        )
        self.lift(identifier)

    def limits(self, identifier: str | None = None, *, plan: str | None = None) -> tuple[Limit, ...]:
        """The limits that hold now: for this identifier, for a plan, or for everybody. No round trip."""
        return self._backing.rules.limits(self.policy, identifier, plan)

    # -- what the service tells ----------------------------------------------------------------------------------

    def lift(self, identifier: str) -> None:
        """An identifier may be allowed earlier than was told: ask Redis again."""
        self._lifts += 1
        for subjects in self._plans.values():
            if (subject := subjects.find(identifier)) is not None:
                subject.lift()

    def forget_blocks(self) -> None:
        """A message may have been missed: ask Redis again, about everybody."""
        self._lifts += 1
        for subjects in self._plans.values():
            for subject in subjects:
                subject.lift()

    def renew(self) -> None:
        """The rules have changed: look again which limits hold for whom."""
        self._lifts += 1
        self._version += 1
        rules = self._backing.rules
        self._plans = {
            plan: subjects
            for plan, subjects in self._plans.items()
            if plan is None or rules.knows_plan(self.policy, plan)
        }
        for subjects in self._plans.values():
            subjects.age()

    # -- the parts of a decision ---------------------------------------------------------------------------------

    def _subjects_of(self, plan: str | None) -> Subjects:
        """Whom this process remembers of a plan. A plan without limits of its own is no plan."""
        found = self._plans.get(plan)
        if found is None:
            name = checked_plan("plan", plan)
            if not self._backing.rules.knows_plan(self.policy, name):
                return self._default
            found = self._plans[name] = Subjects()
        return found

    async def _begin(self) -> None:
        if not self._backing.begun:
            await self._backing.begin()

    async def _meet(self, subjects: Subjects, identifier: str, plan: str | None) -> Subject:
        """What is known of an identifier, by the rules that hold now."""
        if not self._backing.begun:
            await self._backing.begin()
            subjects = self._subjects_of(plan)
        known = subjects.find(identifier)
        if known is not None and known.version == self._version:
            subjects.keep(identifier, known)
            return known
        _check_identifier(identifier)
        backing = self._backing
        limits = backing.rules.limits(self.policy, identifier, plan)
        listed = backing.rules.listed(identifier)
        subject = Subject(
            limits,
            charge_of(backing.keys, self.name, limits, identifier),
            fixed=None if listed is None else _listed(listed, min(limit.capacity for limit in limits)),
            version=self._version,
            warm=self._without_redis is WithoutRedis.OPEN,
        )
        if known is not None:
            subject.inherit(known)
        subjects.keep(identifier, subject)
        return subject

    async def _special(self, subject: Subject, identifier: str, cost: int, now_ms: int) -> Decision:
        """Somebody on a list, a cost that can never be allowed, or one that is none."""
        _check_cost(cost)
        if subject.fixed is not None:
            decision = _fixed(subject.fixed, now_ms)
            if decision.success:
                self._tally(self._allowed)
                return decision
            return self._count_refused(decision, identifier)
        try:
            decision = await self._peek(subject, cost, now_ms)
        except StoreError as error:
            return await self._without(error, subject, identifier, cost, now_ms)
        return self._count_refused(decision, identifier)

    async def _peek(self, subject: Subject, cost: int, now_ms: int) -> Decision:
        never = cost > subject.most
        found = await subject.charge.peek(self._backing.store, now_ms, 1 if never else cost)
        wait_ms, which, remaining, reset_ms = found
        if never:
            limit = subject.capacities[which - 1]
            return Decision(False, limit, remaining, _at(reset_ms), None, Reason.LIMITED)
        return _decision(subject, wait_ms, which, remaining, reset_ms)

    async def _without(
        self, error: StoreError, subject: Subject, identifier: str, cost: int, now_ms: int
    ) -> Decision:
        """Decide without Redis, as the policy says."""
        self._complain(error, now_ms)
        self._tally(self._degraded)
        without = self._without_redis
        if without is WithoutRedis.OPEN:
            decision = self._locally(subject, cost, now_ms, charge=True)
        elif without is WithoutRedis.CLOSED:
            decision = self._unavailable(subject, now_ms)
        else:
            decision = await self._count_elsewhere(without, identifier, cost)
            decision = decision or self._unavailable(subject, now_ms)
        if decision.success:
            self._tally(self._allowed)
            return decision
        return self._count_refused(decision, identifier)

    def _locally(self, subject: Subject, cost: int, now_ms: int, *, charge: bool) -> Decision:
        """By this process's own windows, of which each process has a share."""
        wait_ms, share, remaining, reset_ms = subject.judge(now_ms, cost, self._backing.processes)
        if wait_ms or cost > subject.most:
            wait = timedelta(milliseconds=wait_ms) if cost <= subject.most else None
            return Decision(False, share, remaining, _at(reset_ms), wait, Reason.LIMITED, degraded=True)
        if charge:
            for window in subject.windows:
                window.charge(now_ms, cost)
            _, share, remaining, reset_ms = subject.judge(now_ms, 0, self._backing.processes)
        return Decision(True, share, remaining, _at(reset_ms), None, Reason.ALLOWED, degraded=True)

    def _unavailable(self, subject: Subject, now_ms: int) -> Decision:
        return Decision(False, subject.most, 0, _at(now_ms), None, Reason.UNAVAILABLE, degraded=True)

    async def _count_elsewhere(self, elsewhere: Elsewhere, identifier: str, cost: int) -> Decision | None:
        try:
            decision = await elsewhere.charge(self.name, identifier, cost)
        except Exception:
            logger.exception(
                "what counts for the limiter %s while Redis does not answer has failed", self.name
            )
            return None
        return None if decision is None else msgspec.structs.replace(decision, degraded=True)

    def _count_refused(self, decision: Decision, identifier: str) -> Decision:
        self._tally(self._refused)
        self._note_refused(identifier)
        return decision

    def _complain(self, error: StoreError, now_ms: int) -> None:
        """Log what is not an outage, of which the store tells by itself; once a minute at most."""
        if isinstance(error, StoreUnavailable) or now_ms - self._complained_ms < _COMPLAIN_EVERY_MS:
            return
        self._complained_ms = now_ms
        kind = error.kind if isinstance(error, CommandError) else error.code
        logger.error("Redis refuses the calls of the limiter %s: %s", self.name, kind)


def _decision(subject: Subject, wait_ms: int, which: int, remaining: int, reset_ms: int) -> Decision:
    limit = subject.capacities[which - 1]
    if wait_ms == 0:
        return Decision(True, limit, remaining, _at(reset_ms), None, Reason.ALLOWED)
    wait = timedelta(milliseconds=wait_ms)
    return Decision(False, limit, remaining, _at(reset_ms), wait, Reason.LIMITED)


def _listed(reason: Reason, limit: int) -> Decision:
    exempt = reason is Reason.EXEMPT
    return Decision(exempt, limit, limit if exempt else 0, _at(0), None, reason)


def _fixed(decision: Decision, now_ms: int) -> Decision:
    return msgspec.structs.replace(decision, reset=_at(now_ms))


def _at(at_ms: int) -> datetime:
    return datetime.fromtimestamp(min(at_ms, _LAST_MS) / 1000, UTC)


def _check_cost(cost: object) -> None:
    if not isinstance(cost, int) or isinstance(cost, bool) or cost < 1:
        raise ConfigurationError(f"cost: expected a whole number of at least 1; came: {cost!r}")


def _check_identifier(identifier: object) -> None:
    """What came is not told: it may be somebody's address."""
    expected = f"identifier: expected text of 1 to {LONGEST_IDENTIFIER} bytes"
    if not isinstance(identifier, str):
        raise ConfigurationError(f"{expected}; came: {type(identifier).__name__}")
    try:
        size = len(identifier.encode())
    except UnicodeEncodeError as fault:
        raise ConfigurationError(f"{expected} of UTF-8; came: a lone surrogate") from fault
    if not 1 <= size <= LONGEST_IDENTIFIER:
        raise ConfigurationError(f"{expected}; came: {size} bytes")
