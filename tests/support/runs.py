"""Runs: pytest inside a test, to see what the kit does to a run."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def prepare_run(pytester: pytest.Pytester) -> pytest.Pytester:
    """Give a run of pytest of its own this kit and its fixtures."""
    pytester.syspathinsert(TESTS)
    pytester.makeconftest((TESTS / "conftest.py").read_text("utf-8"))
    pytester.makeini("""
        [pytest]
        addopts = -p no:hypothesispytest -p no:anyio
        asyncio_mode = auto
        asyncio_default_fixture_loop_scope = function
    """)
    return pytester
