"""Every error of counterseal, in one tree.

::

    CountersealError
    ├── ConfigurationError        a setting is missing, malformed or refused; ends a command with exit code 2
    ├── CodecError                a value that is not JSON, or stored bytes that can't be read
    │   ├── ValueTooLarge         a value is longer than its kind allows
    │   └── ArgumentInvalid       the arguments of a job do not fit its task
    ├── StoreError
    │   ├── StoreUnavailable      Redis can't be reached, went away, or is refused by the breaker
    │   │   ├── StoreTimeout      no reply in time; whether the command ran is not known
    │   │   ├── StoreBusy         too many bytes are under way; nothing was sent
    │   │   └── NotReplicated     too few replicas have what was written; it is kept, unless a failover loses it
    │   ├── StoreUnauthorized     the service refused the token after it had accepted it
    │   ├── ReplyTooLarge         the reply is larger than `max_reply_bytes`
    │   ├── CommandError          the server answered this command with an error
    │   │   └── ScriptMissing     EVALSHA of a script that the server does not know (NOSCRIPT)
    │   ├── TransactionAborted    a command was refused while queueing; nothing ran
    │   ├── SubscriberTooSlow     a subscriber's queue is full; it was cut off
    │   └── StoreFull             something holds as many entries as it may; nothing was written
    ├── DatabaseError
    │   ├── DatabaseUnavailable   the database can't be reached
    │   └── Conflict              a row with this key is there already; nothing was written
    ├── SealBroken                what was encrypted or signed can't be read: another key, or it was changed
    ├── SessionExists             a new session was to have an id that is taken
    ├── UserBlocked               the user is suspended or deleted
    ├── UnknownName               a kind, queue or task that nobody declared
    ├── CarrierUnavailable        QStash, which carries jobs, refused one or can't be reached; nothing was accepted
    ├── RetryLater                raised by a task: run this job again, after a pause
    └── NonRetryable              raised by a task: this job fails, whatever retries are left

Every class has a stable `code`: what a program compares and an HTTP answer carries.
Messages are sentences for people, without secrets and without addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import ClassVar


class CountersealError(Exception):
    """Base of everything that counterseal raises on purpose."""

    code: ClassVar[str] = "error"


class ConfigurationError(CountersealError):
    """One or more settings are missing, malformed or refused.

    `faults` has a sentence for each: the name of the setting, what was expected, what came (never its value).
    """

    code = "configuration_invalid"

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("; ".join(self.faults))


class CodecError(CountersealError):
    """A value can't be written as JSON, or stored bytes can't be read back.

    `key` is the Redis key the bytes came from (None for a value on its way in);
    `path` is where in the value the fault lies, as `$.a[0]`.
    """

    code = "value_unreadable"

    def __init__(self, message: str, *, key: str | None = None, path: str | None = None) -> None:
        self.key = key
        self.path = path
        where = "".join([f" at {path}" if path else "", f" (key {key})" if key else ""])
        super().__init__(message + where)


class ValueTooLarge(CodecError):
    """The JSON text of a value is longer than `max_value_bytes` of its kind. Nothing was written."""

    code = "value_too_large"


class ArgumentInvalid(CodecError):
    """The arguments of a job are not JSON, or do not fit its task. Nothing was written.

    `later` says that they are of a schema that a later release wrote.
    """

    code = "argument_invalid"

    def __init__(self, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.later = later


class StoreError(CountersealError):
    """Something went wrong between counterseal and Redis."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """Redis can't be reached, went away while the command was under way, or the breaker is open."""

    code = "store_unavailable"


class StoreTimeout(StoreUnavailable):
    """No reply in time. The command may have run, or may still run."""

    code = "store_timeout"


class StoreBusy(StoreUnavailable):
    """More bytes are under way than `max_inflight_bytes` allows, for longer than the time-out. Nothing was sent."""

    code = "store_busy"


class NotReplicated(StoreUnavailable):
    """What was written is not known to be on as many replicas as `COUNTERSEAL_MIN_REPLICAS` asks for.

    It is there all the same, unless a failover loses it: whoever tries again should name it, by an id or a unique key.
    """

    code = "not_replicated"


class StoreUnauthorized(StoreError):
    """The Redis REST service refused the token. When it does so from the start, that is a `ConfigurationError`."""

    code = "store_unauthorized"


class ReplyTooLarge(StoreError):
    """The reply was larger than `max_reply_bytes`; the connection it came on was closed."""

    code = "reply_too_large"


class CommandError(StoreError):
    """The server answered this command with an error. `kind` is its first word (`WRONGTYPE`, `NOPERM`, `ERR`)."""

    code = "command_failed"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.kind: str = message.partition(" ")[0]


class ScriptMissing(CommandError):
    """The server does not know the script of this sum (`NOSCRIPT`)."""

    code = "script_missing"


class TransactionAborted(StoreError):
    """A command of a transaction was refused while it was queued, so none of them ran. Its text is the first cause."""

    code = "transaction_aborted"


class SubscriberTooSlow(StoreError):
    """A subscriber did not take its messages in time; its queue was full and it was cut off."""

    code = "subscriber_too_slow"


class StoreFull(StoreError):
    """What Redis keeps under one key holds as many entries as it may. Nothing was written."""

    code = "store_full"


class DatabaseError(CountersealError):
    """Something went wrong between counterseal and its database."""

    code = "database_error"


class DatabaseUnavailable(DatabaseError):
    """The database can't be reached."""

    code = "database_unavailable"


class Conflict(DatabaseError):
    """A row with the same key is there already. Nothing of the transaction was written.

    `constraint` is the name of what was violated, such as `uq_users_email`; None when the database did not say.
    """

    code = "conflict"

    def __init__(self, message: str, *, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class SealBroken(CountersealError):
    """What was sealed can't be read: its key is not in the ring, it was changed, or it is bound to somebody else."""

    code = "seal_broken"


class SessionExists(CountersealError):
    """A new session was to have the id of one that exists, or existed. Nothing was written."""

    code = "session_exists"


class UserBlocked(CountersealError):
    """The user is suspended or deleted and gets no session. Nothing was written."""

    code = "user_blocked"


class UnknownName(CountersealError):
    """A kind, queue or task was named that nobody declared. The message lists the known ones."""

    code = "unknown_name"


class CarrierUnavailable(CountersealError):
    """QStash, which carries the jobs, refused a message or can't be reached. The job was not accepted."""

    code = "carrier_unavailable"


class RetryLater(CountersealError):
    """A task raises it to be run again after `pause`, or after the pause of its policy. It counts as a failed run."""

    code = "retry_later"

    def __init__(
        self, message: str = "the task asked to be run again", *, pause: timedelta | None = None
    ) -> None:
        super().__init__(message)
        self.pause = pause


class NonRetryable(CountersealError):
    """A task raises it where another run would not help: the job becomes a dead letter at once."""

    code = "non_retryable"
