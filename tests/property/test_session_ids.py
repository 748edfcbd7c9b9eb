"""Ids and tokens of sessions: any two ids make one, which comes apart in one way, and anything else is nothing."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from counterseal.core.errors import ConfigurationError
from counterseal.core.keyring import Keyring
from counterseal.sessions.access_token import AccessClaims, issue_access_token, read_access_token
from counterseal.sessions.identity import (
    LONGEST_SESSION_ID,
    decoded,
    encoded,
    session_id_of,
    split_session_id,
)
from counterseal.sessions.refresh_token import (
    new_refresh_token,
    open_successor,
    parse_refresh_token,
    seal_successor,
    was_issued,
)

RING = Keyring(SecretStr("k:" + base64.b64encode(b"k" * 32).decode()))
NOW = 1_790_000_000_000


def fits(text: str) -> bool:
    try:
        return len(text.encode()) <= 128 and "\0" not in text
    except UnicodeEncodeError:
        return False


awkward = st.sampled_from(
    ["a:b", "}{", "a.b", ".", "..", "%", "%2E", "a b", "\n", "x" * 128, "é" * 64, "😀" * 32, "~-_", "\x01"]
)
ids = awkward | st.text(min_size=1, max_size=128).filter(fits)
spellings = st.text(alphabet="ab.:%2eE3A~_-é\n\0") | st.text() | st.binary() | st.integers() | st.none()


@given(ids, ids)
def test_an_id_comes_apart_into_what_it_was_made_of(user: str, part: str):
    made = session_id_of(user, part)
    assert split_session_id(made) == (user, part)
    assert made.isascii()
    assert made.count(".") == 1
    assert not set(made) & set(":{} /\\\"'<>;,\n\t")
    assert len(made) <= LONGEST_SESSION_ID


@given(spellings)
@example("a.b.c")
@example("a.%62")
@example("a%3ab.c")
@example("a%2Eb.c")
@example("a%00.b")
@example("%FF.b")
@example("%ED%A0%80.b")
@example("a%.b")
@example("a%2.b")
@example("a.b\n")
@example("é.b")
@example("a." + "b" * 129)
@example("a" * 2**20)
@example("." * 2**16)
def test_any_other_spelling_is_nothing_and_never_an_error(text: object):
    found = split_session_id(text)
    assert found is None or session_id_of(*found) == text
    token = parse_refresh_token(text)
    assert token is None or token.text == text
    assert read_access_token(text, RING, NOW) is None


@given(ids)
def test_the_spelling_of_an_identifier_is_read_back(identifier: str):
    assert decoded(encoded(identifier)) == identifier


@pytest.mark.parametrize(
    ("user", "part"), [("", "s"), ("u", "x" * 129), ("é" * 65, "s"), ("a\0", "s"), ("\udfff", "s")]
)
def test_what_can_be_no_id_is_refused_by_the_name_of_the_field(user: str, part: str):
    with pytest.raises(ConfigurationError, match=r"^(user_id|part): "):
        session_id_of(user, part)


@given(ids, ids)
def test_tokens_of_any_session_are_read_back(user: str, part: str):
    token, successor = new_refresh_token(user, part, RING), new_refresh_token(user, part, RING)
    assert parse_refresh_token(token.text) == token
    assert was_issued(token, RING)
    assert open_successor(token, seal_successor(token, successor)) == successor
    claims = AccessClaims(session_id_of(user, part), user, 1, ("pwd",), NOW, NOW + 1)
    assert read_access_token(issue_access_token(claims, RING, NOW), RING, NOW) == claims


@given(st.text() | st.text(alphabet="v1.usAB_-%2E", min_size=60))
def test_a_made_up_token_was_never_issued(text: str):
    for candidate in (text, f"v1.{text}", f"v1.u.s.{text[:59]:A<59}"):
        token = parse_refresh_token(candidate)
        assert token is None or not was_issued(token, RING)


@given(st.binary(max_size=128))
def test_bytes_that_nobody_sealed_are_no_successor(sealed: bytes):
    assert open_successor(new_refresh_token("u", "s", RING), sealed) is None
