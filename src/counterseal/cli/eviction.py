"""Eviction: a process that keeps jobs and sessions in a server that deletes them when it is full says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from counterseal.core.background import Background
from counterseal.core.errors import CommandError, StoreError
from counterseal.store.base import Store
from counterseal.store.info import evicting_policy

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0


@asynccontextmanager
async def warning_of_eviction(store: Store) -> AsyncGenerator[None]:
    """Warn in the log, once, as soon as the server has told that it may evict. Nothing waits for its answer."""
    background = Background()

    async def look() -> None:
        while True:
            try:
                policy = await evicting_policy(store)
            except CommandError:
                return  # it tells nobody
            except StoreError:
                await asyncio.sleep(_AGAIN_S)
                continue
            if policy:
                logger.warning(
                    "Redis may evict jobs and sessions once its memory is full (maxmemory-policy is %s);"
                    " set maxmemory-policy noeviction",
                    policy,
                )
            return

    background.keep("look at the eviction policy", look)
    try:
        yield
    finally:
        await background.close()
