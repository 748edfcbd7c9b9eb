"""Caller: who a request says it comes from, found out when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from starlette.types import Scope

from counterseal.app import Counterseal
from counterseal.core.errors import ConfigurationError
from counterseal.sessions.access_token import AccessClaims, read_access_token
from counterseal.sessions.session import Session
from counterseal.web.cookies import ACCESS, read_cookie

_CALLER: Final = "counterseal.caller"
_AUTHORIZATION: Final = b"authorization"
_BEARER: Final = b"bearer"

Fields = Iterable[tuple[bytes, bytes]]


class Carrier(StrEnum):
    """In what a token comes, and its successor goes back."""

    COOKIE = "cookie"
    BEARER = "bearer"


class Caller:
    """The access token of one request, and the session that it stands for.

    `Authorization: Bearer` comes before the cookie: who sends one means it, so there the cookie counts for nothing even
    where the token is worth nothing. Two different ones are none.
    """

    __slots__ = ("_claims", "_fields", "_judged", "_read", "_seen", "seal")

    def __init__(self, seal: Counterseal, fields: Fields, *, passing: bool) -> None:
        """A `passing` caller is one request: what was found for it holds until its end."""
        self.seal = seal
        self._fields = fields
        self._read: tuple[Carrier, str | None] | None = None
        self._claims: AccessClaims | None = None
        self._judged = False
        self._seen: dict[bool, Session | None] | None = {} if passing else None

    @property
    def carrier(self) -> Carrier:
        """In what the token came; `COOKIE` where there is none."""
        return self._token()[0]

    @property
    def claims(self) -> AccessClaims | None:
        """What the token says, where counterseal has signed it and its time is not up; the session may have ended."""
        if not self._judged:
            seal = self.seal
            _, token = self._token()
            self._claims = read_access_token(token, seal.keyring, seal.store.now_ms())
            self._judged = True
        return self._claims

    async def session(self, *, fresh: bool = False) -> Session | None:
        """The live session; None for every token that is worth nothing. `fresh` asks the database too.

        At most one round trip, none for a token that nobody has signed, or where this request has asked before.
        Raises `StoreUnavailable` or `DatabaseUnavailable` when neither can say.
        """
        claims = self.claims
        if claims is None:
            return None
        seen = self._seen
        if seen is not None:
            if fresh in seen:
                return seen[fresh]
            if seen.get(True) is not None:
                return seen[True]
        # As `authenticate` does, which would read the token anew.
        session = await self.seal.sessions.get(claims.session_id, fresh=fresh)
        if session is not None and session.epoch != claims.epoch:
            session = None
        if seen is not None:
            seen[fresh] = session
        return session

    def _token(self) -> tuple[Carrier, str | None]:
        if self._read is None:
            given = {
                value.strip(b" \t")
                for name, value in self._fields
                if len(name) == len(_AUTHORIZATION) and name.lower() == _AUTHORIZATION
            }
            if any(value[: len(_BEARER)].lower() == _BEARER for value in given):
                self._read = (Carrier.BEARER, _bearer(given))
            else:
                self._read = (Carrier.COOKIE, read_cookie(self._fields, ACCESS))
        return self._read


def note_caller(seal: Counterseal, scope: Scope) -> Caller:
    """The caller of a request or a handshake, the same one for everybody who asks."""
    caller = scope.get(_CALLER)
    if not isinstance(caller, Caller) or caller.seal is not seal:
        caller = scope[_CALLER] = Caller(seal, scope["headers"], passing=scope["type"] == "http")
    return caller


def caller_of(scope: Scope) -> Caller:
    """The caller that the middleware noted. Raises `ConfigurationError` where there is no middleware."""
    caller = scope.get(_CALLER)
    if isinstance(caller, Caller):
        return caller
    raise ConfigurationError("sessions: expected SessionMiddleware around the application; there is none")


def _bearer(given: set[bytes]) -> str | None:
    """The token of the only `Authorization` there is; None for several, and for one that is malformed."""
    if len(given) != 1:
        return None
    _, _, token = given.pop().partition(b" ")
    token = token.strip(b" ")
    return token.decode("ascii") if token.isascii() and token.decode("ascii").isprintable() else None
