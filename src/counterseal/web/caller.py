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

    __slots__ = ("_claims", "_read", "_seen", "carrier", "seal", "token")

    def __init__(self, seal: Counterseal, fields: Fields, *, passing: bool) -> None:
        """A `passing` caller is one request: what was found for it holds until its end."""
        fields = tuple(fields)
        given = {value.strip(b" \t") for name, value in fields if name.lower() == b"authorization"}
        bearers = [value for value in given if value[: len(_BEARER)].lower() == _BEARER]
        self.seal = seal
        self.carrier = Carrier.BEARER if bearers else Carrier.COOKIE
        self.token = _bearer(given) if bearers else read_cookie(fields, ACCESS)
        self._claims: AccessClaims | None = None
        self._read = False
        self._seen: dict[bool, Session | None] | None = {} if passing else None

    @property
    def claims(self) -> AccessClaims | None:
        """What the token says, where counterseal has signed it and its time is not up; the session may have ended."""
        if not self._read:
            seal = self.seal
            self._claims = read_access_token(self.token, seal.keyring, seal.store.now_ms())
            self._read = True
        return self._claims

    async def session(self, *, fresh: bool = False) -> Session | None:
        """The live session; None for every token that is worth nothing. `fresh` asks the database too.

        At most one round trip, none for a token that nobody has signed, or where this request has asked before.
        Raises `StoreUnavailable` or `DatabaseUnavailable` when neither can say.
        """
        if self.token is None or self.claims is None:
            return None
        seen = self._seen
        if seen is not None:
            if fresh in seen:
                return seen[fresh]
            if seen.get(True) is not None:
                return seen[True]
        session = await self.seal.sessions.authenticate(self.token, fresh=fresh)
        if seen is not None:
            seen[fresh] = session
        return session


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
