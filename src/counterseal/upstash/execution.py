"""Execution: commands that were asked for, run over a store, with errors in the words that clients expect."""

from __future__ import annotations

from collections.abc import Sequence

from counterseal.core.errors import CommandError, TransactionAborted
from counterseal.store.base import Store
from counterseal.store.wire import Argument, Command, Reply
from counterseal.upstash.commands import Answer, CommandPolicy, Refusal, Route, Send, Step, client_error
from counterseal.upstash.request import Arguments, Fault

SLICE = 1000
"""Commands of a pipeline that are written together."""


class Execution:
    """Runs commands over `store`, those about the server itself over `admin`.

    An error of the server, or of the policy, is a reply: a `CommandError`. Raises `StoreUnavailable` and
    `ReplyTooLarge` as the store does.
    """

    def __init__(self, store: Store, admin: Store, policy: CommandPolicy) -> None:
        self._store = store
        self._admin = admin
        self._policy = policy

    async def command(self, arguments: Arguments) -> Reply:
        """Run one command: one round trip."""
        step = self._policy.step(arguments)
        if step is not None:
            return await self._step(step)
        try:
            return await self._store.command(*arguments)
        except CommandError as error:
            return _in_client_words(error)

    async def pipeline(self, rows: Sequence[Arguments | Fault]) -> list[Reply]:
        """Run commands in order: a round trip for each thousand, and for each that needs a treatment of its own."""
        replies: list[Reply] = []
        for start in range(0, len(rows), SLICE):
            replies += await self._slice(rows[start : start + SLICE])
        return replies

    async def transaction(self, rows: Sequence[Arguments | Fault]) -> list[Reply] | Fault:
        """Run commands as one MULTI/EXEC in one write, each checked before anything is sent.

        Returns a `Fault` when one of them is refused, here or by the server while queueing; then none ran.
        """
        steps: list[Step] = []
        for row in rows:
            step = self._checked(row)
            if isinstance(step, Refusal):
                return Fault(step.text)
            if isinstance(step, Send) and step.route is Route.ADMIN:
                return Fault(f"ERR Command '{step.arguments[0]}' can't be part of a transaction")
            steps.append(step)
        sent = [step.arguments for step in steps if isinstance(step, Send)]
        try:
            arrived = iter(await self._store.transaction(sent) if sent else ())
        except TransactionAborted as error:
            return Fault(client_error(str(error)))
        return [
            step.reply if isinstance(step, Answer) else _finished(step, next(arrived))
            for step in steps
            if not isinstance(step, Refusal)
        ]

    def _checked(self, row: Arguments | Fault) -> Step:
        if isinstance(row, Fault):
            return Refusal(row.text)
        return self._policy.step(row) or Send(row)

    async def _slice(self, rows: Sequence[Arguments | Fault]) -> list[Reply]:
        step = self._policy.step
        commands: list[Command] = []
        for row in rows:
            if isinstance(row, Fault) or step(row) is not None:
                return await self._mixed(rows)
            commands.append(row)
        return [
            _in_client_words(reply) if isinstance(reply, CommandError) else reply
            for reply in await self._store.pipeline(commands)
        ]

    async def _mixed(self, rows: Sequence[Arguments | Fault]) -> list[Reply]:
        """A slice in which some commands can't travel with the others: what lies between them leaves together."""
        replies: list[Reply] = []
        together: list[Send] = []
        for row in rows:
            step = self._checked(row)
            if isinstance(step, Send) and step.route is Route.SHARED:
                together.append(step)
                continue
            replies += await self._together(together)
            together = []
            replies.append(await self._step(step))
        return replies + await self._together(together)

    async def _together(self, sends: Sequence[Send]) -> list[Reply]:
        if not sends:
            return []
        arrived = await self._store.pipeline([send.arguments for send in sends])
        return [_finished(send, reply) for send, reply in zip(sends, arrived, strict=True)]

    async def _step(self, step: Step) -> Reply:
        if isinstance(step, Answer):
            return step.reply
        if isinstance(step, Refusal):
            return CommandError(step.text)
        try:
            return _finished(step, await self._send(step.arguments, step.route))
        except CommandError as error:
            return _in_client_words(error)

    async def _send(self, arguments: Sequence[Argument], route: Route) -> Reply:
        if route is Route.SHARED:
            return await self._store.command(*arguments)
        if route is Route.ADMIN:
            return await self._admin.command(*arguments)
        try:
            (reply,) = await self._store.transaction([arguments])
        except TransactionAborted as error:
            return CommandError(str(error))
        return reply


def _finished(send: Send, reply: Reply) -> Reply:
    if isinstance(reply, CommandError):
        return _in_client_words(reply)
    return reply if send.finish is None else send.finish(reply)


def _in_client_words(error: CommandError) -> CommandError:
    return CommandError(client_error(str(error)))
