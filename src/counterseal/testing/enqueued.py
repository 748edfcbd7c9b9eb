"""Enqueued: says whether a job was made, with the arguments and options that it should have."""

from __future__ import annotations

from typing import Any, Final

from counterseal.app import Counterseal
from counterseal.jobs.job import Job, read_args
from counterseal.jobs.task import Call, Task

_COMPARED: Final = (
    "queue", "priority", "tags", "state", "idempotency_key", "parent", "flow", "unique", "deadline", "due_at",
    "retry_of", "schedule",
)  # fmt: skip
_MOST: Final = 1000


async def assert_enqueued(
    seal: Counterseal, task: Task[Any, Any] | Call[Any], *args: Any, **expected: Any
) -> Job:
    """The newest job of this task with these arguments; `AssertionError` that lists those of the task when none is.

    For arguments by keyword give a call: `assert_enqueued(seal, send.call(to="Ada"))`. `expected` are fields of `Job`:
    queue, priority, tags, state, due_at, deadline, idempotency_key, parent, flow, unique, retry_of, schedule. A few
    round trips; it looks at up to 1,000 jobs of the type, those that have ended too.
    """
    if unknown := [name for name in expected if name not in _COMPARED]:
        raise TypeError(f"{unknown[0]}: expected one of {', '.join(_COMPARED)}")
    call = task.call(*args) if isinstance(task, Task) else task
    wanted, _ = read_args(call.args, key="args")
    jobs = await seal.jobs.list(type=call.type, limit=_MOST)
    found = [
        job
        for job in jobs
        if job.args == wanted and all(getattr(job, name) == value for name, value in expected.items())
    ]
    if not found:
        said = "".join(f", {name}={value!r}" for name, value in expected.items())
        there = "\n".join(_line(job, tuple(expected)) for job in jobs[:20]) or "  none"
        raise AssertionError(f"no job of {call.type} with {wanted}{said}; there are:\n{there}")
    return max(found, key=lambda job: job.queued_at)


def _line(job: Job, names: tuple[str, ...]) -> str:
    more = "".join(f", {name}={getattr(job, name)!r}" for name in names)
    return f"  {job.id} {job.state} {job.args}{more}"
