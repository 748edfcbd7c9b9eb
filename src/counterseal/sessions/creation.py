"""Creation: a new session, and the end of those that are then too many.

The database decides, with the user's row locked; then Redis gets the copy and the tombstones in one script.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.codec import JsonValue
from counterseal.core.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    SessionExists,
    StoreUnavailable,
    UserBlocked,
)
from counterseal.core.tokens import uuid7
from counterseal.sessions.address import network_of
from counterseal.sessions.backing import Also, Backing, account_stream
from counterseal.sessions.copies import Ended
from counterseal.sessions.device import clean_user_agent, device_family, device_name
from counterseal.sessions.endings import Endings
from counterseal.sessions.events import NewDevice, SessionCreated
from counterseal.sessions.identity import checked_identifier, session_id_of, split_session_id
from counterseal.sessions.lifetime import lifetime
from counterseal.sessions.refresh_token import RefreshToken, new_refresh_token
from counterseal.sessions.row import Row
from counterseal.sessions.rows import (
    insert_row,
    insert_user_if_absent,
    lock_user,
    read_devices,
    read_rows_of,
)
from counterseal.sessions.session import Created, Facts, Profile, Reason

_ATTEMPTS: Final = 2


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
            full_name,
            clean_user_agent(user_agent),
            _address(ip),
            Profile(profile),
            tuple(amr),
            before[1] if before is not None and before[0] == user_id else None,
        )

    async def create(self, login: Login, also: Also | None = None) -> Created:
        """Make a session in a transaction of its own, in which `also` writes first."""
        backing = self._backing
        for _ in range(_ATTEMPTS):
            try:
                async with backing.database.begin() as connection:
                    if also is not None:
                        await also(connection)
                    made = await self.make(connection, login)
            except DatabaseUnavailable:
                backing.database_failed()
                raise
            also = None  # that is done, whatever becomes of the session
            created = await self.finish(made)
            if created is not None:
                return created
            # All sessions of the user were ended while the database was down, and it has not been told of it yet.
            await self._endings.revoke(login.user_id, login.part, Reason.USER)
            await backing.pending.settle()
            await self._endings.adopt_epoch(login.user_id, made.row.user_epoch)
            login = self._again(login)
        raise UserBlocked("all sessions of the user were ended at this moment")

    async def make(self, connection: AsyncConnection, login: Login) -> Made:
        """Write a session in a transaction of the caller, who calls `finish` once it is committed."""
        backing = self._backing
        if login.email is not None:
            await insert_user_if_absent(
                connection,
                login.user_id,
                email=login.email,
                full_name=login.full_name or "",
                now_ms=backing.now_ms(),
            )
        user = await lock_user(connection, login.user_id)
        if user is None:
            raise ConfigurationError("email: expected an address, for the user is not known yet")
        status, epoch, global_epoch, policy = user
        if status != "active":
            raise UserBlocked(f"the user is {status}")
        # Only now: there may have been a long wait for the lock.
        now_ms = backing.now_ms()
        limits = lifetime(login.profile, backing.settings, policy)
        # Before the others are counted: its place is free.
        replaced = (
            await self._endings.end_in(connection, login.user_id, [login.replacing], Reason.LOGOUT, now_ms)
            if login.replacing is not None
            else []
        )
        live = [row for row in await read_rows_of(connection, login.user_id) if not row.has_ended(now_ms)]
        surplus = [row.part for row in live[: max(0, len(live) + 1 - limits.most)]]
        evicted = (
            await self._endings.end_in(connection, login.user_id, surplus, Reason.EVICTED, now_ms)
            if surplus
            else []
        )
        new_device = await self._is_new_device(connection, login)
        refresh = new_refresh_token(login.user_id, login.part, backing.keyring)
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
                epoch=epoch,
                global_epoch=global_epoch,
                device=device_name(login.user_agent),
                user_agent=login.user_agent,
                ip=login.ip,
            ),
            user_active=True,
            user_epoch=epoch,
            current_global_epoch=global_epoch,
        )
        if not await insert_row(connection, row):
            raise SessionExists("a session with this id exists, or existed")
        await backing.audit(
            connection,
            stream=account_stream(login.user_id),
            action="session.created",
            body={"session": login.part, "profile": limits.profile.value, "amr": _texts(login.amr)},
            private={"ip": login.ip, "user_agent": login.user_agent},
            subject=login.user_id,
        )
        return Made(row, refresh, tuple(replaced), tuple(evicted), new_device)

    async def finish(self, made: Made) -> Created | None:
        """What follows the commit; None when the session has ended before it began: the user's epoch was raised."""
        backing = self._backing
        row = made.row
        now_ms = backing.now_ms()
        if not backing.outage.lasts:
            try:
                copy = await backing.copies.fill(
                    row,
                    now_ms=now_ms,
                    last_used_ms=row.last_used_ms,
                    checked_ms=row.last_used_ms,
                    ended=(*made.replaced, *made.evicted),
                )
            except StoreUnavailable:
                pass  # the database has it, and the outbox has the tombstones
            else:
                if copy is Ended.FORMER_EPOCH:
                    return None
                if copy is Ended.REVOKED:
                    revocation = await self._endings.revoke(row.user_id, row.part, Reason.USER)
                    # Else it was ended in the database as well: it has begun, and is over, as if a moment later.
                    if revocation:
                        raise SessionExists("a session with this id existed")
        await self._endings.after(row.user_id, made.replaced, Reason.LOGOUT)
        await self._endings.after(row.user_id, made.evicted, Reason.EVICTED)
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

    def _again(self, login: Login) -> Login:
        return replace(login, part=uuid7(self._backing.now_ms()).hex)

    @staticmethod
    async def _is_new_device(connection: AsyncConnection, login: Login) -> bool:
        """Whether the user has other sessions on record, and none from the same kind of browser or the same network."""
        seen = await read_devices(connection, login.user_id)
        family, network = device_family(login.user_agent), network_of(login.ip)
        known = any(
            device_family(user_agent) == family or (network is not None and network_of(ip) == network)
            for user_agent, ip in seen
        )
        return bool(seen) and not known


def _checked_email(email: str) -> str:
    """An address as it is stored: NFC and lower case. Raises `ConfigurationError`."""
    text = unicodedata.normalize("NFC", email).strip().lower()
    name, at, domain = text.rpartition("@")
    if not (name and at and domain) or len(text) > 254 or not text.isprintable() or " " in text:
        raise ConfigurationError("email: expected an address of at most 254 characters, with an @")
    return text


def _address(ip: str | None) -> str | None:
    """An IP address as text; None for what is none."""
    try:
        return None if ip is None else ipaddress.ip_address(ip).compressed
    except ValueError:
        return None


def _texts(values: Sequence[str]) -> list[JsonValue]:
    return list(values)
