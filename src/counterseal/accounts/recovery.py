"""Recovery: another password, by its owner or by a link in a mail, and the proof that an address is somebody's."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy import ColumnElement, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.account import Account, find_account
from counterseal.accounts.authentication import Authentication
from counterseal.accounts.backing import Backing, Client, Lost
from counterseal.accounts.events import EmailVerificationRequested, PasswordChanged, PasswordResetRequested
from counterseal.accounts.lockout import end_row
from counterseal.accounts.log_in import LoggedIn
from counterseal.accounts.one_time_token import Purpose, add_token, find_token, use_token, void_tokens
from counterseal.accounts.password import weakness
from counterseal.accounts.refused import (
    INVALID_CREDENTIALS,
    SESSION_ENDED,
    TOKEN_INVALID,
    USER_UNKNOWN,
    WRONG_PASSWORD,
    Refused,
)
from counterseal.accounts.user import Status, User
from counterseal.core.email import counted_as, normal_email
from counterseal.core.tokens import hash_token, new_secret
from counterseal.database.columns import Bytes, Ts
from counterseal.database.tables import one_time_tokens, users
from counterseal.sessions.session import Reason, Session


class Recovery:
    """Changes of what somebody logs in with."""

    def __init__(self, backing: Backing, *, authentication: Authentication) -> None:
        self._backing = backing
        self._authentication = authentication

    async def change_password(self, session: Session, *, current: str, new: str) -> LoggedIn | Refused:
        """See `Accounts.change_password`."""
        backing = self._backing
        recent = await backing.recent(session)
        if isinstance(recent, Refused):
            return recent
        async with backing.database.read() as connection:
            account = await find_account(connection, user_id=session.user_id)
        if account is None:
            return SESSION_ENDED
        email, client = account.user.email, Client.of(session.ip, session.user_agent)
        if (refusal := weakness(new, email=email)) is not None:
            return refusal
        proved = await self._authentication.prove(email, current, client=client, asked="password_change")
        if isinstance(proved, Refused):
            return WRONG_PASSWORD if proved == INVALID_CREDENTIALS else proved
        new_hash = await backing.passwords.hash(new)

        async def change(connection: AsyncConnection) -> None:
            await self._set_password(connection, proved, new_hash, email_proved=False)
            await backing.note(
                connection, "password.changed", user_id=proved.id, body={"by": "owner"}, client=client
            )

        try:
            await backing.sessions.revoke_others(
                session.session_id, reason=Reason.PASSWORD_CHANGE, also=change
            )
        except Lost as lost:
            return lost.refused
        backing.events.emit(PasswordChanged(proved.id, email, by_reset=False))
        # It stays as old a log-in as it was: a password alone must not open what asks for a fresh one.
        rotated = await backing.sessions.reissue(session.session_id)
        return SESSION_ENDED if rotated is None else LoggedIn(proved.user, rotated.session, rotated.tokens)

    async def request_password_reset(self, *, email: str, client: Client) -> None:
        """See `Accounts.request_password_reset`."""
        backing = self._backing
        address = normal_email(email)
        if address is None or not await self._may_mail(address):
            return
        token, now = new_secret(), backing.now()
        expires_at = now + Purpose.RESET_PASSWORD.lives
        # The same statements and one commit for every address, so that the time it takes tells nothing.
        async with backing.database.begin() as connection:
            user_id = await _add_token_of(connection, address, token, expires_at)
            await backing.note(
                connection,
                "password.reset_requested",
                user_id=user_id,
                private={"email": address},
                client=client,
            )
        if user_id is not None:
            backing.events.emit(PasswordResetRequested(user_id, address, token, expires_at))

    async def reset_password(self, *, token: str, new: str, client: Client) -> Refused | None:
        """See `Accounts.reset_password`."""
        backing = self._backing
        async with backing.database.read() as connection:
            found = await find_token(connection, Purpose.RESET_PASSWORD, token, now=backing.now())
            account = None if found is None else await find_account(connection, user_id=found.user_id)
        if account is None or account.user.status is not Status.ACTIVE:
            return TOKEN_INVALID
        if (refusal := weakness(new, email=account.user.email)) is not None:
            return refusal
        new_hash = await backing.passwords.hash(new)

        async def change(connection: AsyncConnection) -> None:
            if not await use_token(connection, Purpose.RESET_PASSWORD, token, now=backing.now()):
                raise Lost(TOKEN_INVALID)
            await self._set_password(connection, account, new_hash, email_proved=True)
            await backing.note(
                connection, "password.changed", user_id=account.id, body={"by": "reset"}, client=client
            )

        try:
            await backing.sessions.revoke_all(account.id, reason=Reason.PASSWORD_CHANGE, also=change)
        except Lost as lost:
            return lost.refused
        await backing.forget_profile(account.id)
        backing.events.emit(PasswordChanged(account.id, account.user.email, by_reset=True))
        return None

    async def request_email_verification(self, user_id: str) -> Refused | None:
        """See `Accounts.request_email_verification`."""
        backing = self._backing
        async with backing.database.read() as connection:
            account = await find_account(connection, user_id=user_id)
        if account is None or account.user.status is not Status.ACTIVE:
            return USER_UNKNOWN
        if account.user.email_verified:
            return None
        email = account.user.email
        admitted = await backing.admit("account_mail", f"account:{counted_as(email)}")
        if isinstance(admitted, Refused):
            return admitted
        token, now = new_secret(), backing.now()
        async with backing.database.begin() as connection:
            data = {"email": email}
            await add_token(connection, Purpose.VERIFY_EMAIL, token, user_id, now=now, data=data)
        expires_at = now + Purpose.VERIFY_EMAIL.lives
        backing.events.emit(EmailVerificationRequested(user_id, email, token, expires_at))
        return None

    async def verify_email(self, *, token: str) -> User | Refused:
        """See `Accounts.verify_email`."""
        backing = self._backing
        now = backing.now()
        async with backing.database.begin() as connection:
            found = await find_token(connection, Purpose.VERIFY_EMAIL, token, now=now)
            if found is None:
                return TOKEN_INVALID
            account = await find_account(connection, user_id=found.user_id, lock=True)
            # The token vouches for the address that it was sent to, whatever the account has now.
            if account is None or found.data != {"email": account.user.email}:
                return TOKEN_INVALID
            if not await use_token(connection, Purpose.VERIFY_EMAIL, token, now=now):
                return TOKEN_INVALID
            await connection.execute(
                update(users)
                .where(users.c.id == account.id)
                .values(email_verified_at=now, updated_at=now, version=users.c.version + 1)
            )
            await backing.note(connection, "email.verified", user_id=account.id)
        await backing.forget_profile(account.id)
        return replace(account.user, email_verified_at=now)

    async def _may_mail(self, email: str) -> bool:
        admitted = await self._backing.admit("account_mail", f"account:{counted_as(email)}")
        return not isinstance(admitted, Refused)

    async def _set_password(
        self, connection: AsyncConnection, account: Account, new_hash: str, *, email_proved: bool
    ) -> None:
        """Set the hash unless the password or the account has changed meanwhile; then it raises `Lost`."""
        now = self._backing.now()
        kept = account.password_hash
        unchanged: ColumnElement[bool] = (
            users.c.password_hash.is_(None) if kept is None else users.c.password_hash == kept
        )
        verified = func.coalesce(users.c.email_verified_at, literal(now, Ts))
        changed = await connection.execute(
            update(users)
            .where(users.c.id == account.id, users.c.status == Status.ACTIVE, unchanged)
            .values(
                password_hash=new_hash,
                locked_until=None,
                email_verified_at=verified if email_proved else users.c.email_verified_at,
                updated_at=now,
                version=users.c.version + 1,
            )
            .returning(users.c.id)
        )
        if changed.one_or_none() is None:
            raise Lost(TOKEN_INVALID if email_proved else INVALID_CREDENTIALS)
        await end_row(connection, account.user.email)
        # What was begun with the old password ends with it, and an older link opens nothing.
        await void_tokens(connection, account.id, (Purpose.LOG_IN, Purpose.RESET_PASSWORD), now=now)


async def _add_token_of(
    connection: AsyncConnection, email: str, token: str, expires_at: datetime
) -> str | None:
    """Keep a token for whoever has this address: the id of the user; None for an address that nobody has."""
    columns = ["token_hash", "user_id", "purpose", "expires_at"]
    whose = select(
        literal(hash_token(token), Bytes),
        users.c.id,
        literal(Purpose.RESET_PASSWORD.value),
        literal(expires_at, Ts),
    ).where(users.c.email == email, users.c.status == Status.ACTIVE)
    statement = insert(one_time_tokens).from_select(columns, whose).returning(one_time_tokens.c.user_id)
    return (await connection.execute(statement)).scalar_one_or_none()
