"""TOTP verification: a code is looked at, and used up in the transaction of what it is shown for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, TypeVar
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.backing import Backing, Client
from counterseal.accounts.backup_codes import (
    count_backup_codes,
    typed_backup_code,
    unused_backup_codes,
    use_backup_code,
)
from counterseal.accounts.refused import CODE_INVALID, SESSION_ENDED, TOTP_STOPPED, Refused
from counterseal.accounts.totp_code import matching_step, typed_code
from counterseal.accounts.totp_config import (
    FAILURES_THAT_STOP,
    TotpConfig,
    count_failure,
    find_config,
    use_otherwise,
    use_step,
)
from counterseal.accounts.totp_guesses import Guesses
from counterseal.accounts.totp_policy import forget_state
from counterseal.core.errors import DatabaseError, StoreError
from counterseal.core.keyring import Keyring
from counterseal.database.tables import users
from counterseal.sessions.identity import checked_identifier
from counterseal.sessions.refresh_token import parse_refresh_token
from counterseal.sessions.session import Context, Session, StepUp, Tokens

logger = logging.getLogger(__name__)

Method = Literal["totp", "backup_code"]

SHOWN: Final = "otp"
"""Of `amr` (RFC 8176). A backup code is a one-time password as well."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verified:
    """A code was right, and is used up."""

    method: Method


