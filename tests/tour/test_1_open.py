"""Tour 1: open counterseal with nothing configured.

`Counterseal.open()` reads the settings from the environment. With none set it starts a Valkey of its own and keeps its
data in a folder. Leaving the block closes everything again.
"""

from pathlib import Path

from counterseal import Counterseal, Settings


async def test_one_line_opens_everything(tmp_path: Path) -> None:
    async with Counterseal.open(Settings(data_dir=tmp_path / "data")) as seal:
        assert seal.store.kind == "embedded"
        assert seal.store.server.product == "valkey"
        assert await seal.store.command("PING") == b"PONG"
        assert seal.database.kind == "sqlite"
        await seal.database.ping()


async def test_redis_is_named_by_its_url(tmp_path: Path, valkey) -> None:
    settings = Settings.load(
        {
            "REDIS_URL": valkey.url,
            "COUNTERSEAL_DATA_DIR": str(tmp_path),
            "COUNTERSEAL_COMMAND_TIMEOUT": "2s",
        }
    )
    async with Counterseal.open(settings) as seal:
        assert seal.store.kind == "native"
