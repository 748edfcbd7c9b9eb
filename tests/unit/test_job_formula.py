"""What an expression for the pause before a retry says, and what is refused."""

from __future__ import annotations

import time

import pytest

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.formula import MOST_MS, DelayExpression


@pytest.mark.parametrize(
    ("text", "retried", "expected"),
    [
        ("1000", 0, 1000),
        ("1000 * (1 + retried)", 2, 3000),
        ("pow(2, retried) * 1000", 5, 32_000),
        ("1 + 2 * 3", 0, 7),
        ("(1 + 2) * 3", 0, 9),
        ("10 - 4 - 3", 0, 3),
        ("100 / 10 / 5", 0, 2),
        ("2 * -3 + 10", 0, 4),
        ("-5 + +8", 0, 3),
        ("17 % 5", 0, 2),
        ("10 + -17 % 5", 0, 8),
        ("1.5e3", 0, 1500),
        (".5 * 10 + 2.", 0, 7),
        ("sqrt(16) + abs(-3) + floor(2.9) + ceil(2.1)", 0, 12),
        ("round(2.5) * 100 + round(-0.5) * 10 + round(2.4)", 0, 292),
        ("exp(0)", 0, 1),
        ("min(7) + max(1, 5, 3) + min(4, 2)", 0, 14),
        ("\t max ( retried , 1 )  ", 9, 9),
        ("2.999", 0, 2),
        ("0 - 1", 0, 0),
        ("1e300", 0, MOST_MS),
    ],
)
def test_an_expression_has_this_pause(text: str, retried: int, expected: int) -> None:
    assert DelayExpression(text).delay_ms(retried) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1 / retried",
        "1 / (1 - 1)",
        "min(1 / 0, 5)",
        "1 % 0",
        "sqrt(0 - 1)",
        "max(1, sqrt(-1))",
        "pow(0, -1)",
        "pow(-8, 0.5)",
        "exp(1000)",
        "pow(9, pow(9, 9))",
        "exp(1000) - exp(1000)",
        "min(5, exp(1000) - exp(1000))",
        "exp(1000) * 0",
        "exp(1000) % 2",
        "0 - exp(1000)",
        "1e308 * 10",
        "floor(exp(1000))",
    ],
)
def test_an_expression_without_an_answer_gives_none(text: str) -> None:
    assert DelayExpression(text).delay_ms(0) is None


def test_what_grew_too_large_may_be_capped() -> None:
    assert DelayExpression("min(exp(retried * 1000), 60000)").delay_ms(3) == 60_000
    assert DelayExpression("max(pow(-9, 1001), 5)").delay_ms(0) == 5
    assert DelayExpression("min(pow(-9, 1000), 5)").delay_ms(0) == 5


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 1, "a number, 'retried', a function or '('"),
        ("   ", 4, "a number"),
        ("1 +", 4, "a number"),
        ("2 ^ 3", 3, "an operator or the end; came: '^'"),
        ("2 ** 3", 4, "a number"),
        ("--1", 2, "a number"),
        ("1 2", 3, "an operator or the end"),
        ("(1", 3, "an operator or ')'; came: the end"),
        ("1)", 2, "an operator or the end"),
        ("1\n+ 2", 2, "an operator or the end"),
        ("retries", 1, "'retried' or one of pow, sqrt"),
        ("Retried", 1, "'retried' or one of"),
        ("retried()", 8, "an operator or the end"),
        ("1 + __import__(1)", 5, "'retried' or one of"),
        ("pow", 4, "'('"),
        ("1 + pow(2)", 5, "2 arguments of pow; came: 1"),
        ("sqrt(1, 2)", 1, "1 argument of sqrt; came: 2"),
        ("min()", 5, "a number"),
        ("min(1,)", 7, "a number"),
        ("1e999", 1, "a number that a double can hold"),
        ("٣", 1, "a number"),
        ("0x10", 2, "an operator or the end"),
        ("1_000", 2, "an operator or the end"),
    ],
)
def test_what_is_not_in_the_grammar_is_refused_with_its_position(
    text: str, position: int, expected: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        DelayExpression(text, field="field")
    assert str(refused.value).startswith(f"field: at character {position}: expected {expected}")


def test_thirty_two_levels_and_256_characters_are_read_and_not_one_more() -> None:
    assert DelayExpression("(" * 32 + "7" + ")" * 32).delay_ms(0) == 7
    assert DelayExpression(("1+" * 128)[:-1] + " ").delay_ms(0) == 128
    assert DelayExpression("+".join(["(1)"] * 64)).delay_ms(0) == 64
    with pytest.raises(ConfigurationError, match="at character 33: expected at most 32 levels"):
        DelayExpression("(" * 33 + "7" + ")" * 33)
    with pytest.raises(ConfigurationError, match="expected at most 256 characters; came: 257"):
        DelayExpression("1" * 257)
    with pytest.raises(ConfigurationError, match="expected text; came: int"):
        DelayExpression(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "pow(9,pow(9,9))",
        "pow(9," * 32 + "9" + ")" * 32,
        "*".join(["9e99"] * 51),
        "+".join(["exp(9)"] * 36),
        "floor(" * 32 + "1e300" + ")" * 32,
        "9" * 256,
        "1e" + "9" * 254,
        "(" * 256,
        "-(" * 128,
    ],
)
def test_a_hostile_expression_takes_no_time(text: str) -> None:
    began = time.process_time()
    for _ in range(10):
        try:
            DelayExpression(text).delay_ms(9)
        except ConfigurationError:
            continue
    assert time.process_time() - began < 0.5
