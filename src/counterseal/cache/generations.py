"""Generations: random ids of kinds and tags, which change when these are cleared.

A value carries those that it was written under and counts for as long as they are current. They are read in the same
turn of the event loop as the value, and once for all reads of that turn: nothing of the turn has left yet when the last
of them begins, so whatever was cleared before any of them is seen by all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from counterseal.cache.entry import new_id
from counterseal.store.base import Store
from counterseal.store.keys import CACHE_GENERATION_TTL, Keys
from counterseal.store.scripts import load_script
from counterseal.store.wire import Command, Reply, raised

_BUMP: Final = load_script("counterseal.cache", "bump")
_TTL_S: Final = CACHE_GENERATION_TTL // timedelta(seconds=1)
_LOOK_EVERY_MS: Final = timedelta(days=7) // timedelta(milliseconds=1)
_PROLONG_BELOW_MS: Final = timedelta(days=23) // timedelta(milliseconds=1)
"""A write meets a generation that lives for 16 days at the least: longer than any value, its window included."""

_MOST_KNOWN: Final = 10_000


class Generations:
    """The generations of one store. Every call raises `StoreUnavailable` when Redis does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts = store.counts
        self._turn = -1
        self._reading: dict[str, asyncio.Future[Reply]] = {}
        self._lasting: dict[str, int] = {}
        """Until when a generation is known to live for long enough."""

    def read(self, key: str) -> asyncio.Future[Reply]:
        """Begin to read a generation, or join a read that has not left yet. Wait for it with `settled` only."""
        turn = self._counts.batches
        if turn != self._turn:
            self._turn = turn
            self._reading.clear()
        future = self._reading.get(key)
        if future is None or future.done():
            future = asyncio.ensure_future(self._store.command("GET", key))
            future.add_done_callback(_seen)
            self._reading[key] = future
        return future

    async def ensure(self, keys: Iterable[str]) -> list[bytes]:
        """The generations to write under, each made when there is none.

        One round trip; two when one has to be made, or to be prolonged, which is once a week at the most. To prolong
        one is a change, and the server would have every process drop what it keeps in memory under it.
        """
        wanted = list(keys)
        now_ms = self._store.now_ms()
        unsure = [key for key in wanted if now_ms >= self._lasting.get(key, 0)]
        replies = await self._store.pipeline(
            [*(("GET", key) for key in wanted), *(("PTTL", key) for key in unsure)]
        )
        found: dict[str, bytes] = {}
        for key, reply in zip(wanted, replies, strict=False):
            if isinstance(current := raised(reply), bytes):
                found[key] = current
        missing = [key for key in wanted if key not in found]
        short = [
            key
            for key, reply in zip(unsure, replies[len(wanted) :], strict=True)
            if key in found and isinstance(reply, int) and reply < _PROLONG_BELOW_MS
        ]
        if missing or short:
            found.update(await self._make(missing, short))
        if len(self._lasting) > _MOST_KNOWN:
            self._lasting.clear()
        self._lasting.update(dict.fromkeys(unsure, now_ms + _LOOK_EVERY_MS))
        return [found[key] for key in wanted]

    async def _make(self, missing: list[str], short: list[str]) -> dict[str, bytes]:
        """Make generations, and prolong others. One round trip. Returns those that were missing."""
        fresh = {key: new_id() for key in missing}
        commands: list[Command] = [("SET", key, fresh[key], "NX", "GET", "EX", _TTL_S) for key in missing]
        commands += [("EXPIRE", key, _TTL_S) for key in short]
        replies = [raised(reply) for reply in await self._store.pipeline(commands)]
        # Somebody else may have been first: then theirs counts.
        return {
            key: first if isinstance(first, bytes) else fresh[key].encode()
            for key, first in zip(missing, replies, strict=False)
        }


async def bump(store: Store, keys: Keys, key: str) -> None:
    """Give a kind or a tag a new generation: nothing written before counts any more. One round trip.

    It is told to the processes that keep values in their memory, and works on a server that is full as well.
    """
    await store.run(_BUMP, generation=key, fresh=new_id(), ttl_s=_TTL_S, changed=keys.cache_changed())


async def settled(reading: asyncio.Future[Reply]) -> Reply:
    """The outcome of a read that several wait for: one who is cancelled takes it from nobody."""
    if not reading.done():
        await asyncio.wait((reading,))
    return reading.result()


def _seen(reading: asyncio.Future[Reply]) -> None:
    if not reading.cancelled():
        reading.exception()
