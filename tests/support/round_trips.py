"""Round trips: what a docstring says that a call costs, and how to count what it does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from counterseal.store.base import Store
from support.waiting import eventually

_AMOUNTS = {
    "no": 0,
    "none": 0,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
}
_AMOUNT = re.compile(
    rf"\b(at most )?({'|'.join(_AMOUNTS)})\b(?= round trip| for | when|,|;|\.| to )", re.IGNORECASE
)


def costs_of(method: Callable[..., Any]) -> tuple[set[int], int | None]:
    """The numbers of round trips that a docstring tells: those that are exact, and the most that it may be."""
    text = " ".join((method.__doc__ or "").split())
    exact: set[int] = set()
    most: int | None = None
    for sentence in re.findall(r"[^.:]*round trip[^.:]*[.:]", text):
        for bound, amount in _AMOUNT.findall(sentence):
            number = _AMOUNTS[amount.lower()]
            if bound:
                most = max(most or 0, number)
            else:
                exact.add(number)
    if "Without one:" in text:
        exact.add(0)
    return exact, most


async def come_to_rest(store: Store) -> None:
    """Return when what services began in the background has been done."""
    seen: list[int] = []

    def is_still() -> bool:
        seen.append(store.counts.batches)
        return seen[-5:] == [seen[-1]] * 5

    await eventually(is_still)
