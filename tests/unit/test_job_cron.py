"""At which moments a cron expression or an interval is due, on the days on which clocks are changed too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.cron import Cron, Every, When, place

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"
LORD_HOWE = "Australia/Lord_Howe"
DAY_MS = 86_400_000


def ms(text: str, zone: str = "UTC") -> int:
    """Milliseconds of a time; with an offset in the text, the zone does not matter."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp() * 1000)


def shown(tick_ms: int, zone: str = "UTC") -> str:
    return datetime.fromtimestamp(tick_ms / 1000, ZoneInfo(zone)).strftime("%a %d %H:%M %z")


def on_day(expression: str, zone: str, day: str, until: str = "05:00") -> list[str]:
    """The ticks of a morning, with their offsets from UTC."""
    from_ms, to_ms = ms(f"{day}T00:00", zone) - 1, ms(f"{day}T{until}", zone) - 1
    ticks = Cron(expression, zone).between(from_ms, to_ms, 1000)
    assert [
        tick
        for before, tick in pairwise([from_ms, *ticks])
        if Cron(expression, zone).next_after(before) != tick
    ] == []
    return [
        datetime.fromtimestamp(tick / 1000, ZoneInfo(zone)).strftime("%H:%M%z").removesuffix("00")
        for tick in ticks
    ]


