"""Durations as they are given: checked, and in milliseconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from counterseal.core.errors import ConfigurationError

MS: Final = timedelta(milliseconds=1)
NONE: Final = timedelta()
YEAR: Final = timedelta(days=366)


def checked_ms(field: str, value: object, *, least: timedelta, most: timedelta = YEAR) -> int:
    """The milliseconds of a duration from `least` to `most`. Raises `ConfigurationError` naming the field."""
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{field}: expected a timedelta; came: {type(value).__name__}")
    if not least <= value <= most or value % MS:
        raise ConfigurationError(
            f"{field}: expected whole milliseconds from {least} to {most}; came: {value}"
        )
    return value // MS
