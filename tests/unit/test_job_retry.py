"""Whether a job that has failed runs again, and when."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.retry import NO_RETRY, Exponential, Fixed, Formula, Listed, Retry, pause_ms, retry_of

SECOND = timedelta(seconds=1)
MS = timedelta(milliseconds=1)


def highest() -> float:
    return 1 - 2**-53


def lowest() -> float:
    return 0.0


def unasked() -> float:
    raise AssertionError("this policy asks for no random number")


def pauses(policy: Retry, draw: Any = unasked) -> list[int]:
    found: list[int] = []
    while (pause := pause_ms(policy, len(found) + 1, draw)) is not None:
        found.append(pause)
    return found


def test_an_exponential_pause_doubles_up_to_the_longest_and_may_be_nothing() -> None:
    policy = Exponential(7, SECOND, 10 * SECOND)
    assert pauses(policy, highest) == [1000, 2000, 4000, 8000, 10_000, 10_000]
    assert pauses(policy, lowest) == [0] * 6
    assert pauses(policy, lambda: 0.5) == [500, 1000, 2000, 4000, 5000, 5000]


def test_an_exponential_pause_is_spread_over_its_whole_length() -> None:
    source = random.Random(7)
    drawn = [pause_ms(Exponential(2, 10 * MS, SECOND), 1, source.random) for _ in range(2000)]
    assert set(drawn) == set(range(11))


def test_a_thousand_doublings_stay_at_the_longest() -> None:
    policy = Exponential(1000, MS, timedelta(days=366))
    assert pause_ms(policy, 999, highest) == 366 * 86_400_000
    assert pause_ms(policy, 999, lambda: 1.0) == 366 * 86_400_000


def test_a_fixed_pause_is_the_same_each_time() -> None:
    assert pauses(Fixed(4, 1500 * MS)) == [1500] * 3
    assert pauses(Fixed(2, timedelta())) == [0]


def test_a_list_says_how_many_retries_there_are() -> None:
    policy = Listed((SECOND, 5 * SECOND))
    assert policy.attempts == 3
    assert pauses(policy) == [1000, 5000]


def test_no_retry_is_one_run() -> None:
    assert NO_RETRY.attempts == 1
    assert pause_ms(NO_RETRY, 1, unasked) is None
    assert pause_ms(Fixed(1, SECOND), 1, unasked) is None


def test_what_has_failed_more_often_than_it_may_is_given_up() -> None:
    assert pause_ms(Fixed(3, SECOND), 50, unasked) is None


def test_a_formula_counts_retries_from_nought() -> None:
    assert pauses(Formula(4, "pow(10, retried)")) == [1, 10, 100]


def test_a_formula_without_an_answer_pauses_exponentially() -> None:
    assert pauses(Formula(4, "1000 / (retried - 1)"), highest) == [0, 2000, 1000]


def test_a_number_is_that_of_retries() -> None:
    assert retry_of(0) == NO_RETRY
    assert retry_of(3) == Exponential(4)
    assert len(pauses(retry_of(3), lowest)) == 3
    assert retry_of(Fixed(2, SECOND)) == Fixed(2, SECOND)


@pytest.mark.parametrize("value", [-1, 1000, True, 1.5, "3", None])
def test_what_is_neither_number_nor_policy_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^retry: expected a policy, or how many retries"):
        retry_of(value)


def test_no_pause_before_anything_has_failed() -> None:
    with pytest.raises(ValueError, match="failed"):
        pause_ms(NO_RETRY, 0, unasked)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Exponential(0), "attempts"),
        (lambda: Exponential(1001), "attempts"),
        (lambda: Exponential(True), "attempts"),
        (lambda: Exponential("3"), "attempts"),  # type: ignore[arg-type]
        (lambda: Fixed(0, SECOND), "attempts"),
        (lambda: Formula(0, "1"), "attempts"),
        (lambda: Exponential(3, timedelta()), "first"),
        (lambda: Exponential(3, 5), "first"),  # type: ignore[arg-type]
        (lambda: Exponential(3, timedelta(microseconds=1500)), "first"),
        (lambda: Exponential(3, 2 * SECOND, SECOND), "longest"),
        (lambda: Exponential(3, SECOND, timedelta(days=367)), "longest"),
        (lambda: Fixed(3, -MS), "pause"),
        (lambda: Fixed(3, timedelta(days=367)), "pause"),
        (lambda: Listed((SECOND, -MS)), r"pauses\[1\]"),
        (lambda: Listed((SECOND,) * 1000), "pauses"),
        (lambda: Listed(SECOND), "pauses"),  # type: ignore[arg-type]
        (lambda: Formula(3, "1 +"), "expression: at character 4"),
        (lambda: Formula(3, "9" * 257), "expression"),
    ],
)
def test_a_bad_policy_is_refused_with_its_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^retry\.{field}: expected"):
        make()


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Exponential(5, SECOND, timedelta(hours=1)), b'["e",5,"PT1S","PT3600S"]'),
        (Fixed(3, 250 * MS), b'["f",3,"PT0.25S"]'),
        (Listed((SECOND, timedelta(days=2))), b'["l",["PT1S","P2D"]]'),
        (Formula(9, "1000 * retried"), b'["x",9,"1000 * retried"]'),
        (NO_RETRY, b'["l",[]]'),
    ],
)
def test_a_policy_travels_as_this_json(policy: Retry, text: bytes) -> None:
    assert msgspec.json.encode(policy) == text
    assert msgspec.json.decode(text, type=Retry) == policy
    assert msgspec.convert(msgspec.to_builtins(policy), Retry) == policy


def test_a_policy_cannot_be_changed_and_can_be_a_key() -> None:
    policy: Any = Listed([SECOND])  # type: ignore[arg-type]
    assert {policy: 1}[Listed((SECOND,))] == 1
    with pytest.raises(AttributeError):
        policy.pauses = ()
