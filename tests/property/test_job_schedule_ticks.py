"""However often a scheduler looks, every tick is fired once; and whatever was missed, by the policy."""

from __future__ import annotations

from datetime import timedelta
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from counterseal.jobs.cron import Cron, Every
from counterseal.jobs.schedule import Missed, Schedule, due, preview

BEGIN = 1_774_720_000_000  # the day before Berlin has no 2 o'clock
MINUTE_MS = 60_000

whens = st.one_of(
    st.sampled_from(
        (
            "* * * * *",
            "*/5 * * * *",
            "H/7 * * * *",
            "30 2 * * *",
            "0 */2 * * *",
            "15,45 H * * *",
            "0 0 * * MON",
        )
    ).map(lambda expression: Cron(expression, "Europe/Berlin")),
    st.integers(20, 5000).map(lambda seconds: Every(timedelta(seconds=seconds))),
)
schedules = st.builds(
    Schedule,
    id=st.sampled_from(("a", "b", "reports.daily")),
    type=st.just("report"),
    when=whens,
    spread=st.sampled_from((0, 0, 7, 90)).map(lambda minutes: timedelta(minutes=minutes)),
    missed=st.sampled_from(Missed),
    grace=st.sampled_from((0, 1, 60, 90 * 60)).map(lambda seconds: timedelta(seconds=seconds)),
)
looks = st.lists(st.integers(1, 300 * MINUTE_MS), min_size=1, max_size=8)


@settings(deadline=None, max_examples=80)
@given(schedules, looks)
def test_ticks_are_fired_by_their_policy_however_often_one_looks(
    schedule: Schedule, pauses: list[int]
) -> None:
    moments = list(accumulate(pauses, initial=BEGIN))
    grace_ms = schedule.grace // timedelta(milliseconds=1)
    every: list[int] = schedule.between(moments[0], moments[-1], 10**6)
    fired: list[int] = []
    for last_ms, now_ms in pairwise(moments):
        answer = due(schedule, last_ms, now_ms)
        there = [tick for tick in every if last_ms < tick <= now_ms]
        on_time = [tick for tick in there if tick >= now_ms - grace_ms]
        expected = {
            Missed.SKIP: on_time,
            Missed.ONCE: on_time or there[-1:],
            Missed.ALL: there,
        }[schedule.missed]
        assert list(answer.ticks) == expected[-1000:]
        assert answer.next_ms == schedule.next_after(now_ms) > now_ms
        fired += answer.ticks
    assert fired == sorted(set(fired))


@settings(deadline=None, max_examples=40)
@given(schedules, st.integers(0, 3 * 86_400_000))
def test_a_preview_is_what_will_be_due(schedule: Schedule, later: int) -> None:
    ticks = preview(schedule, BEGIN + later, 5)
    assert ticks == schedule.between(BEGIN + later, ticks[-1], 5)
    last_ms = BEGIN + later
    for tick in ticks:
        assert due(schedule, last_ms, tick - 1).ticks == ()
        assert due(schedule, last_ms, tick).ticks == (tick,)
        last_ms = tick
