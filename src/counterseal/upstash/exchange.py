"""Exchange: one HTTP request and its answer, in ASGI's own words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

JSON = b"application/json; charset=utf-8"
METHODS = b"GET, HEAD, POST, PUT, OPTIONS"

_READ = (b"authorization", b"origin", b"content-length", b"upstash-encoding", b"upstash-response-format")
_LINGER = 2.0


class BodyFault(Enum):
    """Why there is no body."""

    TOO_LARGE = "too large"
    STALLED = "stalled"
    GONE = "the client is gone"


class Exchange:
    """A request's head, its body when asked for, and one answer."""

    __slots__ = ("_headers", "_receive", "_scope", "_send", "body_bytes", "method", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = {
            name: value
            for name, value in scope["headers"]
            if name in _READ or name.startswith(b"access-control-")
        }
        self.method: str = scope["method"]
        self.body_bytes = 0
        self.started = False

    @property
    def path(self) -> bytes:
        """The raw path below the mount."""
        scope = self._scope
        path: bytes | None = scope.get("raw_path")
        if path is None:
            path = str(scope["path"]).encode()
        path = path.partition(b"?")[0]
        root = str(scope.get("root_path", "")).encode()
        return path.removeprefix(root) if root else path

    @property
    def query(self) -> bytes:
        """The raw query string."""
        return self._scope["query_string"]

    def header(self, name: bytes) -> bytes | None:
        """A header that this server reads, by its name in small letters."""
        return self._headers.get(name)

    async def body(self, limit: int, stall: float) -> bytes | BodyFault:
        """Read the body: at most `limit` bytes, and at most `stall` seconds between two pieces of it."""
        announced = self._headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limit:
            self.body_bytes = int(announced)
            return BodyFault.TOO_LARGE
        pieces: list[bytes] = []
        more = True
        while more:
            try:
                async with asyncio.timeout(stall):
                    message = await self._receive()
            except TimeoutError:
                return BodyFault.STALLED
            if message["type"] != "http.request":
                return BodyFault.GONE
            piece: bytes = message.get("body", b"")
            self.body_bytes += len(piece)
            if self.body_bytes > limit:
                return BodyFault.TOO_LARGE
            more = bool(message.get("more_body", False))
            if not more and not pieces:
                return piece
            pieces.append(piece)
        return b"".join(pieces)

    async def gone(self) -> None:
        """Return when the client has gone; what is left of the body is read and dropped."""
        while (await self._receive())["type"] == "http.request":
            pass

    async def answer(
        self, status: int, body: bytes, *headers: tuple[bytes, bytes], content_type: bytes = JSON
    ) -> None:
        """Send the whole answer."""
        await self._start(
            status, [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
        )
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def answer_early(self, status: int, body: bytes, *, dropping: int) -> None:
        """Answer before the request has arrived, and end the connection.

        The answer leaves at once. Up to `dropping` bytes that still arrive are read for a moment, because closing on
        unread bytes would take the answer away from the client.
        """
        await self._start(
            status,
            [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), (b"connection", b"close")],
        )
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        if dropping:
            try:
                async with asyncio.timeout(_LINGER):
                    await self._drop(dropping)
            except TimeoutError:
                pass
        await self._send({"type": "http.response.body", "body": b""})

    async def start_stream(self, *headers: tuple[bytes, bytes]) -> None:
        """Begin an answer of server-sent events."""
        await self._start(
            200,
            [
                (b"content-type", b"text/event-stream"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
                *headers,
            ],
        )

    async def send_piece(self, piece: bytes, *, last: bool = False) -> None:
        """Send a piece of a stream."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})

    async def preflight(self) -> None:
        """Answer OPTIONS: whatever a browser asks for is allowed; a token is needed all the same."""
        echoed = [
            (b"access-control-allow-headers", self._headers.get(b"access-control-request-headers")),
            (b"access-control-allow-methods", self._headers.get(b"access-control-request-method", METHODS)),
        ]
        await self._start(
            200, [(b"content-length", b"0"), *((name, value) for name, value in echoed if value is not None)]
        )
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse_method(self) -> None:
        """Answer a method that there is no use for."""
        await self._start(405, [(b"content-length", b"0"), (b"allow", METHODS)])
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        origin = self._headers.get(b"origin")
        if origin is not None:
            headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", b"Upstash-Sync-Token"),
                (b"vary", b"Origin"),
            ]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _drop(self, limit: int) -> None:
        dropped = 0
        while dropped <= limit:
            message = await self._receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            dropped += len(message.get("body", b""))
