"""Options: what a single job may ask for, and how that travels with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final

import msgspec

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.retry import Retry
from counterseal.store.keys import escape

MOST_TAGS: Final = 16
_MS: Final = timedelta(milliseconds=1)
_LONGEST_TEXT: Final = 512
_LONGEST: Final = timedelta(days=3660)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

DEDUP_WINDOW: Final = timedelta(minutes=10)
UNIQUE_TTL: Final = timedelta(hours=24)
TAG_TTL: Final = timedelta(days=30)


class Priority(IntEnum):
    """Who goes first within a queue. The number is what is stored: the smaller one goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(frozen=True, slots=True)
class Flow:
    """Flow control: of the jobs with one key at most `parallelism` run at once, and `rate` begin in a `period`.

    Keys take turns, whatever their numbers of jobs. What was given last for a key holds for all its jobs.
    """

    key: str
    parallelism: int | None = None
    rate: int | None = None
    period: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` for what can't be."""
        _check_text("flow.key", self.key)
        for name, value in (("parallelism", self.parallelism), ("rate", self.rate)):
            if value is not None and not 1 <= value <= 1_000_000:
                raise ConfigurationError(f"flow.{name}: expected a number from 1 to 1000000")
        if not _MS <= self.period <= timedelta(days=7):
            raise ConfigurationError("flow.period: expected from 1 ms to 7 days")


@dataclass(frozen=True, slots=True)
class Options:
    """What one job is to have, besides or in place of what its task says. See `Task.using` for each."""

    id: str | None = None
    queue: str | None = None
    priority: Priority | None = None
    delay: timedelta | None = None
    at: datetime | None = None
    dedup_id: str | None = None
    dedup_window: timedelta = DEDUP_WINDOW
    unique: str | None = None
    unique_ttl: timedelta = UNIQUE_TTL
    tags: Sequence[str] = ()
    idempotency_key: str | None = None
    retry: Retry | None = None
    timeout: timedelta | None = None
    deadline: datetime | None = None
    parent: str | None = None
    flow: Flow | None = None
    keep: timedelta | None = None
    schedule: str | None = None
    trace: str | None = None

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` naming the option for what can't be."""
        if self.delay is not None and self.at is not None:
            raise ConfigurationError("delay: expected without at; both came")
        for name in ("id", "queue"):
            value = getattr(self, name)
            if value is not None and not _NAME.fullmatch(value):
                raise ConfigurationError(f"{name}: expected 1 to 64 letters, digits, '_' or '-'")
        for name in ("dedup_id", "unique", "idempotency_key", "parent", "schedule"):
            value = getattr(self, name)
            if value is not None:
                _check_text(name, value)
        for name in ("dedup_window", "unique_ttl", "timeout", "keep"):
            value = getattr(self, name)
            if value is not None and not timedelta(milliseconds=1) <= value <= _LONGEST:
                raise ConfigurationError(f"{name}: expected from 1 ms to 3660 days")
        if self.delay is not None and not timedelta(0) <= self.delay <= _LONGEST:
            raise ConfigurationError("delay: expected from 0 to 3660 days")
        for name in ("at", "deadline"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ConfigurationError(f"{name}: expected a time with a zone")
        if isinstance(self.tags, str) or len(self.tags) > MOST_TAGS:
            raise ConfigurationError(f"tags: expected at most {MOST_TAGS} texts")
        for tag in self.tags:
            _check_text("tags", tag)

    def stored(self, now_ms: int) -> Extra:
        """What is stored with the job."""
        due = None
        if self.at is not None:
            due = round(self.at.timestamp() * 1000)
        elif self.delay:
            due = now_ms + self.delay // _MS
        flow = self.flow
        return Extra(
            given=self.id is not None,
            due=due,
            flow=None
            if flow is None
            else (escape(flow.key), flow.parallelism or 0, flow.rate or 0, flow.period // _MS),
            dedup=None if self.dedup_id is None else (escape(self.dedup_id), self.dedup_window // _MS),
            unique=None if self.unique is None else (escape(self.unique), self.unique_ttl // _MS),
            tags=tuple(map(escape, self.tags)),
            tag_ms=TAG_TTL // _MS if self.tags else 0,
            key=self.idempotency_key,
            retry=self.retry,
            timeout=None if self.timeout is None else self.timeout // _MS,
            deadline=None if self.deadline is None else round(self.deadline.timestamp() * 1000),
            parent=self.parent,
            keep=None if self.keep is None else self.keep // _MS,
            schedule=self.schedule,
            trace=self.trace,
        )


class Extra(msgspec.Struct, frozen=True, omit_defaults=True):
    """Options as they are stored with a job, in milliseconds. Keys are escaped; Lua reads some of them."""

    given: bool = False
    due: int | None = None
    flow: tuple[str, int, int, int] | None = None
    dedup: tuple[str, int] | None = None
    unique: tuple[str, int] | None = None
    tags: tuple[str, ...] = ()
    tag_ms: int = 0
    key: str | None = None
    retry: Retry | None = None
    timeout: int | None = None
    deadline: int | None = None
    parent: str | None = None
    keep: int | None = None
    retry_of: str | None = None
    schedule: str | None = None
    trace: str | None = None


NO_EXTRA: Final = Extra()
NO_OPTIONS: Final = Options()

_decode: Final = msgspec.json.Decoder(Extra).decode
_encode: Final = msgspec.json.Encoder().encode


def read_extra(text: bytes) -> Extra:
    """What is stored of a job's options. Raises `msgspec.MsgspecError` for what can't be read."""
    return _decode(text)


def write_extra(extra: Extra) -> bytes:
    """One line of JSON; empty for none."""
    text = _encode(extra)
    return b"" if text == b"{}" else text


def changed(options: Options, **changes: Any) -> Options:
    """Options with some changed. Raises `ConfigurationError` naming the option for what can't be."""
    return replace(options, **changes)


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str) or not 1 <= len(value.encode("utf-8", "surrogatepass")) <= _LONGEST_TEXT:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"{name}: expected a text of 1 to {_LONGEST_TEXT} bytes")
