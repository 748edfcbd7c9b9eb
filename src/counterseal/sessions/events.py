"""What happens to sessions, told to whoever listens once it is true in the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from counterseal.sessions.session import Reason


@dataclass(frozen=True, slots=True)
class SessionCreated:
    """A user has logged in."""

    name: ClassVar[str] = "session.created"
    session_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class SessionRotated:
    """A session has new tokens."""

    name: ClassVar[str] = "session.rotated"
    session_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class SessionRevoked:
    """A session was ended."""

    name: ClassVar[str] = "session.revoked"
    session_id: str
    user_id: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class SessionReuseDetected:
    """A refresh token came that had been replaced long ago: somebody may have stolen it. The session was ended."""

    name: ClassVar[str] = "session.reuse_detected"
    session_id: str
    user_id: str
    device: str
    ip: str | None


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A user who has other sessions has logged in on a device and from a network not seen before."""

    name: ClassVar[str] = "session.new_device"
    session_id: str
    user_id: str
    device: str
    ip: str | None


SessionEvent = SessionCreated | SessionRotated | SessionRevoked | SessionReuseDetected | NewDevice
