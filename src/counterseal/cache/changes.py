"""Changes: tells the near memory which values of Redis have changed, and when that can't be heard.

The server tells by itself where it can (`Store.track`). Over REST and on a Cluster, and where a user may not ask for
that, whoever changes a value publishes its key.
"""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import unquote

from counterseal.cache.near import NearMemory
from counterseal.core.background import Background, full_jitter
from counterseal.core.errors import CommandError, StoreError
from counterseal.store.base import Message, Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

_WAITING_MESSAGES = 100_000
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


class Changes:
    """Listens for as long as it is open. `begin` costs nothing when it has begun."""

    def __init__(self, store: Store, *, keys: Keys, memory: NearMemory) -> None:
        self._store = store
        self._memory = memory
        self._channel = keys.cache_changed()
        self._values = {keys.cache_values(kind): kind for kind in memory.kinds}
        self._generations = keys.cache_generations()
        self._tags = keys.cache_tags()
        self._background = Background()
        self._begun = False
        self._closed = False
        self._losses = 0

    def open(self) -> None:
        """Let `begin` work, also after a close."""
        self._closed = False

    def begin(self) -> None:
        """Start to listen, in the background. Nothing once it is closed."""
        if not (self._begun or self._closed):
            self._begun = True
            self._background.keep("hear of changes", self._listen)

    async def close(self) -> None:
        """Stop to listen; the memory is emptied."""
        self._closed = True
        await self._background.close()
        self._lost()
        self._begun = False

    async def _listen(self) -> None:
        attempt = 0
        while True:
            try:
                await self._hear()
                attempt = 0
            except StoreError as error:
                logger.debug("changes of cached values are not heard of: %s", error)
            finally:
                self._lost()
            attempt += 1
            await asyncio.sleep(full_jitter(attempt, first=_FIRST_PAUSE_S, longest=_LONGEST_PAUSE_S))

    async def _hear(self) -> None:
        prefixes = (*self._values, self._generations, self._tags)
        # A connection may be lost before this task hears that it came; its replacement is told of by `_changed(None)`.
        losses = self._losses
        try:
            async with self._store.track(*prefixes, on_change=self._changed, on_loss=self._lost):
                self._memory.active = losses == self._losses
                await asyncio.Event().wait()
        except CommandError as refusal:
            logger.debug("the server does not tell of changes (%s): they are published", refusal)
        async with self._store.subscribe(
            self._channel, limit=_WAITING_MESSAGES, on_loss=self._lost
        ) as messages:
            if losses == self._losses:
                self._changed(None)
            async for message in messages:
                if isinstance(message, Message):
                    self._changed(message.data.decode())
                    continue
                # A gap is taken from a queue: by then the connection that ended it may be lost as well.
                losses += 1
                if losses >= self._losses:
                    self._changed(None)

    def _changed(self, key: str | None) -> None:
        """A key changed; None: everything may have, and from now on changes are heard of."""
        memory = self._memory
        if key is None:
            memory.flush()
            memory.active = True
        elif key.startswith(self._tags):
            memory.tag_changed(key.removeprefix(self._tags).encode())
        elif key.startswith(self._generations):
            kind = memory.kinds.get(unquote(key.removeprefix(self._generations)))
            if kind is not None:
                kind.clear()
        else:
            prefix, brace, rest = key.partition("{")
            name = self._values.get(prefix)
            if brace and name is not None:
                memory.kinds[name].changed(unquote(rest.removesuffix("}")))

    def _lost(self) -> None:
        self._losses += 1
        self._memory.active = False
        self._memory.flush()
