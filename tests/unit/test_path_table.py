"""Paths: where the application begins, what a path may be taken for, and the most specific pattern of a table."""

from __future__ import annotations

from itertools import permutations

import pytest
from starlette._utils import get_route_path
from starlette.types import Scope

from counterseal.core.errors import ConfigurationError
from counterseal.web.paths import PathTable, readings, route_path

ROWS = {
    "/api": "api",
    "/api/auth": "auth",
    "/api/auth/totp": "totp",
    "/api/documents/{id}": "document",
    "/api/documents/{id}/pdf": "pdf",
    "/api/documents/new": "new",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/users/7", "api"),
        ("/api/auth", "auth"),
        ("/api/auth/login", "auth"),
        ("/api/auth/totp", "totp"),
        ("/api/auth/totp/", "totp"),
        ("/api/auth/totp/verify", "totp"),
        ("/api/auth/totpx", "auth"),
        ("/api/authx", "api"),
        ("/api/documents", "api"),
        ("/api/documents/7", "document"),
        ("/api/documents/7/signers", "document"),
        ("/api/documents/7/pdf", "pdf"),
        ("/api/documents/new", "new"),
        ("/api/documents/new/pdf", "pdf"),
        ("//api//auth//totp", "totp"),
        ("/apix", None),
        ("/API/auth", None),
        ("/", None),
        ("", None),
    ],
)
def test_the_pattern_with_the_most_segments_wins_then_the_literal_one(path: str, value: str | None):
    assert PathTable(ROWS).find(path) == value


def test_the_order_in_which_patterns_are_written_means_nothing():
    rows = [("/a", 1), ("/a/{x}", 2), ("/a/b", 3), ("/{y}/b", 4), ("/a/{x}/c", 5)]
    paths = ["/a", "/a/b", "/a/z", "/q/b", "/a/b/c", "/q", "/a/z/d"]
    found = {tuple(PathTable(dict(order)).find(path) for path in paths) for order in permutations(rows)}
    assert found == {(1, 3, 2, 4, 5, None, 2)}


def test_a_slash_alone_stands_for_every_path():
    assert PathTable({"/": 1, "/api": 2}).find("/metrics") == 1


@pytest.mark.parametrize("pattern", ["", "api", "/a/{}", "/a/{x", "/a/x}", "/a/{x}y", "/a/{x y}"])
def test_a_malformed_pattern_is_refused(pattern: str):
    with pytest.raises(ConfigurationError, match="routes: expected paths as") as refused:
        PathTable({pattern: 1, "/fine": 2})
    assert len(refused.value.faults) == 1


def test_two_patterns_for_the_same_paths_are_refused():
    with pytest.raises(ConfigurationError, match="expected each path once"):
        PathTable({"/a/{x}": 1, "/a/{y}/": 2})


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/api/auth", "", "/api/auth"),
        ("/api/auth", "/a", "/api/auth"),
        ("/api/auth", "/ap", "/api/auth"),
        ("/api/auth", "/api", "/auth"),
        ("/api/auth", "/api/", "/api/auth"),
        ("/api/auth", "/", "/api/auth"),
        ("/api/auth", "/other", "/api/auth"),
        ("/api", "/api", ""),
        ("/api/", "/api", "/"),
        ("/api/api/x", "/api", "/api/x"),
        ("/api//x", "/api", "//x"),
    ],
)
def test_a_root_path_is_cut_off_where_a_segment_ends_as_the_routes_have_it(path: str, root: str, below: str):
    scope: Scope = {"type": "http", "path": path, "root_path": root}
    assert route_path(scope) == below == get_route_path(scope)
    assert route_path({"type": "http", "path": path}) == path


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("/api/jobs/../auth/totp", "/api/auth/totp"),
        ("/api/./auth", "/api/auth"),
        ("/../../api", "/api"),
        ("/api/auth/..", "/api"),
        ("/api/auth/.", "/api/auth"),
        ("/api//../auth", "/auth"),
        ("/..", "/"),
    ],
)
def test_a_path_with_dots_has_two_readings(path: str, resolved: str):
    assert readings(path) == (path, resolved)


@pytest.mark.parametrize("path", ["", "/", "/api/auth", "/api/a.b/c..", "*"])
def test_a_path_without_segments_of_dots_has_one_meaning(path: str):
    assert {PathTable({"/": 1, "/api": 2}).find(reading) for reading in readings(path)} == {
        PathTable({"/": 1, "/api": 2}).find(path)
    }


def test_a_path_of_any_length_is_found_again_and_again():
    table = PathTable(ROWS)
    for path in ("/api/documents/7/pdf", "/api/auth/totp/" + "x" * 5000):
        assert len({table.find(path) for _ in range(3)}) == 1
    assert table.find("/api/auth/totp/" + "x" * 5000) == "totp"
