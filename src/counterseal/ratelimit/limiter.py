"""Limiter: decides, for one policy, whether an identifier may go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import msgspec

from counterseal.core.errors import ConfigurationError, ScriptMissing, StoreError
from counterseal.ratelimit.decision import Decision, Reason, instant
from counterseal.ratelimit.fallback import Fallback
from counterseal.ratelimit.identifier import LONGEST_IDENTIFIER, checked_text
from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.local import Block, Subject, Subjects
from counterseal.ratelimit.policy import Elsewhere, Policy, WithoutRedis, checked_plan
from counterseal.ratelimit.refused import Refused
from counterseal.ratelimit.rules import Rules
from counterseal.ratelimit.scripts import charge_of, counted_keys, lift_message, numbers, reset
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.tallies import Tallies

__all__ = ["LONGEST_IDENTIFIER", "Backing", "Limiter"]

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
        self._fallback = Fallback(policy.name, without_redis, processes=backing.processes)
        self._plans: dict[str | None, Subjects] = {None: Subjects()}
        self._default = self._plans[None]
        self._version = 0
        self._lifts = 0
        # The last one told: most are the same, and making one takes long.
        self._reset_ms, self._reset = 0, instant(0)
        self._now_ms = backing.store.now_ms
        self._command = backing.store.command
        self._tally = backing.tallies.add
        self._allowed, self._refused = f"{self.name}:allowed", f"{self.name}:refused"
        self._blocked, self._degraded = f"{self.name}:blocked", f"{self.name}:degraded"
        self._note_refused = backing.refused.of(self.name).add

    # -- calls ---------------------------------------------------------------------------------------------------

    async def limit(self, identifier: str, cost: int = 1, *, plan: str | None = None) -> Decision:  # noqa: PLR0912 - the hot path stays whole
        """Whether this identifier may go on; if so, `cost` is charged. One round trip.

        Without one: somebody on a list, and somebody whom this process refused lately, until a call may be allowed and
        for 10 seconds at most. The first call of a service takes one more, which reads the rules, and so does a script
        that the server does not know.
        `plan` chooses limits of the policy; one that has none of its own has everybody's. Raises `ConfigurationError`
        with field, expectation and value for a cost that is not a whole number of at least 1, and for an identifier or
        a plan that is not text of 1 to 1024 bytes. It does not raise when Redis does not answer.
        """
        if identifier.__class__ is not str or cost.__class__ is not int:
            identifier, cost = checked_text("identifier", identifier), _checked_cost(cost)
        subjects = self._default if plan is None else self._subjects_of(plan)
        subject = subjects.young.get(identifier)
        if subject is None:
            subject = await self._meet(subjects, identifier, plan)
        now_ms = self._now_ms()
        if (block := subject.blocks.get(cost)) is not None:
            if now_ms < block[0]:
                return self._refuse_again(block, identifier, now_ms)
            del subject.blocks[cost]
        if subject.fixed is not None or not 0 < cost <= subject.most:
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
            limit, per = subject.most, subject.periods[0]
            remaining, reset_ms = subject.charge.allowed(now_ms, reply)
        else:
            wait_ms, which, remaining, reset_ms = numbers(reply)
            limit, per = subject.capacities[which - 1], subject.periods[which - 1]
            if wait_ms:
                refusal = _decision(subject, wait_ms, which, remaining, reset_ms)
                if lifts == self._lifts and self._backing.hearing:
                    subject.block(cost, now_ms, now_ms + wait_ms, refusal)
                return self._count_refused(refusal, identifier)
        for window in subject.windows:
            window.charge(now_ms, cost)
        self._tally(self._allowed)
        if reset_ms != self._reset_ms:
            self._reset_ms, self._reset = reset_ms, instant(reset_ms)
        return Decision(True, limit, remaining, self._reset, None, _ALLOWED, False, per)

    async def peek(self, identifier: str, cost: int = 1, *, plan: str | None = None) -> Decision:
        """Whether `limit` would allow it; nothing is charged or counted. One round trip.

        Without one: somebody on a list. `remaining` is what there is now, from which `limit` would take the cost.
        While Redis does not answer it tells what this process alone would do, and nothing of what is counted
        elsewhere. Raises as `limit`.
        """
        cost = _checked_cost(cost)
        subject = await self._meet(self._subjects_of(plan), identifier, plan)
        now_ms = self._now_ms()
        if subject.fixed is not None:
            return _fixed(subject.fixed, now_ms)
        try:
            return await self._peek(subject, cost, now_ms)
        except StoreError as error:
            self._fallback.complain(error, now_ms)
            return self._fallback.peek(subject, cost, now_ms)

    async def refund(
        self, identifier: str, cost: int = 1, *, plan: str | None = None, decision: Decision | None = None
    ) -> bool:
        """Give back what was charged, as for a code that was right; whether that was done. One round trip.

        Without one: when `decision`, which is what `limit` answered, tells that it was not counted in Redis. Of one
        that charged nothing (refused, exempt) nothing is given back, and of a degraded one only what was counted
        without Redis. At most what was charged in the current window comes back. Every process hears of it, so nobody
        stays blocked.
        When Redis does not answer, only this process's own window has it back, and the answer is False. Without a
        `decision` it is then given back elsewhere, where that counts. Raises as `limit`.
        """
        cost = _checked_cost(cost)
        subject = await self._meet(self._subjects_of(plan), identifier, plan)
        now_ms = self._now_ms()
        if decision is not None:
            if not decision.success or decision.reason is Reason.EXEMPT:
                return False
            if decision.degraded:
                return await self._fallback.refund(subject, identifier, cost, now_ms)
        for window in subject.windows:
            window.refund(now_ms, cost)
        self.lift(identifier)
        channel, message = self._lifted(identifier)
        try:
            await subject.charge.refund(self._backing.store, now_ms, cost, channel=channel, message=message)
        except StoreError as error:
            self._fallback.complain(error, now_ms)
            if decision is None and not subject.windows:
                return await self._fallback.refund(subject, identifier, cost, now_ms)
            return False
        self.lift(identifier)
        return True

    async def reset(self, identifier: str) -> None:
        """Forget what an identifier has used, whatever its plan. One round trip. Raises `StoreUnavailable`.

        Every process hears of it, so nobody stays blocked.
        """
        checked_text("identifier", identifier)
        await self._begin()
        for subjects in self._plans.values():
            if (subject := subjects.find(identifier)) is not None:
                for window in subject.windows:
                    window.clear()
        store, keys = self._backing.store, self._backing.keys
        charged = counted_keys(
            keys, self.name, list(self._backing.rules.every_limit(self.policy, identifier)), identifier
        )
        channel, message = self._lifted(identifier)
        await reset(store, charged, channel=channel, message=message)
        self.lift(identifier)

    def limits(self, identifier: str | None = None, *, plan: str | None = None) -> tuple[Limit, ...]:
        """The limits that hold now: for this identifier, for a plan, or for everybody. No round trip.

        Raises `ConfigurationError` for a plan that is no text of 1 to 1024 bytes.
        """
        subject = None if identifier is None else self._subjects_of(plan).young.get(identifier)
        if subject is not None:
            return subject.limits
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
        if plan is None:
            return self._default
        if plan.__class__ is not str:
            checked_plan("plan", plan)
        found = self._plans.get(plan)
        if found is None:
            if not self._backing.rules.knows_plan(self.policy, checked_plan("plan", plan)):
                return self._default
            found = self._plans[plan] = Subjects()
        return found

    def _lifted(self, identifier: str) -> tuple[str, str]:
        """The channel on which everybody is told that an identifier may be allowed, and the message."""
        return self._backing.keys.rate_limit_lifted(), lift_message(self.name, identifier)

    async def _begin(self) -> None:
        if not self._backing.begun:
            await self._backing.begin()

    async def _meet(self, subjects: Subjects, identifier: str, plan: str | None) -> Subject:
        """What is known of an identifier, by the rules that hold now."""
        checked_text("identifier", identifier)
        if not self._backing.begun:
            await self._backing.begin()
            subjects = self._subjects_of(plan)
        known = subjects.find(identifier)
        if known is not None and known.version == self._version:
            subjects.keep(identifier, known)
            return known
        backing = self._backing
        limits = backing.rules.limits(self.policy, identifier, plan)
        listed = backing.rules.listed(identifier)
        subject = Subject(
            limits,
            charge_of(backing.keys, self.name, limits, identifier),
            fixed=None if listed is None else _listed(listed, min(limit.capacity for limit in limits)),
            version=self._version,
            warm=self._fallback.warm,
        )
        if known is not None:
            subject.inherit(known)
        subjects.keep(identifier, subject)
        return subject

    def _refuse_again(self, block: Block, identifier: str, now_ms: int) -> Decision:
        """The answer to somebody who is blocked here. The hot path of an attack."""
        _, allowed_ms, refusal = block
        self._tally(self._blocked)
        self._note_refused(identifier)
        wait = timedelta(0, 0, (allowed_ms - now_ms) * 1000)
        limit, remaining, reset = refusal.limit, refusal.remaining, refusal.reset
        return Decision(False, limit, remaining, reset, wait, _BLOCKED, False, refusal.per)

    async def _special(self, subject: Subject, identifier: str, cost: int, now_ms: int) -> Decision:
        """Somebody on a list, a cost that can never be allowed, or one that is none."""
        cost = _checked_cost(cost)
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
            per = subject.periods[which - 1]
            return Decision(False, limit, remaining, instant(reset_ms), None, Reason.LIMITED, False, per)
        return _decision(subject, wait_ms, which, remaining, reset_ms)

    async def _without(
        self, error: StoreError, subject: Subject, identifier: str, cost: int, now_ms: int
    ) -> Decision:
        """Decide without Redis, as the policy says."""
        self._fallback.complain(error, now_ms)
        self._tally(self._degraded)
        decision = await self._fallback.charge(subject, identifier, cost, now_ms)
        if decision.success:
            self._tally(self._allowed)
            return decision
        return self._count_refused(decision, identifier)

    def _count_refused(self, decision: Decision, identifier: str) -> Decision:
        self._tally(self._refused)
        self._note_refused(identifier)
        return decision


def _decision(subject: Subject, wait_ms: int, which: int, remaining: int, reset_ms: int) -> Decision:
    limit, per, reset = subject.capacities[which - 1], subject.periods[which - 1], instant(reset_ms)
    if wait_ms == 0:
        return Decision(True, limit, remaining, reset, None, Reason.ALLOWED, False, per)
    wait = timedelta(milliseconds=wait_ms)
    return Decision(False, limit, remaining, reset, wait, Reason.LIMITED, False, per)


def _listed(reason: Reason, limit: int) -> Decision:
    exempt = reason is Reason.EXEMPT
    return Decision(exempt, limit, limit if exempt else 0, instant(0), None, reason)


def _fixed(decision: Decision, now_ms: int) -> Decision:
    return msgspec.structs.replace(decision, reset=instant(now_ms))


def _checked_cost(cost: object) -> int:
    if not isinstance(cost, int) or isinstance(cost, bool) or cost < 1:
        raise ConfigurationError(f"cost: expected a whole number of at least 1; came: {cost!r}")
    return int(cost)
