"""Replicas: with `COUNTERSEAL_MIN_REPLICAS` a job is accepted once replicas have it, so a failover loses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import SecretStr

from counterseal import Counterseal, Settings
from counterseal.core.errors import ConfigurationError, NotReplicated, StoreError, StoreUnavailable
from counterseal.jobs.context import JobContext
from counterseal.jobs.job import State
from counterseal.jobs.service import Enqueued, Jobs
from counterseal.jobs.statistics import JobStats
from counterseal.jobs.task import Call, task
from counterseal.jobs.worker import Worker
from counterseal.store.base import Store
from counterseal.store.breaker import BreakerPolicy
from counterseal.store.cluster import ClusterStore
from counterseal.store.keys import Keys
from counterseal.store.link import LinkOptions
from counterseal.store.rest.store import RestStore
from counterseal.store.route import FixedRoute, SentinelRoute
from counterseal.store.target import Target, parse_redis_url
from counterseal.store.valkey import NativeStore
from support.cluster import Cluster
from support.sentinel import SentinelGroup
from support.servers import Server
from support.waiting import eventually

KEYS = Keys()
OPTIONS = LinkOptions(
    connect_timeout=timedelta(seconds=1),
    command_timeout=timedelta(milliseconds=300),
    breaker=BreakerPolicy(first_wait=timedelta(milliseconds=50), longest_wait=timedelta(milliseconds=200)),
)
LEASE = timedelta(milliseconds=1500)


@task(name="count", retry=3, keep=timedelta(hours=1))
async def count(context: JobContext, number: int) -> int:
    return number


def sentinel_store(group: SentinelGroup) -> Store:
    return NativeStore(SentinelRoute(parse_redis_url(group.url)), OPTIONS, kind="sentinel")


def jobs_on(store: Store) -> Jobs:
    return Jobs(store, keys=KEYS, tasks=[count], min_replicas=1)


class Producer:
    """Makes jobs one after another, by ids of its own, and notes which were accepted and which were not."""

    def __init__(self, jobs: Jobs) -> None:
        self.accepted: list[str] = []
        self.refused = 0
        self._jobs = jobs
        self._number = 0

    async def make(self) -> None:
        self._number += 1
        try:
            made = await self._jobs.enqueue(count.using(id=f"n{self._number}"), self._number)
        except StoreError:
            self.refused += 1
            await asyncio.sleep(0.002)  # as somebody who tries again would
        else:
            self.accepted.append(made.id)


@asynccontextmanager
async def producing(jobs: Jobs, many: int = 8) -> AsyncIterator[Producer]:
    producer = Producer(jobs)
    stop = asyncio.Event()

    async def produce() -> None:
        while not stop.is_set():
            await producer.make()

    async with asyncio.TaskGroup() as group:
        for _ in range(many):
            group.create_task(produce())
        try:
            yield producer
        finally:
            stop.set()


async def all_ended(jobs: Jobs, identifiers: list[str]) -> bool:
    states: list[State | None] = []
    try:
        for first in range(0, len(identifiers), 200):
            found = await asyncio.gather(*map(jobs.get, identifiers[first : first + 200]))
            states += [job and job.state for job in found]
    except StoreUnavailable:
        return False
    assert states == [State.COMPLETED] * len(identifiers), [s for s in states if s != State.COMPLETED][:5]
    return True


async def stats_of(jobs: Jobs) -> JobStats | None:
    try:
        return (await jobs.stats())["count"]
    except StoreUnavailable:
        return None


@pytest.fixture
def pair(servers: Callable[..., Server]) -> tuple[Server, Server]:
    """A primary and its replica, nobody watching them."""
    primary, replica = servers(), servers()
    replica.execute("REPLICAOF", "127.0.0.1", primary.port)
    return primary, replica


async def in_step(replica: Server) -> None:
    await eventually(lambda: replica.info("replication")["master_link_status"] == "up")


def fixed(server: Server, timeout: timedelta = timedelta(seconds=5)) -> NativeStore:
    options = replace(OPTIONS, connect_timeout=timedelta(seconds=5), command_timeout=timeout)
    return NativeStore(FixedRoute(parse_redis_url(server.url).template), options)


async def test_a_job_is_accepted_when_a_replica_has_it(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    await in_step(replica)
    async with fixed(primary) as store:
        made = await jobs_on(store).enqueue(count, 1)
        record = f"{KEYS.jobs_prefix('default')}:job:{made.id.partition('.')[2]}"
        assert replica.execute("EXISTS", record) == 1


async def test_a_job_that_a_stalled_replica_does_not_have_is_refused_though_it_was_written(
    pair: tuple[Server, Server],
) -> None:
    primary, replica = pair
    await in_step(replica)
    async with fixed(primary, timedelta(seconds=1)) as store:
        jobs = jobs_on(store)
        replica.freeze()
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotReplicated) as refused:
            await jobs.enqueue(count.using(id="one"), 1)
        assert asyncio.get_running_loop().time() - began < 10
        assert isinstance(refused.value, StoreUnavailable)
        assert await jobs.get("default.one") is not None
        replica.thaw()
        again = await eventually(lambda: accepted(jobs))
        assert (again.id, again.created) == ("default.one", False)
        many = [count.using(id=f"n{number}").call(number) for number in range(600)]
        assert len(await eventually(lambda: all_accepted(jobs, many))) == 600


async def accepted(jobs: Jobs) -> Enqueued | None:
    try:
        return await jobs.enqueue(count.using(id="one"), 1)
    except StoreUnavailable:
        return None


async def all_accepted(jobs: Jobs, calls: list[Call[int]]) -> list[Enqueued]:
    try:
        return await jobs.enqueue_many(calls)
    except StoreUnavailable:
        return []


async def test_many_who_wait_share_a_wait(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    await in_step(replica)
    async with fixed(primary) as store:
        jobs = jobs_on(store)
        await jobs.enqueue(count, 0)
        before = waits(primary)

        async def one(number: int) -> None:
            await jobs.enqueue(count.using(queue=f"q{number % 7}"), number)

        await asyncio.gather(*(one(number) for number in range(200)))
        assert 0 < waits(primary) - before <= 10


def waits(server: Server) -> int:
    return int(
        server.info("commandstats").get("cmdstat_wait", "calls=0,").split(",")[0].removeprefix("calls=")
    )


async def test_a_server_that_lost_the_job_does_not_confirm_it(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    await in_step(replica)
    async with fixed(primary, timedelta(seconds=1)) as store:
        key, job = f"{KEYS.jobs_prefix('default')}:mark", f"{KEYS.jobs_prefix('default')}:job:none"
        await eventually(lambda: store.replicated(key, witnesses=[], replicas=1))
        assert not await store.replicated(key, witnesses=[job], replicas=1)
        assert not await store.replicated(key, witnesses=[], replicas=2)


class Leading(FixedRoute):
    """A route to one server, then to another, as when a sentinel names a new primary."""

    def __init__(self, first: Server, second: Server) -> None:
        super().__init__(parse_redis_url(first.url).template)
        self._second = parse_redis_url(second.url).template
        self.moved = False

    async def resolve(self) -> Target:
        return self._second if self.moved else await super().resolve()


async def test_a_former_primary_that_hangs_confirms_nothing_and_keeps_the_next_one_from_nothing(
    servers: Callable[..., Server], pair: tuple[Server, Server]
) -> None:
    primary, replica = pair
    await in_step(replica)
    former = servers()
    route = Leading(former, primary)
    options = replace(OPTIONS, connect_timeout=timedelta(seconds=5), command_timeout=timedelta(seconds=1))
    async with NativeStore(route, options) as store:
        jobs = jobs_on(store)
        with pytest.raises(NotReplicated):  # it has no replica
            await jobs.enqueue(count, 1)
        former.freeze()  # its connections stay
        route.moved = True
        store.link.renew("another is the primary")
        await eventually(lambda: accepted(jobs), within=30)


async def test_a_failover_by_sentinel_loses_no_accepted_job_and_refuses_those_that_a_stalled_replica_lacks(
    sentinels: SentinelGroup,
) -> None:
    async with sentinel_store(sentinels) as store:
        jobs = jobs_on(store)
        async with Worker(store, keys=KEYS, tasks=[count], lease=LEASE, poll=timedelta(milliseconds=200)):
            async with producing(jobs) as producer:
                await eventually(lambda: len(producer.accepted) > 300)
                sentinels.replica.freeze()
                before = producer.refused
                await eventually(lambda: producer.refused >= before + 8)  # everybody was refused once
                stalled = len(producer.accepted)
                sentinels.replica.thaw()
                await eventually(lambda: len(producer.accepted) > stalled + 100)
                former = sentinels.kill_primary()
                await sentinels.wait_for_new_primary(former)
                assert producer.accepted
                await asyncio.to_thread(sentinels.heal)  # now there is a replica again
                taken = len(producer.accepted)
                await eventually(lambda: len(producer.accepted) > taken + 100)
            await eventually(lambda: all_ended(jobs, producer.accepted), within=20)
        stats = await eventually(lambda: stats_of(jobs))
        assert stats.completed >= len(producer.accepted)
        assert stats.failed == stats.cancelled == 0
        assert producer.refused > 0


async def test_a_failover_in_a_cluster_loses_no_accepted_job(cluster: Cluster) -> None:
    async with ClusterStore(parse_redis_url(cluster.url), OPTIONS) as store:
        jobs = jobs_on(store)
        slot = cluster.slot_of(KEYS.jobs_queue("default"))
        async with Worker(store, keys=KEYS, tasks=[count], lease=LEASE, poll=timedelta(milliseconds=200)):
            async with producing(jobs) as producer:
                await eventually(lambda: len(producer.accepted) > 300)
                replica = cluster.replica_of(cluster.owner(slot))
                replica.freeze()
                before = producer.refused
                await eventually(lambda: producer.refused >= before + 8)
                stalled = len(producer.accepted)
                replica.thaw()
                await eventually(lambda: len(producer.accepted) > stalled + 100)
                await cluster.kill_primary(slot)
                await asyncio.to_thread(cluster.heal)
                taken = len(producer.accepted)
                await eventually(lambda: len(producer.accepted) > taken + 100)
            await eventually(lambda: all_ended(jobs, producer.accepted), within=20)
        stats = await eventually(lambda: stats_of(jobs))
        assert stats.completed >= len(producer.accepted)
        assert stats.failed == stats.cancelled == 0


def test_replicas_are_not_asked_for_where_nobody_can_tell_of_them() -> None:
    store = RestStore("https://example.com", SecretStr("token"))
    with pytest.raises(ConfigurationError, match="COUNTERSEAL_MIN_REPLICAS"):
        Jobs(store, keys=KEYS, min_replicas=1)
    with pytest.raises(ConfigurationError, match="COUNTERSEAL_MIN_REPLICAS"):
        Counterseal(Settings.load({"COUNTERSEAL_MIN_REPLICAS": "1"}))
