"""Replication: tells whether what was written to a server is on its replicas too, on a connection of its own.

`WAIT` counts the writes of the connection that it comes on, and holds that one up. So it comes on another, behind a
write of that: replicas have everything that the server wrote before once they have that one. All who ask while a `WAIT`
is under way share the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from counterseal.core.background import end
from counterseal.core.errors import StoreUnavailable
from counterseal.store.connection import Connection
from counterseal.store.link import Link
from counterseal.store.wire import Command

WAIT_FACTOR: Final = 2
"""Replicas may take so many times as long as the server itself may."""

_MARK_MS: Final = 60_000


@dataclass(slots=True)
class _Question:
    key: str
    witnesses: Sequence[str]
    replicas: int
    answer: asyncio.Future[bool]


class Replication:
    """Asks one server for as long as its link is open."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._connection: Connection | None = None
        self._timeout = timedelta(0)
        """How long a command to its server may take."""
        self._questions: list[_Question] = []
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    async def confirmed(self, key: str, *, witnesses: Sequence[str], replicas: int) -> bool:
        """See `Store.replicated`."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        question = _Question(key, witnesses, replicas, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="counterseal: wait for replicas")
        return await question.answer

    async def close(self) -> None:
        """Ask no more. Whoever waits gets `StoreUnavailable`. Safe to call twice."""
        self._closed = True
        if self._asking is not None:
            await end((self._asking,))
        self._fail(self._questions, StoreUnavailable("the store is closed"))
        if self._connection is not None:
            self._connection.abort("the store is closed")
            self._connection = None

    async def _ask(self) -> None:
        while self._questions:
            questions, self._questions = self._questions, []
            try:
                await self._round(questions)
            except BaseException as fault:
                shown = fault if isinstance(fault, Exception) else StoreUnavailable("the store is closed")
                self._fail(questions, shown)
                if not isinstance(fault, Exception):
                    raise

    async def _round(self, questions: list[_Question]) -> None:
        connection = self._connection
        if connection is None or connection.closed:
            self._timeout = self._link.options.bounds(await self._link.route.resolve()).timeout
            connection = self._connection = await self._link.dedicated((WAIT_FACTOR + 1) * self._timeout)
        most = max(question.replicas for question in questions)
        commands: list[Command] = [
            ("EXISTS", *question.witnesses) if question.witnesses else ("PING",) for question in questions
        ]
        commands.append(("SET", questions[0].key, "", "PX", _MARK_MS))
        commands.append(("WAIT", most, round(WAIT_FACTOR * self._timeout.total_seconds() * 1000)))
        sure = False
        try:
            *seen, written, had = await connection.send_many(commands)
            sure = written == b"OK" and isinstance(had, int) and had >= most
            for question, there in zip(questions, seen, strict=True):
                # This may be another server than the one that wrote: a new primary, or a former one.
                known = not question.witnesses or there == len(question.witnesses)
                sure = sure and known
                if not question.answer.done():
                    enough = written == b"OK" and isinstance(had, int) and had >= question.replicas
                    question.answer.set_result(known and enough)
        finally:
            if not sure:  # it may be a former primary, one that hangs: the next round asks who is it now
                connection.abort("replicas did not confirm what was written")

    @staticmethod
    def _fail(questions: Sequence[_Question], fault: Exception) -> None:
        for question in questions:
            if not question.answer.done():
                question.answer.set_exception(fault)
