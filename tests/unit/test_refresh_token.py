"""Refresh tokens: parts that nobody mixes up, a mark that tells issued ones, successors that only the holder reads."""

from __future__ import annotations

import base64

import pytest
from pydantic import SecretStr

from counterseal.core.errors import ConfigurationError
from counterseal.core.keyring import Keyring
from counterseal.core.tokens import hash_token
from counterseal.sessions.identity import session_id_of
from counterseal.sessions.refresh_token import (
    LONGEST_REFRESH_TOKEN,
    new_refresh_token,
    open_successor,
    parse_refresh_token,
    seal_successor,
    was_issued,
)

NEW, OLD = (f"{name}:" + base64.b64encode(name.encode() * 16).decode() for name in ("new", "old"))
RING = Keyring(SecretStr(f"{NEW},{OLD}"))
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_a_token_names_its_session_and_is_kept_as_a_hash():
    token = new_refresh_token("u.1", "s:1", RING)
    version, user, part, secret = token.text.split(".")
    assert (version, user, part, len(secret)) == ("v1", "u%2E1", "s%3A1", 59)
    assert token.session_id == session_id_of("u.1", "s:1")
    assert token.hash == hash_token(token.text)


def test_no_two_tokens_are_alike_and_none_is_in_a_repr():
    tokens = [new_refresh_token("u", "s", RING) for _ in range(100)]
    assert len({token.text for token in tokens}) == 100
    assert repr(tokens[0]) == "RefreshToken(user_id='u', part='s')"


def test_a_token_was_issued_when_any_key_of_the_ring_marked_it():
    token = new_refresh_token("u", "s", Keyring(SecretStr(OLD)))
    assert was_issued(token, RING)
    assert was_issued(token, Keyring(SecretStr(OLD)))
    assert not was_issued(token, Keyring(SecretStr(NEW)))


def test_every_character_that_is_changed_shows():
    token = new_refresh_token("u", "s", RING)
    for at in range(len(token.text)):
        for step in (1, 7, 33):
            other = ALPHABET[(ALPHABET.find(token.text[at]) + step) % 64]
            changed = parse_refresh_token(token.text[:at] + other + token.text[at + 1 :])
            if other != token.text[at]:
                assert changed is None or not was_issued(changed, RING), at


def test_the_mark_of_one_session_is_none_for_another():
    token = new_refresh_token("u", "s", RING)
    moved = parse_refresh_token(token.text.replace("v1.u.s.", "v1.u.t."))
    assert moved is not None
    assert not was_issued(moved, RING)


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"v1.u.s." + b"A" * 59,
        7,
        "",
        "v1",
        "v1.u.s",
        "v1.u.s." + "A" * 58,
        "v1.u.s." + "A" * 60,
        "v1.u.s." + "A" * 58 + "=",
        "v1.u.s." + "A" * 58 + "\n",
        "v1.u.s." + "A" * 59 + "\n",
        "v1.u.s." + "\uff21" * 59,
        "v2.u.s." + "A" * 59,
        "V1.u.s." + "A" * 59,
        "v1.us." + "A" * 59,
        "v1.u.s.t." + "A" * 59,
        "v1..s." + "A" * 59,
        "v1.u.." + "A" * 59,
        "v1.%75.s." + "A" * 59,
        "v1.a%3ab.s." + "A" * 59,
        "v1." + "u" * 129 + ".s." + "A" * 59,
        "v1.u." + "s" * 2**20 + "." + "A" * 59,
        " v1.u.s." + "A" * 59,
    ],
)
def test_what_is_no_token_is_nothing(text: object):
    assert parse_refresh_token(text) is None


def test_the_longest_ids_make_a_token_that_is_read_back_and_fits_a_cookie():
    token = new_refresh_token("😀" * 32, "\x01" * 128, RING)
    assert len(token.text) == LONGEST_REFRESH_TOKEN
    assert parse_refresh_token(token.text) == token


def test_what_can_be_no_id_gets_no_token():
    for user, part in (("", "s"), ("u", ""), ("u" * 129, "s"), ("u", "a\0b"), ("\ud800", "s")):
        with pytest.raises(ConfigurationError):
            new_refresh_token(user, part, RING)


def test_a_successor_is_read_by_who_holds_the_token_before_it_and_by_nobody_else():
    first, second, other = (new_refresh_token("u:1", "s", RING) for _ in range(3))
    sealed = seal_successor(first, second)
    assert len(sealed) == 87
    assert second.text.encode()[-59:] not in sealed
    assert open_successor(first, sealed) == second
    assert open_successor(other, sealed) is None
    assert open_successor(second, sealed) is None


def test_a_sealed_successor_that_was_changed_or_cut_is_nothing():
    first, second = (new_refresh_token("u", "s", RING) for _ in range(2))
    sealed = seal_successor(first, second)
    for at in range(len(sealed)):
        assert open_successor(first, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
        assert open_successor(first, sealed[:at]) is None


def test_a_successor_of_another_session_is_refused():
    with pytest.raises(ValueError, match="same session"):
        seal_successor(new_refresh_token("u", "s", RING), new_refresh_token("u", "t", RING))
