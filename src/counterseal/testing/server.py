"""PrivateServer: an embedded server with a data folder of its own, for the process of a test."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from counterseal.core.settings import Fsync, Settings
from counterseal.store.embedded.folder import Endpoint
from counterseal.store.embedded.server import EmbeddedServer
from counterseal.store.open import open_store
from counterseal.testing.relay import Relay
from counterseal.testing.running import Running

# A machine that runs tests on all its cores keeps a server waiting for longer than one in production may take.
_PATIENT: Final = {"COUNTERSEAL_CONNECT_TIMEOUT": "5s", "COUNTERSEAL_COMMAND_TIMEOUT": "5s"}


class PrivateServer(Running):
    """A running server that nobody else uses: `with PrivateServer() as server`, once for each process of tests.

    It costs about a tenth of a second. At the end the server is ended and its folder is removed. It may be entered
    with or without an event loop.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._server: EmbeddedServer | None = None
        self._endpoint: Endpoint | None = None

    @property
    def data_dir(self) -> Path:
        """Its folder. Raises `RuntimeError` before the start."""
        if self._folder is None:
            raise RuntimeError("the server was not started")
        return self._folder

    @property
    def socket(self) -> Path:
        """The Unix socket on which it listens."""
        return self._where().socket

    def settings(self, *, through: Relay | None = None, **variables: str) -> Settings:
        """Settings for this server and folder, and nothing of the environment: `settings(COUNTERSEAL_GRACE="1s")`.

        `through` is a relay before it, whose faults the application is to meet.
        """
        given = {
            "COUNTERSEAL_ENV": "test",
            "COUNTERSEAL_DATA_DIR": str(self.data_dir),
            **self.variables(through),
        }
        return Settings.load({**given, **variables})

    def variables(self, through: Relay | None = None) -> dict[str, str]:
        """The environment in which another process uses this server, as `COUNTERSEAL_DATA_DIR` or a `REDIS_URL`."""
        given = {"COUNTERSEAL_DATA_DIR": str(self.data_dir), **_PATIENT}
        if through is None:
            return given
        password = self._where().password.get_secret_value()
        return {**given, "REDIS_URL": f"redis://:{password}@127.0.0.1:{through.port}/0"}

    def clear(self) -> None:
        """Remove every key. The database is left as it is."""

        async def flush() -> None:
            async with open_store(self.settings()) as store:
                await store.command("FLUSHALL", "SYNC")

        _in_a_loop_of_its_own(flush())

    def start(self) -> None:
        """Make the folder and start the server; returns when it answers. Raises `ConfigurationError`."""
        self._folder = Path(tempfile.mkdtemp(prefix="counterseal-"))
        self._server = EmbeddedServer(self._folder, fsync=Fsync.EVERYSEC)
        self._endpoint = _in_a_loop_of_its_own(self._server.ensure())

    def close(self) -> None:
        """End the server and remove the folder. Safe to call twice."""
        if self._server is not None:
            _in_a_loop_of_its_own(self._server.close())
            self._server = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _where(self) -> Endpoint:
        if self._endpoint is None:
            raise RuntimeError("the server was not started")
        return self._endpoint


def _in_a_loop_of_its_own(work: Coroutine[Any, Any, Any]) -> Any:
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
