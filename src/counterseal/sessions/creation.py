"""Creation: a new session, and the end of those that are then too many.

The database decides, with the user's row locked; then Redis gets the copy and the tombstones in one script.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.email import normal_email
from counterseal.core.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    SessionExists,
    StoreUnavailable,
    UserBlocked,
)
from counterseal.core.tokens import uuid7
from counterseal.sessions.address import network_of
from counterseal.sessions.admission import (
    Newcomer,
    Past,
    Standing,
    insert_rows,
    insert_users,
    lock_users,
    read_past,
)
from counterseal.sessions.backing import Also, AuditDraft, Backing, account_stream
from counterseal.sessions.copies import Ended
from counterseal.sessions.device import clean_user_agent, device_family, device_name
from counterseal.sessions.endings import Endings
from counterseal.sessions.events import NewDevice, SessionCreated
from counterseal.sessions.identity import checked_identifier, session_id_of, split_session_id
from counterseal.sessions.lifetime import Lifetime, lifetime
from counterseal.sessions.refresh_token import RefreshToken, new_refresh_token
from counterseal.sessions.row import Row
from counterseal.sessions.rows import lock_sessions, read_rows_of
from counterseal.sessions.session import Created, Facts, Profile, Reason, Session

_ATTEMPTS: Final = 3
_AHEAD_S: Final = 0.1
"""How far the clock may be ahead of whoever has ended all sessions: what is made now would be older than that."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a session is made from."""

    user_id: str
    part: str
    email: str | None
    full_name: str | None
    user_agent: str | None
    ip: str | None
    profile: Profile
    amr: tuple[str, ...]
    named: bool
    """Whether its caller chose the part."""
    replacing: str | None
    """The part of the session of the same user that this one comes in place of."""


@dataclass(frozen=True, slots=True)
class Made:
    """A session that is in the database, perhaps in a transaction that is not over."""

    row: Row
    refresh: RefreshToken
    replaced: tuple[str, ...]
    evicted: tuple[str, ...]
    new_device: bool


Intake = Callable[[Login], Awaitable[Made]]
"""Writes a session in a transaction that others may share."""


