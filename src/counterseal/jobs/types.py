"""The types of jobs. A job of any other name is refused when it is queued."""

from __future__ import annotations

from typing import Final

from counterseal.core.errors import UnknownName

EMAIL: Final = "email"
PDF_GENERATION: Final = "pdf-generation"
NOTIFICATION: Final = "notification"
AUDIT_LOG: Final = "audit-log"
ANALYTICS_AGGREGATION: Final = "analytics-aggregation"
REMINDER_CHECK: Final = "reminder-check"
CLEANUP_EXPIRED: Final = "cleanup-expired"
PROBE: Final = "probe"
"""Does nothing: shows that a job comes from the queue through a worker to its end."""

TYPES: Final = (
    EMAIL,
    PDF_GENERATION,
    NOTIFICATION,
    AUDIT_LOG,
    ANALYTICS_AGGREGATION,
    REMINDER_CHECK,
    CLEANUP_EXPIRED,
    PROBE,
)


def check_type(name: str) -> str:
    """The name, when it is a type of job. Raises `UnknownName` listing the types."""
    if name not in TYPES:
        raise UnknownName(f"no type of job is named {name!r}; the types are {', '.join(TYPES)}")
    return name
