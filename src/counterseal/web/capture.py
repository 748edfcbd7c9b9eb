"""Capture: one run of a handler whose response is held back until it is known whether it may be kept.

What may be kept is held until it is complete. What may not is passed on from the moment that this is known, message by
message, no faster than the client takes it, and is never held as a whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal.core.background import end
from counterseal.web.freshness import Refusal
from counterseal.web.stored import plain

logger = logging.getLogger(__name__)

Judge = Callable[[int, Collection[tuple[str, str]]], Refusal | None]
"""Whether a response with this status and these headers may be kept, as things stand."""


@dataclass(frozen=True, slots=True)
class Complete:
    """A whole response that may be kept."""

    status: int
    raw_headers: list[tuple[bytes, bytes]]
    body: bytes


class Capture:
    """A run, which begins at once in a task of its own. It is ended by `deliver`, `finish` or `leave`.

    The run sees an empty body, and hears of a client that goes away only while its response is passed on: until then it
    works for whoever waits for the same response.
    """

    def __init__(
        self, app: ASGIApp, scope: Scope, receive: Receive, *, judge: Judge, most_bytes: int
    ) -> None:
        self._receive_on = receive
        self._judge = judge
        self._most_bytes = most_bytes
        self._held: list[Message] = []
        self._size = 0
        self._asked = False
        self._left = False
        self._send_on: Send | None = None
        self._taken = asyncio.Event()
        self._verdict: asyncio.Future[Complete | Refusal] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(app, scope), name="counterseal: make a response")

    async def verdict(self) -> Complete | Refusal:
        """The whole response, or why it is not kept; as soon as either is known."""
        return await asyncio.shield(self._verdict)

    async def deliver(self, send: Send) -> None:
        """Pass the response on to a client, what was held first, and wait until the handler has ended.

        Raises what the handler raised.
        """
        try:
            while self._held:
                await send(self._held.pop(0))
        except BaseException:
            await end((self._task,))
            raise
        self._send_on = send
        self._taken.set()
        await self.finish()

    async def finish(self) -> None:
        """Wait until the handler has ended, with its background tasks. Raises what it raised."""
        try:
            await asyncio.wait((self._task,))
        except BaseException:
            await end((self._task,))
            raise
        await self._task

    def leave(self) -> asyncio.Task[None]:
        """Nobody takes the response any more; it is still made when it is one that may be kept. Keep the task."""
        self._left = True
        if self._verdict.done() and isinstance(self._verdict.result(), Refusal):
            self._task.cancel()
        self._task.add_done_callback(_ended)
        return self._task

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except BaseException:
            self._settle(Refusal.FAILED)
            raise
        self._settle(Refusal.PARTIAL)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._taken.wait()
        return await self._receive_on()

    async def _send(self, message: Message) -> None:
        if self._send_on is not None:
            await self._send_on(message)
            return
        self._held.append(message)
        if not self._verdict.done():
            verdict = self._weigh(message)
            if verdict is not None:
                self._settle(verdict)
        if self._verdict.done() and isinstance(self._verdict.result(), Refusal):
            # Nothing more is made before there is somebody who takes it.
            await self._taken.wait()

    def _weigh(self, message: Message) -> Complete | Refusal | None:
        if message["type"] == "http.response.start":
            if message.get("trailers"):
                return Refusal.EXTENSION
            headers = plain(message.get("headers", ()))
            if any(_length(value) > self._most_bytes for name, value in headers if name == "content-length"):
                return Refusal.TOO_LARGE
            return self._judge(message["status"], headers)
        if message["type"] != "http.response.body":
            return Refusal.EXTENSION
        self._size += len(message.get("body", b""))
        if self._size > self._most_bytes:
            return Refusal.TOO_LARGE
        return None if message.get("more_body") else self._completed()

    def _completed(self) -> Complete | Refusal:
        start, *parts = self._held
        raw: list[tuple[bytes, bytes]] = [
            (bytes(name), bytes(value)) for name, value in start.get("headers", ())
        ]
        headers = plain(raw)
        # Asked again: what the handler reads while it sends counts as well.
        refusal = self._judge(start["status"], headers)
        if refusal is not None:
            return refusal
        body = b"".join(part.get("body", b"") for part in parts)
        if any(name == "content-length" and value.strip() != str(len(body)) for name, value in headers):
            return Refusal.PARTIAL
        return Complete(start["status"], raw, body)

    def _settle(self, verdict: Complete | Refusal) -> None:
        if not self._verdict.done():
            self._verdict.set_result(verdict)
        if self._left and isinstance(verdict, Refusal):
            self._task.cancel()


def _length(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("a handler failed whose response nobody waited for", exc_info=task.exception())
