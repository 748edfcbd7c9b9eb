"""Reads: what a handler read of its request, so that an answer made from the session is not kept for everybody.

The scope is a dict that notes when `session`, `user`, `auth` or something of `state` is asked for, and the values of
headers are bytes that note when they become text, which is how Starlette and FastAPI read them. FastAPI parses the
cookies of every request, needed or not, so there the request is one whose cookies note when one is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, Self

from starlette.requests import Request, cookie_parser
from starlette.types import Scope

READS_KEY: Final = "counterseal.reads"
SESSION: Final = "session"
COOKIE: Final = "cookie"
STATE: Final = "state"
WATCHED: Final = frozenset({SESSION, "user", "auth"})
"""What middleware leaves in the scope about who asks; besides, whatever it likes in `state`."""


class Reads(set[str]):
    """Names of what was read: headers in small letters, `session`, `user`, `auth`, and `state.<name>`."""


def note_session_read(scope: Scope) -> None:
    """Say that the session was read for this request. Whatever serves sessions outside of `scope["session"]` calls it.

    A response to such a request is stored only where the cache is declared to keep an entry for each user.
    """
    reads_of(scope).add(SESSION)


def reads_of(scope: Scope) -> Reads:
    """The reads of a request, shared by all copies of its scope from now on."""
    if isinstance(scope, WatchedScope):
        return scope.reads
    reads: Reads = scope.setdefault(READS_KEY, Reads())
    # Starlette's own session says whether somebody outside asked for it.
    if getattr(scope.get(SESSION), "accessed", False) is True:
        reads.add(SESSION)
    return reads


class WatchedDict(dict[str, Any]):
    """A dict that tells which of its members is read; None when all may have been. A copy of it reads all."""

    def __init__(self, content: Mapping[str, Any], note: Callable[[str | None], None]) -> None:
        super().__init__(content)
        self._note = note

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._note(name if isinstance(name, str) else None)
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:  # which `dict(it)` and `{**it}` ask for, because it is overridden
        self._note(None)
        return super().__iter__()

    def __len__(self) -> int:
        self._note(None)
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._note(None)
        return super().__eq__(other)

    def __repr__(self) -> str:
        self._note(None)
        return super().__repr__()

    def get(self, name: str, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        self._note(name)
        return super().setdefault(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self._note(name)
        return super().pop(name, *default)

    def keys(self) -> Any:
        self._note(None)
        return super().keys()

    def values(self) -> Any:
        self._note(None)
        return super().values()

    def items(self) -> Any:
        self._note(None)
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._note(None)
        return super().copy()

    __hash__ = None


class WatchedScope(WatchedDict):
    """A scope that notes reads."""

    def __init__(self, scope: Scope, reads: Reads, *, unwatched: Collection[str]) -> None:
        """Headers in `unwatched`, by names in small letters, are not noted."""
        self.reads = reads
        watched = [
            (name, value if _text(name) in unwatched else WatchedValue(value).of(_text(name), reads))
            for name, value in scope["headers"]
        ]
        if COOKIE not in unwatched and not any(name == b"cookie" for name, _ in watched):
            # Whoever looks for a cookie and finds none has made the answer of those who have none.
            watched.append((b"cookie", WatchedValue().of(COOKIE, reads)))
        state = WatchedState(scope.setdefault(STATE, {}), reads)
        super().__init__({**scope, "headers": watched, STATE: state, READS_KEY: reads}, self._watch)

    def _watch(self, name: str | None) -> None:
        if name is None:
            self.reads.update(each for each in WATCHED if super(WatchedDict, self).__contains__(each))
        elif name in WATCHED:
            self.reads.add(name)


class WatchedState(WatchedDict):
    """The `state` of a request: what is written goes to the original too, and what the handler wrote is its own."""

    def __init__(self, state: dict[str, Any], reads: Reads) -> None:
        super().__init__(state, self._watch)
        self._state = state
        self._reads = reads
        self._own: set[str] = set()

    def __setitem__(self, name: str, value: Any) -> None:
        self._own.add(name)
        self._state[name] = value
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self._state.pop(name, None)
        super().__delitem__(name)

    def _watch(self, name: str | None) -> None:
        if name is None:
            self._reads.add(STATE)
        elif name not in self._own:
            self._reads.add(f"{STATE}.{name}")


class WatchedValue(bytes):
    """The value of a header that notes when it becomes text."""

    _name: str
    _reads: Reads

    def of(self, name: str, reads: Reads) -> Self:
        """Itself, as the value of this header."""
        self._name, self._reads = name, reads
        return self

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        self._reads.add(self._name)
        return super().decode(encoding, errors)


class WatchedRequest(Request):
    """A request of a watched scope whose cookies may be parsed unnoticed, but not looked at."""

    @property
    def cookies(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in self.scope["headers"]:
            if name == b"cookie":
                found.update(cookie_parser(bytes.decode(value, "latin-1")))
        reads = reads_of(self.scope)
        return WatchedDict(found, lambda _: reads.add(COOKIE))


def _text(name: bytes) -> str:
    return name.decode("latin-1").lower()
