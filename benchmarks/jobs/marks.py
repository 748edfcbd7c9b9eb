"""What a no-op job does in a worker: it tells the driver when it started, the same for every library.

The driver says by the environment what it wants to hear: `count` the first start and the last completion of so many
jobs and of each that runs beyond them, `stamp` every start, `hold` the same, and the job then never ends.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Final

VARIABLE: Final = "BENCHMARK_MARKS"

HOLD_SECONDS: Final = 3600.0
"""How long a held job sleeps: longer than anybody waits for it."""

_mode, _number, _pipe = (os.environ.get(VARIABLE) or "count:0:-1").split(":")
_last = int(_number)
_told = int(_pipe)
_counted = itertools.count(1)  # one step in C, so that threads need no lock
_first = 0


def mark(payload: str) -> bool:
    """Tell of a job that has started. Whether it is to be held."""
    global _first  # noqa: PLW0603 - this module is the state of the one worker of its process
    now = time.monotonic_ns()
    if _mode == "count":
        number = next(_counted)
        if number == 1:
            _first = now
        if number >= _last:
            os.write(_told, f"{len(payload)} {_first} {time.monotonic_ns()}\n".encode())
        return False
    os.write(_told, f"{len(payload)} {now} {now}\n".encode())
    return _mode == "hold"
