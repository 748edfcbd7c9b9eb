"""QStashSchedules: has QStash make the ticks of schedules that it can, and keeps what it knows of them true.

Redis says what schedules there are and who makes the ticks of each; QStash is told after it. So nothing is lost while
QStash can't be reached: a pause or a removal counts at once, because a tick that is delivered asks Redis, and what
QStash was not told it is told later. A schedule is handed over to it like this:

1. QStash is told of it.
2. Ticks that are due by then, and that no scheduler has made, are made.
3. The entry says that QStash carries it, and no scheduler looks at it any more.

Until 3 both make its ticks, and of each tick one job comes, as both know its name. Back it goes the other way round:
QStash forgets it, then the entry says so, with the moment before that as the one from which a scheduler makes ticks.

Requests of two processes may come to QStash in another order than the changes were made in. Who has told something and
finds that the entry is another by then tells what stands once more, whatever is noted: so the last one tells the truth.
Who has removed something looks afterwards whether it was made anew.

Ids at QStash begin with the hash of the namespace and the public URL: what begins otherwise is somebody else's, and is
neither changed nor removed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from pydantic import SecretStr

from counterseal.core.errors import CarrierUnavailable, ConfigurationError, CountersealError, StoreError
from counterseal.jobs.qstash import destination
from counterseal.jobs.qstash_schedule import refusal, told_of
from counterseal.jobs.qstash_schedule_api import Listed, QStashAway, QStashScheduleApi
from counterseal.jobs.schedule import Schedule, due
from counterseal.jobs.schedule_entries import Carried, Change, Entries, Entry
from counterseal.jobs.schedule_job import call_of
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import Task
from counterseal.store.base import Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 5
_PAUSED: Final = "paused"
_ON: Final = "on"


class QStashSchedules:
    """What of the stored schedules QStash carries. `active`: it is to; else it gives back those that it has.

    `jobs` makes the ticks that are due when a schedule is handed over.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        tasks: Mapping[str, Task[Any, Any]],
        jobs: Jobs,
        token: SecretStr | None,
        public_url: str,
        url: str | None = None,
        active: bool = True,
    ) -> None:
        self._store = store
        self._entries = Entries(store, keys)
        self._tasks = tasks
        self._jobs = jobs
        self._api = QStashScheduleApi(token, url=url)
        self._public_url = public_url
        self.active = active
        name = sha256(f"{keys.namespace}\n{public_url}".encode()).hexdigest()[:12]
        self.prefix = f"counterseal-{name}."
        """What the ids at QStash begin with."""

    async def close(self) -> None:
        """Close the connections to QStash. Safe to call twice."""
        await self._api.close()

    def refusal(self, schedule: Schedule) -> str:
        """Why a scheduler makes the ticks of a schedule, beginning with the name of a field; '' when QStash does."""
        if schedule.type not in self._tasks:
            return "type: this release has no task of this name"
        return refusal(schedule, self._store.now_ms())

    async def settle_all(self, *, passed_over: Collection[str] = (), full: bool = False) -> int:
        """Tell QStash of all that it has not been told, and mark who carries what.

        Answers how many schedules it carries now; when it is not to carry any, how many it did before.

        `passed_over` are sources of which a later release tells. `full` also asks QStash what it has, makes anew what
        is missing there or otherwise, and removes what is not stored here. One round trip to Redis when there is
        nothing to tell. Raises `CarrierUnavailable`: at once when QStash can't be reached, else once all was tried.
        """
        there = await self._api.listed(self.prefix) if full and self.active else None
        entries, _ = await self._entries.all()
        faults: list[CarrierUnavailable] = []
        count = 0
        left = set(there or ())
        # In any order, so that none waits for ever behind one at which QStash fails.
        for entry in random.sample(list(entries.values()), len(entries)):
            await asyncio.sleep(0)  # a schedule takes some time to reckon: others get their turn in between
            identifier, carried = self.prefix + entry.id, bool(entry.carried.id)
            if self._is_others(entry, passed_over):
                left.discard(identifier)
            else:
                try:
                    after = await self._settle(entry, there=there)
                    carried = after if self.active else carried
                except QStashAway:
                    raise
                except CarrierUnavailable as fault:
                    faults.append(fault)
                if carried:
                    left.discard(identifier)
            count += carried
        for identifier in sorted(left):
            try:
                await self.gone(identifier.removeprefix(self.prefix))
            except QStashAway:
                raise
            except CarrierUnavailable as fault:
                faults.append(fault)
        if faults:
            raise faults[0]
        return count

    def _is_others(self, entry: Entry, passed_over: Collection[str]) -> bool:
        """Whether another process knows better what QStash is to be told of an entry."""
        return (
            entry.source in passed_over
            or entry.schedule is None
            or (self.active and not entry.carried.id and entry.schedule.type not in self._tasks)
        )

    async def settle(self, identifier: str) -> None:
        """The same for one schedule, after it was changed: it raises nothing when QStash can't be told now."""
        entry = await self._entries.get(identifier)
        if entry is None:
            return
        try:
            await self._settle(entry)
        except CarrierUnavailable as fault:
            logger.warning("QStash is told later of the schedule %s: %s", identifier, fault)

    async def removed(self, entry: Entry) -> None:
        """Have QStash forget a schedule that was removed. When that fails, what it delivers of it makes no job."""
        if not entry.carried.id:
            return
        try:
            await self._api.delete(entry.carried.id)
            await self._settle_anew(entry.id)
        except CarrierUnavailable as fault:
            logger.warning("QStash is told later that the schedule %s was removed: %s", entry.id, fault)

    async def gone(self, name: str) -> None:
        """Remove from QStash what is not stored here any more. Raises `CarrierUnavailable`."""
        await self._api.delete(self.prefix + name)
        await self._settle_anew(name)

    async def _settle_anew(self, name: str) -> None:
        """Tell of a schedule that was made anew while QStash was told to forget the former one."""
        entry = await self._entries.get(name)
        if entry is not None:
            await self._settle(entry, anew=True)

    async def _settle(
        self,
        entry: Entry,
        *,
        there: Mapping[str, Listed] | None = None,
        anew: bool = False,
    ) -> bool:
        """Tell QStash of one entry, when there is something to tell; whether it is carried now.

        `anew`: what is noted says nothing about what QStash has.
        """
        for _ in range(_ATTEMPTS):
            schedule = entry.schedule
            if schedule is None:
                return bool(entry.carried.id)
            if not self.active:
                change = await self._given_back(entry, schedule)
            elif schedule.type not in self._tasks:
                # A process that knows the task says how it is run; a pause can be told without.
                change = await self._paused_only(entry, schedule, anew=anew)
            elif self.refusal(schedule):
                change = await self._given_back(entry, schedule)
            else:
                change = await self._told(entry, schedule, there=there, anew=anew)
            if change is None:
                return bool(entry.carried.id)
            if await self._entries.write([change]):
                return bool(change.carried.id)
            met = await self._entries.get(entry.id)
            if met is None:  # it was removed meanwhile
                await self._api.delete(self.prefix + entry.id)
                met = await self._entries.get(entry.id)
                if met is None:
                    return False
            entry, anew = met, True
        return bool(entry.carried.id)

    async def _told(
        self,
        entry: Entry,
        schedule: Schedule,
        *,
        there: Mapping[str, Listed] | None,
        anew: bool,
    ) -> Change | None:
        identifier = self.prefix + entry.id
        try:
            told = told_of(schedule, self._tasks.get(schedule.type))
        except ConfigurationError as fault:
            raise CarrierUnavailable(f"QStash can't be told of the schedule {entry.id}: {fault}") from fault
        url = destination(self._public_url, schedule.type)
        digest = sha256(f"{told.digest}{url}".encode()).hexdigest()[:16]
        words = f"{digest}.{_PAUSED if schedule.paused else _ON}"
        expected = Listed(identifier, url, told.parameters["cron"], schedule.paused)
        same = (entry.carried.id, entry.carried.told) == (identifier, words)
        if same and not anew and (there is None or there.get(identifier) == expected):
            return None
        await self._api.create(identifier, url, told.parameters)
        await self._api.set_paused(identifier, paused=schedule.paused)
        if entry.carried.id and entry.carried.id != identifier:
            await self._api.delete(entry.carried.id)  # it has another public URL than before
        carried = Carried(identifier, words, entry.carried.part)
        if entry.carried.id == identifier:
            return _change(entry, schedule, entry.last_ms, carried)
        # The moment of the change: near it both may make the same tick.
        now_ms = self._store.now_ms()
        ticks = () if entry.carried.id else due(schedule, entry.last_ms, now_ms).ticks
        if not ticks:
            return _change(entry, schedule, now_ms, carried)
        try:
            await self._jobs.enqueue_many([call_of(schedule, tick) for tick in ticks])
        except StoreError:
            raise
        except CountersealError as fault:
            raise CarrierUnavailable(
                f"what is due of the schedule {entry.id} can't be made: {fault}"
            ) from fault
        return replace(_change(entry, schedule, now_ms, replace(carried, part="")), fired_ms=ticks[-1])

    async def _paused_only(self, entry: Entry, schedule: Schedule, *, anew: bool) -> Change | None:
        digest, _, state = entry.carried.told.partition(".")
        wanted = _PAUSED if schedule.paused else _ON
        if not entry.carried.id or (state == wanted and not anew):
            return None
        await self._api.set_paused(entry.carried.id, paused=schedule.paused)
        return _change(entry, schedule, entry.last_ms, replace(entry.carried, told=f"{digest}.{wanted}"))

    async def _given_back(self, entry: Entry, schedule: Schedule) -> Change | None:
        if not entry.carried.id:
            return None
        before_ms = self._store.now_ms()
        if not self._api.has_token:
            logger.error(
                "the schedule %s is still at QStash: remove %s there, or set QSTASH_TOKEN before the carrier is"
                " changed; a scheduler makes its ticks now", entry.id, entry.carried.id,
            )  # fmt: skip
        else:
            await self._api.delete(entry.carried.id)
        return _change(entry, schedule, before_ms, Carried(part=entry.carried.part))


def _change(entry: Entry, schedule: Schedule, last_ms: int, carried: Carried) -> Change:
    return Change(entry.id, entry, schedule, last_ms, entry.fired_ms, entry.source, carried)
