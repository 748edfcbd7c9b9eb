"""Migrating: the tables of the database that is configured, brought to those of this release."""

from __future__ import annotations

import asyncio

from counterseal.cli.faults import naming_settings
from counterseal.cli.loading import end_loading
from counterseal.core.settings import Settings
from counterseal.database.engine import Database
from counterseal.database.migration import HEAD


def run_migrate(settings: Settings) -> None:
    """Upgrade the database and print from which revision to which. Raises `ConfigurationError` when it can't."""
    end_loading()
    database = Database(settings.database.url, data_dir=settings.data_dir, timeout=settings.database.timeout)
    with naming_settings(settings):
        found = asyncio.run(_upgrade(database))
    print(f"Database   {database.description}")
    if found == HEAD:
        print(f"Revision   {HEAD}: nothing to do")
    else:
        print(f"Revision   {found or 'none'} -> {HEAD}")


async def _upgrade(database: Database) -> str | None:
    async with database:
        return await database.upgrade()
