"""Entries: schedules as they are stored, and the atomic operations on them.

An entry is a line, its head, and what `write_schedule` wrote. The head is four words: a random name for this version of
the entry, the moment up to which its ticks have been dealt with, the last tick that was fired (0 for none), and the
source, which is whose code declares it, or `-`. Three more follow when somebody else than a scheduler makes its ticks,
or has made the last one: the id that it has there, what was told of it there, and the part of the id of the last job;
each may be `-`. Whoever changes an entry shows the head that it has read.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from counterseal.core.errors import CodecError
from counterseal.jobs.confirmation import confirm
from counterseal.jobs.schedule import Schedule, read_schedule, write_schedule
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from counterseal.store.scripts import load_script
from counterseal.store.wire import Argument, Reply

NO_SOURCE: Final = "-"
"""The source of what no code declares."""

_CLAIM: Final = load_script("counterseal.jobs", "schedule_claim")
_ADVANCE: Final = load_script("counterseal.jobs", "schedule_advance")
_WRITE: Final = load_script("counterseal.jobs", "schedule_write")

_SLOT: Final = "schedules"
_NONE: Final = "-"
_MOST_PAST: Final = 20
_WHATEVER: Final = "*"


@dataclass(frozen=True, slots=True)
class Carried:
    """Who else makes the ticks of a schedule: the id that it has there, '' for a scheduler, and what was told there.

    `part` is that of the id of the last job, when that came of a tick made there.
    """

    id: str = ""
    told: str = ""
    part: str = ""


NOT_CARRIED: Final = Carried()


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored schedule. `schedule` is None when it can't be read; then `fault` says why."""

    id: str
    head: str
    last_ms: int
    fired_ms: int
    source: str
    schedule: Schedule | None
    fault: str = ""
    carried: Carried = NOT_CARRIED


@dataclass(frozen=True, slots=True)
class CodeSet:
    """Which set of schedules of a source stands: its name, when somebody was seen who has it, and former ones."""

    name: str
    seen_ms: int
    past: tuple[str, ...] = ()

    def followed_by(self, name: str, now_ms: int) -> CodeSet:
        """The set that takes its place."""
        past = (self.name, *self.past) if name != self.name else self.past
        return CodeSet(name, now_ms, tuple(one for one in past if one != name)[:_MOST_PAST])

    @property
    def line(self) -> str:
        """As it is stored."""
        return " ".join((self.name, str(self.seen_ms), *self.past))


@dataclass(frozen=True, slots=True)
class Claim:
    """What `claim` answers: when the next one is due (None: nothing is), the sets that stand, what is due now."""

    next_ms: int | None
    sets: Mapping[str, CodeSet | None]
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Change:
    """What `write` is to do with one id: `before` is what was read; `schedule` is None to remove it."""

    id: str
    before: Entry | None
    schedule: Schedule | None = None
    last_ms: int = 0
    fired_ms: int = 0
    source: str = NO_SOURCE
    carried: Carried = NOT_CARRIED

    def arguments(self) -> list[Argument]:
        """The four arguments of the script."""
        expected = "" if self.before is None else self.before.head if self.before.schedule else _WHATEVER
        if self.schedule is None:
            return [self.id, expected, "", ""]
        head = new_head(self.last_ms, self.fired_ms, self.source, self.carried)
        waits = self.schedule.paused or self.carried.id
        due = "" if waits else str(self.schedule.next_after(self.last_ms))
        return [self.id, expected, f"{head}\n".encode() + write_schedule(self.schedule), due]