class Creation:
    """Makes sessions."""

    def __init__(self, backing: Backing, endings: Endings) -> None:
        self._backing = backing
        self._endings = endings

    def login(
        self,
        *,
        user_id: str,
        part: str | None,
        email: str | None,
        full_name: str | None,
        user_agent: str | None,
        ip: str | None,
        profile: Profile,
        amr: Sequence[str],
        replacing: str | None,
    ) -> Login:
        """What was asked for, checked. Raises `ConfigurationError`."""
        before = split_session_id(replacing)
        return Login(
            checked_identifier("user_id", user_id),
            uuid7(self._backing.now_ms()).hex if part is None else checked_identifier("part", part),
            None if email is None else _checked_email(email),
            None if full_name is None else _checked_name(full_name),
            clean_user_agent(user_agent),
            _address(ip),
            Profile(profile),
            tuple(amr),
            part is not None,
            before[1] if before is not None and before[0] == user_id else None,
        )

    async def create(
        self, login: Login, also: Also | None = None, *, intake: Intake | None = None
    ) -> Created:
        """Make a session in a transaction of its own, in which `also` writes first; or in one that `intake` shares."""
        backing = self._backing
        for _ in range(_ATTEMPTS):
            try:
                if intake is None or also is not None or login.replacing is not None or login.named:
                    made = await self.write(login, also)
                else:
                    made = await intake(login)
            except DatabaseUnavailable:
                backing.database_failed()
                raise
            also = None  # that is done, whatever becomes of the session
            created = await self.finish(made)
            if created is not None:
                return created
            # All sessions of the user were ended while the database was down, and it has not been told of it yet.
            await self._endings.revoke(login.user_id, made.row.part, Reason.USER)
            await backing.pending.settle()
            await self._endings.adopt_epoch(login.user_id, made.row.user_epoch)
            login = self.again(login)
            await asyncio.sleep(_AHEAD_S)
        raise UserBlocked("all sessions of the user were ended at this moment")

    async def write(self, login: Login, also: Also | None = None) -> Made:
        """Write a session in a transaction of its own, in which `also` writes first."""
        async with self._backing.database.begin() as connection:
            if also is not None:
                await also(connection)
            return await self.make(connection, login)

    async def make(self, connection: AsyncConnection, login: Login) -> Made:
        """Write a session in a transaction of the caller, who calls `finish` once it is committed."""
        backing = self._backing
        user = await self._lock(connection, login)
        if user.status != "active":
            raise UserBlocked(f"the user is {user.status}")
        # Only now: there may have been a long wait for the lock.
        now_ms = backing.now_ms()
        limits = lifetime(login.profile, backing.settings, user.policy)
        if login.replacing is not None:
            # Another one may have to go after the audit log was locked for this one.
            await lock_sessions(connection, login.user_id)
        # Before the others are counted: its place is free.
        replaced = (
            await self._endings.end_in(connection, login.user_id, [login.replacing], Reason.LOGOUT, now_ms)
            if login.replacing is not None
            else []
        )
        found = await read_past(connection, [login.user_id], now_ms=now_ms, part=login.part)
        past = found[login.user_id]
        if past.taken:
            raise SessionExists("a session with this id exists, or existed")
        evicted: list[str] = []
        if past.live >= limits.most:
            rows = await read_rows_of(connection, login.user_id)
            live = [row for row in rows if not row.has_ended(now_ms)]
            surplus = [row.part for row in live[: max(0, len(live) + 1 - limits.most)]]
            if surplus:
                evicted = await self._endings.end_in(
                    connection, login.user_id, surplus, Reason.EVICTED, now_ms
                )
        made = self.begin(login, user, limits, past, now_ms)
        await insert_rows(connection, [made.row])
        await backing.audit(connection, **audit_of(made))
        return replace(made, replaced=tuple(replaced), evicted=tuple(evicted))

    async def _lock(self, connection: AsyncConnection, login: Login) -> Standing:
        """Lock the user, who is made when absent."""
        user_id = login.user_id
        found = await lock_users(connection, [user_id])
        if not found and login.email is not None:
            newcomer = Newcomer(user_id, login.email, login.full_name or "")
            await insert_users(connection, [newcomer], now_ms=self._backing.now_ms())
            found = await lock_users(connection, [user_id])
        if not found:
            raise ConfigurationError("email: expected an address, for the user is not known yet")
        return found[user_id]

    def begin(self, login: Login, user: Standing, limits: Lifetime, past: Past, now_ms: int) -> Made:
        """A session that is to be written. No round trip."""
        refresh = new_refresh_token(login.user_id, login.part, self._backing.keyring)
        row = Row(
            user_id=login.user_id,
            part=login.part,
            revoked=False,
            version=1,
            token_hash=refresh.hash,
            previous_hash=None,
            rotated_ms=0,
            successor=None,
            last_used_ms=now_ms,
            facts=Facts(
                profile=limits.profile,
                amr=login.amr,
                authenticated_ms=now_ms,
                created_ms=now_ms,
                absolute_ms=now_ms + limits.absolute_ms,
                idle_ms=limits.idle_ms // 1000 * 1000,
                epoch=user.epoch,
                global_epoch=user.global_epoch,
                device=device_name(login.user_agent),
                user_agent=login.user_agent,
                ip=login.ip,
            ),
            user_active=True,
            user_epoch=user.epoch,
            current_global_epoch=user.global_epoch,
        )
        return Made(row, refresh, (), (), _is_new_device(login, past.devices))

    async def finish(self, made: Made) -> Created | None:
        """What follows the commit; None when the session has ended before it began: the user's epoch was raised."""
        backing = self._backing
        row = made.row
        now_ms = backing.now_ms()
        copy: Session | Ended | None = None
        if not backing.outage.lasts:
            with suppress(StoreUnavailable):  # the database has it, and the outbox has the tombstones
                copy = await backing.copies.fill(
                    row,
                    now_ms=now_ms,
                    last_used_ms=row.last_used_ms,
                    checked_ms=row.last_used_ms,
                    ended=(*made.replaced, *made.evicted),
                )
        # Those have ended whatever becomes of this one.
        laid = copy is not None
        await self._endings.after(row.user_id, made.replaced, Reason.LOGOUT, laid=laid)
        await self._endings.after(row.user_id, made.evicted, Reason.EVICTED, laid=laid)
        if copy in (Ended.FORMER_EPOCH, Ended.BEHIND):
            return None
        if copy is Ended.REVOKED:
            revocation = await self._endings.revoke(row.user_id, row.part, Reason.USER)
            # Else it was ended in the database as well: it has begun, and is over, as if a moment later.
            if revocation:
                raise SessionExists("a session with this id existed")
        session = row.session(last_used_ms=row.last_used_ms, checked_ms=row.last_used_ms)
        backing.emit(SessionCreated(session.session_id, row.user_id))
        if made.new_device:
            backing.emit(NewDevice(session.session_id, row.user_id, session.device, session.ip))
        return Created(
            session,
            backing.tokens(session, made.refresh),
            tuple(session_id_of(row.user_id, part) for part in made.evicted),
            made.new_device,
        )

    def again(self, login: Login) -> Login:
        """The same log-in with another part, for the one before may have been written."""
        return replace(login, part=uuid7(self._backing.now_ms()).hex)


def audit_of(made: Made) -> AuditDraft:
    """What the audit log is told of a new session."""
    facts = made.row.facts
    return {
        "stream": account_stream(made.row.user_id),
        "action": "session.created",
        "body": {"session": made.row.part, "profile": facts.profile.value, "amr": list(facts.amr)},
        "private": {"ip": facts.ip, "user_agent": facts.user_agent},
        "subject": made.row.user_id,
    }


def _is_new_device(login: Login, seen: Sequence[tuple[str | None, str | None]]) -> bool:
    """Whether the user has other sessions on record, and none from the same kind of browser or the same network."""
    family, network = device_family(login.user_agent), network_of(login.ip)
    return bool(seen) and not any(
        device_family(user_agent) == family or (network is not None and network_of(ip) == network)
        for user_agent, ip in seen
    )


def _checked_email(email: str) -> str:
    """An address as it is stored. Raises `ConfigurationError`."""
    normal = normal_email(email)
    if normal is None:
        raise ConfigurationError("email: expected an address of at most 254 bytes, with one @ and a domain")
    return normal


def _checked_name(full_name: str) -> str:
    if "\0" in full_name:
        raise ConfigurationError("full_name: expected text without NUL, which PostgreSQL can't keep")
    return full_name


@lru_cache(1024)
def _address(ip: str | None) -> str | None:
    """An IP address as text; None for what is none."""
    try:
        return None if ip is None else ipaddress.ip_address(ip).compressed
    except ValueError:
        return None
