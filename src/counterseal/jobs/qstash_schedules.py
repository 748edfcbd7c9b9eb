"""QStashSchedules: has QStash make the ticks of schedules that it can, and keeps what it knows of them true.

Redis says what schedules there are and who makes the ticks of each; QStash is told after it. So nothing is lost while
QStash can't be reached: a pause or a removal counts at once, because a tick that is delivered asks Redis, and what
QStash was not told it is told later. A schedule is handed over to it like this:

1. QStash is told of it. Until 2 both make its ticks, and of each tick one job comes, as both know its name.
2. The entry says that QStash carries it, and no scheduler looks at it any more.

Back it goes the other way round: QStash forgets it, then the entry says so, with the moment before that as the one up
to which ticks have been dealt with.

Ids at QStash begin with the hash of the namespace and the public URL: what begins otherwise is somebody else's, and is
neither changed nor removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final, TypeVar

import httpx
from pydantic import SecretStr
from qstash import AsyncQStash
from qstash.errors import QStashError
from qstash.http import BASE_URL

from counterseal.core.errors import CarrierUnavailable, ConfigurationError
from counterseal.jobs.qstash import destination
from counterseal.jobs.qstash_schedule import refusal, told_of
from counterseal.jobs.schedule import Schedule
from counterseal.jobs.schedule_entries import Carried, Change, Entries, Entry
from counterseal.jobs.task import Task
from counterseal.store.base import Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_S: Final = 8.0
_ATTEMPTS: Final = 5
_PAUSED: Final = "paused"
_ON: Final = "on"


class QStashSchedules:
    """What of the stored schedules QStash carries. `active`: it is to; else it gives back those that it has."""

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        tasks: Mapping[str, Task[Any, Any]],
        token: SecretStr | None,
        public_url: str,
        url: str | None = None,
        active: bool = True,
    ) -> None:
        self._store = store
        self._entries = Entries(store, keys)
        self._tasks = tasks
        self._token = token
        self._public_url = public_url
        self._url = url or BASE_URL
        self._client: AsyncQStash | None = None
        self.active = active
        name = sha256(f"{keys.namespace}\n{public_url}".encode()).hexdigest()[:12]
        self.prefix = f"counterseal-{name}."
        """What the ids at QStash begin with."""

    async def close(self) -> None:
        """Close the connections to QStash. Safe to call twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.http._client.aclose()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - it has no other end

    def refusal(self, schedule: Schedule) -> str:
        """Why a scheduler makes the ticks of a schedule, beginning with the name of a field; '' when QStash does."""
        if schedule.type not in self._tasks:
            return "type: this release has no task of this name"
        return refusal(schedule, self._store.now_ms())

    async def settle_all(self, *, passed_over: Collection[str] = (), full: bool = False) -> int:
        """Tell QStash of all that it has not been told, and mark who carries what.

        Answers how many schedules it carries now; when it is not to carry any, how many it did before.

        `passed_over` are sources of which a later release tells. `full` also asks QStash what it has, makes anew what
        is missing there, and removes what is not stored here. One round trip to Redis when there is nothing to tell.
        Raises `CarrierUnavailable`, once everything was tried, when something could not be told.
        """
        there = await self._listed() if full and self.active else None
        entries, _ = await self._entries.all()
        faults: list[CarrierUnavailable] = []
        count = 0
        left = set(there or ())
        for entry in entries.values():
            await asyncio.sleep(0)  # a schedule takes some time to reckon: others get their turn in between
            identifier, carried = self.prefix + entry.id, bool(entry.carried.id)
            if self._is_others(entry, passed_over):
                left.discard(identifier)
            else:
                try:
                    after = await self._settle(entry, there)
                    carried = after if self.active else carried
                except CarrierUnavailable as fault:
                    faults.append(fault)
                if carried:
                    left.discard(identifier)
            count += carried
        for identifier in sorted(left):
            try:
                await self.forget(identifier)
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
        if entry is None or entry.schedule is None:
            return
        try:
            await self._settle(entry, None)
        except CarrierUnavailable as fault:
            logger.warning("QStash is told later of the schedule %s: %s", identifier, fault)

    async def removed(self, entry: Entry) -> None:
        """Have QStash forget a schedule that was removed. When that fails, what it delivers of it makes no job."""
        if entry.carried.id:
            try:
                await self.forget(entry.carried.id)
            except CarrierUnavailable as fault:
                logger.warning("QStash is told later that the schedule %s was removed: %s", entry.id, fault)

    async def forget(self, identifier: str) -> None:
        """Remove a schedule from QStash, by its id there. Raises `CarrierUnavailable`."""
        if self._token is None:
            raise CarrierUnavailable(
                f"QSTASH_TOKEN: expected, to remove the schedule {identifier} from QStash; it is missing"
            )
        await self._asked(self._connected().schedule.delete(identifier), missing_ok=True)

    async def _settle(self, entry: Entry, there: Collection[str] | None) -> bool:
        """Tell QStash of one entry, when there is something to tell; whether it is carried now."""
        for _ in range(_ATTEMPTS):
            schedule = entry.schedule
            if schedule is None:
                return bool(entry.carried.id)
            if not self.active:
                change = await self._given_back(entry, schedule)
            elif schedule.type not in self._tasks:
                # A process that knows the task says how it is run; a pause can be told without.
                change = await self._paused_only(entry, schedule)
            elif self.refusal(schedule):
                change = await self._given_back(entry, schedule)
            else:
                change = await self._told(entry, schedule, there)
            if change is None:
                return bool(entry.carried.id)
            if await self._entries.write([change]):
                return bool(change.carried.id)
            met = await self._entries.get(entry.id)
            if met is None:  # it was removed meanwhile
                await self.forget(self.prefix + entry.id)
                return False
            entry, there = met, None
        return bool(entry.carried.id)

    async def _told(self, entry: Entry, schedule: Schedule, there: Collection[str] | None) -> Change | None:
        identifier = self.prefix + entry.id
        try:
            told = told_of(schedule, self._tasks.get(schedule.type))
        except ConfigurationError as fault:
            raise CarrierUnavailable(f"QStash can't be told of the schedule {entry.id}: {fault}") from fault
        url = destination(self._public_url, schedule.type)
        digest = sha256(f"{told.digest}{url}".encode()).hexdigest()[:16]
        words = f"{digest}.{_PAUSED if schedule.paused else _ON}"
        lost = there is not None and identifier not in there
        if (entry.carried.id, entry.carried.told) == (identifier, words) and not lost:
            return None
        if entry.carried.id != identifier or not entry.carried.told.startswith(digest) or lost:
            api = self._connected().schedule
            await self._asked(api.create(destination=url, schedule_id=identifier, **told.parameters))
        await self._set_paused(identifier, paused=schedule.paused)
        if entry.carried.id and entry.carried.id != identifier:
            await self.forget(entry.carried.id)  # it has another public URL than before
        # The moment of the change: near it both may make the same tick.
        moment_ms = entry.last_ms if entry.carried.id else self._store.now_ms()
        return _change(entry, schedule, moment_ms, Carried(identifier, words, entry.carried.part))

    async def _paused_only(self, entry: Entry, schedule: Schedule) -> Change | None:
        digest, _, state = entry.carried.told.partition(".")
        wanted = _PAUSED if schedule.paused else _ON
        if not entry.carried.id or state == wanted:
            return None
        await self._set_paused(entry.carried.id, paused=schedule.paused)
        return _change(entry, schedule, entry.last_ms, replace(entry.carried, told=f"{digest}.{wanted}"))

    async def _given_back(self, entry: Entry, schedule: Schedule) -> Change | None:
        if not entry.carried.id:
            return None
        before_ms = self._store.now_ms()
        if self._token is None:
            logger.error(
                "the schedule %s is still at QStash: remove %s there, or set QSTASH_TOKEN before the carrier is"
                " changed; a scheduler makes its ticks now", entry.id, entry.carried.id,
            )  # fmt: skip
        else:
            await self.forget(entry.carried.id)
        return _change(entry, schedule, before_ms, Carried(part=entry.carried.part))

    async def _set_paused(self, identifier: str, *, paused: bool) -> None:
        api = self._connected().schedule
        await self._asked(api.pause(identifier) if paused else api.resume(identifier))

    async def _listed(self) -> set[str]:
        """The ids of what is ours at QStash."""
        found = await self._asked(self._connected().schedule.list())
        return {one.schedule_id for one in found or [] if one.schedule_id.startswith(self.prefix)}

    async def _asked(self, request: Awaitable[T], *, missing_ok: bool = False) -> T | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await request
        except QStashError as fault:
            said = str(fault)[:300]
            if missing_ok and "status: 404" in said:
                return None
            raise CarrierUnavailable(f"QStash refused what it was told of schedules: {said}") from fault
        except (httpx.HTTPError, TimeoutError, ValueError, LookupError, TypeError, AttributeError) as fault:
            raise CarrierUnavailable(f"QStash can't be told of schedules ({type(fault).__name__})") from fault

    def _connected(self) -> AsyncQStash:
        if self._token is None:
            raise CarrierUnavailable(
                "QSTASH_TOKEN: expected because COUNTERSEAL_JOBS_CARRIER is qstash; it is missing"
            )
        if self._client is None:
            self._client = AsyncQStash(self._token.get_secret_value(), retry=False, base_url=self._url)
        return self._client


def _change(entry: Entry, schedule: Schedule, last_ms: int, carried: Carried) -> Change:
    return Change(entry.id, entry, schedule, last_ms, entry.fired_ms, entry.source, carried)
