"""Listener: what a worker is told: that there are jobs, that one is to be cancelled, and jobs that are sent to it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from counterseal.core.background import full_jitter
from counterseal.core.errors import CommandError, StoreError
from counterseal.jobs.slots import Slots, Source
from counterseal.jobs.worker_counts import WorkerCounts
from counterseal.store.base import Gap, Store

logger = logging.getLogger(__name__)

REFUSED_S: Final = 120.0
"""Who may not listen asks again no more often than twice in this time."""

_SENDING: Final = frozenset({"embedded", "native", "sentinel"})


class Listener:
    """Hears for a worker: `wake` is set when there are jobs, and what is sent to `worker` begins at once."""

    def __init__(
        self,
        store: Store,
        slots: Slots,
        *,
        worker: str,
        lease_ms: int,
        poll_s: float,
        counts: WorkerCounts,
        wake: asyncio.Event,
    ) -> None:
        self._store = store
        self._slots = slots
        self._worker = worker
        self._lease_ms = lease_ms
        self._poll_s = poll_s
        self._counts = counts
        self._wake = wake
        self._told = {
            f"{source.queue.prefix}:{kind}": (source, kind)
            for source in slots.sources
            for kind in ("wake", "control")
        }
        self._sent = {source.queue.sent_to(worker): source for source in slots.sources}
        self.hears = False
        """Whether jobs may be sent to this worker."""
        self.listening = False
        """Whether a message would come."""

    async def listen(self) -> None:
        """Hear, and after a lost connection again. Does not end."""
        failures = 0
        while True:
            longest_s = self._poll_s
            try:
                async with self._store.subscribe(
                    *self._told, *self._sent, limit=10_000, on_loss=self._lose
                ) as messages:
                    failures = 0
                    if self.hears:  # it did before, and was cut off
                        await self._look_for_sent()
                    self._hear()
                    # On a Cluster the node that has the queue does not know who listens at another one.
                    self.hears = self._store.kind in _SENDING and not self._slots.closing
                    async for message in messages:
                        if isinstance(message, Gap):
                            if self._store.kind in _SENDING:
                                await self._look_for_sent()
                            self._hear()
                            continue
                        if (source := self._sent.get(message.channel)) is not None:
                            self._take(source, message.data)
                            continue
                        source, kind = self._told[message.channel]
                        if kind == "wake":
                            source.rests_until = 0.0
                            self._wake.set()
                        else:
                            _obey(source, message.data)
            except StoreError as fault:
                failures += 1
                if isinstance(fault, CommandError):
                    longest_s = REFUSED_S
                if failures == 1:
                    logger.warning(
                        "new jobs can't be listened for, so they are looked for every %g s: %s",
                        self._poll_s,
                        fault,
                    )
            finally:
                self.listening = False
            await asyncio.sleep(full_jitter(failures + 1, longest=longest_s))

    async def leave(self) -> None:
        """Have no more jobs sent here. Two round trips for each queue, none when there was none to be sent."""
        if not self.hears:
            return
        self.hears = False
        for source in self._slots.sources:
            with suppress(StoreError):
                await source.queue.leave(self._worker, lease_ms=self._lease_ms)
        await self._look_for_sent()

    def _hear(self) -> None:
        """Messages come from now on: whatever could not be served may be again."""
        self.listening = True
        for source in self._slots.sources:
            source.rests_until = 0.0
        self._wake.set()

    def _lose(self) -> None:
        self.listening = False
        self._wake.set()

    def _take(self, source: Source, data: bytes) -> None:
        """Begin a job that was sent here."""
        leased = source.queue.sent(data)
        if leased.part in source.running or leased.part == source.recalled:
            return
        self._counts.leased += 1
        source.ahead.append(leased)
        if self._slots.closing:
            self._slots.give_back(source)
            return
        self._slots.start()
        self._wake.set()

    async def _look_for_sent(self) -> None:
        """Give back a job that was sent while nothing was heard."""
        for source in self._slots.sources:
            with suppress(StoreError):
                part = await source.queue.held(self._worker)
                if part is not None and not source.holds(part):
                    source.recalled = part  # should it be on its way still, it is another worker's now
                    await source.queue.recall_sent(self._worker)


def _obey(source: Source, order: bytes) -> None:
    """Cancel a job that runs here."""
    part, token, reason = (*order.split(b" ", 2), b"", b"")[:3]
    run = source.running.get(part.decode(errors="replace"))
    if run is not None and run.leased.token == token:
        run.cancel(reason.decode(errors="replace"))
