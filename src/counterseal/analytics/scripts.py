"""The atomic operations of analytics, one typed call for each file in `lua/`."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from counterseal.store.base import Store
from counterseal.store.keys import ANALYTICS_TTL, Keys
from counterseal.store.scripts import load_script

MAX_ENDPOINTS: Final = 500
OTHER: Final = "(other)"
"""What the endpoints beyond the first `MAX_ENDPOINTS` of a day are counted as."""

_TTL_S: Final = ANALYTICS_TTL // timedelta(seconds=1)
_COUNT: Final = load_script("counterseal.analytics", "count")
_TIME_CALL: Final = load_script("counterseal.analytics", "time_call")


async def count(
    store: Store, keys: Keys, *, day: str, event: str, request: str, user: str, domain: str | None
) -> None:
    """Add one event to the counters of a day. One round trip."""
    await store.run(
        _COUNT,
        counters=keys.analytics_counters(day),
        requests=keys.analytics_requests(day),
        users=keys.analytics_users(day),
        event=event,
        request=request,
        user=user,
        domain=domain or "",
        ttl_s=_TTL_S,
    )


async def time_call(
    store: Store, keys: Keys, *, day: str, endpoint: str, duration: timedelta, success: bool
) -> None:
    """Add one call to the measurements of a day. One round trip."""
    await store.run(
        _TIME_CALL,
        endpoints=keys.analytics_endpoints(day),
        endpoint=endpoint,
        duration_us=duration // timedelta(microseconds=1),
        failed=int(not success),
        limit=MAX_ENDPOINTS,
        other=OTHER,
        ttl_s=_TTL_S,
    )
