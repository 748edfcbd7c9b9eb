"""Wakes: who waits for which value to be loaded elsewhere, and the one subscription by which they are told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from counterseal.core.background import end
from counterseal.core.errors import StoreError
from counterseal.store.base import Message, Store

logger = logging.getLogger(__name__)

_WAITING_MESSAGES = 10_000


class Wakes:
    """Tells waiters of this process. The subscription begins with the first of them and stays until `close`."""

    def __init__(self, store: Store, *, channel: str) -> None:
        self._store = store
        self._channel = channel
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @asynccontextmanager
    async def listen(self, key: str) -> AsyncGenerator[asyncio.Event]:
        """An event that is set whenever the value of a key may have come, or its loader has given up.

        What happens before this is entered may be missed; while nothing can be heard, so is everything: a waiter looks
        again after a while by itself.
        """
        event = asyncio.Event()
        self._waiting.setdefault(key, set()).add(event)
        try:
            await self._hear()
            yield event
        finally:
            waiting = self._waiting[key]
            waiting.discard(event)
            if not waiting:
                del self._waiting[key]

    async def close(self) -> None:
        """End the subscription."""
        if self._listening is not None:
            await end((self._listening,))

    async def _hear(self) -> None:
        if self._listening is None or self._listening.done():
            self._ready.clear()
            self._listening = asyncio.create_task(self._run(), name="counterseal: loaded values")
        listening = self._listening
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait((ready, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()

    async def _run(self) -> None:
        try:
            async with self._store.subscribe(self._channel, limit=_WAITING_MESSAGES) as messages:
                self._ready.set()
                async for message in messages:
                    if isinstance(message, Message):
                        self._wake(message.data.decode("utf-8", "replace"))
                    else:
                        self._wake_all()
        except StoreError as error:
            logger.debug("loaded values are not heard of: %s", error)
        finally:
            self._ready.clear()
            self._wake_all()

    def _wake(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    def _wake_all(self) -> None:
        for key in self._waiting:
            self._wake(key)
