"""Sameness of JSON values: stricter than `==`, which takes `1`, `1.0` and `True` for one value."""

from __future__ import annotations

from typing import Any


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types and key order all the way down; `0.0` and `-0.0` are told apart."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right and (not isinstance(left, float) or str(left) == str(right))
