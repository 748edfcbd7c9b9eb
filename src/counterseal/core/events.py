"""Events: how a service tells that something happened, without knowing who listens."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from counterseal.core.background import end

logger = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[Any], Awaitable[None] | None]

_PATIENCE_S: Final = 5.0
_NOBODY: Final[Mapping[type, Sequence[Listener]]] = {}


class Events:
    """The table of who listens to which type of event, and the listeners that are under way.

    A listener hears exactly the types that it is listed for. What it raises ends nothing but itself; the log gets the
    type of the event and of the error and no more, because both may carry what belongs in no log.
    """

    def __init__(self, listeners: Mapping[type, Sequence[Listener]] = _NOBODY) -> None:
        self._listeners = {kind: tuple(chosen) for kind, chosen in listeners.items()}
        self._running: set[asyncio.Task[None]] = set()

    def emit(self, event: object) -> None:
        """Tell all listeners. Never raises and never waits: coroutines run in the background. No round trip."""
        for listener in self._listeners.get(type(event), ()):
            try:
                outcome = listener(event)
                if inspect.isawaitable(outcome):
                    self._start(event, outcome)
            except (Exception, asyncio.CancelledError) as fault:  # noqa: BLE001 - nothing of a listener reaches who emits
                _log(event, fault)

    def heard(self, kind: type) -> bool:
        """Whether anybody listens to events of this type."""
        return bool(self._listeners.get(kind))

    async def close(self) -> None:
        """Wait for the listeners under way, at most 5 s, then cancel those that are left. Safe to call twice."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while self._running:  # a listener may emit in its turn
                    await asyncio.wait(self._running)
        except TimeoutError:
            logger.warning("%d listeners of events did not end in time and are cancelled", len(self._running))
        finally:
            await end(self._running)

    def _start(self, event: object, outcome: Awaitable[None]) -> None:
        work = _heard_out(event, outcome)
        try:
            task = asyncio.create_task(work, name=f"counterseal: listener of {type(event).__name__}")
        except BaseException:
            work.close()
            if inspect.iscoroutine(outcome):
                outcome.close()
            raise
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _heard_out(event: object, outcome: Awaitable[None]) -> None:
    try:
        await outcome
    except Exception as fault:  # noqa: BLE001 - whatever it is, it is the listener's
        _log(event, fault)


def _log(event: object, fault: BaseException) -> None:
    logger.error("a listener of %s failed (%s)", type(event).__name__, type(fault).__name__)
