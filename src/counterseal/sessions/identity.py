"""Identity: the public id of a session, `<user part>.<session part>`, from which alone its slot is known.

User ids and session parts are opaque text of 1 to 128 bytes of UTF-8, without NUL, which PostgreSQL can't keep. Each is
percent-encoded, the dot too, so that any two of them make one id and an id is taken apart in one way. Only the spelling
that `session_id_of` gives is understood: every session has one id.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from counterseal.core.errors import ConfigurationError

LONGEST_BYTES: Final = 128
LONGEST_SESSION_ID: Final = 2 * 3 * LONGEST_BYTES + 1

_PLAIN: Final = re.compile(rf"[A-Za-z0-9_~-]{{1,{LONGEST_BYTES}}}")
_PLAIN_ID: Final = re.compile(rf"({_PLAIN.pattern})\.({_PLAIN.pattern})")


def is_identifier(text: object) -> bool:
    """Whether this may be a user id or a session part."""
    if not isinstance(text, str):
        return False
    if _PLAIN.fullmatch(text):
        return True
    try:
        return 1 <= len(text.encode()) <= LONGEST_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False


def checked_identifier(field: str, value: object) -> str:
    """A user id or a session part as it came. Raises `ConfigurationError`, which does not tell what came."""
    if not isinstance(value, str) or not is_identifier(value):
        raise ConfigurationError(
            f"{field}: expected text of 1 to {LONGEST_BYTES} bytes of UTF-8, without NUL"
        )
    return value


def session_id_of(user_id: str, part: str) -> str:
    """The public id of a user's session. Raises `ConfigurationError` for what can't be a user id or a session part."""
    return f"{encoded(checked_identifier('user_id', user_id))}.{encoded(checked_identifier('part', part))}"


def split_session_id(text: object) -> tuple[str, str] | None:
    """The user id and the session part of a public session id; None for anything else. Never raises."""
    return _split(text) if isinstance(text, str) else None


# The same few sessions are asked for again and again.
@lru_cache(maxsize=4096)
def _split(text: str) -> tuple[str, str] | None:
    found = _PLAIN_ID.fullmatch(text)
    if found is not None:
        return found[1], found[2]
    if len(text) > LONGEST_SESSION_ID:
        return None
    user, dot, part = text.partition(".")
    if not dot:
        return None
    user_id, session_part = decoded(user), decoded(part)
    return None if user_id is None or session_part is None else (user_id, session_part)


def encoded(identifier: str) -> str:
    """A user id or session part as it stands in ids and tokens: letters, digits, `_`, `~`, `-` and `%XX`."""
    if _PLAIN.fullmatch(identifier):
        return identifier
    return quote(identifier, safe="").replace(".", "%2E")


def decoded(text: str) -> str | None:
    """What `encoded` gave this text for; None when it gives it for nothing. Never raises."""
    if _PLAIN.fullmatch(text):
        return text
    if not text.isascii():
        return None
    try:
        identifier = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return None
    return identifier if is_identifier(identifier) and encoded(identifier) == text else None
