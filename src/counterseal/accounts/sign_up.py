"""Sign-up: a new account, and its first session."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.backing import Backing, Client
from counterseal.accounts.events import EmailVerificationRequested, UserCreated
from counterseal.accounts.log_in import LoggedIn
from counterseal.accounts.one_time_token import Purpose, add_token
from counterseal.accounts.password import weakness
from counterseal.accounts.refused import EMAIL_INVALID, EMAIL_TAKEN, NAME_INVALID, Refused
from counterseal.accounts.user import User, select_user, user_of
from counterseal.core.email import domain_of, normal_email
from counterseal.core.errors import Conflict
from counterseal.core.tokens import new_secret, uuid7
from counterseal.database.tables import users

LONGEST_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class _Newcomer:
    email: str
    name: str


async def sign_up(
    backing: Backing, *, email: str, password: str, full_name: str, client: Client
) -> LoggedIn | Refused:
    """Make an account and log its owner in, in one transaction."""
    newcomer = _newcomer(email, password, full_name)
    if isinstance(newcomer, Refused):
        return newcomer
    if client.limited_as is not None:
        admitted = await backing.admit("sign_up", client.limited_as)
        if isinstance(admitted, Refused):
            return admitted
    async with backing.database.read() as connection:
        taken = (await connection.execute(select(users.c.id).where(users.c.email == newcomer.email))).first()
    if taken is not None:
        return EMAIL_TAKEN
    password_hash = await backing.passwords.hash(password)
    token, made = new_secret(), list[User]()

    async def insert_user(connection: AsyncConnection) -> None:
        made.append(
            await _insert(backing, connection, newcomer, client, user_id=user_id, password_hash=password_hash)
        )
        data = {"email": newcomer.email}
        await add_token(connection, Purpose.VERIFY_EMAIL, token, user_id, now=made[0].created_at, data=data)

    user_id = str(uuid7(backing.now_ms()))
    try:
        created = await backing.sessions.create(
            user_id=user_id, user_agent=client.user_agent, ip=client.ip, also=insert_user
        )
    except Conflict:
        return EMAIL_TAKEN
    user = made[0]
    backing.events.emit(UserCreated(user_id, user.email))
    expires_at = user.created_at + Purpose.VERIFY_EMAIL.lives
    backing.events.emit(EmailVerificationRequested(user_id, user.email, token, expires_at))
    return LoggedIn.of(user, created)


async def _insert(
    backing: Backing,
    connection: AsyncConnection,
    newcomer: _Newcomer,
    client: Client,
    *,
    user_id: str,
    password_hash: str,
) -> User:
    """The row of the user, and its entry in the audit log."""
    now = backing.now()
    await connection.execute(
        insert(users).values(
            id=user_id,
            email=newcomer.email,
            full_name=newcomer.name,
            domain=domain_of(newcomer.email),
            password_hash=password_hash,
            last_login_at=now,
            created_at=now,
            updated_at=now,
        )
    )
    private = {"email": newcomer.email, "name": newcomer.name}
    await backing.note(connection, "user.created", user_id=user_id, private=private, client=client)
    return user_of((await connection.execute(select_user().where(users.c.id == user_id))).mappings().one())


def _newcomer(email: str, password: str, full_name: str) -> _Newcomer | Refused:
    address, name = normal_email(email), _normal_name(full_name)
    if address is None:
        return EMAIL_INVALID
    if name is None:
        return NAME_INVALID
    return weakness(password, email=address) or _Newcomer(address, name)


def _normal_name(text: str) -> str | None:
    name = unicodedata.normalize("NFC", text.strip())
    if len(name) > LONGEST_NAME or any(unicodedata.category(character)[0] == "C" for character in name):
        return None
    return name
