"""Copies: what Redis holds of sessions. Each call is one round trip.

A copy may be old or missing, and never wins over the database; a tombstone wins over everything.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

import msgspec

from counterseal.core.complaints import Complaints
from counterseal.core.errors import CodecError, CommandError, StoreError, StoreUnavailable
from counterseal.sessions.identity import session_id_of, split_session_id
from counterseal.sessions.row import Row
from counterseal.sessions.session import SCHEMA, Facts, Session, StepUp
from counterseal.store.base import Store
from counterseal.store.keys import SESSIONS_EPOCH_TTL, Keys, escape
from counterseal.store.scripts import load_script
from counterseal.store.wire import Reply

logger = logging.getLogger(__name__)

_FILL: Final = load_script("counterseal.sessions", "fill")
_TOUCH: Final = load_script("counterseal.sessions", "touch")
_STEP_UPS: Final = load_script("counterseal.sessions", "step_ups")
_ROTATE: Final = load_script("counterseal.sessions", "rotate")
_REVOKE: Final = load_script("counterseal.sessions", "revoke")
_REVOKE_USER: Final = load_script("counterseal.sessions", "revoke_user")
_RAISE: Final = load_script("counterseal.sessions", "raise")

_ENDING: Final = frozenset({"revoke", "revoke_user", "raise"})
_READ_LATELY: Final = 4096
GLOBAL_EVERY_MS: Final = 1_000
"""How old the epoch of all sessions may be."""

STRANGER_MS: Final = 120_000
"""How long the tombstone of a session stays that the database does not know either."""

_GLOBAL_TTL_MS: Final = int(SESSIONS_EPOCH_TTL.total_seconds() * 1000)
_decode_facts: Final = msgspec.json.Decoder(Facts).decode
_decode_step_ups: Final = msgspec.json.Decoder(tuple[StepUp, ...]).decode
_encode: Final = msgspec.json.Encoder().encode

_T = TypeVar("_T")


class Place(NamedTuple):
    """Where a session is kept."""

    user_id: str
    part: str
    entry: str
    """Its key."""


class Ended(StrEnum):
    """Why a session is known to have ended."""

    REVOKED = "revoked"
    """There is a tombstone."""
    FORMER_EPOCH = "former_epoch"
    """All sessions of the user, or of everybody, were ended."""
    BEHIND = "behind"
    """What was made until a time was ended while the database was down."""


class Which(StrEnum):
    """The sessions of a user that `revoke_user` ends."""

    ALL = "all"
    FORMER = "former"
    """Those of an epoch below `at_least`."""
    ABOVE = "above"
    """All, and the epoch becomes greater than every one that is known here: for when the database can't say it."""


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
    session: Session | None = None
    current: bytes = b""
    previous: bytes = b""
    rotated_ms: int = 0
    successor: bytes = b""

    @property
    def last_used_ms(self) -> int:
        """When it was used last, by Redis; 0 when that does not know."""
        return 0 if self.session is None else self.session.last_used_ms


class Refused(StoreUnavailable):
    """Redis answered a call with an error. `kind` is its first word."""

    passing: Final = frozenset({"OOM", "READONLY", "NOREPLICAS", "MISCONF", "NOPERM", "NOAUTH"})

    def __init__(self, kind: str) -> None:
        super().__init__("Redis can't keep sessions now")
        self.kind = kind

    @property
    def is_of_the_server(self) -> bool:
        """Whether it would refuse every such call, whosever session it is about."""
        return self.kind in self.passing