class TestExpressions:
    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("* * * * *", "Sun 01 12:31"),
            ("*/15 * * * *", "Sun 01 12:45"),
            ("5/20 * * * *", "Sun 01 12:45"),
            ("30 12 * * *", "Mon 02 12:30"),
            ("0 9-17/4 * * *", "Sun 01 13:00"),
            ("  0 0 * * tue,thu  ", "Tue 03 00:00"),
            ("0 0 * * MON-FRI", "Mon 02 00:00"),
            ("0 0 * * 7", "Sun 08 00:00"),
            ("0 0 * * 0", "Sun 08 00:00"),
            ("0 0 L * *", "Tue 31 00:00"),
            ("0 0 LW * *", "Tue 31 00:00"),
            ("0 0 * * MON#2", "Mon 09 00:00"),
            ("0 0 * * 5L", "Fri 27 00:00"),
            ("0 0 15 * FRI", "Fri 06 00:00"),
            ("0 0 */15 * MON", "Mon 16 00:00"),
            ("@hourly", "Sun 01 13:00"),
            ("@daily", "Mon 02 00:00"),
            ("@midnight", "Mon 02 00:00"),
            ("@Weekly", "Sun 08 00:00"),
            ("@monthly", "Wed 01 00:00"),
            ("@yearly", "Fri 01 00:00"),
            ("@annually", "Fri 01 00:00"),
        ],
    )
    def test_the_next_tick_is_this(self, expression: str, expected: str) -> None:
        assert shown(Cron(expression).next_after(ms("2026-03-01T12:30"))) == f"{expected} +0000"

    def test_a_tick_is_after_the_moment_and_on_the_minute(self) -> None:
        cron = Cron("* * * * *")
        noon = ms("2026-03-01T12:00")
        assert cron.next_after(noon - 1) == noon
        assert cron.next_after(noon) == noon + 60_000
        assert cron.next_after(noon + 1) == noon + 60_000
        assert cron.next_after(noon + 59_999) == noon + 60_000

    def test_between_has_the_last_moment_and_not_the_first(self) -> None:
        cron = Cron("0 * * * *")
        noon = ms("2026-03-01T12:00")
        assert cron.between(noon, noon + 2 * 3_600_000, 10) == [noon + 3_600_000, noon + 7_200_000]
        assert cron.between(noon, noon + DAY_MS, 2) == [noon + 3_600_000, noon + 7_200_000]
        assert cron.between(noon, noon + 3_599_999, 10) == []
        assert cron.between(noon, noon, 10) == []

    def test_29_february_comes_every_four_years_and_not_in_2100(self) -> None:
        cron = Cron("0 0 29 2 *", BERLIN)
        assert [
            datetime.fromtimestamp(tick / 1000, ZoneInfo(BERLIN)).isoformat()
            for tick in cron.between(ms("2095-01-01"), ms("2110-01-01"), 9)
        ] == ["2096-02-29T00:00:00+01:00", "2104-02-29T00:00:00+01:00", "2108-02-29T00:00:00+01:00"]
        assert shown(Cron("0 0 * 2 MON#5").next_after(ms("2073-01-01"))) == "Mon 29 00:00 +0000"

    def test_the_zone_says_whose_clock_it_is(self) -> None:
        assert shown(Cron("0 9 * * *", BERLIN).next_after(ms("2026-01-15"))) == "Thu 15 08:00 +0000"
        assert shown(Cron("0 9 * * *", NEW_YORK).next_after(ms("2026-07-15"))) == "Wed 15 13:00 +0000"

    @pytest.mark.parametrize(
        ("expression", "message"),
        [
            ("60 * * * *", "cron: minute: expected"),
            ("*/0 * * * *", "cron: minute: expected"),
            ("-1 * * * *", "cron: minute: expected"),
            ("1,,2 * * * *", "cron: minute: expected"),
            ("? * * * *", "cron: minute: expected"),
            (
                "* 24 * * *",
                "cron: hour: expected *, H, 0-23 or names, and lists, ranges or steps of them; came: '24'",
            ),
            ("* 5-3 * * *", "cron: hour: expected"),
            ("* * 0 * *", "cron: day-of-month: expected"),
            ("* * 32 * *", "cron: day-of-month: expected"),
            ("* * * 13 *", "cron: month: expected"),
            ("* * * MAY-APR *", "cron: month: expected"),
            ("* * * * 8", "cron: day-of-week: expected"),
            ("* * * * MONDAY", "cron: day-of-week: expected"),
            ("* * * * MON#6", "cron: day-of-week: expected"),
            ("* * * * L", "cron: day-of-week: expected"),
            ("0 0 30 2 *", "cron: expected a date that comes; came: '0 0 30 2 *'"),
            ("0 0 31 4,6 *", "cron: expected a date that comes"),
            ("* * */20 * 1L", "cron: expected a date that comes"),
            (
                "* * * *",
                "cron: expected five fields, minute, hour, day-of-month, month, day-of-week; came: 4",
            ),
            (
                "0 * * * * *",
                "cron: expected five fields, minute, hour, day-of-month, month, day-of-week; came: 6",
            ),
            ("", "cron: expected five fields"),
            ("@reboot", "cron: expected one of @hourly, @daily"),
            ("CRON_TZ=UTC * * * * *", "cron: expected five fields"),
            ("* " * 200, "cron: expected text of at most 256 characters"),
            (5, "cron: expected text of at most 256 characters; came: int"),
            ("H/61 * * * *", "cron: minute: expected a step of H from 1 to 60; came: 'H/61'"),
            ("H/0 * * * *", "cron: minute: expected a step of H from 1 to 60"),
            ("H(0-29)/31 * * * *", "cron: minute: expected a step of H from 1 to 30"),
            ("* H(5-24) * * *", "cron: hour: expected a range of H within 0-23"),
            ("* H(5-3) * * *", "cron: hour: expected a range of H within 0-23"),
            ("* * H(0-9) * *", "cron: day-of-month: expected a range of H within 1-31"),
            ("* * * H(JAN-XYZ) *", "cron: month: expected a number or a name; came: 'XYZ'"),
            ("* H() * * *", "cron: hour: expected"),
            ("* 1-H * * *", "cron: hour: expected"),
            ("0 0 H(30-31) 2 *", "cron: expected a date that comes; came: '0 0 H(30-31) 2 *'"),
        ],
    )
    def test_what_cannot_be_read_or_never_comes_is_refused(self, expression: Any, message: str) -> None:
        with pytest.raises(ConfigurationError) as refused:
            Cron(expression)
        assert str(refused.value).startswith(message)

    @pytest.mark.parametrize(
        "zone",
        [
            "Europe/Atlantis",
            "europe/Berlin",
            "Europe",
            "",
            "+01:00",
            "CET-1CEST",
            "../../etc/passwd",
            "/etc/localtime",
            "localtime",
            "posixrules",
            "right/Europe/Berlin",
            "posix/Europe/Berlin",
            "Europe/Berlin\n",
            "a" * 100,
            None,
        ],
    )
    def test_a_zone_that_is_not_in_the_database_is_refused(self, zone: Any) -> None:
        with pytest.raises(
            ConfigurationError, match=r"^zone: expected a name of the IANA time zone database"
        ):
            Cron("* * * * *", zone)

    def test_a_system_without_a_time_zone_database_knows_the_zones(self) -> None:
        program = (
            "from counterseal.jobs.cron import Cron\n"
            "print(Cron('30 2 * * *', 'Europe/Berlin').next_after(0), Cron('0 0 * * *').next_after(0))\n"
            "from zoneinfo import TZPATH\n"
            "print(TZPATH)"
        )
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONTZPATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ran.stdout == "5400000 86400000\n()\n"


