"""What the tour walks through: counterseal, open on a Valkey."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from counterseal import Counterseal, Settings
from support.servers import Server


@pytest.fixture
async def seal(valkey: Server, data_dir: Path) -> AsyncIterator[Counterseal]:
    settings = Settings.load(
        {
            "REDIS_URL": valkey.url,
            "COUNTERSEAL_DATA_DIR": str(data_dir),
            "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
        }
    )
    async with Counterseal.open(settings) as seal:
        yield seal
