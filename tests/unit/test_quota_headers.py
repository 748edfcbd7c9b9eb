"""What an answer says of rate limits: the exact header fields, and the two refusals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.web.quota import FIELDS, Quota, quota_headers, refusal

NOW = datetime(2026, 11, 24, 9, 0, 0, 400_000, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
API = (Limit(100, MINUTE),)
NAMES = {
    name.lower(): name
    for name in (
        "RateLimit-Policy",
        "RateLimit",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
    )
}


def fields(*quotas: Quota) -> dict[str, str]:
    """What an answer of this moment says."""
    told = quota_headers(quotas, round(NOW.timestamp() * 1000))
    return {NAMES[name.decode("ascii")]: value.decode("ascii") for name, value in told}


def decided(
    remaining: int,
    *,
    success: bool = True,
    limit: int = 100,
    reset: timedelta = timedelta(seconds=30),
    retry_after: timedelta | None = None,
    reason: Reason = Reason.ALLOWED,
    per: timedelta | None = None,
) -> Decision:
    return Decision(
        success=success,
        limit=limit,
        remaining=remaining,
        reset=NOW + reset,
        retry_after=retry_after,
        reason=reason,
        per=per,
    )


def test_an_allowed_answer_tells_the_policy_and_what_is_left():
    assert fields(Quota("api", API, decided(42))) == {
        "RateLimit-Policy": '"api";q=100;w=60',
        "RateLimit": '"api";r=42;t=30',
        "X-RateLimit-Limit": "100",
        "X-RateLimit-Remaining": "42",
        "X-RateLimit-Reset": str(int(NOW.timestamp()) + 31),
    }


def test_seconds_are_rounded_up_and_never_negative():
    def told(reset: timedelta) -> str:
        return fields(Quota("api", API, decided(1, reset=reset)))["RateLimit"]

    assert told(timedelta(seconds=29, milliseconds=1)) == '"api";r=1;t=30'
    assert told(timedelta(milliseconds=1)) == '"api";r=1;t=1'
    assert told(timedelta()) == '"api";r=1;t=0'
    assert told(-MINUTE) == '"api";r=1;t=0'
    half = (Limit(10, timedelta(milliseconds=500)),)
    assert fields(Quota("api", half, decided(1)))["RateLimit-Policy"] == '"api";q=10;w=1'


def test_the_window_of_a_refusal_ends_no_later_than_its_retry_after():
    refused = decided(0, success=False, retry_after=timedelta(seconds=7), reason=Reason.LIMITED)
    assert fields(Quota("api", API, refused))["RateLimit"] == '"api";r=0;t=7'


def test_limits_of_one_limiter_are_told_apart_by_their_windows():
    limits = (Limit(10, timedelta(seconds=1)), Limit(1000, timedelta(days=1)))
    headers = fields(Quota("api", limits, decided(997, limit=1000)))
    assert headers["RateLimit-Policy"] == '"api-1";q=10;w=1, "api-86400";q=1000;w=86400'
    assert headers["RateLimit"] == '"api-86400";r=997;t=30'
    assert headers["X-RateLimit-Limit"] == "1000"


@pytest.mark.parametrize(("per", "name"), [(timedelta(seconds=1), "api-1"), (timedelta(days=1), "api-86400")])
def test_of_two_limits_with_one_capacity_the_period_says_which_one_decided(per: timedelta, name: str):
    limits = (Limit(10, timedelta(seconds=1)), Limit(10, timedelta(days=1)))
    assert fields(Quota("api", limits, decided(5, limit=10, per=per)))["RateLimit"] == f'"{name}";r=5;t=30'


def test_a_decision_by_a_limit_that_has_gone_meanwhile_is_told_under_the_name_of_one_that_is_there():
    limits = (Limit(10, timedelta(seconds=1)), Limit(1000, timedelta(days=1)))
    gone = decided(5, limit=500, per=timedelta(hours=1))
    assert fields(Quota("api", limits, gone))["RateLimit"] == '"api-86400";r=5;t=30'


def test_the_names_of_the_fields_are_all_told():
    told = quota_headers([Quota("api", API, decided(1))], 0)
    assert {name for name, _ in told} == FIELDS


def test_the_same_limits_of_two_limiters_and_other_limits_of_one_are_written_apart():
    other = (Limit(7, MINUTE),)
    policies = [
        fields(Quota(name, limits, decided(1)))["RateLimit-Policy"]
        for name, limits in (("api", API), ("auth", API), ("api", other), ("api", (Limit(100, MINUTE),)))
    ]
    assert policies == ['"api";q=100;w=60', '"auth";q=100;w=60', '"api";q=7;w=60', '"api";q=100;w=60']


def test_a_share_of_a_limit_is_told_under_the_name_of_a_limit():
    limits = (Limit(10, timedelta(seconds=1)), Limit(1000, timedelta(days=1)))

    def told(share: int) -> str:
        return fields(Quota("api", limits, decided(1, limit=share)))["RateLimit"]

    assert told(5) == '"api-1";r=1;t=30'
    assert told(500) == '"api-86400";r=1;t=30'
    assert told(5000) == '"api-86400";r=1;t=30'


def test_windows_that_are_no_whole_seconds_are_told_apart_too():
    limits = (Limit(2, timedelta(milliseconds=100)), Limit(5, timedelta(milliseconds=500)))
    headers = fields(Quota("api", limits, decided(1, limit=2)))
    assert headers["RateLimit-Policy"] == '"api-100ms";q=2;w=1, "api-500ms";q=5;w=1'
    assert headers["RateLimit"] == '"api-100ms";r=1;t=30'


def test_a_limit_with_a_burst_is_found_by_its_burst():
    gcra = Algorithm.GCRA
    limits = (Limit(10, timedelta(seconds=1), gcra, burst=25), Limit(1000, timedelta(days=1), gcra))
    headers = fields(Quota("api", limits, decided(24, limit=25)))
    assert headers["RateLimit"] == '"api-1";r=24;t=30'


def test_of_two_limiters_both_are_told_and_old_clients_hear_of_the_tighter_one():
    api, email = decided(42), decided(3, limit=20)
    headers = fields(Quota("api", API, api), Quota("email", (Limit(20, MINUTE * 60),), email))
    assert headers["RateLimit-Policy"] == '"api";q=100;w=60, "email";q=20;w=3600'
    assert headers["RateLimit"] == '"api";r=42;t=30, "email";r=3;t=30'
    assert (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"]) == ("20", "3")


def test_old_clients_hear_of_the_one_that_refused():
    left = decided(1, limit=2)
    refused = decided(4, limit=20, success=False, retry_after=MINUTE, reason=Reason.LIMITED)
    headers = fields(Quota("api", API, left), Quota("email", API, refused))
    assert headers["X-RateLimit-Remaining"] == "4"


@pytest.mark.parametrize("reason", [Reason.EXEMPT, Reason.DENIED, Reason.UNAVAILABLE])
def test_where_nothing_was_counted_nothing_is_told(reason: Reason):
    assert fields(Quota("api", API, decided(0, reason=reason))) == {}
    assert fields() == {}


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        (timedelta(), "1"),
        (timedelta(milliseconds=1), "1"),
        (timedelta(seconds=1), "1"),
        (timedelta(seconds=1, microseconds=1), "2"),
        (timedelta(minutes=5), "300"),
    ],
)
def test_retry_after_is_whole_seconds_rounded_up_and_at_least_one(wait: timedelta, seconds: str):
    problem = refusal(decided(0, success=False, retry_after=wait, reason=Reason.LIMITED))
    assert (problem.status, problem.code) == (429, "rate_limited")
    assert problem.headers == {"Retry-After": seconds}


def test_who_is_denied_is_not_told_to_come_again():
    problem = refusal(decided(0, success=False, reason=Reason.DENIED))
    assert (problem.status, problem.code, problem.headers) == (429, "rate_limited", {})


def test_a_cost_that_is_never_allowed_is_told_so():
    problem = refusal(decided(20, limit=20, success=False, reason=Reason.LIMITED))
    assert (problem.status, problem.headers) == (429, {})
    assert problem.detail == "This takes more than the 20 that can be had at once."


def test_a_limiter_that_is_closed_because_nobody_can_count_is_not_the_clients_fault():
    problem = refusal(decided(0, success=False, reason=Reason.UNAVAILABLE))
    assert (problem.status, problem.code) == (503, "store_unavailable")
    assert problem.headers == {"Retry-After": "2"}
    longer = decided(0, success=False, retry_after=timedelta(seconds=5.5), reason=Reason.UNAVAILABLE)
    assert refusal(longer).headers == {"Retry-After": "6"}
