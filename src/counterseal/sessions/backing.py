"""Backing: what the parts of the service work with together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NotRequired, Protocol, TypedDict

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.codec import JsonValue
from counterseal.core.keyring import Keyring
from counterseal.core.settings import SessionSettings
from counterseal.database.direct import Transaction
from counterseal.database.engine import Database
from counterseal.sessions.access_token import AccessClaims, issue_access_token
from counterseal.sessions.copies import Copies
from counterseal.sessions.counts import SessionCounts
from counterseal.sessions.events import SessionEvent
from counterseal.sessions.outage import Outage
from counterseal.sessions.pending import Pending
from counterseal.sessions.refresh_token import RefreshToken
from counterseal.sessions.session import Session, Tokens, instant

Also = Callable[[AsyncConnection], Awaitable[None]]
"""What else is to be written in the same transaction."""


class AppendAudit(Protocol):
    """Appends an entry to the audit log, in the caller's transaction."""

    def __call__(
        self,
        connection: Transaction,
        *,
        stream: str,
        action: str,
        body: Mapping[str, JsonValue],
        private: Mapping[str, str | None] = ...,
        subject: str | None = None,
    ) -> Awaitable[Any]: ...


class AuditDraft(TypedDict):
    """One entry of the audit log that is to be written."""

    stream: str
    action: str
    body: Mapping[str, JsonValue]
    private: NotRequired[Mapping[str, str | None]]
    subject: NotRequired[str | None]


AppendAudits = Callable[[Transaction, Sequence[AuditDraft]], Awaitable[Any]]
"""Appends several entries, as `AppendAudit` would one after the other."""


@dataclass(slots=True)
class Backing:
    """Redis, the database, and what both are told of."""

    database: Database
    copies: Copies
    outage: Outage
    pending: Pending
    keyring: Keyring
    settings: SessionSettings
    audit: AppendAudit
    audit_many: AppendAudits
    emit: Callable[[SessionEvent], None]
    wake: Callable[[], None]
    """Called when the outbox has something to relay."""
    available: Callable[[], bool]
    """Whether a call to Redis would be sent."""
    now_ms: Callable[[], int]
    counts: SessionCounts

    def database_failed(self) -> None:
        """The database did not answer. Without Redis nothing is accepted in its place, so then it lacks nothing."""
        if not self.outage.lasts:
            self.pending.database_failed()

    def access_token(self, session: Session) -> tuple[str, datetime]:
        """A new access token for a session, and when it expires. No round trip."""
        now_ms = self.now_ms()
        facts = session.facts
        access_ms = self.settings.access_ttl.total_seconds() * 1000
        expires_ms = min(now_ms + int(access_ms), facts.absolute_ms)
        claims = AccessClaims(
            session_id=session.session_id,
            user_id=session.user_id,
            epoch=facts.epoch,
            amr=facts.amr,
            authenticated_at_ms=facts.authenticated_ms,
            expires_at_ms=expires_ms,
        )
        return issue_access_token(claims, self.keyring, now_ms), instant(expires_ms)

    def tokens(self, session: Session, refresh: RefreshToken) -> Tokens:
        """The pair for a session: a new access token beside this refresh token. No round trip."""
        access, expires_at = self.access_token(session)
        return Tokens(access, refresh.text, expires_at, session.expires_at)


def account_stream(user_id: str) -> str:
    """The stream of the audit log that tells of a user."""
    return f"account:{user_id}"
