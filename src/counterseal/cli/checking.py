"""Checking: whether a worker really consumes, by what it has written of itself. Must load next to nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from counterseal.core.environment import read_data_dir
from counterseal.core.errors import ConfigurationError
from counterseal.jobs.worker_status import WorkerStatus, read_statuses

MAX_AGE = "15s"

_AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h)?\s*")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


def run_at_once(arguments: Sequence[str]) -> int | None:
    """Check when these are plain arguments of it; None when they are for somebody who can tell what is wrong."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name == "--check" and not equals:
            continue
        if name not in ("--data-dir", "--max-age") or not (equals or rest):
            return None
        given[name] = value if equals else rest.pop(0)
    folder = given.get("--data-dir")
    try:
        return run_check(None if folder is None else Path(folder), max_age=given.get("--max-age", MAX_AGE))
    except ConfigurationError:
        return None


def run_check(data_dir: Path | None, *, max_age: str) -> int:
    """Print one sentence; 0 when every worker that lives consumes and there is one, else 1."""
    longest_s = _seconds(max_age)
    folder = data_dir or read_data_dir()
    consumes, sentence = judge(read_statuses(folder), longest_s)
    print(f"{sentence} (data folder {folder.absolute()})")
    return 0 if consumes else 1


def judge(statuses: list[WorkerStatus], longest_s: float) -> tuple[bool, str]:
    """Whether all is well, and a sentence on it."""
    dead = [status for status in statuses if not status.alive]
    alive = [status for status in statuses if status not in dead]
    left = "".join(
        f"; {status.name} ended without saying so: its process {status.pid} is dead" for status in dead
    )
    if not alive:
        return False, f"no worker consumes{left or ': none has told of itself'}"
    late = [status for status in alive if status.age_s > longest_s]
    if late:
        told = "; ".join(
            f"worker {status.name} (process {status.pid}) does not consume:"
            f" its last lease was {status.age_s:.1f} s ago, the limit is {longest_s:g} s"
            for status in late
        )
        return False, told + left
    told = "; ".join(
        f"worker {status.name} (process {status.pid}) consumes {', '.join(status.queues)}:"
        + (
            f" it runs {status.running} jobs, as many as it may"
            if status.full
            else f" its last lease was {status.age_s:.1f} s ago"
        )
        for status in alive
    )
    return True, told + left


def _seconds(text: str) -> float:
    found = _AGE.fullmatch(text)
    if found is None or not float(found[1]):
        raise ConfigurationError("--max-age: expected a duration above zero, such as 15s")
    return float(found[1]) * _UNITS[found[2] or "s"]
