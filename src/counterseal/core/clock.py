"""Clock: where the time comes from, so that a test can move it."""

from __future__ import annotations

import time
from typing import Protocol


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
        boot = getattr(time, "CLOCK_BOOTTIME", None)
        return (time.monotonic_ns() if boot is None else time.clock_gettime_ns(boot)) // 1_000_000
