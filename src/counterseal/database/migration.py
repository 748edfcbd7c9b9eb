"""Migration: which revision the tables of a database are at, and how they get to the one that this release needs.

The functions take a connection in a transaction and leave the commit to their caller, so an upgrade happens whole or
not at all, through a pooler too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import BigInteger, Connection, bindparam, func, select, text
from sqlalchemy.schema import CreateSchema

from counterseal.core.errors import ConfigurationError, DatabaseError
from counterseal.database.address import NAME
from counterseal.database.tables import SCHEMA

HEAD: Final = "0001"
VERSION_TABLE: Final = "alembic_version"

_SCRIPTS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x636F756E74657273  # "counters": one upgrade at a time


def version_table(dialect: str) -> dict[str, Any]:
    """Where the revision is kept, in the words of Alembic."""
    if dialect == "sqlite":
        return {"version_table": f"{SCHEMA}_{VERSION_TABLE}"}
    return {"version_table": VERSION_TABLE, "version_table_schema": SCHEMA}


def revision(connection: Connection) -> str | None:
    """The revision that the database is at; None when it has no tables of counterseal."""
    context = MigrationContext.configure(connection, opts=version_table(connection.dialect.name))
    return context.get_current_revision()


def is_known(found: str) -> bool:
    """Whether this release has the migration that led to this revision."""
    return found in {script.revision for script in ScriptDirectory(str(_SCRIPTS)).walk_revisions()}


def upgrade(connection: Connection) -> str | None:
    """Bring the tables to `HEAD`. Returns the revision that they were at.

    Raises `ConfigurationError` when a newer release has upgraded them, and `DatabaseError` when rows of SQLite refer
    to rows that are not there.
    """
    _make_room(connection)
    found = revision(connection)
    check_known(found, connection.dialect.name)
    if found != HEAD:
        command.upgrade(_configuration(connection), "head")
        _check_references(connection)
    return found


def downgrade(connection: Connection, target: str = "base") -> None:
    """Take migrations back to `target`. What only the newer tables held is lost."""
    _make_room(connection)
    command.downgrade(_configuration(connection), target)


def check_known(found: str | None, dialect: str) -> None:
    """Raise `ConfigurationError` for a revision of a newer release."""
    if found is not None and found != HEAD and not is_known(found):
        raise ConfigurationError(
            f"{setting(dialect)}: the database is at revision {found}, this release knows none after {HEAD}:"
            " install the newer release of counterseal that upgraded it"
        )


def check_current(found: str | None, dialect: str) -> None:
    """Raise `ConfigurationError` that says what to run for a revision other than `HEAD`."""
    check_known(found, dialect)
    if found != HEAD:
        raise ConfigurationError(
            f"{setting(dialect)}: the database is at revision {found or 'none'}, this release needs {HEAD}:"
            " run counterseal migrate"
        )


def setting(dialect: str) -> str:
    """The name of the setting that says which database it is."""
    return "COUNTERSEAL_DATA_DIR" if dialect == "sqlite" else NAME


def _make_room(connection: Connection) -> None:
    """Keep other upgrades out until the transaction ends, and make the schema. On SQLite both are there already."""
    if connection.dialect.name == "sqlite":
        return
    connection.execute(select(func.pg_advisory_xact_lock(bindparam("key", _LOCK, BigInteger))))
    # Not IF NOT EXISTS: that asks for the right to make schemas even when there is nothing to make.
    there = connection.execute(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": SCHEMA})
    if not there.scalar_one():
        connection.execute(CreateSchema(SCHEMA))


def _check_references(connection: Connection) -> None:
    """See that every foreign key of SQLite leads somewhere: nobody looked while tables were made anew."""
    if connection.dialect.name != "sqlite":
        return
    if lost := connection.execute(text("PRAGMA foreign_key_check")).all():
        raise DatabaseError(
            f"the upgrade was taken back: it would leave {len(lost)} rows that refer to nothing"
        )


def _configuration(connection: Connection) -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    configuration.attributes["connection"] = connection
    return configuration
