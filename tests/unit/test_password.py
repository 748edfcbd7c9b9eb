"""Passwords: which may be chosen, and how they are kept."""

from __future__ import annotations

import asyncio
import threading

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerifyMismatchError

from counterseal.accounts.password import Passwords, weakness

GOOD = "correct horse battery"
CHEAP = {"memory_kib": 64, "passes": 1}


@pytest.mark.parametrize(
    "password", [GOOD, "p\u00e4ssw\u00f6rter", "12 34 56 78 90", "x" * 255 + "y", "\U0001f600 seven more"]
)
def test_any_characters_make_a_password_from_8_to_256(password: str) -> None:
    assert weakness(password, email="ada@example.com") is None


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short 7",
        "x" * 256 + "y",
        "\ufb03" * 90,  # one character that becomes three: 270
        "aaaaaaaaaaaa",
        "password123",
        "PassWord123",
        "ada@example.com",
        "ADA@example.com",
        "with a lone \ud800 surrogate",
    ],
)
def test_a_password_that_is_guessed_first_or_has_the_wrong_length_is_refused(password: str) -> None:
    refused = weakness(password, email="ada@example.com")
    assert refused is not None
    assert refused.code == "password_too_weak"
    assert not password or password not in refused.detail


def test_what_stands_before_the_at_sign_is_no_password() -> None:
    assert weakness("Adalovelace", email="adalovelace@example.com") is not None


async def test_a_hash_is_argon2id_with_the_declared_costs_and_knows_its_password() -> None:
    passwords = Passwords()
    kept = await passwords.hash(GOOD)
    found = extract_parameters(kept)
    assert kept.startswith("$argon2id$v=19$")
    assert (found.memory_cost, found.time_cost, found.parallelism) == (19 * 1024, 2, 1)
    assert await passwords.verify(kept, GOOD)
    assert not await passwords.verify(kept, GOOD + "!")
    assert GOOD not in kept


async def test_two_hashes_of_one_password_differ() -> None:
    passwords = Passwords(**CHEAP)
    assert await passwords.hash(GOOD) != await passwords.hash(GOOD)


async def test_a_password_typed_on_another_keyboard_is_the_same() -> None:
    passwords = Passwords(**CHEAP)
    kept = await passwords.hash("jos\u00e9 \uff11\uff12\uff13\uff14")
    assert await passwords.verify(kept, "jose\u0301 1234")


async def test_a_long_password_is_not_cut() -> None:
    passwords = Passwords(**CHEAP)
    kept = await passwords.hash("x" * 255 + "y")
    assert not await passwords.verify(kept, "x" * 256)
    assert not await passwords.verify(kept, "x" * 255 + "yy")
    assert await passwords.verify(kept, "x" * 255 + "y")


@pytest.mark.parametrize(
    "kept", ["", "plain text", "$argon2id$v=19$m=64,t=1,p=1$broken", "$2b$12$" + "a" * 53]
)
async def test_what_is_no_hash_of_ours_knows_no_password(kept: str) -> None:
    assert not await Passwords(**CHEAP).verify(kept, "plain text")


@pytest.mark.parametrize("password", ["", GOOD, "x" * 100_000, "\ud800"])
async def test_nobody_has_no_password(password: str) -> None:
    assert not await Passwords(**CHEAP).verify(None, password)


def test_looking_for_the_password_of_nobody_costs_a_whole_hash() -> None:
    passwords = Passwords()
    assert extract_parameters(passwords._nobody) == extract_parameters(
        PasswordHasher(2, 19 * 1024, 1).hash("x")
    )
    with pytest.raises(
        VerifyMismatchError
    ):  # it was computed and compared; a malformed one would be refused at once
        PasswordHasher().verify(passwords._nobody, GOOD)
    assert passwords._nobody != Passwords()._nobody


async def test_a_hash_with_other_costs_is_outdated() -> None:
    old, new = Passwords(**CHEAP), Passwords(memory_kib=128, passes=1)
    kept = await old.hash(GOOD)
    assert new.is_outdated(kept)
    assert not old.is_outdated(kept)
    assert await new.verify(kept, GOOD)
    assert new.is_outdated("no hash")


class _Watched:
    """A hasher that holds each call until another is in beside it, and knows how many were in at most."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self._lock = threading.Lock()
        self._two = threading.Barrier(2)

    def hash(self, text: str) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self._two.wait(timeout=20)
        with self._lock:
            self.inside -= 1
        return text


async def test_two_hashes_are_made_at_once_and_not_on_the_event_loop() -> None:
    passwords, watched = Passwords(**CHEAP), _Watched()
    passwords._hasher = watched  # type: ignore[assignment]
    await asyncio.gather(*(passwords.hash(GOOD) for _ in range(12)))
    assert watched.most == 2
