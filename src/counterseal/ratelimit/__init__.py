"""Rate limits: how often somebody may do something, decided in one place for all processes.

What an application declares and is told is here; `Counterseal.rate_limits` decides.
"""

from __future__ import annotations

from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.policy import Elsewhere, Policy, WithoutRedis

__all__ = ["Algorithm", "Decision", "Elsewhere", "Limit", "Policy", "Reason", "WithoutRedis"]
