"""Errors over HTTP: each has its status, and only one that passes by itself asks to come again."""

from __future__ import annotations

import pytest

from counterseal.core.errors import (
    CountersealError,
    DatabaseUnavailable,
    SealBroken,
    SessionExists,
    StoreFull,
    StoreTimeout,
    StoreUnavailable,
    UserBlocked,
)
from counterseal.web.problems import describe


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (StoreTimeout, 503, True),
        (StoreUnavailable, 503, True),
        (StoreFull, 503, True),
        (DatabaseUnavailable, 503, True),
        (SessionExists, 409, False),
        (UserBlocked, 403, False),
        (SealBroken, 500, False),
    ],
)
def test_an_error_has_its_status_and_shows_nothing_of_its_message(
    error: type[CountersealError], status: int, again: bool
):
    problem = describe(error("hush-hush"))
    assert (problem.status, problem.code) == (status, error.code)
    assert ("Retry-After" in problem.headers) == again
    assert "hush" not in problem.detail
