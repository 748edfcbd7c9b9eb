"""Renewal: new tokens for a session that its caller has authenticated otherwise than by a refresh token."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import DatabaseError, DatabaseUnavailable, StoreUnavailable
from counterseal.sessions.address import network_of
from counterseal.sessions.backing import Also, Backing, account_stream
from counterseal.sessions.copies import Ended
from counterseal.sessions.device import clean_user_agent
from counterseal.sessions.refresh_token import new_refresh_token
from counterseal.sessions.rotation import answer_with, note_rotation
from counterseal.sessions.row import Row
from counterseal.sessions.rows import hold_user, read_row, renew_log_in, renew_row, replace_token
from counterseal.sessions.session import Renewed, Rotated, Session


class Renewal:
    """Gives new access tokens, and where the one before has to die a new refresh token as well."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def renew(
        self,
        user_id: str,
        part: str,
        *,
        amr: tuple[str, ...] | None,
        user_agent: str | None,
        ip: str | None,
        also: Also | None,
    ) -> Renewed | None:
        """A new access token; the refresh token stays what it is, so that whoever has it goes on having it."""
        backing = self._backing
        agent, address = clean_user_agent(user_agent), ip if network_of(ip) is not None else None
        if backing.pending.unsettled and not backing.outage.lasts:
            # The copy would otherwise be of more rotations than the row, and be believed.
            with suppress(DatabaseError, StoreUnavailable):
                await backing.pending.settle()
        async with self._changing(user_id, part, also) as (connection, row, now_ms):
            if row is None:
                return None
            await renew_row(connection, user_id, part, amr=amr, user_agent=agent, ip=address)
            await backing.audit(
                connection,
                stream=account_stream(user_id),
                action="session.renewed",
                body={"session": part} if amr is None else {"session": part, "amr": [*amr]},
                private={"ip": address, "user_agent": agent},
                subject=user_id,
            )
            renewed = await read_row(connection, user_id, part, now_ms=now_ms)
        session = None if renewed is None else await self._filled(renewed, now_ms)
        return None if session is None else Renewed(session, *backing.access_token(session))

    async def reissue(
        self, user_id: str, part: str, *, amr: tuple[str, ...] | None, authenticated: bool, also: Also | None
    ) -> Rotated | None:
        """A new pair; the refresh token before is good for nothing."""
        backing = self._backing
        refresh = new_refresh_token(user_id, part, backing.keyring)
        async with self._changing(user_id, part, also) as (connection, row, now_ms):
            if row is None:
                return None
            if authenticated or amr is not None:
                await renew_log_in(
                    connection,
                    user_id,
                    part,
                    amr=row.facts.amr if amr is None else amr,
                    authenticated_ms=now_ms if authenticated else row.facts.authenticated_ms,
                )
            replaced = await replace_token(
                connection,
                user_id,
                part,
                old=row.token_hash,
                new=refresh.hash,
                successor=None,
                rotated_ms=now_ms,
            )
            if replaced is None:
                return None
            renewed = await read_row(connection, user_id, part, now_ms=now_ms)
            await note_rotation(backing, connection, user_id, part)
        session = None if renewed is None else await self._filled(renewed, now_ms)
        return None if session is None else answer_with(backing, session, refresh, first=True)

    @asynccontextmanager
    async def _changing(
        self, user_id: str, part: str, also: Also | None
    ) -> AsyncGenerator[tuple[AsyncConnection, Row | None, int]]:
        """A transaction with the row of a live session locked, after `also`; None for one that has ended."""
        backing = self._backing
        try:
            async with backing.database.begin() as connection:
                if also is not None:
                    await hold_user(connection, user_id)  # before the row, as everybody does
                now_ms = backing.now_ms()
                row = await read_row(connection, user_id, part, now_ms=now_ms, lock=True)
                if row is not None and row.has_ended(now_ms):
                    row = None
                if row is not None and also is not None:
                    await also(connection)
                yield connection, row, now_ms
        except DatabaseUnavailable:
            backing.database_failed()
            raise

    async def _filled(self, row: Row, now_ms: int) -> Session | None:
        """Have Redis know what the database has decided; None when it knows that the session has ended."""
        if not self._backing.outage.lasts:
            with suppress(StoreUnavailable):
                filled = await self._backing.copies.fill(
                    row, now_ms=now_ms, last_used_ms=now_ms, checked_ms=now_ms
                )
                if isinstance(filled, Ended):
                    return None
        return row.session(last_used_ms=now_ms, checked_ms=now_ms)
