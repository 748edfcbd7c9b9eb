"""What bad input gets: one sentence that names the setting, exit code 2, no traceback and no secret."""

from __future__ import annotations

import base64
import re
import secrets
import socket
import subprocess
from pathlib import Path

import pytest

from support.program import run_program
from support.servers import Server

SECRET = secrets.token_urlsafe(24)


def refused(ended: subprocess.CompletedProcess[str], *words: str) -> list[str]:
    """The sentences on stderr of a command that could not start."""
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert SECRET not in ended.stderr
    sentences = ended.stderr.splitlines()
    assert all(sentence.startswith("counterseal: ") for sentence in sentences), ended.stderr
    for word in words:
        assert word in ended.stderr
    return sentences


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@localhost",
        f"redis://:{SECRET}@localhost:banana",
        f"redis://:{SECRET}@localhost:70000",
        f"redis://:{SECRET}@",
        SECRET,
    ],
    ids=["another scheme", "no number as the port", "too high a port", "no host", "no URL"],
)
def test_a_malformed_url_is_one_sentence_that_names_its_setting(url: str, tmp_path: Path) -> None:
    sentences = refused(
        run_program("serve", folder=tmp_path, settings={"REDIS_URL": url}), "REDIS_URL: expected"
    )
    assert len(sentences) == 1


def test_an_unknown_setting_is_answered_with_the_name_that_was_meant(tmp_path: Path) -> None:
    ended = run_program("serve", folder=tmp_path, settings={"COUNTERSEAL_DATADIR": SECRET}, fresh=True)
    assert refused(ended) == [
        "counterseal: COUNTERSEAL_DATADIR: no setting has this name; did you mean COUNTERSEAL_DATA_DIR?"
    ]


def test_every_fault_is_told_at_once_a_line_each(tmp_path: Path) -> None:
    settings = {"REDIS_URL": SECRET, "COUNTERSEAL_GRACE": SECRET, "COUNTERSEAL_PROCESSES": "none"}
    sentences = refused(run_program("serve", folder=tmp_path, settings=settings))
    assert {sentence.split(": ")[1] for sentence in sentences} == set(settings)


def test_a_fault_in_the_env_file_is_told_as_one_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("COUNTERSEAL_LOG_LEVEL=loud\n")
    assert len(refused(run_program("serve", folder=tmp_path), "COUNTERSEAL_LOG_LEVEL: expected")) == 1


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_wrong_password_is_one_sentence_without_it(command: str, tmp_path: Path) -> None:
    with Server(password=secrets.token_urlsafe(24)) as server:
        url = f"redis://:{SECRET}@127.0.0.1:{server.port}"
        ended = run_program(command, folder=tmp_path, settings={"REDIS_URL": url})
    assert len(refused(ended, "REDIS_URL: expected", "password")) == 1


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("REDIS_URL", "redis://:{secret}@127.0.0.1:{port}"),
        ("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:{port}"),
        ("DATABASE_URL", "postgresql://user:{secret}@127.0.0.1:{port}/database"),
    ],
)
def test_a_server_that_is_not_there_is_one_sentence_that_names_its_setting(
    name: str, url: str, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings = {name: url.format(secret=SECRET, port=taken.getsockname()[1])}
        if name.startswith("UPSTASH"):
            settings["UPSTASH_REDIS_REST_TOKEN"] = SECRET
        ended = run_program("serve", "--port", "0", folder=tmp_path, settings=settings)
        assert len(refused(ended, f"counterseal: {name}: ")) == 1


def test_a_port_in_use_is_one_sentence_that_names_the_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_program("serve", "--port", str(port), folder=tmp_path)
    assert refused(ended) == [
        f"counterseal: --port: expected a free port on 127.0.0.1; came: {port}, on which another process listens"
    ]
    assert not (tmp_path / ".counterseal").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_development_listens_to_this_machine_only(host: str, tmp_path: Path) -> None:
    ended = run_program("serve", "--host", host, folder=tmp_path)
    assert len(refused(ended, "--host: expected", "COUNTERSEAL_ENV", host)) == 1


def test_an_address_of_another_machine_is_one_sentence(tmp_path: Path) -> None:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    settings = {
        "COUNTERSEAL_ENV": "production",
        "COUNTERSEAL_SECRET_KEYS": f"k1:{key}",
        "COUNTERSEAL_ALLOW_EMBEDDED": "true",
    }
    ended = run_program("serve", "--host", "192.0.2.1", folder=tmp_path, settings=settings)
    assert refused(ended) == ["counterseal: --host: expected an address of this machine; came: 192.0.2.1"]


def test_production_without_secret_keys_and_without_a_redis_is_told_both(tmp_path: Path) -> None:
    ended = run_program("serve", folder=tmp_path, settings={"COUNTERSEAL_ENV": "production"})
    keys, redis = refused(ended)
    assert keys.startswith("counterseal: COUNTERSEAL_SECRET_KEYS: expected")
    assert redis.startswith("counterseal: REDIS_URL: expected in production")


def test_production_does_not_start_on_the_embedded_server_unasked(tmp_path: Path) -> None:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    settings = {"COUNTERSEAL_ENV": "production", "COUNTERSEAL_SECRET_KEYS": f"k1:{key}"}
    ended = run_program("serve", "--port", "0", folder=tmp_path, settings=settings)
    assert len(refused(ended, "REDIS_URL: expected in production")) == 1
    assert key not in ended.stderr


def test_a_data_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    ended = run_program("serve", "--port", "0", "--data-dir", "data", folder=tmp_path)
    assert len(refused(ended, "COUNTERSEAL_DATA_DIR: expected")) == 1


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="there is no folder here that nobody can write to"
)
@pytest.mark.parametrize("command", ["serve --port 0", "doctor", "migrate"])
def test_a_data_folder_that_cannot_be_written_is_one_sentence(command: str, tmp_path: Path) -> None:
    # Not even root can write here.
    ended = run_program(*command.split(), "--data-dir", "/proc/counterseal", folder=tmp_path, fresh=True)
    assert len(refused(ended, "COUNTERSEAL_DATA_DIR: expected", "/proc/counterseal")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--port", "http"], "--port"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--prot", "80"], "--prot"),
        (["sevre"], "serve"),
    ],
)
def test_a_mistyped_command_line_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert len(refused(run_program(*arguments, folder=tmp_path), words, "--help")) == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["doctor", "--help"], ["migrate", "--help"], ["-h"]]
)
def test_help_says_what_the_exit_codes_or_the_options_mean(arguments: list[str], tmp_path: Path) -> None:
    ended = run_program(*arguments, folder=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert re.search(r"[Ee]xit code", ended.stdout)


def test_version_is_one_line(tmp_path: Path) -> None:
    ended = run_program("--version", folder=tmp_path, fresh=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"counterseal \d+\.\d+\.\d+\n", ended.stdout)
