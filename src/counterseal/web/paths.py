"""Paths: where a request goes within its application, and a table of what is laid down for paths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Generic, TypeVar

from starlette.types import Scope

from counterseal.core.errors import ConfigurationError

_T = TypeVar("_T")
_REMEMBERED: Final = 1024
_LONGEST_REMEMBERED: Final = 128
"""Characters of a path that is remembered with its row: a client may ask for paths without end."""

_Pattern = tuple[str | None, ...]


def route_path(scope: Scope) -> str:
    """The path below the one at which the application is mounted: what its routes are compared with.

    As Starlette has it: `root_path` is cut off where a segment ends and nowhere else, so that the application "/a" does
    not take "/api" for "pi". Whatever looks at a path before the routes do has to see the one that they will see.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if not root or not path.startswith(root):
        return path
    below = path[len(root) :]
    return below if not below or below.startswith("/") else path


def readings(path: str) -> tuple[str, ...]:
    """What a path may be taken for: itself, and what is left once `.` and `..` are resolved, where it has any.

    Routes compare it as it is; a file server or an application behind a route may resolve it.
    """
    if "/." not in path:
        return (path,)
    resolved: list[str] = []
    for segment in _segments(path):
        if segment == "..":
            del resolved[-1:]
        elif segment != ".":
            resolved.append(segment)
    return (path, "/" + "/".join(resolved))


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
        self._remembered = lru_cache(_REMEMBERED)(self._search)

    def find(self, path: str) -> _T | None:
        """The value of the most specific pattern; None when none fits."""
        return self._remembered(path) if len(path) <= _LONGEST_REMEMBERED else self._search(path)

    def _search(self, path: str) -> _T | None:
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
