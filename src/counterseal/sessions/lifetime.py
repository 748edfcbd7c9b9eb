"""Lifetime: how long a session may last, by its profile, the settings and the policy of the user's domain.

Numbers: OWASP ASVS 5.0 V7.3 and NIST SP 800-63B-4 (30 days at AAL1, 24 hours and 60 minutes idle at AAL2).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from counterseal.core.settings import SessionSettings
from counterseal.sessions.session import Profile

_REMEMBER: Final = (timedelta(days=30), timedelta(days=7))
_AAL2: Final = (timedelta(hours=24), timedelta(minutes=60))

LONGEST: Final = _REMEMBER[0]
"""No session lasts longer, unless the settings say so."""


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What a domain says of its users' sessions. It may only shorten them."""

    profile: Profile | None = None
    idle_minutes: int | None = None
    absolute_minutes: int | None = None
    max_sessions: int | None = None


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a session lasts in all, and without use; and how many of them a user may have."""

    profile: Profile
    absolute_ms: int
    idle_ms: int
    most: int


def lifetime(asked: Profile, settings: SessionSettings, policy: DomainPolicy | None) -> Lifetime:
    """What holds for a new session. `remember` is `standard` where the settings or the domain do not allow it."""
    policy = policy or DomainPolicy()
    profile = Profile.AAL2 if policy.profile is Profile.AAL2 else asked
    if profile is Profile.REMEMBER and (policy.profile is not None or not settings.remember):
        profile = Profile.STANDARD
    absolute, idle = settings.absolute, settings.idle
    if profile is Profile.REMEMBER:
        absolute, idle = _REMEMBER
    elif profile is Profile.AAL2:
        absolute, idle = min(absolute, _AAL2[0]), min(idle, _AAL2[1])
    if policy.absolute_minutes is not None:
        absolute = min(absolute, timedelta(minutes=policy.absolute_minutes))
    if policy.idle_minutes is not None:
        idle = min(idle, timedelta(minutes=policy.idle_minutes))
    most = settings.max_per_user if policy.max_sessions is None else policy.max_sessions
    return Lifetime(profile, _ms(absolute), _ms(min(idle, absolute)), most)


def longest_ms(settings: SessionSettings) -> int:
    """After so many milliseconds every session of today has ended."""
    return _ms(max(settings.absolute, LONGEST if settings.remember else settings.absolute))


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
