"""The embedded server's folder: what is in it, for whom, and what a folder that can't be used gets."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_house import House, open_house, opened
from hiredis import ReplyError

from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import Fsync
from support.client import Client
from support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

NOBODY = 65534
UNWRITABLE = "COUNTERSEAL_DATA_DIR: expected a folder that can be written to"


@pytest.fixture
def house() -> Iterator[House]:
    with open_house() as opened_house:
        yield opened_house


@pytest.fixture
def deep_house(house: House) -> House:
    """A house whose path is too long for a socket."""
    house.data_dir = house.data_dir / ("long" * 25)
    return house


def test_the_password_is_in_a_private_file_only_and_on_no_command_line(house: House) -> None:
    server = house.guest().ensure()
    secret = server.password.encode()
    holding = [path for path in house.data_dir.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert holding == [house.folder / "endpoint.json"]
    for process in (server.server, server.watcher):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{process}/{name}").read_bytes()


@pytest.mark.parametrize("login", [("AUTH", "default", "wrong"), ("AUTH", "default", "")])
def test_nobody_gets_in_without_the_password(house: House, login: tuple[str, ...]) -> None:
    server = house.guest().ensure()
    client = Client(server.socket, user=login[1], password=login[2])
    with pytest.raises((ReplyError, ConnectionError), match="WRONGPASS"):
        client.execute("PING")
    client.close()


def test_everything_in_the_folder_is_for_its_owner_alone(house: House) -> None:
    house.folder.mkdir(parents=True)
    house.folder.chmod(0o777)
    server = house.guest().ensure()
    server.execute("SET", "a", "b")
    modes = {path: path.stat().st_mode & 0o777 for path in house.folder.rglob("*")}
    expected = {path: 0o700 if path.is_dir() or path.is_socket() else 0o600 for path in modes}
    assert server.socket in modes
    assert modes == expected
    assert house.folder.stat().st_mode & 0o777 == 0o700


def test_a_new_data_folder_is_for_its_owner_alone(house: House) -> None:
    house.guest().ensure()
    assert house.data_dir.stat().st_mode & 0o777 == 0o700


def test_the_server_inherits_its_own_lock_and_nothing_else(house: House) -> None:
    server = house.guest().ensure()
    inside = {path.name for path in opened(server.server) if path.is_relative_to(house.folder)}
    assert inside == {"server.lock", "valkey.log", "appendonly.aof.1.incr.aof"}
    assert Path(f"/proc/{server.server}/environ").read_bytes() == b""
    assert house.folder / "server.lock" not in opened(os.getpid())


def test_a_long_path_moves_the_socket_to_a_private_temporary_folder(deep_house: House) -> None:
    first, second = deep_house.guest(), deep_house.guest()
    server = first.ensure()
    assert second.ensure() == server
    moved = server.socket.parent
    assert moved.parent == Path(tempfile.gettempdir())
    assert moved.stat().st_mode & 0o777 == 0o700
    first.close()
    second.close()
    wait_until(deep_house.empty)
    assert not moved.exists()


def test_a_temporary_folder_that_a_killed_server_left_is_cleared_away(deep_house: House) -> None:
    guest = deep_house.guest()
    server = guest.ensure()
    for process in (server.watcher, server.server):
        os.kill(process, signal.SIGKILL)
    assert guest.ensure().socket.parent != server.socket.parent
    assert not server.socket.parent.exists()


def test_a_folder_with_an_odd_name_works(house: House) -> None:
    house.data_dir = house.data_dir / 'it\'s "odd" \\x41 ü\n#'
    assert house.guest().ensure().socket.parent == house.folder
    assert (house.folder / "appendonlydir").is_dir()


@pytest.mark.parametrize(("fsync", "own"), [(Fsync.EVERYSEC, "no"), (Fsync.ALWAYS, "always")])
def test_the_server_keeps_data_as_it_was_told(house: House, fsync: Fsync, own: str) -> None:
    server = house.guest(fsync=fsync).ensure()
    expected = {
        "save": "",
        "appendonly": "yes",
        "appendfsync": own,
        "maxmemory-policy": "noeviction",
        "port": "0",
    }
    for name, value in expected.items():
        assert server.execute("CONFIG", "GET", name) == [name.encode(), value.encode()]


def test_the_strictest_fsync_of_all_users_wins(house: House) -> None:
    server = house.guest().ensure()
    assert house.guest(fsync=Fsync.ALWAYS).ensure() == server
    assert house.guest().ensure() == server
    assert server.execute("CONFIG", "GET", "appendfsync") == [b"appendfsync", b"always"]


def test_a_file_where_the_folder_should_be_is_one_sentence_with_the_setting(house: House) -> None:
    house.data_dir.write_text("")
    with pytest.raises(ConfigurationError, match=UNWRITABLE):
        house.guest().ensure()


def test_a_read_only_folder_is_one_sentence_with_the_setting(house: House) -> None:
    house.data_dir.mkdir(mode=0o555)
    process = house.process()
    if os.geteuid() == 0:
        house.data_dir.parent.chmod(0o755)
        process.close()  # makes it load what it could not read as nobody
        process.tell(f"become {NOBODY}")
    answer = process.tell("ensure")
    assert answer["error"] == "ConfigurationError"
    assert answer["message"].startswith(UNWRITABLE)
    assert "Permission denied" in answer["message"]


def test_another_users_folder_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.folder.mkdir(parents=True)
    stranger = house.folder.stat().st_uid + 1
    monkeypatch.setattr("os.geteuid", lambda: stranger)
    with pytest.raises(ConfigurationError, match=r"COUNTERSEAL_DATA_DIR: .* belongs to another one"):
        house.guest().ensure()


def test_a_server_that_does_not_start_is_one_sentence_with_its_last_words(house: House) -> None:
    house.folder.mkdir(parents=True)
    in_the_way = house.folder / "appendonlydir"
    in_the_way.write_text("")
    guest = house.guest()
    with pytest.raises(ConfigurationError) as caught:
        guest.ensure()
    (fault,) = caught.value.faults
    assert fault.startswith("COUNTERSEAL_DATA_DIR: expected a folder in which the embedded server starts")
    assert "appendonlydir" in fault.partition(str(house.folder / "valkey.log"))[2]
    in_the_way.unlink()
    guest.ensure()


def test_a_log_whose_last_write_was_cut_off_loads_without_it(house: House) -> None:
    guest = house.guest()
    guest.ensure().execute("SET", "kept", "yes")
    guest.close()
    wait_until(house.empty)
    with largest_file(house).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    assert guest.ensure().execute("GET", "kept") == b"yes"


@pytest.mark.parametrize("rewritten", [False, True])
def test_damage_in_the_middle_of_the_data_is_an_error_that_names_the_file(
    house: House, *, rewritten: bool
) -> None:
    guest = house.guest()
    server = guest.ensure()
    for number in range(20):
        server.execute("SET", f"key {number}", "x" * 100)
    if rewritten:
        server.execute("BGREWRITEAOF")
        wait_until(lambda: b"aof_rewrite_in_progress:0" in server.execute("INFO", "persistence"))
    guest.close()
    wait_until(house.empty)
    path = largest_file(house)
    content = path.read_bytes().replace(b"key 7", b"?????").replace(b"$5\r\n?????", b"?5\r\n?????")
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        guest.ensure()
    (fault,) = caught.value.faults
    assert fault.startswith("COUNTERSEAL_DATA_DIR: expected readable data")
    assert f"{path.parent}/{'*.base.rdb' if rewritten else path.name} is damaged" in fault
    assert str(house.folder / "valkey.log") in fault
    assert path.read_bytes() == content


def test_the_constructor_and_close_touch_nothing(house: House) -> None:
    house.guest().close()
    assert not house.data_dir.exists()


def test_a_missing_binary_names_the_setting_to_use_instead(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL: expected, because no embedded server"):
        house.guest().ensure()


def largest_file(house: House) -> Path:
    return max((house.folder / "appendonlydir").iterdir(), key=lambda file: file.stat().st_size)
