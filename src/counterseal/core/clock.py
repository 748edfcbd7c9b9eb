"""Clock: where the time comes from, so that a test can move it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

_BOOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    """Wall-clock time and a steady counter."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 by this machine."""
        ...

    @property
    def steady_ns(self) -> Callable[[], int]:
        """Nanoseconds of a counter that never goes back; only differences mean something."""
        ...


class SystemClock:
    """The machine's own clocks. `steady_ns` goes on while the machine sleeps, where the system offers it."""

    def __init__(self) -> None:
        self.steady_ns: Callable[[], int] = (
            time.monotonic_ns if _BOOT is None else partial(time.clock_gettime_ns, _BOOT)
        )

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
