"""Delivery: runs the job of a message, within the request that brings it, and says what its sender is to do."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec
from pydantic import SecretStr

from counterseal.core.background import end, full_jitter
from counterseal.core.errors import StoreError
from counterseal.jobs.carried import Carried
from counterseal.jobs.delivery_signature import Signed, verify
from counterseal.jobs.job import split_job_id
from counterseal.jobs.qstash import PATH, Message
from counterseal.jobs.qstash_schedule import Tick
from counterseal.jobs.run import Middleware, Run, Workplace
from counterseal.jobs.schedule_ticks import ScheduleTicks, Sent
from counterseal.jobs.scripts import Leased, Queue, Result
from counterseal.jobs.task import Task
from counterseal.jobs.tracing import Tracing
from counterseal.store.base import Store
from counterseal.store.keys import Keys

logger = logging.getLogger(__name__)

NOT_TOLD: Final = Sent()

_PARKED_MS: Final = 3_600_000
_SOON_MS: Final = 1_000
_LONGEST_ADVICE_MS: Final = 86_400_000
_LET_GO_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a delivery.

    | `state` | means | is answered |
    | --- | --- | --- |
    | `completed`, `cancelled` | so it ended, now or before | 200 |
    | `skipped` | a tick that makes no job: its schedule is paused, or there is one of it | 200 |
    | `failed` | a dead letter; so is what can't be run at all: `gone`, `other`, `malformed` | 489 |
    | `retrying` | it failed, and is to run again | 500 |
    | `parked`, `queued`, `lost`, `running`, `paused`, `full`, `early` | nothing has ended: come again | 503 |
    """

    state: str
    id: str = ""
    again_ms: int | None = None
    """When to come again; None says nothing about it."""


@dataclass(slots=True)
class DeliveryCounts:
    """Deliveries since the start. Plain integers, changed by one event loop only."""

    accepted: int = 0
    forged: int = 0
    """Without a signature that is good for this URL, this body and this moment."""
    replayed: int = 0


