"""Statements: how an entry gets into the tables, with as few turns to the database as each of them allows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from sqlalchemy import BigInteger, LargeBinary, Text, bindparam, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from counterseal.audit.chain import FIRST_PREV, AuditEntry, commitment_of
from counterseal.database.arrays import by_column, unnested
from counterseal.database.columns import json_text
from counterseal.database.direct import Statement, Transaction
from counterseal.database.tables import audit_entries, audit_heads, audit_values

_SALT_BYTES: Final = 32
_ENTRIES: Final = audit_entries.c
_HEADS: Final = audit_heads.c
_VALUES: Final = audit_values.c

# The columns that differ from row to row, in the types that PostgreSQL gets its arrays in.
_ENTRY: Final[dict[str, type[TypeEngine[Any]]]] = {
    "stream": Text,
    "seq": BigInteger,
    "action": Text,
    "prev": LargeBinary,
    "hash": LargeBinary,
    "body": Text,
}
_HEAD: Final[dict[str, type[TypeEngine[Any]]]] = {"stream": Text, "seq": BigInteger, "hash": LargeBinary}
_VALUE: Final[dict[str, type[TypeEngine[Any]]]] = {
    "commitment": LargeBinary,
    "kind": Text,
    "salt": LargeBinary,
    "value": Text,
    "subject_id": Text,
}


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
    """Appends to streams in a transaction: `lock` first, then `write`."""

    async def lock(self, connection: Transaction, streams: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """Number and hash of the last entry of each stream, which nobody else appends to from here on.

        They are locked in this order.
        """
        ...

    async def write(
        self,
        connection: Transaction,
        entries: Sequence[AuditEntry],
        values: Sequence[PrivateValues],
        heads: Mapping[str, tuple[int, bytes]],
    ) -> None:
        """Write entries and the values of each, and make `heads` the heads of their streams."""
        ...


def writer_for(connection: Transaction) -> Writer:
    """The writer for the database of a transaction."""
    return _POSTGRESQL if connection.dialect.name == "postgresql" else _SQLITE


class _PostgresqlWriter:
    """Two statements: one makes or finds the heads and locks them, one writes all rows."""

    def __init__(self) -> None:
        streams = unnested("streams", {"stream": Text})
        many = postgresql.insert(audit_heads).from_select(
            ["stream", "seq", "hash"],
            select(streams.c.stream, literal(0), bindparam("first_prev", type_=LargeBinary)),
        )
        # The update changes nothing: it is there to lock a head that exists and to answer it.
        self._lock = Statement(
            many.on_conflict_do_update(index_elements=[_HEADS.stream], set_={"seq": _HEADS.seq}).returning(
                _HEADS.stream, _HEADS.seq, _HEADS.hash
            )
        )
        written = unnested("written", _ENTRY)
        entries = insert(audit_entries).from_select(
            [*written.c.keys(), "ts"], select(*written.c, bindparam("of_ts", type_=_ENTRIES.ts.type))
        )
        given = unnested("given", _VALUE)
        private = insert(audit_values).from_select(
            [*given.c.keys(), "created_at"],
            select(*given.c, bindparam("of_ts", type_=_VALUES.created_at.type)),
        )
        heads = unnested("heads", _HEAD)
        raised = (
            update(audit_heads)
            .where(_HEADS.stream == heads.c.stream)
            .values(seq=heads.c.seq, hash=heads.c.hash)
            .add_cte(entries.cte("entries"))
        )
        self._write = Statement(raised)
        self._write_with_values = Statement(raised.add_cte(private.cte("private")))

    async def lock(self, connection: Transaction, streams: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        given = {"streams_stream": list(streams), "first_prev": FIRST_PREV}
        answer = await self._lock.rows(connection, given)
        return {stream: (seq, prev) for stream, seq, prev in answer}

    async def write(
        self,
        connection: Transaction,
        entries: Sequence[AuditEntry],
        values: Sequence[PrivateValues],
        heads: Mapping[str, tuple[int, bytes]],
    ) -> None:
        rows = [_row(entry) for entry in entries]
        given = by_column("written", _ENTRY, rows) | by_column("heads", _HEAD, _head_rows(heads))
        private = [row for one in values for row in one.rows]
        if private:
            given |= by_column("given", _VALUE, private)
        statement = self._write_with_values if private else self._write
        await statement.write(connection, {**given, "of_ts": entries[0].at})


class _SqliteWriter:
    """Three statements, and one more for values. The transaction has been the only writer since it began."""

    def __init__(self) -> None:
        # One parameter for all, so that the text is the same however many there are.
        among = func.json_each(bindparam("of_streams", type_=Text)).table_valued("value")
        self._read = Statement(
            select(_HEADS.stream, _HEADS.seq, _HEADS.hash).where(_HEADS.stream.in_(select(among.c.value)))
        )
        head = sqlite.insert(audit_heads)
        raised = head.on_conflict_do_update(
            index_elements=[_HEADS.stream], set_={"seq": head.excluded.seq, "hash": head.excluded.hash}
        )
        self._raise = Statement(raised, columns=tuple(_HEAD))
        self._entry = Statement(insert(audit_entries), columns=(*_ENTRY, "ts"))
        self._values = Statement(insert(audit_values), columns=(*_VALUE, "created_at"))

    async def lock(self, connection: Transaction, streams: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        answer = await self._read.rows(connection, {"of_streams": json_text(list(streams))})
        heads = {stream: (seq, prev) for stream, seq, prev in answer}
        return {stream: heads.get(stream, (0, FIRST_PREV)) for stream in streams}

    async def write(
        self,
        connection: Transaction,
        entries: Sequence[AuditEntry],
        values: Sequence[PrivateValues],
        heads: Mapping[str, tuple[int, bytes]],
    ) -> None:
        await self._entry.write(connection, *map(_row, entries))
        created_at = entries[0].at
        rows = [row | {"created_at": created_at} for one in values for row in one.rows]
        if rows:
            await self._values.write(connection, *rows)
        await self._raise.write(connection, *_head_rows(heads))


def _head_rows(heads: Mapping[str, tuple[int, bytes]]) -> list[dict[str, int | str | bytes]]:
    return [{"stream": stream, "seq": seq, "hash": digest} for stream, (seq, digest) in heads.items()]


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
