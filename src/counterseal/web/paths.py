"""PathTable: what is laid down for paths, where the most specific pattern wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from counterseal.core.errors import ConfigurationError

_T = TypeVar("_T")
_Pattern = tuple[str | None, ...]


class PathTable(Generic[_T]):
    """Values by path pattern: `/api/documents/{id}/pdf` stands for these paths and everything below them.

    Of several patterns that fit, the one with the most segments wins; among equals the one that is literal where the
    other has a `{name}`, first segment first. Empty segments don't count: `//api/` is `/api`. Raises
    `ConfigurationError` with a sentence for every pattern that is none, or that means the same as another.
    """

    def __init__(self, rows: Mapping[str, _T]) -> None:
        faults: list[str] = []
        by_pattern: dict[_Pattern, _T] = {}
        for text, value in rows.items():
            pattern = _parsed(text)
            if pattern is None:
                faults.append(f"routes: expected paths as /api/documents/{{id}}; came: {text!r}")
            elif pattern in by_pattern:
                faults.append(f"routes: expected each path once; came: {text!r}, which another one equals")
            else:
                by_pattern[pattern] = value
        if faults:
            raise ConfigurationError(faults)
        self._literal = {pattern: value for pattern, value in by_pattern.items() if None not in pattern}
        self._with_names = sorted(
            ((pattern, value) for pattern, value in by_pattern.items() if None in pattern),
            key=lambda row: [segment is None for segment in row[0]],
        )
        self._depths = sorted({len(pattern) for pattern in by_pattern}, reverse=True)

    def find(self, path: str) -> _T | None:
        """The value of the most specific pattern; None when none fits."""
        segments = _segments(path)
        for depth in self._depths:
            if depth > len(segments):
                continue
            above = tuple(segments[:depth])
            if above in self._literal:
                return self._literal[above]
            for pattern, value in self._with_names:
                if len(pattern) == depth and _fits(pattern, above):
                    return value
        return None


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def _parsed(text: str) -> _Pattern | None:
    """The segments of a pattern, None for a parameter; None for the whole when it is malformed."""
    if not text.startswith("/"):
        return None
    pattern: list[str | None] = []
    for segment in _segments(text):
        if segment.startswith("{") and segment.endswith("}") and segment[1:-1].isidentifier():
            pattern.append(None)
        elif "{" in segment or "}" in segment:
            return None
        else:
            pattern.append(segment)
    return tuple(pattern)


def _fits(pattern: _Pattern, segments: tuple[str, ...]) -> bool:
    return all(wanted is None or wanted == segment for wanted, segment in zip(pattern, segments, strict=True))
