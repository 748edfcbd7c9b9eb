"""Result: what the cache answers, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Source(StrEnum):
    """Where an answer came from."""

    MISS = "miss"
    """Nothing is stored, or it counts no more."""
    HIT = "hit"
    """Redis."""
    NEAR = "near"
    """This process's memory."""
    STALE = "stale"
    """Redis, after its lifetime, within a window that the kind allows."""
    LOADED = "loaded"
    """The loader."""
    DEGRADED = "degraded"
    """The loader, because Redis did not answer; nothing was kept."""


@dataclass(frozen=True, slots=True)
class Result(Generic[_T]):
    """`value` is None when nothing was found, and also when None itself is what was kept: then `found` is true.

    `kept` is false for a loaded value that was not stored: it is too large, was invalidated meanwhile, took too long to
    load, or Redis did not answer. Where its kind or a tag was cleared meanwhile it is stored, and does not
    count.
    """

    found: bool
    value: _T | None
    source: Source
    kept: bool = True
