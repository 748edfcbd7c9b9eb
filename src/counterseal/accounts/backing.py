"""Backing: what every part of the accounts stands on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.password import Passwords
from counterseal.accounts.refused import FRESH_LOGIN_NEEDED, SESSION_ENDED, Refused, too_many_attempts
from counterseal.audit.service import SYSTEM, Audit
from counterseal.cache.service import Cache
from counterseal.core.codec import JsonValue
from counterseal.core.errors import DatabaseUnavailable, StoreError
from counterseal.core.events import Events
from counterseal.database.engine import Database
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.service import RateLimits
from counterseal.sessions.address import network_of
from counterseal.sessions.device import clean_user_agent
from counterseal.sessions.service import Sessions
from counterseal.sessions.session import Session

logger = logging.getLogger(__name__)

FRESH_LOGIN: Final = timedelta(minutes=10)
"""How old a log-in may be for a change of the account."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Client:
    """Where a call comes from, cleaned: what is no address is None."""

    ip: str | None
    user_agent: str | None

    @classmethod
    def of(cls, ip: str | None, user_agent: str | None) -> Client:
        """The client with this address and this user agent, whatever they hold."""
        return cls(ip if network_of(ip) is not None else None, clean_user_agent(user_agent))

    @property
    def limited_as(self) -> str | None:
        """What it is limited as: its address, or for IPv6 its /64, of which one client has every address."""
        if self.ip is None:
            return None
        address = ip_address(self.ip.partition("%")[0])
        six = isinstance(address, IPv6Address) and address.ipv4_mapped is None
        return network_of(self.ip) if six else str(address)


@dataclass(frozen=True, slots=True)
class Backing:
    """The services below, handed to each part."""

    database: Database
    sessions: Sessions
    rate_limits: RateLimits
    passwords: Passwords
    audit: Audit
    events: Events
    cache: Cache
    now_ms: Callable[[], int]

    def now(self) -> datetime:
        """The time of the one clock, in UTC."""
        return _EPOCH + timedelta(milliseconds=self.now_ms())

    async def recent(self, session: Session) -> Session | Refused:
        """A session as the database has it, when it is live and its log-in is at most ten minutes old.

        At most two round trips; one transaction that reads.
        """
        current = await self.sessions.get(session.session_id, fresh=True)
        if current is None:
            return SESSION_ENDED
        return FRESH_LOGIN_NEEDED if self.now() - current.authenticated_at > FRESH_LOGIN else current

    async def admit(self, limiter: str, identifier: str) -> Decision | Refused:
        """Charge a limiter: what it decided, or the refusal. One round trip; without Redis one transaction.

        Raises `DatabaseUnavailable` when neither Redis nor the database can count.
        """
        decision = await self.rate_limits.limiter(limiter).limit(identifier)
        if decision.success:
            return decision
        if decision.reason is Reason.UNAVAILABLE:
            raise DatabaseUnavailable("attempts can't be counted now, so none is allowed")
        return too_many_attempts(decision.retry_after)

    async def note(
        self,
        connection: AsyncConnection,
        action: str,
        *,
        user_id: str | None,
        body: Mapping[str, JsonValue] | None = None,
        private: Mapping[str, str | None] | None = None,
        client: Client | None = None,
    ) -> None:
        """Append to the audit stream of an account, or of the system when there is none."""
        known: dict[str, str | None] = dict(private or {})
        if client is not None:
            known |= {"ip": client.ip, "user_agent": client.user_agent}
        await self.audit.append(
            connection,
            stream=SYSTEM if user_id is None else f"account:{user_id}",
            action=action,
            body=body or {},
            private=known,
            subject=user_id,
        )

    async def forget_profile(self, user_id: str) -> None:
        """Let nobody see the old profile in the cache. One round trip.

        Without Redis that can't be done, and a profile there may be up to its lifetime old: nothing is decided by it.
        """
        try:
            await self.cache.user_profiles.invalidate(user_id)
        except StoreError as error:
            logger.warning("a changed user profile stays in the cache until it ends: %s", error.code)


class Lost(Exception):
    """Leaves a transaction in which somebody else was first, so that nothing of it is kept."""

    def __init__(self, refused: Refused) -> None:
        super().__init__()
        self.refused = refused
