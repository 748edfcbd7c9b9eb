"""Every key and channel of the system: its name, its Redis type, its TTL and its hash tag.

| key | type | TTL | holds |
| --- | --- | --- | --- |
| `<ns>:cache:<kind>:{<id>}` | string | the kind's, its stale window and 2 min; a tombstone's 2 min, twice the longest load that may fill | one cached value with the generations it was written under, or the tombstone of an invalidated one |
| `<ns>:cachelease:<kind>:{<id>}` | string | a few seconds, prolonged while the load goes on | who loads a missing value |
| `<ns>:cachetag:<tag>` | string | 30 days, prolonged by writes: 16 at the least after each, longer than any value | the generation of a tag; while it is absent nothing with the tag is valid |
| `<ns>:cachegen:<kind>` | string | 30 days, prolonged by writes: 16 at the least after each, longer than any value | the generation of a kind; while it is absent nothing of the kind is valid |
| `<ns>:jobs:{<queue>}:ready:<type>` | list | none: emptied by workers, must outlive any pause of theirs | ids of queued jobs |
| `<ns>:jobs:{<queue>}:running` | sorted set | none: as above | ids of leased jobs by the end of their lease |
| `<ns>:jobs:{<queue>}:job:<id>` | hash | none until the job has ended, for the same reason; then 7 days | one job |
| `<ns>:jobs:{<queue>}:stats:<type>` | hash | none: one per type, a handful of counters that must stay right for ever | jobs by state |
| `<ns>:jobs:{<queue>}:time` | string | 7 days from the last change, longer than any lease | the last time that a lease was judged by |
| `<ns>:analytics:{<day>}:counters` | hash | 40 days | the day's counters, overall and by domain |
| `<ns>:analytics:{<day>}:endpoints` | hash | 40 days | the day's calls, failures and time per endpoint |
| `<ns>:analytics:{<day>}:requests` | HyperLogLog | 40 days | the different signature requests of the day |
| `<ns>:analytics:{<day>}:users` | HyperLogLog | 40 days | the different users of the day |
| `<ns>:ratelimit:<name>:<algorithm>:<ms>:{<identifier>}` | string, for `sliding_log` a list | until it is whole again, and a minute | what an identifier has used of a limit with this period |
| `<ns>:ratelimitrefused:<name>:{<hour>}` | sorted set | 8 days from the last count | the identifiers that a limiter refused most often in an hour |
| `<ns>:tallies:<name>:{<hour>}` | hash | its service's, from the first count | what a service counted in an hour |
| `<ns>:live:{<name>}` | hash | none: configuration, which stays until somebody changes it; bounded by its service | entries of which every process keeps a copy, and their version under the empty name |
| `<ns>:{u:<user>}:s:<part>` | hash | until the session ends at the latest | a copy of a session, or the tombstone of an ended one |
| `<ns>:{u:<user>}:idx` | sorted set | as long as the user's longest session | the parts of the user's sessions by their last use |
| `<ns>:{u:<user>}:epoch` | string | as above | the user's epoch: a session of a former one has ended |
| `<ns>:{u:<user>}:barriers` | hash | as long as a session may last | until when sessions made were ended while the database was down, by the part that stayed, or `*` |
| `<ns>:sessions:epoch` | string | 1 day; the database has it | the epoch of all sessions |
| `<ns>:sessions:{pending}` | stream | none: what the database must be told has to outlive any outage; at most 100,000 entries, each removed once it is told | revocations and rotations that were accepted while the database was down |
| `<ns>:doctor:{<id>}` | string | 1 min | what the doctor writes to see whether it may |

Channels: `<ns>:jobs:{<queue>}:wake` tells idle workers the type of a job that is ready, and `<ns>:jobs:{<queue>}:done`
tells the id of a job that has ended; `<ns>:cache:loaded` tells the key of a value that somebody waits for, and
`<ns>:cache:changed` the keys of the cache that have changed, for kinds that are also kept in the memory of processes.
`<ns>:live:{<name>}:changed` tells the new version of a live hash, and `<ns>:ratelimit:lifted` the limiter and the
identifier of what was given back or forgotten. `<ns>:sessions:ended` tells of sessions that have ended.

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
SESSIONS_EPOCH_TTL = timedelta(days=1)
RATE_LIMIT_COUNTS_TTL = timedelta(days=8)

WITHOUT_TTL = (
    r"[^:]+:jobs:\{[^}]+\}:(ready:[^:]+|running)",
    r"[^:]+:jobs:\{[^}]+\}:job:[^:]+",
    r"[^:]+:jobs:\{[^}]+\}:stats:[^:]+",
    r"[^:]+:live:\{[^}]+\}",
    r"[^:]+:sessions:\{pending\}",
)
"""Patterns of the keys that may live without a TTL; the table above says why. The leak fixture of the tests uses them."""


def escape(identifier: str) -> str:
    """An identifier as it stands in a key: percent-encoded UTF-8, so `:`, `{`, `}` and spaces cannot occur."""
    if identifier.isascii() and identifier.replace("-", "").isalnum():
        return identifier  # nothing to encode, as in most; four times as fast
    return quote(identifier, safe="")


@dataclass(frozen=True, slots=True)
class Keys:
    """Spells the keys of one namespace."""

    namespace: str = "cs"

    def cache_value(self, kind: str, identifier: str) -> str:
        return f"{self.namespace}:cache:{escape(kind)}:{{{escape(identifier)}}}"

    def cache_values(self, kind: str) -> str:
        """What the key of every value of a kind begins with."""
        return f"{self.namespace}:cache:{escape(kind)}:"

    def cache_lease(self, kind: str, identifier: str) -> str:
        return f"{self.namespace}:cachelease:{escape(kind)}:{{{escape(identifier)}}}"

    def cache_generation(self, kind: str) -> str:
        return f"{self.cache_generations()}{escape(kind)}"

    def cache_generations(self) -> str:
        """What the key of every kind's generation begins with."""
        return f"{self.namespace}:cachegen:"

    def cache_tag(self, tag: str) -> str:
        return f"{self.cache_tags()}{escape(tag)}"

    def cache_tags(self) -> str:
        """What the key of every tag's generation begins with."""
        return f"{self.namespace}:cachetag:"

    def cache_loaded(self) -> str:
        return f"{self.namespace}:cache:loaded"

    def cache_changed(self) -> str:
        return f"{self.namespace}:cache:changed"

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

    def tallies(self, name: str, hour: str) -> str:
        return f"{self.namespace}:tallies:{escape(name)}:{{{escape(hour)}}}"

    def live(self, name: str) -> str:
        return f"{self.namespace}:live:{{{escape(name)}}}"

    def live_channel(self, name: str) -> str:
        return f"{self.live(name)}:changed"

    def rate_limit(self, name: str, algorithm: str, per_ms: int, identifier: str) -> str:
        return f"{self.namespace}:ratelimit:{escape(name)}:{algorithm}:{per_ms}:{{{escape(identifier)}}}"

    def rate_limit_refused(self, name: str, hour: str) -> str:
        return f"{self.namespace}:ratelimitrefused:{escape(name)}:{{{escape(hour)}}}"

    def rate_limit_lifted(self) -> str:
        return f"{self.namespace}:ratelimit:lifted"

    def sessions_of(self, user_id: str) -> str:
        """What every key of a user's sessions begins with; all of them share a slot."""
        return f"{self.namespace}:{{u:{escape(user_id)}}}:"

    def session(self, user_id: str, part: str) -> str:
        return f"{self.sessions_of(user_id)}s:{escape(part)}"

    def session_index(self, user_id: str) -> str:
        return f"{self.sessions_of(user_id)}idx"

    def session_epoch(self, user_id: str) -> str:
        return f"{self.sessions_of(user_id)}epoch"

    def session_barriers(self, user_id: str) -> str:
        return f"{self.sessions_of(user_id)}barriers"

    def sessions_epoch(self) -> str:
        return f"{self.namespace}:sessions:epoch"

    def sessions_pending(self) -> str:
        return f"{self.namespace}:sessions:{{pending}}"

    def sessions_ended(self) -> str:
        return f"{self.namespace}:sessions:ended"

    def doctor_probe(self, identifier: str) -> str:
        return f"{self.namespace}:doctor:{{{escape(identifier)}}}"

    def _day(self, day: str) -> str:
        return f"{self.namespace}:analytics:{{{escape(day)}}}"
