"""Requirements: programs that only some tests need, and what happens to a test without them.

They come with `make system-packages`. Where `REQUIRE_ALL=1` says that everything is installed, nothing may be skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


def everything_required() -> bool:
    """Whether `REQUIRE_ALL=1` is set."""
    return os.environ.get("REQUIRE_ALL") == "1"


def needs(program: str) -> Path:
    """The path of an installed program. Without it the test is skipped; under `REQUIRE_ALL=1` it fails.

    May also be called at the top of a module.
    """
    found = shutil.which(program)
    if found is None and Path("/usr/sbin", program).exists():
        found = f"/usr/sbin/{program}"
    if found is not None:
        return Path(found)
    reason = f"{program} is not installed: install it by `make system-packages`"
    if everything_required():
        pytest.fail(f"{reason} (REQUIRE_ALL=1)")
    pytest.skip(reason, allow_module_level=True)


class NothingSkipped:
    """Plugin of pytest: turns every skipped test or module into a failed one."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        return _refuse_skip(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        return _refuse_skip(report)


def _refuse_skip(report: Any) -> Any:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and REQUIRE_ALL=1 allows none. {reason}"
    return report
