"""Decision: what a limiter answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

_LAST_MS: Final = (
    253_402_300_799_000  # the last second that a datetime has; a burst may take longer to come back
)


class Reason(StrEnum):
    """Why a call was allowed or refused."""

    ALLOWED = "allowed"
    LIMITED = "limited"
    BLOCKED = "blocked"
    """Refused a moment ago, and it can't be allowed yet: answered by this process alone."""
    DENIED = "denied"
    """On the deny list."""
    EXEMPT = "exempt"
    """On the allow list: not limited, not counted."""
    UNAVAILABLE = "unavailable"
    """Redis does not answer, and this limiter is closed meanwhile."""


class Decision(msgspec.Struct, frozen=True):
    """Whether a call is allowed, and what is left. Of several limits it tells of the one that is closest.

    `success`: whether it may go on. `limit`: how much can be had at once. `remaining`: how much can be had now, after
    this call; of a `BLOCKED` one, when it was refused; of a peek, which charges nothing, before any call. `reset`: when
    the limit is whole again if nothing more comes, in UTC. `retry_after`: the time after which the same call will be
    allowed if nothing more comes, to the millisecond; None when it is allowed, when it never can be (it costs more than
    the limit), and when nobody can tell (denied, unavailable). `degraded`: Redis did not answer, so this was not
    decided for all processes together. `per`: the period of the limit that it tells of, by which several are told
    apart; None when no limit has decided.

    A struct and not a dataclass, because every call makes one: it takes a tenth of the time.
    """

    success: bool
    limit: int
    remaining: int
    reset: datetime
    retry_after: timedelta | None
    reason: Reason
    degraded: bool = False
    per: timedelta | None = None


def instant(at_ms: int) -> datetime:
    """A time in milliseconds since 1970, in UTC; of what is later than a datetime can be, the last second."""
    return datetime.fromtimestamp(min(at_ms, _LAST_MS) / 1000, UTC)
