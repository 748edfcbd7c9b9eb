"""A missing program skips a test with a reason; where everything is required, nothing may be skipped."""

from __future__ import annotations

import pytest

from support.requirements import needs
from support.runs import prepare_run

pytest_plugins = ["pytester"]


PROGRAM = """
import pytest
from support.requirements import needs

def test_needs_nothing():
    pass

def test_needs_what_is_missing():
    needs("no-such-program")

@pytest.mark.skip(reason="not today")
def test_is_skipped_by_a_mark():
    pass

@pytest.mark.xfail(strict=True)
def test_fails_as_expected():
    raise AssertionError
"""


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A run of pytest of its own, with this kit."""
    return prepare_run(pytester)


def test_an_installed_program_is_found() -> None:
    assert needs("sh").name == "sh"


def test_without_require_all_skips_stay_skips(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUIRE_ALL", raising=False)
    inner.makepyfile(PROGRAM)
    result = inner.runpytest_inprocess("-ra")
    result.assert_outcomes(passed=1, skipped=2, xfailed=1)
    result.stdout.fnmatch_lines(["*no-such-program is not installed: install it by `make system-packages`*"])


def test_under_require_all_every_skip_fails_by_name(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_ALL", "1")
    inner.makepyfile(PROGRAM)
    result = inner.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1, errors=1, xfailed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines_random(
        [
            "*no-such-program is not installed*(REQUIRE_ALL=1)*",
            "*::test_is_skipped_by_a_mark was skipped, and REQUIRE_ALL=1 allows none. Skipped: not today*",
        ]
    )


def test_under_require_all_a_skipped_module_fails_too(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_ALL", "1")
    inner.makepyfile("""
        import pytest

        pytest.skip("not here", allow_module_level=True)
    """)
    result = inner.runpytest_inprocess()
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*was skipped, and REQUIRE_ALL=1 allows none.*not here*"])
