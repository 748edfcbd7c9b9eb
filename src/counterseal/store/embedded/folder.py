"""The folder of the embedded server, `<data_dir>/valkey`, for its owner alone.

| file | what |
| --- | --- |
| `users.lock` | a shared lock of every process whose store is open; the watcher waits for the exclusive one |
| `server.lock` | an exclusive lock that starter, watcher and server hand on; free means that no server lives |
| `endpoint.json` | socket and password of the server, made anew at each start |
| `valkey.conf` | the server's configuration; of the password it holds a hash only |
| `<random>.sock` | the socket, unless its path would be too long; then it lies in a private temporary folder |
| `valkey.log` | what server and watcher say |
| `appendonlydir` | the data |

No lock is a file that may be left behind: the kernel drops them with the processes that hold them.
Everything here blocks, and is small.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import SecretStr

from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import Fsync

MAX_SOCKET_PATH_BYTES = 100
"""Systems take 103 bytes (macOS) or 107 (Linux); a longer path moves to the folder for temporary files."""

LOG_KEPT_BYTES = 2**20
"""A log larger than this is put aside at the next start, as `valkey.log.1`."""

_LOG_LINE = re.compile(r"(?:\d+:[A-Z] .{15,30}?\.\d{3} (?P<level>[#*.-]) )?(?P<words>.*)")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._- ")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the embedded server listens, and the password of its user `default`. Good until the server is restarted."""

    socket: Path
    password: SecretStr


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """Paths, locks and files of one embedded server. Nothing is read or made before a method is called."""

    path: Path

    @property
    def users_lock(self) -> Path:
        return self.path / "users.lock"

    @property
    def server_lock(self) -> Path:
        return self.path / "server.lock"

    @property
    def record(self) -> Path:
        return self.path / "endpoint.json"

    @property
    def config(self) -> Path:
        return self.path / "valkey.conf"

    @property
    def log(self) -> Path:
        return self.path / "valkey.log"

    @property
    def data(self) -> Path:
        return self.path / "appendonlydir"

    def prepare(self) -> None:
        """Make the folder, for its owner alone. Raises `ConfigurationError` when it can't be, or is somebody else's."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            if self.path.stat().st_uid != os.geteuid():
                raise ConfigurationError(
                    f"COUNTERSEAL_DATA_DIR: expected a folder of this user; {self.path} belongs to another one"
                )
            self.path.chmod(0o700)
        except OSError as error:
            raise self.unusable(error) from error

    def try_lock(self, path: Path, kind: int) -> int | None:
        """Lock a file of the folder now (`LOCK_SH`, `LOCK_EX`) and return its descriptor; None when another has it."""
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self.unusable(error) from error
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                return None
            raise self.unusable(error) from error
        return lock

    def read_endpoint(self) -> Endpoint | None:
        """What the last starter recorded; None when there is nothing, or nothing readable."""
        try:
            record = cast("object", json.loads(self.record.read_text("utf-8")))
        except (OSError, ValueError):
            return None
        match record:
            case {"socket": str(socket), "password": str(password)}:
                return Endpoint(Path(socket), SecretStr(password))
            case _:
                return None

    def renew_endpoint(self, fsync: Fsync) -> Endpoint:
        """Choose socket and password of a new server; write its configuration and the record of both.

        Only the holder of `server_lock` may call it. Raises `OSError` when the files can't be written.
        """
        before = self.read_endpoint()
        if before is not None:
            # Left by a server that was killed together with its watcher.
            with contextlib.suppress(OSError):
                before.socket.unlink(missing_ok=True)
                if before.socket.parent != self.path:
                    before.socket.parent.rmdir()
        password = secrets.token_hex(32)
        socket = self._place_socket()
        _write_private(
            self.config, config_text(folder=self.path, socket=socket, password=password, fsync=fsync)
        )
        _write_private(self.record, json.dumps({"socket": str(socket), "password": password}))
        return Endpoint(socket, SecretStr(password))

    def _place_socket(self) -> Path:
        # A name of its own: a server that ends removes its socket by name, never its successor's.
        near = self.path / f"{secrets.token_hex(6)}.sock"
        if _fits(near):
            return near
        folder = Path(tempfile.mkdtemp(prefix="counterseal-"))
        if not _fits(folder / near.name):
            folder.rmdir()
            raise ConfigurationError(
                f"TMPDIR: expected a folder whose path leaves room for a socket in {MAX_SOCKET_PATH_BYTES} bytes,"
                " because that of COUNTERSEAL_DATA_DIR is too long as well"
            )
        return folder / near.name

    def open_log(self) -> int:
        """A descriptor that appends to the log, whose file is put aside when it has grown too large."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_KEPT_BYTES:
                self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def last_words(self, start: int) -> str:
        """What was logged last after the log's byte `start`: three lines, the serious ones if there are any."""
        try:
            with self.log.open("rb") as file:
                file.seek(start)
                text = file.read(LOG_KEPT_BYTES).decode("utf-8", "replace")
        except OSError:
            return "(the log can't be read)"
        lines = [
            line for line in map(_LOG_LINE.fullmatch, text.split("\n")) if line and line["words"].strip()
        ]
        serious = [line for line in lines if line["level"] == "#" and not line["words"].startswith("WARNING")]
        return " / ".join(line["words"].strip() for line in (serious or lines)[-3:])[-600:] or "(nothing)"

    def unusable(self, error: OSError) -> ConfigurationError:
        """The error for a folder that the system does not let us use."""
        return ConfigurationError(
            f"COUNTERSEAL_DATA_DIR: expected a folder that can be written to; {self.path} can't be used:"
            f" {error.strerror or type(error).__name__}"
        )


def config_text(*, folder: Path, socket: Path, password: str, fsync: Fsync) -> str:
    """The server's configuration. The password is in it as a hash, since a faulty line is printed into the log.

    `everysec` is the watcher's work, so that the server never holds back what it has acknowledged; see there.
    """
    digest = hashlib.sha256(password.encode()).hexdigest()
    lines = (
        "port 0",
        f"unixsocket {_quoted(socket)}",
        "unixsocketperm 700",
        f"dir {_quoted(folder)}",
        'logfile ""',
        "daemonize no",
        "always-show-logo no",
        "hide-user-data-from-log yes",
        'save ""',
        "appendonly yes",
        f"appendfsync {'always' if fsync is Fsync.ALWAYS else 'no'}",
        "aof-load-truncated yes",
        "maxmemory-policy noeviction",
        f"user default reset on #{digest} allkeys allchannels allcommands",
    )
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    """A path as Valkey's configuration reads it: in quotes, every byte that could mean something else as `\\xHH`."""
    return (
        '"' + "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(path)) + '"'
    )


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one step. Its mode is 0600 from its first byte."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
