"""ClusterStore: a Valkey or Redis Cluster behind the `Store` interface.

Each primary has one multiplexed connection of its own. A command goes to the node of its first key; a redirection
(`MOVED`, `ASK`) is followed, because the command did not run where it was sent. Nothing else is sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

from counterseal.core.background import end, wait_for_event
from counterseal.core.clock import Clock
from counterseal.core.errors import (
    CommandError,
    CountersealError,
    ScriptMissing,
    StoreUnavailable,
    TransactionAborted,
)
from counterseal.store.base import ServerInfo, Store, Subscription
from counterseal.store.connection import executed
from counterseal.store.feed import Feed
from counterseal.store.guard import check, check_queued
from counterseal.store.link import Link, LinkOptions
from counterseal.store.replication import Replication
from counterseal.store.route import FixedRoute
from counterseal.store.scripts import Script
from counterseal.store.slots import slot_of
from counterseal.store.target import RedisAddress, Target
from counterseal.store.topology import Place, Topology
from counterseal.store.valkey import read_first_time, read_time
from counterseal.store.wire import NOT_NOW, Argument, Command, Reply, in_time, raised

MAX_REDIRECTIONS = 5
_REDIRECTIONS = ("MOVED", "ASK")
_LOOK_EVERY = 1.0


class ClusterStore(Store):
    """A `Store` over every primary of a Cluster. A command is one round trip, one more for each redirection."""

    def __init__(
        self, address: RedisAddress, options: LinkOptions | None = None, *, clock: Clock | None = None
    ) -> None:
        super().__init__(clock=clock)
        self.kind = "cluster"
        self._address = address
        self._options = options or LinkOptions()
        self._topology = Topology(address)
        self._places: list[Place | None] = []
        self._primaries: list[Place] = []
        self._links: dict[Place, Link] = {}
        self._opening: dict[Place, asyncio.Task[Link]] = {}
        self._open = False
        self._feed = Feed(_AnyPrimary(self))
        self._stale = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._replications: dict[Link, Replication] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    @property
    def server(self) -> ServerInfo:
        return next(
            (link.server for link in self._links.values() if link.server.mode), ServerInfo("", (), "cluster")
        )

    @property
    def description(self) -> str:
        nodes = ",".join(f"{node.host}:{node.port}" for node in self._address.nodes)
        return f"redis+cluster://{nodes}"

    @property
    def available(self) -> bool:
        """True while every primary would be sent the next call."""
        return bool(self._links) and all(link.available for link in self._links.values())

    async def _connect(self) -> None:
        self._open = True
        self._learn(await self._topology.read())
        await self._link_some()
        await read_first_time(self.clock, self._time)
        self._feed.open()
        self._background.keep("follow the topology", self._follow)

    async def _disconnect(self) -> None:
        self._open = False
        await end((*self._opening.values(), *self._retiring))
        await self._feed.close()
        replications, self._replications = self._replications, {}
        await asyncio.gather(*(replication.close() for replication in replications.values()))
        links, self._links = self._links, {}
        await asyncio.gather(*(link.close() for link in links.values()))
        await self._topology.close()

    # -- calls ---------------------------------------------------------------------------------------------------

    async def command(self, *arguments: Argument) -> Reply:
        check(arguments)
        return await self._run(arguments, await self._serving(slot_of(arguments)))

    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        for command in commands:
            check(command)
        groups: dict[Link, list[int]] = {}
        for position, command in enumerate(commands):
            groups.setdefault(await self._serving(slot_of(command)), []).append(position)
        replies: list[Reply] = [None] * len(commands)

        async def run(link: Link, positions: list[int]) -> None:
            try:
                answers = await link.send_many([commands[position] for position in positions])
            except StoreUnavailable:
                self._stale.set()
                raise
            for position, answer in zip(positions, answers, strict=True):
                replies[position] = answer

        await asyncio.gather(*(run(link, positions) for link, positions in groups.items()))
        for link, positions in groups.items():
            for position in positions:
                reply = replies[position]
                if not isinstance(reply, CommandError):
                    continue
                if reply.kind in NOT_NOW:
                    self._stale.set()
                elif reply.kind in _REDIRECTIONS:
                    replies[position] = await self._redirect(commands[position], reply, link)
        return replies

    async def transaction(self, commands: Sequence[Command]) -> list[Reply]:
        for command in commands:
            check_queued(command)
        slots = {slot for command in commands if (slot := slot_of(command)) is not None}
        if len(slots) > 1:
            raise TransactionAborted("CROSSSLOT Keys in request don't hash to the same slot")
        link = await self._serving(next(iter(slots), None))
        asking = False
        for _ in range(MAX_REDIRECTIONS):
            try:
                if not asking:
                    return await link.send_transaction(commands)
                return executed((await link.send_many([("ASKING",), ("MULTI",), *commands, ("EXEC",)]))[1:])
            except TransactionAborted as aborted:
                cause = CommandError(str(aborted))
                if cause.kind not in _REDIRECTIONS:
                    raise
                link, asking = await self._redirected(cause, link)
            except StoreUnavailable:
                self._stale.set()
                raise
        raise StoreUnavailable("the Cluster redirects in a circle")

    async def run(self, script: Script, **arguments: Argument | Sequence[Argument]) -> Reply:
        count, bound = script.bind(arguments)
        try:
            return await self.command("EVALSHA", script.sha, count, *bound)
        except ScriptMissing:
            return await self.command("EVAL", script.source, count, *bound)

    async def block(self, *arguments: Argument, timeout: timedelta) -> Reply:
        link = await self._serving(slot_of(arguments))
        asking = False
        for _ in range(MAX_REDIRECTIONS):
            connection = await link.dedicated(timeout)
            try:
                if asking:
                    await connection.send(("ASKING",))
                return await connection.send(arguments)
            except CommandError as error:
                link, asking = await self._redirected(error, link)
            except StoreUnavailable:
                self._stale.set()
                raise
            finally:
                connection.abort("the blocking call is over")
        raise StoreUnavailable("the Cluster redirects in a circle")

    async def replicated(self, key: str, *, witnesses: Sequence[str], replicas: int) -> bool:
        link = await self._serving(slot_of(("GET", key)))
        replication = self._replications.get(link)
        if replication is None:
            replication = self._replications[link] = Replication(link)
        try:
            return await replication.confirmed(key, witnesses=witnesses, replicas=replicas)
        except StoreUnavailable:
            self._stale.set()
            raise

    def subscribe(
        self, *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        return self._feed.subscribe(channels, limit=limit, on_loss=on_loss)

    def track(
        self, *prefixes: str, on_change: Callable[[str | None], None], on_loss: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        raise CommandError(
            "ERR each node of a Cluster tells of its own keys only, which is not followed here"
        )

    async def any_target(self) -> Target:
        """A primary that answers, else any primary."""
        return self._target(self._any_place())

    async def _redirect(self, command: Command, error: CommandError, link: Link) -> Reply:
        """What a command of a pipeline answers where it was redirected to; its error stays in its place."""
        elsewhere, asking = await self._redirected(error, link)
        try:
            return await self._run(command, elsewhere, asking=asking)
        except CommandError as failed:
            return failed

    # -- nodes ---------------------------------------------------------------------------------------------------

    async def _run(self, command: Command, link: Link, *, asking: bool = False) -> Reply:
        """Run one command on this node, or where it is redirected to."""
        for _ in range(MAX_REDIRECTIONS):
            try:
                if not asking:
                    return await link.send(tuple(command))
                return raised((await link.send_many([("ASKING",), command]))[1])
            except CommandError as error:
                link, asking = await self._redirected(error, link)
            except StoreUnavailable:
                self._stale.set()
                raise
        raise StoreUnavailable("the Cluster redirects in a circle")

    def _any_place(self) -> Place:
        """The first primary that would be sent the next call, else any."""
        known = self._primaries
        if not known:
            self._stale.set()
            raise StoreUnavailable("no node of the Cluster is known")
        return next(
            (place for place in known if (link := self._links.get(place)) is not None and link.available),
            known[0],
        )

    def _learn(self, places: list[Place | None]) -> None:
        self._places = places
        self._primaries = sorted({place for place in places if place is not None})

    async def _serving(self, slot: int | None) -> Link:
        """The link to the node of a slot, of any node for None."""
        if not self._open:
            raise StoreUnavailable("the store is not open")
        place = self._any_place() if slot is None else self._places[slot]
        if place is None:
            self._stale.set()
            raise StoreUnavailable("nobody in the Cluster serves this key")
        link = self._links.get(place)
        return link if link is not None else await self._link(place)

    async def _link(self, place: Place) -> Link:
        """The link to a node, made when there is none. Who asks at the same time waits for the same attempt."""
        link = self._links.get(place)
        if link is not None:
            return link
        if not self._open:
            raise StoreUnavailable("the store is not open")
        opening = self._opening.get(place)
        if opening is None:
            opening = asyncio.create_task(self._open_link(place), name="counterseal: open a node")
            self._opening[place] = opening
            opening.add_done_callback(lambda task: self._opened(place, task))
        await asyncio.wait({opening})
        if opening.cancelled():
            raise StoreUnavailable("the store is closed")
        return opening.result()

    async def _open_link(self, place: Place) -> Link:
        link = Link(FixedRoute(self._target(place)), self._options, counts=self.counts, needs_primary=False)
        await link.open()
        self._links[place] = link
        return link

    def _opened(self, place: Place, task: asyncio.Task[Link]) -> None:
        del self._opening[place]
        if not task.cancelled():
            task.exception()  # seen, even when nobody waits for it any more

    async def _link_all(self) -> list[BaseException]:
        """Have a link to every primary. Returns the failures, when all attempts have ended."""
        outcomes = await asyncio.gather(
            *(self._link(place) for place in self._primaries), return_exceptions=True
        )
        return [outcome for outcome in outcomes if isinstance(outcome, BaseException)]

    async def _link_some(self) -> None:
        """Have a link to every primary that can be reached, at least one. What is misconfigured is raised."""
        failures = await self._link_all()
        for failure in failures:
            if len(failures) == len(self._primaries) or not isinstance(failure, StoreUnavailable):
                raise failure
        if failures:
            self._stale.set()

    def _target(self, place: Place) -> Target:
        host, port = place
        return replace(self._address.template, host=host, port=port)

    async def _redirected(self, error: CommandError, link: Link) -> tuple[Link, bool]:
        """Where a command goes that `link` refused, and whether it has to ask there. Raises what is no redirection."""
        if error.kind not in _REDIRECTIONS:
            if error.kind in NOT_NOW:
                self._stale.set()
            raise in_time(error)
        _, slot, where = str(error).split(" ")[:3]
        host, _, port = where.rpartition(":")
        # A node that does not know its own host means the one that the caller reached it by.
        place = (host.strip("[]") or (await link.route.resolve()).host, int(port))
        if error.kind == "MOVED":
            self._places[int(slot)] = place
            if place not in self._primaries:
                self._primaries = sorted([*self._primaries, place])
            self._stale.set()
        return await self._link(place), error.kind == "ASK"

    async def _follow(self) -> None:
        """Read the topology again when something shows that it changed, at most ten times a second."""
        while self._open:
            if not await wait_for_event(self._stale, _LOOK_EVERY) and self.available:
                continue
            await asyncio.sleep(0.1)
            self._stale.clear()
            try:
                self._learn(await self._topology.read())
                for place in set(self._links) - set(self._primaries):
                    self._retire(self._links.pop(place))
                if await self._link_all():
                    self._stale.set()
            except CountersealError:
                self._stale.set()

    def _retire(self, link: Link) -> None:
        retiring = asyncio.create_task(self._leave(link), name="counterseal: leave a node")
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def _leave(self, link: Link) -> None:
        replication = self._replications.pop(link, None)
        if replication is not None:
            await replication.close()
        await link.retire()

    async def _time(self) -> tuple[int, int]:
        return read_time(await self.command("TIME"))


class _AnyPrimary:
    """Finds a primary for the pub/sub connection: a Cluster carries messages between its nodes."""

    def __init__(self, store: ClusterStore) -> None:
        self._store = store

    @property
    def description(self) -> str:
        return self._store.description

    async def resolve(self) -> Target:
        return await self._store.any_target()

    async def close(self) -> None:
        return
