"""Several entries appended at once are the ones that one after the other would have been, on both databases."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, select

from counterseal.audit.chain import AuditEntry, verify_entries
from counterseal.audit.service import Audit, AuditDraft
from counterseal.core.errors import CodecError
from counterseal.database.engine import Database
from counterseal.database.tables import audit_entries, audit_heads, audit_values
from support.databases import EVERY, Place

NOW_MS = 1_795_392_561_538
NOW = datetime(2026, 11, 23, 0, 9, 21, 538000, tzinfo=UTC)


@pytest.fixture
def audit(database: Database) -> Audit:
    return Audit(database, now_ms=lambda: NOW_MS)


def draft(stream: str, n: int, **members: Any) -> AuditDraft:
    return {"stream": stream, "action": "session.created", "body": {"n": n}, **members}  # type: ignore[typeddict-item]


async def append_many(audit: Audit, database: Database, drafts: list[AuditDraft]) -> list[AuditEntry]:
    async with database.begin() as connection:
        return await audit.append_many(connection, drafts)


async def rows(database: Database, table: Any) -> list[Any]:
    async with database.read() as connection:
        return list(await connection.execute(select(table)))


async def test_entries_of_many_streams_continue_each_of_them(audit: Audit, database: Database) -> None:
    async with database.begin() as connection:
        first = await audit.append(connection, stream="account:b", action="session.created", body={"n": 0})
    drafts = [draft("account:b", 1), draft("account:a", 2), draft("system", 3), draft("account:b", 4)]
    written = await append_many(audit, database, drafts)
    assert [(one.stream, one.seq, one.at) for one in written] == [
        ("account:b", 2, NOW),
        ("account:a", 1, NOW),
        ("system", 1, NOW),
        ("account:b", 3, NOW),
    ]
    async with database.begin() as connection:
        last = await audit.append(connection, stream="account:b", action="session.created", body={"n": 5})
    assert await audit.read("account:b") == [first, written[0], written[3], last]
    assert await audit.read("account:a") == [written[1]]
    for stream in ("account:a", "account:b", "system"):
        assert verify_entries(await audit.read(stream)) is None
    heads = {head.stream: (head.seq, bytes(head.hash)) for head in await rows(database, audit_heads)}
    assert heads == {
        "account:a": (1, written[1].hash),
        "account:b": (4, last.hash),
        "system": (1, written[2].hash),
    }


async def test_private_values_are_those_of_their_subjects(audit: Audit, database: Database) -> None:
    drafts = [
        draft(f"account:{name}", n, private={"ip": f"192.0.2.{n}", "email": None}, subject=name)
        for n, name in enumerate("abc")
    ]
    written = await append_many(audit, database, [*drafts, draft("system", 3)])
    found = {
        bytes(row.commitment).hex(): (row.subject_id, row.value) for row in await rows(database, audit_values)
    }
    bodies = [json.loads(entry.body) for entry in written]
    assert [found[body["ip"]] for body in bodies[:3]] == [
        ("a", "192.0.2.0"),
        ("b", "192.0.2.1"),
        ("c", "192.0.2.2"),
    ]
    assert [body.get("email") for body in bodies] == [None] * 4
    assert len({bytes(row.salt) for row in await rows(database, audit_values)}) == 3


async def test_one_refused_entry_takes_all_of_them_along(audit: Audit, database: Database) -> None:
    with pytest.raises(CodecError):
        await append_many(
            audit, database, [draft("account:a", 1), draft("account:b", 2, private={"ip": "\0"})]
        )
    with pytest.raises(ValueError, match="stream"):
        await append_many(audit, database, [draft("account:a", 1), draft("nowhere", 2)])
    assert await rows(database, audit_entries) == []
    assert await rows(database, audit_heads) == []


async def test_nothing_to_append_is_nothing(audit: Audit, database: Database) -> None:
    assert await append_many(audit, database, []) == []


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_those_who_append_to_the_same_streams_in_any_order_wait_for_each_other(place: Place) -> None:
    streams = [f"account:{n}" for n in range(10)]

    async def write(database: Database, order: list[str]) -> None:
        audit = Audit(database, now_ms=lambda: NOW_MS)
        for n in range(5):
            await append_many(audit, database, [draft(stream, n, private={"ip": "::1"}) for stream in order])

    async with place.database() as one, place.database() as other:
        await asyncio.gather(
            write(one, streams), write(other, streams[::-1]), write(one, streams[5:] + streams[:5])
        )
        for stream in streams:
            entries = await Audit(one, now_ms=lambda: NOW_MS).read(stream)
            assert [entry.seq for entry in entries] == list(range(1, 16))
            assert verify_entries(entries) is None


async def test_it_takes_as_few_statements_for_many_as_for_one(audit: Audit, database: Database) -> None:
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement)

    assert database._engine is not None
    event.listen(database._engine.sync_engine, "before_cursor_execute", note)
    async with database.begin() as connection:
        begun = len(sent)
        drafts = [draft(f"account:{n}", n, private={"ip": "::1"}) for n in range(50)]
        await audit.append_many(connection, drafts)
        assert len(sent) - begun == (2 if database.kind == "postgresql" else 4)
    event.remove(database._engine.sync_engine, "before_cursor_execute", note)
