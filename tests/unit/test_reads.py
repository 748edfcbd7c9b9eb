"""What a handler reads of its request is noticed, by whatever way it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request

from counterseal.web.reads import Reads, WatchedRequest, WatchedScope, note_session_read, reads_of


def watched(**scope: Any) -> WatchedScope:
    inside = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"accept", b"text/html"), (b"host", b"a.example"), (b"cookie", b"a=1; b=2")],
        "session": {"user": "ada"},
        "user": "ada",
        "auth": "all",
        "state": {"pool": 1, "user": "ada"},
        **scope,
    }
    return WatchedScope(inside, reads_of(inside), unwatched={"host"})


WAYS: dict[str, tuple[Callable[[WatchedScope], object], set[str]]] = {
    "item": (lambda scope: scope["session"], {"session"}),
    "get": (lambda scope: scope.get("user"), {"user"}),
    "membership": (lambda scope: "auth" in scope, {"auth"}),
    "pop": (lambda scope: scope.pop("session"), {"session"}),
    "setdefault": (lambda scope: scope.setdefault("session", {}), {"session"}),
    "unpacking": (lambda scope: {**scope}, {"session", "user", "auth"}),
    "dict": (dict, {"session", "user", "auth"}),
    "copy": (lambda scope: scope.copy(), {"session", "user", "auth"}),
    "union": (lambda scope: {} | scope, {"session", "user", "auth"}),
    "update": ({"a": 1}.update, {"session", "user", "auth"}),
    "items": (lambda scope: list(scope.items()), {"session", "user", "auth"}),
    "values": (lambda scope: list(scope.values()), {"session", "user", "auth"}),
    "repr": (repr, {"session", "user", "auth", "state"}),
    "request.session": (lambda scope: Request(scope).session, {"session"}),
    "request.user": (lambda scope: Request(scope).user, {"user"}),
    "request.auth": (lambda scope: Request(scope).auth, {"auth"}),
    "request.cookies": (lambda scope: Request(scope).cookies, {"cookie"}),
    "request.headers": (lambda scope: Request(scope).headers["accept"], {"accept"}),
    "all headers": (lambda scope: dict(Request(scope).headers), {"accept", "cookie"}),
    "request.state": (lambda scope: Request(scope).state.user, {"state.user"}),
    "absent state": (lambda scope: hasattr(Request(scope).state, "nobody"), {"state.nobody"}),
    "all state": (lambda scope: {**scope["state"]}, {"state", "state.pool", "state.user"}),
    "a cookie": (lambda scope: WatchedRequest(scope).cookies.get("a"), {"cookie"}),
    "a cookie's presence": (lambda scope: "a" in WatchedRequest(scope).cookies, {"cookie"}),
    "how many cookies": (lambda scope: bool(WatchedRequest(scope).cookies), {"cookie"}),
    "all cookies": (lambda scope: dict(WatchedRequest(scope).cookies), {"cookie"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_read_is_noticed(way: str) -> None:
    read, expected = WAYS[way]
    scope = watched()
    read(scope)
    assert scope.reads == expected


UNNOTICED: dict[str, Callable[[WatchedScope], object]] = {
    "the path": lambda scope: Request(scope).url.path,
    "the query": lambda scope: Request(scope).query_params.get("a"),
    "an unwatched header": lambda scope: Request(scope).headers["host"],
    "an absent header": lambda scope: Request(scope).headers.get("x"),
    "the presence of a header": lambda scope: "accept" in Request(scope).headers,
    "cookies that are only parsed": lambda scope: WatchedRequest(scope).cookies,
    "routing": lambda scope: scope.update({"route": "x", "path_params": {}}),
}


@pytest.mark.parametrize("way", UNNOTICED)
def test_nothing_else_is_noticed(way: str) -> None:
    scope = watched()
    UNNOTICED[way](scope)
    assert scope.reads == set()


def test_what_is_read_is_what_was_there() -> None:
    scope = watched()
    request = WatchedRequest(scope)
    assert request.session == {"user": "ada"}
    assert request.headers["accept"] == "text/html"
    assert request.cookies == {"a": "1", "b": "2"}
    assert {**scope}["auth"] == "all"


def test_a_session_is_the_very_one_so_that_changes_reach_whoever_keeps_it() -> None:
    session = {"user": "ada"}
    scope = watched(session=session)
    scope["session"]["cart"] = 1
    assert session == {"user": "ada", "cart": 1}


def test_what_a_handler_writes_into_the_state_is_its_own_and_reaches_those_outside() -> None:
    state: dict[str, Any] = {}
    scope = watched(state=state)
    request = Request(scope)
    request.state.mine = 1
    assert request.state.mine == 1
    assert scope.reads == set()
    assert state == {"mine": 1}
    del request.state.mine
    assert state == {}


def test_a_missing_cookie_is_noticed_when_it_is_looked_for() -> None:
    scope = watched(headers=[])
    assert Request(scope).cookies == {}
    assert scope.reads == {"cookie"}


def test_a_session_that_says_that_it_was_read_outside_counts_as_read() -> None:
    class Session(dict[str, Any]):
        accessed = True

    assert reads_of({"session": Session()}) == {"session"}
    assert reads_of({"session": {}}) == set()


def test_reads_are_shared_by_copies_of_a_scope() -> None:
    outside: dict[str, Any] = {"type": "http"}
    reads = reads_of(outside)
    note_session_read({**outside})
    assert reads == {"session"}
    assert isinstance(reads, Reads)
