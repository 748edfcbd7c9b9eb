"""Leases: prolongs those of all that a worker holds, and ends what it has lost or is to cancel."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from counterseal.core.errors import StoreError
from counterseal.jobs.slots import Slots, Source

logger = logging.getLogger(__name__)


async def keep_leases(slots: Slots, lease_ms: int) -> None:
    """Prolong leases three times in the time that they last. One round trip for each queue with jobs. Does not end."""
    pause_s = lease_ms / 3000
    while True:
        await asyncio.sleep(pause_s)
        for source in slots.sources:
            await _prolong(source, lease_ms)


async def _prolong(source: Source, lease_ms: int) -> None:
    runs = list(source.running.values())
    ahead = list(source.ahead)
    leases = [*(run.leased for run in runs), *ahead]
    if not leases:
        return
    try:
        answers = await source.queue.extend(leases, lease_ms=lease_ms)
    except StoreError:
        return
    for run, answer in zip(runs, answers, strict=False):
        if run.over:
            continue
        if answer == "lost":
            logger.warning(
                "job %s.%s of type %s was lost: its lease had run out",
                source.queue.name, run.leased.part, run.leased.type,
            )  # fmt: skip
            run.end("lost")
        elif answer.startswith("cancel"):
            run.cancel(answer.partition(" ")[2])
    lost = {lease for lease, answer in zip(ahead, answers[len(runs) :], strict=True) if answer == "lost"}
    if lost:
        source.ahead = deque(leased for leased in source.ahead if leased not in lost)
