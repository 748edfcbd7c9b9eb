"""The embedded server's life: who shares it, who survives whose end, and what is left afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_house import Guest, House, alive, children, free, open_house, seen, watcher_with

from counterseal.core.errors import StoreUnavailable
from counterseal.core.settings import Fsync
from counterseal.store.embedded import server as embedded
from support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def house() -> Iterator[House]:
    with open_house() as opened:
        yield opened


@pytest.fixture(params=["kernel", "guard"])
def either_watcher(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which a server is told that its watcher was killed."""
    if request.param == "guard":
        changed = watcher_with(tmp_path, 'sys.platform == "linux"', 'sys.platform == "other"')
        monkeypatch.setattr(embedded, "_WATCHER", changed)


def test_processes_that_start_at_the_same_moment_share_one_server(house: House) -> None:
    processes = [house.process() for _ in range(4)]
    for process in processes:
        process.close()  # all are ready now
    for process in processes:
        process.send("ensure")
    assert len({seen(process.answer()) for process in processes}) == 1


def test_ensure_again_finds_the_same_server(house: House) -> None:
    guest = house.guest()
    assert guest.ensure() == guest.ensure()


def test_the_server_ends_with_its_last_user_and_not_before(house: House) -> None:
    first, second = house.guest(), house.guest()
    server = first.ensure()
    assert second.ensure() == server
    first.close()
    assert second.ensure() == server
    second.close()
    wait_until(lambda: not alive(server.server))
    wait_until(house.empty)
    assert not server.socket.exists()
    assert not (house.folder / "endpoint.json").exists()


def test_data_survives_the_last_close(house: House) -> None:
    guest = house.guest()
    server = guest.ensure()
    server.execute("SET", "kept", "yes")
    guest.close()
    wait_until(lambda: not alive(server.server))
    again = guest.ensure()
    assert again.server != server.server
    assert again.execute("GET", "kept") == b"yes"


def test_processes_that_come_and_go_always_find_a_server_and_lose_nothing(house: House) -> None:
    processes = [house.process() for _ in range(6)]
    for seed, process in enumerate(processes):
        process.send(f"come-and-go 10 {seed}")
    answers = [process.answer(within=60) for process in processes]
    assert not [answer for answer in answers if "error" in answer]
    counts = sorted(count for answer in answers for count in answer["counts"])
    assert counts == list(range(1, len(counts) + 1))
    assert house.guest().ensure().execute("GET", "count") == str(len(counts)).encode()


def test_a_forked_child_keeps_the_server_until_it_ends(house: House) -> None:
    process = house.process()
    server = process.ensure()
    child = process.tell("fork")["child"]
    try:
        process.close()
        assert process.ensure() == server
        process.end()
        assert not free(house.folder / "users.lock")
    finally:
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: not alive(server.server))


def test_killing_the_starter_interrupts_nobody_else(house: House) -> None:
    starter, other = house.process(), house.guest()
    server = starter.ensure()
    assert other.ensure() == server
    client = server.client()
    client.execute("CLIENT", "SETNAME", "other")
    starter.end()
    assert client.execute("CLIENT", "GETNAME") == b"other"  # the same connection still
    client.close()
    assert other.ensure() == server


def test_killing_the_last_user_leaves_neither_a_server_nor_a_lock(house: House) -> None:
    process = house.process()
    server = process.ensure()
    watcher = server.watcher
    server.execute("SET", "kept", "yes")
    process.end()
    wait_until(lambda: not alive(server.server) and not alive(watcher))
    wait_until(house.empty)
    assert house.guest().ensure().execute("GET", "kept") == b"yes"


def test_after_a_killed_server_the_next_ensure_brings_the_data_back(house: House) -> None:
    guest = house.guest(fsync=Fsync.ALWAYS)
    server = guest.ensure()
    client = server.client()
    client.execute("SET", "kept", "yes")
    assert client.execute("WAITAOF", 1, 0, 5000) == [1, 0]
    client.close()
    os.kill(server.server, signal.SIGKILL)
    again = guest.ensure()
    assert again.server != server.server
    assert again.execute("GET", "kept") == b"yes"


def test_every_acknowledged_write_survives_a_killed_server(house: House) -> None:
    guest = house.guest()
    for total in range(500, 3000, 500):
        server = guest.ensure()
        client = server.client()
        client.pipeline([("SET", f"key {total - number}", number) for number in range(500)])
        os.kill(server.server, signal.SIGKILL)
        client.close()
        assert guest.ensure().execute("DBSIZE") == total


