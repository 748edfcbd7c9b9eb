"""Sessions: who is logged in on which device, in the database and as a copy in Redis. Revocations win."""

from counterseal.sessions.events import (
    NewDevice,
    SessionCreated,
    SessionReuseDetected,
    SessionRevoked,
    SessionRotated,
)
from counterseal.sessions.session import (
    Context,
    Created,
    Device,
    Profile,
    Reason,
    Renewed,
    Revocation,
    Rotated,
    Session,
    StepUp,
    Tokens,
)

__all__ = [
    "Context",
    "Created",
    "Device",
    "NewDevice",
    "Profile",
    "Reason",
    "Renewed",
    "Revocation",
    "Rotated",
    "Session",
    "SessionCreated",
    "SessionReuseDetected",
    "SessionRevoked",
    "SessionRotated",
    "StepUp",
    "Tokens",
]
