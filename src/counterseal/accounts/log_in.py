"""Log-in: what comes of one, whole or half."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from counterseal.accounts.user import User
from counterseal.sessions.session import Created, Session, Tokens


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Somebody is logged in: who, the session, and the tokens, which are not kept and not told again.

    `evicted` are the ids of sessions that had to end to make room.
    """

    user: User
    session: Session
    tokens: Tokens = field(repr=False)
    evicted: tuple[str, ...] = ()
    new_device: bool = False

    @classmethod
    def of(cls, user: User, created: Created) -> LoggedIn:
        """With a session that was just created."""
        return cls(user, created.session, created.tokens, created.evicted, created.new_device)


@dataclass(frozen=True, slots=True)
class TotpNeeded:
    """The password was right and a TOTP code is missing: `finish_log_in(ticket=..., code=...)`, until `expires_at`.

    Who is not `enrolled` has no second factor that could give one, and sets it up first: `set_up_totp(ticket=...)` and
    `confirm_totp(ticket=..., code=...)`.
    """

    ticket: str = field(repr=False)
    expires_at: datetime
    enrolled: bool = True


@dataclass(frozen=True, slots=True)
class EnrolledLogIn:
    """Somebody has set up a second factor and is logged in by it. The backup codes are shown this once."""

    logged_in: LoggedIn
    backup_codes: tuple[str, ...] = field(repr=False)