def test_what_was_written_is_put_on_the_disk_within_a_second_or_so(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = 'os.fdatasync(log)\n                os.write(2, f"on the disk: {size}\\n".encode())'
    monkeypatch.setattr(embedded, "_WATCHER", watcher_with(tmp_path, "os.fdatasync(log)", told))
    server = house.guest().ensure()
    log_file = house.folder / "appendonlydir" / "appendonly.aof.1.incr.aof"
    for value in ("first", "second"):
        server.execute("SET", "key", value)
        wait_until(lambda: f"on the disk: {log_file.stat().st_size}\n" in house.log, within=10)


def test_a_disk_that_does_not_take_the_data_ends_the_server(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = 'raise OSError(5, "Input/output error")'
    monkeypatch.setattr(embedded, "_WATCHER", watcher_with(tmp_path, "os.fdatasync(log)", failing))
    server = house.guest().ensure()
    server.execute("SET", "key", "value")
    wait_until(lambda: not alive(server.server), within=10)
    assert "the log can't be put on the disk: [Errno 5] Input/output error" in house.log


@pytest.mark.usefixtures("either_watcher")
def test_after_a_killed_watcher_the_server_ends_in_order_and_the_next_ensure_works(house: House) -> None:
    first, second = house.guest(), house.guest()
    server = first.ensure()
    assert second.ensure() == server
    server.execute("SET", "kept", "yes")
    os.kill(server.watcher, signal.SIGKILL)
    wait_until(lambda: not alive(server.server))
    assert "Calling fsync() on the AOF file" in house.log
    assert "ready to exit" in house.log
    again = first.ensure()
    assert second.ensure() == again
    assert again.execute("GET", "kept") == b"yes"


@pytest.mark.usefixtures("either_watcher")
def test_server_watcher_and_guard_all_end_with_the_last_user(house: House) -> None:
    guest = house.guest()
    server = guest.ensure()
    ended = [server.watcher, *children(server.watcher)]
    assert server.server in ended
    guest.close()
    wait_until(lambda: not any(alive(process) for process in ended))


def test_killing_starter_watcher_and_server_at_once_leaves_nothing_behind(house: House) -> None:
    starter = house.process()
    server = starter.ensure()
    server.execute("SET", "kept", "yes")
    for process in (server.watcher, server.server, starter.popen.pid):
        os.kill(process, signal.SIGKILL)
    wait_until(house.empty)
    assert house.guest().ensure().execute("GET", "kept") == b"yes"
    assert not server.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watcher_told_to_end_ends_its_server_too(house: House, number: signal.Signals) -> None:
    guest = house.guest()
    server = guest.ensure()
    watcher = server.watcher
    os.kill(watcher, number)
    wait_until(lambda: not alive(server.server) and not alive(watcher))
    assert guest.ensure().server != server.server


def test_ctrl_c_in_the_starters_terminal_does_not_reach_the_server(house: House) -> None:
    starter, other = house.process(), house.guest()
    server = starter.ensure()
    assert other.ensure() == server
    os.killpg(starter.popen.pid, signal.SIGINT)
    starter.popen.wait(10)
    assert os.getsid(server.server) != starter.popen.pid
    assert other.ensure() == server


def test_a_frozen_server_is_an_error_in_time_and_never_gets_a_twin(house: House) -> None:
    guest, patient = house.guest(timeout=0.4), house.guest()
    server = guest.ensure()
    os.kill(server.server, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="did not answer"):
            guest.ensure()
        assert time.monotonic() - began < 3
    finally:
        os.kill(server.server, signal.SIGCONT)
    assert patient.ensure() == server


async def test_close_ends_an_ensure_that_waits(house: House) -> None:
    server = house.guest(timeout=60).server
    await server.ensure()
    process = await asyncio.to_thread(house.guest().ensure)
    os.kill(process.server, signal.SIGSTOP)
    try:
        waiting = asyncio.create_task(server.ensure())
        async with asyncio.timeout(10):
            await asyncio.to_thread(wait_until, server._turn.locked)
            await server.close()
            with pytest.raises(StoreUnavailable, match="closed"):
                await waiting
    finally:
        os.kill(process.server, signal.SIGCONT)


def test_a_server_that_will_not_end_is_killed_and_a_newcomer_only_waits(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_WATCHER", watcher_with(tmp_path, "_GRACE_S = 5", "_GRACE_S = 1"))
    guest = house.guest()
    server = guest.ensure()
    server.execute("SET", "kept", "yes")
    leave_frozen(house, guest, server.server)
    assert house.guest().ensure().execute("GET", "kept") == b"yes"
    assert not alive(server.server)


def test_a_newcomer_that_waits_too_long_for_an_ending_server_gets_an_error(house: House) -> None:
    guest = house.guest()
    server = guest.ensure()
    leave_frozen(house, guest, server.server)
    try:
        with pytest.raises(StoreUnavailable, match="did not end in"):
            house.guest(timeout=0.3).ensure()
    finally:
        os.kill(server.server, signal.SIGCONT)


def test_a_folder_that_is_deleted_under_its_server_is_made_again(house: House) -> None:
    guest = house.guest()
    server = guest.ensure()
    shutil.rmtree(house.data_dir)
    again = guest.ensure()
    assert again.server != server.server
    wait_until(lambda: not alive(server.server))
    assert guest.ensure() == again


def leave_frozen(house: House, last: Guest, server: int) -> None:
    """Freeze the server, let its last user go, and wait until the watcher has noticed."""
    os.kill(server, signal.SIGSTOP)
    last.close()
    wait_until(lambda: not free(house.folder / "users.lock"))
