"""Refresh token: `v1.<user part>.<session part>.<secret>`, of which only the SHA-256 is stored.

The secret is 256 random bits and a mark, both in base64url. The mark is an HMAC of the rest of the token under a key of
the ring, cut to 96 bits: a token that carries it was issued here once, so that when nobody knows it any more it may
have been stolen, while one without it was made up and says nothing. The mark proves nothing else.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from counterseal.core.keyring import NONCE_BYTES, Keyring
from counterseal.core.tokens import hash_token, new_secret
from counterseal.sessions.identity import LONGEST_SESSION_ID, session_id_of, split_session_id

LONGEST_REFRESH_TOKEN: Final = 3 + LONGEST_SESSION_ID + 1 + 59

_PURPOSE: Final = "refresh token mark"
_MARK_BYTES: Final = 12
_MARK_CHARACTERS: Final = 16
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{59}")


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token taken apart. That it could be read says nothing of whether it is good."""

    user_id: str
    part: str
    text: str = field(repr=False)

    @property
    def hash(self) -> bytes:
        """SHA-256 of the token: what is stored of it."""
        return hash_token(self.text)

    @property
    def session_id(self) -> str:
        """The public id of its session."""
        return session_id_of(self.user_id, self.part)


def new_refresh_token(user_id: str, part: str, keyring: Keyring) -> RefreshToken:
    """A new token for a session, marked by the newest key. No round trip.

    Raises `ConfigurationError` for what can't be a user id or a session part.
    """
    unmarked = f"v1.{session_id_of(user_id, part)}.{new_secret()}"
    return RefreshToken(user_id, part, unmarked + _mark(unmarked, keyring.derive(_PURPOSE)))


def parse_refresh_token(text: object) -> RefreshToken | None:
    """A refresh token taken apart; None for anything that none can be. Never raises."""
    if not isinstance(text, str) or len(text) > LONGEST_REFRESH_TOKEN or not text.startswith("v1."):
        return None
    session_id, _, secret = text[3:].rpartition(".")
    if not _SECRET.fullmatch(secret):
        return None
    ids = split_session_id(session_id)
    return None if ids is None else RefreshToken(*ids, text)


def was_issued(token: RefreshToken, keyring: Keyring) -> bool:
    """Whether a key of the ring marked this token. Takes as long for a wrong mark as for a right one. No round trip."""
    unmarked, mark = token.text[:-_MARK_CHARACTERS], token.text[-_MARK_CHARACTERS:]
    if not mark.isascii():
        return False
    marks = [_mark(unmarked, keyring.derive(_PURPOSE, key_id)) for key_id in keyring.key_ids]
    return sum(hmac.compare_digest(mark, expected) for expected in marks) > 0


def seal_successor(previous: RefreshToken, successor: RefreshToken) -> bytes:
    """The successor of a token in a form that only who holds that token can read: 87 bytes.

    Both must be tokens of one session; of the successor only the secret is kept.
    """
    if (previous.user_id, previous.part) != (successor.user_id, successor.part):
        raise ValueError("a successor is a token of the same session")
    nonce = secrets.token_bytes(NONCE_BYTES)
    secret = successor.text.rpartition(".")[2]
    return nonce + _cipher(previous).encrypt(nonce, secret.encode(), None)


def open_successor(previous: RefreshToken, sealed: bytes) -> RefreshToken | None:
    """The successor that was sealed for this token; None when it was sealed for another, or changed. Never raises."""
    try:
        secret = _cipher(previous).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        return None
    return parse_refresh_token(f"{previous.text.rpartition('.')[0]}.{secret.decode('ascii', 'replace')}")


def _mark(unmarked: str, key: bytes) -> str:
    digest = hmac.digest(key, unmarked.encode("utf-8", "surrogatepass"), "sha256")
    return base64.urlsafe_b64encode(digest[:_MARK_BYTES]).decode()


def _cipher(previous: RefreshToken) -> AESGCM:
    # The whole token goes in, so the key is of this session too.
    derivation = HKDF(SHA256(), 32, salt=None, info=b"counterseal refresh token successor")
    return AESGCM(derivation.derive(previous.text.encode("utf-8", "surrogatepass")))
