"""LiveHash: a small hash in Redis of which every process keeps a copy.

A change is told to the other processes by a message, which has them read the hash again. A message may be lost: each
process also compares a version, kept in the hash, every few seconds. While Redis is down the copy stays as it is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from counterseal.core.background import Background, full_jitter, wait_for_event
from counterseal.core.errors import StoreError, StoreFull
from counterseal.store.base import Message, Store
from counterseal.store.scripts import load_script

MAX_ENTRIES: Final = 10_000

_SET: Final = load_script("counterseal.store", "live_set")
_REMOVE: Final = load_script("counterseal.store", "live_remove")

_VERSION: Final = ""
"""The field that holds the version: a random name for a state of the hash, absent in an empty one."""

_LONGEST_PAUSE_S: Final = 0.25


class LiveHash:
    """Fields and values that change seldom and are read always. It has no TTL: it is configuration."""

    def __init__(
        self,
        store: Store,
        *,
        key: str,
        channel: str,
        period: timedelta = timedelta(seconds=5),
        most: int = MAX_ENTRIES,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """`most` bounds the fields; `on_change` is called after `entries` has changed, whoever changed it."""
        self._entries: dict[str, bytes] = {}
        self._store = store
        self._key = key
        self._channel = channel
        self._period_s = period.total_seconds()
        self._most = most
        self._on_change = on_change
        self._background = Background()
        self._reading = asyncio.Lock()
        self._stale = asyncio.Event()
        self._running = False
        self._asked = False
        self._version = b""
        self._writes = 0

    @property
    def entries(self) -> Mapping[str, bytes]:
        """This process's copy, empty before the first read; it changes while tasks wait. No round trip."""
        return self._entries

    async def ready(self) -> None:
        """Have the first read done. At most one round trip, once until it is closed.

        When Redis is down it returns as well: the copy is empty, and the background goes on to try.
        """
        if self._asked:
            return
        async with self._reading:
            if not self._asked:
                try:
                    await self._read()
                except StoreError:
                    self._stale.set()
                self._asked = True
        self._start()

    async def set(self, field: str, value: bytes) -> None:
        """Write a field. One round trip. The copy has it when this returns, those of others a moment later.

        Raises `StoreFull` when the hash has as many fields as it may, `StoreUnavailable`, and `ValueError` for a field
        without a name.
        """
        _check(field)
        self._start()
        version = _new_version()
        before = await self._store.run(
            _SET,
            hash=self._key,
            field=field,
            value=value,
            version=version,
            channel=self._channel,
            most=self._most,
        )
        if not isinstance(before, bytes):
            raise StoreFull(f"no more than {self._most} entries can be kept; nothing was written")
        self._note_write(before, version)
        if self._entries.get(field) != value:
            self._entries[field] = value
            self._tell()

    async def remove(self, field: str) -> bool:
        """Remove a field; whether there was one. One round trip. Raises `StoreUnavailable`."""
        _check(field)
        self._start()
        answer = await self._store.run(
            _REMOVE, hash=self._key, field=field, version=_new_version(), channel=self._channel
        )
        if isinstance(answer, list):
            before, version = answer
            self._note_write(_bytes_of(before), _bytes_of(version))
        else:
            self._writes += 1  # if the copy has it, somebody else has removed it
        if self._entries.pop(field, None) is not None:
            self._tell()
        return isinstance(answer, list)

    async def close(self) -> None:
        """Let the background go. The copy stays as it is, until `ready` reads it anew. No round trip.

        Safe to call twice.
        """
        await self._background.close()
        self._running = self._asked = False

    def _note_write(self, before: bytes, version: bytes) -> None:
        """This process has written. If others did so unheard of before, the whole has to be read again."""
        self._writes += 1
        if before == self._version:
            self._version = version
        else:
            self._stale.set()

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change()

    # -- the background ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._running:
            self._running = True
            self._background.keep("follow a hash", self._refresh)
            self._background.keep("listen to the changes of a hash", self._listen)

    async def _refresh(self) -> None:
        """Read again when something shows that the copy is old, and see every period whether it is."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            await wait_for_event(self._stale, self._period_s)
            self._stale.clear()
            began = loop.time()
            try:
                async with self._reading:
                    if await self._store.command("HGET", self._key, _VERSION) != (self._version or None):
                        await self._read()
                attempt = 0
                # However often it changes, reading takes a small part of this process's time.
                pause = min(4 * (loop.time() - began), _LONGEST_PAUSE_S)
            except StoreError:
                attempt += 1
                self._stale.set()
                pause = full_jitter(attempt, longest=self._period_s)
            await asyncio.sleep(pause)

    async def _read(self) -> None:
        """Replace the copy by what Redis has. One round trip."""
        writes = self._writes
        flat = await self._store.command("HGETALL", self._key)
        if writes != self._writes:
            self._stale.set()  # what was read may be from before that write
            return
        fields = iter(flat if isinstance(flat, list) else ())
        entries = {_bytes_of(field).decode("utf-8", "replace"): _bytes_of(next(fields)) for field in fields}
        self._version = entries.pop(_VERSION, b"")
        if entries != self._entries:
            self._entries = entries
            self._tell()

    async def _listen(self) -> None:
        attempt = 0
        while True:
            try:
                async with self._store.subscribe(self._channel) as messages:
                    attempt = 0
                    self._stale.set()  # what was told before was not heard
                    async for item in messages:
                        if not isinstance(item, Message) or item.data != self._version:
                            self._stale.set()
            except StoreError:
                attempt += 1
            await asyncio.sleep(full_jitter(attempt, longest=self._period_s))


def _check(field: str) -> None:
    if not field:
        raise ValueError("field: expected a name of at least one character; came: an empty one")


def _new_version() -> bytes:
    return secrets.token_hex(8).encode()


def _bytes_of(reply: object) -> bytes:
    return reply if isinstance(reply, bytes) else b""
