"""Charges: what one request was charged, and who was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from starlette.types import Scope

from counterseal.core.settings import WebSettings
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limiter import LONGEST_IDENTIFIER, Limiter
from counterseal.ratelimit.service import RateLimits
from counterseal.web.address import client_address, limited_as
from counterseal.web.quota import Quota, refusal
from counterseal.web.raised import note_problem

OfScope = Callable[[Scope], str | None]
"""Tells something of a request, from what the server and earlier middleware put into its scope."""

_USER: Final = "user:"
"""Stands before a user, so that one who is called like an address is not taken for it."""

_NAMED: Final = "of:"
"""Stands before whom a route names, which a client may have written: it is neither an address nor a user."""


class _Part(NamedTuple):
    """One answer of the limiter: a request that is charged for its path and then for its route has two."""

    identifier: str
    cost: int
    plan: str | None
    quota: Quota


class Charge:
    """What a request was charged by one limiter for one identifier, and what the limiter said last."""

    __slots__ = ("_parts", "_refunded", "limiter")

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self._parts: list[_Part] = []
        self._refunded = False

    @property
    def identifier(self) -> str:
        """Who was charged, as the limiter knows them."""
        return self._parts[-1].identifier

    @property
    def cost(self) -> int:
        """How much, in all."""
        return sum(part.cost for part in self._parts if part.quota.decision.success)

    @property
    def plan(self) -> str | None:
        """The plan whose limits held."""
        return self._parts[-1].plan

    @property
    def decision(self) -> Decision:
        """What the limiter said last."""
        return self._parts[-1].quota.decision

    @property
    def quota(self) -> Quota:
        """The same, with the limits that held then."""
        return self._parts[-1].quota

    @property
    def refunded(self) -> bool:
        """Whether it was given back, or was tried to be."""
        return self._refunded

    def add(self, part: _Part) -> None:
        """Take over a further answer of the limiter."""
        self._parts.append(part)

    async def refund(self) -> bool:
        """Give it back, as for a code that was right; whether that was done.

        It is given back once, whatever comes of it. Nothing is for somebody exempt, who was charged nothing. False when
        Redis does not answer. One round trip, and one more where the route was charged besides its path.
        """
        if self._refunded:
            return False
        self._refunded = True
        given = [
            await self.limiter.refund(part.identifier, part.cost, plan=part.plan, decision=decision)
            for part in self._parts
            if (decision := part.quota.decision).success and decision.reason is not Reason.EXEMPT
        ]
        return bool(given) and all(given)


class Charging:
    """By what the requests of one middleware are charged, and whom it takes them to come from."""

    __slots__ = ("_web", "identify", "knows_lists", "limits", "plan")

    def __init__(
        self, limits: RateLimits, web: WebSettings, *, identify: OfScope | None, plan: OfScope | None
    ) -> None:
        self.limits = limits
        self.identify = identify
        self.plan = plan
        self._web = web
        self.knows_lists = False

    def address(self, scope: Scope) -> str:
        """The client's address, by the trusted proxies of the settings."""
        return client_address(scope, self._web.trusted_proxies, header=self._web.proxy_header)

    async def begin(self) -> None:
        """Read the lists before the first charge: from then on the limiters hear of changes by themselves."""
        await self.limits.lists()
        self.knows_lists = True


class Charges:
    """Everything that one request is charged."""

    __slots__ = ("_address", "_by", "_made", "_scope")

    def __init__(self, charging: Charging, scope: Scope) -> None:
        self._by = charging
        self._scope = scope
        self._address: str | None = None
        self._made: dict[tuple[str, str], Charge] = {}

    @property
    def limits(self) -> RateLimits:
        """The limiters that there are."""
        return self._by.limits

    async def charge(self, limiter: Limiter, identifier: str | None = None, cost: int = 1) -> Charge:
        """Charge the identifier, else the user, else the address; less what was charged for the same already.

        Who is the user and what is the plan is asked every time: a part of the application may come to know it late.
        Raises the refusal as a `Problem`, and again for whom it was raised before. At most one round trip.
        """
        by = self._by
        if not by.knows_lists:
            await by.begin()
        address = self._address
        if address is None:
            # Most requests of some applications are never charged.
            address = self._address = by.address(self._scope)
        who = _short(f"{_NAMED}{identifier}") if identifier else self._someone(address)
        key = (limiter.name, who)
        charge = self._made.get(key)
        due = cost
        if charge is None or charge.refunded:
            charge = Charge(limiter)
        elif not charge.decision.success:
            raise note_problem(self._scope, refusal(charge.decision))
        elif (due := cost - charge.cost) <= 0:
            return charge
        charged = address if self._goes_by_address(address, who) else who
        plan = (by.plan(self._scope) or None) if by.plan else None
        limits = limiter.limits(charged, plan=plan)
        decision = await limiter.limit(charged, due, plan=plan)
        charge.add(_Part(charged, due, plan, Quota(limiter.name, limits, decision)))
        self._made[key] = charge
        if not decision.success:
            raise note_problem(self._scope, refusal(decision))
        return charge

    @property
    def quotas(self) -> Sequence[Quota]:
        """What there is to tell of the charges, in the order in which they were made."""
        return [charge.quota for charge in self._made.values()]

    def _someone(self, address: str) -> str:
        identify = self._by.identify
        user = identify(self._scope) if identify else None
        return _short(f"{_USER}{user}") if user else limited_as(address)

    def _goes_by_address(self, address: str, who: str) -> bool:
        """Whether the address is on a list, and the one to be charged is not denied by name."""
        if who == address:
            return False  # the limiter looks it up by itself
        limits = self.limits
        return limits.listed(address) is not None and limits.listed(who) is not Reason.DENIED


def _short(identifier: str) -> str:
    """The identifier as a limiter takes it: what a client may have made too long, or unwritable, by its digest."""
    if identifier.isascii() and len(identifier) <= LONGEST_IDENTIFIER:
        return identifier
    written = identifier.encode("utf-8", "surrogatepass")
    if len(written) <= LONGEST_IDENTIFIER and written.decode("utf-8", "replace") == identifier:
        return identifier
    return f"sha256:{hashlib.sha256(written).hexdigest()}"
