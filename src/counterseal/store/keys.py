"""Every key and channel of the system: its name, its Redis type, its TTL and its hash tag.

| key | type | TTL | holds |
| --- | --- | --- | --- |
| `<ns>:cache:<kind>:{<id>}` | string | the kind's and a minute | one cached value with the generation it was written under |
| `<ns>:cachegen:<kind>` | string | 30 days from the last write, longer than any value | the generation of a kind; while it is absent nothing of the kind is valid |
| `<ns>:jobs:{<queue>}:ready:<type>` | list | none: emptied by workers, must outlive any pause of theirs | ids of queued jobs |
| `<ns>:jobs:{<queue>}:running` | sorted set | none: as above | ids of leased jobs by the end of their lease |
| `<ns>:jobs:{<queue>}:job:<id>` | hash | none until the job has ended, for the same reason; then 7 days | one job |
| `<ns>:jobs:{<queue>}:stats:<type>` | hash | none: one per type, a handful of counters that must stay right for ever | jobs by state |
| `<ns>:jobs:{<queue>}:time` | string | 7 days from the last change, longer than any lease | the last time that a lease was judged by |
| `<ns>:analytics:{<day>}:counters` | hash | 40 days | the day's counters, overall and by domain |
| `<ns>:analytics:{<day>}:endpoints` | hash | 40 days | the day's calls, failures and time per endpoint |
| `<ns>:analytics:{<day>}:requests` | HyperLogLog | 40 days | the different signature requests of the day |
| `<ns>:analytics:{<day>}:users` | HyperLogLog | 40 days | the different users of the day |
| `<ns>:doctor:{<id>}` | string | 1 min | what the doctor writes to see whether it may |

Channels: `<ns>:jobs:{<queue>}:wake` tells idle workers the type of a job that is ready, and `<ns>:jobs:{<queue>}:done`
tells the id of a job that has ended.

Identifiers are percent-encoded, so that no user text can end a hash tag or pass for another key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

CACHE_GENERATION_TTL = timedelta(days=30)
JOB_TTL = timedelta(days=7)
JOBS_TIME_TTL = timedelta(days=7)
ANALYTICS_TTL = timedelta(days=40)

WITHOUT_TTL = (
    r"[^:]+:jobs:\{[^}]+\}:(ready:[^:]+|running)",
    r"[^:]+:jobs:\{[^}]+\}:job:[^:]+",
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

    def jobs_prefix(self, queue: str) -> str:
        """What every key of a queue begins with: a script that meets a job's id spells the rest of its keys."""
        return f"{self.namespace}:jobs:{{{escape(queue)}}}"

    def jobs_ready(self, queue: str, task: str) -> str:
        return f"{self.jobs_prefix(queue)}:ready:{escape(task)}"

    def jobs_running(self, queue: str) -> str:
        return f"{self.jobs_prefix(queue)}:running"

    def job(self, queue: str, identifier: str) -> str:
        return f"{self.jobs_prefix(queue)}:job:{escape(identifier)}"

    def jobs_stats(self, queue: str, task: str) -> str:
        return f"{self.jobs_prefix(queue)}:stats:{escape(task)}"

    def jobs_time(self, queue: str) -> str:
        return f"{self.jobs_prefix(queue)}:time"

    def jobs_wake(self, queue: str) -> str:
        return f"{self.jobs_prefix(queue)}:wake"

    def jobs_done(self, queue: str) -> str:
        return f"{self.jobs_prefix(queue)}:done"

    def analytics_counters(self, day: str) -> str:
        return f"{self._day(day)}:counters"

    def analytics_endpoints(self, day: str) -> str:
        return f"{self._day(day)}:endpoints"

    def analytics_requests(self, day: str) -> str:
        return f"{self._day(day)}:requests"

    def analytics_users(self, day: str) -> str:
        return f"{self._day(day)}:users"

    def doctor_probe(self, identifier: str) -> str:
        return f"{self.namespace}:doctor:{{{escape(identifier)}}}"

    def _day(self, day: str) -> str:
        return f"{self.namespace}:analytics:{{{escape(day)}}}"
