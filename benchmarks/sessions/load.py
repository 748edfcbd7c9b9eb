"""The load of the sessions area, the same for every driver: what differs is only how sessions are kept.

A driver gives what its library can do: `Reader`, `App`, `Writer`, each by an opener.
"""

from __future__ import annotations

import json
import socket
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from benchmarks.driver import Request, serve
from benchmarks.pace import CHUNK, rate

USERS = tuple(f"user-{number:04}" for number in range(100))

LIFETIME_SECONDS = 7 * 24 * 3600

USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:146.0) Gecko/20100101 Firefox/146.0"
IP = "203.0.113.7"


@dataclass(frozen=True, slots=True)
class Reader:
    """Live sessions. `ids` has the session id of each user; `get` answers a session, `user_of` whose it is.

    `get` of an unknown id answers something that is false.
    """

    ids: Mapping[str, str]
    get: Callable[[str], Awaitable[Any]]
    user_of: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class App:
    """An ASGI application whose only route answers the user of the session that the request's cookie stands for."""

    asgi: Callable[..., Awaitable[None]]
    cookies: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Writer:
    """What writes one durable row, for a user who is there already, by everybody's own name for it."""

    create: Callable[[str], Awaitable[Any]]
    rotate: Callable[[str], Awaitable[Any]]
    rows: Callable[[], Awaitable[int]]
    """How many rows `create` has written, by the database's own account."""


class Opens(Protocol):
    """Opens a reader or an application for a number of concurrent calls, as one that cares for speed would."""

    def __call__(self, url: str, concurrency: int) -> AbstractAsyncContextManager[Any]: ...


OpensWriter = Callable[[Request], AbstractAsyncContextManager[Writer]]


def session(user: str) -> dict[str, Any]:
    """What a session is made of, with the members that counterseal's has."""
    return {
        "session_id": f"{user}.AZq1c0N1e8a5s7Wm2b9uXw",
        "user_id": user,
        "profile": "standard",
        "amr": ["pwd", "otp"],
        "epoch": 1,
        "version": 1,
        "user_agent": USER_AGENT,
        "ip": IP,
        "device": "Firefox on Linux",
        "created": 1764000000000,
        "authenticated": 1764000000000,
        "last_used": 1764000000000,
        "expires": 1764604800000,
        "idle_expires": 1764086400000,
        "checked": 1764000000000,
        "step_ups": [],
    }


def serve_sessions(
    *, reader: Opens | None = None, app: Opens | None = None, writer: OpensWriter | None = None
) -> None:
    """Answer the harness for one library, with what it can do."""
    import uvloop  # noqa: PLC0415 - the harness itself reads this module's constants without it

    async def get(request: Request) -> float:
        """Sessions per second of `tasks` tasks over 100 live ones."""
        assert reader is not None
        tasks = request.options["tasks"]
        async with reader(request.tcp_url, tasks) as sessions:
            await _check_reader(sessions)
            ids = _for(tasks, list(sessions.ids.values()))
            return await rate(sessions.get, ids, tasks=tasks, seconds=request.seconds)

    async def round_trips(request: Request) -> float:
        """How often the server had to read for each session that one task got.

        The median of ten lots: a client sets its clock now and then, or keeps its connection alive.
        """
        assert reader is not None
        async with reader(request.tcp_url, 1) as sessions:
            await _check_reader(sessions)
            return await _count_round_trips(sessions, request.unix_url)

    async def in_request(request: Request) -> float:
        """Requests per second of `tasks` tasks. No HTTP server is between: the application is called as one would."""
        assert app is not None
        tasks = request.options["tasks"]
        async with app(request.tcp_url, tasks) as application:

            async def call(user: str) -> bytes:
                return await _respond(application, user)

            for user in USERS:
                if (told := json.loads(await call(user))) != {"user": user}:
                    raise ValueError(f"expected {user}; came {told!r}")
            return await rate(call, _for(tasks, USERS), tasks=tasks, seconds=request.seconds)

    async def create(request: Request) -> float:
        """Durable creations per second of `tasks` tasks, for users who are there."""
        assert writer is not None
        tasks = request.options["tasks"]
        async with writer(request) as rows:
            await _create_all(rows)
            before, done = await rows.rows(), 0

            async def call(user: str) -> None:
                nonlocal done
                await rows.create(user)
                done += 1

            figure = await rate(call, USERS, tasks=tasks, seconds=request.seconds, chunk=1)
            if (written := await rows.rows() - before) != done:
                raise ValueError(f"{done} creations were told, and {written} rows are there")
            return figure

    async def rotate(request: Request) -> float:
        """Durable rotations per second of `tasks` tasks over 100 live sessions."""
        assert writer is not None
        tasks = request.options["tasks"]
        async with writer(request) as rows:
            await _create_all(rows)
            return await rate(rows.rotate, USERS, tasks=tasks, seconds=request.seconds, chunk=1)

    serve(get, round_trips, in_request, create, rotate, loop_factory=uvloop.new_event_loop)


def _for(tasks: int, names: Sequence[str]) -> list[str]:
    """Names over and over, until each of the tasks has its ten."""
    return [name for _ in range(max(1, tasks * CHUNK // len(names))) for name in names]


async def _create_all(rows: Writer) -> None:
    for user in USERS:
        await rows.create(user)


async def _check_reader(sessions: Reader) -> None:
    """Sessions that are nobody's, or that never end, would be fast for nothing."""
    for user, session_id in sessions.ids.items():
        if (told := sessions.user_of(await sessions.get(session_id))) != user:
            raise ValueError(f"expected the session of {user}; came one of {told!r}")
    unknown = next(iter(sessions.ids.values()))[:-1] + "~"
    if await sessions.get(unknown):
        raise ValueError("a session that nobody made was found")


async def _respond(app: App, user: str) -> bytes:
    """The body of one response."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"example.com"),
            (b"user-agent", USER_AGENT.encode()),
            (b"cookie", app.cookies[user].encode()),
        ],
        "client": (IP, 50000),
        "server": ("example.com", 443),
        "state": {},
    }
    body: list[bytes] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            body.append(message.get("body", b""))

    await app.asgi(scope, receive, send)
    return b"".join(body)


async def _count_round_trips(sessions: Reader, unix_url: str) -> float:
    ids = list(sessions.ids.values())
    lots: list[float] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(urlsplit(unix_url).path)
        for first in range(0, len(ids), 10):
            before = _reads(connection)
            for session_id in ids[first : first + 10]:
                await sessions.get(session_id)
            lots.append((_reads(connection) - before - 1) / 10)
    return statistics.median(lots)


def _reads(connection: socket.socket) -> int:
    """How often the server has read from any client, this question included."""
    connection.sendall(b"INFO stats\r\n")
    told = b""
    while b"total_reads_processed:" not in told or not told.endswith(b"\r\n\r\n"):
        told += connection.recv(65536)
    return int(told.split(b"total_reads_processed:")[1].split(b"\r\n")[0])