@dataclass(frozen=True, slots=True)
class Entries:
    """The calls on what is stored. Each is one round trip and raises `StoreUnavailable` when Redis does not answer."""

    store: Store
    keys: Keys
    min_replicas: int = 0
    """How many replicas have a change when `write` returns; else that raises `NotReplicated`."""

    async def claim(self, *, lease_ms: int, most: int, seen_every_ms: int, sets: Mapping[str, str]) -> Claim:
        """Hold up to `most` schedules that are due, and note for `sets`, names by source, that they are in use."""
        reply = await self.store.run(
            _CLAIM,
            schedules=self.keys.schedules(),
            next=self.keys.schedules_next(),
            now_ms=self.store.now_ms(),
            lease_ms=lease_ms,
            most=most,
            seen_every_ms=seen_every_ms,
            sets=[word for pair in sets.items() for word in pair],
        )
        match reply:
            case [bytes(next_ms), list() as lines, list() as found]:
                return Claim(
                    None if next_ms == b"-1" else int(next_ms),
                    dict(zip(sets, map(_read_set, lines), strict=True)),
                    [read_entry(*pair) for pair in zip(found[::2], found[1::2], strict=True)],
                )
            case _:
                raise CodecError("claimed schedules can't be read", key=self.keys.schedules())

    async def advance(self, items: Sequence[tuple[Entry, int, int, int]]) -> list[bool]:
        """Note `last_ms`, `fired_ms` and when it is due again of each entry; for each whether it was the same."""
        arguments: list[Argument] = []
        for entry, last_ms, fired_ms, next_ms in items:
            arguments += (entry.id, entry.head, new_head(last_ms, fired_ms, entry.source), next_ms)
        return await self._advance(arguments)

    async def fired(self, entry: Entry, fired_ms: int, part: str) -> bool:
        """Note the last tick of an entry and the part of its job, made by a delivery; whether it was the same."""
        carried = replace(entry.carried, part=part)
        head = new_head(entry.last_ms, max(fired_ms, entry.fired_ms), entry.source, carried)
        return all(await self._advance([entry.id, entry.head, head, ""]))

    async def _advance(self, arguments: Sequence[Argument]) -> list[bool]:
        reply = await self.store.run(
            _ADVANCE, schedules=self.keys.schedules(), next=self.keys.schedules_next(), items=arguments
        )
        return [answer == 1 for answer in reply] if isinstance(reply, list) else []

    async def write(
        self, changes: Sequence[Change], *, source: str = "", before: CodeSet | None = None, after: str = ""
    ) -> bool:
        """Make these changes and have another set of a source stand, all or nothing: False when something else came."""
        reply = await self.store.run(
            _WRITE,
            schedules=self.keys.schedules(),
            next=self.keys.schedules_next(),
            channel=self.keys.schedules_changed(),
            field=f":{source}" if source else "",
            expected="" if before is None else before.line,
            value=after,
            items=[argument for change in changes for argument in change.arguments()],
        )
        if reply != 1:
            return False
        if changes and self.min_replicas:
            await confirm(self.store, self.keys.jobs_prefix(_SLOT), replicas=self.min_replicas)
        return True

    async def get(self, identifier: str) -> Entry | None:
        """One entry; None when there is none."""
        value = await self.store.command("HGET", self.keys.schedules(), identifier)
        return None if value is None else read_entry(identifier.encode(), value)

    async def all(self) -> tuple[dict[str, Entry], dict[str, CodeSet]]:
        """The entries by id, and the sets by source."""
        reply = await self.store.command("HGETALL", self.keys.schedules())
        flat = reply if isinstance(reply, list) else []
        entries: dict[str, Entry] = {}
        sets: dict[str, CodeSet] = {}
        for field, value in zip(flat[::2], flat[1::2], strict=True):
            name = field.decode(errors="replace") if isinstance(field, bytes) else ""
            if not name.startswith(":"):
                entries[name] = read_entry(field, value)
            elif (stands := _read_set(value)) is not None:
                sets[name[1:]] = stands
        return entries, sets


def new_head(last_ms: int, fired_ms: int, source: str, carried: Carried = NOT_CARRIED) -> str:
    """The head of an entry that is written now."""
    head = f"{secrets.token_hex(6)} {last_ms} {fired_ms} {source}"
    if carried == NOT_CARRIED:
        return head
    return " ".join((head, *(word or _NONE for word in (carried.id, carried.told, carried.part))))


def read_entry(identifier: Reply, value: Reply) -> Entry:
    """A stored entry, also one that can't be read."""
    name = identifier.decode(errors="replace") if isinstance(identifier, bytes) else ""
    data = value if isinstance(value, bytes) else b""
    line, _, definition = data.partition(b"\n")
    head = line.decode(errors="replace")
    try:
        _, last_ms, fired_ms, source, *others = head.split(" ")
        last, fired = int(last_ms), int(fired_ms)
        carried = Carried(*("" if word == _NONE else word for word in others))
    except (ValueError, TypeError):
        return Entry(name, head, 0, 0, NO_SOURCE, None, "it does not begin with a head of four words")
    try:
        schedule, fault = read_schedule(definition, key=name), ""
    except CodecError as unread:
        schedule, fault = None, str(unread)
    return Entry(name, head, last, fired, source, schedule, fault, carried)


def _read_set(line: Reply) -> CodeSet | None:
    words = line.decode(errors="replace").split(" ") if isinstance(line, bytes) else []
    if len(words) < 2 or not words[1].isdecimal():
        return None
    return CodeSet(words[0], int(words[1]), tuple(words[2:]))
