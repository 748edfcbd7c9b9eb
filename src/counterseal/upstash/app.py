"""RedisRest: the Redis REST server, an ASGI application.

Mount it below a path by passing requests on with that path appended to `root_path`, as ASGI has it, and never redirect:
the official clients do not follow. Every answer but that to a refused method is JSON or a stream of events.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from counterseal.core.errors import (
    CommandError,
    ReplyTooLarge,
    StoreTimeout,
    StoreUnavailable,
    SubscriberTooSlow,
)
from counterseal.store.base import Store
from counterseal.store.wire import Reply
from counterseal.upstash.access import REFUSED, AccessTokens, bearer
from counterseal.upstash.commands import CommandPolicy
from counterseal.upstash.exchange import BodyFault, Exchange, Receive, Scope, Send
from counterseal.upstash.execution import Execution
from counterseal.upstash.reply import SyncTokens, encode_error, encode_result
from counterseal.upstash.request import (
    Fault,
    path_command,
    path_segments,
    query_items,
    read_command,
    read_pipeline,
)
from counterseal.upstash.stream import Streams

logger = logging.getLogger(__name__)

_SIZE_HELP = "https://upstash.com/docs/redis/troubleshooting/max_request_size_exceeded"
_STREAMS = (b"subscribe", b"psubscribe", b"monitor")


@dataclass(frozen=True, slots=True)
class RestLimits:
    """Bytes and time that one request, or one stream, may take."""

    request_bytes: int = 10 * 2**20
    response_bytes: int = 10 * 2**20
    body_stall: timedelta = timedelta(seconds=30)
    stream_keep_alive: timedelta = timedelta(seconds=15)
    stream_lag_bytes: int = 2**20


class RedisRest:
    """Serves Redis over REST, compatible with Upstash's clients, from one database of `store`.

    `tokens` open it. `admin` runs CONFIG and INFO where the user of `store` may not. `database` is the index behind
    the client's database 0, `reserved` a prefix of channels that are neither delivered nor accepted, and `may_copy`
    says whether the user of `store` may run COPY.
    """

    def __init__(
        self,
        store: Store,
        *,
        tokens: Iterable[str],
        admin: Store | None = None,
        database: int = 0,
        reserved: str = "",
        may_copy: bool = True,
        limits: RestLimits | None = None,
    ) -> None:
        self._access = AccessTokens(tokens)
        self._limits = limits or RestLimits()
        policy = CommandPolicy(database=database, reserved=reserved, may_copy=may_copy)
        self._execution = Execution(store, admin or store, policy)
        self._streams = Streams(
            store,
            policy,
            database=database,
            keep_alive=self._limits.stream_keep_alive.total_seconds(),
            max_lag=self._limits.stream_lag_bytes,
        )
        self._sync = SyncTokens()

    @property
    def stream_count(self) -> int:
        """How many subscriptions are open."""
        return self._streams.count

    def close(self) -> None:
        """End every subscription, so that a server that drains does not wait for them."""
        self._streams.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except Exception:
            logger.exception("a Redis REST request failed for a fault of this server")
            if not exchange.started:
                await exchange.answer(503, encode_error("ERR the server could not handle this request"))

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})

    async def _serve(self, exchange: Exchange) -> None:
        method = exchange.method
        if method == "OPTIONS":
            await exchange.preflight()
            return
        if method not in ("GET", "HEAD", "POST", "PUT"):
            await exchange.refuse_method()
            return
        query = query_items(exchange.query) if exchange.query else []
        if not self._admitted(exchange, query):
            await exchange.answer(401, encode_error(REFUSED))
            return
        try:
            await self._route(exchange, [item for item in query if item[0] != b"_token"])
        except StoreTimeout:
            await self._unavailable(
                exchange, "ERR the database did not answer in time; the command may have run"
            )
        except StoreUnavailable:
            await self._unavailable(exchange, "ERR the database is not available")
        except ReplyTooLarge:
            await exchange.answer(400, encode_error(self._too_large_reply()))
        except SubscriberTooSlow:
            return

    def _admitted(self, exchange: Exchange, query: Sequence[tuple[bytes, bytes | None]]) -> bool:
        token = next((value or b"" for name, value in query if name == b"_token"), None)
        if token is None:
            header = exchange.header(b"authorization")
            token = bearer(header) if header is not None else b""
        return self._access.admits(token)

    async def _unavailable(self, exchange: Exchange, text: str) -> None:
        if not exchange.started:
            await exchange.answer(503, encode_error(text))

    # -- what is asked for ---------------------------------------------------------------------------------------

    async def _route(self, exchange: Exchange, query: Sequence[tuple[bytes, bytes | None]]) -> None:
        segments = path_segments(exchange.path)
        word = segments[0].lower() if segments else b""
        if word in _STREAMS:
            await self._stream(exchange, word, segments[1:])
            return
        body = b""
        if exchange.method in ("POST", "PUT"):
            limits = self._limits
            read = await exchange.body(limits.request_bytes, limits.body_stall.total_seconds())
            if isinstance(read, BodyFault):
                await self._refuse_body(exchange, read)
                return
            body = read
        if word == b"multi-exec" and len(segments) == 1:
            await self._transaction(exchange, body)
            return
        if (fault := _unknown_format(exchange)) is not None:
            await exchange.answer(400, encode_error(fault))
        elif word == b"pipeline" and len(segments) == 1:
            await self._pipeline(exchange, body)
        elif not segments and exchange.method == "HEAD":
            await exchange.answer(200, b"", (b"upstash-sync-token", self._sync.next()))
        else:
            command = path_command(segments, body, query) if segments else read_command(body)
            if isinstance(command, Fault):
                await exchange.answer(400, encode_error(command.text))
                return
            await self._answer(exchange, await self._execution.command(command))

    async def _pipeline(self, exchange: Exchange, body: bytes) -> None:
        rows = read_pipeline(body)
        if isinstance(rows, Fault):
            await exchange.answer(400, encode_error(rows.text))
            return
        await self._answer_many(exchange, await self._execution.pipeline(rows))

    async def _transaction(self, exchange: Exchange, body: bytes) -> None:
        rows = read_pipeline(body)
        replies = rows if isinstance(rows, Fault) else await self._execution.transaction(rows)
        if isinstance(replies, Fault):
            await exchange.answer(400, encode_error(replies.text))
            return
        await self._answer_many(exchange, replies)

    async def _stream(self, exchange: Exchange, word: bytes, names: Sequence[bytes]) -> None:
        if self._streams.closed:
            await exchange.answer(503, encode_error("ERR the server is stopping"))
            return
        if word != b"subscribe":
            fault: Fault | None = Fault(f"ERR /{word.decode()} is not available on this server")
        else:
            token = (b"upstash-sync-token", self._sync.next())
            try:
                fault = await self._streams.subscribe(exchange, names, token)
            except CommandError as refused:
                fault = Fault(str(refused))
        if fault is not None:
            await exchange.answer(400, encode_error(fault.text))

    # -- answers -------------------------------------------------------------------------------------------------

    async def _answer(self, exchange: Exchange, reply: Reply) -> None:
        encoded = self._encode(reply, base64=_wants_base64(exchange), room=self._limits.response_bytes)
        if isinstance(encoded, str):
            await exchange.answer(400, encode_error(encoded))
            return
        await exchange.answer(200, encoded, (b"upstash-sync-token", self._sync.next()))

    async def _answer_many(self, exchange: Exchange, replies: Sequence[Reply]) -> None:
        base64 = _wants_base64(exchange)
        room = self._limits.response_bytes
        items: list[bytes] = []
        for reply in replies:
            encoded = self._encode(reply, base64=base64, room=room)
            item = encode_error(encoded) if isinstance(encoded, str) else encoded
            room -= len(item)
            items.append(item)
        body = b"[%b]" % b",".join(items)
        await exchange.answer(200, body, (b"upstash-sync-token", self._sync.next()))

    def _encode(self, reply: Reply, *, base64: bool, room: int) -> bytes | str:
        """One item of an answer; the text of an error when it is one, can't be written, or finds no room left."""
        if isinstance(reply, CommandError):
            return str(reply)
        try:
            encoded = encode_result(reply, base64=base64)
        except RecursionError:
            return "ERR the reply is nested too deeply for JSON"
        return encoded if len(encoded) <= room else self._too_large_reply()

    def _too_large_reply(self) -> str:
        return f"ERR max response size exceeded. Limit: {self._limits.response_bytes} bytes"

    async def _refuse_body(self, exchange: Exchange, fault: BodyFault) -> None:
        limit = self._limits.request_bytes
        if fault is BodyFault.TOO_LARGE:
            text = (
                f"ERR max request size exceeded. Limit: {limit} bytes, Actual: {exchange.body_bytes} bytes. "
                f"See {_SIZE_HELP} for details"
            )
            await exchange.answer_early(400, encode_error(text), dropping=limit)
        elif fault is BodyFault.STALLED:
            text = "ERR the request's body did not arrive in time"
            await exchange.answer_early(408, encode_error(text), dropping=0)


def _wants_base64(exchange: Exchange) -> bool:
    return exchange.header(b"upstash-encoding") == b"base64"


def _unknown_format(exchange: Exchange) -> str | None:
    named = exchange.header(b"upstash-response-format")
    if named is None or named == b"json":
        return None
    if named == b"resp2":
        return "ERR Upstash-Response-Format: resp2 is not available on this server; json is"
    return "ERR Upstash-Response-Format: expected json or resp2"
