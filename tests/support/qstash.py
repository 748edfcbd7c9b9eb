"""QStash: a scripted stand-in on loopback. The official client publishes to it, and it delivers when it is told to.

It keeps to the contract of v2 as far as a carrier of jobs meets it: publish with its headers, deduplication, cancel,
attempts that are signed anew, and what an answer means for the next one. Time is not waited for: `attempt` is now.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
from starlette.types import Receive, Scope, Send

from counterseal.app import Counterseal
from counterseal.jobs.qstash import QStash
from counterseal.web import create_app
from support.gateway import serving
from support.servers import Server
from support.site import BASE, seal_on

_PUBLISH = "/v2/publish/"
_MESSAGES = "/v2/messages/"


@dataclass
class Message:
    """A message that was published."""

    id: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    """Those of the publish, in small letters."""
    state: str = "pending"
    retried: int = 0
    answers: list[httpx.Response] = field(default_factory=list)

    @property
    def retries(self) -> int:
        return int(self.headers.get("upstash-retries", "3"))

    @property
    def job(self) -> str:
        """The id of its job."""
        return json.loads(self.body)["id"]


class QStashServer:
    """The stand-in. `target` is where the public URL of the messages leads to: the origin of a server."""

    def __init__(self) -> None:
        self.url = ""
        self.target = ""
        self.token = secrets.token_urlsafe(24)
        self.current = f"sig_{secrets.token_urlsafe(21)}"
        self.next = f"sig_{secrets.token_urlsafe(21)}"
        self.messages: dict[str, Message] = {}
        self.publishes = 0
        self.refuse: int | None = None
        """Answer publishes with this status, and store nothing."""
        self.on_publish: Callable[[], Any] | None = None
        """Awaited before a publish is stored; `ConnectionAbortedError` ends the connection within the answer."""
        self.lose_answers = False
        """Store, and end the connection within the answer."""
        self._by_dedup: dict[str, str] = {}
        self._numbers = itertools.count(1)

    @property
    def variables(self) -> dict[str, str]:
        """The settings of who publishes here."""
        return {
            "COUNTERSEAL_JOBS_CARRIER": "qstash",
            "COUNTERSEAL_PUBLIC_URL": BASE,
            "QSTASH_URL": self.url,
            "QSTASH_TOKEN": self.token,
            "QSTASH_CURRENT_SIGNING_KEY": self.current,
            "QSTASH_NEXT_SIGNING_KEY": self.next,
        }

    @property
    def pending(self) -> list[Message]:
        """What is to be delivered."""
        return [message for message in self.messages.values() if message.state == "pending"]

    def of(self, job: str) -> list[Message]:
        """The messages of a job."""
        return [message for message in self.messages.values() if message.job == job]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        path = (scope.get("raw_path") or scope["path"].encode()).decode()
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        if headers.get("authorization") != f"Bearer {self.token}":
            status, answer = 401, {"error": "unauthorized"}
        elif scope["method"] == "POST" and path.startswith(_PUBLISH):
            try:
                status, answer = await self._publish(path.removeprefix(_PUBLISH), headers, body)
            except ConnectionAbortedError:
                cut_short = [(b"content-length", b"100")]
                await send({"type": "http.response.start", "status": 200, "headers": cut_short})
                return
        elif scope["method"] == "DELETE" and path.startswith(_MESSAGES):
            status, answer = self._cancel(path.removeprefix(_MESSAGES))
        else:
            status, answer = 404, {"error": "not found"}
        content = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": content})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _publish(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        self.publishes += 1
        if self.refuse is not None:
            return self.refuse, {"error": "refused"}
        if self.on_publish is not None:
            await self.on_publish()
        dedup = headers.get("upstash-deduplication-id", "")
        assert ":" not in dedup
        if dedup and dedup in self._by_dedup:
            return 202, {"messageId": self._by_dedup[dedup], "url": url, "deduplicated": True}
        message = Message(f"msg_{next(self._numbers)}", url, body, dict(headers))
        self.messages[message.id] = message
        if dedup:
            self._by_dedup[dedup] = message.id
        if self.lose_answers:
            raise ConnectionAbortedError("scripted")
        return 201, {"messageId": message.id, "url": url}

    def _cancel(self, identifier: str) -> tuple[int, dict[str, Any]]:
        message = self.messages.get(identifier)
        if message is None or message.state != "pending":
            return 404, {"error": f"message {identifier} not found"}
        message.state = "cancelled"
        return 200, {"cancelled": 1}

    def sign(
        self, url: str, body: bytes, /, *, key: str | None = None, padded: bool = False, **claims: Any
    ) -> str:
        """The signature of one attempt; `claims` in place of those that it would have. None leaves one out."""
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()
        now = int(time.time())
        made = {
            "iss": "Upstash", "sub": url, "iat": now, "exp": now + 300, "nbf": 0,
            "jti": f"jwt_{secrets.token_hex(12)}", "body": digest if padded else digest.rstrip("="), **claims,
        }  # fmt: skip
        said = {name: value for name, value in made.items() if value is not None}
        return jwt.encode(said, key or self.current, algorithm="HS256")

    async def send(self, url: str, body: bytes, signature: str | None) -> httpx.Response:
        """Send a request to where a URL leads to."""
        headers = {"Content-Type": "application/json", "User-Agent": "Upstash-QStash"}
        if signature is not None:
            headers["Upstash-Signature"] = signature
        async with httpx.AsyncClient(timeout=30) as client:
            return await client.post(url.replace(BASE, self.target), content=body, headers=headers)

    async def attempt(self, message: Message) -> httpx.Response:
        """Deliver once, and judge the answer as QStash does."""
        assert message.state == "pending"
        answer = await self.send(message.url, message.body, self.sign(message.url, message.body))
        message.answers.append(answer)
        final = answer.status_code == 489 and answer.headers.get("Upstash-NonRetryable-Error") == "true"
        if answer.is_success:
            message.state = "delivered"
        elif final or message.retried >= message.retries:
            message.state = "failed"
        else:
            message.retried += 1
        return answer

    async def deliver(self) -> None:
        """Deliver everything until nothing is pending."""
        while self.pending:
            await self.attempt(self.pending[0])


@dataclass
class Carried:
    """Services whose jobs the stand-in carries."""

    seal: Counterseal
    qstash: QStashServer

    @property
    def carrier(self) -> QStash:
        carrier = self.seal.carriage.carrier
        assert carrier is not None
        return carrier


@asynccontextmanager
async def carried_on(
    server: Server, folder: Path, variables: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Carried]:
    """Services on a server of the kit with a stand-in of their own, which delivers to them over loopback."""
    qstash = QStashServer()
    async with AsyncExitStack() as stack:
        qstash.url = await stack.enter_async_context(serving(qstash))
        seal = await stack.enter_async_context(
            seal_on(server, folder, {**qstash.variables, **(variables or {})}, **options)
        )
        qstash.target = await stack.enter_async_context(serving(create_app(seal)))
        yield Carried(seal, qstash)
