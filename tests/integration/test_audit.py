"""The audit log on both databases: in the transaction of what it tells, one chain whoever writes, erasable values."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import DropTable

from counterseal.audit.chain import AuditEntry, BrokenEntry, Flaw, verify_entries
from counterseal.audit.service import Audit
from counterseal.core.errors import CodecError, DatabaseError
from counterseal.database.engine import Database
from counterseal.database.tables import audit_heads, audit_values, global_epochs
from support.databases import EVERY, Databases, Place

NOW_MS = 1_795_392_561_538
NOW = datetime(2026, 11, 23, 0, 9, 21, 538000, tzinfo=UTC)
STREAM = "account:u1"


class Clock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def audit(database: Database, clock: Clock) -> Audit:
    return Audit(database, now_ms=clock)


@pytest.fixture
def statements(database: Database) -> Iterator[list[str]]:
    """What is sent to the database, statement by statement."""
    sent: list[str] = []
    assert database._engine is not None
    engine = database._engine.sync_engine

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement.split(maxsplit=1)[0])

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


async def append(audit: Audit, database: Database, **options: Any) -> AuditEntry:
    given = {"stream": STREAM, "action": "session.created", "body": {"session": "s1"}} | options
    async with database.begin() as connection:
        return await audit.append(connection, **given)


async def mark(connection: AsyncConnection, name: str) -> None:
    """A change that an entry tells of."""
    await connection.execute(insert(global_epochs).values(name=name, value=1))


async def marks(database: Database) -> list[str]:
    async with database.read() as connection:
        return list((await connection.execute(select(global_epochs.c.name))).scalars())


async def values(database: Database) -> list[Any]:
    async with database.read() as connection:
        return list(await connection.execute(select(audit_values).order_by(audit_values.c.kind)))


async def rewrite(place: Place, databases: Databases, column: str, value: str) -> None:
    """Change the second entry behind the back of the triggers, as who owns the database can."""
    if place.kind == "sqlite":
        async with place.database() as database, database.begin() as connection:
            triggers = await connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
            for name in triggers.scalars().all():
                await connection.execute(text(f"DROP TRIGGER {name}"))
            await connection.execute(
                text(f"UPDATE counterseal_audit_entries SET {column} = :value WHERE seq = 2"),
                {"value": value},
            )
        return
    await databases.execute(place, "ALTER TABLE counterseal.audit_entries DISABLE TRIGGER ALL")
    await databases.execute(place, f"UPDATE counterseal.audit_entries SET {column} = '{value}' WHERE seq = 2")


async def test_entries_come_back_as_they_were_appended(
    audit: Audit, database: Database, clock: Clock
) -> None:
    written = [await append(audit, database)]
    clock.ms += 1
    written.append(
        await append(
            audit, database, action="session.revoked", body={"deep": [{"b": None, "a": "é"}], "n": -1}
        )
    )
    read = await audit.read(STREAM)
    assert read == written
    assert [entry.seq for entry in read] == [1, 2]
    assert [entry.at for entry in read] == [NOW, NOW + timedelta(milliseconds=1)]
    assert read[1].body == '{"action":"session.revoked","deep":[{"a":"é","b":null}],"n":-1}'
    assert verify_entries(read) is None
    assert await audit.read("account:u2") == []


async def test_a_stream_is_read_in_pieces(audit: Audit, database: Database) -> None:
    written = [await append(audit, database, body={"n": n}) for n in range(5)]
    assert await audit.read(STREAM, limit=2) == written[:2]
    assert await audit.read(STREAM, after=2, limit=2) == written[2:4]
    assert await audit.read(STREAM, after=5) == []


async def test_an_entry_is_hashed_with_the_time_that_is_stored(audit: Audit, database: Database) -> None:
    entry = await append(audit, database, body={})
    lines = f'{STREAM}\n1\n{"00" * 32}\n2026-11-23T00:09:21.538000Z\n{{"action":"session.created"}}'
    assert entry.hash == hashlib.sha256(lines.encode()).digest()
    assert (await audit.read(STREAM))[0].at == entry.at


@pytest.mark.parametrize("place", EVERY, indirect=True)
async def test_eight_writers_of_one_stream_make_no_fork(place: Place, clock: Clock) -> None:
    async def write(database: Database, writer: int) -> None:
        audit = Audit(database, now_ms=clock)
        for n in range(10):
            await append(audit, database, body={"writer": writer, "n": n}, private={"ip": f"10.0.0.{writer}"})

    async with place.database() as one, place.database() as other:
        await asyncio.gather(*(write(one if writer % 2 else other, writer) for writer in range(8)))
        entries = await Audit(one, now_ms=clock).read(STREAM, limit=1000)
        assert [entry.seq for entry in entries] == list(range(1, 81))
        assert verify_entries(entries) is None
        bodies = [json.loads(entry.body) for entry in entries]
        for writer in range(8):
            assert [body["n"] for body in bodies if body["writer"] == writer] == list(range(10))
        async with one.read() as connection:
            head = (await connection.execute(select(audit_heads))).one()
        assert (head.stream, head.seq, head.hash) == (STREAM, 80, entries[-1].hash)


async def test_streams_are_chains_of_their_own(audit: Audit, database: Database) -> None:
    for stream in ("account:a", "system", "account:a", "request:7"):
        await append(audit, database, stream=stream)
    assert [len(await audit.read(stream)) for stream in ("account:a", "system", "request:7")] == [2, 1, 1]


async def test_what_is_rolled_back_leaves_no_entry_and_no_gap(audit: Audit, database: Database) -> None:
    async def fail() -> None:
        async with database.begin() as connection:
            await audit.append(
                connection, stream=STREAM, action="session.created", body={}, private={"ip": "::1"}
            )
            raise LookupError

    await append(audit, database)
    with pytest.raises(LookupError):
        await fail()
    await append(audit, database)
    entries = await audit.read(STREAM)
    assert [entry.seq for entry in entries] == [1, 2]
    assert verify_entries(entries) is None
    assert await values(database) == []


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"body": {"a": 1.5}}, CodecError),
        ({"body": {"a": "\ud800"}}, CodecError),
        ({"private": {"email": "a\x00b"}}, CodecError),
        ({"private": {"email": "\ud800"}}, CodecError),
        ({"private": {"phone": "1"}}, ValueError),
        ({"body": {"ip": "1"}, "private": {"ip": "1"}}, ValueError),
        ({"body": {"action": "x.y"}}, ValueError),
        ({"action": "created"}, ValueError),
        ({"action": "Session.created"}, ValueError),
        ({"stream": "session:1"}, ValueError),
        ({"stream": "account:"}, ValueError),
        ({"stream": "account:a\x00"}, ValueError),
    ],
)
async def test_a_refused_entry_takes_the_change_with_it(
    audit: Audit, database: Database, options: dict[str, Any], kind: type[Exception]
) -> None:
    given = {"stream": STREAM, "action": "session.created", "body": {}} | options
    async with database.begin() as connection:
        await mark(connection, "before")
        with pytest.raises(kind):
            await audit.append(connection, **given)
    assert await marks(database) == []
    assert await audit.read(STREAM) == []


async def test_a_caller_that_goes_on_after_a_failed_append_changes_nothing(
    audit: Audit, database: Database
) -> None:
    async def carry_on() -> None:
        async with database.begin() as connection:
            await mark(connection, "before")
            with pytest.raises(CodecError):
                await audit.append(connection, stream=STREAM, action="session.created", body={"a": 0.5})
            await mark(connection, "after")

    with pytest.raises(DatabaseError):
        await carry_on()
    assert await marks(database) == []


async def test_an_entry_that_the_database_refuses_takes_the_change_with_it(
    audit: Audit, database: Database
) -> None:
    async def write() -> None:
        async with database.begin() as connection:
            await mark(connection, "before")
            await audit.append(connection, stream=STREAM, action="session.created", body={})

    await append(audit, database)
    async with database.begin() as connection:
        # Without its head a stream begins anew, and the first number is taken.
        await connection.execute(DropTable(audit_heads))
        await connection.run_sync(audit_heads.create)
    with pytest.raises(DatabaseError):
        await write()
    assert await marks(database) == []
    assert len(await audit.read(STREAM)) == 1


@pytest.mark.parametrize(
    ("column", "changed"),
    [
        ("body", ('{"action":"session.created","deep":[{"a":2}],"n":1}', Flaw.HASH)),
        ("ts", ("2026-11-23T00:09:21.539000Z", Flaw.HASH)),
        ("action", ("session.revoked", Flaw.ACTION)),
    ],
)
async def test_one_changed_value_in_the_table_is_found(
    place: Place, databases: Databases, clock: Clock, column: str, changed: tuple[str, Flaw]
) -> None:
    value, flaw = changed
    async with place.database() as database:
        audit = Audit(database, now_ms=clock)
        for n in range(3):
            await append(audit, database, body={"deep": [{"a": 1}], "n": n})
        assert verify_entries(await audit.read(STREAM)) is None
    await rewrite(place, databases, column, value)
    async with place.database() as database:
        entries = await Audit(database, now_ms=clock).read(STREAM)
    assert verify_entries(entries) == BrokenEntry(STREAM, 2, flaw)


async def test_private_values_stand_in_the_body_as_salted_hashes(audit: Audit, database: Database) -> None:
    private = {"email": "Ada@example.org", "ip": "203.0.113.7", "user_agent": "", "location": None}
    first = await append(audit, database, private=private, subject="u1")
    second = await append(audit, database, private=private, subject="u1")
    rows = await values(database)
    assert [(row.kind, row.value, row.subject_id) for row in rows] == [
        (kind, private[kind], "u1") for kind in ("email", "email", "ip", "ip", "user_agent", "user_agent")
    ]
    bodies = [json.loads(entry.body) for entry in (first, second)]
    for row in rows:
        assert row.commitment == hashlib.sha256(row.salt + row.value.encode()).digest()
        assert row.commitment.hex() in {body[row.kind] for body in bodies}
        assert len(row.salt) == 32
    assert {body["location"] for body in bodies} == {None}
    assert bodies[0]["ip"] != bodies[1]["ip"]
    assert "203.0.113.7" not in first.body


async def test_erased_values_are_gone_and_the_chain_stays(
    audit: Audit, database: Database, clock: Clock
) -> None:
    await append(audit, database, private={"email": "ada@example.org", "ip": "203.0.113.7"}, subject="u1")
    await append(audit, database, private={"email": "bob@example.org"}, subject="u2")
    before = await audit.read(STREAM)
    clock.ms += 1000
    async with database.begin() as connection:
        assert await audit.erase(connection, subject="u1") == 2
    for row in await values(database):
        if row.subject_id == "u1":
            assert (row.value, row.salt, row.erased_at) == (None, b"", NOW + timedelta(seconds=1))
        else:
            assert (row.value, row.erased_at) == ("bob@example.org", None)
    assert await audit.read(STREAM) == before
    assert verify_entries(before) is None
    told = await audit.read("system")
    assert [entry.body for entry in told] == ['{"action":"value.erased","values":2}']


async def test_one_value_is_erased_once(audit: Audit, database: Database) -> None:
    entry = await append(audit, database, private={"email": "a@example.org", "ip": "::1"})
    commitment = bytes.fromhex(json.loads(entry.body)["ip"])
    async with database.begin() as connection:
        assert await audit.erase(connection, commitment=commitment) == 1
        assert await audit.erase(connection, commitment=commitment) == 0
        assert await audit.erase(connection, commitment=bytes(32)) == 0
    assert [row.value for row in await values(database)] == ["a@example.org", None]
    assert len(await audit.read("system")) == 1


async def test_erasing_needs_one_thing_to_go_by(audit: Audit, database: Database) -> None:
    async with database.begin() as connection:
        for which in ({}, {"subject": "u1", "commitment": bytes(32)}):
            with pytest.raises(ValueError, match="subject"):
                await audit.erase(connection, **which)


@pytest.mark.parametrize("private", [{}, {"ip": "::1", "email": "a@example.org", "user_agent": "x"}])
async def test_an_append_takes_few_statements(
    audit: Audit, database: Database, statements: list[str], private: dict[str, str]
) -> None:
    await append(audit, database)
    async with database.begin() as connection:
        statements.clear()
        await audit.append(connection, stream=STREAM, action="session.created", body={}, private=private)
        sent = list(statements)
    if database.kind == "postgresql":
        assert sent == ["INSERT", "WITH"]
    else:
        assert sent == ["SELECT", "INSERT", *(["INSERT"] if private else []), "INSERT"]
