"""Tracking: the server itself tells which keys below some prefixes have changed, on a connection of its own.

`CLIENT TRACKING … BCAST` of RESP3: the server remembers prefixes, not who read what, so a key costs it no memory. What
changes while the connection is lost is not told. So a loss is told at once, and once the connection is back everything
counts as changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, Final

from counterseal.core.background import Background, full_jitter, wait_for_event
from counterseal.core.errors import CommandError, CountersealError, StoreUnavailable
from counterseal.store.connection import Connection
from counterseal.store.link import FIRST_PAUSE_S, LONGEST_PAUSE_S, Link

logger = logging.getLogger(__name__)

_PING_EVERY_S = 1.0
_ANSWER_WITHIN = timedelta(seconds=1)
_STEADY_AFTER_S: Final = 1.0
"""A connection that was lost sooner is not replaced at once."""


class Tracking(AbstractAsyncContextManager[None]):
    """Hears of the changes of keys for as long as it is entered."""

    def __init__(
        self,
        link: Link,
        prefixes: Sequence[str],
        *,
        on_change: Callable[[str | None], None],
        on_loss: Callable[[], None],
        among: set[Tracking],
    ) -> None:
        """`among` has those that are entered, which the store closes when it is closed itself."""
        if not prefixes:
            raise ValueError("expected at least one prefix of keys to hear of")
        self._link = link
        # The server refuses prefixes of which one covers another.
        self._prefixes = [
            prefix
            for prefix in dict.fromkeys(prefixes)
            if not any(prefix != wider and prefix.startswith(wider) for wider in prefixes)
        ]
        self._on_change = on_change
        self._on_loss = on_loss
        self._among = among
        self._background = Background()
        self._connection: Connection | None = None
        self._lost = asyncio.Event()
        self._began = False
        """Whether changes are delivered: after a loss, everything is told to have changed first."""
        self._connected_at = 0.0
        self._attempt = 0

    async def __aenter__(self) -> None:
        if not self._link.available:
            raise StoreUnavailable("Redis is not available")
        self._began = True
        await self._connect()
        if not self._link.available:  # the store was closed meanwhile
            await self.__aexit__(None, None, None)
            raise StoreUnavailable("Redis is not available")
        self._among.add(self)
        self._background.keep("hear of changed keys", self._keep)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._among.discard(self)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("the tracking is over")
        await self._background.close()

    async def close(self) -> None:
        """End because the store is closed. Safe to call twice."""
        await self._background.close()
        if self._connection is not None:
            self._connection.abort("the store is closed")

    # -- the connection ------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Have a connection on which the server tells of changes."""
        connection = await self._link.dedicated(_ANSWER_WITHIN, on_lost=self._note_loss, on_push=self._take)
        try:
            options = [part for prefix in self._prefixes for part in ("PREFIX", prefix)]
            await connection.send(("CLIENT", "TRACKING", "ON", "BCAST", *options))
        except BaseException:
            connection.abort("the server does not tell of changes")
            raise
        self._lost.clear()
        self._connection = connection
        self._connected_at = asyncio.get_running_loop().time()
        self._deliver(connection, ())
        if connection.closed:
            self._note_loss(connection, "the connection to Redis was lost")

    async def _keep(self) -> None:
        """Ask for a sign of life every second, and replace a connection that gave none."""
        while True:
            connection = self._connection
            if connection is not None:
                await self._watch(connection)
            if self._attempt:
                await asyncio.sleep(full_jitter(self._attempt, first=FIRST_PAUSE_S, longest=LONGEST_PAUSE_S))
            self._attempt += 1
            try:
                await self._connect()
            except CountersealError as error:
                logger.debug("the server can't be asked for changes of keys: %s", error)
            else:
                logger.info("the server tells of changed keys again")

    async def _watch(self, connection: Connection) -> None:
        """Return when the connection is lost, or was silent for too long although it was asked."""
        while not await wait_for_event(self._lost, _PING_EVERY_S):
            try:
                await connection.send(("PING",))
            except CommandError:
                continue  # refused, but answered
            except StoreUnavailable as error:
                connection.abort(str(error))
                return

    # -- what the connection reports -----------------------------------------------------------------------------

    def _take(self, connection: Connection, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            self._deliver(connection, (None,) if push[1] is None else push[1])

    def _deliver(self, connection: Connection, keys: Sequence[bytes | None]) -> None:
        """Tell of changed keys, after a loss of everything first. When that fails the connection counts as lost."""
        try:
            if not self._began:
                self._began = True
                self._on_change(None)
            for key in keys:
                self._on_change(None if key is None else key.decode("utf-8", "replace"))
        except Exception:
            logger.exception("who was told of a changed key failed")
            connection.abort("a changed key could not be told")

    def _note_loss(self, connection: Connection, reason: str) -> None:
        if connection is not self._connection:
            return  # one that never came so far
        self._connection = None
        self._began = False
        if asyncio.get_running_loop().time() - self._connected_at > _STEADY_AFTER_S:
            self._attempt = 0
        self._lost.set()
        logger.warning("the server does not tell of changed keys: %s", reason)
        try:
            self._on_loss()
        except Exception:
            logger.exception("who was told of the lost connection failed")
