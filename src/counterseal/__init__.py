"""counterseal: the Redis layer of a document-signing web application.

This is the one door: every public name is here, and nothing is loaded before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from counterseal.app import Counterseal
    from counterseal.cache.kind import Kind
    from counterseal.core.errors import (
        CodecError,
        CommandError,
        ConfigurationError,
        CountersealError,
        DatabaseError,
        DatabaseUnavailable,
        StoreError,
        StoreUnavailable,
        UnknownName,
    )
    from counterseal.core.settings import Settings
    from counterseal.jobs.context import JobContext
    from counterseal.jobs.job import Job, State
    from counterseal.jobs.task import Task, task
    from counterseal.jobs.worker import Worker
    from counterseal.ratelimit.limit import Limit
    from counterseal.ratelimit.policy import Policy

__all__ = [
    "CodecError",
    "CommandError",
    "ConfigurationError",
    "Counterseal",
    "CountersealError",
    "DatabaseError",
    "DatabaseUnavailable",
    "Job",
    "JobContext",
    "Kind",
    "Limit",
    "Policy",
    "Settings",
    "State",
    "StoreError",
    "StoreUnavailable",
    "Task",
    "UnknownName",
    "Worker",
    "task",
]

_HOMES: Final = {
    "CodecError": "core.errors",
    "CommandError": "core.errors",
    "ConfigurationError": "core.errors",
    "Counterseal": "app",
    "CountersealError": "core.errors",
    "DatabaseError": "core.errors",
    "DatabaseUnavailable": "core.errors",
    "Job": "jobs.job",
    "JobContext": "jobs.context",
    "Kind": "cache.kind",
    "Limit": "ratelimit.limit",
    "Policy": "ratelimit.policy",
    "Settings": "core.settings",
    "State": "jobs.job",
    "StoreError": "core.errors",
    "StoreUnavailable": "core.errors",
    "Task": "jobs.task",
    "UnknownName": "core.errors",
    "Worker": "jobs.worker",
    "task": "jobs.task",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
