"""The file of SQLite: what one part of a process does with it takes the locks of no other part away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from counterseal.database.engine import Database
from counterseal.database.sqlite import SQLITE_FILE

# Whoever has the file open holds a lock on these bytes. A process that may take it alone believes that it is the last
# one, and removes the log beside the file, although others write to it.
_TAKE_ALONE = """\
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
        print("alone")
    except OSError:
        print("in use")
"""


def seen_by_another_process(data_dir: Path) -> str:
    program = [sys.executable, "-c", _TAKE_ALONE, str(data_dir / SQLITE_FILE)]
    return subprocess.run(program, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


async def test_a_second_database_on_the_file_leaves_the_locks_of_the_first(tmp_path: Path) -> None:
    async with Database(data_dir=tmp_path) as first:
        assert seen_by_another_process(tmp_path) == "in use"
        async with Database(data_dir=tmp_path) as second:
            assert seen_by_another_process(tmp_path) == "in use"
            await second.upgrade()
        assert seen_by_another_process(tmp_path) == "in use"
        await first.ping()
