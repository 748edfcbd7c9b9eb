"""Processes that are started from nothing or forked: each is one of its own, and can be frozen and killed."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from support.forking import start_script
from support.processes import (
    Running,
    freeze_process,
    kill_process,
    stands_still,
    start_process,
    thaw_process,
)
from support.waiting import wait_until

PROGRAM = """
import json, os, socket, sys
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
told = [os.getpid(), os.getpgrp(), os.getcwd(), sys.argv, sys.path[0], os.environ["TOLD"], __name__]
line.sendall(json.dumps(told).encode() + b"\\n")
print("told", flush=True)
while question := line.recv(1):
    line.sendall(question)
sys.exit(7)
"""
Start = Callable[[Path, Sequence[str], Path, Path], Running]


def from_nothing(script: Path, arguments: Sequence[str], output: Path, folder: Path) -> Running:
    return start_process([sys.executable, str(script), *arguments], output, folder)


@pytest.fixture(params=[from_nothing, start_script])
def start(request: pytest.FixtureRequest) -> Start:
    return request.param


@pytest.fixture
def told(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Running, socket.socket, list]]:
    """A program, the connection that it has opened, and what it says of itself."""
    monkeypatch.setenv("TOLD", "so")
    script = tmp_path / "scripts" / "program.py"
    script.parent.mkdir()
    script.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        port = str(listening.getsockname()[1])
        process = start(script, [port], tmp_path / "log", tmp_path)
        try:
            connection, _ = listening.accept()
            with connection, connection.makefile() as lines:
                connection.settimeout(20)
                yield process, connection, json.loads(lines.readline())
        finally:
            kill_process(process)


def test_a_script_is_a_process_of_its_own(told: tuple[Running, socket.socket, list], tmp_path: Path) -> None:
    process, connection, (pid, group, folder, arguments, place, setting, name) = told
    scripts = tmp_path / "scripts"
    assert pid == group == process.pid != os.getpid()
    assert Path(folder) == tmp_path
    assert arguments == [str(scripts / "program.py"), str(connection.getsockname()[1])]
    assert Path(place) == scripts
    assert (setting, name) == ("so", "__main__")
    wait_until(lambda: (tmp_path / "log").read_text() == "told\n")
    connection.shutdown(socket.SHUT_WR)
    assert process.wait(20) == 7


def test_a_frozen_process_answers_when_it_is_thawed(told: tuple[Running, socket.socket, list]) -> None:
    process, connection, _ = told
    assert not stands_still(process)
    freeze_process(process)
    assert stands_still(process)
    connection.sendall(b"?")
    assert stands_still(process)
    thaw_process(process)
    assert connection.recv(1) == b"?"
    assert not stands_still(process)


def test_the_death_of_a_killed_process_closes_its_connections(
    told: tuple[Running, socket.socket, list],
) -> None:
    process, connection, _ = told
    kill_process(process)
    assert process.returncode == -9
    assert connection.recv(1) == b""
    with pytest.raises(ProcessLookupError):
        freeze_process(process)
