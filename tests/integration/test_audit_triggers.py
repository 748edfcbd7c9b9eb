"""The audit tables on both databases: what was written stays, whoever asks through the application's own connection."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import Executable, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import DatabaseError
from counterseal.database.engine import Database
from counterseal.database.tables import audit_anchors, audit_entries, audit_heads, audit_values
from support.databases import EVERY

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TABLES = (audit_entries, audit_heads, audit_values, audit_anchors)

ENTRY = {"stream": "s", "ts": NOW, "action": "a", "prev": bytes(32), "body": "{}"}
VALUE = {
    "commitment": b"c",
    "kind": "name",
    "salt": b"s",
    "value": "Ada",
    "subject_id": "u",
    "created_at": NOW,
}
ANCHOR = {
    "created_at": NOW,
    "entry_count": 2,
    "merkle_root": b"m",
    "heads": {},
    "key_id": "k",
    "signature": b"g",
    "written_to": "f",
}


@pytest.fixture
async def log(database: Database) -> Database:
    """A database with two entries of one stream, their head, a value and an anchor."""
    async with database.begin() as connection:
        await connection.execute(insert(audit_entries).values(**ENTRY, seq=1, hash=b"1"))
        await connection.execute(insert(audit_entries).values(**ENTRY, seq=2, hash=b"2"))
        await connection.execute(insert(audit_heads).values(stream="s", seq=2, hash=b"2"))
        await connection.execute(insert(audit_values).values(**VALUE))
        await connection.execute(insert(audit_anchors).values(**ANCHOR))
    return database


async def contents(connection: AsyncConnection) -> list[list[tuple[object, ...]]]:
    return [
        [tuple(row) for row in await connection.execute(select(table).order_by(*table.primary_key))]
        for table in TABLES
    ]


async def refused(
    database: Database, statement: Executable, *, because: str = "the audit log can only grow"
) -> None:
    """See that a statement is refused for this reason, and changes nothing."""
    async with database.read() as connection:
        before = await contents(connection)
    with pytest.raises(DatabaseError) as fault:
        async with database.begin() as connection:
            await connection.execute(statement)
    assert because in str(fault.value.__cause__)
    async with database.read() as connection:
        assert await contents(connection) == before


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_no_row_of_the_log_is_deleted(log: Database) -> None:
    for table in TABLES:
        await refused(log, delete(table))
        await refused(log, delete(table).where(next(iter(table.primary_key)).is_not(None)))


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_no_entry_and_no_anchor_is_changed(log: Database) -> None:
    for column in audit_entries.c:
        changed = {"ts": datetime.now(UTC), "seq": audit_entries.c.seq + 10}.get(column.name, b"x")
        if column.name in {"stream", "action", "body"}:
            changed = "x"
        await refused(log, update(audit_entries).where(audit_entries.c.seq == 2).values({column: changed}))
    await refused(log, update(audit_entries).values(action=audit_entries.c.action))
    await refused(log, update(audit_anchors).values(entry_count=1))


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_a_head_goes_forward_only(log: Database) -> None:
    head = update(audit_heads)
    for values in ({"seq": 1}, {"seq": 1, "hash": b"1"}, {"hash": b"x"}, {"stream": "other"}):
        await refused(log, head.values(values))
    async with log.begin() as connection:
        await connection.execute(head.values(seq=audit_heads.c.seq))
        await connection.execute(head.values(seq=3, hash=b"3"))


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_a_value_is_erased_but_not_changed(log: Database) -> None:
    value = update(audit_values)
    for values in (
        {"value": "Eve"},
        {"value": None},
        {"erased_at": NOW},
        {"value": "Eve", "erased_at": NOW},
        {"value": None, "erased_at": NOW, "commitment": b"x"},
        {"value": None, "erased_at": NOW, "kind": "email"},
        {"value": None, "erased_at": NOW, "subject_id": None},
        {"value": None, "erased_at": NOW, "created_at": datetime.now(UTC)},
    ):
        await refused(log, value.values(values))
    async with log.begin() as connection:
        await connection.execute(value.values(value=None, salt=b"", erased_at=NOW))
    await refused(log, value.values(value="Ada", erased_at=None))


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_an_entry_does_not_take_the_place_of_another(log: Database) -> None:
    for seq, digest in ((1, b"x"), (2, b"x"), (3, b"1"), (3, b"2")):
        because = "the audit log can only grow" if log.kind == "sqlite" else "duplicate key"
        await refused(log, insert(audit_entries).values(**ENTRY, seq=seq, hash=digest), because=because)
    await refused(log, insert(audit_values).values(**VALUE), because=because)


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
async def test_sqlite_refuses_what_takes_the_place_of_a_row_without_deleting_it(log: Database) -> None:
    replace = "INSERT OR REPLACE INTO counterseal_audit"
    for statement in (
        f"{replace}_entries SELECT stream, 1, ts, action, prev, x'77', body FROM counterseal_audit_entries LIMIT 1",
        f"{replace}_entries SELECT stream, 2, ts, action, prev, x'77', body FROM counterseal_audit_entries LIMIT 1",
        f"{replace}_entries SELECT stream, 3, ts, action, prev, hash, body FROM counterseal_audit_entries LIMIT 1",
        f"{replace}_entries SELECT 't', 1, ts, action, prev, hash, body FROM counterseal_audit_entries LIMIT 1",
        f"{replace}_entries SELECT stream, 4, ts, action, prev, x'77', body FROM counterseal_audit_entries LIMIT 1",
        (
            f"{replace}_values SELECT commitment, kind, salt, 'Eve', subject_id, created_at, NULL"
            " FROM counterseal_audit_values"
        ),
        f"{replace}_heads VALUES ('s', 1, x'31')",
        (
            f"{replace}_anchors SELECT id, created_at, 7, merkle_root, heads, key_id, signature, timestamp_token,"
            " written_to FROM counterseal_audit_anchors"
        ),
        "UPDATE OR REPLACE counterseal_audit_entries SET seq = 1 WHERE seq = 2",
        (
            "INSERT OR IGNORE INTO counterseal_audit_entries SELECT stream, 5, ts, action, prev, x'77', body"
            " FROM counterseal_audit_entries LIMIT 1"
        ),
        (
            "INSERT INTO counterseal_audit_entries SELECT stream, 1, ts, action, prev, x'77', 'x'"
            " FROM counterseal_audit_entries WHERE true ON CONFLICT DO UPDATE SET body = 'x'"
        ),
        "INSERT INTO counterseal_audit_heads VALUES ('s', 1, x'31') ON CONFLICT DO UPDATE SET seq = excluded.seq",
    ):
        await refused(log, text(statement))


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
async def test_the_entries_of_sqlite_have_no_hidden_number_to_be_replaced_by(log: Database) -> None:
    await refused(log, text("UPDATE counterseal_audit_entries SET rowid = 7"), because="no such column")
    with pytest.raises(DatabaseError):
        async with log.read() as connection:
            await connection.execute(text("SELECT rowid FROM counterseal_audit_entries"))


@pytest.mark.parametrize("place", ["postgresql", "pgbouncer"], indirect=True)
async def test_postgresql_refuses_to_empty_the_log(log: Database) -> None:
    for table in TABLES:
        for end in ("", " CASCADE", " RESTART IDENTITY"):
            await refused(log, text(f"TRUNCATE counterseal.{table.name}{end}"))
    await refused(log, text("TRUNCATE counterseal.audit_heads, counterseal.users CASCADE"))
