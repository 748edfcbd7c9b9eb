"""RateLimits: the limiters of an application, whom to deny and whom to exempt, and how often each refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import unquote

from counterseal.core.background import Background, full_jitter
from counterseal.core.errors import ConfigurationError, StoreError, UnknownName
from counterseal.ratelimit.decision import Reason
from counterseal.ratelimit.identifier import checked_text
from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.limiter import Backing, Limiter
from counterseal.ratelimit.lists import canonical
from counterseal.ratelimit.policy import POLICIES, Elsewhere, Policy, checked_limits, checked_plan
from counterseal.ratelimit.refused import Refused, checked_hours
from counterseal.ratelimit.rules import Rules, limits_field, list_field, write_limits, write_listed
from counterseal.store.base import Message, Store
from counterseal.store.keys import RATE_LIMIT_COUNTS_TTL, Keys
from counterseal.store.live import LiveHash
from counterseal.store.tallies import Tallies

_NAME: Final = "ratelimits"
_WAITING_MESSAGES: Final = 10_000
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LimiterCounts:
    """What a limiter decided in an hour. `refused` has those that were `blocked`: answered without asking Redis.

    `degraded` were decided without Redis; they are also among `allowed` or `refused`.
    """

    allowed: int = 0
    refused: int = 0
    blocked: int = 0
    degraded: int = 0


class RateLimits:
    """The seven limiters of counterseal and those that an application adds.

    The constructor does no input or output. The rules that were changed at run time are read at the first call; from
    then on this process hears of changes. Use it as `async with`, or close it, to send what was counted last.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        policies: Iterable[Policy] = (),
        elsewhere: Mapping[str, Elsewhere] | None = None,
        processes: int = 1,
    ) -> None:
        """`policies` are added to the seven, or take the place of those with the same name. `elsewhere` counts for a
        limiter, by its name, while Redis does not answer. `processes` share a limit that each counts for itself then.

        Raises `ConfigurationError`, and `UnknownName` for a name in `elsewhere` that no limiter has.
        """
        whole = cast("object", processes)
        if not isinstance(whole, int) or isinstance(whole, bool) or whole < 1:
            raise ConfigurationError(f"processes: expected a whole number of at least 1; came: {processes!r}")
        given = tuple(policies)
        names = [policy.name for policy in given]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigurationError(
                f"policies: expected each name once; came twice: {', '.join(sorted(twice))}"
            )
        declared = {policy.name: policy for policy in (*POLICIES, *given)}
        self._live = LiveHash(
            store, key=keys.live(_NAME), channel=keys.live_channel(_NAME), on_change=self._on_rules
        )
        self._rules = Rules()
        self._tallies = Tallies(store, key=lambda hour: keys.tallies(_NAME, hour), ttl=RATE_LIMIT_COUNTS_TTL)
        self._refused = Refused(store, keys=keys)
        self._backing = Backing(
            store, keys, self._rules, self._tallies, self._refused, processes, begin=self._begin
        )
        counted = _checked_elsewhere(elsewhere or {})
        self._limiters = {
            name: Limiter(
                policy, backing=self._backing, without_redis=counted.pop(name, policy.without_redis)
            )
            for name, policy in declared.items()
        }
        if counted:
            raise self._unknown(next(iter(counted)))
        self._background = Background()
        self._beginning = asyncio.Lock()
        self._closed = False
        self._losses = 0
        self.api = self._limiters["api"]
        self.auth = self._limiters["auth"]
        self.corporate_admin = self._limiters["corporate_admin"]
        self.email = self._limiters["email"]
        self.pdf_generation = self._limiters["pdf_generation"]
        self.totp = self._limiters["totp"]
        self.verification = self._limiters["verification"]

    def limiter(self, name: str) -> Limiter:
        """A limiter by its name. Raises `UnknownName` that lists the known ones. No round trip."""
        found = self._limiters.get(name) if isinstance(cast("object", name), str) else None
        if found is None:
            raise self._unknown(name)
        return found

    @property
    def limiters(self) -> tuple[Limiter, ...]:
        """All of them. No round trip."""
        return tuple(self._limiters.values())

    # -- live changes --------------------------------------------------------------------------------------------

    async def set_limits(
        self,
        name: str,
        limits: Limit | Iterable[Limit],
        *,
        plan: str | None = None,
        identifier: str | None = None,
    ) -> None:
        """Change a limiter's limits from now on: for everybody, for a plan, or for one identifier. One round trip.

        Every process hears of it at once, and those that were refused are asked about again. Who is under a limit with
        the same algorithm and period keeps what was used. Raises `ConfigurationError`, `UnknownName`,
        `StoreUnavailable`, and `StoreFull` when 10,000 entries are set.
        """
        field = self._field(name, plan, identifier)
        await self._live.set(field, write_limits(checked_limits("limits", limits)))

    async def unset_limits(
        self, name: str, *, plan: str | None = None, identifier: str | None = None
    ) -> bool:
        """Go back to the limits that are declared; whether others were set. One round trip. Raises as `set_limits`."""
        return await self._live.remove(self._field(name, plan, identifier))

    async def deny(self, who: str) -> None:
        """Refuse everything to an identifier, an IP address or a network, from now on. One round trip.

        Raises `ConfigurationError` for what is not text of 1 to 1024 bytes, for text that looks like a network and is
        none, and for a network with bits beside its prefix; `StoreUnavailable` and `StoreFull`.
        """
        await self._live.set(list_field(canonical(who)), write_listed(Reason.DENIED))

    async def allow(self, who: str) -> None:
        """Exempt an identifier, an IP address or a network from every limit, from now on. One round trip.

        Who is denied by another entry stays denied. Raises as `deny`.
        """
        await self._live.set(list_field(canonical(who)), write_listed(Reason.EXEMPT))

    async def forget(self, who: str) -> bool:
        """Take somebody off the lists; whether they were on one. One round trip. Raises as `deny`."""
        return await self._live.remove(list_field(canonical(who)))

    def listed(self, who: str) -> Reason | None:
        """`DENIED` or `EXEMPT` when an identifier, an address or a network is listed, else None. No round trip.

        `limit` looks its identifier up by itself; this is for the address of somebody who is limited by another name.
        """
        if who.__class__ is not str:
            checked_text("who", who)
        return self._rules.listed(who)

    async def lists(self) -> dict[str, Reason]:
        """Everybody who is listed, and how. At most one round trip, at the first call of this object."""
        await self._begin()
        return self._rules.lists

    # -- counts --------------------------------------------------------------------------------------------------

    async def stats(self, hours: int = 24) -> dict[str, dict[str, LimiterCounts]]:
        """What each limiter decided, by hour (`2026-11-24T09`, UTC), newest last: of all processes. One round trip.

        What other processes counted in their last 10 seconds may be missing. Raises `StoreUnavailable`, and
        `ValueError` for fewer hours than one or more than 8 days.
        """
        by_hour = await self._tallies.read(checked_hours(hours))
        return {
            name: {hour: _counts(name, counts) for hour, counts in by_hour.items()} for name in self._limiters
        }

    async def top_refused(self, name: str, count: int = 10, *, hours: int = 24) -> list[tuple[str, int]]:
        """The identifiers that a limiter refused most often lately, and how often, most first. One round trip.

        Of each hour 500 are kept, so a count may be too low. Raises as `stats`, and `UnknownName`.
        """
        self.limiter(name)
        return await self._refused.top(name, count, checked_hours(hours))

    @property
    def totals(self) -> dict[str, LimiterCounts]:
        """What this process has decided since it started, by limiter. No round trip."""
        totals = self._tallies.totals
        return {name: _counts(name, totals) for name in self._limiters}

    async def __aenter__(self) -> Self:
        """Work, also again after a close: the rules are read anew at the next call. No round trip."""
        if self._closed:
            self._closed = self._backing.begun = False
            self._tallies.open()
            self._refused.open()
            for limiter in self._limiters.values():
                limiter.renew()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what was counted last and stop listening. At most two round trips.

        Safe to call twice. Limiters still decide afterwards, by the rules known last; what they count is not sent.
        """
        self._closed = True
        await self._background.close()
        self._deafen()
        await self._live.close()
        await self._refused.close()
        await self._tallies.close()

    # -- the background ------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Read the rules and begin to listen, once."""
        if self._backing.begun:
            return
        async with self._beginning:
            if self._backing.begun:
                return
            if not self._closed:
                await self._live.ready()
            if self._closed:
                await self._live.close()
            else:
                self._on_rules()
                self._background.keep("listen to lifted rate limits", self._listen)
            self._backing.begun = True

    def _on_rules(self) -> None:
        self._rules.update(self._live.entries)
        for limiter in self._limiters.values():
            limiter.renew()

    async def _listen(self) -> None:
        attempt = 0
        while True:
            try:
                await self._hear()
                attempt = 0
            except StoreError:
                attempt += 1
            finally:
                self._deafen()
            await asyncio.sleep(full_jitter(attempt, longest=_LONGEST_PAUSE_S))

    async def _hear(self) -> None:
        # A connection may be lost before this task hears that it came, and a gap is taken from a queue: by then the
        # connection that ended it may be lost as well. So gaps are counted against losses.
        losses = self._losses
        async with self._backing.store.subscribe(
            self._backing.keys.rate_limit_lifted(), limit=_WAITING_MESSAGES, on_loss=self._deafen
        ) as messages:
            if losses == self._losses:
                self._hears()
            async for item in messages:
                if isinstance(item, Message):
                    self._on_lifted(item.data)
                    continue
                losses += 1
                if losses >= self._losses:
                    self._hears()

    def _hears(self) -> None:
        """From now on a message that lifts a block is heard; one that came before this was not."""
        self._forget_blocks()
        self._backing.hearing = True

    def _deafen(self) -> None:
        """From now on a message that lifts a block may be missed, so nobody is blocked here."""
        self._losses += 1
        self._backing.hearing = False
        self._forget_blocks()

    def _forget_blocks(self) -> None:
        for limiter in self._limiters.values():
            limiter.forget_blocks()

    def _on_lifted(self, message: bytes) -> None:
        name, _, identifier = message.decode("utf-8", "replace").partition(":")
        limiter = self._limiters.get(unquote(name))
        if limiter is not None:
            limiter.lift(unquote(identifier))

    def _field(self, name: str, plan: str | None, identifier: str | None) -> str:
        self.limiter(name)
        if plan is not None and identifier is not None:
            raise ConfigurationError("limits: expected a plan or an identifier; came: both")
        if plan is not None:
            checked_plan("plan", plan)
        if identifier is not None:
            checked_text("identifier", identifier)
        return limits_field(name, plan=plan, identifier=identifier)

    def _unknown(self, name: str) -> UnknownName:
        return UnknownName(f"no limiter is named {name!r}; the limiters are {', '.join(self._limiters)}")


def _checked_elsewhere(given: Mapping[str, Elsewhere]) -> dict[str, Elsewhere]:
    for name, elsewhere in given.items():
        if not isinstance(cast("object", elsewhere), Elsewhere):
            raise ConfigurationError(f"elsewhere[{name!r}]: expected an Elsewhere; came: {elsewhere!r}")
    return dict(given)


def _counts(name: str, counts: Mapping[str, float]) -> LimiterCounts:
    allowed, refused, blocked, degraded = (
        round(counts.get(f"{name}:{what}", 0)) for what in ("allowed", "refused", "blocked", "degraded")
    )
    return LimiterCounts(allowed, refused + blocked, blocked, degraded)
