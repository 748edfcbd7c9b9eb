"""Which ticks of a schedule are due, what becomes of missed ones, and what a deploy changes."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from counterseal.core.errors import CodecError, ConfigurationError
from counterseal.jobs.cron import Cron, Every
from counterseal.jobs.schedule import (
    Due,
    Missed,
    Origin,
    Schedule,
    due,
    preview,
    read_schedule,
    reconcile,
    tick_key,
    write_schedule,
)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
NOON = 1_772_366_400_000  # 2026-03-01T12:00Z
HOURLY = Cron("0 * * * *")


def schedule(when: Cron | Every = HOURLY, **fields: Any) -> Schedule:
    return Schedule(**{"id": "reports", "type": "report", "when": when, **fields})


class TestDue:
    def test_nothing_is_due_before_the_tick_and_the_tick_is_due_at_its_moment(self) -> None:
        last = NOON - HOUR_MS
        assert due(schedule(), last, NOON - 1) == Due((), NOON)
        assert due(schedule(), last, NOON) == Due((NOON,), NOON + HOUR_MS)
        assert due(schedule(), NOON, NOON + 1) == Due((), NOON + HOUR_MS)

    @pytest.mark.parametrize("missed", list(Missed))
    def test_a_tick_within_the_grace_is_on_time_for_every_policy(self, missed: Missed) -> None:
        each = schedule(missed=missed, grace=MINUTE)
        assert due(each, NOON - HOUR_MS, NOON + MINUTE_MS).ticks == (NOON,)

    @pytest.mark.parametrize("missed", list(Missed))
    def test_every_tick_within_the_grace_runs(self, missed: Missed) -> None:
        each = schedule(Cron("* * * * *"), missed=missed, grace=3 * MINUTE)
        assert due(each, NOON - 3 * MINUTE_MS - 1, NOON).ticks == tuple(
            NOON - before * MINUTE_MS for before in (3, 2, 1, 0)
        )

    def test_skip_lets_missed_ticks_go(self) -> None:
        skipping = schedule(missed=Missed.SKIP)
        assert due(skipping, NOON - DAY_MS, NOON + MINUTE_MS + 1) == Due((), NOON + HOUR_MS)
        assert due(skipping, NOON - DAY_MS, NOON).ticks == (NOON,)

    def test_once_runs_the_latest_missed_tick(self) -> None:
        once = schedule(missed=Missed.ONCE)
        assert due(once, NOON - DAY_MS, NOON + MINUTE_MS + 1) == Due((NOON,), NOON + HOUR_MS)

    def test_once_makes_up_nothing_beside_a_tick_that_is_on_time(self) -> None:
        assert due(schedule(missed=Missed.ONCE), NOON - DAY_MS, NOON).ticks == (NOON,)

    def test_once_finds_a_tick_that_was_missed_long_ago(self) -> None:
        yearly = schedule(Cron("30 6 1 3 *"), missed=Missed.ONCE)
        assert due(yearly, NOON - 2000 * DAY_MS, NOON + 300 * DAY_MS).ticks == (NOON - 330 * MINUTE_MS,)

    def test_all_runs_every_missed_tick_oldest_first(self) -> None:
        everything = schedule(missed=Missed.ALL)
        assert due(everything, NOON - DAY_MS, NOON + 1).ticks == tuple(
            range(NOON - DAY_MS + HOUR_MS, NOON + 1, HOUR_MS)
        )

    @pytest.mark.parametrize("when", [Cron("* * * * *"), Every(MINUTE)])
    def test_all_runs_the_latest_thousand(self, when: Cron | Every) -> None:
        everything = schedule(when, missed=Missed.ALL)
        ticks = due(everything, NOON - 30 * DAY_MS, NOON).ticks
        assert len(ticks) == 1000
        assert {later - sooner for sooner, later in pairwise(ticks)} == {MINUTE_MS}
        assert NOON - MINUTE_MS < ticks[-1] <= NOON

    def test_all_reaches_back_over_empty_months(self) -> None:
        everything = schedule(Cron("*/30 * 1 1 *"), missed=Missed.ALL)
        ticks = due(everything, NOON - 800 * DAY_MS, NOON).ticks
        assert len(ticks) == 3 * 48
        assert list(ticks) == everything.between(NOON - 800 * DAY_MS, NOON, 1000)

    @pytest.mark.parametrize(
        ("missed", "expected"), [(Missed.SKIP, 0), (Missed.ONCE, 1), (Missed.ALL, 2)], ids=str
    )
    def test_only_what_is_young_enough_is_made_up(self, missed: Missed, expected: int) -> None:
        young = schedule(missed=missed, made_up=2 * HOUR)
        now = NOON + HOUR_MS // 2
        assert due(young, NOON - DAY_MS, now).ticks == (NOON - HOUR_MS, NOON)[2 - expected :]
        just = schedule(missed=missed, made_up=timedelta(minutes=30))
        assert len(due(just, NOON - DAY_MS, now).ticks) == min(expected, 1)
        none = schedule(missed=missed, made_up=timedelta(minutes=29))
        assert due(none, NOON - DAY_MS, now).ticks == ()

    def test_a_paused_schedule_fires_nothing_and_goes_on(self) -> None:
        paused = schedule(paused=True, missed=Missed.ALL)
        assert due(paused, NOON - DAY_MS, NOON) == Due((), NOON + HOUR_MS)

    def test_a_clock_that_goes_back_fires_nothing_again(self) -> None:
        assert due(schedule(missed=Missed.ALL), NOON, NOON - DAY_MS) == Due((), NOON + HOUR_MS)

    @pytest.mark.parametrize("missed", list(Missed))
    @pytest.mark.parametrize("expression", ["* * * * *", "0 6 1 1 *", "0 0 29 2 *"])
    def test_years_without_a_scheduler_are_made_up_in_no_time(self, expression: str, missed: Missed) -> None:
        began = time.process_time()
        due(schedule(Cron(expression, "Europe/Berlin"), missed=missed), NOON - 3650 * DAY_MS, NOON)
        assert time.process_time() - began < 1

    def test_a_schedule_in_seconds_is_made_up_in_no_time(self) -> None:
        began = time.process_time()
        everything = schedule(Every(timedelta(seconds=1)), missed=Missed.ALL, grace=timedelta(days=30))
        assert len(due(everything, NOON - 3650 * DAY_MS, NOON).ticks) == 1000
        assert time.process_time() - began < 3


class TestPreview:
    def test_the_next_runs_are_those_that_will_be_due(self) -> None:
        ticks = preview(schedule(Cron("30 2 * * *", "Europe/Berlin")), NOON + 26 * DAY_MS, 3)
        assert [datetime.fromtimestamp(t / 1000, ZoneInfo("Europe/Berlin")).isoformat() for t in ticks] == [
            "2026-03-28T02:30:00+01:00",
            "2026-03-29T03:00:00+02:00",
            "2026-03-30T02:30:00+02:00",
        ]

    def test_a_paused_schedule_can_be_looked_at(self) -> None:
        assert preview(schedule(paused=True), NOON, 2) == [NOON + HOUR_MS, NOON + 2 * HOUR_MS]

    @pytest.mark.parametrize("count", [0, -1, 1001])
    def test_from_one_to_a_thousand_can_be_asked_for(self, count: int) -> None:
        with pytest.raises(ConfigurationError, match=r"^count: expected a whole number from 1 to 1000"):
            preview(schedule(), NOON, count)


class TestSpread:
    """A thousand schedules of one expression: 17 a minute when they are spread over an hour."""

    def starts(self, when: Cron | Every, **fields: Any) -> Counter[int]:
        ticks = [
            tick
            for number in range(1000)
            for tick in due(
                schedule(when, id=f"tenant-{number}", grace=HOUR, **fields), NOON - 1, NOON + HOUR_MS - 1
            ).ticks
        ]
        assert len(ticks) == 1000
        return Counter((tick - NOON) // MINUTE_MS for tick in ticks)

    def test_without_a_spread_they_start_at_once(self) -> None:
        assert self.starts(HOURLY) == {0: 1000}

    @pytest.mark.parametrize(
        ("when", "fields"),
        [(Cron("H * * * *"), {}), (HOURLY, {"spread": HOUR}), (Every(HOUR), {})],
        ids=["hash", "spread", "interval"],
    )
    def test_a_thousand_hourly_schedules_start_evenly(self, when: Cron | Every, fields: Any) -> None:
        starts = self.starts(when, **fields)
        assert len(starts) == 60
        assert max(starts.values()) <= 35
        assert min(starts.values()) >= 4

    def test_a_spread_delays_by_less_than_its_length_and_always_by_the_same(self) -> None:
        late = schedule(spread=10 * MINUTE)
        ticks = preview(late, NOON, 50)
        assert {tick % HOUR_MS for tick in ticks} == {ticks[0] % HOUR_MS}
        assert 0 < ticks[0] % HOUR_MS < 10 * MINUTE_MS
        assert late.between(NOON, ticks[-1], 50) == ticks

    def test_a_spread_is_added_to_real_time(self) -> None:
        berlin = Cron("30 2 * * *", "Europe/Berlin")
        plain, late = schedule(berlin), schedule(berlin, spread=HOUR)
        delays = {
            later - sooner
            for sooner, later in zip(preview(plain, NOON, 60), preview(late, NOON, 60), strict=True)
        }
        assert len(delays) == 1


class TestReconcile:
    def test_the_first_deploy_adds_everything(self) -> None:
        found = reconcile([schedule(), schedule(id="b")], [])
        assert [each.id for each in found.to_add] == ["reports", "b"]
        assert (found.to_change, found.to_remove, found.taken) == ((), (), ())

    def test_the_same_code_changes_nothing(self) -> None:
        stored = [read_schedule(write_schedule(schedule()), key="k")]
        found = reconcile([schedule()], stored)
        assert (found.to_add, found.to_change, found.to_remove, found.taken) == ((), (), (), ())

    def test_what_the_code_no_longer_declares_is_removed(self) -> None:
        found = reconcile([schedule()], [schedule(), schedule(id="old")])
        assert found.to_remove == ("old",)

    def test_what_was_made_by_the_api_is_never_removed_or_changed(self) -> None:
        made = schedule(id="mine", origin=Origin.API)
        found = reconcile([schedule(id="mine", args="[1]")], [made, schedule(id="other", origin=Origin.API)])
        assert (found.to_add, found.to_change, found.to_remove) == ((), (), ())
        assert [each.id for each in found.taken] == ["mine"]

    def test_what_is_changed_keeps_its_pause(self) -> None:
        found = reconcile([schedule(args="[1]")], [schedule(paused=True)])
        assert found.to_change == (schedule(args="[1]", paused=True),)
        assert found.to_add == found.to_remove == ()

    def test_a_pause_alone_is_no_change(self) -> None:
        assert reconcile([schedule()], [schedule(paused=True)]).to_change == ()

    def test_two_of_one_id_and_one_of_the_api_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"^schedule\.id: .* came twice: reports"):
            reconcile([schedule(), schedule(args="[1]")], [])
        with pytest.raises(ConfigurationError, match=r"^schedule\.origin: expected code"):
            reconcile([schedule(origin=Origin.API)], [])

    @pytest.mark.parametrize(
        "change",
        [
            {"type": "other"},
            {"when": Cron("0 * * * *", "Europe/Berlin")},
            {"when": Every(HOUR)},
            {"args": "[1]"},
            {"options": {"queue": "slow"}},
            {"spread": MINUTE},
            {"missed": Missed.ALL},
            {"grace": HOUR},
            {"made_up": HOUR},
        ],
        ids=str,
    )
    def test_a_change_of_any_declared_field_changes_the_fingerprint(self, change: dict[str, Any]) -> None:
        changed = msgspec.structs.replace(schedule(), **change)
        assert changed.fingerprint != schedule().fingerprint
        assert reconcile([changed], [schedule()]).to_change == (changed,)

    def test_the_order_of_options_does_not_change_the_fingerprint(self) -> None:
        one = schedule(options={"a": 1, "b": {"c": 2, "d": 3}})
        other = schedule(options={"b": {"d": 3, "c": 2}, "a": 1})
        assert one.fingerprint == other.fingerprint
        assert len(one.fingerprint) == 32


class TestStored:
    def test_a_schedule_is_read_as_it_was_written(self) -> None:
        whole = Schedule(
            id="a.b-c_1",
            type="report",
            when=Cron("H 2 * * MON", "Europe/Berlin"),
            args='{"name": "Ünü"}',
            options={"queue": "slow", "tags": ["a"], "big": 2**80},
            spread=MINUTE,
            missed=Missed.ALL,
            grace=timedelta(milliseconds=1500),
            made_up=HOUR,
            paused=True,
            origin=Origin.API,
        )
        for each in (whole, schedule(), schedule(Every(HOUR))):
            assert read_schedule(write_schedule(each), key="k") == each
        assert write_schedule(whole).startswith(b"1:{")

    def test_fields_of_a_later_release_are_passed_over(self) -> None:
        assert read_schedule(write_schedule(schedule())[:-1] + b',"colour":1}', key="k") == schedule()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{}",
            b"1:{}",
            b"1:[]",
            write_schedule(schedule()).replace(b"1:", b"2:", 1),
            write_schedule(schedule()).replace(b"once", b"never"),
            write_schedule(schedule()).replace(b"0 * * * *", b"61 * * * *"),
            write_schedule(schedule()).replace(b"UTC", b"Mars/Olympus"),
            write_schedule(schedule()).replace(b'"P0D"', b'"-PT1S"'),
            write_schedule(schedule()).replace(b'"cron"', b'"moon"'),
        ],
    )
    def test_what_this_release_cannot_read_names_its_key(self, data: bytes) -> None:
        with pytest.raises(CodecError, match=r"key of it") as refused:
            read_schedule(data, key="key of it")
        assert refused.value.key == "key of it"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"id": ""}, "schedule.id: expected 1 to 96"),
            ({"id": "a b"}, "schedule.id: expected"),
            ({"id": "a:b"}, "schedule.id: expected"),
            ({"id": "a\n"}, "schedule.id: expected"),
            ({"id": "a" * 97}, "schedule.id: expected"),
            ({"id": 5}, "schedule.id: expected"),
            ({"type": ""}, "schedule.type: expected"),
            ({"when": "0 * * * *"}, "schedule.when: expected a Cron or an Every; came: str"),
            ({"args": "{"}, "schedule.args: expected the JSON text"),
            ({"args": {}}, "schedule.args: expected the JSON text"),
            ({"args": '"\ud800"'}, "schedule.args: expected the JSON text"),
            ({"options": {"a": (1,)}}, "schedule.options: expected JSON"),
            ({"spread": -MINUTE}, "schedule.spread: expected"),
            ({"spread": 25 * HOUR}, "schedule.spread: expected"),
            ({"grace": -MINUTE}, "schedule.grace: expected"),
            ({"grace": 5}, "schedule.grace: expected a timedelta; came: int"),
            ({"made_up": -MINUTE}, "schedule.made_up: expected"),
            ({"missed": "once"}, "schedule.missed: expected one of skip, once, all"),
            ({"origin": "code"}, "schedule.origin: expected one of code, api"),
        ],
    )
    def test_a_bad_field_is_refused_by_its_name(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError) as refused:
            schedule(**fields)
        assert str(refused.value).startswith(message)

    def test_an_h_that_never_comes_for_this_id_is_refused(self) -> None:
        when = Cron("0 0 H(28-31) 2 *")
        outcomes: Counter[bool] = Counter()
        for number in range(40):
            day = int(_day(when, str(number)))
            try:
                schedule(when, id=str(number))
            except ConfigurationError as refused:
                assert "expected a date that comes" in str(refused)  # noqa: PT017
                assert day > 29
                outcomes[False] += 1
            else:
                assert day <= 29
                outcomes[True] += 1
        assert len(outcomes) == 2


def _day(when: Cron, seed: str) -> str:
    try:
        return when.placed(seed).split()[2]
    except ConfigurationError:
        return "30"


def test_a_tick_has_one_name_of_at_most_128_bytes() -> None:
    assert tick_key("reports", NOON) == f"reports@{NOON}"
    assert len(tick_key("a" * 96, 10**15).encode()) <= 128
    assert len({tick_key(name, moment) for name in ("a", "a1", "a.1") for moment in (1, 11)}) == 6
