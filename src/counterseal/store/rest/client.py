"""RestClient: requests to a Redis REST service over HTTP/1.1, bounded in time and bytes. Nothing is sent twice."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import httpx
from pydantic import SecretStr

from counterseal.core.errors import (
    ReplyTooLarge,
    StoreError,
    StoreTimeout,
    StoreUnauthorized,
    StoreUnavailable,
)
from counterseal.store.base import StoreCounts
from counterseal.store.rest.wire import decode_error

TIMEOUT = timedelta(seconds=2)

_SYNC_TOKEN = "upstash-sync-token"  # noqa: S105 - the name of a header
_LOST = "the connection to the Redis REST service was lost"
_PUNCTUAL = 0.005
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *([(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)] if hasattr(socket, "TCP_KEEPIDLE") else []),
    *([(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)] if hasattr(socket, "TCP_KEEPINTVL") else []),
]


@dataclass(frozen=True, slots=True)
class RestBounds:
    """What a REST store may take. `max_requests` is how many are under way at once."""

    timeout: timedelta = TIMEOUT
    max_reply_bytes: int = 64 * 2**20
    max_inflight_bytes: int = 64 * 2**20
    max_requests: int = 32


class RestClient:
    """Speaks to one service. `open` and `close` it; no request is made by either."""

    def __init__(self, url: str, token: SecretStr, bounds: RestBounds, counts: StoreCounts) -> None:
        self._url = httpx.URL(url)
        self._base = self._url.raw_path.rstrip(b"/")
        self._token = token
        self._bounds = bounds
        self._counts = counts
        self._headers = [
            ("authorization", f"Bearer {token.get_secret_value()}"),
            ("upstash-encoding", "base64"),
            ("accept-encoding", "identity"),
            ("user-agent", "counterseal"),
        ]
        self._sync_token = ""
        self._client: httpx.AsyncClient | None = None

    @property
    def description(self) -> str:
        """Where the service is, for people."""
        path = self._base.decode()
        host = self._url.netloc.decode().rpartition("@")[2]
        return f"{self._url.scheme}://{host}{path}"

    def open(self) -> None:
        """Make the pool of connections; none is connected yet."""
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._bounds.max_requests)
            limits.keepalive_expiry = 30.0
            transport = httpx.AsyncHTTPTransport(limits=limits, socket_options=_KEEP_ALIVE)
            self._client = httpx.AsyncClient(transport=transport, timeout=None, follow_redirects=False)  # noqa: S113 - `post` bounds the whole request

    async def close(self) -> None:
        """Close every connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def post(self, target: str, body: bytes, *, answered: frozenset[int]) -> tuple[int, bytes]:
        """Post to a path below the base URL: the status, one of `answered`, and the body.

        Raises `StoreUnauthorized`, `StoreTimeout`, `ReplyTooLarge`, and `StoreUnavailable` for any other outcome.
        """
        self._counts.batches += 1
        self._counts.bytes_out += len(body)
        try:
            async with (
                patience(self._bounds.timeout.total_seconds()),
                self._response(target, body, []) as response,
            ):
                received = await self._read(response)
        except TimeoutError as error:
            self._counts.timeouts += 1
            raise self._late() from error
        self._check(response.status_code, received, answered)
        self._sync_token = response.headers.get(_SYNC_TOKEN, self._sync_token)
        return response.status_code, received

    @asynccontextmanager
    async def stream(self, target: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Post for a stream of events: the pieces of its body, for as long as it lasts.

        It has to begin within the time-out. Raises as `post` does, and `StoreError` for a subscription that is refused.
        """
        headers = [("accept", "text/event-stream")]
        async with self._response(target, b"", headers, begin_in_time=True) as response:
            if response.status_code != 200:
                received = await self._read(response)
                self._check(response.status_code, received, frozenset((400,)))
                raise StoreError(decode_error(received) or "the Redis REST service refused the subscription")
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise StoreUnavailable("the Redis REST service sent no stream of events")
            yield response.aiter_raw()

    @asynccontextmanager
    async def _response(
        self, target: str, body: bytes, headers: list[tuple[str, str]], *, begin_in_time: bool = False
    ) -> AsyncGenerator[httpx.Response]:
        if self._client is None:
            raise StoreUnavailable("the store is not open")
        request = httpx.Request(
            "POST",
            self._url.copy_with(raw_path=self._base + target.encode()),
            headers=[*self._headers, (_SYNC_TOKEN, self._sync_token), *headers],
            content=body,
        )
        try:
            async with patience(self._bounds.timeout.total_seconds() if begin_in_time else None):
                response = await self._client.send(request, stream=True)
        except TimeoutError as error:
            raise self._late() from error
        except httpx.ConnectError as error:
            raise StoreUnavailable("the Redis REST service can't be reached") from error
        except httpx.HTTPError as error:
            raise StoreUnavailable(_LOST) from error
        try:
            yield response
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise StoreUnavailable(_LOST) from error
        finally:
            await response.aclose()

    def _late(self) -> StoreTimeout:
        limit = round(self._bounds.timeout.total_seconds() * 1000)
        return StoreTimeout(f"the Redis REST service did not answer within {limit} ms")

    async def _read(self, response: httpx.Response) -> bytes:
        limit = self._bounds.max_reply_bytes
        announced = response.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise ReplyTooLarge(f"the reply is larger than {limit} bytes")
        pieces: list[bytes] = []
        size = 0
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > limit:
                raise ReplyTooLarge(f"the reply is larger than {limit} bytes")
            pieces.append(piece)
        self._counts.bytes_in += size
        return b"".join(pieces)

    def _check(self, status: int, body: bytes, answered: frozenset[int]) -> None:
        if status == 401:
            raise StoreUnauthorized("the Redis REST service refused the token")
        if status not in answered or (status != 200 and decode_error(body) is None):
            raise StoreUnavailable(f"the Redis REST service answered with status {status}")


@asynccontextmanager
async def patience(seconds: float | None) -> AsyncGenerator[None]:
    """`asyncio.timeout`, except that time in which this loop itself stood still is not held against the service."""
    if seconds is None:
        yield
        return
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    async with asyncio.timeout(None) as scope:

        def expire() -> None:
            nonlocal due, timer
            late = loop.time() - due
            if late <= _PUNCTUAL:
                scope.reschedule(loop.time())
                return
            due = loop.time() + min(late, seconds)
            timer = loop.call_at(due, expire)

        timer = loop.call_at(due, expire)
        try:
            yield
        finally:
            timer.cancel()
