"""Every key and channel of the system: its name, its Redis type, its TTL and its hash tag.

| key | type | TTL | holds |
| --- | --- | --- | --- |
| `<ns>:cache:<kind>:{<id>}` | string | the kind's | one cached value with the generation it was written under |
| `<ns>:cachegen:<kind>` | string | 30 days, longer than any value | the generation of a kind; absent means none was ever cleared |
| `<ns>:jobs:{<queue>}:ready` | list | none: emptied by workers, must outlive any pause of theirs | ids of queued jobs |
| `<ns>:jobs:{<queue>}:running` | sorted set | none: as above | ids of leased jobs by the end of their lease |
| `<ns>:jobs:{<queue>}:job:<id>` | hash | 7 days, from every change of state | one job |
| `<ns>:jobs:{<queue>}:stats:<type>` | hash | none: one per type, a handful of counters that must stay right for ever | jobs by state |
| `<ns>:analytics:{<day>}:counters` | hash | 40 days | the day's counters |
| `<ns>:analytics:{<day>}:endpoints` | hash | 40 days | the day's calls, failures and time per endpoint |

Channels: `<ns>:jobs:{<queue>}:wake` tells idle workers that a job is ready.

Identifiers are percent-encoded, so that no user text can end a hash tag or pass for another key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

CACHE_GENERATION_TTL = timedelta(days=30)
JOB_TTL = timedelta(days=7)
ANALYTICS_TTL = timedelta(days=40)

WITHOUT_TTL = (
    r"[^:]+:jobs:\{[^}]+\}:(ready|running)",
    r"[^:]+:jobs:\{[^}]+\}:stats:[^:]+",
)
"""Patterns of the keys that may live without a TTL; the table above says why. The leak fixture of the tests uses them."""


def escape(identifier: str) -> str:
    """An identifier as it stands in a key: percent-encoded UTF-8, so `:`, `{`, `}` and spaces cannot occur."""
    return quote(identifier, safe="")


@dataclass(frozen=True, slots=True)
class Keys:
    """Spells the keys of one namespace."""

    namespace: str = "cs"

    def cache_value(self, kind: str, identifier: str) -> str:
        return f"{self.namespace}:cache:{escape(kind)}:{{{escape(identifier)}}}"

    def cache_generation(self, kind: str) -> str:
        return f"{self.namespace}:cachegen:{escape(kind)}"

    def jobs_ready(self, queue: str) -> str:
        return f"{self._queue(queue)}:ready"

    def jobs_running(self, queue: str) -> str:
        return f"{self._queue(queue)}:running"

    def job(self, queue: str, identifier: str) -> str:
        return f"{self._queue(queue)}:job:{escape(identifier)}"

    def jobs_stats(self, queue: str, task: str) -> str:
        return f"{self._queue(queue)}:stats:{escape(task)}"

    def jobs_wake(self, queue: str) -> str:
        return f"{self._queue(queue)}:wake"

    def analytics_counters(self, day: str) -> str:
        return f"{self.namespace}:analytics:{{{escape(day)}}}:counters"

    def analytics_endpoints(self, day: str) -> str:
        return f"{self.namespace}:analytics:{{{escape(day)}}}:endpoints"

    def _queue(self, queue: str) -> str:
        return f"{self.namespace}:jobs:{{{escape(queue)}}}"
