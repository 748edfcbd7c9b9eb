"""What a command does about garbage: none is looked for while it is loaded, and all is while it works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.program import environment

_TELL_AT_THE_END = """
import atexit, gc, sys
atexit.register(lambda: print("collecting", gc.isenabled(), "kept out", gc.get_freeze_count() > 10_000))
from counterseal.cli import main
main()
"""


@pytest.mark.parametrize("command", ["migrate", "doctor", "jobs list", "worker", "serve --port 0"])
def test_a_command_that_is_loaded_looks_for_garbage_again_but_not_in_what_it_loaded(
    command: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _TELL_AT_THE_END, *command.split()],
        cwd=tmp_path,
        env=environment({"REDIS_URL": "redis://127.0.0.1:1"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout.splitlines()[-1] == "collecting True kept out True", ended.stderr
