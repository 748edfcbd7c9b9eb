"""TOTP enrolment: a second factor is set up, confirmed, given new backup codes, and taken away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.backing import Backing
from counterseal.accounts.backup_codes import (
    hash_backup_codes,
    new_backup_codes,
    put_backup_codes,
    remove_backup_codes,
)
from counterseal.accounts.refused import (
    CODE_INVALID,
    SESSION_ENDED,
    TOTP_CONTEXT_MISSING,
    TOTP_ENFORCED,
    TOTP_NOT_ENABLED,
    TOTP_NOT_SET_UP,
    TOTP_REQUIRED,
    Refused,
)
from counterseal.accounts.totp_code import (
    matching_step,
    new_totp_secret,
    provisioning_uri,
    qr_svg,
    typed_code,
)
from counterseal.accounts.totp_config import TotpConfig, enable, find_config, put_pending, remove_configs
from counterseal.accounts.totp_guesses import Guesses
from counterseal.accounts.totp_policy import find_policy, forget_state
from counterseal.accounts.totp_verification import (
    SHOWN,
    Abandoned,
    Candidate,
    Verification,
    lock_user,
    with_shown,
)
from counterseal.core.keyring import Keyring
from counterseal.sessions.session import Context, Reason, Session, Tokens

_PURPOSE: Final = "enrolment"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A secret that waits for its first code, in the three forms that authenticators take. It is shown this once."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)
    qr_svg: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BackupCodes:
    """Backup codes, which are shown this once. `tokens` are new ones of the session, where it got some."""

    codes: tuple[str, ...] = field(repr=False)
    tokens: Tokens | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FirstCode:
    """A code of a factor that waits for its first one, with backup codes for it. Nothing is enabled yet."""

    pending: TotpConfig
    step: int
    codes: tuple[str, ...] = field(repr=False)
    hashes: Sequence[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Disabled:
    """There is no second factor any more. `tokens` are new ones; None when the session has ended meanwhile."""

    tokens: Tokens | None = field(repr=False)


class Enrolling:
    """Changes second factors."""

    def __init__(
        self,
        backing: Backing,
        *,
        keyring: Keyring,
        guesses: Guesses,
        verification: Verification,
        issuer: str,
    ) -> None:
        self._backing = backing
        self._keyring = keyring
        self._guesses = guesses
        self._verification = verification
        self._issuer = issuer

    async def set_up(self, session: Session) -> Enrolment | Refused:
        """See `Totp.set_up`."""
        current = await self._backing.recent(session)
        if isinstance(current, Refused):
            return current
        return await self.begin(current.user_id, shown=SHOWN in current.amr)

    async def begin(self, user_id: str, *, shown: bool) -> Enrolment | Refused:
        """Put a new secret aside for a user. Where a factor is enabled it must have been `shown`.

        One round trip; one transaction.
        """
        backing, secret = self._backing, new_totp_secret()
        async with backing.database.begin() as connection:
            email = await lock_user(connection, user_id)
            if email is None:
                return SESSION_ENDED
            if not shown and await find_config(connection, user_id, "enabled"):
                return TOTP_REQUIRED
            await put_pending(connection, user_id, secret, self._keyring, now=backing.now())
        await forget_state(backing, user_id)
        uri = provisioning_uri(secret, account=email, issuer=self._issuer)
        return Enrolment(secret, uri, qr_svg(uri))

    async def confirm(
        self, session: Session, code: str, *, login: bool, signing: bool
    ) -> BackupCodes | Refused:
        """See `Totp.confirm`."""
        if not (login or signing):
            return TOTP_CONTEXT_MISSING
        current = await self._backing.recent(session)
        if isinstance(current, Refused):
            return current
        first = await self.prove(current.user_id, code, address=None)
        if isinstance(first, Refused):
            return first

        async def write(connection: AsyncConnection) -> None:
            await lock_user(connection, current.user_id)
            await self.enable(connection, first, login=login, signing=signing, shown=SHOWN in current.amr)

        try:
            # A factor that no log-in asks for makes no log-in with two factors.
            tokens = await self._change(current, write, amr=with_shown(current.amr) if login else None)
        except Abandoned as abandoned:
            return abandoned.refused
        return BackupCodes(first.codes, tokens)

    async def prove(self, user_id: str, code: object, *, address: str | None) -> FirstCode | Refused:
        """The first code of what is pending for a user, and backup codes to go with it. Nothing is enabled by it."""
        guess = await self._guesses.charge(user_id, _PURPOSE, address)
        if isinstance(guess, Refused):
            return guess
        found = await self._first_code(user_id, code)
        if isinstance(found, Refused):
            return found
        await self._guesses.give_back(guess)
        codes = new_backup_codes()
        return FirstCode(*found, codes, await hash_backup_codes(codes, self._backing.passwords))

    async def enable(
        self, connection: AsyncConnection, first: FirstCode, *, login: bool, signing: bool, shown: bool
    ) -> None:
        """Enable what was proved, in a transaction that has locked the user. Raises `Abandoned`.

        What was enabled before is replaced, if it was `shown`.
        """
        backing, user_id, step = self._backing, first.pending.user_id, first.step
        now, before = backing.now(), await find_config(connection, user_id, "enabled")
        if before is not None and not shown:
            raise Abandoned(TOTP_REQUIRED)
        if not await enable(connection, first.pending, step=step, login=login, signing=signing, now=now):
            raise Abandoned(TOTP_NOT_SET_UP)
        await put_backup_codes(connection, user_id, first.hashes, now=now)
        body = {"login": login, "replaced": before is not None, "signing": signing}
        await backing.note(connection, "mfa.enabled", user_id=user_id, body=body)

    async def disable(self, session: Session, code: str) -> Disabled | Refused:
        """See `Totp.disable`."""
        current = await self._backing.recent(session)
        if isinstance(current, Refused):
            return current
        backing, user_id = self._backing, current.user_id
        async with backing.database.read() as connection:
            if await find_config(connection, user_id, "enabled") is None:
                return TOTP_NOT_ENABLED
            policy = await find_policy(connection, user_id, now=backing.now())
        if policy.enforced - policy.exempt:
            return TOTP_ENFORCED

        async def spend(candidate: Candidate) -> Disabled:
            async def write(connection: AsyncConnection) -> None:
                await lock_user(connection, user_id)
                await self._verification.use(connection, candidate)
                await remove_configs(connection, user_id)
                await remove_backup_codes(connection, user_id)
                body = {"by": user_id, "method": candidate.method}
                await backing.note(connection, "mfa.disabled", user_id=user_id, body=body)

            return Disabled(await self._change(current, write, amr=with_shown(current.amr)))

        return await self._verification.with_code(user_id, code, spend, context=Context.LOGIN)

    async def new_backup_codes(self, session: Session, code: str) -> BackupCodes | Refused:
        """See `Totp.new_backup_codes`."""
        backing = self._backing
        current = await backing.sessions.get(session.session_id, fresh=True)
        if current is None:
            return SESSION_ENDED
        user_id = current.user_id
        async with backing.database.read() as connection:
            if await find_config(connection, user_id, "enabled") is None:
                return TOTP_NOT_ENABLED

        async def spend(candidate: Candidate) -> BackupCodes:
            codes = new_backup_codes()
            hashes = await hash_backup_codes(codes, backing.passwords)
            async with backing.database.begin() as connection:
                await lock_user(connection, user_id)
                await self._verification.use(connection, candidate)
                await put_backup_codes(connection, user_id, hashes, now=backing.now())
                await backing.note(connection, "mfa.backup_codes_renewed", user_id=user_id)
            await forget_state(backing, user_id)
            return BackupCodes(codes)

        return await self._verification.with_code(
            user_id, code, spend, context=Context.LOGIN, backup_codes=False
        )

    async def remove(self, user_id: str, *, by: str) -> bool:
        """See `Totp.remove`."""
        removed: list[bool] = []

        async def write(connection: AsyncConnection) -> None:
            await lock_user(connection, user_id)
            removed.append(await remove_configs(connection, user_id))
            await remove_backup_codes(connection, user_id)
            if removed[-1]:
                await self._backing.note(connection, "mfa.disabled", user_id=user_id, body={"by": by})

        await self._backing.sessions.revoke_all(user_id, reason=Reason.MFA_CHANGE, also=write)
        await forget_state(self._backing, user_id)
        return removed == [True]

    async def _first_code(self, user_id: str, code: object) -> tuple[TotpConfig, int] | Refused:
        """What is pending, and the step of the first code of it."""
        async with self._backing.database.read() as connection:
            pending = await find_config(connection, user_id, "pending")
        if pending is None:
            return TOTP_NOT_SET_UP
        typed = typed_code(code)
        if typed is None:
            return CODE_INVALID
        step = matching_step(pending.secret(self._keyring), typed, now_ms=self._backing.now_ms())
        return CODE_INVALID if step is None else (pending, step)

    async def _change(
        self,
        session: Session,
        write: Callable[[AsyncConnection], Awaitable[None]],
        *,
        amr: tuple[str, ...] | None = None,
    ) -> Tokens | None:
        """End the other sessions in the transaction of a change, and give this one new tokens."""
        sessions = self._backing.sessions
        await sessions.revoke_others(session.session_id, reason=Reason.MFA_CHANGE, also=write)
        await forget_state(self._backing, session.user_id)
        rotated = await sessions.reissue(session.session_id, amr=amr)
        return None if rotated is None else rotated.tokens
