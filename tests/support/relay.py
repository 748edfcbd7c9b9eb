"""Relay: the public relay of `counterseal.testing` before the servers of the tests, and one that speaks TLS."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from counterseal import testing
from support.certificates import Authority, Flavour
from support.ports import free_port
from support.servers import Server, login


class Relay(testing.Relay):
    """A relay before a server of the kit, or a port of 127.0.0.1: `async with Relay(server) as relay`."""

    _scheme = "redis"
    _host = "127.0.0.1"

    def __init__(self, target: Server | int) -> None:
        super().__init__(_address(target), port=free_port())
        self._password = target.password if isinstance(target, Server) else None

    @property
    def url(self) -> str:
        """Its address as a `REDIS_URL`, with the password of the server behind it."""
        return f"{self._scheme}://{login(self._password)}{self._host}:{self.port}/0"


class TlsRelay(Relay):
    """A relay whose clients speak TLS; the server behind it does not.

    `ca_file` is the authority that a client has to trust, as in `f"{relay.url}?ssl_ca_certs={relay.ca_file}"`; with the
    certificates `expired` and `wrong_host` it must refuse all the same.
    """

    _scheme = "rediss"
    _host = "localhost"

    def __init__(self, target: Server | int, *, certificate: Flavour = "good") -> None:
        super().__init__(target)
        self._folder = Path(tempfile.mkdtemp(prefix="tls-"))
        authority = Authority(self._folder)
        self.ca_file = authority.ca_file
        self._tls = authority.server_context(certificate)

    async def close(self) -> None:
        await super().close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _address(target: Server | int) -> int | Path:
    if isinstance(target, Server):
        return target.port or Path(target.socket)
    return target
