"""QStash as the carrier of jobs: every job is a message that QStash delivers to `<public URL>/api/jobs/<type>`.

Redis stays the record of what there is; a message only says that a job is to run, and has neither its arguments nor its
result. No accepted job is lost, wherever a process dies:

1. `carry` writes the job: record, state, statistics, deduplication, and in `carried` that somebody has to look after it
   in 30 s. From here on the job is accepted.
2. The message is published. Its deduplication id is that of the job, so publishing it twice makes one message.
   - QStash took it: `note` keeps the message's id, and the next look is 15 min after the job should have begun.
   - It is sure that QStash did not: it answered an error, or could not be reached. `withdraw` takes the job back, and
     `enqueue` raises `CarrierUnavailable`.
   - It is not known, after a time-out or a lost connection: the job stays accepted.
3. `begin` leases the job for a delivery, `finish` or `settle` say what became of it.

Who dies between 1 and 2, or learns nothing in 2, leaves a job whose look is due in 30 s: `sweep` of any process
publishes it again, with the same deduplication id. Who dies after the message was taken and before that was noted
leaves the same, and QStash knows the duplicate. Who dies while the job runs gives QStash no answer, so it delivers
again, and `begin` takes over once the lease has run out. When QStash gives up because this side was away for all its
attempts, the look that is due 15 min later publishes a new message; QStash knows a duplicate for 10. Two messages of
one job do no harm: one delivery begins it, the other is told to come later or that it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
from pydantic import SecretStr
from qstash import AsyncQStash
from qstash.errors import QStashError
from qstash.http import BASE_URL
from qstash.message import FlowControl, PublishResponse

from counterseal.core.background import Background
from counterseal.core.errors import CarrierUnavailable, StoreError
from counterseal.jobs.carried import Carried, Overdue, Record
from counterseal.jobs.job import job_id
from counterseal.jobs.options import NO_EXTRA, Extra, read_extra
from counterseal.jobs.retry import NO_RETRY, Exponential, Fixed, Formula, Retry
from counterseal.jobs.scripts import Queue
from counterseal.jobs.tally import queue_names
from counterseal.jobs.task import Task
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.wire import Argument

logger = logging.getLogger(__name__)

PATH: Final = "/api/jobs"

_MS: Final = timedelta(milliseconds=1)
_ATTEMPTS: Final = 2
_TIMEOUT_S: Final = 8.0
_CANCEL_S: Final = 2.0
_AT_ONCE: Final = 20
_SWEEP_S: Final = 15.0
_FIELDS: Final = 5
_LONGEST_CALL_S: Final = 900
_CALL_MARGIN_S: Final = 10
_LONGEST_PAUSE_MS: Final = 86_400_000
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


@dataclass(slots=True)
class CarrierCounts:
    """What a carrier has done since it was made. Plain integers, changed by one event loop only."""

    published: int = 0
    refused: int = 0
    unknown: int = 0
    """Messages of which it is not known whether they arrived."""
    again: int = 0
    """Messages that were published again, because their jobs had not begun."""
    cancelled: int = 0


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a message."""

    id: str
    type: str


