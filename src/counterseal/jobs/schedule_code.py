"""ScheduleCode: keeps the stored schedules those of the code, for whoever looks at them now and then."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from counterseal.jobs.schedule_entries import CodeSet
from counterseal.jobs.schedules import Schedules, is_held_back, set_name

logger = logging.getLogger(__name__)

SEEN_EVERY_MS: Final = 30_000


class ScheduleCode:
    """What the code of one process declares, by source, and which of it is still to be brought to the store."""

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules
        self.names: Mapping[str, str] = {
            source: set_name(declared) for source, declared in schedules.code.items()
        }
        self._pending = dict.fromkeys(schedules.code)
        self.held_back: set[str] = set()
        """The sources of which a later release runs: theirs stands."""

    def begin(self) -> None:
        """Reconcile all of it again."""
        self._pending = dict.fromkeys(self._schedules.code)

    async def reconcile(self) -> None:
        """Bring to the store what is pending. Two round trips for each source, none when nothing is."""
        for source in tuple(self._pending):
            plan = await self._schedules.reconcile(self._schedules.code[source], source=source)
            self._pending.pop(source, None)
            if plan is None:
                if source not in self.held_back:
                    logger.info("schedules of the %s stay those of a later release that runs", source)
                self.held_back.add(source)
                continue
            self.held_back.discard(source)
            for taken in plan.taken:
                logger.warning("the schedule %s of the code is not used: its id is taken", taken.id)
            if plan.to_add or plan.to_change or plan.to_remove:
                logger.info(
                    "schedules of the %s: %d added, %d changed, %d removed",
                    source, len(plan.to_add), len(plan.to_change), len(plan.to_remove),
                )  # fmt: skip

    def compare(self, sets: Mapping[str, CodeSet | None], now_ms: int) -> bool:
        """Whether something is pending now: what is lost, or what nobody else has in use any more."""
        for source, stands in sets.items():
            name = self.names[source]
            if stands is None or (stands.name != name and not is_held_back(stands, name, now_ms)):
                # One that stands in place of this one, and has it not among its past, comes from an empty store.
                self._pending[source] = None
        return bool(self._pending)
