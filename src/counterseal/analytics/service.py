"""Analytics: counts what happens and tells today's numbers. Days are days of UTC by the store's clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from counterseal.analytics.scripts import count, time_call
from counterseal.core.errors import CodecError
from counterseal.store.base import Store
from counterseal.store.keys import ANALYTICS_TTL, Keys
from counterseal.store.wire import Reply, raised

_VIEWS: Final = "views"
_SIGNATURES: Final = "signatures"
_LONGEST_ENDPOINT: Final = 256


@dataclass(frozen=True, slots=True)
class Today:
    """What has been counted since midnight UTC. `requests` and `users` are different ones, estimated within 1 %."""

    views: int
    signatures: int
    requests: int
    users: int


@dataclass(frozen=True, slots=True)
class DomainToday:
    """What has been counted for one domain since midnight UTC."""

    views: int
    signatures: int


@dataclass(frozen=True, slots=True)
class EndpointPerformance:
    """Today's calls of one endpoint: how many, how many of them failed, and how long one took on average."""

    endpoint: str
    calls: int
    failures: int
    mean: timedelta


class Analytics:
    """Counters by day. It has no task of its own; every call raises `StoreUnavailable` when Redis does not answer."""

    def __init__(self, store: Store, *, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    async def track_document_view(self, request_id: str, user_id: str, domain: str | None = None) -> None:
        """Count a view of the document of a signature request. One round trip."""
        await self._count(_VIEWS, request_id, user_id, domain)

    async def track_signature_completion(
        self, request_id: str, user_id: str, domain: str | None = None
    ) -> None:
        """Count a signature that a user has completed. One round trip."""
        await self._count(_SIGNATURES, request_id, user_id, domain)

    async def track_api_performance(self, endpoint: str, duration: timedelta, success: bool) -> bool:
        """Count a call of an endpoint, measured by a monotonic clock. One round trip.

        A negative duration, and an endpoint without a name or with one beyond 256 bytes, is refused: False, and
        nothing is counted. Beyond 500 endpoints a day, new ones are counted together.
        """
        if duration < timedelta(0) or not 0 < len(endpoint.encode()) <= _LONGEST_ENDPOINT:
            return False
        await time_call(
            self._store, self._keys, day=self._day(), endpoint=endpoint, duration=duration, success=success
        )
        return True

    async def today(self) -> Today:
        """Today's numbers, overall. One round trip."""
        day = self._day()
        counters, requests, users = await self._read(
            ("HMGET", self._keys.analytics_counters(day), _VIEWS, _SIGNATURES),
            ("PFCOUNT", self._keys.analytics_requests(day)),
            ("PFCOUNT", self._keys.analytics_users(day)),
        )
        key = self._keys.analytics_counters(day)
        return Today(*_numbers(counters, key), *_numbers([requests, users], key))

    async def today_of(self, domain: str) -> DomainToday:
        """Today's numbers of one domain. One round trip."""
        key = self._keys.analytics_counters(self._day())
        (counters,) = await self._read(("HMGET", key, f"{_VIEWS}:{domain}", f"{_SIGNATURES}:{domain}"))
        return DomainToday(*_numbers(counters, key))

    async def performance(self) -> tuple[EndpointPerformance, ...]:
        """Today's endpoints, the most called first. One round trip."""
        key = self._keys.analytics_endpoints(self._day())
        (reply,) = await self._read(("HGETALL", key))
        flat = reply if isinstance(reply, list) else []
        fields = dict(zip((_text(name) for name in flat[::2]), _numbers(flat[1::2], key), strict=True))
        found = [
            _performance(name.removeprefix("calls:"), fields) for name in fields if name.startswith("calls:")
        ]
        return tuple(sorted(found, key=lambda one: (-one.calls, one.endpoint)))

    async def reset(self) -> int:
        """Delete the counters of every day that may still have some; how many keys there were. One round trip.

        Their names are known from the calendar, so nothing is searched.
        """
        now = self._now()
        days = [(now + timedelta(days=1 - back)).date().isoformat() for back in range(ANALYTICS_TTL.days + 2)]
        replies = await self._read(*(("UNLINK", *self._keys_of(day)) for day in days))
        return sum(reply for reply in replies if isinstance(reply, int))

    async def _count(self, event: str, request: str, user: str, domain: str | None) -> None:
        await count(
            self._store, self._keys, day=self._day(), event=event, request=request, user=user, domain=domain
        )

    async def _read(self, *commands: tuple[str, ...]) -> list[Reply]:
        return [raised(reply) for reply in await self._store.pipeline(commands)]

    def _keys_of(self, day: str) -> tuple[str, ...]:
        keys = self._keys
        return (
            keys.analytics_counters(day),
            keys.analytics_endpoints(day),
            keys.analytics_requests(day),
            keys.analytics_users(day),
        )

    def _day(self) -> str:
        return self._now().date().isoformat()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._store.now_ms() / 1000, UTC)


def _performance(endpoint: str, fields: dict[str, int]) -> EndpointPerformance:
    calls = fields[f"calls:{endpoint}"]
    total = timedelta(microseconds=fields.get(f"us:{endpoint}", 0))
    return EndpointPerformance(endpoint, calls, fields.get(f"failures:{endpoint}", 0), total / max(calls, 1))


def _numbers(reply: Reply, key: str) -> list[int]:
    """Integers of a list of replies; an absent counter is 0. Raises `CodecError` naming the key."""
    items = reply if isinstance(reply, list) else []
    try:
        return [int(item) if isinstance(item, (bytes, int)) else 0 for item in items]
    except ValueError as fault:
        raise CodecError("a stored counter is not a whole number", key=key) from fault


def _text(reply: Reply) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
