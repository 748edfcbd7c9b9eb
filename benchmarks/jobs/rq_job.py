"""RQ's job, which its worker imports by this path."""

import time

from benchmarks.jobs.marks import HOLD_SECONDS, mark


def job(payload: str) -> None:
    if mark(payload):
        time.sleep(HOLD_SECONDS)
