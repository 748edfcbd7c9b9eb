"""Audit: append to a stream in the transaction of what it tells, and read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NotRequired, TypedDict

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.audit.chain import ACTION, AuditEntry, canonical_text, hash_entry
from counterseal.audit.statements import PrivateValues, writer_for
from counterseal.core.codec import JsonValue, to_text
from counterseal.core.errors import CodecError
from counterseal.database.direct import Transaction
from counterseal.database.engine import Database
from counterseal.database.faults import DRIVER_ERRORS
from counterseal.database.tables import audit_entries, audit_values

PRIVATE_KINDS: Final = frozenset({"name", "email", "ip", "user_agent", "location", "free_text"})
"""The kinds of values that enter a body as a commitment."""

SYSTEM: Final = "system"
"""The stream of what concerns no request and no account."""

_STREAM: Final = re.compile(r"(?:request|account):.+|system", re.DOTALL)
_ACTION_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class AuditDraft(TypedDict):
    """What `append` is given for one entry."""

    stream: str
    action: str
    body: Mapping[str, JsonValue]
    private: NotRequired[Mapping[str, str | None]]
    subject: NotRequired[str | None]


class Audit:
    """The audit log: streams of entries, each with the hash of the one before it.

    Streams are `request:<id>`, `account:<id>` and `system`. `now_ms` tells milliseconds since 1970.
    """

    def __init__(self, database: Database, *, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = now_ms

    async def append(
        self,
        connection: Transaction,
        *,
        stream: str,
        action: str,
        body: Mapping[str, JsonValue],
        private: Mapping[str, str | None] | None = None,
        subject: str | None = None,
    ) -> AuditEntry:
        """Write an entry in the caller's transaction. The head of the stream stays locked until that ends.

        `action` has the form `session.created` and is hashed as the member `action` of the body. Members of `private`,
        by their kind (`PRIVATE_KINDS`), enter the body as the hex of a salted SHA-256; value and salt are kept where
        they can be erased, as values of `subject` (a user id). A value that is None is null in the body.

        No entry, no change: when it can't be written the caller's transaction is rolled back, whatever the caller does
        with the error. Raises `CodecError` for what is not JSON, floats and NUL in a private value among it, and
        `ValueError` for a malformed name. In the caller's transaction: two statements on PostgreSQL; on SQLite three,
        and a fourth for private values.
        """
        draft: AuditDraft = {
            "stream": stream,
            "action": action,
            "body": body,
            "private": private or {},
            "subject": subject,
        }
        [entry] = await self.append_many(connection, [draft])
        return entry

    async def append_many(self, connection: Transaction, drafts: Sequence[AuditDraft]) -> list[AuditEntry]:
        """Write entries in the caller's transaction, all at once. Those of one stream follow each other as they came.

        Everything is as with `append`, and heads are locked in the order of their streams. In the caller's transaction:
        two statements on PostgreSQL; on SQLite three, and a fourth for private values, however many entries there are.
        """
        if not drafts:
            return []
        try:
            return await self._append(connection, [_prepare(**draft) for draft in drafts])
        except BaseException:
            with suppress(*DRIVER_ERRORS):  # on a lost connection there is nothing left to roll back
                await connection.rollback()
            raise

    async def read(self, stream: str, *, after: int = 0, limit: int = 100) -> list[AuditEntry]:
        """At most `limit` entries of a stream, in order, those with a number above `after`. One transaction."""
        columns = audit_entries.c
        query = (
            select(audit_entries)
            .where(columns.stream == stream, columns.seq > after)
            .order_by(columns.seq)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [
                AuditEntry(
                    row.stream, row.seq, bytes(row.hash), bytes(row.prev), row.ts, row.action, row.body
                )
                for row in rows
            ]

    async def erase(
        self, connection: AsyncConnection, *, subject: str | None = None, commitment: bytes | None = None
    ) -> int:
        """Erase the private values of a subject, or that of one commitment. Answers how many.

        Values and salts go, so that nobody can guess a value and compare; entries stay as they are and still verify.
        Done in the caller's transaction, with an entry `value.erased` in the stream `system` when there were any.
        """
        if (subject is None) == (commitment is None):
            raise ValueError("expected a subject or a commitment, and not both")
        columns = audit_values.c
        wanted = columns.subject_id == subject if commitment is None else columns.commitment == commitment
        answer = await connection.execute(
            update(audit_values)
            .where(wanted, columns.erased_at.is_(None))
            .values(value=None, salt=b"", erased_at=self._now())
        )
        erased = answer.rowcount
        if erased:
            await self.append(connection, stream=SYSTEM, action="value.erased", body={"values": erased})
        return erased

    async def _append(self, connection: Transaction, drafts: Sequence[_Prepared]) -> list[AuditEntry]:
        writer = writer_for(connection)
        heads = await writer.lock(connection, sorted({draft.stream for draft in drafts}))
        at = self._now()  # only now: there may have been a long wait for the lock
        entries: list[AuditEntry] = []
        for draft in drafts:
            entries.append(entry := draft.after(heads[draft.stream], at))
            heads[draft.stream] = (entry.seq, entry.hash)
        await writer.write(connection, entries, [draft.values for draft in drafts], heads)
        return entries

    def _now(self) -> datetime:
        return _EPOCH + timedelta(milliseconds=self._now_ms())


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An entry that lacks its place in its stream."""

    stream: str
    action: str
    body: str
    values: PrivateValues

    def after(self, head: tuple[int, bytes], at: datetime) -> AuditEntry:
        seq, prev = head[0] + 1, head[1]
        digest = hash_entry(self.stream, seq, prev, at, self.body)
        return AuditEntry(self.stream, seq, digest, prev, at, self.action, self.body)


def _prepare(
    stream: str,
    action: str,
    body: Mapping[str, JsonValue],
    private: Mapping[str, str | None] | None = None,
    subject: str | None = None,
) -> _Prepared:
    values = _private_values(body, private or {}, subject)
    _check_names(stream, action)
    return _Prepared(stream, action, canonical_text({**body, **values.members, ACTION: action}), values)


def _check_names(stream: str, action: str) -> None:
    if not _STREAM.fullmatch(stream) or "\0" in stream:
        raise ValueError("expected a stream to be request:<id>, account:<id> or system")
    if not _ACTION_NAME.fullmatch(action):
        raise ValueError("expected an action of the form session.created")


def _private_values(
    body: Mapping[str, JsonValue], texts: Mapping[str, str | None], subject: str | None
) -> PrivateValues:
    if taken := body.keys() & {ACTION, *texts}:
        raise ValueError(f"a body has members that are given beside it: {', '.join(sorted(taken))}")
    if unknown := texts.keys() - PRIVATE_KINDS:
        raise ValueError(f"private values are {', '.join(sorted(PRIVATE_KINDS))}; not {sorted(unknown)[0]}")
    to_text(dict(texts))  # refuses what is no text
    for kind, value in texts.items():
        if value is not None and "\0" in value:
            raise CodecError("a private value has a NUL, which PostgreSQL can't keep", path=f"$.{kind}")
    return PrivateValues(texts, subject)
