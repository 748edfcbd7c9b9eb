"""Step-ups: second factors shown in a session, each good once, for five minutes, for what it was shown for."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Final

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import ConfigurationError, DatabaseError, DatabaseUnavailable, StoreUnavailable
from counterseal.core.tokens import uuid7
from counterseal.database.tables import session_step_ups
from counterseal.sessions.backing import Backing
from counterseal.sessions.identity import checked_identifier, is_identifier
from counterseal.sessions.rows import STEP_UP_MS, milliseconds, read_row, read_step_ups
from counterseal.sessions.session import Context, StepUp, instant

METHODS: Final = ("totp", "backup_code")

_shown = session_step_ups.c


class StepUps:
    """Rows of `session_step_ups`, which are the truth. Redis has a copy for display."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncConnection]:
        """A transaction of its own for `note` or `take`. Raises as the database does, which may be down."""
        try:
            async with self._backing.database.begin() as connection:
                yield connection
        except DatabaseUnavailable:
            self._backing.database_failed()
            raise

    async def note(
        self, connection: AsyncConnection, user_id: str, part: str, step_up: StepUp
    ) -> StepUp | None:
        """Write that a second factor was shown, in the caller's transaction; None when the session is not live."""
        if step_up.request_id is not None:
            checked_identifier("request_id", step_up.request_id)
        if step_up.method not in METHODS:
            raise ConfigurationError(
                f"method: expected one of {', '.join(METHODS)}; came: {step_up.method!r}"
            )
        now_ms = self._backing.now_ms()
        row = await read_row(connection, user_id, part, now_ms=now_ms, lock=True)
        if row is None or row.has_ended(now_ms):
            return None
        await connection.execute(
            insert(session_step_ups).values(
                id=uuid7(now_ms),
                user_id=user_id,
                session_id=part,
                context=step_up.context.value,
                request_id=step_up.request_id,
                method=step_up.method,
                verified_at=instant(step_up.verified_ms),
            )
        )
        return step_up

    async def take(
        self,
        connection: AsyncConnection,
        user_id: str,
        part: str,
        context: Context,
        request_id: str | None,
        *,
        max_age: timedelta,
        consume: bool,
    ) -> StepUp | None:
        """The newest step-up that is good for this, used up when `consume`; in the caller's transaction.

        One for no request is good for no request; one for a request is good for that one alone. For signing a request
        has to be named. Of two who ask at once for the same, one gets it.
        """
        if not is_identifier(request_id) and (request_id is not None or context is not Context.LOGIN):
            return None
        now_ms = self._backing.now_ms()
        row = await read_row(connection, user_id, part, now_ms=now_ms, lock=True)
        if row is None or row.has_ended(now_ms):
            return None
        now_ms = max(now_ms, self._backing.now_ms())
        age_ms = min(max_age // timedelta(milliseconds=1), STEP_UP_MS)
        chosen = (
            await connection.execute(
                select(_shown.id, _shown.context, _shown.request_id, _shown.method, _shown.verified_at)
                .where(
                    _shown.user_id == user_id,
                    _shown.session_id == part,
                    _shown.consumed_at.is_(None),
                    _shown.context.in_([covering.value for covering in context.covered_by]),
                    _shown.request_id.is_(None) if request_id is None else _shown.request_id == request_id,
                    _shown.verified_at > instant(now_ms - age_ms),
                )
                .order_by(_shown.verified_at.desc())
                .limit(1)
            )
        ).first()
        if chosen is None:
            return None
        if consume:
            used = await connection.execute(
                update(session_step_ups)
                .where(_shown.id == chosen.id, _shown.consumed_at.is_(None))
                .values(consumed_at=instant(now_ms))
            )
            if used.rowcount != 1:
                return None
        return StepUp(
            Context(chosen.context), chosen.request_id, chosen.method, milliseconds(chosen.verified_at)
        )

    async def display(self, user_id: str, part: str) -> None:
        """Bring the copy in Redis up to date, as far as that can be done now."""
        backing = self._backing
        if backing.outage.lasts:
            return
        # What it shows is committed, and has to be answered whatever becomes of the copy.
        with suppress(DatabaseError, StoreUnavailable):
            async with backing.database.read() as connection:
                good = await read_step_ups(connection, user_id, part, now_ms=backing.now_ms())
            await backing.copies.note_step_ups(user_id, part, good)
