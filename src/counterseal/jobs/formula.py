"""Formula: an expression that says how long to wait before a retry, as QStash's `Retry-Delay` has it.

::

    expr  = term {("+" | "-") term}
    term  = unary {("*" | "/" | "%") unary}
    unary = ["+" | "-"] atom
    atom  = number | "retried" | name "(" expr {"," expr} ")" | "(" expr ")"

`retried` is the number of retries so far: 0 when the first is planned. The functions are `pow(x, y)`, `sqrt`, `abs`,
`exp`, `floor`, `ceil`, `round` (half away from zero), and `min` and `max` of one or more. `%` has the sign of its left
side. All numbers are doubles. What grows too large is infinity, which `min` may take back, as in
`min(exp(retried * 99), 60000)`.

Nothing here takes long: a text has at most 256 characters, becomes at most that many steps, and each is one operation
on doubles. It is never given to Python.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from counterseal.core.errors import ConfigurationError

MOST_CHARACTERS: Final = 256
MOST_LEVELS: Final = 32
MOST_MS: Final = 86_400_000
"""The longest pause that a formula can give: a day."""

_Function: TypeAlias = Callable[[Sequence[float]], float]

_TOKEN: Final = re.compile(
    r"[ \t]*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>[^ \t]))?"
)


class _Undefined(ArithmeticError):
    """A division by zero, or something that is no number."""


@dataclass(frozen=True, slots=True)
class _Step:
    """Takes `takes` numbers off the stack and puts one there. Without a function: `retried`."""

    takes: int
    function: _Function | None


def _constant(value: float) -> _Step:
    return _Step(0, lambda _: value)


def _divided(numbers: Sequence[float]) -> float:
    if not numbers[1]:
        raise _Undefined
    return numbers[0] / numbers[1]


def _remainder(numbers: Sequence[float]) -> float:
    return math.fmod(numbers[0], numbers[1])


def _power(numbers: Sequence[float]) -> float:
    base, exponent = numbers
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and math.fmod(exponent, 2) else math.inf


def _exponential(numbers: Sequence[float]) -> float:
    try:
        return math.exp(numbers[0])
    except OverflowError:
        return math.inf


def _whole(rounded: Callable[[float], float]) -> _Function:
    return lambda numbers: float(rounded(numbers[0])) if math.isfinite(numbers[0]) else numbers[0]


def _nearest(number: float) -> float:
    whole = math.floor(abs(number))
    return math.copysign(whole + (abs(number) - whole >= 0.5), number)


_OPERATORS: Final[dict[str, _Step]] = {
    "+": _Step(2, lambda numbers: numbers[0] + numbers[1]),
    "-": _Step(2, lambda numbers: numbers[0] - numbers[1]),
    "*": _Step(2, lambda numbers: numbers[0] * numbers[1]),
    "/": _Step(2, _divided),
    "%": _Step(2, _remainder),
}
_NEGATED: Final = _Step(1, lambda numbers: operator.neg(numbers[0]))
_RETRIED: Final = _Step(0, None)

# How many arguments each takes; None: one or more.
_FUNCTIONS: Final[dict[str, tuple[int | None, _Function]]] = {
    "pow": (2, _power),
    "sqrt": (1, lambda numbers: math.sqrt(numbers[0])),
    "abs": (1, lambda numbers: abs(numbers[0])),
    "exp": (1, _exponential),
    "floor": (1, _whole(math.floor)),
    "ceil": (1, _whole(math.ceil)),
    "round": (1, _whole(_nearest)),
    "min": (None, min),
    "max": (None, max),
}


class DelayExpression:
    """An expression in milliseconds, as `DelayExpression("pow(2, retried) * 1000")`.

    Raises `ConfigurationError` saying at which character (the first is 1) something else was expected, also for more
    than 256 characters or 32 levels of parentheses.
    """

    __slots__ = ("_steps", "text")

    def __init__(self, text: str, *, field: str = "expression") -> None:
        self.text: Final = text
        self._steps: Final = _Parser(text, field).parsed()

    def delay_ms(self, retried: int) -> int | None:
        """The pause after so many retries: rounded down, and from 0 to a day.

        None when the expression has no answer: its result is infinite, or somewhere in it a number is divided by zero
        or something is no number, as `sqrt(-1)`.
        """
        try:
            result = self._result(float(retried))
        except (_Undefined, ValueError):
            return None
        if not math.isfinite(result):
            return None
        return math.floor(min(max(result, 0.0), MOST_MS))

    def _result(self, retried: float) -> float:
        stack: list[float] = []
        for step in self._steps:
            if step.function is None:
                stack.append(retried)
                continue
            first = len(stack) - step.takes
            number = step.function(stack[first:])
            if math.isnan(number):
                raise _Undefined
            stack[first:] = [number]
        return stack[0]

    def __repr__(self) -> str:
        return f"DelayExpression({self.text!r})"


class _Parser:
    """Recursive descent over the text, one token ahead. Writes steps for a stack, operands first."""

    def __init__(self, text: str, field: str) -> None:
        given = cast("object", text)
        if not isinstance(given, str):
            raise ConfigurationError(f"{field}: expected text; came: {type(given).__name__}")
        if len(text) > MOST_CHARACTERS:
            raise ConfigurationError(
                f"{field}: expected at most {MOST_CHARACTERS} characters; came: {len(text)}"
            )
        self._text = text
        self._field = field
        self._end = 0
        self._levels = 0
        self._steps: list[_Step] = []
        self._advance()

    def parsed(self) -> tuple[_Step, ...]:
        self._sum()
        if self._kind:
            raise self._unexpected("an operator or the end")
        return tuple(self._steps)

    def _sum(self) -> None:
        self._product()
        while self._word in {"+", "-"}:
            step = _OPERATORS[self._take()]
            self._product()
            self._steps.append(step)

    def _product(self) -> None:
        self._signed()
        while self._word in {"*", "/", "%"}:
            step = _OPERATORS[self._take()]
            self._signed()
            self._steps.append(step)

    def _signed(self) -> None:
        sign = self._take() if self._word in {"+", "-"} else ""
        self._atom()
        if sign == "-":
            self._steps.append(_NEGATED)

    def _atom(self) -> None:
        if self._kind == "number":
            number = float(self._word)
            if not math.isfinite(number):
                raise self._unexpected("a number that a double can hold")
            self._steps.append(_constant(number))
            self._advance()
        elif self._word == "retried":
            self._steps.append(_RETRIED)
            self._advance()
        elif self._kind == "name":
            self._call()
        elif self._word == "(":
            self._open()
            self._sum()
            self._close()
        else:
            raise self._unexpected("a number, 'retried', a function or '('")

    def _call(self) -> None:
        if self._word not in _FUNCTIONS:
            raise self._unexpected(f"'retried' or one of {', '.join(_FUNCTIONS)}")
        position = self._position
        name = self._take()
        arity, function = _FUNCTIONS[name]
        self._open()
        self._sum()
        given = 1
        while self._word == ",":
            self._advance()
            self._sum()
            given += 1
        self._close()
        if arity is not None and given != arity:
            raise ConfigurationError(
                f"{self._field}: at character {position + 1}: "
                f"expected {arity} argument{'s' * (arity > 1)} of {name}; came: {given}"
            )
        self._steps.append(_Step(given, function))

    def _open(self) -> None:
        if self._word != "(":
            raise self._unexpected("'('")
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise self._unexpected(f"at most {MOST_LEVELS} levels of parentheses")
        self._advance()

    def _close(self) -> None:
        if self._word != ")":
            raise self._unexpected("an operator or ')'")
        self._levels -= 1
        self._advance()

    def _take(self) -> str:
        word = self._word
        self._advance()
        return word

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._end)
        self._kind = found.lastgroup if found else None
        self._word = found[self._kind] if found and self._kind else ""
        self._position = found.start(self._kind) if found and self._kind else len(self._text)
        self._end = found.end() if found else len(self._text)

    def _unexpected(self, expected: str) -> ConfigurationError:
        came = repr(self._word) if self._kind else "the end"
        return ConfigurationError(
            f"{self._field}: at character {self._position + 1}: expected {expected}; came: {came}"
        )
