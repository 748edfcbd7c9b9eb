"""Identifier: the text by which somebody is limited or listed."""

from __future__ import annotations

from typing import Final

from counterseal.core.errors import ConfigurationError

LONGEST_IDENTIFIER: Final = 1024
"""Bytes of UTF-8 that an identifier may have."""


def checked_text(field: str, value: object) -> str:
    """Text of 1 to 1024 bytes. Raises `ConfigurationError`, which does not tell what came: it may be an address."""
    expected = f"{field}: expected text of 1 to {LONGEST_IDENTIFIER} bytes"
    if not isinstance(value, str):
        raise ConfigurationError(f"{expected}; came: {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as fault:
        raise ConfigurationError(f"{expected} of UTF-8; came: a lone surrogate") from fault
    if not 1 <= size <= LONGEST_IDENTIFIER:
        raise ConfigurationError(f"{expected}; came: {size} bytes")
    return value
