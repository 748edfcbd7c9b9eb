"""Events of accounts: what an application may listen to. They are emitted after the commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class UserCreated:
    """Somebody signed up."""

    name: ClassVar[str] = "user.created"
    user_id: str
    email: str


@dataclass(frozen=True, slots=True)
class EmailVerificationRequested:
    """A mail is to be sent with a token that `verify_email` takes until `expires_at`."""

    name: ClassVar[str] = "user.email_verification_requested"
    user_id: str
    email: str
    token: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class PasswordResetRequested:
    """A mail is to be sent with a token that `reset_password` takes until `expires_at`."""

    name: ClassVar[str] = "password.reset_requested"
    user_id: str
    email: str
    token: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class PasswordChanged:
    """The password is another one: by its owner who was logged in, or by a reset."""

    name: ClassVar[str] = "password.changed"
    user_id: str
    email: str
    by_reset: bool


@dataclass(frozen=True, slots=True)
class AccountLocked:
    """Too many wrong passwords in a row: nobody logs in until then."""

    name: ClassVar[str] = "user.locked"
    user_id: str
    email: str
    until: datetime


@dataclass(frozen=True, slots=True)
class UserSuspended:
    """An administrator suspended an account; its sessions have ended."""

    name: ClassVar[str] = "user.suspended"
    user_id: str


@dataclass(frozen=True, slots=True)
class UserRestored:
    """An administrator lifted a suspension."""

    name: ClassVar[str] = "user.restored"
    user_id: str


@dataclass(frozen=True, slots=True)
class UserDeleted:
    """An account was deleted; its sessions have ended."""

    name: ClassVar[str] = "user.deleted"
    user_id: str
