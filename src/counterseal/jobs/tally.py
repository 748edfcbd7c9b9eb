"""Tally: reads the statistics of queues and types."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from counterseal.core.errors import CodecError
from counterseal.jobs.statistics import (
    JobStats,
    Quantiles,
    QueueStats,
    Throughput,
    read_counters,
    read_quantiles,
    read_stats,
)
from counterseal.jobs.task import DEFAULT_QUEUE
from counterseal.store.base import Store
from counterseal.store.keys import JOB_DEAD_TTL, Keys
from counterseal.store.scripts import load_script
from counterseal.store.wire import Reply, raised

_OVERVIEW: Final = load_script("counterseal.jobs", "overview")
_RECOUNT: Final = load_script("counterseal.jobs", "recount")
_MOST_RECOUNTED: Final = 5_000
"""So many jobs one call counts again: Redis serves nobody else for some milliseconds meanwhile."""
_MINUTES_OF_HOUR: Final = 60
_MINUTE_MS: Final = 60_000


class Tally:
    """Statistics of the queues of one namespace."""

    def __init__(self, store: Store, *, keys: Keys, types: Sequence[str]) -> None:
        self._store = store
        self._keys = keys
        self._types = tuple(dict.fromkeys(types))

    async def names(self) -> list[str]:
        """The queues that there are, in order. One round trip."""
        return await queue_names(self._store, self._keys)

    async def stats(self) -> dict[str, JobStats]:
        """By type, those that are known here first."""
        sums: dict[str, dict[str, int]] = {kind: {} for kind in self._types}
        for _, _, types in await self._overviews():
            for kind, counters in types.items():
                of = sums.setdefault(kind, {})
                for name, value in counters.items():
                    of[name] = of.get(name, 0) + value
        return {kind: read_stats(counters) for kind, counters in sums.items()}

    async def queues(self) -> list[QueueStats]:
        """Of each queue, by name."""
        now_ms = self._store.now_ms()
        found: list[QueueStats] = []
        for name, (settings, running, delayed, parked, dead, oldest_ms), types in await self._overviews():
            parallelism = settings.get("parallelism")
            queued = sum(counters.get("queued", 0) for counters in types.values())
            found.append(
                QueueStats(
                    queue=name,
                    paused="paused" in settings,
                    parallelism=parallelism,
                    queued=max(0, queued - settings.get("uncounted_queued", 0)),
                    running=running,
                    delayed=delayed,
                    parked=parked,
                    dead=dead,
                    gone=settings.get("gone", 0),
                    oldest_age=timedelta(milliseconds=max(0, now_ms - oldest_ms)) if oldest_ms else None,
                )
            )
        return found

    async def times(self, kind: str) -> tuple[Quantiles, Quantiles]:
        """Waiting and run times of a type."""
        keys = [f"{self._keys.jobs_prefix(name)}:times:{kind}" for name in await self.names()]
        waits: dict[int, int] = {}
        runs: dict[int, int] = {}
        for key, reply in zip(keys, await self._hashes(keys), strict=True):
            for field, value in read_counters(_flat(reply), key=key).items():
                of, bucket = waits if field[0] == "w" else runs, int(field[1:])
                of[bucket] = of.get(bucket, 0) + value
        return read_quantiles(waits, timedelta(milliseconds=1)), read_quantiles(
            runs, timedelta(microseconds=1)
        )

    async def throughput(self, kind: str) -> Throughput:
        """What has ended in the last whole minute, and in the last 60: the one that is under way does not count yet."""
        minute = self._store.now_ms() // _MINUTE_MS
        hours = sorted({(minute - ago) // _MINUTES_OF_HOUR for ago in range(1, _MINUTES_OF_HOUR + 1)})
        names = await self.names()
        keys = [f"{self._keys.jobs_prefix(name)}:rate:{hour}" for name in names for hour in hours]
        replies = await self._hashes(keys)
        counts = dict.fromkeys(("completed", "failed"), 0)
        last = dict.fromkeys(counts, 0)
        for key, reply in zip(keys, replies, strict=True):
            hour = int(key.rpartition(":")[2])
            for field, value in read_counters(_flat(reply), key=key).items():
                at, of, outcome = field.split(":", 2)
                age = minute - (hour * _MINUTES_OF_HOUR + int(at))
                if of == kind and outcome in counts and 1 <= age <= _MINUTES_OF_HOUR:
                    counts[outcome] += value
                    last[outcome] += value if age == 1 else 0
        return Throughput(last["completed"], counts["completed"], last["failed"], counts["failed"])

    async def _hashes(self, keys: Sequence[str]) -> list[Reply]:
        replies = await self._store.pipeline([("HGETALL", key) for key in keys])
        return [raised(reply) for reply in replies]

    async def _overviews(
        self,
    ) -> list[tuple[str, tuple[dict[str, int], int, int, int, int, int], Mapping[str, dict[str, int]]]]:
        names = await self.names()
        return list(await asyncio.gather(*map(self._overview, names)))

    async def _overview(
        self, name: str
    ) -> tuple[str, tuple[dict[str, int], int, int, int, int, int], Mapping[str, dict[str, int]]]:
        numbers, types = await self._look(name)
        lost = any(value < 0 for counters in types.values() for value in counters.values())
        if lost or "uncounted" in numbers[0]:
            # Counters were lost, or records were found gone and nobody knows of which types: those that are there are
            # counted again.
            reply = await self._store.run(
                _RECOUNT,
                queue=self._keys.jobs_queue(name),
                prefix=self._keys.jobs_prefix(name),
                most=_MOST_RECOUNTED,
            )
            if isinstance(reply, int) and reply >= 0:
                numbers, types = await self._look(name)
        # In a queue too long for that, jobs of before the loss still end.
        shown = {
            kind: {field: max(0, value) for field, value in counters.items()}
            for kind, counters in types.items()
        }
        return name, numbers, shown

    async def _look(
        self, name: str
    ) -> tuple[tuple[dict[str, int], int, int, int, int, int], dict[str, dict[str, int]]]:
        reply = await self._store.run(
            _OVERVIEW,
            queue=self._keys.jobs_queue(name),
            prefix=self._keys.jobs_prefix(name),
            now_ms=self._store.now_ms(),
            keep_dead_ms=JOB_DEAD_TTL // timedelta(milliseconds=1),
        )
        return _overview(reply, self._keys.jobs_queue(name))


async def queue_names(store: Store, keys: Keys) -> list[str]:
    """The queues that there are, in order, the default one among them. One round trip."""
    reply = await store.command("SMEMBERS", keys.jobs_queues())
    names = {item.decode() for item in (reply if isinstance(reply, list) else []) if isinstance(item, bytes)}
    return sorted(names | {DEFAULT_QUEUE})


def _overview(
    reply: Reply, key: str
) -> tuple[tuple[dict[str, int], int, int, int, int, int], dict[str, dict[str, int]]]:
    match reply:
        case [
            list() as settings,
            int(running),
            int(delayed),
            int(parked),
            int(dead),
            bytes(oldest),
            list() as types,
        ]:
            counters: dict[str, dict[str, int]] = {}
            for item in types:
                match item:
                    case [bytes(kind), list() as flat]:
                        counters[kind.decode()] = read_counters(_flat(flat), key=key)
                    case _:
                        raise CodecError("the statistics of jobs can't be read", key=key)
            return (
                read_counters(_flat(settings), key=key),
                running,
                delayed,
                parked,
                dead,
                int(oldest),
            ), counters
        case _:
            raise CodecError("the statistics of jobs can't be read", key=key)


def _flat(reply: Reply) -> list[bytes]:
    return [part for part in (reply if isinstance(reply, list) else []) if isinstance(part, bytes)]
