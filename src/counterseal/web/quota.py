"""Quota: what an answer says of a rate limit, in header fields and as a problem.

| field | says |
| --- | --- |
| `RateLimit-Policy` | each limit: its quota and its window in seconds, `"api";q=100;w=60` |
| `RateLimit` | what is left of the one that is nearest to its end, and for how long: `"api";r=42;t=30` |
| `X-RateLimit-Limit`, `-Remaining` | the same for old clients |
| `X-RateLimit-Reset` | the second since 1970 at which all of it may be used again |
| `Retry-After` | on a refusal: whole seconds, at least 1 |

The first two are of draft-ietf-httpapi-ratelimit-headers-11. A limit of a limiter that has several is called by its
window: `"api-1";q=10;w=1, "api-86400";q=1000;w=86400`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from counterseal.core.errors import StoreUnavailable
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Limit
from counterseal.web.problems import RETRY_AFTER_S, Problem, describe

_SILENT = frozenset({Reason.EXEMPT, Reason.DENIED, Reason.UNAVAILABLE})
"""Reasons that say nothing of a count, so that there is nothing to tell."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A decision, the limiter that made it, and the limits it was made by."""

    name: str
    limits: Sequence[Limit]
    decision: Decision


def quota_headers(quotas: Sequence[Quota], now: datetime) -> Mapping[str, str]:
    """The header fields of an answer to a request that these were asked for; none when none has counted."""
    told = [quota for quota in quotas if quota.decision.reason not in _SILENT]
    if not told:
        return {}
    tightest = min(told, key=lambda quota: (quota.decision.success, quota.decision.remaining))
    return {
        "RateLimit-Policy": ", ".join(_policy(quota) for quota in told),
        "RateLimit": ", ".join(_service_limit(quota, now) for quota in told),
        "X-RateLimit-Limit": str(tightest.decision.limit),
        "X-RateLimit-Remaining": str(tightest.decision.remaining),
        "X-RateLimit-Reset": str(math.ceil(tightest.decision.reset.timestamp())),
    }


def refusal(decision: Decision) -> Problem:
    """A refusal as a problem: 429, or 503 where the limiter is closed because nobody can count."""
    retry_after_s = None if decision.retry_after is None else max(1, _whole_seconds(decision.retry_after))
    if decision.reason is Reason.UNAVAILABLE:
        problem = describe(StoreUnavailable())
        problem.headers["Retry-After"] = str(retry_after_s or RETRY_AFTER_S)
        return problem
    if retry_after_s is None:
        never = "No requests are taken from here."
        if decision.reason is not Reason.DENIED:
            never = f"This takes more than the {decision.limit} that can be had at once."
        return Problem(HTTPStatus.TOO_MANY_REQUESTS, "rate_limited", never)
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limited",
        f"Too many requests; the next is taken in {retry_after_s} s.",
        headers={"Retry-After": str(retry_after_s)},
    )


def _policy(quota: Quota) -> str:
    several = len(quota.limits) > 1
    return ", ".join(
        f'"{_name(quota, limit) if several else quota.name}";q={limit.count};w={_window_s(limit)}'
        for limit in quota.limits
    )


def _service_limit(quota: Quota, now: datetime) -> str:
    decision = quota.decision
    window = max(decision.reset - now, timedelta())
    if decision.retry_after is not None:
        # A client that reads both is not to find the window ending after the time at which it may come again.
        window = min(window, decision.retry_after)
    return f'"{_decided(quota)}";r={decision.remaining};t={_whole_seconds(window)}'


def _decided(quota: Quota) -> str:
    """The name of the limit that a decision tells of."""
    if len(quota.limits) == 1:
        return quota.name
    by_capacity = sorted(quota.limits, key=lambda limit: limit.capacity)
    # Without Redis a decision tells of this process's share, which is less than the limit.
    decided = next(
        (limit for limit in by_capacity if limit.capacity >= quota.decision.limit), by_capacity[-1]
    )
    return _name(quota, decided)


def _name(quota: Quota, limit: Limit) -> str:
    whole = limit.per_ms % 1000 == 0
    return f"{quota.name}-{limit.per_ms // 1000}" if whole else f"{quota.name}-{limit.per_ms}ms"


def _window_s(limit: Limit) -> int:
    return max(1, _whole_seconds(limit.per))


def _whole_seconds(duration: timedelta) -> int:
    return math.ceil(duration / timedelta(seconds=1))
