"""Authentication: a log-in, with its second half where a TOTP code is needed, and what a wrong password costs."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.account import Account, find_account
from counterseal.accounts.backing import Backing, Client, Lost
from counterseal.accounts.events import AccountLocked
from counterseal.accounts.lockout import end_row, find_lock, note_wrong_password
from counterseal.accounts.log_in import EnrolledLogIn, LoggedIn, TotpNeeded
from counterseal.accounts.one_time_token import Purpose, add_token, find_token, use_token
from counterseal.accounts.refused import INVALID_CREDENTIALS, TICKET_INVALID, Refused, locked
from counterseal.accounts.totp import Totp
from counterseal.accounts.totp_enrolment import Enrolment
from counterseal.accounts.totp_policy import find_policy, forget_state
from counterseal.accounts.totp_verification import Abandoned
from counterseal.accounts.user import User
from counterseal.core.email import counted_as, normal_email
from counterseal.core.errors import DatabaseError
from counterseal.core.tokens import new_secret
from counterseal.database.tables import users
from counterseal.ratelimit.decision import Decision
from counterseal.sessions.backing import Also
from counterseal.sessions.rows import lock_sessions
from counterseal.sessions.session import Context, Profile, Reason

PASSWORD_ONLY: Final = ("pwd",)
WITH_TOTP: Final = ("pwd", "otp")
"""How somebody has logged in (RFC 8176)."""


class _CodeNeeded(Exception):
    """Leaves the transaction of a log-in by password alone."""


class Authentication:
    """Log-ins. Whatever is slow (argon2id, Redis) happens outside of a transaction."""

    def __init__(self, backing: Backing, *, totp: Totp) -> None:
        self._backing = backing
        self._totp = totp

    async def log_in(
        self, *, email: str, password: str, client: Client, remember: bool, replacing: str | None
    ) -> LoggedIn | TotpNeeded | Refused:
        """See `Accounts.log_in`."""
        backing = self._backing
        address = normal_email(email)
        if address is None:
            await backing.passwords.verify(None, password)
            return INVALID_CREDENTIALS
        account = await self.prove(address, password, client=client, asked="log_in")
        if isinstance(account, Refused):
            return account
        kept = account.password_hash
        renewed = kept
        if kept is not None and backing.passwords.is_outdated(kept):
            renewed = await backing.passwords.hash(password)
        if await self._totp.needed(account.id, Context.LOGIN):
            return await self._begin(account, renewed, remember=remember)

        async def admit(connection: AsyncConnection) -> None:
            await self._admit(connection, account, password_hash=renewed, last_login_at=backing.now())
            policy = await find_policy(connection, account.id, now=backing.now())
            if policy.needs(Context.LOGIN):
                raise _CodeNeeded

        try:
            return await self._create(
                account.user, client, PASSWORD_ONLY, remember=remember, replacing=replacing, also=admit
            )
        except _CodeNeeded:  # for a second factor that was enabled since the policy was read
            return await self._begin(account, renewed, remember=remember)

    async def finish_log_in(
        self, *, ticket: str, code: str, client: Client, replacing: str | None
    ) -> LoggedIn | Refused:
        """See `Accounts.finish_log_in`."""
        backing = self._backing
        half = await self._half(ticket)
        if isinstance(half, Refused):
            return half
        account, remember = half
        verified = await self._totp.verify(account.id, code, context=Context.LOGIN, address=client.limited_as)
        if isinstance(verified, Refused):
            if (
                verified.retry_after is None
            ):  # a code was looked at; calls over a limit would fill the audit log
                body = {"asked": "finish_log_in", "reason": verified.code}
                async with backing.database.begin() as connection:
                    await backing.note(
                        connection, "login.failed", user_id=account.id, body=body, client=client
                    )
            return verified

        async def admit(connection: AsyncConnection) -> None:
            await self._admit(connection, account, last_login_at=backing.now())
            if not await use_token(connection, Purpose.LOG_IN, ticket, now=backing.now()):
                raise Lost(TICKET_INVALID)

        made = await self._create(
            account.user, client, WITH_TOTP, remember=remember, replacing=replacing, also=admit
        )
        if isinstance(made, LoggedIn):
            await backing.sessions.set_totp_verified(
                made.session.session_id, Context.LOGIN, method=verified.method
            )
        return made

    async def set_up_totp(self, *, ticket: str) -> Enrolment | Refused:
        """See `Accounts.set_up_totp`."""
        half = await self._half(ticket)
        if isinstance(half, Refused):
            return half
        return await self._totp.enrolling.begin(half[0].id, shown=False)

    async def confirm_totp(
        self, *, ticket: str, code: str, signing: bool, client: Client, replacing: str | None
    ) -> EnrolledLogIn | Refused:
        """See `Accounts.confirm_totp`."""
        backing, enrolling = self._backing, self._totp.enrolling
        half = await self._half(ticket)
        if isinstance(half, Refused):
            return half
        account, remember = half
        first = await enrolling.prove(account.id, code, address=client.limited_as)
        if isinstance(first, Refused):
            return first

        async def admit(connection: AsyncConnection) -> None:
            await self._admit(connection, account, last_login_at=backing.now())
            if not await use_token(connection, Purpose.LOG_IN, ticket, now=backing.now()):
                raise Lost(TICKET_INVALID)
            await lock_sessions(connection, account.id)  # before the audit log, as everybody does
            await enrolling.enable(connection, first, login=True, signing=signing, shown=False)

        try:
            made = await self._create(
                account.user, client, WITH_TOTP, remember=remember, replacing=replacing, also=admit
            )
        except Abandoned as abandoned:
            return abandoned.refused
        if isinstance(made, Refused):
            return made
        session_id = made.session.session_id
        await backing.sessions.revoke_others(session_id, reason=Reason.MFA_CHANGE)
        with suppress(
            DatabaseError
        ):  # the session says how its user came in, and the codes are shown but once
            await backing.sessions.set_totp_verified(session_id, Context.LOGIN)
        await forget_state(backing, account.id)
        return EnrolledLogIn(made, first.codes)

    async def _half(self, ticket: str) -> tuple[Account, bool] | Refused:
        """Who has begun this log-in, and whether for a longer session. One transaction that reads."""
        backing = self._backing
        async with backing.database.read() as connection:
            half = await find_token(connection, Purpose.LOG_IN, ticket, now=backing.now())
            account = None if half is None else await find_account(connection, user_id=half.user_id)
        if half is None or account is None:
            return TICKET_INVALID
        return account.closed(backing.now()) or (account, half.data == {"remember": True})

    async def prove(self, email: str, password: str, *, client: Client, asked: str) -> Account | Refused:
        """The account whose password this is, and which may log in. A wrong one is counted, audited, and may lock.

        An address without an account is answered in the same way, after as long. `asked` says in the audit log what
        the password was asked for. At most two round trips; one transaction that reads, and one for a wrong password.
        """
        backing = self._backing
        identifier = f"account:{counted_as(email)}"
        # Before the password is looked at: however many come at once, no more than these are tried.
        charged = await backing.admit("auth", identifier)
        if isinstance(charged, Refused):
            return charged
        async with backing.database.read() as connection:
            account = await find_account(connection, email=email)
            until = await find_lock(connection, email, account, now=backing.now())
        if until is not None:
            return locked(until - backing.now())
        kept = None if account is None else account.password_hash
        if not await backing.passwords.verify(kept, password) or account is None:
            return await self._wrong(email, client=client, asked=asked)
        await self._give_back(identifier, charged)
        closed = account.closed(backing.now())
        return account if closed is None else closed

    async def _wrong(self, email: str, *, client: Client, asked: str) -> Refused:
        backing = self._backing
        async with backing.database.begin() as connection:
            now = backing.now()
            account = await find_account(connection, email=email, lock=True)
            in_row, until = await note_wrong_password(connection, email, account, now=now)
            if in_row:
                await backing.note(
                    connection,
                    "login.failed",
                    user_id=None if account is None else account.id,
                    body={
                        "asked": asked,
                        "in_row": in_row,
                        "locked": until is not None,
                        "reason": INVALID_CREDENTIALS.code,
                    },
                    private={"email": email},
                    client=client,
                )
        if until is None:
            return INVALID_CREDENTIALS
        if in_row and account is not None:
            backing.events.emit(AccountLocked(account.id, email, until))
        return locked(max(until - now, timedelta(milliseconds=1)))

    async def _give_back(self, identifier: str, charged: Decision) -> None:
        await self._backing.rate_limits.auth.refund(identifier, decision=charged)

    async def _begin(
        self, account: Account, password_hash: str | None, *, remember: bool
    ) -> TotpNeeded | Refused:
        """The first half of a log-in."""
        backing = self._backing
        ticket, data = new_secret(), {"remember": remember}
        try:
            async with backing.database.begin() as connection:
                await self._admit(connection, account, password_hash=password_hash)
                now = backing.now()
                await add_token(connection, Purpose.LOG_IN, ticket, account.id, now=now, data=data)
        except Lost as lost:
            return lost.refused
        return TotpNeeded(ticket, now + Purpose.LOG_IN.lives, await self._totp.enrolled(account.id))

    async def _admit(self, connection: AsyncConnection, account: Account, **values: Any) -> None:
        """Hold the row of a user, end the row of wrong passwords, and set columns of it.

        Raises `Lost` when somebody has changed the password, or locked or suspended the account, since it was read.
        """
        found = await find_account(connection, user_id=account.id, lock=True)
        if found is None or found.password_hash != account.password_hash:
            raise Lost(INVALID_CREDENTIALS)
        if (closed := found.closed(self._backing.now())) is not None:
            raise Lost(closed)
        await end_row(connection, account.user.email)
        await connection.execute(update(users).where(users.c.id == account.id).values(**values))

    async def _create(
        self,
        user: User,
        client: Client,
        amr: tuple[str, ...],
        *,
        remember: bool,
        replacing: str | None,
        also: Also,
    ) -> LoggedIn | Refused:
        profile = Profile.REMEMBER if remember else Profile.STANDARD
        try:
            created = await self._backing.sessions.create(
                user_id=user.id,
                user_agent=client.user_agent,
                ip=client.ip,
                profile=profile,
                amr=amr,
                replacing=replacing,
                also=also,
            )
        except Lost as lost:
            return lost.refused
        return LoggedIn.of(user, created)
