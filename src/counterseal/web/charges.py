"""Charges: what one request was charged, and who was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limiter import LONGEST_IDENTIFIER, Limiter
from counterseal.ratelimit.service import RateLimits
from counterseal.web.address import limited_as
from counterseal.web.quota import Quota, refusal

_USER: Final = "user:"
"""Stands before a user, so that one who is called like an address is not taken for it."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What was charged to whom, and what the limiter said."""

    limiter: Limiter
    identifier: str
    cost: int
    plan: str | None
    decision: Decision

    async def refund(self) -> bool:
        """Give it back, as for a code that was right; False when Redis does not answer. One round trip."""
        return await self.limiter.refund(self.identifier, self.cost, plan=self.plan)


class Charges:
    """Everything that one request is charged."""

    def __init__(
        self,
        limits: RateLimits,
        *,
        address: Callable[[], str],
        user: Callable[[], str | None],
        plan: Callable[[], str | None],
    ) -> None:
        """`user` and `plan` are asked at every charge: a part of the application may come to know them late.

        `address` is asked when something is charged: most requests of some applications never are.
        """
        self.limits = limits
        self._address = address
        self._user = user
        self._plan = plan
        self._made: dict[tuple[str, str], Charge] = {}

    async def charge(self, limiter: Limiter, identifier: str | None = None, cost: int = 1) -> Charge:
        """Charge the identifier, else the user, else the address; less what was charged for the same already.

        Raises the refusal as a `Problem`. At most one round trip.
        """
        address = self._address()
        who = _short(identifier or self._someone(address))
        before = self._made.get((limiter.name, who))
        due = cost - before.cost if before is not None else cost
        if before is not None and due <= 0:
            return before
        charged = address if self._goes_by_address(address, who) else who
        plan = self._plan()
        decision = await limiter.limit(charged, due, plan=plan)
        charge = self._made[limiter.name, who] = Charge(limiter, charged, cost, plan, decision)
        if not decision.success:
            raise refusal(decision)
        return charge

    @property
    def quotas(self) -> Sequence[Quota]:
        """What there is to tell of the charges, in the order in which they were made."""
        return [
            Quota(
                charge.limiter.name,
                charge.limiter.limits(charge.identifier, plan=charge.plan),
                charge.decision,
            )
            for charge in self._made.values()
        ]

    def _someone(self, address: str) -> str:
        user = self._user()
        return f"{_USER}{user}" if user else limited_as(address)

    def _goes_by_address(self, address: str, who: str) -> bool:
        """Whether the address is on a list, and the one to be charged is not denied by name."""
        limits = self.limits
        return limits.listed(address) is not None and limits.listed(who) is not Reason.DENIED


def _short(identifier: str) -> str:
    """The identifier as a limiter takes it: what a client may have made too long, or unwritable, by its digest."""
    written = identifier.encode("utf-8", "surrogatepass")
    if len(written) <= LONGEST_IDENTIFIER and written.decode("utf-8", "replace") == identifier:
        return identifier
    return f"sha256:{hashlib.sha256(written).hexdigest()}"
