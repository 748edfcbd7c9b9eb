"""Accounts for tests: on a server and a database of the kit, with cheap password hashes and a clock that can travel."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import pyotp
from pydantic import SecretStr
from sqlalchemy import select

from counterseal.accounts.attempts import Attempts
from counterseal.accounts.events import (
    AccountLocked,
    EmailVerificationRequested,
    PasswordChanged,
    PasswordResetRequested,
    UserCreated,
    UserDeleted,
    UserRestored,
    UserSuspended,
)
from counterseal.accounts.log_in import LoggedIn
from counterseal.accounts.password import Passwords
from counterseal.accounts.policies import COUNTED_ELSEWHERE, POLICIES
from counterseal.accounts.service import Accounts
from counterseal.accounts.totp import BackupCodes, Enrolment
from counterseal.audit.chain import AuditEntry
from counterseal.audit.service import Audit
from counterseal.cache.service import Cache
from counterseal.core.events import Events
from counterseal.core.keyring import Keyring
from counterseal.core.settings import SessionSettings
from counterseal.database.engine import Database
from counterseal.database.tables import users
from counterseal.ratelimit.service import RateLimits
from counterseal.sessions.service import Sessions
from counterseal.store.keys import Keys
from counterseal.store.valkey import NativeStore
from support.servers import Server
from support.stores import native_store, travel

EMAIL = "ada@example.com"
PASSWORD = "correct horse battery"
ELSE = "another horse entirely"
WRONG = "a wrong horse altogether"

EVENTS = (
    AccountLocked,
    EmailVerificationRequested,
    PasswordChanged,
    PasswordResetRequested,
    UserCreated,
    UserDeleted,
    UserRestored,
    UserSuspended,
)

_Event = TypeVar("_Event")


@dataclass
class House:
    """An `Accounts` and everything under it, open."""

    accounts: Accounts
    sessions: Sessions
    store: NativeStore
    database: Database
    cache: Cache
    rate_limits: RateLimits
    audit: Audit
    told: list[object] = field(default_factory=list)

    def travel(self, by: timedelta) -> None:
        """Move the clock of everything forward."""
        travel(self.store, by)

    def begin_an_hour(self) -> None:
        """Move the clock to the next whole hour, so that no window ends in the middle of a test."""
        self.travel(timedelta(milliseconds=3_600_000 - self.store.now_ms() % 3_600_000))

    def heard(self, kind: type[_Event]) -> list[_Event]:
        """The events of a type so far."""
        return [event for event in self.told if isinstance(event, kind)]

    async def sign_up(self, email: str = EMAIL, password: str = PASSWORD, **more: Any) -> LoggedIn:
        """A new account."""
        made = await self.accounts.sign_up(email=email, password=password, **more)
        assert isinstance(made, LoggedIn), made
        return made

    async def log_in(self, email: str = EMAIL, password: str = PASSWORD, **more: Any) -> Any:
        """A log-in, refused or not."""
        return await self.accounts.log_in(email=email, password=password, **more)

    def code(self, secret: str) -> str:
        """What an authenticator shows now."""
        return pyotp.TOTP(secret).at(self.store.now_ms() // 1000)

    async def with_totp(self, made: LoggedIn) -> tuple[str, tuple[str, ...]]:
        """Enable a second factor: the secret of its authenticator, and the backup codes."""
        enrolment = await self.accounts.totp.set_up(made.session)
        assert isinstance(enrolment, Enrolment), enrolment
        enabled = await self.accounts.totp.confirm(made.session, self.code(enrolment.secret))
        assert isinstance(enabled, BackupCodes), enabled
        self.travel(timedelta(seconds=30))  # each code is good once
        return enrolment.secret, enabled.codes

    async def column(self, name: str, email: str = EMAIL) -> Any:
        """A column of a user, as it is in the database."""
        async with self.database.read() as connection:
            return (
                await connection.execute(select(users.c[name]).where(users.c.email == email))
            ).scalar_one()

    async def entries(self, stream: str, action: str) -> list[AuditEntry]:
        """What the audit log has of an action in a stream."""
        entries = await self.audit.read(stream, limit=1000)
        return [entry for entry in entries if entry.action == action]


@asynccontextmanager
async def accounts_on(
    server: Server, database: Database, *, settings: SessionSettings | None = None, **costs: int
) -> AsyncIterator[House]:
    """Accounts on an open database, as one process has them."""
    settings, keys, told = settings or SessionSettings(), Keys(), list[object]()
    key = base64.b64encode(b"k" * 32).decode()
    keyring = Keyring(SecretStr(f"test:{key}"))
    await keyring.open()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(native_store(server))
        cache = await stack.enter_async_context(Cache(store, keys=keys))
        attempts = Attempts(database, now_ms=store.now_ms, policies=COUNTED_ELSEWHERE)
        rate_limits = await stack.enter_async_context(
            RateLimits(
                store, keys=keys, policies=POLICIES, elsewhere=dict.fromkeys(COUNTED_ELSEWHERE, attempts)
            )
        )
        audit = Audit(database, now_ms=store.now_ms)
        events = Events(dict.fromkeys(EVENTS, (told.append,)))
        sessions = await stack.enter_async_context(
            Sessions(store, database, keys=keys, keyring=keyring, settings=settings, audit=audit.append)
        )
        accounts = Accounts(
            database,
            sessions=sessions,
            rate_limits=rate_limits,
            audit=audit,
            events=events,
            cache=cache,
            now_ms=store.now_ms,
            keyring=keyring,
            passwords=Passwords(**{"memory_kib": 64, "passes": 1, **costs}),
        )
        yield House(accounts, sessions, store, database, cache, rate_limits, audit, told)
