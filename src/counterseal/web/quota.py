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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

from counterseal.core.errors import StoreUnavailable
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Limit
from counterseal.web.problems import RETRY_AFTER_S, Problem, describe

_SILENT: Final = (Reason.EXEMPT, Reason.DENIED, Reason.UNAVAILABLE)
"""Reasons that say nothing of a count, so that there is nothing to tell."""

FIELDS: Final = frozenset(
    {b"ratelimit-policy", b"ratelimit", b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}
)
"""The names of the fields, as `quota_headers` has them."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_SECOND: Final = timedelta(seconds=1)
_REMEMBERED: Final = 1024


class Quota(NamedTuple):
    """A decision, the limiter that made it, and the limits it was made by."""

    name: str
    limits: tuple[Limit, ...]
    decision: Decision


@dataclass(frozen=True, slots=True)
class _Words:
    """How a limiter and its limits are written."""

    policy: bytes
    names: Mapping[timedelta, bytes]


def quota_headers(quotas: Sequence[Quota], now_ms: int) -> list[tuple[bytes, bytes]]:
    """The header fields of an answer to a request that these were asked for; none when none has counted.

    As ASGI has them: names in small letters.
    """
    told = [quota for quota in quotas if quota.decision.reason not in _SILENT]
    if not told:
        return []
    tightest = told[0].decision
    policy, left = _written(told[0], now_ms)
    for quota in told[1:]:
        decision = quota.decision
        if (decision.success, decision.remaining) < (tightest.success, tightest.remaining):
            tightest = decision
        further = _written(quota, now_ms)
        policy, left = b"%b, %b" % (policy, further[0]), b"%b, %b" % (left, further[1])
    return [
        (b"ratelimit-policy", policy),
        (b"ratelimit", left),
        (b"x-ratelimit-limit", b"%d" % tightest.limit),
        (b"x-ratelimit-remaining", b"%d" % tightest.remaining),
        (b"x-ratelimit-reset", b"%d" % -((_EPOCH - tightest.reset) // _SECOND)),
    ]


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


@lru_cache(_REMEMBERED)
def _words(name: str, limits: tuple[Limit, ...]) -> _Words:
    """Written once: most answers of an application tell of the same few limits."""
    names = {limit.per: (_name(name, limit) if len(limits) > 1 else name) for limit in limits}
    policy = ", ".join(
        f'"{names[limit.per]}";q={limit.count};w={_whole_seconds(limit.per)}' for limit in limits
    )
    return _Words(policy.encode("ascii"), {per: text.encode("ascii") for per, text in names.items()})


def _written(quota: Quota, now_ms: int) -> tuple[bytes, bytes]:
    """The policy of a quota and what is left of it."""
    decision = quota.decision
    words = _words(quota.name, quota.limits)
    window_ms = max(-((_EPOCH - decision.reset) // _MS) - now_ms, 0)
    if decision.retry_after is not None:
        # A client that reads both is not to find the window ending after the time at which it may come again.
        window_ms = min(window_ms, -(-decision.retry_after // _MS))
    name = words.names.get(decision.per) if decision.per else None
    if name is None:
        name = words.names[_decided(quota).per]
    return words.policy, b'"%b";r=%d;t=%d' % (name, decision.remaining, -(-window_ms // 1000))


def _decided(quota: Quota) -> Limit:
    """The limit that a decision tells of, where it does not say so itself: what counts elsewhere may not know it."""
    if len(quota.limits) == 1:
        return quota.limits[0]
    by_capacity = sorted(quota.limits, key=lambda limit: limit.capacity)
    # Without Redis a decision tells of this process's share, which is less than the limit.
    return next((limit for limit in by_capacity if limit.capacity >= quota.decision.limit), by_capacity[-1])


def _name(name: str, limit: Limit) -> str:
    whole = limit.per_ms % 1000 == 0
    return f"{name}-{limit.per_ms // 1000}" if whole else f"{name}-{limit.per_ms}ms"


def _whole_seconds(duration: timedelta) -> int:
    return -(-duration // _SECOND)