@dataclass(frozen=True, slots=True)
class SteppedUp:
    """A code was right and is noted in its session, which has a new access token.

    `tokens` is a pair where a refresh token of the session came along, and then the access token is of it. None
    otherwise: then the refresh token is what it was.
    """

    step_up: StepUp
    access_token: str = field(repr=False)
    access_expires_at: datetime
    tokens: Tokens | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A code that is right, and not used up yet: the step of a TOTP code, or the id of a backup code."""

    config: TotpConfig
    step: int | None = None
    backup_code: UUID | None = None

    @property
    def method(self) -> Method:
        return "totp" if self.step is not None else "backup_code"


class Abandoned(Exception):
    """Leaves a transaction, so that nothing of it counts. `refused` is the answer."""

    def __init__(self, refused: Refused) -> None:
        super().__init__()
        self.refused = refused


class Verification:
    """Takes codes."""

    def __init__(self, backing: Backing, *, keyring: Keyring, guesses: Guesses) -> None:
        self._backing = backing
        self._keyring = keyring
        self._guesses = guesses

    async def verify(
        self, user_id: str, code: str, *, context: Context, address: str | None
    ) -> Verified | Refused:
        """See `Totp.verify`."""

        async def spend(candidate: Candidate) -> Verified | Refused:
            async with self._backing.database.begin() as connection:
                await self.use(connection, candidate)
            return Verified(candidate.method)

        return await self.with_code(user_id, code, spend, context=context, address=address)

    async def step_up(
        self,
        session: Session,
        code: str,
        *,
        context: Context,
        request_id: str | None,
        address: str | None,
        refresh_token: str | None,
        client: Client,
    ) -> SteppedUp | Refused:
        """See `Totp.step_up`."""
        sessions, session_id = self._backing.sessions, session.session_id
        logs_in = context is not Context.SIGNING
        if request_id is not None:
            checked_identifier("request_id", request_id)  # before the code is used up for nothing

        async def spend(candidate: Candidate) -> SteppedUp | Refused:
            noted: list[StepUp] = []

            async def write(connection: AsyncConnection) -> None:
                await self.use(connection, candidate)
                shown = await sessions.set_totp_verified(
                    session_id, context, request_id, method=candidate.method, within=connection
                )
                if shown is None:
                    raise Abandoned(SESSION_ENDED)
                noted.append(shown)

            renewed = await sessions.renew(
                session_id,
                amr=with_shown(session.amr) if logs_in else None,
                user_agent=client.user_agent if logs_in else None,
                ip=client.ip if logs_in else None,
                also=write,
            )
            if renewed is None:
                return SESSION_ENDED
            rotated = None if refresh_token is None else await self._rotated(session_id, refresh_token)
            if isinstance(rotated, Refused):
                return rotated
            if rotated is None:
                return SteppedUp(noted[-1], renewed.access_token, renewed.access_expires_at)
            return SteppedUp(noted[-1], rotated.access_token, rotated.access_expires_at, rotated)

        return await self.with_code(session.user_id, code, spend, context=context, address=address)

    async def with_code(
        self,
        user_id: str,
        code: object,
        spend: Callable[[Candidate], Awaitable[_T | Refused]],
        *,
        context: Context,
        address: str | None = None,
        backup_codes: bool = True,
    ) -> _T | Refused:
        """Charge the limits, look at a code, and spend it: what `spend` answers. Wrong ones are counted.

        `spend` uses the code up in a transaction of its own. When it is left by `Abandoned`, the code stays unused.
        """
        purpose = Context.SIGNING if context is Context.BOTH else context
        guess = await self._guesses.charge(user_id, purpose, address)
        if isinstance(guess, Refused):
            return guess
        candidate = await self._judge(user_id, code, backup_codes=backup_codes)
        if isinstance(candidate, TotpConfig):
            return await self._wrong(candidate)
        if isinstance(candidate, Refused):
            return candidate
        try:
            answer = await spend(candidate)
        except Abandoned as abandoned:
            answer = abandoned.refused
        if answer is CODE_INVALID:
            return await self._wrong(candidate.config)
        await self._guesses.give_back(guess)
        if candidate.backup_code is not None:
            await forget_state(self._backing, user_id)
        return answer

    async def use(self, connection: AsyncConnection, candidate: Candidate) -> None:
        """Use a code up, in the caller's transaction. Raises `Abandoned` when somebody was faster."""
        config, now = candidate.config, self._backing.now()
        if candidate.step is not None:
            if not await use_step(connection, config, candidate.step, self._keyring, now=now):
                raise Abandoned(CODE_INVALID)
            return
        used = (
            candidate.backup_code is not None
            and await use_otherwise(connection, config, now=now)
            and await use_backup_code(connection, candidate.backup_code, now=now)
        )
        if not used:
            raise Abandoned(CODE_INVALID)
        left = await count_backup_codes(connection, config.user_id)
        await self._backing.note(connection, "mfa.backup_used", user_id=config.user_id, body={"left": left})

    async def _judge(
        self, user_id: str, code: object, *, backup_codes: bool
    ) -> Candidate | TotpConfig | Refused:
        """A code that is right; the factor that it is wrong for; or why none is looked at."""
        typed, backup = typed_code(code), typed_backup_code(code) if backup_codes else None
        async with self._backing.database.read() as connection:
            config = await find_config(connection, user_id, "enabled")
            if config is None:
                return CODE_INVALID
            if config.stopped:
                return TOTP_STOPPED
            left = await unused_backup_codes(connection, user_id) if backup is not None else []
        if typed is not None:
            step = matching_step(config.secret(self._keyring), typed, now_ms=self._backing.now_ms())
            return config if step is None else Candidate(config, step=step)
        for code_id, kept in left:
            if backup is not None and await self._backing.passwords.verify(kept, backup):
                return Candidate(config, backup_code=code_id)
        return config

    async def _rotated(self, session_id: str, refresh_token: str) -> Tokens | Refused | None:
        """The pair for a refresh token of this session; None where it is worth nothing, or nobody can say now.

        The code is used up by then, so only the end of the session is a refusal.
        """
        sessions, presented = self._backing.sessions, parse_refresh_token(refresh_token)
        if presented is None or presented.session_id != session_id:
            return None
        try:
            rotated = await sessions.rotate(refresh_token)
            if rotated is None:
                return SESSION_ENDED if await sessions.get(session_id) is None else None
        except (DatabaseError, StoreError) as error:
            logger.warning("a refresh token was not replaced at a step-up: %s", error.code)
            return None
        return rotated.tokens

    async def _wrong(self, config: TotpConfig) -> Refused:
        """Count a wrong code. The hundredth in a row stops the factor, which is audited."""
        user_id = config.user_id
        async with self._backing.database.begin() as connection:
            in_row = await count_failure(connection, config)
            if in_row == FAILURES_THAT_STOP:
                body = {"failed_in_row": in_row}
                await self._backing.note(connection, "mfa.stopped", user_id=user_id, body=body)
        if in_row == FAILURES_THAT_STOP:
            await forget_state(self._backing, user_id)
        return CODE_INVALID


def with_shown(amr: tuple[str, ...]) -> tuple[str, ...]:
    """How somebody has logged in, with a code shown besides."""
    return amr if SHOWN in amr else (*amr, SHOWN)


async def lock_user(connection: AsyncConnection, user_id: str) -> str | None:
    """The e-mail address of a user, whose row is locked now: changes of one account wait for each other. One query."""
    answer = await connection.execute(select(users.c.email).where(users.c.id == user_id).with_for_update())
    return answer.scalar_one_or_none()