class QStash:
    """The carrier: `async with QStash(store, keys=keys, tasks=tasks, ...)` also looks after messages that got lost.

    `tasks` say how often their jobs run and for how long. `url` is that of another QStash than Upstash's.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys,
        tasks: Mapping[str, Task[Any, Any]],
        token: SecretStr,
        public_url: str,
        url: str | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._tasks = tasks
        self._token = token
        self._url = url or BASE_URL
        self._public_url = public_url
        self._client: AsyncQStash | None = None
        self._background = Background()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self.counts = CarrierCounts()

    async def open(self) -> None:
        """Begin to look after messages. No round trip."""
        self._background.keep("look after messages", self._sweeps)

    async def close(self) -> None:
        """Look no more, and close the connections to QStash. Safe to call twice."""
        await self._background.close()
        client, self._client = self._client, None
        if client is not None:
            await client.http._client.aclose()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - it has no other end

    def destination(self, kind: str) -> str:
        """Where jobs of a type are delivered; `sub` of their signatures."""
        return destination(self._public_url, kind)

    def taking(self, queue: Queue) -> _Taking:
        """What accepts the jobs of a queue."""
        return _Taking(Carried(queue), self)

    async def carry_again(self, queue: Queue, parts: Sequence[str]) -> None:
        """Publish messages of queued jobs that stand in lanes. What can't be published now is by a later sweep."""
        carried = Carried(queue)
        for record in await carried.adopt(parts):
            try:
                await self.publish(carried, record, again=True)
            except CarrierUnavailable as fault:
                logger.warning("the message of job %s is published later: %s", record.part, fault)

    async def cancelled(self, queue: Queue, part: str) -> None:
        """Cancel the message of a job. When that fails its delivery begins nothing."""
        carried = Carried(queue)
        message = await carried.message(part)
        await carried.forget(part)
        if not message:
            return  # an empty id would mean all messages
        try:
            async with asyncio.timeout(_CANCEL_S):
                await self._connected().message.cancel(quote(message, safe=""))
            self.counts.cancelled += 1
        except (QStashError, httpx.HTTPError, TimeoutError) as fault:
            logger.info("the message of the cancelled job %s stays at QStash: %s", part, type(fault).__name__)

    async def publish(
        self, carried: Carried, record: Record, *, again: bool = False, due_ms: int = 0
    ) -> bool:
        """Publish the message of a job; whether it is known that QStash has it.

        `again` makes another message, though QStash may know one of the job. Raises `CarrierUnavailable` when it is
        sure that QStash has it not.
        """
        queue = carried.queue.name
        unique = f"{queue}.{record.part}.{record.queued_ms}"
        if again:
            unique += f".{self._store.now_ms() // 1000}"
        async with self._room:
            message = await self._published(self._parameters(queue, record, due_ms), unique)
        if message is None:
            self.counts.unknown += 1
            logger.warning("it is not known whether QStash has the message of job %s.%s", queue, record.part)
            return False
        self.counts.published += 1
        try:
            await carried.note(record.part, message)
        except StoreError as fault:
            # The next look publishes it again, and QStash knows the duplicate.
            logger.warning("the message of job %s.%s was not noted: %s", queue, record.part, fault)
        return True

    async def sweep(self, *, ahead: timedelta = timedelta(0)) -> int:
        """Publish the messages again that should have come, as if it were `ahead` later; how many.

        One round trip for each queue, and some for each message.
        """
        published = 0
        for name in await queue_names(self._store, self._keys):
            carried = Carried(Queue(self._store, self._keys, name))
            for overdue in await carried.look(ahead_ms=ahead // _MS):
                if overdue.state == "parked" and not self._knows(overdue.record):
                    await carried.note(overdue.record.part, overdue.message)
                    continue
                published += await self._publish_again(carried, overdue)
        return published

    async def _publish_again(self, carried: Carried, overdue: Overdue) -> bool:
        due_ms = overdue.due_ms if overdue.state in ("scheduled", "retrying") else 0
        try:
            known = await self.publish(carried, overdue.record, again=bool(overdue.message), due_ms=due_ms)
        except CarrierUnavailable as fault:
            logger.warning("the message of job %s is still not published: %s", overdue.record.part, fault)
            return False
        self.counts.again += 1
        return known

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S * random.uniform(0.7, 1.3))  # noqa: S311 - spreads load, hides nothing
            try:
                await self.sweep()
            except StoreError as fault:
                logger.warning("messages can't be looked after: %s", fault)

    def _knows(self, record: Record) -> bool:
        task = self._tasks.get(record.type)
        return task is not None and record.schema <= task.schema

    def _parameters(self, queue: str, record: Record, due_ms: int) -> dict[str, Any]:
        """What the client is to publish."""
        extra = _extra(record)
        found = job_parameters(queue, record.type, extra, self._tasks.get(record.type))
        found["url"] = self.destination(record.type)
        found["body"] = msgspec.json.encode(Message(job_id(queue, record.part), record.type))
        due_ms = due_ms or extra.due or 0
        if due_ms > self._store.now_ms():
            found["not_before"] = -(-due_ms // 1000)
        return found

    async def _published(self, parameters: Mapping[str, Any], unique: str) -> str | None:
        """The id of the message; None when it is not known whether there is one."""
        unknown = False
        fault: Exception | None = None
        for _ in range(_ATTEMPTS):
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    answer = await self._connected().message.publish(**parameters, deduplication_id=unique)
                if isinstance(answer, PublishResponse):  # a list comes only for groups
                    return answer.message_id
                unknown = True
            except QStashError as refusal:
                fault = refusal
                break
            except _NEVER_SENT as failure:
                fault = failure
            except (httpx.HTTPError, TimeoutError, ValueError, LookupError, AttributeError) as failure:
                fault, unknown = failure, True
        if unknown:
            return None
        self.counts.refused += 1
        if isinstance(fault, QStashError):
            logger.error("QStash refused a message: %s", str(fault)[:300])
            raise CarrierUnavailable(
                "QStash refused the message of a job; the log has what it said"
            ) from fault
        raise CarrierUnavailable("QStash can't be reached; nothing was accepted") from fault

    def _connected(self) -> AsyncQStash:
        if self._client is None:
            # Its own retries would hide whether an earlier attempt arrived.
            self._client = AsyncQStash(self._token.get_secret_value(), retry=False, base_url=self._url)
        return self._client


class _Taking:
    """Accepts the jobs of one queue: writes them, then publishes their messages."""

    def __init__(self, carried: Carried, carrier: QStash) -> None:
        self._carried = carried
        self._carrier = carrier

    async def add(self, job: Sequence[Argument], size: int) -> str:
        """Accept one job. One round trip to Redis, one to QStash, and one to Redis."""
        return (await self.add_many(job))[0]

    async def add_many(self, jobs: Sequence[Argument]) -> list[str]:
        """Accept many jobs: one round trip to Redis for all, then as `add` for each, twenty at once.

        Raises what the first failing one raised, once all have ended: others may have been accepted.
        """
        queued_ms, taken = await self._carried.carry(jobs)
        records = [
            _written(jobs[index * _FIELDS : (index + 1) * _FIELDS], queued_ms)
            for index, there in enumerate(taken)
            if not there
        ]
        outcomes = await asyncio.gather(
            *(self._publish(record) for record in records), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return taken

    async def close(self) -> None:
        """Nothing is under way that nobody waits for."""

    async def _publish(self, record: Record) -> None:
        try:
            await self._carrier.publish(self._carried, record)
        except CarrierUnavailable:
            if await self._carried.withdraw(record.part):
                raise
            # It has begun: what answered for QStash was wrong.


def destination(public_url: str, kind: str) -> str:
    """Where jobs of a type are delivered; `sub` of their signatures."""
    return f"{public_url}{PATH}/{quote(kind, safe='')}"


def job_parameters(queue: str, kind: str, extra: Extra, task: Task[Any, Any] | None) -> dict[str, Any]:
    """What the client is told of every job of this kind, by the names of its parameters."""
    policy = extra.retry or (task.retry if task is not None else NO_RETRY)
    found: dict[str, Any] = {
        "content_type": "application/json",
        "retries": policy.attempts - 1,
        "label": kind,
    }
    expression = retry_delay(policy)
    if expression is not None:
        found["retry_delay"] = expression
    limit_ms = extra.timeout
    if limit_ms is None and task is not None and task.timeout is not None:
        limit_ms = task.timeout // _MS
    if limit_ms and (seconds := -(-limit_ms // 1000) + _CALL_MARGIN_S) <= _LONGEST_CALL_S:
        found["timeout"] = seconds
    if extra.flow is not None:
        found["flow_control"] = _flow_control(queue, extra.flow)
    return found


def retry_delay(policy: Retry) -> str | None:
    """A policy as `Upstash-Retry-Delay` has it; None where it can't be said, and QStash waits as it does by default.

    What is said counts only for deliveries that get no answer from here: each answer tells the exact pause of the
    policy. So the random part of `Exponential` is left out, a list is said only when its pauses are the same, and a
    formula only without `%`, which QStash does not know.
    """
    if isinstance(policy, Fixed):
        return _constant(policy.pause)
    if isinstance(policy, Exponential):
        longest = min(policy.longest // _MS, _LONGEST_PAUSE_MS)
        return f"min({longest}, {policy.first // _MS} * pow(2, retried))"
    if isinstance(policy, Formula):
        return None if "%" in policy.expression else policy.expression
    return _constant(policy.pauses[0]) if len(set(policy.pauses)) == 1 else None


def _constant(pause: timedelta) -> str:
    return str(min(pause // _MS, _LONGEST_PAUSE_MS))


def _flow_control(queue: str, flow: tuple[str, int, int, int]) -> FlowControl:
    key, parallelism, rate, period_ms = flow
    # Names of QStash have fewer letters than ours, and one key stands for one queue here.
    found = FlowControl(key=f"{queue}.{key.replace('%', '_')}")
    if parallelism:
        found["parallelism"] = parallelism
    if rate:
        found["rate"] = rate
        found["period"] = f"{-(-period_ms // 1000)}s"
    return found


def _extra(record: Record) -> Extra:
    try:
        return read_extra(record.extra) if record.extra else NO_EXTRA
    except (msgspec.MsgspecError, ValueError):
        return NO_EXTRA  # its delivery says so


def _written(job: Sequence[Argument], queued_ms: int) -> Record:
    part, kind, _, args, extra = (item if isinstance(item, bytes) else str(item).encode() for item in job)
    version = args.partition(b":")[0]
    return Record(part.decode(), kind.decode(), queued_ms, extra, int(version) if version.isdigit() else 0)
