"""Policies: the limits of accounts besides the seven that are always there.

All of them, and `auth` and `totp`, are counted in the database while Redis does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from counterseal.ratelimit.limit import Limit
from counterseal.ratelimit.policy import POLICIES as ALWAYS
from counterseal.ratelimit.policy import Policy, WithoutRedis


def _closed(name: str, count: int, per: timedelta) -> Policy:
    return Policy(name, (Limit(count, per),), WithoutRedis.CLOSED)


POLICIES: Final = (
    _closed("sign_up", 10, timedelta(hours=1)),
    _closed("account_mail", 5, timedelta(hours=1)),
    _closed("totp_day", 20, timedelta(days=1)),
    _closed("totp_address", 30, timedelta(minutes=5)),
)
"""New accounts per address, mails for one account, wrong codes per user and context, wrong codes per address."""

COUNTED_ELSEWHERE: Final[Mapping[str, tuple[Limit, ...]]] = MappingProxyType(
    {
        **{policy.name: policy.limits for policy in ALWAYS if policy.name in {"auth", "totp"}},
        **{policy.name: policy.limits for policy in POLICIES},
    }
)
"""The limits that `Attempts` counts, by the name of their limiter."""
