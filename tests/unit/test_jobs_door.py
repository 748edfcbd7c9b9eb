"""What `counterseal.jobs` offers, and that it loads nothing before it is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from counterseal import jobs


def test_the_names_are_all_there() -> None:
    assert len(jobs.__all__) == len(set(jobs.__all__))  # the linter keeps them in order
    assert sorted(jobs._HOMES) == sorted(jobs.__all__)
    for name in jobs.__all__:
        assert getattr(jobs, name) is not None
        assert name in dir(jobs)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="queue_everything"):
        _ = jobs.queue_everything  # pyright: ignore


def test_importing_it_loads_no_library() -> None:
    program = "import sys, counterseal.jobs; print([n for n in ('sqlalchemy', 'msgspec', 'redis') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
