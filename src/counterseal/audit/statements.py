"""Statements: how an entry gets into the tables, with as few turns to the database as each of them allows."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from sqlalchemy import BigInteger, LargeBinary, Text, bindparam, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from counterseal.audit.chain import FIRST_PREV, AuditEntry, commitment_of
from counterseal.database.columns import json_text
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
    """Appends to a stream in a transaction: `lock` first, then `write`."""

    async def lock(self, connection: AsyncConnection, stream: str) -> tuple[int, bytes]:
        """Number and hash of the last entry of a stream, which nobody else appends to from here on."""
        ...

    async def write(self, connection: AsyncConnection, entry: AuditEntry, values: PrivateValues) -> None:
        """Write an entry and its values, and make it the head of its stream."""
        ...

    async def lock_all(
        self, connection: AsyncConnection, streams: Sequence[str]
    ) -> dict[str, tuple[int, bytes]]:
        """As `lock`, for several streams, which are locked in this order: number and hash by stream."""
        ...

    async def write_all(
        self,
        connection: AsyncConnection,
        entries: Sequence[AuditEntry],
        values: Sequence[PrivateValues],
        heads: Mapping[str, tuple[int, bytes]],
    ) -> None:
        """Write entries and the values of each, and make `heads` the heads of their streams."""
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
        streams = _unnested("streams", stream=Text)
        many = postgresql.insert(audit_heads).from_select(
            ["stream", "seq", "hash"],
            select(streams.c.stream, literal(0), bindparam("first_prev", type_=LargeBinary)),
        )
        self._lock_all = many.on_conflict_do_update(
            index_elements=[_HEADS.stream], set_={"seq": _HEADS.seq}
        ).returning(_HEADS.stream, _HEADS.seq, _HEADS.hash)
        entry = insert(audit_entries).values(
            {column.name: bindparam(f"of_{column.name}", type_=column.type) for column in _ENTRIES}
        )
        raised = (
            update(audit_heads)
            .where(_HEADS.stream == bindparam("of_stream"))
            .values(seq=bindparam("of_seq"), hash=bindparam("of_hash"))
        )
        given = _unnested("given", **_VALUE)
        private = insert(audit_values).from_select(
            [*given.c.keys(), "created_at"],
            select(*given.c, bindparam("of_ts", type_=_VALUES.created_at.type)),
        )
        self._write = raised.add_cte(entry.cte("entry"))
        self._write_with_values = self._write.add_cte(private.cte("private"))
        written = _unnested("written", **_ENTRY)
        entries = insert(audit_entries).from_select(
            [*written.c.keys(), "ts"], select(*written.c, bindparam("of_ts", type_=_ENTRIES.ts.type))
        )
        heads = _unnested("heads", **_HEAD)
        self._write_all = (
            update(audit_heads)
            .where(_HEADS.stream == heads.c.stream)
            .values(seq=heads.c.seq, hash=heads.c.hash)
            .add_cte(entries.cte("entries"), private.cte("private"))
        )

    async def lock(self, connection: AsyncConnection, stream: str) -> tuple[int, bytes]:
        answer = await connection.execute(self._lock, {"of_stream": stream, "first_prev": FIRST_PREV})
        seq, prev = answer.one()
        return seq, bytes(prev)

    async def write(self, connection: AsyncConnection, entry: AuditEntry, values: PrivateValues) -> None:
        given = {f"of_{name}": value for name, value in _row(entry).items()}
        if not values.rows:
            await connection.execute(self._write, given)
            return
        await connection.execute(self._write_with_values, given | _columns("given", _VALUE, values.rows))

    async def lock_all(
        self, connection: AsyncConnection, streams: Sequence[str]
    ) -> dict[str, tuple[int, bytes]]:
        given = {"streams_stream": list(streams), "first_prev": FIRST_PREV}
        answer = await connection.execute(self._lock_all, given)
        return {stream: (seq, bytes(prev)) for stream, seq, prev in answer}

    async def write_all(
        self,
        connection: AsyncConnection,
        entries: Sequence[AuditEntry],
        values: Sequence[PrivateValues],
        heads: Mapping[str, tuple[int, bytes]],
    ) -> None:
        rows = [_row(entry) for entry in entries]
        given = _columns("written", _ENTRY, rows)
        given |= _columns("given", _VALUE, [row for one in values for row in one.rows])
        given |= _columns("heads", _HEAD, _head_rows(heads))
        await connection.execute(self._write_all, given | {"of_ts": rows[0]["ts"]})


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
        # One parameter for all, so that the text is the same however many there are.
        among = func.json_each(bindparam("of_streams", type_=Text)).table_valued("value")
        self._read_all = select(_HEADS.stream, _HEADS.seq, _HEADS.hash).where(
            _HEADS.stream.in_(select(among.c.value))
        )

    async def lock(self, connection: AsyncConnection, stream: str) -> tuple[int, bytes]:
        answer = await connection.execute(self._read, {"of_stream": stream})
        head = answer.one_or_none()
        return (0, FIRST_PREV) if head is None else (head.seq, bytes(head.hash))

    async def write(self, connection: AsyncConnection, entry: AuditEntry, values: PrivateValues) -> None:
        await connection.execute(self._entry, _row(entry))
        if values.rows:
            await connection.execute(self._values, [row | {"created_at": entry.at} for row in values.rows])
        await connection.execute(self._raise, _head_rows({entry.stream: (entry.seq, entry.hash)})[0])

    async def lock_all(
        self, connection: AsyncConnection, streams: Sequence[str]
    ) -> dict[str, tuple[int, bytes]]:
        answer = await connection.execute(self._read_all, {"of_streams": json_text(list(streams))})
        heads = {stream: (seq, bytes(prev)) for stream, seq, prev in answer}
        return {stream: heads.get(stream, (0, FIRST_PREV)) for stream in streams}

    async def write_all(
        self,
        connection: AsyncConnection,
        entries: Sequence[AuditEntry],
        values: Sequence[PrivateValues],
        heads: Mapping[str, tuple[int, bytes]],
    ) -> None:
        await connection.execute(self._entry, [_row(entry) for entry in entries])
        created_at = entries[0].at
        rows = [row | {"created_at": created_at} for one in values for row in one.rows]
        if rows:
            await connection.execute(self._values, rows)
        await connection.execute(self._raise, _head_rows(heads))


def _unnested(name: str, **types: type[TypeEngine[Any]]) -> TableValuedAlias:
    """Rows that come as one array for each column, `<name>_<column>`."""
    arrays = [bindparam(f"{name}_{column}", type_=postgresql.ARRAY(kind)) for column, kind in types.items()]
    return func.unnest(*arrays).table_valued(*types, name=name).render_derived()


def _columns(name: str, columns: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as `_unnested` takes them."""
    return {f"{name}_{column}": [row[column] for row in rows] for column in columns}


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
