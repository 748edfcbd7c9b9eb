"""Session: what is known of one login on one device, and the answers of the service."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import msgspec

SCHEMA: Final = 1


class Profile(StrEnum):
    """How long a session may last; the settings and the domain's policy have the numbers."""

    STANDARD = "standard"
    REMEMBER = "remember"
    """For a person's own device: only where the application allows it."""
    AAL2 = "aal2"
    """With a second factor at log-in, and short: set by the policy of a domain."""


class Reason(StrEnum):
    """Why a session was ended."""

    LOGOUT = "logout"
    USER = "user"
    OTHERS = "others"
    ADMIN = "admin"
    PASSWORD_CHANGE = "password_change"  # noqa: S105 - a reason
    MFA_CHANGE = "mfa_change"
    SUSPENDED = "suspended"
    EVICTED = "evicted"
    REUSE_DETECTED = "reuse_detected"
    EXPIRED = "expired"


class Context(StrEnum):
    """What a second factor was shown for. `BOTH` covers log-in and signing; neither of these covers the other."""

    LOGIN = "login"
    SIGNING = "signing"
    BOTH = "both"

    @property
    def covered_by(self) -> tuple[Context, ...]:
        """The contexts of a code that is good for this one."""
        return (self,) if self is Context.BOTH else (self, Context.BOTH)


class StepUp(msgspec.Struct, frozen=True):
    """A second factor that was shown in a session. `request_id` is None when it was shown for no request of its own."""

    context: Context
    request_id: str | None
    method: str
    """`totp` or `backup_code`."""
    verified_ms: int

    @property
    def verified_at(self) -> datetime:
        return instant(self.verified_ms)


class Facts(msgspec.Struct, frozen=True, rename={"schema": "v"}):
    """What does not change while a session lives, save by a new log-in within it."""

    profile: Profile
    amr: tuple[str, ...]
    authenticated_ms: int
    created_ms: int
    absolute_ms: int
    """When it ends at the latest, in milliseconds since 1970."""
    idle_ms: int
    """After how long without use it ends."""
    epoch: int
    global_epoch: int
    device: str
    user_agent: str | None = None
    ip: str | None = None
    schema: int = SCHEMA


class Session(msgspec.Struct, frozen=True):
    """One login on one device, as it was when it was read. Times are aware UTC datetimes."""

    session_id: str
    """`<user part>.<session part>`. It names a session and authenticates nobody."""
    user_id: str
    facts: Facts
    version: int
    """Raised by every change of its state or its tokens."""
    last_used_ms: int
    checked_ms: int
    """When the database was asked last, in milliseconds since 1970."""
    step_ups: tuple[StepUp, ...] = ()
    """Second factors shown lately and not used up, for display: what may be done, `require_step_up` says."""

    @property
    def profile(self) -> Profile:
        return self.facts.profile

    @property
    def amr(self) -> tuple[str, ...]:
        """How the user has logged in: `pwd`, `otp`, ... (RFC 8176)."""
        return self.facts.amr

    @property
    def epoch(self) -> int:
        return self.facts.epoch

    @property
    def user_agent(self) -> str | None:
        return self.facts.user_agent

    @property
    def ip(self) -> str | None:
        return self.facts.ip

    @property
    def device(self) -> str:
        """The user agent in words: `Firefox on Linux`."""
        return self.facts.device

    @property
    def created_at(self) -> datetime:
        return instant(self.facts.created_ms)

    @property
    def authenticated_at(self) -> datetime:
        """When the user logged in last within it."""
        return instant(self.facts.authenticated_ms)

    @property
    def last_used_at(self) -> datetime:
        """Noted at most once a minute."""
        return instant(self.last_used_ms)

    @property
    def expires_at(self) -> datetime:
        """When it ends at the latest, however much it is used."""
        return instant(self.facts.absolute_ms)

    @property
    def idle_expires_at(self) -> datetime:
        """When it ends unless it is used."""
        return instant(min(self.last_used_ms + self.facts.idle_ms, self.facts.absolute_ms))

    @property
    def checked_at(self) -> datetime:
        """When the database was asked last."""
        return instant(self.checked_ms)

    def verified(self, context: Context) -> datetime | None:
        """When a second factor was shown last for a context; None when it was not, or is used up or too old."""
        times = [shown.verified_ms for shown in self.step_ups if shown.context in context.covered_by]
        return instant(max(times)) if times else None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair of tokens. They are secrets: `repr` shows neither."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_expires_at: datetime
    """When the session ends at the latest."""


@dataclass(frozen=True, slots=True)
class Created:
    """A new session and its tokens."""

    session: Session
    tokens: Tokens
    evicted: tuple[str, ...] = ()
    """The ids of sessions that were ended because the user had too many."""
    new_device: bool = False
    """Whether the user has other sessions, and none on such a device or from such a network."""

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def access_token(self) -> str:
        return self.tokens.access_token

    @property
    def refresh_token(self) -> str:
        return self.tokens.refresh_token


@dataclass(frozen=True, slots=True)
class Rotated:
    """A session with new tokens."""

    session: Session
    tokens: Tokens

    @property
    def session_id(self) -> str:
        return self.session.session_id


@dataclass(frozen=True, slots=True)
class Renewed:
    """A session with a new access token; its refresh token is what it was."""

    session: Session
    access_token: str = field(repr=False)
    access_expires_at: datetime

    @property
    def session_id(self) -> str:
        return self.session.session_id


@dataclass(frozen=True, slots=True)
class Revocation:
    """What a revocation has done. It is true when there was something to end."""

    ended: int
    """How many sessions."""
    pending: bool = False
    """The database is down: Redis has ended the sessions, and the record will when the database is back."""

    def __bool__(self) -> bool:
        return self.ended > 0 or self.pending


@dataclass(frozen=True, slots=True)
class Device:
    """A live session as its user sees it in a list."""

    session_id: str
    device: str
    user_agent: str | None
    ip: str | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    current: bool


def instant(ms: int) -> datetime:
    """Milliseconds since 1970 as an aware UTC datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)
