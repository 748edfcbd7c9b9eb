"""WorkerCounts: what a worker has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class WorkerCounts:
    """What a worker has done since it was made. Plain integers, changed by one event loop only."""

    leased: int = 0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    parked: int = 0
    handed_back: int = 0
    refused: int = 0
    """Results that came too late: the job had been given to another worker."""
