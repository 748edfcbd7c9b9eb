"""RestStore: Upstash Redis, or anything that speaks its REST protocol.

Commands that concurrent tasks issue in one turn of the event loop leave as one `/pipeline` request. Each request has an
answer of its own, so a cancelled caller never moves a reply. Requests that are under way at once may be served in any
order: in order is only what is awaited first, or stands in one `pipeline` or `transaction`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from pydantic import SecretStr

from counterseal.core.clock import Clock
from counterseal.core.errors import (
    CommandError,
    ConfigurationError,
    ScriptMissing,
    StoreUnauthorized,
    TransactionAborted,
)
from counterseal.store.base import ServerInfo, Store, Subscription
from counterseal.store.breaker import Breaker, BreakerPolicy
from counterseal.store.guard import PLAIN, check, check_queued
from counterseal.store.rest.client import RestBounds, RestClient
from counterseal.store.rest.feed import RestFeed
from counterseal.store.rest.queue import MAX_COMMANDS, MAX_REQUEST_BYTES, RequestQueue
from counterseal.store.rest.wire import decode_error, decode_item, decode_items, encode_row, path_form
from counterseal.store.scripts import Script
from counterseal.store.valkey import read_time
from counterseal.store.wire import Argument, Command, Reply, aborted, error_reply, raised


class RestStore(Store):
    """A `Store` over HTTPS. A call costs one request, shared with whatever else leaves in its turn of the loop.

    `open` raises `ConfigurationError` when the service refuses the token; later that is a `StoreError`. A command with
    arguments that are not UTF-8 makes a request of its own, in which only one of them may be long; in a transaction
    there can be none.
    """

    kind = "rest"

    def __init__(
        self,
        url: str,
        token: SecretStr,
        *,
        bounds: RestBounds | None = None,
        breaker: BreakerPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(clock=clock)
        bounds = bounds or RestBounds()
        self.breaker = Breaker(breaker)
        self._client = RestClient(url, token, bounds, self.counts)
        self._queue = RequestQueue(self._client, bounds, breaker=self.breaker, counts=self.counts)
        self._feed = RestFeed(self._client, bounds, counts=self.counts)
        self._server = ServerInfo("upstash", (), "standalone")

    @property
    def server(self) -> ServerInfo:
        return self._server

    @property
    def description(self) -> str:
        return self._client.description

    @property
    def available(self) -> bool:
        return self._queue.available

    async def _connect(self) -> None:
        self.breaker.close()
        self._client.open()
        self._queue.open()
        try:
            self._server = await self._read_info()
            # Only now, on a connection that stands: what it took to make it would be taken for half the way.
            await self.clock.read(self._time)
        except StoreUnauthorized as error:
            raise ConfigurationError(
                "UPSTASH_REDIS_REST_TOKEN: expected a token that the service accepts; it refused this one"
            ) from error
        self._background.keep("probe", lambda: self.breaker.watch(self._probe))

    async def _disconnect(self) -> None:
        await self._feed.close()
        await self._queue.close()
        await self._client.close()

    def command(self, *arguments: Argument) -> Awaitable[Reply]:
        if arguments[0] not in PLAIN:
            check(arguments)
        row = encode_row(arguments)
        return self._binary(arguments) if row is None else self._queue.issue([row], single=True)

    def pipeline(self, commands: Sequence[Command]) -> Awaitable[list[Reply]]:
        for command in commands:
            check(command)
        rows = [encode_row(command) for command in commands]
        texts = [row for row in rows if row is not None]
        if 0 < len(texts) == len(rows) <= MAX_COMMANDS and sum(map(len, texts)) <= MAX_REQUEST_BYTES:
            return self._queue.issue(texts, single=False)
        return self._rows(commands, rows)

    async def transaction(self, commands: Sequence[Command]) -> list[Reply]:
        if not commands:
            return []
        rows: list[bytes] = []
        for command in commands:
            check_queued(command)
            row = encode_row(command)
            if row is None:
                raise TransactionAborted("ERR over REST a transaction can't carry what is not UTF-8 text")
            rows.append(row)
        status, body = await self._queue.post("/multi-exec", b"[%b]" % b",".join(rows), commands=len(rows))
        if status != 200:
            raise aborted(error_reply(decode_error(body) or ""))
        return decode_items(body, len(rows))

    async def run(self, script: Script, **arguments: Argument | Sequence[Argument]) -> Reply:
        count, bound = script.bind(arguments)
        by_sum = ("EVALSHA", script.sha, count, *bound)
        try:
            return await self.command(*by_sum)
        except ScriptMissing:
            whole = ("EVAL", script.source, count, *bound)
            if encode_row(whole) is not None:
                return await self.command(*whole)
            # A script is too long for the path, which binary arguments have to take.
            await self.command("SCRIPT", "LOAD", script.source)
            return await self.command(*by_sum)

    async def block(self, *arguments: Argument, timeout: timedelta) -> Reply:
        raise CommandError(f"ERR {arguments[0]!s} waits on the server, which REST can't do")

    async def replicated(self, key: str, *, witnesses: Sequence[str], replicas: int) -> bool:
        raise CommandError("ERR WAIT waits on the server, which REST can't do")

    def subscribe(
        self, *channels: str, limit: int = 1000, on_loss: Callable[[], None] | None = None
    ) -> Subscription:
        return self._feed.subscribe(channels, limit=limit, on_loss=on_loss)

    def track(
        self, *prefixes: str, on_change: Callable[[str | None], None], on_loss: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        raise CommandError(
            "ERR the server tells a client of changed keys on a connection, which REST has not"
        )

    async def _rows(self, commands: Sequence[Command], rows: Sequence[bytes | None]) -> list[Reply]:
        """Send rows in slices, one after another; a command that JSON can't carry makes a request of its own."""
        replies: list[Reply] = []
        together: list[bytes] = []
        size = 0
        for command, row in zip(commands, rows, strict=True):
            full = row is None or len(together) >= MAX_COMMANDS or size + len(row) > MAX_REQUEST_BYTES
            if together and full:
                replies += await self._queue.issue(together, single=False)
                together, size = [], 0
            if row is not None:
                together.append(row)
                size += len(row)
                continue
            try:
                replies.append(await self._binary(command))
            except CommandError as error:
                replies.append(error)
        if together:
            replies += await self._queue.issue(together, single=False)
        return replies

    async def _binary(self, command: Command) -> Reply:
        target, body = path_form(command)
        _, answer = await self._queue.post(target, body, commands=1)
        return raised(decode_item(answer))

    async def _time(self) -> tuple[int, int]:
        return read_time(await self.command("TIME"))

    async def _probe(self) -> None:
        await self._client.post("/", b'["PING"]', answered=frozenset((200,)))

    async def _read_info(self) -> ServerInfo:
        try:
            return _understand(await self.command("INFO", "server"))
        except CommandError:
            return _understand(None)


def _understand(info: Reply) -> ServerInfo:
    """What INFO says of the server; Upstash, where it says nothing."""
    lines = info.decode("utf-8", "replace").splitlines() if isinstance(info, bytes) else []
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    for product in ("upstash", "valkey", "redis"):
        if text := said.get(f"{product}_version"):
            version = tuple(int(part) for part in text.split(".") if part.isdecimal())
            return ServerInfo(product, version, "standalone")
    return ServerInfo("upstash", (), "standalone")
