"""A profile that nobody can change, for caches that can hand the same object to everybody."""

from __future__ import annotations

from typing import Any

import msgspec


class Notifications(msgspec.Struct, frozen=True):
    """What a user wants to hear of, and how."""

    email: bool
    push: bool
    digest: str


class Profile(msgspec.Struct, frozen=True):
    """The members of `load.value`."""

    id: str
    name: str
    email: str
    locale: str
    verified: bool
    created: int
    domain: str
    notifications: Notifications
    roles: tuple[str, ...]
    signature: str
    about: str


def profile(members: dict[str, Any]) -> Profile:
    """The immutable form of a value."""
    return msgspec.convert(members, Profile)
