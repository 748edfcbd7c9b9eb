"""What Alembic runs: the migrations, on the connection and in the transaction of whoever asked for them."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from counterseal.database.migration import version_table
from counterseal.database.tables import METADATA


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        include_schemas=True,
        render_as_batch=connection.dialect.name == "sqlite",
        **version_table(connection.dialect.name),
    )
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])
