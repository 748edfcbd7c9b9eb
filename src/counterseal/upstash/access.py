"""Access: which tokens open the Redis REST server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from hmac import compare_digest

from counterseal.core.errors import ConfigurationError

REFUSED = (
    "WRONGPASS invalid or missing auth token. "
    "See https://docs.upstash.com/redis/troubleshooting/http_unauthorized for details."
)


class AccessTokens:
    """Standard tokens: each may do everything that the command policy leaves. Only their digests are kept."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens if token]
        if not self._digests:
            raise ConfigurationError(
                "COUNTERSEAL_REST_TOKEN: expected a token for the Redis REST server; it is missing"
            )

    def admits(self, token: bytes) -> bool:
        """Whether a token is one of them. Takes the same time whichever it is, and however much of it is right."""
        given = _digest(token)
        found = False
        for known in self._digests:
            found |= compare_digest(known, given)
        return found


def bearer(header: bytes) -> bytes:
    """The token of an `Authorization` header: after the scheme, in any letter case, or on its own."""
    scheme, found, token = header.strip().partition(b" ")
    return token.strip() if found and scheme.lower() == b"bearer" else header.strip()


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
