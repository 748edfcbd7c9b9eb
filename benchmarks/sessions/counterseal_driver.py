"""counterseal as an application opens it: from the environment's names, with audit, events, time-outs and breaker."""

import secrets
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import func, select
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.driver import DISK, Request
from benchmarks.sessions.load import IP, USER_AGENT, USERS, App, Reader, Writer, serve_sessions
from counterseal import Counterseal, Settings
from counterseal.database.engine import Database
from counterseal.database.tables import user_sessions
from counterseal.sessions import Created
from counterseal.web import SessionMiddleware, current_session

_MEMORY = Path("/dev/shm")  # reads never ask the database, so it need not wait for a disk to be filled

_MOST_SESSIONS = 20


class _Readers:
    """The sessions that are read: made once in a process, and known to the database when Redis has been emptied."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="counterseal-bench-", dir=_MEMORY)
        self._made: dict[str, Created] = {}

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncGenerator[tuple[Counterseal, dict[str, Created]]]:
        async with _opened(url, Path(self._folder.name)) as seal:
            for user in USERS:
                if user not in self._made:
                    self._made[user] = await _create(seal, user)
                elif await seal.sessions.get(self._made[user].session_id) is None:
                    raise ValueError("a live session was not found in the database")
            yield seal, self._made


@asynccontextmanager
async def _opened(url: str, folder: Path, postgres_url: str = "") -> AsyncGenerator[Counterseal]:
    """Everything, with as many sessions for each user as there may be, so that none has to make room."""
    environment = {
        "REDIS_URL": url,
        "COUNTERSEAL_SESSION_MAX": str(_MOST_SESSIONS),
        "COUNTERSEAL_DATA_DIR": str(folder),
    }
    if postgres_url:
        environment["DATABASE_URL"] = postgres_url
        async with Database(SecretStr(postgres_url), data_dir=folder) as database:
            await database.upgrade()
    async with Counterseal.open(Settings.load(environment)) as seal:
        yield seal


async def _create(seal: Counterseal, user: str) -> Created:
    return await seal.sessions.create(
        user_id=user,
        email=f"{user}@example.com",
        user_agent=USER_AGENT,
        ip=IP,
        amr=("pwd", "otp"),
    )


readers = _Readers()


@asynccontextmanager
async def opened(url: str, concurrency: int) -> AsyncGenerator[Reader]:
    async with readers.opened(url) as (seal, made):
        ids = {user: one.session_id for user, one in made.items()}
        yield Reader(ids, seal.sessions.get, lambda found: found.user_id)


@asynccontextmanager
async def application(url: str, concurrency: int) -> AsyncGenerator[App]:
    async def whose(request: HttpRequest) -> JSONResponse:
        session = await current_session(request)
        return JSONResponse({"user": session.user_id})

    async with readers.opened(url) as (seal, made):
        app = Starlette(routes=[Route("/", whose)], middleware=[Middleware(SessionMiddleware, seal=seal)])
        yield App(app, {user: f"__Host-cs_at={one.access_token}" for user, one in made.items()})


@asynccontextmanager
async def writer(request: Request) -> AsyncGenerator[Writer]:
    run = secrets.token_hex(4)  # a PostgreSQL remembers the users of an earlier measurement
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="counterseal-bench-", dir=DISK))
        seal = await stack.enter_async_context(_opened(request.tcp_url, Path(folder), request.postgres_url))
        tokens: dict[str, str] = {}
        made = Counter[str]()

        async def create(user: str) -> None:
            # Another user once this one has as many sessions as there may be.
            name = f"{run}-{user}-{made[user] // _MOST_SESSIONS}"
            made[user] += 1
            tokens[user] = (await _create(seal, name)).refresh_token

        async def rotate(user: str) -> None:
            rotated = await seal.sessions.rotate(tokens[user])
            if rotated is None:
                raise ValueError("a live refresh token was refused")
            tokens[user] = rotated.tokens.refresh_token

        async def rows() -> int:
            async with seal.database.read() as connection:
                return int(await connection.scalar(select(func.count()).select_from(user_sessions)) or 0)

        yield Writer(create, rotate, rows)


serve_sessions(reader=opened, app=application, writer=writer)
