"""A subscription whose messages go through a generator of the test's, which may lose them, wait, or raise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType

from counterseal.store.base import Gap, Message, Subscription

Messages = AsyncIterator[Message | Gap]


class Through(Subscription):
    """What `inner` hears, as `told` passes it on."""

    def __init__(self, inner: Subscription, told: Callable[[Messages], Messages]) -> None:
        self._inner = inner
        self._told = told

    async def __aenter__(self) -> Messages:
        return self._told(await self._inner.__aenter__())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
