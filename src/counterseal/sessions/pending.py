"""Pending: what was accepted while the database was down, kept in a stream until the database has been told.

Entries may be applied twice and in any order: a revocation ends what is active, a rotation is written where the row is
older. The process that accepted an entry also keeps it in memory until it is applied, for when Redis is gone before
the database is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from counterseal.core.background import full_jitter, wait_for_event
from counterseal.core.complaints import Complaints
from counterseal.core.errors import CommandError, DatabaseError, StoreError, StoreFull, StoreUnavailable
from counterseal.sessions.session import Reason
from counterseal.store.base import Store
from counterseal.store.scripts import load_script
from counterseal.store.wire import Reply

logger = logging.getLogger(__name__)

MOST: Final = 100_000
"""So many entries may wait; then nothing more is accepted."""

MOST_ROTATIONS: Final = MOST * 9 // 10
"""When so many wait no rotation is accepted: the rest is for revocations."""

ALARM_MS: Final = 60_000
"""An entry that waits longer is complained of."""

_UNREADABLE: Final = "an entry of the stream of pending changes can't be read: %s"
_REFUSED: Final = "Redis refuses the stream of pending changes: %s"
_LATE: Final = "changes of sessions have waited for the database for %d s"
_BATCH: Final = 100
_EVERY_S: Final = 5.0
_PEND: Final = load_script("counterseal.sessions", "pend")


class PendingRevocation(msgspec.Struct, frozen=True, tag="revoke"):
    """One session."""

    user_id: str
    part: str
    reason: Reason
    at_ms: int


class PendingRevocations(msgspec.Struct, frozen=True, tag="revoke_all"):
    """All sessions of a user that were made until then, but `keep`; `epoch` is None when others alone were ended."""

    user_id: str
    reason: Reason
    at_ms: int
    epoch: int | None = None
    keep: str | None = None


class PendingRotation(msgspec.Struct, frozen=True, tag="rotate"):
    """A refresh token that was replaced: hashes, the sealed successor, and the version that the row gets."""

    user_id: str
    part: str
    version: int
    old: bytes
    new: bytes
    successor: bytes
    at_ms: int


Entry = PendingRevocation | PendingRevocations | PendingRotation

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Entry).decode


class Pending:
    """The stream of one namespace, as one process sees it."""

    def __init__(
        self,
        store: Store,
        *,
        key: str,
        apply: Callable[[Sequence[Entry]], Awaitable[None]],
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._key = key
        self._apply = apply
        self._now_ms = now_ms
        self._mine: list[Entry] = []
        self._wake = asyncio.Event()
        self._settling = asyncio.Lock()
        self._complaints = Complaints(logger)
        self._failures = 0
        self.unsettled = True
        """The database may not know everything: it failed, or this process has not looked yet."""
        self.oldest_age_ms = 0
        """How long the oldest entry had waited when this process looked last."""

    def database_failed(self) -> None:
        """From now on the database may lack what anybody with a Redis has accepted without it."""
        self.unsettled = True
        self._failures += 1
        self._wake.set()

    async def put(self, entry: Entry) -> None:
        """Accept an entry: once this returns it survives this process. One round trip.

        Raises `StoreUnavailable`, and `StoreFull` when too many wait: a rotation leaves room for revocations.
        """
        most = MOST_ROTATIONS if isinstance(entry, PendingRotation) else MOST
        # In memory first: whatever becomes of the reply, what was asked for is done here.
        self._mine.append(entry)
        self.database_failed()
        try:
            reply = await self._ask(
                self._store.run(_PEND, pending=self._key, most=most, entry=_encode(entry).decode())
            )
        except BaseException:
            self._drop([entry])
            raise
        if reply is None:
            self._drop([entry])
            raise StoreFull(f"{most} changes of sessions wait for the database; nothing more is accepted")

    @property
    def accepted(self) -> tuple[Entry, ...]:
        """What this process has accepted, and the database has not been told of yet."""
        return tuple(self._mine)

    def has_ended(self, user_id: str, part: str, created_ms: int, *, before: Sequence[Entry] = ()) -> bool:
        """Whether this process has accepted the end of a session that a row does not say.

        `before` is what was `accepted` before the row was read without a lock: the database may have been told of it
        since, and then it is not among what waits any more.
        """
        return any(_ends(entry, user_id, part, created_ms) for entry in (*before, *self._mine))

    async def settle_mine(self) -> None:
        """Tell the database what this process has accepted. No round trip. Raises `DatabaseUnavailable`."""
        if self._mine:
            async with self._settling:
                await self._apply_mine()

    async def settle(self) -> None:
        """Tell the database everything that waits. At most a round trip for each hundred, and two.

        Raises `DatabaseUnavailable` and `StoreUnavailable`; what was told by then is.
        """
        async with self._settling:
            failures = self._failures
            await self._apply_mine()
            after = "-"
            while True:
                reply = await self._ask(self._store.command("XRANGE", self._key, after, "+", "COUNT", _BATCH))
                found = _entries(reply)
                if not found:
                    break
                self.unsettled = True
                self._look_at_age(found[0][0])
                for name in (name for name, entry in found if entry is None):
                    self._complaints.tell(_UNREADABLE, name, now_ms=self._now_ms())
                told = [entry for _, entry in found if entry is not None]
                if told:
                    await self._apply(told)
                done = [name for name, entry in found if entry is not None]
                if done:
                    await self._ask(self._store.command("XDEL", self._key, *done))
                after = f"({found[-1][0]}"
            if not self._mine and failures == self._failures:  # else it may have been asked too early
                self.unsettled = False
            if after == "-":
                self.oldest_age_ms = 0

    async def keep_settling(self) -> None:
        """Run for as long as the service is open."""
        attempt = 0
        while True:
            self._wake.clear()
            try:
                await self.settle()
                attempt = 0
            except (DatabaseError, StoreError):
                attempt += 1
                await asyncio.sleep(full_jitter(attempt, longest=1.0))
                continue
            await wait_for_event(self._wake, _EVERY_S)

    async def _apply_mine(self) -> None:
        while mine := self._mine[:_BATCH]:
            await self._apply(mine)
            self._drop(mine)

    def _drop(self, entries: Sequence[Entry]) -> None:
        """Forget entries that were told, or not accepted: either may come first, while the other is under way."""
        for entry in entries:
            with suppress(ValueError):
                self._mine.remove(entry)

    async def _ask(self, call: Awaitable[Reply]) -> Reply:
        """What Redis answers. One that answers with an error (full, no permission) can't serve."""
        try:
            return await call
        except StoreUnavailable:
            raise
        except StoreError as error:
            kind = error.kind if isinstance(error, CommandError) else error.code
            self._complaints.tell(_REFUSED, kind, now_ms=self._now_ms())
            raise StoreUnavailable("Redis can't keep changes of sessions now") from error

    def _look_at_age(self, name: str) -> None:
        self.oldest_age_ms = max(0, self._now_ms() - int(name.partition("-")[0]))
        if self.oldest_age_ms > ALARM_MS:
            age_s = self.oldest_age_ms // 1000
            self._complaints.tell(_LATE, age_s, now_ms=self._now_ms())


def _ends(entry: Entry, user_id: str, part: str, created_ms: int) -> bool:
    if entry.user_id != user_id:
        return False
    if isinstance(entry, PendingRevocation):
        return entry.part == part
    return isinstance(entry, PendingRevocations) and entry.keep != part and created_ms <= entry.at_ms


def _entries(reply: Reply) -> list[tuple[str, Entry | None]]:
    """Names and entries of a stream; None in place of one that this release does not know: it stays where it is."""
    found: list[tuple[str, Entry | None]] = []
    for item in reply if isinstance(reply, list) else ():
        name, fields = item if isinstance(item, list) else (None, None)
        if not isinstance(name, bytes) or not isinstance(fields, list):
            raise StoreError("a stream answered something unexpected")
        text = fields[1] if len(fields) > 1 else b""
        try:
            entry = _decode(text if isinstance(text, bytes) else b"")
        except msgspec.DecodeError:
            entry = None
        found.append((name.decode(), entry))
    return found
