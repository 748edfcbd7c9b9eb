"""QStash: a scripted stand-in on loopback. The official client publishes to it, and it delivers when it is told to.

It keeps to the contract of v2 as far as a carrier of jobs meets it: publish with its headers, deduplication, cancel,
attempts that are signed anew, and what an answer means for the next one. Time is not waited for: `attempt` is now.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
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
_SCHEDULES = "/v2/schedules"


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
    schedule: str = ""
    """The id of the schedule that it came of."""

    @property
    def retries(self) -> int:
        return int(self.headers.get("upstash-retries", "3"))

    @property
    def job(self) -> str:
        """The id of its job."""
        return json.loads(self.body)["id"]


@dataclass
class Scheduled:
    """A schedule that was made."""

    id: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    """Those of the request, in small letters."""
    created_ms: int
    paused: bool = False

    @property
    def cron(self) -> str:
        return self.headers["upstash-cron"]

    @property
    def told(self) -> dict[str, Any]:
        """As the API tells it."""
        return {
            "scheduleId": self.id, "destination": self.url, "cron": self.cron, "createdAt": self.created_ms,
            "method": "POST", "body": self.body.decode(), "isPaused": self.paused,
            "retries": int(self.headers.get("upstash-retries", "3")),
        }  # fmt: skip


class QStashServer:
    """The stand-in. `target` is where the public URL of the messages leads to: the origin of a server."""

    def __init__(self) -> None:
        self.url = ""
        self.target = ""
        self.token = secrets.token_urlsafe(24)
        self.current = f"sig_{secrets.token_urlsafe(21)}"
        self.next = f"sig_{secrets.token_urlsafe(21)}"
        self.messages: dict[str, Message] = {}
        self.schedules: dict[str, Scheduled] = {}
        self.asked: list[str] = []
        """Method and path of the requests about schedules."""
        self.ahead = timedelta(0)
        """By how much its clock is ahead, for tests that move the store's."""
        self.publishes = 0
        self.refuse: int | None = None
        """Answer publishes, and requests about schedules, with this status, and store nothing."""
        self.refused_id = ""
        """The id of a schedule that is answered 400."""
        self.on_schedule: Callable[[str], Any] | None = None
        """Awaited with method and path before a request about schedules is dealt with."""
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
        elif path.startswith(_SCHEDULES):
            self.asked.append(f"{scope['method']} {path}")
            if self.on_schedule is not None:
                await self.on_schedule(self.asked[-1])
            status, answer = self._schedule(
                scope["method"], path.removeprefix(_SCHEDULES).lstrip("/"), headers, body
            )
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

    def _schedule(  # noqa: PLR0911 - one for each answer
        self, method: str, rest: str, headers: Mapping[str, str], body: bytes, /
    ) -> tuple[int, Any]:
        if self.refuse is not None:
            return self.refuse, {"error": "refused"}
        if method == "POST" and rest.startswith(("http://", "https://")):
            identifier = headers.get("upstash-schedule-id") or f"scd_{next(self._numbers)}"
            if not re.fullmatch(r"[A-Za-z0-9._-]+", identifier):
                return 400, {"error": "schedule id can only contain alphanumeric characters, hyphens, …"}
            if identifier == self.refused_id:
                return 400, {"error": "scripted"}
            if not re.fullmatch(r"(CRON_TZ=\S+ )?(\S+ ){4}\S+", headers.get("upstash-cron", "")):
                return 400, {"error": "invalid cron"}
            former = self.schedules.get(identifier)
            self.schedules[identifier] = Scheduled(
                identifier, rest, body, dict(headers),
                former.created_ms if former else int(time.time() * 1000), former is not None and former.paused,
            )  # fmt: skip
            return 201, {"scheduleId": identifier}
        if method == "GET" and not rest:
            return 200, [one.told for one in self.schedules.values()]
        identifier, _, order = rest.partition("/")
        found = self.schedules.get(identifier)
        if method == "DELETE":
            self.schedules.pop(identifier, None)
            return 200, {}
        if found is None:
            return 404, {"error": f"schedule {identifier} not found"}
        if method == "GET":
            return 200, found.told
        if method in {"PATCH", "POST", "PUT"} and order in {"pause", "resume"}:
            found.paused = order == "pause"
            return 200, {}
        return 405, {"error": "Method Not Allowed"}

    def tick(self, identifier: str) -> Message | None:
        """Have a schedule come to one of its times: the message that it makes, none while it is paused."""
        scheduled = self.schedules[identifier]
        if scheduled.paused:
            return None
        message = Message(
            f"msg_{next(self._numbers)}",
            scheduled.url,
            scheduled.body,
            scheduled.headers,
            schedule=identifier,
        )
        self.messages[message.id] = message
        return message

    def sign(
        self, url: str, body: bytes, /, *, key: str | None = None, padded: bool = False, **claims: Any
    ) -> str:
        """The signature of one attempt; `claims` in place of those that it would have. None leaves one out."""
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()
        now = int(time.time() + self.ahead.total_seconds())
        made = {
            "iss": "Upstash", "sub": url, "iat": now, "exp": now + 300, "nbf": 0,
            "jti": f"jwt_{secrets.token_hex(12)}", "body": digest if padded else digest.rstrip("="), **claims,
        }  # fmt: skip
        said = {name: value for name, value in made.items() if value is not None}
        return jwt.encode(said, key or self.current, algorithm="HS256")

    async def send(
        self, url: str, body: bytes, signature: str | None, more: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send a request to where a URL leads to."""
        headers = {"Content-Type": "application/json", "User-Agent": "Upstash-QStash", **(more or {})}
        if signature is not None:
            headers["Upstash-Signature"] = signature
        async with httpx.AsyncClient(timeout=30) as client:
            return await client.post(url.replace(BASE, self.target), content=body, headers=headers)

    async def attempt(self, message: Message) -> httpx.Response:
        """Deliver once, and judge the answer as QStash does."""
        assert message.state == "pending"
        more = {"Upstash-Message-Id": message.id, "Upstash-Retried": str(message.retried)}
        if message.schedule:
            more["Upstash-Schedule-Id"] = message.schedule
        answer = await self.send(message.url, message.body, self.sign(message.url, message.body), more)
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