class Copies:
    """Reads and writes them. Raises `StoreUnavailable` when Redis does not answer; `on_loss` is called then.

    `longest_ms` is how long a session lives at most, and with it a tombstone of one that Redis has no copy of.
    """

    def __init__(self, store: Store, *, keys: Keys, longest_ms: int, on_loss: Callable[[], None]) -> None:
        self._store = store
        self._command = store.command
        self._keys = keys
        self._longest_ms = longest_ms
        self._on_loss = on_loss
        self._complaints = Complaints(logger)
        self._facts = lru_cache(_READ_LATELY)(self._read_facts)
        """They don't change, and those of a session in use are asked for again and again."""
        self.place: Callable[[str], Place | None] = lru_cache(_READ_LATELY)(self._find_place)
        """Where a session with this public id is kept; None for what is no id."""
        self._global_key = keys.sessions_epoch()
        self.global_until_ms = 0
        """Until when it need not be read again."""
        self.global_epoch: int | None = None
        """The epoch of all sessions, at most a second old; None when Redis did not know it."""

    def ask(self, place: Place, now_ms: int) -> Awaitable[Reply]:
        """Ask for the copy of a session; `read` understands it. Once a second everybody's epoch comes along."""
        asked = self._command("HMGET", place.entry, "live", "facts", "ups")
        return asked if now_ms < self.global_until_ms else self._with_global(asked, now_ms)

    def read(self, session_id: str, user_id: str, reply: Reply) -> Session | Ended | None:
        """The session as a copy has it, whatever its age; None when there is none, or none that can be read.

        That no copy of a former epoch of its user is there, `revoke_user` sees to: it finds all of them.
        """
        if not isinstance(reply, list):
            raise _refused(reply)
        live, facts, ups = reply
        if live is None:
            return None
        if live == b"r":
            return Ended.REVOKED
        try:
            session = self._session(session_id, user_id, live, facts, ups)
        except CodecError:
            return None  # of a later release, or damaged: the database says what it has to be
        return Ended.FORMER_EPOCH if session.facts.global_epoch < (self.global_epoch or 0) else session

    async def fill(
        self,
        row: Row,
        *,
        now_ms: int,
        last_used_ms: int,
        checked_ms: int,
        instead_of: tuple[int, bytes] | None = None,
        ended: Sequence[str] = (),
    ) -> Session | Ended:
        """Store what a row says, unless a tombstone or something newer is there; what is there then.

        `instead_of` is the version and the token of a copy that may be replaced although it is newer: the database had
        other tokens. `ended` are parts of sessions of the same user that get tombstones.
        """
        facts = row.facts
        reply = await self._run(
            "fill",
            self._store.run(
                _FILL,
                entry=self._keys.session(row.user_id, row.part),
                index=self._keys.session_index(row.user_id),
                epoch=self._keys.session_epoch(row.user_id),
                barriers=self._keys.session_barriers(row.user_id),
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
                created_ms=facts.created_ms,
                ended_ttl_ms=self._longest_ms,
                prefix=f"{self._keys.sessions_of(row.user_id)}s:",
                ended=[escape(part) for part in ended],
            ),
        )
        fields = _items(reply)
        if fields[0] == b"r":
            return Ended.REVOKED
        if fields[0] in (b"e", b"b"):
            return Ended.FORMER_EPOCH if fields[0] == b"e" else Ended.BEHIND
        return self._session(session_id_of(row.user_id, row.part), row.user_id, *fields[1:])

    async def touch(self, user_id: str, part: str, now_ms: int) -> bool:
        """Note that a live session was used; whether it is live here."""
        reply = await self._run(
            "touch",
            self._store.run(
                _TOUCH,
                entry=self._keys.session(user_id, part),
                index=self._keys.session_index(user_id),
                part=escape(part),
                now_ms=now_ms,
            ),
        )
        return reply == 1

    async def note_step_ups(self, user_id: str, part: str, step_ups: Sequence[StepUp]) -> None:
        """Note which second factors were shown, for display."""
        await self._run(
            "step_ups",
            self._store.run(
                _STEP_UPS,
                entry=self._keys.session(user_id, part),
                step_ups=_step_ups_text(step_ups),
            ),
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
        call = self._store.run(
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
        if now_ms < self.global_until_ms:
            reply = await self._run("rotate", call)
        else:
            # Both begin in one turn of the loop, so they leave together.
            reply, epoch = await self._run("rotate", asyncio.gather(call, self._ask_global()))
            self._hear_global(epoch, now_ms)
        what, *fields = _items(reply)
        turn = Turn(_text(what))
        if turn in (Turn.ABSENT, Turn.ENDED):
            return Presented(turn)
        live, current, previous, rotated, successor_text, facts, ups = fields
        session = self._session(session_id_of(user_id, part), user_id, live, facts, ups)
        if session.facts.global_epoch < (self.global_epoch or 0):
            return Presented(Turn.ENDED)
        return Presented(
            turn,
            session,
            bytes.fromhex(_text(current)),
            bytes.fromhex(_text(previous)),
            int(_text(rotated)),
            base64.b64decode(_text(successor_text)),
        )

    async def revoke(self, user_id: str, parts: Sequence[str]) -> int:
        """Leave tombstones in place of sessions, also of those that have no copy; how many had one."""
        reply = await self._run(
            "revoke",
            self._store.run(
                _REVOKE,
                index=self._keys.session_index(user_id),
                prefix=f"{self._keys.sessions_of(user_id)}s:",
                ttl_ms=self._longest_ms,
                parts=[escape(part) for part in parts],
            ),
        )
        return reply if isinstance(reply, int) else 0

    async def revoke_user(
        self,
        user_id: str,
        which: Which = Which.ALL,
        *,
        keep: str | None = None,
        at_least: int = -1,
        barrier_ms: int | None = None,
    ) -> tuple[int, int]:
        """Leave tombstones in place of sessions that have a copy, but of `keep`, and raise the epoch to `at_least`.

        With `barrier_ms` no session that was made until then is stored again, but `keep`: for those that have no copy,
        and that the database can't name now. Returns the epoch and how many were live.
        """
        reply = await self._run(
            "revoke_user",
            self._store.run(
                _REVOKE_USER,
                index=self._keys.session_index(user_id),
                epoch=self._keys.session_epoch(user_id),
                barriers=self._keys.session_barriers(user_id),
                prefix=f"{self._keys.sessions_of(user_id)}s:",
                ttl_ms=self._longest_ms,
                which=which.value,
                keep="" if keep is None else escape(keep),
                at_least=at_least,
                barrier_ms="" if barrier_ms is None else barrier_ms,
            ),
        )
        epoch, *ended = _items(reply)
        return int(_text(epoch)), len(ended)

    async def shorten(self, user_id: str, part: str) -> None:
        """Keep the tombstone of a session that nobody knows for two minutes only."""
        await self._run(
            "shorten", self._store.command("PEXPIRE", self._keys.session(user_id, part), STRANGER_MS, "LT")
        )

    async def read_global(self, now_ms: int) -> int | None:
        """The epoch of all sessions; None when Redis does not know it."""
        self._hear_global(await self._run("read", self._ask_global()), now_ms)
        return self.global_epoch

    async def raise_global(self, epoch: int, now_ms: int) -> None:
        """Make the epoch of all sessions at least `epoch`."""
        reply = await self._run(
            "raise", self._store.run(_RAISE, epoch=self._global_key, at_least=epoch, ttl_ms=_GLOBAL_TTL_MS)
        )
        self._know_global(reply if isinstance(reply, int) else epoch, now_ms)

    async def tell(self, message: str) -> None:
        """Tell whoever listens that sessions have ended."""
        await self._run("tell", self._store.command("PUBLISH", self._keys.sessions_ended(), message))

    async def _run(self, what: str, call: Awaitable[_T]) -> _T:
        """The answer to a call."""
        try:
            return await call
        except StoreError as error:
            raise self.unavailable(what, error) from error

    def unavailable(self, what: str, error: StoreError) -> StoreUnavailable:
        """What became of a call: Redis can't serve it. One that answers with an error (full, read-only) can't either.

        Where it refuses to end sessions of anybody that is a loss: what it has lacks their end from now on.
        """
        if isinstance(error, StoreUnavailable):
            self._on_loss()
            return error
        # What the server says names no arguments.
        said = str(error).partition("\n")[0]
        text = "Redis refuses the call %r of sessions: %.200s"
        self._complaints.tell(text, what, said, now_ms=self._store.now_ms(), about=what)
        refused = Refused(error.kind if isinstance(error, CommandError) else error.code)
        if what in _ENDING and refused.is_of_the_server:
            self._on_loss()
        return refused

    async def _with_global(self, asked: Awaitable[Reply], now_ms: int) -> Reply:
        told = self._command("GET", self._global_key)  # leaves with the other one
        reply, epoch = await asyncio.gather(asked, told)
        self._hear_global(epoch, now_ms)
        return reply

    async def _ask_global(self) -> Reply:
        return await self._command("GET", self._global_key)

    def _hear_global(self, epoch: Reply, now_ms: int) -> None:
        if epoch is None:
            self.global_epoch = None
        elif isinstance(epoch, bytes):
            self._know_global(int(epoch), now_ms)

    def _know_global(self, epoch: int, now_ms: int) -> None:
        self.global_epoch = max(self.global_epoch or 0, epoch)
        self.global_until_ms = now_ms + GLOBAL_EVERY_MS

    def _session(self, session_id: str, user_id: str, live: Reply, facts: Reply, ups: Reply) -> Session:
        """What an entry says."""
        try:
            version, last, checked = live.split()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
            return Session(
                session_id,
                user_id,
                self._facts(facts),  # pyright: ignore[reportArgumentType]
                int(version),  # pyright: ignore[reportUnknownArgumentType]
                int(last),  # pyright: ignore[reportUnknownArgumentType]
                int(checked),  # pyright: ignore[reportUnknownArgumentType]
                _decode_step_ups(ups) if ups else (),  # pyright: ignore[reportArgumentType]
            )
        except (msgspec.DecodeError, AttributeError, TypeError, ValueError) as error:
            raise CodecError("the copy of a session can't be read") from error

    def _find_place(self, session_id: str) -> Place | None:
        ids = split_session_id(session_id)
        return None if ids is None else Place(*ids, self._keys.session(*ids))

    @staticmethod
    def _read_facts(text: Reply) -> Facts:
        facts = _decode_facts(text)  # pyright: ignore[reportArgumentType]
        if facts.schema != SCHEMA:
            raise CodecError(
                f"the copy of a session has schema {facts.schema}, which this release does not know"
            )
        return facts


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
