"""Events: who is listed hears them, and nothing that a listener does reaches who emits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from counterseal.core import events as module
from counterseal.core.events import Events


@dataclass(frozen=True, slots=True)
class Happened:
    token: str = "hush-hush"  # what no log may show


class HappenedToo(Happened):
    pass


async def test_listeners_of_the_exact_type_hear_an_event_in_order():
    heard: list[tuple[str, object]] = []

    async def later(event: Happened) -> None:
        heard.append(("later", event))

    events = Events({Happened: [lambda event: heard.append(("now", event)), later]})
    event = Happened()
    events.emit(event)
    events.emit(HappenedToo())
    events.emit(object())
    assert heard == [("now", event)]
    await events.close()
    assert heard == [("now", event), ("later", event)]


async def test_it_is_known_whether_anybody_listens():
    events = Events({Happened: [lambda event: None], HappenedToo: []})
    assert (events.heard(Happened), events.heard(HappenedToo), events.heard(int)) == (True, False, False)


async def test_failures_reach_nobody_and_the_log_gets_types_alone(caplog: pytest.LogCaptureFixture):
    heard: list[object] = []

    def fails(event: Happened) -> None:
        raise ValueError(event.token)

    async def fails_later(event: Happened) -> None:
        raise LookupError(event.token)

    def cancels(event: Happened) -> None:
        raise asyncio.CancelledError(event.token)

    events = Events({Happened: [fails, fails_later, cancels, heard.append]})
    events.emit(Happened())
    await events.close()
    assert heard == [Happened()]
    assert sorted(record.getMessage() for record in caplog.records) == [
        "a listener of Happened failed (CancelledError)",
        "a listener of Happened failed (LookupError)",
        "a listener of Happened failed (ValueError)",
    ]
    assert "hush" not in caplog.text


async def test_a_listener_that_waits_holds_nobody_up_and_is_cancelled_in_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    ended = asyncio.Event()

    async def never(event: Happened) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    events = Events({Happened: [never]})
    events.emit(Happened())
    await events.close()
    assert ended.is_set()
    assert "did not end in time" in caplog.text


async def test_closing_waits_for_what_a_listener_emits_in_its_turn():
    heard: list[object] = []

    async def first(event: Happened) -> None:
        events.emit(HappenedToo())

    async def second(event: HappenedToo) -> None:
        await asyncio.sleep(0)
        heard.append(event)

    events = Events({Happened: [first], HappenedToo: [second]})
    events.emit(Happened())
    await events.close()
    await events.close()
    assert len(heard) == 1


def test_an_event_without_a_loop_is_no_error(caplog: pytest.LogCaptureFixture):
    async def later(event: Happened) -> None:
        raise AssertionError

    Events({Happened: [later]}).emit(Happened())
    assert "a listener of Happened failed (RuntimeError)" in caplog.text
