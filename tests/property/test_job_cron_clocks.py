"""Cron times against every minute of days on which clocks are changed, and against cronsim where both say the same."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.cron import Cron, Every

DAYS = (
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("America/Santiago", "2026-09-06"),
    ("America/Santiago", "2026-04-05"),
    ("Asia/Kathmandu", "2026-04-05"),
)
MINUTE_MS = 60_000

minutes = st.lists(st.integers(0, 59), min_size=1, max_size=4, unique=True).map(sorted)
hours = st.lists(st.integers(0, 5) | st.integers(0, 23), min_size=1, max_size=4, unique=True).map(sorted)
steps = st.integers(1, 24)


def written(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


@cache
def around(zone: str, day: str) -> tuple[tuple[int, datetime], ...]:
    """Every real minute from a day before to two days after, and what the clock shows."""
    place = ZoneInfo(zone)
    start = int(datetime.fromisoformat(day).replace(tzinfo=place).timestamp() * 1000) - 1440 * MINUTE_MS
    return tuple(
        (moment, datetime.fromtimestamp(moment / 1000, place).replace(tzinfo=None, fold=0))
        for moment in range(start, start + 4320 * MINUTE_MS, MINUTE_MS)
    )


@pytest.mark.parametrize(("zone", "day"), DAYS)
@settings(deadline=None, max_examples=25)
@given(minutes=minutes, hours=hours, skipped=st.integers(0, 4000))
def test_fixed_times_run_when_the_clock_first_reaches_them(
    zone: str, day: str, minutes: list[int], hours: list[int], skipped: int
) -> None:
    table = around(zone, day)
    start = table[0][1].replace(hour=0, minute=0)
    times = [
        start + timedelta(days=number, hours=hour, minutes=minute)
        for number in range(5)
        for hour in hours
        for minute in minutes
    ]
    expected = {
        next((moment for moment, clock in table if clock >= time), 0)
        for time in times
        if time > table[0][1] and time <= table[-1][1]
    }
    from_ms = table[skipped][0]
    cron = Cron(f"{written(minutes)} {written(hours)} * * *", zone)
    assert cron.between(from_ms, table[-1][0], 10_000) == sorted(
        moment for moment in expected if moment > from_ms
    )


@pytest.mark.parametrize(("zone", "day"), DAYS)
@settings(deadline=None, max_examples=25)
@given(minutes=minutes, step=steps, skipped=st.integers(0, 4000))
def test_steps_of_hours_run_whenever_the_clock_shows_them(
    zone: str, day: str, minutes: list[int], step: int, skipped: int
) -> None:
    table = around(zone, day)
    from_ms = table[skipped][0]
    expected = [
        moment
        for moment, clock in table
        if moment > from_ms and clock.minute in minutes and clock.hour % step == 0
    ]
    cron = Cron(f"{written(minutes)} */{step} * * *", zone)
    assert cron.between(from_ms, table[-1][0], 10_000) == expected


@settings(deadline=None, max_examples=40)
@given(
    minute=st.one_of(minutes.map(written), st.sampled_from(("*/7", "3-9", "5/20"))),
    hour=st.one_of(st.just("*"), st.sampled_from(("*/2", "*/3"))),
    start=st.integers(1_735_689_600, 1_798_761_600),
    zone=st.sampled_from(("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC")),
    fixed=hours.map(written) | st.none(),
    days=st.sampled_from(("* * *", "1 * *", "* * SUN", "1-7 * SUN", "* 3,10,11 *", "L * *", "* * SUN#2")),
)
def test_cronsim_says_the_same_where_its_rule_is_ours(
    *, minute: str, hour: str, start: int, zone: str, fixed: str | None, days: str
) -> None:
    if fixed is not None:
        minute, hour = minute.replace("*/7", "0/7"), fixed
    expression = f"{minute} {hour} {days}"
    theirs = CronSim(expression, datetime.fromtimestamp(start, ZoneInfo(zone)))
    expected = [
        tick for tick in (int(next(theirs).timestamp() * 1000) for _ in range(40)) if tick > start * 1000
    ]
    assert Cron(expression, zone).between(start * 1000, expected[-1], len(expected)) == expected


@given(st.text("0123456789*/,-HLW#()ABCDEFJMNORSTUV @\t", max_size=30) | st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        cron = Cron(text)
    except ConfigurationError as refused:
        assert str(refused).startswith("cron: ")  # noqa: PT017
    else:
        assert cron.next_after(0) > 0


@given(
    st.integers(1000, 366 * 86_400_000),
    st.text(max_size=5),
    st.integers(0, 4_000_000_000_000),
)
def test_an_interval_has_one_tick_in_each_of_its_lengths(interval: int, seed: str, moment: int) -> None:
    every = Every(timedelta(milliseconds=interval))
    tick = every.next_after(moment, seed=seed)
    assert moment < tick <= moment + interval
    assert every.next_after(tick, seed=seed) == tick + interval
    assert every.between(moment, moment + 2 * interval, 9, seed=seed) == [tick, tick + interval]
