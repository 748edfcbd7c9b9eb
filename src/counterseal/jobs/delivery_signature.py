"""Delivery signature: whether a delivery comes from QStash, for this URL, with this body, and now.

`Upstash-Signature` is a JWT by HS256. Its key is the text of a signing key: of the current one or of the next, because
they are rotated. It binds who signed (`iss`), for which URL (`sub`), the SHA-256 of the body, the time, and by `jti`
the one delivery. Every attempt is signed anew.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

ISSUER: Final = "Upstash"
LEEWAY_S: Final = 5
LONGEST_LIFE_S: Final = 3600
"""A signature that would be good for longer is refused: what was accepted is remembered for as long."""

_LONGEST_TOKEN: Final = 4096
_LONGEST_ID: Final = 256


@dataclass(frozen=True, slots=True)
class Signed:
    """A delivery that QStash has signed. `id` is that of this one attempt, `until_ms` when its signature expires."""

    id: str
    until_ms: int


def verify(signature: str, *, keys: Sequence[str], url: str, body: bytes, now_ms: int) -> Signed | None:
    """What is signed; None when it is not, or is not for this URL and body, or not for now. No round trip.

    Every comparison of what a stranger chose takes the same time wherever it differs.
    """
    if not 0 < len(signature) <= _LONGEST_TOKEN:
        return None
    for key in keys:
        claims = _claims(signature, key)
        if claims is not None:
            return _judged(claims, url=url, body=body, now_s=now_ms / 1000)
    return None


def body_hash(body: bytes) -> str:
    """The claim `body`, without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")


def _claims(signature: str, key: str) -> dict[str, Any] | None:
    """What a token says that this key has signed."""
    try:
        # Times are judged by the store's clock, and `aud` by nobody: there is none.
        return jwt.decode(
            signature,
            key,
            algorithms=["HS256"],
            options={
                "require": ["iss", "sub", "exp", "nbf", "jti", "body"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": False,
                "verify_iss": False,
            },
        )
    except (jwt.PyJWTError, ValueError, TypeError):
        return None


def _judged(claims: dict[str, Any], *, url: str, body: bytes, now_s: float) -> Signed | None:
    expires, begins, identifier = claims["exp"], claims["nbf"], claims["jti"]
    if not (_is_number(expires) and _is_number(begins)):
        return None
    same = [
        _same(claims["iss"], ISSUER),
        _same(claims["sub"], url),
        isinstance(claims["body"], str) and _same(claims["body"].rstrip("="), body_hash(body)),
        isinstance(identifier, str) and 0 < len(identifier) <= _LONGEST_ID,
        begins - LEEWAY_S <= now_s < expires + LEEWAY_S,
        expires <= now_s + LONGEST_LIFE_S,
    ]
    return Signed(identifier, int((expires + LEEWAY_S) * 1000)) if all(same) else None


def _same(given: object, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(
        given.encode("utf-8", "surrogatepass"), expected.encode()
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53
