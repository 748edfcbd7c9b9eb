"""Copies: what Redis holds of sessions. Each call is one round trip.

A copy may be old or missing, and never wins over the database; a tombstone wins over everything.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from counterseal.core.errors import CodecError, StoreError, StoreUnavailable
from counterseal.sessions.row import Row
from counterseal.sessions.session import SCHEMA, Facts, StepUp
from counterseal.store.base import Store
from counterseal.store.keys import SESSIONS_EPOCH_TTL, Keys, escape
from counterseal.store.scripts import load_script
from counterseal.store.wire import Command, Reply

_FILL: Final = load_script("counterseal.sessions", "fill")
_TOUCH: Final = load_script("counterseal.sessions", "touch")
_STEP_UPS: Final = load_script("counterseal.sessions", "step_ups")
_ROTATE: Final = load_script("counterseal.sessions", "rotate")
_REVOKE: Final = load_script("counterseal.sessions", "revoke")
_REVOKE_USER: Final = load_script("counterseal.sessions", "revoke_user")
_RAISE: Final = load_script("counterseal.sessions", "raise")

GLOBAL_EVERY_MS: Final = 1_000
"""How old the epoch of all sessions may be."""

STRANGER_MS: Final = 120_000
"""How long the tombstone of a session stays that the database does not know either."""

_GLOBAL_TTL_MS: Final = int(SESSIONS_EPOCH_TTL.total_seconds() * 1000)
_decode_facts: Final = msgspec.json.Decoder(Facts).decode
_decode_step_ups: Final = msgspec.json.Decoder(tuple[StepUp, ...]).decode
_encode: Final = msgspec.json.Encoder().encode

_T = TypeVar("_T")


class Copy(msgspec.Struct, frozen=True):
    """A live session as Redis holds it."""

    version: int
    last_used_ms: int
    checked_ms: int
    facts: Facts
    step_ups: tuple[StepUp, ...] = ()


class Ended(StrEnum):
    """Why a session is known to have ended."""

    REVOKED = "revoked"
    """There is a tombstone."""
    FORMER_EPOCH = "former_epoch"
    """All sessions of the user, or of everybody, were ended."""


class Turn(StrEnum):
    """What becomes of a refresh token that was presented."""

    ABSENT = "absent"
    ENDED = "ended"
    ROTATED = "rotated"
    GRACE = "grace"
    MISMATCH = "mismatch"


@dataclass(frozen=True, slots=True)
class Presented:
    """The answer of `rotate`, with the entry as it is stored now."""

    turn: Turn
    copy: Copy | None = None
    current: bytes = b""
    previous: bytes = b""
    rotated_ms: int = 0
    successor: bytes = b""


class Copies:
    """Reads and writes them. Raises `StoreUnavailable` when Redis does not answer; `on_loss` is called then.

    `longest_ms` is how long a session lives at most, and with it a tombstone of one that Redis has no copy of.
    """

    def __init__(self, store: Store, *, keys: Keys, longest_ms: int, on_loss: Callable[[], None]) -> None:
        self._store = store
        self._keys = keys
        self._longest_ms = longest_ms
        self._on_loss = on_loss
        self._global_key = keys.sessions_epoch()
        self._global_read_ms = 0
        self.global_epoch: int | None = None
        """The epoch of all sessions, at most a second old; None when Redis did not know it."""

    async def look(self, user_id: str, part: str, now_ms: int) -> Copy | Ended | None:
        """The copy of a session, whatever its age; None when there is none that can be judged."""
        keys = self._keys
        mine = keys.sessions_of(user_id)
        commands: list[Command] = [
            ("HMGET", f"{mine}s:{escape(part)}", "state", "ver", "last", "checked", "facts", "ups"),
            ("GET", f"{mine}epoch"),
        ]
        if now_ms - self._global_read_ms >= GLOBAL_EVERY_MS or self.global_epoch is None:
            commands.append(("GET", self._global_key))
        try:
            replies = await self._store.pipeline(commands)
        except StoreUnavailable:
            self._on_loss()
            raise
        fields, epoch = replies[0], replies[1]
        if len(replies) > 2:
            self._know_global(replies[2], now_ms)
        if not isinstance(fields, list):
            raise _refused(fields)
        state = fields[0]
        if state is None:
            return None
        if state != b"a":
            return Ended.REVOKED
        if epoch is None:
            return None
        if not isinstance(epoch, bytes):
            raise _refused(epoch)
        copy = self._copy(fields, 1)
        facts = copy.facts
        if facts.epoch < int(epoch) or facts.global_epoch < (self.global_epoch or 0):
            return Ended.FORMER_EPOCH
        return copy

    async def fill(
        self,
        row: Row,
        *,
        now_ms: int,
        last_used_ms: int,
        checked_ms: int,
        instead_of: tuple[int, bytes] | None = None,
        ended: Sequence[str] = (),
    ) -> Copy | Ended:
        """Store what a row says, unless a tombstone or something newer is there; what is there then.

        `instead_of` is the version and the token of a copy that may be replaced although it is newer: the database had
        other tokens. `ended` are parts of sessions of the same user that get tombstones.
        """
        facts = row.facts
        reply = await self._run(
            self._store.run(
                _FILL,
                entry=self._keys.session(row.user_id, row.part),
                index=self._keys.session_index(row.user_id),
                epoch=self._keys.session_epoch(row.user_id),
                part=escape(row.part),
                now_ms=now_ms,
                version=row.version,
                user_epoch=row.user_epoch,
                session_epoch=facts.epoch,
                facts=_encode(facts).decode(),
                last_ms=max(last_used_ms, row.last_used_ms),
                checked_ms=checked_ms,
                cur=row.token_hash.hex(),
                prev=(row.previous_hash or b"").hex(),
                rotated_ms=row.rotated_ms,
                successor=base64.b64encode(row.successor or b"").decode(),
                step_ups=_step_ups_text(row.step_ups),
                ttl_ms=max(1, facts.absolute_ms - now_ms),
                instead_of="" if instead_of is None else f"{instead_of[0]} {instead_of[1].hex()}",
                ended_ttl_ms=self._longest_ms,
                prefix=f"{self._keys.sessions_of(row.user_id)}s:",
                ended=[escape(part) for part in ended],
            )
        )
        fields = _items(reply)
        if fields[0] == b"r":
            return Ended.REVOKED
        return Ended.FORMER_EPOCH if fields[0] == b"e" else self._copy(fields, 1)

    async def touch(self, user_id: str, part: str, now_ms: int) -> bool:
        """Note that a live session was used; whether it is live here."""
        reply = await self._run(
            self._store.run(
                _TOUCH,
                entry=self._keys.session(user_id, part),
                index=self._keys.session_index(user_id),
                part=escape(part),
                now_ms=now_ms,
            )
        )
        return reply == 1

    async def note_step_ups(self, user_id: str, part: str, step_ups: Sequence[StepUp]) -> None:
        """Note which second factors were shown, for display."""
        await self._run(
            self._store.run(
                _STEP_UPS,
                entry=self._keys.session(user_id, part),
                step_ups=_step_ups_text(step_ups),
            )
        )

    async def rotate(
        self,
        user_id: str,
        part: str,
        *,
        now_ms: int,
        presented: bytes,
        next_hash: bytes,
        successor: bytes,
        grace_ms: int,
    ) -> Presented:
        """Replace the token with this hash, or tell what has replaced it."""
        reply = await self._run(
            self._store.run(
                _ROTATE,
                entry=self._keys.session(user_id, part),
                index=self._keys.session_index(user_id),
                epoch=self._keys.session_epoch(user_id),
                part=escape(part),
                now_ms=now_ms,
                presented=presented.hex(),
                next=next_hash.hex(),
                successor=base64.b64encode(successor).decode(),
                grace_ms=grace_ms,
                global_epoch=self.global_epoch or 0,
            )
        )
        what, *fields = _items(reply)
        turn = Turn(_text(what))
        if turn in (Turn.ABSENT, Turn.ENDED):
            return Presented(turn)
        version, current, previous, rotated, successor_text, last, checked, facts, ups = fields
        return Presented(
            turn,
            self._copy([version, last, checked, facts, ups], 0),
            bytes.fromhex(_text(current)),
            bytes.fromhex(_text(previous)),
            int(_text(rotated)),
            base64.b64decode(_text(successor_text)),
        )

    async def revoke(self, user_id: str, parts: Sequence[str]) -> int:
        """Leave tombstones in place of sessions, also of those that have no copy; how many had one."""
        reply = await self._run(
            self._store.run(
                _REVOKE,
                index=self._keys.session_index(user_id),
                prefix=f"{self._keys.sessions_of(user_id)}s:",
                ttl_ms=self._longest_ms,
                parts=[escape(part) for part in parts],
            )
        )
        return reply if isinstance(reply, int) else 0

    async def revoke_user(
        self, user_id: str, *, keep: str | None = None, at_least: int = -1, above: bool = False
    ) -> tuple[int, int]:
        """Leave tombstones in place of all sessions that have a copy but `keep`, and raise the epoch to `at_least`.

        With `above` it is raised above every epoch that is known here. Returns the epoch and how many were live.
        """
        reply = await self._run(
            self._store.run(
                _REVOKE_USER,
                index=self._keys.session_index(user_id),
                epoch=self._keys.session_epoch(user_id),
                prefix=f"{self._keys.sessions_of(user_id)}s:",
                ttl_ms=self._longest_ms,
                keep="" if keep is None else escape(keep),
                at_least=at_least,
                above=int(above),
            )
        )
        epoch, *ended = _items(reply)
        return int(_text(epoch)), len(ended)

    async def raise_epoch(self, user_id: str, epoch: int) -> None:
        """Make the epoch of a user at least `epoch`."""
        await self._run(
            self._store.run(
                _RAISE,
                epoch=self._keys.session_epoch(user_id),
                at_least=epoch,
                ttl_ms=self._longest_ms,
            )
        )

    async def shorten(self, user_id: str, part: str) -> None:
        """Keep the tombstone of a session that nobody knows for two minutes only."""
        await self._run(self._store.command("PEXPIRE", self._keys.session(user_id, part), STRANGER_MS, "LT"))

    async def raise_global(self, epoch: int, now_ms: int) -> None:
        """Make the epoch of all sessions at least `epoch`."""
        reply = await self._run(
            self._store.run(_RAISE, epoch=self._global_key, at_least=epoch, ttl_ms=_GLOBAL_TTL_MS)
        )
        self.global_epoch = max(self.global_epoch or 0, reply if isinstance(reply, int) else epoch)
        self._global_read_ms = now_ms

    async def tell(self, message: str) -> None:
        """Tell whoever listens that sessions have ended."""
        await self._run(self._store.command("PUBLISH", self._keys.sessions_ended(), message))

    async def _run(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except StoreUnavailable:
            self._on_loss()
            raise

    def _know_global(self, reply: Reply, now_ms: int) -> None:
        if reply is None:
            self.global_epoch = None
        elif isinstance(reply, bytes):
            self.global_epoch = max(self.global_epoch or 0, int(reply))
            self._global_read_ms = now_ms
        else:
            raise _refused(reply)

    @staticmethod
    def _copy(fields: Sequence[Reply], start: int) -> Copy:
        """Version, last use, check, facts and step-ups, from `start` on."""
        version, last, checked, facts, ups = fields[start : start + 5]
        try:
            read = _decode_facts(facts)  # pyright: ignore[reportArgumentType] - what is no bytes is refused below
            if read.schema == SCHEMA:
                return Copy(
                    int(version),  # pyright: ignore[reportArgumentType]
                    int(last),  # pyright: ignore[reportArgumentType]
                    int(checked),  # pyright: ignore[reportArgumentType]
                    read,
                    _decode_step_ups(ups) if ups else (),  # pyright: ignore[reportArgumentType]
                )
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise CodecError("the copy of a session can't be read") from error
        raise CodecError(f"the copy of a session has schema {read.schema}, which this release does not know")


def _step_ups_text(step_ups: Sequence[StepUp]) -> str:
    return _encode(step_ups).decode() if step_ups else ""


def _items(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list) or not reply:
        raise StoreError("a script answered something unexpected")
    return reply


def _text(item: Reply) -> str:
    if isinstance(item, bytes):
        return item.decode()
    raise StoreError("a script answered something unexpected")


def _refused(reply: Reply) -> StoreError:
    return reply if isinstance(reply, StoreError) else StoreError("Redis answered something unexpected")
