"""Tokens: secrets that nobody guesses, what is kept of them, and ids that sort by time."""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import Final
from uuid import UUID

SECRET_BYTES: Final = 32

_RANDOM_BITS: Final = 74
_VERSION: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
_LOW: Final = (1 << 62) - 1
_LONGEST_STEP: Final = 1 << 32


def new_secret() -> str:
    """256 random bits in base64url: 43 characters."""
    return secrets.token_urlsafe(SECRET_BYTES)


def hash_token(token: str) -> bytes:
    """SHA-256 of a token: the only form in which one is stored. For secrets of full length, never for passwords."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class _Ticks:
    """The last time and random part that this process used, so that ids never go back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def after(self, now_ms: int) -> int:
        fresh = secrets.randbits(_RANDOM_BITS + 32)
        proposed = now_ms << _RANDOM_BITS | fresh >> 32
        with self._lock:
            if proposed <= self._last:
                # RFC 9562, 6.2, method 2: a random step on, which may carry into the time.
                proposed = self._last + 1 + fresh % _LONGEST_STEP
            self._last = proposed
        return proposed


_ticks: Final = _Ticks()


def uuid7(now_ms: int) -> UUID:
    """A UUID of version 7 (RFC 9562) for this time. Within a process each is greater than the one before."""
    value = _ticks.after(now_ms)
    low = value & _LOW
    middle = value >> 62 & 0xFFF
    return UUID(int=(value >> _RANDOM_BITS & (1 << 48) - 1) << 80 | _VERSION | middle << 64 | _VARIANT | low)
