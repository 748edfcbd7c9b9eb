"""Access tokens: standard JWTs that only a key of the ring makes, read strictly."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from counterseal.core.keyring import Keyring
from counterseal.sessions.access_token import (
    LONGEST_ACCESS_TOKEN,
    AccessClaims,
    issue_access_token,
    read_access_token,
)
from counterseal.sessions.identity import session_id_of

NOW = 1_790_000_000_123
NEW, OLD = (f"{name}:" + base64.b64encode(name.encode() * 16).decode() for name in ("new", "old"))
RING = Keyring(SecretStr(f"{NEW},{OLD}"))
KEY = RING.derive("access token", "new")
CLAIMS = AccessClaims(session_id_of("u:1", "s1"), "u:1", 3, ("pwd", "otp"), NOW - 5_000, NOW + 600_000)
SAID: dict[str, Any] = {
    "sub": "u:1",
    "sid": CLAIMS.session_id,
    "epoch": 3,
    "amr": ["pwd", "otp"],
    "auth_time": (NOW - 5_000) / 1000,
    "jti": "x",
    "iat": NOW // 1000,
    "exp": (NOW + 600_000) / 1000,
}


def made(said: object = SAID, *, header: object = None, key: bytes = KEY) -> str:
    header = {"alg": "HS256", "kid": "new", "typ": "JWT"} if header is None else header
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, said)]
    unsigned = b".".join(parts)
    signature = jwt.get_algorithm_by_name("HS256").sign(unsigned, key)
    return (unsigned + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_what_was_issued_is_read_back_to_the_millisecond():
    assert read_access_token(issue_access_token(CLAIMS, RING, NOW), RING, NOW) == CLAIMS


def test_pyjwt_reads_what_we_issue_and_we_read_what_it_issues():
    token = issue_access_token(CLAIMS, RING, NOW)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "new", "typ": "JWT"}
    said = jwt.decode(token, KEY, ["HS256"], options={"verify_exp": False, "verify_iat": False})
    assert {name: value for name, value in said.items() if name not in {"jti", "iat"}} == {
        name: value for name, value in SAID.items() if name not in {"jti", "iat"}
    }
    assert said["iat"] == NOW / 1000
    assert read_access_token(jwt.encode(SAID, KEY, headers={"kid": "new"}), RING, NOW) == CLAIMS


def test_no_two_tokens_are_alike():
    assert len({issue_access_token(CLAIMS, RING, NOW) for _ in range(100)}) == 100


def test_a_token_ends_on_time_by_the_clock_that_is_given():
    token = issue_access_token(CLAIMS, RING, NOW)
    assert read_access_token(token, RING, CLAIMS.expires_at_ms - 1) is not None
    assert read_access_token(token, RING, CLAIMS.expires_at_ms) is None


def test_both_keys_are_understood_during_a_rotation_and_the_old_one_no_more_after_it():
    before = issue_access_token(CLAIMS, Keyring(SecretStr(OLD)), NOW)
    assert read_access_token(before, RING, NOW) == CLAIMS
    assert read_access_token(before, Keyring(SecretStr(NEW)), NOW) is None
    assert jwt.get_unverified_header(issue_access_token(CLAIMS, RING, NOW))["kid"] == "new"


HEADERS: list[object] = [
    {"alg": "none", "kid": "new", "typ": "JWT"},
    {"alg": "hs256", "kid": "new", "typ": "JWT"},
    {"alg": "HS512", "kid": "new", "typ": "JWT"},
    {"alg": "RS256", "kid": "new", "typ": "JWT"},
    {"alg": "HS256", "typ": "JWT"},
    {"alg": "HS256", "kid": "old"},
    {"alg": "HS256", "kid": "gone"},
    {"alg": "HS256", "kid": ["new"]},
    {"alg": "HS256", "kid": None},
    {"alg": "HS256", "kid": "new", "crit": ["b64"], "b64": False},
    {"alg": "HS256", "kid": "new", "jwk": {}},
    [],
    "HS256",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_of_another_algorithm_key_or_kind_is_refused_even_when_the_signature_fits(header: object):
    assert read_access_token(made(header=header), RING, NOW) is None


@pytest.mark.parametrize(
    "said",
    [
        [],
        None,
        {},
        *({name: value for name, value in SAID.items() if name != left_out} for left_out in SAID),
        {**SAID, "sub": "somebody else"},
        {**SAID, "sid": "u:1.s1"},
        {**SAID, "sid": "u1"},
        {**SAID, "epoch": "3"},
        {**SAID, "epoch": 1.5},
        {**SAID, "exp": "soon"},
        {**SAID, "exp": 1e306},
        {**SAID, "auth_time": -1e307},
        {**SAID, "amr": "pwd"},
        {**SAID, "exp": NOW / 1000},
    ],
)
def test_claims_that_do_not_fit_are_nothing_even_when_they_are_signed(said: object):
    assert read_access_token(made(said), RING, NOW) is None


def test_a_nested_header_and_nested_claims_are_nothing():
    deep = base64.urlsafe_b64encode(b"[" * 180).rstrip(b"=").decode()
    assert read_access_token(f"{deep}.e30.{'A' * 43}", RING, NOW) is None
    deeper = base64.urlsafe_b64encode(b'{"sub":' * 400).rstrip(b"=").decode()
    assert read_access_token(f"{made().split('.')[0]}.{deeper}.{'A' * 43}", RING, NOW) is None


def test_another_key_and_another_purpose_sign_nothing_that_counts():
    assert read_access_token(made(key=b"x" * 32), RING, NOW) is None
    assert read_access_token(made(key=RING.derive("refresh token mark")), RING, NOW) is None


def test_a_token_has_one_spelling_and_every_other_character_breaks_it():
    token = issue_access_token(CLAIMS, RING, NOW)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for at in range(len(token)):
        other = alphabet[(alphabet.find(token[at]) + 1) % 64]
        assert read_access_token(token[:at] + other + token[at + 1 :], RING, NOW) is None, at
        assert read_access_token(token[:at], RING, NOW) is None, at
    for end in alphabet:
        assert (read_access_token(token[:-1] + end, RING, NOW) is None) == (end != token[-1])
    for around in (
        f" {token}",
        f"{token}\n",
        f"{token}=",
        f"{token}.",
        f"Bearer {token}",
        token.replace(".", ".."),
    ):
        assert read_access_token(around, RING, NOW) is None


def test_what_is_longer_than_any_token_is_not_looked_at():
    long = made({**SAID, "more": "x" * LONGEST_ACCESS_TOKEN})
    assert len(long) > LONGEST_ACCESS_TOKEN
    assert read_access_token(long, RING, NOW) is None
    assert read_access_token(made({**SAID, "more": "x"}), RING, NOW) == CLAIMS


def test_the_longest_ids_still_make_a_token_that_fits_a_cookie():
    for character in ("😀" * 32, "\x01" * 128, '"' * 128, "é" * 64):
        claims = AccessClaims(
            session_id_of(character, character), character, 2**31, ("pwd", "otp"), NOW, NOW + 600_000
        )
        token = issue_access_token(claims, RING, NOW)
        assert len(token) < 3900
        assert read_access_token(token, RING, NOW) == claims
