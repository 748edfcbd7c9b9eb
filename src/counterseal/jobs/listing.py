"""Listing: finds jobs by state, type, tag or error, without a scan of the keyspace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from counterseal.core.errors import CodecError
from counterseal.jobs.job import Job, State, read_job, split_job_id
from counterseal.jobs.scripts import Queue
from counterseal.jobs.tally import queue_names
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.wire import Reply, raised

MOST: Final = 10_000
"""So many jobs of one kind are looked at in a queue."""

_PAGE: Final = 200
_MOST_FLOWS: Final = 100


class Listing:
    """Looks into the queues of one namespace."""

    def __init__(self, store: Store, *, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    async def find(
        self,
        *,
        queue: str | None,
        state: State | None,
        kind: str | None,
        tag: str | None,
        parent: str | None,
        limit: int,
    ) -> list[Job]:
        """Jobs that fit all that is given, at most `limit`.

        About a round trip for every 200 that are looked at, or every 4 MB of them.
        """

        def fits(job: Job) -> bool:
            return (
                (state is None or job.state is state)
                and (kind is None or job.type == kind)
                and (parent is None or job.parent == parent)
            )

        found: list[Job] = []
        for name in [queue] if queue else await queue_names(self._store, self._keys):
            parts = await (self._tagged(name, tag) if tag is not None else self._parts(name, state))
            found += await self._read(name, parts, fits, limit - len(found))
            if len(found) >= limit:
                break
        return found

    async def dead(self, *, queue: str | None, kind: str | None, error: str | None, limit: int) -> list[Job]:
        """Dead letters and parked jobs, newest first within a queue."""
        wanted = None if error is None else error.casefold()

        def fits(job: Job) -> bool:
            return (
                (job.parked or job.state is State.FAILED)
                and (kind is None or job.type == kind)
                and (wanted is None or wanted in str(job.failure or "").casefold())
            )

        found: list[Job] = []
        for name in [queue] if queue else await queue_names(self._store, self._keys):
            prefix = self._keys.jobs_prefix(name)
            parts = await self._ranges(
                ("ZREVRANGE", f"{prefix}:dead", 0, MOST - 1), ("ZREVRANGE", f"{prefix}:parked", 0, MOST - 1)
            )
            found += await self._read(name, parts, fits, limit - len(found))
            if len(found) >= limit:
                break
        return found

    async def logs(self, identifier: str) -> list[tuple[int, str]]:
        """The log of a job; nothing when there is no such job, or it is kept no more."""
        ids = split_job_id(identifier)
        if ids is None:
            return []
        key = f"{self._keys.jobs_prefix(ids[0])}:logs:{ids[1]}"
        (stored,), reply = await asyncio.gather(
            Queue(self._store, self._keys, ids[0]).read([ids[1]]), self._store.command("LRANGE", key, 0, -1)
        )
        if read_job(*ids, stored) is None:
            return []
        try:
            return [
                msgspec.json.decode(line, type=tuple[int, str])
                for line in (reply if isinstance(reply, list) else [])
                if isinstance(line, bytes)
            ]
        except msgspec.MsgspecError as fault:
            raise CodecError("the log of a job can't be read", key=key) from fault

    async def _tagged(self, queue: str, tag: str) -> list[str]:
        return await self._ranges(("ZREVRANGE", self._keys.jobs_tag(queue, tag), 0, MOST - 1))

    async def _parts(self, queue: str, state: State | None) -> list[str]:
        """Of the jobs that may be in a state; of all when there is none."""
        prefix = self._keys.jobs_prefix(queue)
        running = ("ZRANGE", f"{prefix}:running", 0, MOST - 1)
        delayed = ("ZRANGE", f"{prefix}:delayed", 0, MOST - 1)
        carried = ("ZRANGE", f"{prefix}:carried", 0, MOST - 1)
        parked = ("ZREVRANGE", f"{prefix}:parked", 0, MOST - 1)
        recent = ("LRANGE", f"{prefix}:recent", 0, MOST - 1)
        dead = ("ZREVRANGE", f"{prefix}:dead", 0, MOST - 1)
        by_state: dict[State, list[tuple[str, str, int, int]]] = {
            State.RUNNING: [running],
            State.SCHEDULED: [delayed, carried],
            State.RETRYING: [delayed, carried, parked],
            State.FAILED: [dead],
            State.COMPLETED: [recent],
            State.CANCELLED: [recent],
        }
        if state is not None and state in by_state:
            return await self._ranges(*by_state[state])
        lanes = await self._lanes(prefix)
        if state is State.QUEUED:
            return await self._ranges(*lanes, carried)
        return await self._ranges(running, *lanes, delayed, carried, parked, dead, recent)

    async def _lanes(self, prefix: str) -> list[tuple[str, str, int, int]]:
        """How to read what is queued: lanes without a flow, and of a hundred flows in turn and a hundred held up."""
        *rings, stalled = [
            _texts(raised(reply))
            for reply in await self._store.pipeline(
                [
                    *(("LRANGE", f"{prefix}:ring:{priority}", 0, _MOST_FLOWS - 1) for priority in range(3)),
                    ("ZRANGE", f"{prefix}:flowdue", 0, _MOST_FLOWS - 1),
                ]
            )
        ]
        keys: list[str] = []
        for priority, ring in enumerate(rings):
            keys.append(f"{prefix}:ready:{priority}")
            keys.extend(
                f"{prefix}:lane:{priority}:{flow}" for flow in dict.fromkeys((*ring, *stalled)) if flow
            )
        return [("LRANGE", key, 0, MOST - 1) for key in keys]

    async def _ranges(self, *commands: Sequence[str | int]) -> list[str]:
        """The members of lists and sorted sets, each once, in this order."""
        parts: dict[str, None] = {}
        for reply in await self._store.pipeline(commands):
            parts.update(dict.fromkeys(_texts(raised(reply))))
        return list(parts)

    async def _read(
        self, queue: str, parts: Sequence[str], fits: Callable[[Job], bool], limit: int
    ) -> list[Job]:
        found: list[Job] = []
        calls = Queue(self._store, self._keys, queue)
        first = 0
        while first < len(parts):
            page = parts[first : first + _PAGE]
            replies = await calls.read(page)  # fewer when they are large, and at least one
            first += max(1, len(replies))
            for part, reply in zip(page, replies, strict=False):
                job = _readable(queue, part, reply)
                if job is not None and fits(job):
                    found.append(job)
                    if len(found) >= limit:
                        return found
        return found


def _texts(reply: Reply) -> list[str]:
    return [item.decode() for item in (reply if isinstance(reply, list) else []) if isinstance(item, bytes)]


def _readable(queue: str, part: str, reply: Reply) -> Job | None:
    """A job; None also for one that can't be read, which must not hide the others."""
    try:
        return read_job(queue, part, reply)
    except CodecError:
        return None
