"""Carriage: the carrier and the receiver that the settings ask for."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from counterseal.core.settings import Settings
from counterseal.jobs.delivery import Deliveries
from counterseal.jobs.probe import probe
from counterseal.jobs.qstash import QStash
from counterseal.jobs.qstash_schedules import QStashSchedules
from counterseal.jobs.schedule_ticks import ScheduleTicks
from counterseal.jobs.service import Jobs, by_name
from counterseal.jobs.task import Task
from counterseal.jobs.tracing import Tracing
from counterseal.jobs.types import PROBE
from counterseal.store.base import Store
from counterseal.store.keys import Keys


class Carriage:
    """What of QStash is configured, to be used as `async with`. Without any it has nothing and does nothing.

    `carrier` publishes jobs, when `COUNTERSEAL_JOBS_CARRIER` is `qstash`. `deliveries` runs what is delivered, when
    there is a signing key and the public URL: also after the carrier was changed, for messages still under way.
    `schedules` tells QStash of schedules, and takes back those that it has when the carrier is another one.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        keys: Keys,
        tasks: Iterable[Task[Any, Any]],
        tracing: Tracing | None = None,
    ) -> None:
        qstash, public_url = settings.qstash, settings.web.public_url
        known: dict[str, Task[Any, Any]] = {PROBE: probe, **by_name(tasks)}
        signing_keys = [
            key for key in (qstash.current_signing_key, qstash.next_signing_key) if key is not None
        ]
        self.carrier: QStash | None = None
        self.deliveries: Deliveries | None = None
        if settings.jobs.carrier == "qstash" and qstash.token is not None and public_url is not None:
            self.carrier = QStash(
                store, keys=keys, tasks=known, token=qstash.token, public_url=public_url, url=qstash.url
            )
        self.schedules = QStashSchedules(
            store,
            keys=keys,
            tasks=known,
            jobs=Jobs(
                store,
                keys=keys,
                tasks=known.values(),
                max_payload=settings.jobs.max_payload,
                carrier=self.carrier,
            ),
            token=qstash.token,
            public_url=public_url or "",
            url=qstash.url,
            active=self.carrier is not None,
        )
        if signing_keys and public_url is not None:
            self.deliveries = Deliveries(
                store,
                keys=keys,
                tasks=known,
                signing_keys=signing_keys,
                public_url=public_url,
                lease=settings.jobs.lease,
                grace=settings.web.grace / 2,
                concurrency=settings.jobs.concurrency,
                tracing=tracing,
                ticks=ScheduleTicks(
                    store,
                    keys=keys,
                    tasks=known.values(),
                    max_payload=settings.jobs.max_payload,
                    schedules=self.schedules,
                ),
            )

    async def __aenter__(self) -> Self:
        """Begin to look after messages. No round trip."""
        if self.carrier is not None:
            await self.carrier.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let what runs end, then close the connections to QStash."""
        if self.deliveries is not None:
            await self.deliveries.close()
        if self.carrier is not None:
            await self.carrier.close()
        await self.schedules.close()
