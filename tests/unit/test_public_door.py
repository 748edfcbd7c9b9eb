"""The one door: what `import counterseal` offers, and that it costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import counterseal
from counterseal.core.errors import CountersealError

HEAVY = ("sqlalchemy", "fastapi", "pydantic", "redis", "asyncpg", "msgspec", "httpx", "uvicorn")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60
    )


def test_the_names_are_few_sorted_and_all_there() -> None:
    assert counterseal.__all__ == sorted(set(counterseal.__all__))
    assert len(counterseal.__all__) <= 20
    assert list(counterseal._HOMES) == counterseal.__all__
    for name in counterseal.__all__:
        assert getattr(counterseal, name).__name__ == name
        assert name in dir(counterseal)


def test_an_error_through_the_door_is_the_error_that_is_raised() -> None:
    assert counterseal.CountersealError is CountersealError
    assert issubclass(counterseal.StoreUnavailable, counterseal.CountersealError)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(counterseal, "Sessions")
    assert not hasattr(counterseal, "__version__")


def test_importing_the_package_loads_no_library() -> None:
    program = "import sys, counterseal; print([name for name in sys.argv[1:] if name in sys.modules])"
    assert python("-c", program, *HEAVY).stdout.strip() == "[]"


def test_importing_the_package_takes_less_than_a_tenth_of_a_second() -> None:
    def micros() -> int:
        lines = python("-X", "importtime", "-c", "import counterseal").stderr.splitlines()
        (taken,) = [line.split("|")[1] for line in lines if line.rpartition("|")[2].strip() == "counterseal"]
        return int(taken)

    # The best of three: what other processes do meanwhile is not its cost.
    assert min(micros() for _ in range(3)) < 100_000


def test_importing_everything_of_it_loads_no_web_server() -> None:
    program = (
        "import sys; from counterseal import *; print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    assert python("-c", program, "fastapi", "uvicorn", "starlette").stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed() -> None:
    assert files("counterseal").joinpath("py.typed").is_file()
