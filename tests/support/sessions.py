"""Sessions: a process of the application with its store, its database and its session service, and ways to stop it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from counterseal.audit.service import Audit
from counterseal.core.keyring import Keyring
from counterseal.core.settings import SessionSettings
from counterseal.database.engine import Database
from counterseal.database.outbox import Outbox
from counterseal.sessions.service import Sessions
from counterseal.sessions.session import Created
from counterseal.store.base import Store
from counterseal.store.keys import Keys

KEYS = Keys()
SECRET_KEYS = SecretStr("k1:" + "A" * 43 + "=")
"""A key that protects nothing."""

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/17.5 Mobile/15E148 Safari/604.1"
)


@dataclass
class Process:
    """What one process of an application has. `events` are those that it was told of."""

    store: Store
    database: Database
    sessions: Sessions
    audit: Audit
    outbox: Outbox
    events: list[Any] = field(default_factory=list[Any])

    async def log_in(self, user_id: str = "ada", **options: Any) -> Created:
        """A session of a user, who is made when absent."""
        given = {"email": f"{user_id}@example.com", "user_agent": FIREFOX, "ip": "192.0.2.1", **options}
        return await self.sessions.create(user_id=user_id, **given)

    def told(self, kind: type) -> list[Any]:
        """The events of a class, in order."""
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def process(
    store: Store, database: Database, *, settings: SessionSettings | None = None, relay: bool = True
) -> AsyncIterator[Process]:
    """A process on a store and a database that are open. Without `relay` its outbox does nothing."""
    keyring = Keyring(SECRET_KEYS)
    await keyring.open()
    audit = Audit(database, now_ms=store.now_ms)
    events: list[Any] = []
    outboxes: list[Outbox] = []

    def wake() -> None:
        outboxes[0].wake()

    sessions = Sessions(
        store,
        database,
        keys=KEYS,
        keyring=keyring,
        settings=settings or SessionSettings(),
        audit=audit.append,
        audit_many=audit.append_many,
        emit=events.append,
        wake=wake,
    )
    outbox = Outbox(database, now_ms=store.now_ms, handlers=sessions.handlers)
    outboxes.append(outbox)
    async with AsyncExitStack() as stack:
        if relay:
            await stack.enter_async_context(outbox)
        await stack.enter_async_context(sessions)
        yield Process(store, database, sessions, audit, outbox, events)


class Pause:
    """Stops whoever calls a method, before it does anything, until it is let go: `Pause(copies, "fill")`.

    With `after`, the method does what it does, and its caller waits for the answer.
    """

    def __init__(self, owner: object, name: str, *, after: bool = False, times: int = 1) -> None:
        self._reached = asyncio.Event()
        self._released = asyncio.Event()
        self._left = times
        original: Callable[..., Any] = getattr(owner, name)

        async def paused(*arguments: Any, **options: Any) -> Any:
            if self._left <= 0:
                return await original(*arguments, **options)
            self._left -= 1
            if after:
                answer = await original(*arguments, **options)
                await self._stop()
                return answer
            await self._stop()
            return await original(*arguments, **options)

        setattr(owner, name, paused)

    async def reached(self) -> None:
        """Return when somebody stands there."""
        async with asyncio.timeout(30):
            await self._reached.wait()

    def release(self) -> None:
        """Let everybody go on."""
        self._released.set()

    async def _stop(self) -> None:
        self._reached.set()
        async with asyncio.timeout(30):
            await self._released.wait()
