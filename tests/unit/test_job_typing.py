"""A task keeps the types of its function: what does not fit is refused by the type checker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SNIPPET = """
from typing import assert_type
from counterseal import JobContext, Task, task
from counterseal.jobs.service import Jobs


@task()
async def send(context: JobContext, to: str, *, copies: int = 1) -> float:
    return 1.0


@task(name="count", retry=2)
def count(context: JobContext, number: int) -> int:
    return number


async def good(jobs: Jobs) -> None:
    made = await jobs.enqueue(send, "ada", copies=2)
    assert_type(await jobs.result(made.id, send), float)
    assert_type(await jobs.result(made.id, count), int)
    await jobs.enqueue(count.using(unique="u"), 1)
    await jobs.enqueue_many([send.call("ada"), count.call(1)])


async def bad(jobs: Jobs) -> None:
    await jobs.enqueue(send, 7)
    await jobs.enqueue(send)
    await jobs.enqueue(send, "ada", copy=1)
    await jobs.enqueue(count.using(unique="u"), "1")
    await jobs.enqueue_many([count.call("1")])
"""


def test_a_wrong_argument_fails_in_the_type_checker_and_a_right_one_does_not(tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    checker = Path(sys.executable).with_name("basedpyright")
    ran = subprocess.run(
        [checker, "--outputjson", "--pythonpath", sys.executable, str(file)],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    errors = [found for found in json.loads(ran.stdout)["generalDiagnostics"] if found["severity"] == "error"]
    first = SNIPPET.splitlines().index("async def bad(jobs: Jobs) -> None:") + 1
    assert [found["range"]["start"]["line"] for found in errors] == [first + number for number in range(5)]
