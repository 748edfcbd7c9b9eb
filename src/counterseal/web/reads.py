"""Reads: what a handler read of its request, so that an answer made from the session is not kept for everybody.

The scope is a dict that notes when `session`, `user` or `auth` is asked for, and the values of headers are bytes that
note when they become text, which is how Starlette and FastAPI read them. FastAPI parses the cookies of every request,
needed or not, so there a request is taken whose cookies note when one is looked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, Self

from starlette.requests import Request, cookie_parser
from starlette.types import Scope

READS_KEY: Final = "counterseal.reads"
SESSION: Final = "session"
WATCHED: Final = frozenset({SESSION, "user", "auth"})
"""What middleware leaves in the scope about who asks."""


class Reads(set[str]):
    """Names of what was read: headers in small letters, and `session`, `user`, `auth`."""


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


class WatchedScope(dict[str, Any]):
    """A scope that notes reads. A copy of it reads everything, and is noted as such."""

    def __init__(self, scope: Scope, reads: Reads, *, unwatched: Collection[str]) -> None:
        """Headers in `unwatched`, by names in small letters, are not noted."""
        super().__init__(scope)
        self.reads = reads
        watched = [
            (name, value if _text(name) in unwatched else WatchedValue(value).of(_text(name), reads))
            for name, value in scope["headers"]
        ]
        if "cookie" not in unwatched and not any(name == b"cookie" for name, _ in watched):
            # Whoever looks for a cookie and finds none has made the answer of those who have none.
            watched.append((b"cookie", WatchedValue().of("cookie", reads)))
        self["headers"] = watched
        self[READS_KEY] = reads

    def __getitem__(self, name: str) -> Any:
        if name in WATCHED:
            self.reads.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def __iter__(
        self,
    ) -> Iterator[str]:  # overridden so that `dict(scope)` and `{**scope}` come by __getitem__
        return super().__iter__()

    def copy(self) -> dict[str, Any]:
        return {**self}


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
        reads = reads_of(self.scope)
        found = WatchedCookies(reads)
        for name, value in self.scope["headers"]:
            if name == b"cookie":
                found.fill(cookie_parser(bytes.decode(value, "latin-1")))
        return found


class WatchedCookies(dict[str, str]):
    """Cookies that note when one is looked for, or all are."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def fill(self, cookies: dict[str, str]) -> None:
        """Take these in."""
        super().update(cookies)

    def __getitem__(self, name: str) -> str:
        self._reads.add("cookie")
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._reads.add("cookie")
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self._reads.add("cookie")
        return super().__iter__()

    def __len__(self) -> int:
        self._reads.add("cookie")
        return super().__len__()

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 - which would be this method

    def keys(self) -> Any:
        return iter(self) and super().keys()

    def values(self) -> Any:
        return iter(self) and super().values()

    def items(self) -> Any:
        return iter(self) and super().items()

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __repr__(self) -> str:
        return repr(dict(self))

    __hash__ = None


def _text(name: bytes) -> str:
    return name.decode("latin-1").lower()
