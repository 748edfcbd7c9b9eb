"""Cron expressions and intervals: at which moments something is due.

**Five fields**: minute, hour, day of the month, month, day of the week, as Debian's cron reads them: `*`, lists,
ranges, steps, names (`MON`, `JAN`), 0 and 7 for Sunday, and besides `L` (last day), `LW` (last weekday), `MON#2`
(second Monday) and `5L` (last Friday). When neither of the day fields begins with `*`, either may match. A tick has no
seconds. `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually` stand for their first minute.

**`H`** is a place that a hash chooses for each schedule, by its id, and that never moves: `H * * * *` is some minute of
every hour, `H/15` every 15 minutes from some minute on, `H(0-29)` and `H(0-29)/10` the same within a range. As a day of
the month it is 1 to 28, so that it comes every month.

**Where clocks are changed**, the hour field says what happens:

- Fixed hours (`30 2 * * *`, `0 1-5 * * *`): the schedule runs on every day. A time that does not exist on a day runs at
  the first moment after it, so in Berlin in March 02:30 runs at 03:00; times that meet there make one tick. A time that
  comes twice runs the first time only.
- What begins with `*`, and steps of `H` alone (`*`, `*/2`, `H/2`): the schedule follows the clock through every real
  hour. A time that comes twice runs twice, a time that does not exist does not run.

Debian's cron says the same, save that it looks at the minute too: there `*/15 2 * * *` follows the clock, and so does
not run on the day on which 2 o'clock is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice, takewhile
from typing import Final, TypeAlias, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from counterseal.core.errors import ConfigurationError
from counterseal.jobs.duration import MS, checked_ms

MOST_CHARACTERS: Final = 256
SHORTEST: Final = timedelta(seconds=1)

_FIELDS: Final = ("minute", "hour", "day-of-month", "month", "day-of-week")
_HOUR: Final = 1
_RANGES: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
# Where `H` alone may fall: every month has these days, and Sunday is one day.
_HASHED: Final = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_NAMES: Final[dict[str, dict[str, int]]] = {
    "month": {name: number for number, name in enumerate(_MONTHS, 1)},
    "day-of-week": {name: number for number, name in enumerate(_DAYS)},
}
_ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_H: Final = re.compile(r"H(?:\(([A-Z0-9]{1,3})-([A-Z0-9]{1,3})\))?(?:/([0-9]{1,3}))?")
_ZONE: Final = re.compile(r"(?!right/|posix)[A-Za-z][A-Za-z0-9_+/-]{1,63}")
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - clock time, counted in seconds
_ANY_START: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - clock time
_WEEK_S: Final = 7 * 86_400


class Cron(msgspec.Struct, frozen=True, tag="cron"):
    """Moments by a cron expression in a time zone: `Cron("30 2 * * MON-FRI", "Europe/Berlin")`.

    The zone is a name of the IANA database. Raises `ConfigurationError` naming the field of the expression, or `zone`,
    for what can't be read and for an expression that never comes, such as 30 February.
    """

    expression: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        _zone(self.zone)
        self.placed("")

    def placed(self, seed: str) -> str:
        """The five fields with each `H` in its place for this seed, which is the id of a schedule.

        Raises `ConfigurationError` when they can't be read, or never come.
        """
        placed = " ".join(_placed(index, field, seed) for index, field in enumerate(_fields(self.expression)))
        _check(placed, self.expression)
        return placed

    def next_after(self, moment_ms: int, *, seed: str = "") -> int:
        """The first tick after a moment, both in milliseconds since 1970. `seed` places `H`."""
        return next(self._ticks(moment_ms, seed))

    def between(self, from_ms: int, to_ms: int, limit: int, *, seed: str = "") -> list[int]:
        """The ticks after `from_ms` and not after `to_ms`, the first `limit` of them."""
        return list(islice(takewhile(lambda tick: tick <= to_ms, self._ticks(from_ms, seed)), limit))

    def _ticks(self, after_ms: int, seed: str) -> Iterator[int]:
        fields = _fields(self.expression)
        follows = fields[_HOUR].startswith("*") or _steps_of_h(fields[_HOUR])
        text = " ".join(_placed(index, field, seed) for index, field in enumerate(fields))
        ticks = _following if follows else _fixed
        return (second * 1000 for second in ticks(text, _zone(self.zone), after_ms // 1000))


class Every(msgspec.Struct, frozen=True, tag="every"):
    """Moments at an interval from 1 second to 366 days: `Every(timedelta(minutes=5))`.

    They are counted from 1970 on, shifted within the interval by a hash of the seed, so that processes agree on them
    without asking each other. Raises `ConfigurationError` naming `every.interval`.
    """

    interval: timedelta

    def __post_init__(self) -> None:
        checked_ms("every.interval", self.interval, least=SHORTEST)

    def next_after(self, moment_ms: int, *, seed: str = "") -> int:
        """The first tick after a moment, both in milliseconds since 1970. `seed` places them within the interval."""
        interval = self.interval // MS
        shift = place(seed, "interval", interval)
        return (moment_ms - shift) // interval * interval + interval + shift

    def between(self, from_ms: int, to_ms: int, limit: int, *, seed: str = "") -> list[int]:
        """The ticks after `from_ms` and not after `to_ms`, the first `limit` of them."""
        return list(range(self.next_after(from_ms, seed=seed), to_ms + 1, self.interval // MS)[:limit])


When: TypeAlias = Cron | Every


def place(seed: str, about: str, size: int) -> int:
    """A number from 0 to below `size` that is always the same for a seed, and another for something else."""
    digest = sha256(f"{about}\0{seed}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:16]) % size


def _fixed(text: str, zone: ZoneInfo, after: int) -> Iterator[int]:
    """Every matching clock time once, at its first real moment or at the first one after it."""
    for clock in CronSim(text, _clock(after, _offset(zone, after))):
        tick = _real(clock, zone)
        if tick > after:
            yield tick
            after = tick


def _following(text: str, zone: ZoneInfo, after: int) -> Iterator[int]:
    """Every real moment at which the clock shows a matching time: one stretch of the same offset after the other."""
    offset = _offset(zone, after)
    while True:
        for clock in CronSim(text, _clock(after, offset)):
            tick = _seconds(clock) - offset
            change = _change(zone, after, tick, offset)
            if change is not None:
                # From a second before, by the new offset, so that the moment of the change itself is looked at.
                after, offset = change - 1, _offset(zone, change)
                break
            yield tick
            after = tick


def _real(clock: datetime, zone: ZoneInfo) -> int:
    """The second at which a clock shows this for the first time, or is set past it."""
    first, second = (int(clock.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1))
    if first <= second:
        return first
    # The time does not exist: read by the offset after the change it lies before the change, and the other way round.
    return _change(zone, second, first, _offset(zone, second)) or first


def _change(zone: ZoneInfo, start: int, stop: int, offset: int) -> int | None:
    """The first second after `start`, and not after `stop`, with another offset. Sees changes a week or more apart."""
    before = start
    while before < stop:
        after = min(before + _WEEK_S, stop)
        if _offset(zone, after) == offset:
            before = after
            continue
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (middle, after) if _offset(zone, middle) == offset else (before, middle)
        return after
    return None


def _offset(zone: ZoneInfo, second: int) -> int:
    return int(cast("timedelta", datetime.fromtimestamp(second, zone).utcoffset()).total_seconds())


def _clock(second: int, offset: int) -> datetime:
    return _EPOCH + timedelta(seconds=second + offset)


def _seconds(clock: datetime) -> int:
    return int((clock - _EPOCH).total_seconds())


def _zone(name: object) -> ZoneInfo:
    if isinstance(name, str) and _ZONE.fullmatch(name) and name != "localtime":
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise ConfigurationError(
        f"zone: expected a name of the IANA time zone database, such as Europe/Berlin; came: {_shown(name)}"
    )


def _fields(expression: object) -> list[str]:
    if not isinstance(expression, str) or len(expression) > MOST_CHARACTERS:
        raise ConfigurationError(
            f"cron: expected text of at most {MOST_CHARACTERS} characters; came: {_shown(expression)}"
        )
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() not in _ALIASES:
            raise ConfigurationError(f"cron: expected one of {', '.join(_ALIASES)}; came: {_shown(text)}")
        text = _ALIASES[text.lower()]
    fields = text.upper().split()
    if len(fields) != len(_FIELDS):
        raise ConfigurationError(f"cron: expected five fields, {', '.join(_FIELDS)}; came: {len(fields)}")
    return fields


def _steps_of_h(field: str) -> bool:
    return any(term.startswith("H/") for term in field.split(","))


def _placed(index: int, field: str, seed: str) -> str:
    """A field with numbers for its `H`."""
    return ",".join(
        _place_of_h(index, found, seed) if (found := _H.fullmatch(term)) else term
        for term in field.split(",")
    )


def _place_of_h(index: int, found: re.Match[str], seed: str) -> str:
    least, most = _HASHED[index]
    if found[1]:
        least, most = (_number(index, name) for name in (found[1], found[2]))
        low, high = _RANGES[index]
        if not low <= least <= most <= high:
            raise _bad(index, found[0], f"a range of H within {low}-{high}")
    size = most - least + 1
    if not found[3]:
        return str(least + place(seed, _FIELDS[index], size))
    step = int(found[3])
    if not 1 <= step <= size:
        raise _bad(index, found[0], f"a step of H from 1 to {size}")
    return ",".join(map(str, range(least + place(seed, _FIELDS[index], step), most + 1, step)))


def _number(index: int, name: str) -> int:
    number = _NAMES.get(_FIELDS[index], {}).get(name, int(name) if name.isdecimal() else -1)
    if number < 0:
        raise _bad(index, name, "a number or a name")
    return number


def _check(placed: str, given: str) -> None:
    """Raise for the first field that can't be read, or when all of them together never match."""
    try:
        # Every date with its day of the week comes within 40 years, and cronsim looks 50 years ahead.
        next(CronSim(placed, _ANY_START))
    except (CronSimError, StopIteration):
        for index, field in enumerate(placed.split()):
            _check_alone(index, field)
        raise ConfigurationError(f"cron: expected a date that comes; came: {_shown(given)}") from None


def _check_alone(index: int, field: str) -> None:
    fields = ["*"] * len(_FIELDS)
    fields[index] = field
    try:
        CronSim(" ".join(fields), _ANY_START)
    except CronSimError:
        low, high = _RANGES[index]
        raise _bad(index, field, f"*, H, {low}-{high} or names, and lists, ranges or steps of them") from None


def _bad(index: int, came: str, expected: str) -> ConfigurationError:
    return ConfigurationError(f"cron: {_FIELDS[index]}: expected {expected}; came: {_shown(came)}")


def _shown(value: object) -> str:
    if not isinstance(value, str):
        return type(value).__name__
    return repr(value if len(value) <= 64 else f"{value[:64]}…")
