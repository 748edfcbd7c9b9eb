"""Intake: log-ins that come at once share a transaction, so that they share its statements and its wait for the disk.

Who is alone goes at once, in its caller's task. Who comes while a transaction is under way waits for its end; then all
of them go together. A log-in that can't go with others goes by itself: its user is blocked, locked by somebody else, or
has too many sessions. So does each of those whose transaction failed, for it may be the fault of a neighbour.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from counterseal.core.background import end
from counterseal.database.direct import Direct
from counterseal.sessions.admission import (
    Newcomer,
    Standing,
    find_users,
    insert_rows,
    insert_users,
    lock_users,
    read_past,
)
from counterseal.sessions.backing import Backing
from counterseal.sessions.creation import Creation, Login, Made, audit_of
from counterseal.sessions.lifetime import lifetime

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 50  # while they are written, as many others may be told what they got
_LONG_S: Final = 0.5
_LOCK_TIMEOUT: Final = timedelta(milliseconds=200)


@dataclass(slots=True)
class _Waiting:
    """A log-in in line, and its answer: None when it is to go by itself."""

    login: Login
    answer: asyncio.Future[Made | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def settle(self, made: Made | None) -> None:
        """Answer, unless nobody waits for it any more."""
        if not self.answer.done():
            self.answer.set_result(made)


class Intake:
    """Writes the sessions of one process. One shared transaction is under way at a time.

    A caller that is cancelled while it waits takes its log-in along; once that is being written it is written, and the
    session, whose tokens nobody has, ends by idling.
    """

    def __init__(self, backing: Backing, creation: Creation) -> None:
        self._backing = backing
        self._creation = creation
        self._line: list[_Waiting] = []
        self._busy = False
        self._closed = False
        self._stuck = False
        self._task: asyncio.Task[None] | None = None

    async def write(self, login: Login) -> Made:
        """Write a session, and what it needs. Raises as `Creation.write`. One transaction, or two. No round trip."""
        if self._closed or self._stuck:
            return await self._creation.write(login)
        made = await (self._line_up(login) if self._busy else self._lead(login))
        # By another part: the one that failed may have been committed, unknown to us.
        return made or await self._creation.write(self._creation.again(login))

    async def close(self) -> None:
        """Let nobody wait any more. Safe to call twice. No round trip."""
        self._closed = True
        if self._task is not None:
            await end((self._task,))

    async def _lead(self, login: Login) -> Made | None:
        """Go first; together with those who come in the same turn of the event loop, when there are any."""
        self._busy = True
        try:
            await asyncio.sleep(0)
            if not self._line:
                with self._patience():
                    return await self._first(login)
            answer = self._line_up(login, ahead=True)
        finally:
            self._go_on()
        return await answer

    def _line_up(self, login: Login, *, ahead: bool = False) -> asyncio.Future[Made | None]:
        waiting = _Waiting(login)
        self._line.insert(0 if ahead else len(self._line), waiting)
        return waiting.answer

    async def _first(self, login: Login) -> Made | None:
        """Write a session that nobody stands beside."""
        async with self._backing.database.begin_direct() as connection:
            made = await self._write(connection, [login])
        return made.get(login.user_id)

    def _go_on(self) -> None:
        if self._closed:
            self._dismiss()
        if self._line:
            self._task = asyncio.create_task(self._run(), name="counterseal: write sessions")
        else:
            self._busy = False

    async def _run(self) -> None:
        """Write those in line until there is nobody."""
        try:
            while members := self._take():
                await self._together(members)
        finally:
            self._busy = False
            self._dismiss()

    def _take(self) -> list[_Waiting]:
        """The first of each user, out of the line."""
        taken: dict[str, _Waiting] = {}
        left: list[_Waiting] = []
        for waiting in self._line:
            if waiting.answer.done():
                continue
            if len(taken) < _AT_ONCE and waiting.login.user_id not in taken:
                taken[waiting.login.user_id] = waiting
            else:
                left.append(waiting)
        self._line = left
        return list(taken.values())

    @contextmanager
    def _patience(self) -> Generator[None]:
        """Around a transaction. When it takes long, as behind somebody's lock, nobody else waits for its end."""
        overdue = asyncio.get_running_loop().call_later(_LONG_S, self._give_way)
        try:
            yield
        finally:
            overdue.cancel()
            self._stuck = False

    def _give_way(self) -> None:
        self._stuck = True
        self._dismiss()

    def _dismiss(self) -> None:
        """Let everybody in line go by themselves."""
        line, self._line = self._line, []
        for waiting in line:
            waiting.settle(None)

    async def _together(self, members: Sequence[_Waiting]) -> None:
        made: Mapping[str, Made] = {}
        try:
            with self._patience():
                async with self._backing.database.begin_direct(lock_timeout=_LOCK_TIMEOUT) as connection:
                    written = await self._write(connection, [member.login for member in members])
            made = written
        except Exception as fault:  # noqa: BLE001 - whatever it was, each is tried by itself, and told
            logger.info("log-ins go by themselves that shared a transaction: %s", type(fault).__name__)
        finally:
            for member in members:
                member.settle(made.get(member.login.user_id))

    async def _write(self, connection: Direct, members: Sequence[Login]) -> dict[str, Made]:
        """Write the sessions of those who need nothing else; by user."""
        backing = self._backing
        logins = {login.user_id: login for login in sorted(members, key=lambda login: login.user_id)}
        users = await self._lock(connection, logins)
        now_ms = backing.now_ms()
        past = await read_past(connection, users, now_ms=now_ms)
        made: dict[str, Made] = {}
        for user_id, user in users.items():
            login = logins[user_id]
            limits = lifetime(login.profile, backing.settings, user.policy)
            if user.status == "active" and past[user_id].live < limits.most:
                made[user_id] = self._creation.begin(login, user, limits, past[user_id], now_ms)
        if made:
            await insert_rows(connection, (one.row for one in made.values()))
            await backing.audit_many(connection, [audit_of(one) for one in made.values()])
        return made

    async def _lock(self, connection: Direct, logins: Mapping[str, Login]) -> dict[str, Standing]:
        """Lock those whom nobody else has locked; who is new is made."""
        users = await lock_users(connection, logins, wait=False)
        absent = await self._newcomers(
            connection, [login for login in logins.values() if login.user_id not in users]
        )
        if absent:
            await insert_users(connection, absent, now_ms=self._backing.now_ms(), lenient=True)
            users |= await lock_users(connection, [one.user_id for one in absent], wait=False)
        return users

    @staticmethod
    async def _newcomers(connection: Direct, logins: Collection[Login]) -> list[Newcomer]:
        if not logins:
            return []
        known = await find_users(connection, [login.user_id for login in logins])
        return [
            Newcomer(login.user_id, login.email, login.full_name or "")
            for login in logins
            if login.email is not None and login.user_id not in known
        ]
