"""Clock: where the time comes from, so that a test can move it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

_BOOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)
_steady_ns: Callable[[], int] = time.monotonic_ns if _BOOT is None else partial(time.clock_gettime_ns, _BOOT)


class Clock(Protocol):
    """Wall-clock time and a steady counter, both in milliseconds."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 by this machine."""
        ...

    def steady_ms(self) -> int:
        """Milliseconds of a counter that never goes back; only differences mean something."""
        ...


class SystemClock:
    """The machine's own clocks. `steady_ms` goes on while the machine sleeps, where the system offers it."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def steady_ms(self) -> int:
        return _steady_ns() // 1_000_000
