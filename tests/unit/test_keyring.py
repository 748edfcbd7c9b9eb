"""The ring of secret keys: one derived key per purpose, rotation, sealing, and the file that development keeps."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from counterseal.core.errors import ConfigurationError, SealBroken
from counterseal.core.keyring import Keyring, Sealed

OLD = base64.b64encode(b"o" * 32).decode()
NEW = base64.b64encode(b"n" * 48).decode()


def ring(*entries: str) -> Keyring:
    return Keyring(SecretStr(",".join(entries)))


def test_what_is_derived_differs_by_purpose_and_by_key_and_is_the_same_again():
    keys = ring(f"new:{NEW}", f"old:{OLD}")
    made = {keys.derive(purpose, key_id) for purpose in ("a", "b") for key_id in ("new", "old")}
    assert len(made) == 4
    assert all(len(key) == 32 for key in made)
    assert keys.derive("a") == keys.derive("a", "new") == ring(f"other-name:{NEW}").derive("a")


def test_an_unknown_key_is_told_without_naming_any():
    with pytest.raises(SealBroken) as caught:
        ring(f"new:{NEW}").derive("a", "gone")
    assert "gone" not in str(caught.value)


def test_what_was_sealed_comes_back_to_the_same_purpose_and_owner_alone():
    keys = ring(f"new:{NEW}")
    sealed = keys.seal("totp secret", b"plain", bound_to="u1")
    assert b"plain" not in sealed.data
    assert keys.unseal("totp secret", sealed, bound_to="u1") == b"plain"
    for purpose, owner in (("other", "u1"), ("totp secret", "u2"), ("totp secret", "")):
        with pytest.raises(SealBroken):
            keys.unseal(purpose, sealed, bound_to=owner)


def test_the_same_plain_text_is_never_sealed_alike():
    keys = ring(f"new:{NEW}")
    assert len({keys.seal("p", b"x", bound_to="u").data for _ in range(50)}) == 50


def test_every_bit_that_is_changed_and_every_byte_that_is_missing_breaks_the_seal():
    keys = ring(f"new:{NEW}")
    data = keys.seal("p", b"x", bound_to="u").data
    changed = [
        data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        for at in range(len(data))
        for bit in range(8)
    ]
    for broken in [*changed, *(data[:end] for end in range(len(data))), data + b"\0"]:
        with pytest.raises(SealBroken):
            keys.unseal("p", Sealed("new", broken), bound_to="u")


def test_a_new_key_seals_and_the_old_one_still_opens_until_it_is_taken_out():
    before = ring(f"old:{OLD}").seal("p", b"x", bound_to="u")
    during = ring(f"new:{NEW}", f"old:{OLD}")
    assert during.key_ids == ("new", "old")
    assert during.unseal("p", before, bound_to="u") == b"x"
    assert during.seal("p", b"x", bound_to="u").key_id == "new"
    with pytest.raises(SealBroken):
        ring(f"new:{NEW}").unseal("p", before, bound_to="u")


def test_a_seal_under_another_key_with_the_same_id_is_broken():
    with pytest.raises(SealBroken):
        ring(f"k:{NEW}").unseal("p", ring(f"k:{OLD}").seal("p", b"x", bound_to="u"), bound_to="u")


@pytest.mark.parametrize(
    "text",
    [
        "",
        OLD,
        f":{OLD}",
        f"k 1:{OLD}",
        "k1:",
        "k1:not base64",
        "k1:ümlaut",
        "k1:" + base64.b64encode(b"s" * 31).decode(),
        f"k1:{OLD},",
        f"k1:{OLD},k1:{NEW}",
        "k" * 65 + f":{OLD}",
    ],
)
def test_malformed_keys_are_refused_without_being_shown(text: str):
    with pytest.raises(ConfigurationError, match=r"^COUNTERSEAL_SECRET_KEYS: expected") as caught:
        Keyring(SecretStr(text))
    assert OLD not in str(caught.value)


def test_nothing_secret_is_in_a_repr():
    keys = ring(f"new:{NEW}")
    sealed = keys.seal("p", b"hush", bound_to="u")
    shown = repr(keys) + repr(sealed) + repr(vars(type(keys)))
    assert NEW not in shown
    assert repr(sealed) == "Sealed(key_id='new')"


async def test_without_keys_and_without_a_file_it_says_what_to_set():
    with pytest.raises(ConfigurationError, match=r"^COUNTERSEAL_SECRET_KEYS: expected kid:base64"):
        await Keyring(None).open()


def test_a_ring_that_was_not_opened_seals_nothing(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="not open"):
        Keyring(None, file=tmp_path / "secrets").seal("p", b"x", bound_to="u")


async def opened(file: Path) -> Keyring:
    keys = Keyring(None, file=file)
    await keys.open()
    return keys


async def test_the_first_start_makes_a_file_for_its_owner_alone_and_the_next_ones_read_it(tmp_path: Path):
    file = tmp_path / "data" / "secrets"
    old_mask = os.umask(0)
    try:
        first = await opened(file)
    finally:
        os.umask(old_mask)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["secrets"]
    again = await opened(file)
    assert again.derive("p") == first.derive("p")
    assert again.key_ids == first.key_ids
    content = file.read_text()
    assert content.endswith("\n")
    assert len(content.splitlines()) == 1


async def test_keys_that_are_set_go_before_the_file_and_none_is_made(tmp_path: Path):
    keys = Keyring(SecretStr(f"k:{OLD}"), file=tmp_path / "secrets")
    await keys.open()
    assert keys.key_ids == ("k",)
    assert not list(tmp_path.iterdir())


async def test_a_key_that_was_put_before_in_the_file_is_the_newest(tmp_path: Path):
    file = tmp_path / "secrets"
    first = await opened(file)
    file.write_text(f"next:{NEW},{file.read_text()}")
    assert (await opened(file)).key_ids == ("next", *first.key_ids)


async def test_rings_that_are_opened_at_once_have_the_same_key(tmp_path: Path):
    rings = await asyncio.gather(*(opened(tmp_path / "secrets") for _ in range(20)))
    assert len({keys.derive("p") for keys in rings}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secrets"]


def test_processes_that_start_at_once_have_the_same_key(tmp_path: Path):
    program = (
        "import asyncio, pathlib, sys\n"
        "from counterseal.core.keyring import Keyring\n"
        f"keys = Keyring(None, file=pathlib.Path({str(tmp_path / 'secrets')!r}))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "asyncio.run(keys.open()); print(keys.derive('p').hex())\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outcomes: set[str] = set()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        outcomes = {process.communicate(timeout=60)[0] for process in started}
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert len(outcomes) == 1
    assert len(outcomes.pop().strip()) == 64


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"hush", b"k1:", b"k1:aHVzaA==\n", b"\xff\xfe", b"k1:" + b"A" * 70_000, b"k1:hush!" * 9],
)
async def test_a_file_that_holds_no_key_is_not_replaced_and_not_shown(tmp_path: Path, content: bytes):
    file = tmp_path / "secrets"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="move it away") as caught:
        await opened(file)
    assert str(file) in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert file.read_bytes() == content


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o620])
async def test_a_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int):
    file = tmp_path / "secrets"
    await opened(file)
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await opened(file)
    file.chmod(0o600)
    await opened(file)


async def test_what_is_no_file_is_refused_and_holds_nobody_up(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "pipe", "dangling"):
        async with asyncio.timeout(10):
            with pytest.raises(ConfigurationError):
                await opened(tmp_path / name)


async def test_a_folder_that_may_not_be_used_is_told_by_what_to_do(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="COUNTERSEAL_SECRET_KEYS"):
        await opened(tmp_path / "file" / "secrets")
