"""Ending: what signals do to a process that serves or works."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Final

import structlog

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """What a signal does: the first asks for an orderly end, a second ends the process at once.

    After `grace` the process ends whether it is ready or not. Signals are handled even while a call blocks the
    event loop.
    """

    def __init__(self, grace: timedelta) -> None:
        self._grace = grace
        self._asked = False
        self._on_ask: Callable[[], object] | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked

    def install(self, on_ask: Callable[[], object]) -> None:
        """From now on SIGTERM and SIGINT call `on_ask`, in the event loop that runs now."""
        loop = asyncio.get_running_loop()
        self._on_ask = lambda: loop.call_soon_threadsafe(on_ask)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # A process that replaced itself was begun with them held back, so that none would end it meanwhile.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True
        last = threading.Timer(self._grace.total_seconds(), _give_up)
        last.daemon = True
        last.start()
        if self._on_ask is not None:
            with suppress(RuntimeError):  # the loop is closed: the end is near anyway
                self._on_ask()


def _give_up() -> None:
    structlog.get_logger("counterseal").warning("the grace period is over: what was left is cut off")
    sys.stderr.flush()
    os._exit(0)
