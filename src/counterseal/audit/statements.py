"""Statements: how an entry gets into the tables, with as few turns to the database as each of them allows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from sqlalchemy import LargeBinary, Text, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.audit.chain import FIRST_PREV, AuditEntry, commitment_of
from counterseal.database.tables import audit_entries, audit_heads, audit_values

_SALT_BYTES: Final = 32
_ENTRIES: Final = audit_entries.c
_HEADS: Final = audit_heads.c
_VALUES: Final = audit_values.c


class PrivateValues:
    """Values of one entry on their way in, by kind: each with a salt of its own and the commitment to both."""

    def __init__(self, texts: Mapping[str, str | None], subject: str | None) -> None:
        self.members: dict[str, str | None] = dict.fromkeys(texts)
        """What stands for them in the body: a commitment in hex, or None for a value that is None."""
        self.rows: list[dict[str, Any]] = []
        for kind, value in texts.items():
            if value is None:
                continue
            salt = secrets.token_bytes(_SALT_BYTES)
            commitment = commitment_of(salt, value)
            self.members[kind] = commitment.hex()
            self.rows.append(
                {"commitment": commitment, "kind": kind, "salt": salt, "value": value, "subject_id": subject}
            )


class Writer(Protocol):
    """Appends to a stream in a transaction: `lock` first, then `write`."""

    async def lock(self, connection: AsyncConnection, stream: str) -> tuple[int, bytes]:
        """Number and hash of the last entry of a stream, which nobody else appends to from here on."""
        ...

    async def write(self, connection: AsyncConnection, entry: AuditEntry, values: PrivateValues) -> None:
        """Write an entry and its values, and make it the head of its stream."""
        ...


def writer_for(connection: AsyncConnection) -> Writer:
    """The writer for the database of a connection."""
    return _POSTGRESQL if connection.dialect.name == "postgresql" else _SQLITE


class _PostgresqlWriter:
    """Two statements: one makes or finds the head and locks it, one writes all rows."""

    def __init__(self) -> None:
        head = postgresql.insert(audit_heads).values(
            stream=bindparam("of_stream"), seq=0, hash=bindparam("first_prev")
        )
        # The update changes nothing: it is there to lock a head that exists and to answer it.
        self._lock = head.on_conflict_do_update(
            index_elements=[_HEADS.stream], set_={"seq": _HEADS.seq}
        ).returning(_HEADS.seq, _HEADS.hash)
        entry = insert(audit_entries).values(
            {column.name: bindparam(f"of_{column.name}", type_=column.type) for column in _ENTRIES}
        )
        raised = (
            update(audit_heads)
            .where(_HEADS.stream == bindparam("of_stream"))
            .values(seq=bindparam("of_seq"), hash=bindparam("of_hash"))
        )
        given = (
            func.unnest(
                bindparam("commitments", type_=postgresql.ARRAY(LargeBinary)),
                bindparam("kinds", type_=postgresql.ARRAY(Text)),
                bindparam("salts", type_=postgresql.ARRAY(LargeBinary)),
                bindparam("texts", type_=postgresql.ARRAY(Text)),
            )
            .table_valued("commitment", "kind", "salt", "value", name="given")
            .render_derived()
        )
        private = insert(audit_values).from_select(
            ["commitment", "kind", "salt", "value", "subject_id", "created_at"],
            select(
                given.c.commitment,
                given.c.kind,
                given.c.salt,
                given.c.value,
                bindparam("of_subject", type_=_VALUES.subject_id.type),
                bindparam("of_ts", type_=_VALUES.created_at.type),
            ),
        )
        self._write = raised.add_cte(entry.cte("entry"))
        self._write_with_values = self._write.add_cte(private.cte("private"))

    async def lock(self, connection: AsyncConnection, stream: str) -> tuple[int, bytes]:
        answer = await connection.execute(self._lock, {"of_stream": stream, "first_prev": FIRST_PREV})
        seq, prev = answer.one()
        return seq, bytes(prev)

    async def write(self, connection: AsyncConnection, entry: AuditEntry, values: PrivateValues) -> None:
        given = {f"of_{name}": value for name, value in _row(entry).items()}
        if not values.rows:
            await connection.execute(self._write, given)
            return
        given |= {
            "commitments": [row["commitment"] for row in values.rows],
            "kinds": [row["kind"] for row in values.rows],
            "salts": [row["salt"] for row in values.rows],
            "texts": [row["value"] for row in values.rows],
            "of_subject": values.rows[0]["subject_id"],
        }
        await connection.execute(self._write_with_values, given)


class _SqliteWriter:
    """Three statements, and one more for values. The transaction has been the only writer since it began."""

    def __init__(self) -> None:
        self._read = select(_HEADS.seq, _HEADS.hash).where(_HEADS.stream == bindparam("of_stream"))
        head = sqlite.insert(audit_heads)
        self._raise = head.on_conflict_do_update(
            index_elements=[_HEADS.stream], set_={"seq": head.excluded.seq, "hash": head.excluded.hash}
        )
        self._entry = insert(audit_entries)
        self._values = insert(audit_values)

    async def lock(self, connection: AsyncConnection, stream: str) -> tuple[int, bytes]:
        answer = await connection.execute(self._read, {"of_stream": stream})
        head = answer.one_or_none()
        return (0, FIRST_PREV) if head is None else (head.seq, bytes(head.hash))

    async def write(self, connection: AsyncConnection, entry: AuditEntry, values: PrivateValues) -> None:
        await connection.execute(self._entry, _row(entry))
        if values.rows:
            await connection.execute(self._values, [row | {"created_at": entry.at} for row in values.rows])
        await connection.execute(self._raise, {"stream": entry.stream, "seq": entry.seq, "hash": entry.hash})


def _row(entry: AuditEntry) -> dict[str, int | str | bytes | datetime]:
    return {
        "stream": entry.stream,
        "seq": entry.seq,
        "ts": entry.at,
        "action": entry.action,
        "prev": entry.prev,
        "hash": entry.hash,
        "body": entry.body,
    }


_POSTGRESQL: Final = _PostgresqlWriter()
_SQLITE: Final = _SqliteWriter()