class Deliveries:
    """Takes deliveries of QStash. `keys_` of signatures are the current and the next one.

    A delivery is a lease as a worker has it, prolonged while the task runs; the same `Run` runs it.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        tasks: Mapping[str, Task[Any, Any]],
        signing_keys: Sequence[SecretStr],
        public_url: str,
        lease: timedelta,
        grace: timedelta,
        concurrency: int,
        middleware: Sequence[Middleware] = (),
        tracing: Tracing | None = None,
        ticks: ScheduleTicks | None = None,
    ) -> None:
        self._store = store
        self._ticks = ticks
        self._tracing = tracing
        self._keys = keys
        self._tasks = tasks
        self._signing_keys = tuple(signing_keys)
        self._public_url = public_url
        self._lease_ms = lease // timedelta(milliseconds=1)
        self._grace_s = grace / timedelta(seconds=1)
        self._concurrency = concurrency
        self._middleware = tuple(middleware)
        self._threads: ThreadPoolExecutor | None = None
        self._running: dict[Run, asyncio.Event] = {}
        self._closing = False
        self.counts = DeliveryCounts()

    async def accept(self, signatures: Sequence[str], *, target: str, body: bytes) -> bool:
        """Whether a request is a delivery that QStash has signed and that has not come before. One round trip.

        `target` is what follows `/api/jobs` in the URL as it was sent, with its query. Raises `StoreUnavailable`.
        """
        signed = None
        if len(signatures) == 1:
            signed = verify(
                signatures[0],
                keys=[key.get_secret_value() for key in self._signing_keys],
                url=f"{self._public_url}{PATH}{target}",
                body=body,
                now_ms=self._store.now_ms(),
            )
        if signed is None:
            self.counts.forged += 1
            logger.warning("a delivery was refused: its signature is not good")
            return False
        if not await self._first(signed):
            self.counts.replayed += 1
            logger.warning("a delivery was refused: it has come before")
            return False
        self.counts.accepted += 1
        return True

    async def run(self, kind: str, body: bytes, sent: Sent = NOT_TOLD) -> Delivered:
        """Run the job of an accepted delivery, to its end. Two round trips, and one for each third of the lease.

        The first delivery of a tick makes its job, with four round trips more. Raises `StoreUnavailable`: nothing was
        run then, or what became of it could not be written.
        """
        message, tick = _read(body)
        named = message or tick
        if named is None or named.type != kind:
            return Delivered("malformed")
        if self._closing:
            return Delivered("queued", "" if message is None else message.id, _SOON_MS)
        if tick is not None:
            return await self._run_tick(tick, sent)
        return Delivered("malformed") if message is None else await self._run(message.id, kind)

    async def _run_tick(self, tick: Tick, sent: Sent) -> Delivered:
        if self._ticks is None or not sent.message:
            return Delivered("malformed")
        made = await self._ticks.make(tick, sent)
        if made.refusal:
            return Delivered(made.refusal, made.id)
        delivered = await self._run(made.id, tick.type)
        # Its record is kept no longer, so it has ended.
        return Delivered("skipped", made.id) if delivered.state == "gone" else delivered

    async def _run(self, identifier: str, kind: str) -> Delivered:
        ids = split_job_id(identifier)
        if ids is None:
            return Delivered("malformed")
        carried = Carried(Queue(self._store, self._keys, ids[0]))
        begun = await carried.begin(ids[1], kind, lease_ms=self._lease_ms)
        if begun.leased is None:
            if begun.refusal == "gone":
                logger.error("the job %s of a message has no record: was it deleted or evicted?", identifier)
            return Delivered(begun.refusal, identifier, begun.wait_ms or None)
        result = await self._ran(carried, begun.leased)
        return await self._handed_in(carried, begun.leased, result, identifier)

    async def close(self) -> None:
        """Let what runs end within the grace, and give the rest back, uncounted as attempts. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        runs = self._running
        if runs:
            await _all_set(list(runs.values()), self._grace_s)
        for run in runs:
            run.end("drain")
        if runs:
            await _all_set(list(runs.values()), _LET_GO_S)
        for run in list(runs):
            run.abandon()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _first(self, signed: Signed) -> bool:
        """Whether this delivery has not been seen. It is remembered for as long as its signature is good."""
        digest = hashlib.sha256(signed.id.encode("utf-8", "surrogatepass")).hexdigest()
        left_ms = max(1, signed.until_ms - self._store.now_ms())
        key = self._keys.jobs_delivery(digest)
        return await self._store.command("SET", key, 1, "NX", "PX", left_ms) is not None

    async def _ran(self, carried: Carried, leased: Leased) -> Result | None:
        task = self._tasks.get(leased.type)
        if task is not None and not task.is_async and self._threads is None:
            self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="counterseal-delivery")
        ended = asyncio.Event()
        place = Workplace(
            carried.queue,
            ended=lambda _: ended.set(),
            middleware=self._middleware,
            threads=self._threads,
            now_ms=self._store.now_ms,
            tracing=self._tracing,
        )
        run = Run(leased, task, place)
        self._running[run] = ended
        run.start()
        prolonging = asyncio.create_task(self._prolong(carried, leased, run))
        try:
            await ended.wait()
        except asyncio.CancelledError:
            run.end("drain")  # the server ends
            await _all_set([ended], _LET_GO_S)
        finally:
            await end([prolonging])
            del self._running[run]
        return run.result

    async def _prolong(self, carried: Carried, leased: Leased, run: Run) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            try:
                (answer,) = await carried.queue.extend([leased], lease_ms=self._lease_ms)
            except StoreError:
                continue
            if answer == "lost":
                run.end("lost")
            elif answer:
                run.cancel(answer.partition(" ")[2])

    async def _handed_in(
        self, carried: Carried, leased: Leased, result: Result | None, whole: str
    ) -> Delivered:
        """Write what became of a job. While Redis is away it is tried for as long as the lease lasts."""
        if result is None:
            return Delivered("lost", whole, _SOON_MS)
        deadline = asyncio.get_running_loop().time() + self._lease_ms / 1000
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._written(carried, leased, result, whole)
            except StoreError:
                pause_s = full_jitter(attempt)
                if asyncio.get_running_loop().time() + pause_s > deadline:
                    raise
                await asyncio.sleep(pause_s)

    async def _written(self, carried: Carried, leased: Leased, result: Result, whole: str) -> Delivered:
        if result.outcome in ("retrying", "parked", "queued"):
            held = await carried.settle(leased, result.outcome, result.ms, result.text)
            again_ms = {"retrying": result.ms, "parked": _PARKED_MS}.get(result.outcome, _SOON_MS)
            if again_ms > _LONGEST_ADVICE_MS:
                again_ms = None  # QStash ignores more than a day
        else:
            (held,) = await carried.queue.finish([result])
            again_ms = None
            if held:
                await carried.forget(leased.part)
        if not held:
            logger.warning("the result of job %s was refused: its lease had run out", whole)
            return Delivered("lost", whole, _SOON_MS)
        return Delivered(result.outcome, whole, again_ms)


def _read(body: bytes) -> tuple[Message | None, Tick | None]:
    """A message of a job, or what QStash makes of a schedule."""
    try:
        return msgspec.json.decode(body, type=Message), None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    try:
        return None, msgspec.json.decode(body, type=Tick)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None, None


async def _all_set(events: Sequence[asyncio.Event], seconds: float) -> None:
    """Wait until events are set, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds)
    finally:
        await end(waits)
