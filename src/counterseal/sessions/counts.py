"""Counts: what one process did with sessions since it started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class SessionCounts:
    """Plain numbers, changed by one event loop only; read by the metrics."""

    hits: int = 0
    """Reads that a copy answered alone."""
    checked: int = 0
    """Reads for which the database was asked as well."""
    stale: int = 0
    """Reads that a copy answered because the database did not."""
    without_redis: int = 0
    """Reads that the database answered alone."""
    events: Counter[str] = field(default_factory=Counter[str])
    """What happened to sessions, by the name of its event."""
