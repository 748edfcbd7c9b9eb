"""The folder of the embedded server, and what is decided before any server runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import Fsync
from counterseal.store.embedded.folder import LOG_KEPT_BYTES, MAX_SOCKET_PATH_BYTES, Endpoint, ServerFolder
from counterseal.store.embedded.server import EmbeddedServer

STARTED = "77:M 24 Nov 2026 06:21:55.542 * Valkey is starting\n"
OVERCOMMIT = "77:M 24 Nov 2026 06:21:55.542 # WARNING Memory overcommit must be enabled!\n"


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    made = ServerFolder(tmp_path / "data" / "valkey")
    made.prepare()
    return made


def test_an_endpoint_never_shows_its_password() -> None:
    endpoint = Endpoint(Path("/a.sock"), SecretStr("hunter2"))
    assert "hunter2" not in f"{endpoint} {endpoint!r}"


def test_a_server_never_shows_its_password(folder: ServerFolder) -> None:
    endpoint = folder.renew_endpoint(Fsync.EVERYSEC)
    server = EmbeddedServer(folder.path.parent, fsync=Fsync.EVERYSEC)
    assert endpoint.password.get_secret_value() not in f"{server!r} {folder!r}"


def test_a_recorded_endpoint_reads_back(folder: ServerFolder) -> None:
    assert folder.renew_endpoint(Fsync.EVERYSEC) == folder.read_endpoint()


def test_every_start_has_a_socket_and_a_password_of_its_own(folder: ServerFolder) -> None:
    first, second = folder.renew_endpoint(Fsync.EVERYSEC), folder.renew_endpoint(Fsync.EVERYSEC)
    assert first.socket != second.socket
    assert first.password != second.password


def test_the_configuration_holds_no_password(folder: ServerFolder) -> None:
    endpoint = folder.renew_endpoint(Fsync.EVERYSEC)
    assert endpoint.password.get_secret_value() not in folder.config.read_text()


def test_private_files_are_private_even_where_a_public_one_stood(folder: ServerFolder) -> None:
    for path in (folder.record, folder.config):
        path.write_text("")
        path.chmod(0o644)
    folder.renew_endpoint(Fsync.EVERYSEC)
    assert {path.stat().st_mode & 0o777 for path in (folder.record, folder.config)} == {0o600}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"socket": "/a"}', '{"socket": 1, "password": "p"}', "\xff"]
)
def test_an_unreadable_record_is_no_record(folder: ServerFolder, text: str) -> None:
    folder.record.write_bytes(text.encode("latin-1"))
    assert folder.read_endpoint() is None


@pytest.mark.parametrize(
    ("length", "near"), [(MAX_SOCKET_PATH_BYTES, True), (MAX_SOCKET_PATH_BYTES + 1, False)]
)
def test_the_socket_stays_in_the_folder_up_to_the_limit_and_moves_beyond(length: int, *, near: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="cs-") as root:
        around = len(f"{root}//data/valkey/0123456789ab.sock")
        folder = ServerFolder(Path(root, "x" * (length - around), "data", "valkey"))
        folder.prepare()
        socket = folder.renew_endpoint(Fsync.EVERYSEC).socket
        assert (socket.parent == folder.path) is near
        if near:
            assert len(str(socket)) == length
        else:
            socket.parent.rmdir()


def test_a_temporary_folder_that_is_too_deep_as_well_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = ServerFolder(deep / "data" / "valkey")
    folder.prepare()
    with pytest.raises(ConfigurationError, match="TMPDIR: expected a folder whose path leaves room"):
        folder.renew_endpoint(Fsync.EVERYSEC)
    assert [path.name for path in deep.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "(nothing)"),
        ("plain\n", "plain"),
        (STARTED, "Valkey is starting"),
        (f"{OVERCOMMIT}{STARTED}", "WARNING Memory overcommit must be enabled! / Valkey is starting"),
        (f"{STARTED}77:M 24 Nov 2026 06:21:55.600 # It broke\n{OVERCOMMIT}{STARTED}", "It broke"),
        ("1\n2\n3\n\n4\n", "2 / 3 / 4"),
    ],
)
def test_the_last_words_are_the_serious_ones(folder: ServerFolder, text: str, words: str) -> None:
    folder.log.write_text(f"before\n{text}")
    assert folder.last_words(len("before\n")) == words


def test_a_log_that_can_not_be_read_says_so(folder: ServerFolder) -> None:
    assert folder.last_words(0) == "(the log can't be read)"


@pytest.mark.parametrize(("size", "kept"), [(LOG_KEPT_BYTES, True), (LOG_KEPT_BYTES + 1, False)])
def test_a_large_log_is_put_aside(folder: ServerFolder, size: int, *, kept: bool) -> None:
    folder.log.write_bytes(b"x" * size)
    with os.fdopen(folder.open_log(), "ab") as log:
        assert (log.seek(0, 2) == size) is kept
    assert folder.log.with_name("valkey.log.1").exists() is not kept
