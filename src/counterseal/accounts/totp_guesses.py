"""TOTP guesses: how many wrong codes are taken, of one user for one purpose and from one address.

5 in 5 minutes and 20 a day of a user and purpose, 30 in 5 minutes from an address. Right codes do not count.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from counterseal.accounts.backing import Backing
from counterseal.accounts.refused import Refused
from counterseal.core.errors import DatabaseError
from counterseal.ratelimit.decision import Decision

logger = logging.getLogger(__name__)

_OF_USER: Final = ("totp", "totp_day")
_OF_ADDRESS: Final = "totp_address"


@dataclass(frozen=True, slots=True)
class Guess:
    """What was charged for one code."""

    charges: tuple[tuple[str, str, Decision], ...]


class Guesses:
    """Charges every limiter before a code is looked at: however many come at once, no more than these are tried."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def charge(self, user_id: str, purpose: str, address: str | None) -> Guess | Refused:
        """Charge all limiters for a code, or none and say why. One round trip, and one more for a refusal.

        Without Redis it is as many transactions as there are limiters. Raises `DatabaseUnavailable` when nobody can
        count.
        """
        asked = [(limiter, f"{purpose}:{user_id}") for limiter in _OF_USER]
        if address is not None:
            asked.append((_OF_ADDRESS, address))
        answers = await asyncio.gather(*(self._backing.admit(limiter, who) for limiter, who in asked))
        charges = tuple(
            (limiter, who, answer)
            for (limiter, who), answer in zip(asked, answers, strict=True)
            if not isinstance(answer, Refused)
        )
        refusals = [answer for answer in answers if isinstance(answer, Refused)]
        if not refusals:
            return Guess(charges)
        # Nothing was tried, so nobody else at this address has to wait for it.
        await self.give_back(Guess(charges))
        return max(refusals, key=lambda refusal: refusal.retry_after or timedelta.max)

    async def give_back(self, guess: Guess) -> None:
        """Give back what was charged for a code that was right. One round trip. Never fails what was right."""
        limiters = self._backing.rate_limits
        try:
            await asyncio.gather(
                *(
                    limiters.limiter(limiter).refund(who, decision=decision)
                    for limiter, who, decision in guess.charges
                )
            )
        except DatabaseError as error:
            logger.warning("a right code was not given back to its limits: %s", error.code)
