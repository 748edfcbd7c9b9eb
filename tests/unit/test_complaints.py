"""Complaints: said once a minute, each thing for itself."""

from __future__ import annotations

import logging

import pytest

from counterseal.core.complaints import EVERY_MS, Complaints


def test_a_thing_is_said_once_a_minute_and_another_one_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(logging.getLogger("counterseal.test"))
    for now_ms in (0, 1, EVERY_MS - 1):
        complaints.tell("%s is refused", "a", now_ms=now_ms)
    complaints.tell("%s is late", "a", now_ms=1)
    complaints.tell("%s is refused", "b", now_ms=1, about="b")
    complaints.tell("%s is refused", "a", now_ms=EVERY_MS)
    assert [record.getMessage() for record in caplog.records] == [
        "a is refused",
        "a is late",
        "b is refused",
        "a is refused",
    ]
