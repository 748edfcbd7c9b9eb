"""Expressions for the pause of a retry against a reference that knows no text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.formula import MOST_CHARACTERS, DelayExpression

STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}


@dataclass(frozen=True)
class Node:
    name: str
    parts: tuple[Node, ...] = ()


numbers = st.one_of(
    st.integers(0, 20).map(str),
    st.floats(0, 1e6, allow_nan=False).map(lambda number: f"{number:.3f}"),
    st.sampled_from(("1e3", "2.5E-2", ".5", "1e300", "retried")),
).map(Node)


def extended(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.one_of(
        st.builds(lambda name, a, b: Node(name, (a, b)), st.sampled_from(sorted(STRENGTH)), inner, inner),
        st.builds(lambda a: Node("negated", (a,)), inner),
        st.builds(lambda a, b: Node("pow", (a, b)), inner, inner),
        st.builds(
            lambda name, a: Node(name, (a,)),
            st.sampled_from(("sqrt", "abs", "exp", "floor", "ceil", "round")),
            inner,
        ),
        st.builds(
            lambda name, parts: Node(name, tuple(parts)),
            st.sampled_from(("min", "max")),
            st.lists(inner, min_size=1, max_size=3),
        ),
    )


trees = st.recursive(numbers, extended, max_leaves=8)


def written(node: Node, strength: int = 0) -> str:
    """With as few parentheses as the grammar allows."""
    if not node.parts:
        return node.name
    if node.name in STRENGTH:
        own = STRENGTH[node.name]
        left, right = node.parts
        text = f"{written(left, own)}{node.name}{written(right, own + 1)}"
        return f"({text})" if own < strength else text
    if node.name == "negated":
        return f"-{written(node.parts[0], 4)}" if strength < 4 else f"(-{written(node.parts[0], 4)})"
    return f"{node.name}({', '.join(written(part) for part in node.parts)})"


class Undefined(Exception):
    pass


def value(node: Node, retried: int) -> float:
    if not node.parts:
        return float(retried if node.name == "retried" else node.name)
    result = applied(node.name, [value(part, retried) for part in node.parts])
    if math.isnan(result):
        raise Undefined
    return result


def rounded_away(number: float) -> float:
    away = float(abs(number) // 1) + (1.0 if abs(number) % 1 >= 0.5 else 0.0)
    return away if number >= 0 else -away


PYTHON = {
    "+": lambda first, last: first + last,
    "-": lambda first, last: first - last,
    "*": lambda first, last: first * last,
    "/": lambda first, last: first / last,
    "%": math.fmod,
    "pow": math.pow,
    "negated": lambda number: -number,
    "abs": lambda number: number if number >= 0 else -number,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "floor": lambda number: number if math.isinf(number) else float(number // 1),
    "ceil": lambda number: number if math.isinf(number) else -float(-number // 1),
    "round": lambda number: number if math.isinf(number) else rounded_away(number),
    "min": lambda *parts: sorted(parts)[0],
    "max": lambda *parts: sorted(parts)[-1],
}


def applied(name: str, parts: list[float]) -> float:
    try:
        return PYTHON[name](*parts)
    except (ValueError, ZeroDivisionError):
        raise Undefined from None
    except OverflowError:
        odd = name == "pow" and parts[0] < 0 and parts[1] % 2 == 1
        return -math.inf if odd else math.inf


@given(trees, st.integers(0, 30))
def test_an_expression_means_what_its_tree_means(tree: Node, retried: int) -> None:
    text = written(tree)
    if len(text) > MOST_CHARACTERS:
        return
    try:
        result = value(tree, retried)
    except Undefined:
        result = math.nan
    expected = math.floor(min(max(result, 0), 86_400_000)) if math.isfinite(result) else None
    assert DelayExpression(text).delay_ms(retried) == expected


@given(st.text("0123456789.eE+-*/%(), \tretriedpowmins^\n", max_size=40), st.integers(0, 99))
def test_any_text_is_read_or_refused(text: str, retried: int) -> None:
    try:
        pause = DelayExpression(text).delay_ms(retried)
    except ConfigurationError as refused:
        assert "at character" in str(refused)  # noqa: PT017
    else:
        assert pause is None or 0 <= pause <= 86_400_000