class TestClockChanges:
    """Berlin: 29 March 2026 has no 2 o'clock, 25 October has two.

    New York: 8 March 2026 has no 2 o'clock, 1 November has 1 o'clock twice.
    """

    def test_a_time_that_does_not_exist_runs_at_the_first_moment_after_it(self) -> None:
        assert on_day("30 2 * * *", BERLIN, "2026-03-29") == ["03:00+02"]
        assert on_day("0 2 * * *", BERLIN, "2026-03-29") == ["03:00+02"]
        assert on_day("59 2 * * *", NEW_YORK, "2026-03-08") == ["03:00-04"]

    def test_times_that_meet_there_make_one_tick(self) -> None:
        assert on_day("0,20,40 1-3 * * *", BERLIN, "2026-03-29") == [
            *("01:00+01", "01:20+01", "01:40+01"),
            *("03:00+02", "03:20+02", "03:40+02"),
        ]
        assert on_day("0 2,3 * * *", NEW_YORK, "2026-03-08") == ["03:00-04"]
        assert on_day("*/15 2 * * *", NEW_YORK, "2026-03-08") == ["03:00-04"]

    def test_a_time_that_comes_twice_runs_the_first_time(self) -> None:
        assert on_day("30 2 * * *", BERLIN, "2026-10-25") == ["02:30+02"]
        assert on_day("0 1-3 * * *", BERLIN, "2026-10-25") == ["01:00+02", "02:00+02", "03:00+01"]
        assert on_day("30 1 * * *", NEW_YORK, "2026-11-01") == ["01:30-04"]
        assert on_day("*/30 1 * * *", NEW_YORK, "2026-11-01") == ["01:00-04", "01:30-04"]

    def test_the_days_before_and_after_are_ordinary(self) -> None:
        for zone, days in (
            (BERLIN, ("2026-03-28", "2026-03-30", "2026-10-24", "2026-10-26")),
            (NEW_YORK, ("2026-03-07", "2026-03-09", "2026-10-31", "2026-11-02")),
        ):
            for day in days:
                assert [tick[:5] for tick in on_day("30 2 * * *", zone, day)] == ["02:30"]
                assert [tick[:5] for tick in on_day("0 * * * *", zone, day, "03:01")] == [
                    *("00:00", "01:00", "02:00", "03:00")
                ]

    def test_a_schedule_of_every_hour_runs_in_each_real_hour(self) -> None:
        assert on_day("0 * * * *", BERLIN, "2026-03-29") == ["00:00+01", "01:00+01", "03:00+02", "04:00+02"]
        assert on_day("0 * * * *", BERLIN, "2026-10-25") == [
            *("00:00+02", "01:00+02", "02:00+02", "02:00+01", "03:00+01", "04:00+01")
        ]
        assert on_day("30 * * * *", NEW_YORK, "2026-03-08") == [
            "00:30-05",
            "01:30-05",
            "03:30-04",
            "04:30-04",
        ]
        assert on_day("30 * * * *", NEW_YORK, "2026-11-01") == [
            *("00:30-04", "01:30-04", "01:30-05", "02:30-05", "03:30-05", "04:30-05")
        ]

    def test_steps_of_hours_follow_the_clock(self) -> None:
        assert on_day("0 */2 * * *", BERLIN, "2026-03-29") == ["00:00+01", "04:00+02"]
        assert on_day("0 */2 * * *", BERLIN, "2026-10-25") == ["00:00+02", "02:00+02", "02:00+01", "04:00+01"]

    def test_steps_of_h_follow_the_clock_as_steps_of_a_star_do(self) -> None:
        seed = next(str(number) for number in range(99) if place(str(number), "hour", 2) == 0)
        for day in ("2026-03-29", "2026-10-25"):
            window = ms(f"{day}T00:00", BERLIN), ms(f"{day}T12:00", BERLIN), 99
            assert Cron("0 H/2 * * *", BERLIN).between(*window, seed=seed) == Cron(
                "0 */2 * * *", BERLIN
            ).between(*window)

    def test_a_schedule_of_every_few_minutes_never_pauses(self) -> None:
        for zone, day in ((BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-11-01")):
            start = ms(f"{day}T00:00", zone)
            ticks = Cron("*/10 * * * *", zone).between(start, start + 6 * 3_600_000, 99)
            assert ticks == list(range(start + 600_000, start + 6 * 3_600_000 + 1, 600_000))

    def test_from_within_the_hour_that_comes_again_the_past_does_not_come_again(self) -> None:
        second = ms("2026-10-25T02:15:00+01:00")
        assert shown(Cron("30 2 * * *", BERLIN).next_after(second), BERLIN) == "Mon 26 02:30 +0100"
        assert shown(Cron("30 * * * *", BERLIN).next_after(second), BERLIN) == "Sun 25 02:30 +0100"
        first = ms("2026-10-25T02:45:00+02:00")
        assert shown(Cron("15 * * * *", BERLIN).next_after(first), BERLIN) == "Sun 25 02:15 +0100"
        assert shown(Cron("0 * * * *", BERLIN).next_after(first), BERLIN) == "Sun 25 02:00 +0100"

    def test_a_change_by_half_an_hour_is_followed_too(self) -> None:
        assert on_day("*/15 3 * * *", LORD_HOWE, "2026-04-05") == [
            *("03:00+1030", "03:15+1030", "03:30+1030", "03:45+1030")
        ]
        assert on_day("0 2 * * *", LORD_HOWE, "2026-10-04") == ["02:30+11"]
        assert on_day("*/30 1,2 * * *", LORD_HOWE, "2026-04-05") == [
            *("01:00+11", "01:30+11", "02:00+1030", "02:30+1030")
        ]

    def test_a_midnight_that_does_not_exist_runs_after_it(self) -> None:
        assert on_day("0 0 * * *", "America/Santiago", "2026-09-06") == ["01:00-03"]

    def test_a_day_that_does_not_exist_runs_after_it(self) -> None:
        cron = Cron("0 12 30 12 *", "Pacific/Apia")
        tick = cron.next_after(ms("2011-12-01"))
        assert shown(tick, "Pacific/Apia") == "Sat 31 00:00 +1400"


class TestHash:
    def test_h_stays_in_its_place(self) -> None:
        cron = Cron("H H * * *", BERLIN)
        assert cron.placed("reports") == cron.placed("reports") == "57 19 * * *"
        assert cron.placed("reminders") != cron.placed("reports")
        ticks = cron.between(ms("2026-01-01"), ms("2026-02-01"), 99, seed="reports")
        assert {shown(tick, BERLIN)[7:12] for tick in ticks} == {"19:57"}

    @pytest.mark.parametrize(
        ("expression", "index", "lowest", "highest"),
        [
            ("H * * * *", 0, 0, 59),
            ("0 H * * *", 1, 0, 23),
            ("0 0 H * *", 2, 1, 28),
            ("0 0 1 H *", 3, 1, 12),
            ("0 0 * * H", 4, 0, 6),
            ("H(10-19) * * * *", 0, 10, 19),
            ("0 0 H(1-31) * *", 2, 1, 31),
            ("0 0 1 H(mar-may) *", 3, 3, 5),
            ("0 0 * * H(MON-FRI)", 4, 1, 5),
        ],
    )
    def test_h_falls_everywhere_in_its_range(
        self, expression: str, index: int, lowest: int, highest: int
    ) -> None:
        cron = Cron(expression)
        places = {int(cron.placed(str(number)).split()[index]) for number in range(1500)}
        assert places == set(range(lowest, highest + 1))

    def test_steps_of_h_are_even_and_begin_anywhere(self) -> None:
        quarter = Cron("H/15 * * * *")
        for number in range(50):
            minutes = [int(minute) for minute in quarter.placed(str(number)).split()[0].split(",")]
            assert minutes == list(range(minutes[0], 60, 15))
        assert {quarter.placed(str(number)) for number in range(500)} == {
            f"{start},{start + 15},{start + 30},{start + 45} * * * *" for start in range(15)
        }
        ten = {Cron("H(0-29)/10 * * * *").placed(str(number)).split()[0] for number in range(500)}
        assert ten == {f"{start},{start + 10},{start + 20}" for start in range(10)}

    def test_fields_are_placed_independently(self) -> None:
        places = Counter(Cron("H H * * *").placed(str(number)) for number in range(500))
        assert len(places) > 350

    def test_h_may_stand_in_a_list_and_in_names(self) -> None:
        assert Cron("0 H,12 * * THU").placed("x").endswith(",12 * * THU")
        assert Cron("0 0 * mar H").placed("x").startswith("0 0 * MAR ")


class TestEvery:
    def test_ticks_are_an_interval_apart_and_hang_on_nothing_but_the_clock(self) -> None:
        every = Every(timedelta(minutes=5))
        ticks = every.between(ms("2026-03-29"), ms("2026-03-30"), 1000, seed="a")
        assert len(ticks) == 288
        assert {later - sooner for sooner, later in pairwise(ticks)} == {300_000}
        assert {tick % 300_000 for tick in ticks} == {place("a", "interval", 300_000)}

    def test_next_and_between_agree(self) -> None:
        every = Every(timedelta(seconds=7))
        first = every.next_after(1000, seed="b")
        assert 1000 < first <= 8000
        assert every.next_after(first - 1, seed="b") == first
        assert every.next_after(first, seed="b") == first + 7000
        assert every.between(first, first + 14_000, 9, seed="b") == [first + 7000, first + 14_000]
        assert every.between(first, first + 14_000, 1, seed="b") == [first + 7000]

    @pytest.mark.parametrize(
        "interval",
        [timedelta(), timedelta(milliseconds=999), timedelta(days=367), timedelta(seconds=1.0001), 5],
    )
    def test_an_interval_out_of_range_is_refused(self, interval: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"^every\.interval: expected"):
            Every(interval)


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (Cron("H 2 * * MON", BERLIN), b'{"type":"cron","expression":"H 2 * * MON","zone":"Europe/Berlin"}'),
        (Every(timedelta(minutes=5)), b'{"type":"every","interval":"PT300S"}'),
    ],
)
def test_both_travel_as_json(when: When, text: bytes) -> None:
    assert msgspec.json.encode(when) == text
    assert msgspec.json.decode(text, type=When) == when


def test_moments_do_not_depend_on_the_zone_of_the_machine() -> None:
    program = "from counterseal.jobs.cron import Cron; print(Cron('30 2 * * *').next_after(0))"
    for zone in ("Asia/Tokyo", "America/Lima"):
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "TZ": zone},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert int(ran.stdout) == int(datetime(1970, 1, 1, 2, 30, tzinfo=UTC).timestamp()) * 1000
