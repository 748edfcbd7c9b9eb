"""Complaints: what goes wrong again and again is said in the log once a minute."""

from __future__ import annotations

import logging
from typing import Final

EVERY_MS: Final = 60_000


class Complaints:
    """Errors that one service logs, each at most once a minute by the clock that it is given."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told_ms: dict[str, int] = {}

    def tell(self, text: str, *arguments: object, now_ms: int, about: str = "") -> None:
        """Log an error, unless it was within the last minute. What is `about` something else is another one."""
        key = text + about
        if now_ms - self._told_ms.get(key, -EVERY_MS) >= EVERY_MS:
            self._told_ms[key] = now_ms
            self._logger.error(text, *arguments)
