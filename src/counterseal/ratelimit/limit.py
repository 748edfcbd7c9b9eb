"""Limit: how much is allowed in how long, and by which algorithm it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final, cast

from counterseal.core.errors import ConfigurationError

LONGEST: Final = timedelta(days=366)
MOST_EXACT: Final = 2**52
"""Scripts reckon in tokens times milliseconds, which are exact in a double up to here and a little further."""

_MS: Final = timedelta(milliseconds=1)


class Algorithm(StrEnum):
    """How the calls of the recent past are counted. What each is good for stands in `docs/rate-limits.md`."""

    FIXED_WINDOW = "fixed_window"
    SLIDING_WINDOW = "sliding_window"
    SLIDING_LOG = "sliding_log"
    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - no password
    GCRA = "gcra"


WITH_BURST: Final = frozenset({Algorithm.TOKEN_BUCKET, Algorithm.GCRA})


@dataclass(frozen=True, slots=True)
class Limit:
    """`count` in every `per`, as `Limit(100, timedelta(minutes=1))`.

    `burst` is for `TOKEN_BUCKET` and `GCRA`: how many may come at once, `count` unless given. Raises
    `ConfigurationError` with field, expectation and value for a count or burst below 1, a period that is not whole
    milliseconds from 1 ms to 366 days, and for a product of the two too large to be counted exactly.
    """

    count: int
    per: timedelta
    algorithm: Algorithm = Algorithm.SLIDING_WINDOW
    burst: int | None = None

    def __post_init__(self) -> None:
        _check_whole("limit.count", self.count)
        per = cast("object", self.per)
        if not isinstance(per, timedelta):
            raise ConfigurationError(f"limit.per: expected a timedelta; came: {type(per).__name__}")
        if not _MS <= self.per <= LONGEST or self.per % _MS:
            raise ConfigurationError(
                f"limit.per: expected whole milliseconds, from 1 ms to 366 days; came: {self.per}"
            )
        algorithm = cast("object", self.algorithm)
        if not isinstance(algorithm, Algorithm):
            known = ", ".join(Algorithm)
            raise ConfigurationError(f"limit.algorithm: expected one of {known}; came: {algorithm!r}")
        if self.burst is not None:
            if self.algorithm not in WITH_BURST:
                raise ConfigurationError(
                    f"limit.burst: expected none for {self.algorithm}; came: {self.burst!r}"
                )
            _check_whole("limit.burst", self.burst)
        most = MOST_EXACT // self.per_ms
        if max(self.count, self.capacity) > most:
            field = "count" if self.count > most else "burst"
            raise ConfigurationError(
                f"limit.{field}: expected at most {most} for this period; came: {max(self.count, self.capacity)}"
            )

    @property
    def per_ms(self) -> int:
        """The period in milliseconds."""
        return self.per // _MS

    @property
    def capacity(self) -> int:
        """How much can be had at once, when nothing came before: what `Decision.limit` says."""
        return self.count if self.burst is None else self.burst


def _check_whole(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{field}: expected a whole number of at least 1; came: {value!r}")
