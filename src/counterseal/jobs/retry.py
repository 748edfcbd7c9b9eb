"""Retry: whether a job that has failed runs again, and after which pause.

A policy is a value that travels within the options of a job: JSON of a tag and its fields in order, such as
`["f",5,"PT2S"]`. `attempts` counts every run, the first included.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeAlias, cast

import msgspec

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.duration import MS, NONE, checked_ms
from counterseal.jobs.formula import DelayExpression

MOST_ATTEMPTS: Final = 1_000

FIRST: Final = timedelta(seconds=1)
LONGEST: Final = timedelta(hours=1)


class Exponential(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """A pause that doubles each time, from `first` to `longest`, of which a random part is waited (full jitter).

    The random part, from nothing to the whole, keeps jobs that failed together from coming back together. Raises
    `ConfigurationError` naming the field for attempts other than 1 to 1000, and durations that are not whole
    milliseconds from 1 ms to 366 days, or `longest` below `first`.
    """

    attempts: int
    first: timedelta = FIRST
    longest: timedelta = LONGEST

    def __post_init__(self) -> None:
        _check_attempts(self.attempts)
        checked_ms("retry.first", self.first, least=MS)
        checked_ms("retry.longest", self.longest, least=self.first)


class Fixed(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """The same pause each time, which may be none. Raises `ConfigurationError` as `Exponential` does."""

    attempts: int
    pause: timedelta

    def __post_init__(self) -> None:
        _check_attempts(self.attempts)
        checked_ms("retry.pause", self.pause, least=NONE)


class Listed(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """These pauses, one after the other: as many retries as pauses. Raises `ConfigurationError` naming `pauses[n]`."""

    pauses: tuple[timedelta, ...]

    def __post_init__(self) -> None:
        given = cast("object", self.pauses)
        if not isinstance(given, (tuple, list)):
            raise ConfigurationError(
                f"retry.pauses: expected several timedeltas; came: {type(given).__name__}"
            )
        pauses = tuple(cast("tuple[timedelta, ...]", given))
        if len(pauses) >= MOST_ATTEMPTS:
            raise ConfigurationError(
                f"retry.pauses: expected at most {MOST_ATTEMPTS - 1} of them; came: {len(pauses)}"
            )
        for index, pause in enumerate(pauses):
            checked_ms(f"retry.pauses[{index}]", pause, least=NONE)
        msgspec.structs.force_setattr(self, "pauses", pauses)

    @property
    def attempts(self) -> int:
        """How many runs there are: the first, and one after each pause."""
        return len(self.pauses) + 1


class Formula(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    """A pause in milliseconds by an expression in `retried`, as `Formula(5, "pow(2, retried) * 1000")`.

    The grammar stands in `jobs/formula.py`. Where the expression has no answer, such as a division by zero, the pause
    is that of `Exponential`. Raises `ConfigurationError` naming the field, for the expression with the position.
    """

    attempts: int
    expression: str

    def __post_init__(self) -> None:
        _check_attempts(self.attempts)
        DelayExpression(self.expression, field="retry.expression")


Retry: TypeAlias = Exponential | Fixed | Listed | Formula

NO_RETRY: Final = Listed(())
"""One run, and no other."""


def pause_ms(policy: Retry, failed: int, random: Callable[[], float]) -> int | None:
    """How long to wait before the next run, in milliseconds. None: give up.

    `failed` is the number of runs that have failed so far, 1 for the first. `random` gives numbers from 0 up to 1, as
    `random.random` does; only `Exponential` and a formula without an answer ask it.
    """
    if failed < 1:
        raise ValueError(f"failed: expected at least 1; came: {failed}")
    if failed >= policy.attempts:
        return None
    if isinstance(policy, Fixed):
        return policy.pause // MS
    if isinstance(policy, Listed):
        return policy.pauses[failed - 1] // MS
    if isinstance(policy, Formula):
        pause = DelayExpression(policy.expression).delay_ms(failed - 1)
        return _jittered(FIRST // MS, LONGEST // MS, failed, random) if pause is None else pause
    return _jittered(policy.first // MS, policy.longest // MS, failed, random)


def retry_of(value: int | Retry) -> Retry:
    """The policy that is meant: a number is that of retries, after pauses as `Exponential` has them; 0 is `NO_RETRY`.

    Raises `ConfigurationError` naming `retry`.
    """
    given = cast("object", value)
    if isinstance(given, (Exponential, Fixed, Listed, Formula)):
        return given
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < MOST_ATTEMPTS:
        raise ConfigurationError(
            f"retry: expected a policy, or how many retries from 0 to {MOST_ATTEMPTS - 1}; came: {given!r}"
        )
    return Exponential(given + 1) if given else NO_RETRY


def _jittered(first: int, longest: int, failed: int, random: Callable[[], float]) -> int:
    # A year has fewer than 2 ** 36 milliseconds, so that more doublings change nothing.
    whole = min(longest, first << min(failed - 1, 36))
    return min(int(random() * (whole + 1)), whole)


def _check_attempts(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_ATTEMPTS:
        raise ConfigurationError(
            f"retry.attempts: expected a whole number from 1 to {MOST_ATTEMPTS}; came: {value!r}"
        )
