"""Client: a blocking Redis client of the kit's own, so that no test checks counterseal with counterseal."""

from __future__ import annotations

import secrets
import select
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import hiredis
from hiredis import Reader, ReplyError

Argument: TypeAlias = str | bytes | int | float
Address: TypeAlias = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""

# hiredis takes a tuple of any length; its stub says of one.
_pack_command: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

USER = "testkit"
PASSWORD = secrets.token_urlsafe(24)
"""How the kit logs in to its servers, whatever a test does to their default user. New in every run."""


class Client:
    """One connection in RESP2, made at the first command and again once it is lost. No command is sent twice.

    A reply is `bytes`, `int`, `None` or a list of these; an error reply is raised as `hiredis.ReplyError`.
    It may be used from several threads, one command at a time.
    """

    def __init__(
        self, address: Address, *, user: str = USER, password: str = PASSWORD, timeout: float = 5.0
    ) -> None:
        self._address = address
        self._login = ("AUTH", user, password)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._reader = Reader()
        self._lock = threading.Lock()

    def execute(self, *arguments: Argument) -> Any:
        """Run one command."""
        return self.pipeline([arguments])[0]

    def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Run commands in one round trip. The first error among the replies is raised, when all have arrived."""
        with self._lock:
            try:
                if self._stale():
                    self.close()
                if self._socket is None:
                    self._connect()
                replies = self._exchange(commands)
            except OSError:
                self.close()
                raise
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        return replies

    def close(self) -> None:
        """Let the connection go. The next command makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stale(self) -> bool:
        """Whether the server ended the idle connection (Sentinel does, when a server changes its role)."""
        return self._socket is not None and bool(select.select([self._socket], [], [], 0)[0])

    def _connect(self) -> None:
        if isinstance(self._address, Path):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(self._timeout)
            self._socket.connect(str(self._address))
        else:
            self._socket = socket.create_connection(self._address, self._timeout)
        self._reader = Reader()
        (answer,) = self._exchange([self._login])
        if isinstance(answer, ReplyError):
            self.close()
            raise answer

    def _exchange(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        assert self._socket is not None
        self._socket.sendall(b"".join(_pack_command(tuple(command)) for command in commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is not False:
                replies.append(reply)
                continue
            received = self._socket.recv(1 << 16)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(received)
        return replies
