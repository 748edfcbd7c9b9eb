"""A data folder with an embedded server, and those who use it: processes that can be killed, and the test itself."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from counterseal.core.settings import Fsync
from counterseal.store.embedded import server as embedded
from support.client import Client
from support.waiting import wait_until

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Seen:
    """A server as one of its users saw it."""

    socket: Path
    password: str
    server: int

    def execute(self, *arguments: Any) -> Any:
        client = self.client()
        try:
            return client.execute(*arguments)
        finally:
            client.close()

    def client(self) -> Client:
        return Client(self.socket, user="default", password=self.password)

    @property
    def watcher(self) -> int:
        return int(_status(self.server)["PPid"])


class Process:
    """A user that is a process of its own (`embedded_user.py`), in a session of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("embedded_user.py"), data_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            start_new_session=True,
        )

    def send(self, line: str) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(f"{line}\n".encode())
        self.popen.stdin.flush()

    def answer(self, within: float = 30.0) -> dict[str, Any]:
        assert self.popen.stdout
        assert select.select([self.popen.stdout], [], [], within)[0], "the process does not answer"
        return json.loads(self.popen.stdout.readline())

    def tell(self, line: str) -> dict[str, Any]:
        self.send(line)
        return self.answer()

    def ensure(self) -> Seen:
        return seen(self.tell("ensure"))

    def close(self) -> None:
        assert self.tell("close") == {}

    def end(self) -> None:
        """SIGKILL."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(10)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe
            with suppress(BrokenPipeError):
                pipe.close()


class Guest:
    """A user in the test's own process. Locks belong to what opened them: several are like several processes."""

    def __init__(self, server: embedded.EmbeddedServer) -> None:
        self.server = server

    def ensure(self) -> Seen:
        endpoint = asyncio.run(self.server.ensure())
        password = endpoint.password.get_secret_value()
        return Seen(endpoint.socket, password, process_of(endpoint.socket, password))

    def close(self) -> None:
        asyncio.run(self.server.close())


class House:
    """The data folder and everybody in it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.users: list[Process | Guest] = []

    @property
    def folder(self) -> Path:
        return self.data_dir / "valkey"

    @property
    def log(self) -> str:
        return (self.folder / "valkey.log").read_text()

    def process(self) -> Process:
        process = Process(self.data_dir)
        self.users.append(process)
        return process

    def guest(self, *, fsync: Fsync = Fsync.EVERYSEC, timeout: float = 10) -> Guest:
        server = embedded.EmbeddedServer(self.data_dir, fsync=fsync, start_timeout=timedelta(seconds=timeout))
        guest = Guest(server)
        self.users.append(guest)
        return guest

    def empty(self) -> bool:
        """Whether no lock of the folder is held."""
        locks = [self.folder / name for name in ("users.lock", "server.lock")]
        return all(free(lock) for lock in locks if lock.exists())

    def end(self) -> None:
        while self.users:
            user = self.users.pop()
            user.end() if isinstance(user, Process) else user.close()


@contextmanager
def open_house() -> Iterator[House]:
    """In the end all users leave or are killed, and no server may be left."""
    root = Path(tempfile.mkdtemp(prefix="cs-"))
    house = House(root / "data")
    try:
        yield house
    finally:
        house.end()
        try:
            if house.folder.is_dir():
                wait_until(house.empty, within=15)
        finally:
            shutil.rmtree(root)


def seen(answer: dict[str, Any]) -> Seen:
    assert "error" not in answer, answer
    return Seen(Path(answer["socket"]), answer["password"], answer["server"])


def process_of(socket: Path, password: str) -> int:
    """The server's process, as it says itself."""
    client = Client(socket, user="default", password=password)
    try:
        return int(client.execute("INFO", "server").partition(b"process_id:")[2].split()[0])
    finally:
        client.close()


def alive(process: int) -> bool:
    try:
        return not _status(process)["State"].startswith("Z")
    except OSError:
        return False


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def opened(process: int) -> set[Path]:
    """The files that a process has open."""
    found: set[Path] = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.add(link.readlink())
    return found


def free(lock: Path) -> bool:
    """Whether nobody holds this lock, shared or not."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def watcher_with(folder: Path, before: str, after: str) -> Path:
    """A copy of the watcher with one thing changed."""
    text = embedded._WATCHER.read_text()
    assert text.count(before) == 1
    path = folder / "watcher.py"
    path.write_text(text.replace(before, after))
    return path


def _status(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
