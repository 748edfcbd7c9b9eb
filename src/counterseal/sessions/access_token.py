"""Access token: a short-lived JWT (HS256) that names a session. Alone it never suffices: the session is asked for too.

Header: `kid`, a key of the ring. Claims: `sub` user id, `sid` public session id, `epoch`, `amr`, `auth_time`, `jti`,
`iat`, `exp`; times in seconds, with a fraction where a time has one.

They are read here, strictly, and written here, as PyJWT would: it takes five times as long for either.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from counterseal.core.errors import SealBroken
from counterseal.core.keyring import Keyring
from counterseal.sessions.identity import split_session_id

LONGEST_ACCESS_TOKEN: Final = 4096

_PURPOSE: Final = "access token"
_ALGORITHM: Final = "HS256"
_FORM: Final = re.compile(r"([A-Za-z0-9_-]{1,256})\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What an access token says. Times are milliseconds since 1970."""

    session_id: str
    user_id: str
    epoch: int
    amr: tuple[str, ...]
    authenticated_at_ms: int
    expires_at_ms: int


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str = "JWT"


class _Claims(msgspec.Struct, frozen=True):
    sub: str
    sid: str
    epoch: int
    amr: tuple[str, ...]
    auth_time: float
    exp: float
    iat: float
    jti: str


_header: Final = msgspec.json.Decoder(_Header)
_claims: Final = msgspec.json.Decoder(_Claims)


def issue_access_token(claims: AccessClaims, keyring: Keyring, now_ms: int) -> str:
    """A token that says this, signed by the newest key. No round trip. Each call gives another token."""
    said = _Claims(
        sub=claims.user_id,
        sid=claims.session_id,
        epoch=claims.epoch,
        amr=claims.amr,
        auth_time=_seconds(claims.authenticated_at_ms),
        jti=secrets.token_urlsafe(12),
        iat=_seconds(now_ms),
        exp=_seconds(claims.expires_at_ms),
    )
    key_id = keyring.key_ids[0]
    unsigned = _written_header(key_id) + b"." + _base64(msgspec.json.encode(said))
    digest = hmac.digest(keyring.derive(_PURPOSE, key_id), unsigned, "sha256")
    return (unsigned + b"." + _base64(digest)).decode()


def read_access_token(text: object, keyring: Keyring, now_ms: int) -> AccessClaims | None:
    """What a token says; None when it is forged, changed, expired, or no token at all. Never raises. No round trip."""
    if not isinstance(text, str) or len(text) > LONGEST_ACCESS_TOKEN:
        return None
    try:
        payload = _verified(text, keyring)
        said = None if payload is None else _claims.decode(payload)
        if said is None:
            return None
        expires_at_ms, authenticated_at_ms = round(said.exp * 1000), round(said.auth_time * 1000)
    except (SealBroken, msgspec.MsgspecError, ValueError, OverflowError):
        return None
    ids = split_session_id(said.sid)
    if ids is None or ids[0] != said.sub or expires_at_ms <= now_ms:
        return None
    return AccessClaims(said.sid, said.sub, said.epoch, said.amr, authenticated_at_ms, expires_at_ms)


def _verified(text: str, keyring: Keyring) -> bytes | None:
    """The payload of a token that a key of the ring signed. Raises when a part of it can't be read."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    header = _header.decode(_unpadded(form[1]))
    if header.alg != _ALGORITHM:
        return None
    digest = hmac.digest(keyring.derive(_PURPOSE, header.kid), text[: form.end(2)].encode(), "sha256")
    # As text: base64 has several spellings of the same bytes, and a token is to have one.
    if not hmac.compare_digest(_base64(digest), form[3].encode()):
        return None
    return _unpadded(form[2])


@lru_cache(16)
def _written_header(key_id: str) -> bytes:
    return _base64(msgspec.json.encode({"alg": _ALGORITHM, "kid": key_id, "typ": "JWT"}))


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _seconds(ms: int) -> float:
    return ms // 1000 if ms % 1000 == 0 else ms / 1000
