"""The types of jobs of a signing application. Others are those of the tasks that an application gives."""

from __future__ import annotations

from typing import Final

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

KNOWN: Final = frozenset(TYPES)
"""A job of one of these is accepted whether or not there is a task for it; without one it is parked."""
