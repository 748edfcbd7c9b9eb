"""Task: a function that a worker runs, with the types of its arguments and what holds for all its jobs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, cast, get_type_hints

import msgspec

from counterseal.core.codec import from_text
from counterseal.core.errors import ArgumentInvalid, ConfigurationError
from counterseal.jobs.context import JobContext
from counterseal.jobs.options import DEDUP_WINDOW, NO_OPTIONS, UNIQUE_TTL, Flow, Options, Priority, changed
from counterseal.jobs.retry import Retry, retry_of

DEFAULT_QUEUE: Final = "default"
DEFAULT_RETRIES: Final = 3
DEFAULT_TIMEOUT: Final = timedelta(minutes=5)
DEFAULT_KEEP: Final = timedelta(days=1)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_QUEUE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_SCHEMA: Final = 1_000_000

P = ParamSpec("P")
R = TypeVar("R")

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes of the arguments of one schema version those of the next."""

_encode: Final = msgspec.json.Encoder().encode


class Task(Generic[P, R]):
    """What `task` makes of a function. Immutable; `using` gives a copy with other options.

    `schema` is the version of its arguments. Those that an earlier release wrote are brought up by `upgrades`, one
    version at a time; those of a later release wait for it.
    """

    __slots__ = (
        "_arguments", "_decode", "_decode_exactly", "_head", "_keywords", "_positional", "_takes_nothing", "function",
        "is_async", "keep", "keep_ms", "name", "options", "priority", "queue", "result_type", "retry", "schema",
        "timeout", "timeout_s", "upgrades",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[Concatenate[JobContext, P], Awaitable[R]]
        | Callable[Concatenate[JobContext, P], R],
        *,
        name: str,
        queue: str,
        retry: Retry,
        timeout: timedelta | None,
        priority: Priority,
        keep: timedelta,
        schema: int,
        upgrades: Mapping[int, Upgrade],
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                "name: expected 1 to 64 letters, digits, '.', '_' or '-' for the name of a task"
            )
        if not _QUEUE.fullmatch(queue):
            raise ConfigurationError("queue: expected 1 to 64 letters, digits, '_' or '-'")
        if not 1 <= schema <= _MOST_SCHEMA:
            raise ConfigurationError(f"schema: expected a number from 1 to {_MOST_SCHEMA}")
        if missing := [version for version in upgrades if not 1 <= version < schema]:
            raise ConfigurationError(f"upgrades: expected versions below {schema}; came: {missing[0]}")
        Options(timeout=timeout, keep=keep)  # refuses what can't be
        self.function = function
        self.name = name
        self.queue = queue
        self.retry = retry
        self.timeout = timeout
        self.priority = priority
        self.keep = keep
        self.schema = schema
        self.upgrades = dict(upgrades)
        self.options = NO_OPTIONS
        self.is_async = inspect.iscoroutinefunction(function)
        self._arguments, self._positional, self._keywords, self.result_type = _arguments(function, name)
        self._decode = msgspec.json.Decoder(self._arguments).decode
        exact = msgspec.defstruct(
            "Arguments", [], bases=(self._arguments,), frozen=True, forbid_unknown_fields=True
        )
        self._decode_exactly = msgspec.json.Decoder(exact).decode
        self._takes_nothing = not self._positional and not self._keywords
        self._head = b"%d:" % schema
        self.timeout_s = None if timeout is None else timeout / timedelta(seconds=1)
        self.keep_ms = keep // timedelta(milliseconds=1)

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    def using(
        self,
        *,
        id: str | None = None,  # noqa: A002 - what it is called everywhere
        queue: str | None = None,
        priority: Priority | None = None,
        delay: timedelta | None = None,
        at: datetime | None = None,
        dedup_id: str | None = None,
        dedup_window: timedelta = DEDUP_WINDOW,
        unique: str | None = None,
        unique_ttl: timedelta = UNIQUE_TTL,
        tags: tuple[str, ...] = (),
        idempotency_key: str | None = None,
        retry: int | Retry | None = None,
        timeout: timedelta | None = None,
        deadline: datetime | None = None,
        parent: str | None = None,
        flow: Flow | None = None,
        keep: timedelta | None = None,
    ) -> Task[P, R]:
        """The same task, for jobs with these options. All are optional; raises `ConfigurationError` naming one.

        - `id`: the part of the job's id after its queue. A second job with it is not made.
        - `delay` or `at`: when it runs at the earliest.
        - `dedup_id`: within `dedup_window` (10 min) no second job with it is made, whatever became of the first.
        - `unique`: while a job with this key has not ended, no second one is made; after `unique_ttl` (24 h) it counts
          no more.
        - `tags`: to find jobs by; at most 16.
        - `idempotency_key`: what the effects of the job are keyed by; by default its id.
        - `retry`, `timeout`, `keep`: in place of those of the task. `keep` is how long a job that has ended is kept.
        - `deadline`: when it has passed the job is not begun any more, and one that runs is ended.
        - `parent`: the id of the job that this one belongs to.
        - `flow`: flow control, see `Flow`.
        """
        given = dict(locals())
        del given["self"]
        given["retry"] = None if retry is None else retry_of(retry)
        return self._with(Options(**given))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A job to be made by `enqueue_many`. Raises `ArgumentInvalid`."""
        return Call(self.name, self.options, self.encode(args, kwargs), self)

    def _with(self, options: Options) -> Task[P, R]:
        copy = cast("Task[P, R]", object.__new__(Task))
        for slot in Task.__slots__:
            setattr(copy, slot, getattr(self, slot))
        copy.options = options
        return copy

    def traced(self, trace: str) -> Task[P, R]:
        """The same task for a job that belongs to a trace, in the form of a `traceparent`."""
        return self._with(changed(self.options, trace=trace))

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Arguments as they are stored: schema version, colon, JSON in one line. Raises `ArgumentInvalid`."""
        if self._takes_nothing and not args and not kwargs:
            return self._head + b"{}"
        try:
            if args and self._keywords:
                args, kwargs = (), self._by_name(args, kwargs)
            text = _encode(self._arguments(*args, **kwargs))
            self._decode(text)  # msgspec checks types when it reads
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as fault:
            raise _refused(self.name, fault) from fault
        return self._head + text

    def encode_json(self, text: bytes) -> bytes:
        """The same for a JSON object of arguments. Raises `ArgumentInvalid`, also for one that is unknown."""
        try:
            return self._head + _encode(self._decode_exactly(text))
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as fault:
            raise _refused(self.name, fault) from fault

    def decode(self, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a job. Raises `ArgumentInvalid`, with `later` for those of a later release."""
        if data.startswith(self._head):
            try:
                return self._values(self._decode(data[len(self._head) :]))
            except Exception as fault:
                raise _refused(self.name, fault) from fault
        version, colon, text = data.partition(b":")
        if not colon or not version.isdigit() or len(version) > 9:
            raise ArgumentInvalid(f"the arguments of a job of {self.name} can't be read")
        schema = int(version)
        if schema > self.schema:
            raise ArgumentInvalid(
                f"the arguments of a job of {self.name} have schema {schema}; this release reads {self.schema}",
                later=True,
            )
        try:
            found = msgspec.convert(self._upgraded(text, schema), self._arguments, str_keys=True)
        except ArgumentInvalid:
            raise
        except Exception as fault:
            raise _refused(self.name, fault) from fault
        return self._values(found)

    def _values(self, found: msgspec.Struct) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self._keywords:
            return msgspec.structs.astuple(found), {}
        return (
            tuple(getattr(found, name) for name in self._positional),
            {name: getattr(found, name) for name in self._keywords},
        )

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            raise TypeError(f"expected at most {len(self._positional)} arguments by position")
        named = dict(zip(self._positional, args, strict=False))
        if twice := named.keys() & kwargs.keys():
            raise TypeError(f"the argument {min(twice)} came twice")
        return {**named, **kwargs}

    def _upgraded(self, text: bytes, schema: int) -> dict[str, Any]:
        value = from_text(text, key=self.name)
        if not isinstance(value, dict):
            raise ArgumentInvalid(f"the arguments of a job of {self.name} are no JSON object")
        found = cast("dict[str, Any]", value)
        for version in range(schema, self.schema):
            if version in self.upgrades:  # else the next version reads this one's as they are
                found = self.upgrades[version](found)
        return found


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A job that is to be made."""

    type: str
    options: Options
    args: bytes
    task: Task[Any, R] | None = None


def task(
    *,
    name: str | None = None,
    queue: str = DEFAULT_QUEUE,
    retry: int | Retry = DEFAULT_RETRIES,
    timeout: timedelta | None = DEFAULT_TIMEOUT,
    priority: Priority = Priority.NORMAL,
    keep: timedelta = DEFAULT_KEEP,
    schema: int = 1,
    upgrades: Mapping[int, Upgrade] | None = None,
) -> _Decorator:
    """Make a task of a function: `@task(queue="mail") async def send(ctx: JobContext, mail: Mail) -> str`.

    A plain function runs in a thread. Its first parameter is the context of the job; the others travel as JSON, by
    their names, and are checked against their annotations when a job is made and when it is run.

    `name` is the type of its jobs, by default that of the function with `-` for `_`. `retry` is a policy or a number of
    retries (3), `timeout` how long one run may take (5 min; None for no limit), `keep` how long a job that has ended is
    kept with its result (1 day). Nothing is registered: give tasks to `Counterseal(tasks=[...])`.

    Raises `ConfigurationError` for what can't be.
    """
    return _Decorator(
        {
            "queue": queue,
            "retry": retry_of(retry),
            "timeout": timeout,
            "priority": priority,
            "keep": keep,
            "schema": schema,
            "upgrades": upgrades or {},
        },
        name,
    )


class _Decorator:
    """What `task(...)` answers: its call keeps the types of the function."""

    def __init__(self, options: Mapping[str, Any], name: str | None) -> None:
        self._options = options
        self._name = name

    def __call__(
        self,
        function: Callable[Concatenate[JobContext, P], Awaitable[R]]
        | Callable[Concatenate[JobContext, P], R],
    ) -> Task[P, R]:
        name = self._name or getattr(function, "__name__", "").replace("_", "-")
        return Task(function, name=name, **self._options)


def _arguments(
    function: Callable[..., Any], name: str
) -> tuple[type[msgspec.Struct], tuple[str, ...], tuple[str, ...], Any]:
    """A struct of the function's parameters, their names by position and by keyword, and the type of its result."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise ConfigurationError(f"task {name}: expected the context of the job as the first parameter")
    hints = get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    positional: list[str] = []
    keywords: list[str] = []
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise ConfigurationError(f"task {name}: expected named parameters; came: *{parameter.name}")
        if parameter.name not in hints:
            raise ConfigurationError(f"task {name}: expected a type for the parameter {parameter.name}")
        (keywords if parameter.kind is inspect.Parameter.KEYWORD_ONLY else positional).append(parameter.name)
        kind = hints[parameter.name]
        if parameter.default is inspect.Parameter.empty:
            fields.append((parameter.name, kind))
        else:
            default = parameter.default
            fields.append((parameter.name, kind, msgspec.field(default_factory=lambda value=default: value)))
    try:
        made = msgspec.defstruct("Arguments", fields, frozen=True, kw_only=bool(keywords))
        msgspec.json.Decoder(made)
    except TypeError as fault:
        raise ConfigurationError(f"task {name}: a parameter has a type that JSON has no form for") from fault
    return made, tuple(positional), tuple(keywords), hints.get("return", Any)


def _refused(name: str, fault: Exception) -> ArgumentInvalid:
    # The texts of msgspec name types and paths, those of a constructor parameters; neither has values.
    known = isinstance(fault, (msgspec.MsgspecError, TypeError))
    return ArgumentInvalid(
        f"the arguments do not fit the task {name}: {fault if known else type(fault).__name__}"
    )
