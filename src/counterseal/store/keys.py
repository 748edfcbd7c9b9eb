"""Every key and channel of the system: its name, its Redis type, its TTL and its hash tag.

| key | type | TTL | holds |
| --- | --- | --- | --- |
| `<ns>:cache:<kind>:{<id>}` | string | the kind's, its stale window and 2 min; a tombstone's 2 min, twice the longest load that may fill | one cached value with the generations it was written under, or the tombstone of an invalidated one |
| `<ns>:cachelease:<kind>:{<id>}` | string | a few seconds, prolonged while the load goes on | who loads a missing value |
| `<ns>:cachetag:<tag>` | string | 30 days, prolonged by writes: 16 at the least after each, longer than any value | the generation of a tag; while it is absent nothing with the tag is valid |
| `<ns>:cachegen:<kind>` | string | 30 days, prolonged by writes: 16 at the least after each, longer than any value | the generation of a kind; while it is absent nothing of the kind is valid |
| `<ns>:jobs:{<queue>}:queue` | hash | none: one per queue | whether it is paused, its parallelism, the last time that a lease was judged by, and a few counters |
| `<ns>:jobs:{<queue>}:job:<part>` | string | none until the job has ended: an accepted job waits as long as it takes; then a second more than its task says, a dead letter 30 days | one job: a head of lines that scripts read, its options, its arguments, and in the end what became of it and how long it is kept |
| `<ns>:jobs:{<queue>}:state` | hash | none: an entry goes when its job ends | state, token, attempts and last error of jobs that are not just queued |
| `<ns>:jobs:{<queue>}:ready:<priority>` | list | none: emptied by workers, must outlive any pause of theirs | queued jobs without a flow |
| `<ns>:jobs:{<queue>}:lane:<priority>:<flow>` | list | none: as above | queued jobs of a flow |
| `<ns>:jobs:{<queue>}:ring:<priority>` | list | none: as above | the flows that are served in turn, and '' for jobs without one |
| `<ns>:jobs:{<queue>}:flow:<flow>` | hash | none while jobs of it stand in lanes or run; then a minute more than its period: a job that is due or delivered brings its limits along | the limits of a flow and how much of them is used |
| `<ns>:jobs:{<queue>}:flowdue` | sorted set | none: emptied by workers | flows that are held up: those whose rate is used up by the end of their period, the others at infinity |
| `<ns>:jobs:{<queue>}:delayed` | sorted set | none: as above | jobs that are scheduled or run again, by when they are due |
| `<ns>:jobs:{<queue>}:running` | sorted set | none: as above | leased jobs by the end of their lease |
| `<ns>:jobs:{<queue>}:cancel` | hash | none: an entry goes when its job ends | why running jobs shall end |
| `<ns>:jobs:{<queue>}:left` | set | none: an entry goes when a worker passes its place | jobs that were cancelled while they were queued, and whose places still stand in lanes |
| `<ns>:jobs:{<queue>}:parked` | sorted set | none: they wait for a release that can run them | parked jobs by when they were parked |
| `<ns>:jobs:{<queue>}:parked:<type>` | sorted set | none: as above | the same of one type by the schema of their arguments |
| `<ns>:jobs:{<queue>}:dead` | sorted set | none: an entry goes 30 days after its job failed | dead letters by when they failed |
| `<ns>:jobs:{<queue>}:held:<worker>` | string | one lease, 5 min when it was recalled | a worker's last lease call and its jobs |
| `<ns>:jobs:{<queue>}:held:<worker>-to` | string | one lease | the last job that was sent to a worker |
| `<ns>:jobs:{<queue>}:idle` | set | none: workers that have room, each takes itself off | workers that a job may be sent to, with the length of their leases |
| `<ns>:jobs:{<queue>}:dedup:<id>` | string | a minute more than the window that its job asked for | the job that has this deduplication id, and until when by the clock of the store |
| `<ns>:jobs:{<queue>}:unique:<key>` | string | a minute more than its job asked for, at most until that ends | the job that has this unique key, and until when by the clock of the store |
| `<ns>:jobs:{<queue>}:tag:<tag>` | sorted set | 30 days from the last job with it | the jobs with a tag by when they were queued |
| `<ns>:jobs:{<queue>}:progress:<part>` | string | 7 days from the last change | how far a job has come |
| `<ns>:jobs:{<queue>}:logs:<part>` | list | 7 days from the last line, then as long as its job | the log of a job |
| `<ns>:jobs:{<queue>}:logged` | set | none: an entry goes when its job ends | the jobs that have a log |
| `<ns>:jobs:{<queue>}:recent` | list | 30 days from the last job | the last 10,000 jobs that have ended |
| `<ns>:jobs:{<queue>}:events` | stream | none: capped at about 2,000 entries | what has become of jobs, in order |
| `<ns>:jobs:{<queue>}:mark` | string | 1 min | nothing: it was written behind jobs, so that replicas have them once they have it |
| `<ns>:jobs:{<queue>}:types` | set | none: a handful of names | the types that the queue has had jobs of |
| `<ns>:jobs:{<queue>}:stats:<type>` | hash | none: one per type, a handful of counters that must stay right for ever | jobs by state |
| `<ns>:jobs:{<queue>}:times:<type>` | hash | none: one per type, at most some thousand buckets | histograms of waiting and run times |
| `<ns>:jobs:{<queue>}:carried` | sorted set | none: an entry goes when its job ends, at the next look at the latest | jobs that QStash carries, by when somebody looks after their messages |
| `<ns>:jobs:{<queue>}:messages` | hash | none: as above | the ids of the messages of these jobs |
| `<ns>:jobs:{<queue>}:rate:<hour>` | hash | 2 days | jobs that ended, by minute, type and outcome |
| `<ns>:jobs:{schedules}:schedules` | hash | none: configuration, which stays until the code or somebody removes it | the schedules by their ids, and by `:<source>` which set of a code stands |
| `<ns>:jobs:{schedules}:next` | sorted set | none: one entry for each schedule that is not paused and that QStash does not carry | the schedules by when they are due |
| `<ns>:jobs:delivery:{<digest>}` | string | as long as its signature is good: an hour and 5 s at most | a delivery of QStash that was accepted, by the SHA-256 of its id |
| `<ns>:jobs:queues` | set | none: a handful of names | the queues that there are |
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

Channels: `<ns>:jobs:{<queue>}:wake` tells idle workers that jobs are ready, `<ns>:jobs:{<queue>}:to:<worker>` brings a job to
one that waits, `<ns>:jobs:{<queue>}:control` tells workers
which running jobs shall end, `<ns>:jobs:{<queue>}:ended` tells of jobs that have ended and how, and
`<ns>:jobs:{<queue>}:live:<part>` of the progress and the log of one; `<ns>:jobs:{schedules}:changed` tells schedulers
that schedules have changed; `<ns>:cache:loaded` tells the key of a value that somebody waits for, and
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
JOB_DEAD_TTL = timedelta(days=30)
ANALYTICS_TTL = timedelta(days=40)
SESSIONS_EPOCH_TTL = timedelta(days=1)
RATE_LIMIT_COUNTS_TTL = timedelta(days=8)

WITHOUT_TTL = (
    r"[^:]+:jobs:queues",
    r"[^:]+:jobs:\{schedules\}:(schedules|next)",
    r"[^:]+:jobs:\{[^}]+\}:(queue|state|flowdue|delayed|running|cancel|left|parked|dead|idle|logged|events|types|carried|messages)",
    r"[^:]+:jobs:\{[^}]+\}:(job|ready|ring|flow|parked|stats|times):[^:]+",
    r"[^:]+:jobs:\{[^}]+\}:lane:[^:]+:[^:]+",
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

    def jobs_queue(self, queue: str) -> str:
        return f"{self.jobs_prefix(queue)}:queue"

    def jobs_unique(self, queue: str, key: str) -> str:
        return f"{self.jobs_prefix(queue)}:unique:{escape(key)}"

    def jobs_tag(self, queue: str, tag: str) -> str:
        return f"{self.jobs_prefix(queue)}:tag:{escape(tag)}"

    def jobs_delivery(self, digest: str) -> str:
        return f"{self.namespace}:jobs:delivery:{{{digest}}}"

    def jobs_queues(self) -> str:
        return f"{self.namespace}:jobs:queues"

    def schedules(self) -> str:
        return f"{self.jobs_prefix('schedules')}:schedules"

    def schedules_next(self) -> str:
        return f"{self.jobs_prefix('schedules')}:next"

    def schedules_changed(self) -> str:
        return f"{self.jobs_prefix('schedules')}:changed"

    def jobs_live(self, queue: str, part: str) -> str:
        return f"{self.jobs_prefix(queue)}:live:{part}"

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
