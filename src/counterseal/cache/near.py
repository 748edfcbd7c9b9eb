"""Near: values in this process's memory, bounded by bytes, dropped when Redis says that they changed.

A value is handed out from here while three things hold: its lifetime goes on, it came from Redis no longer ago than its
kind allows, and changes are heard of. A value that was being read while its change was heard is not taken in. When
changes can't be heard any more everything is dropped, and nothing is taken in until they can.

What is evicted is what was not asked for since the hand last passed (second chance, also called the clock).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakValueDictionary

OVERHEAD_BYTES: Final = 400
"""What an entry is counted as besides its text: the objects around it."""

OBJECT_FACTOR: Final = 4
"""An immutable value is kept as an object, which is counted as so many times its text."""

_SLACK: Final = 1000


class TagCell:
    """Whether what carries a tag still counts."""

    __slots__ = ("__weakref__", "valid")

    def __init__(self) -> None:
        self.valid = True


class Held:
    """A value in memory: its text, or the value itself where nobody can change it."""

    __slots__ = ("asked", "cells", "kept", "quick_until_ms", "size", "until_ms")

    def __init__(self, kept: Any, until_ms: int, size: int, cells: tuple[TagCell, ...]) -> None:
        self.kept = kept
        self.until_ms = until_ms
        self.size = size
        self.cells = cells
        self.quick_until_ms = 0 if cells else until_ms
        """Until when it counts without another look: its tags have to be looked at."""
        self.asked = False


class Ticket:
    """A read from Redis that may end in memory, unless a change is heard of first."""

    __slots__ = ("valid",)

    def __init__(self) -> None:
        self.valid = True


class NearKind:
    """The values of one kind, by identifier."""

    __slots__ = ("_memory", "_reading", "held")

    def __init__(self, memory: NearMemory) -> None:
        self._memory = memory
        self._reading: dict[str, set[Ticket]] = {}
        self.held: dict[str, Held] = {}

    def take(self, identifier: str, now_ms: int) -> Held | None:
        """The entry of an identifier, if it still counts."""
        held = self.held.get(identifier)
        if held is None:
            return None
        if now_ms >= held.until_ms or (held.cells and not all(cell.valid for cell in held.cells)):
            self._memory.drop(self, identifier)
            return None
        held.asked = True
        return held

    def begin(self, identifier: str) -> Ticket | None:
        """Begin to read a value from Redis; None while nothing is taken in."""
        if not self._memory.active:
            return None
        ticket = Ticket()
        self._reading.setdefault(identifier, set()).add(ticket)
        return ticket

    def end(self, identifier: str, ticket: Ticket) -> bool:
        """End a read; whether what it brought may be taken in."""
        reading = self._reading.get(identifier)
        if reading is not None:
            reading.discard(ticket)
            if not reading:
                del self._reading[identifier]
        return ticket.valid

    def put(
        self, identifier: str, kept: Any, *, text_bytes: int, until_ms: int, tags: Iterable[bytes]
    ) -> None:
        """Take a value in."""
        factor = 1 if isinstance(kept, bytes) else OBJECT_FACTOR
        size = text_bytes * factor + len(identifier) + OVERHEAD_BYTES
        cells = tuple(self._memory.cell(tag) for tag in tags)
        self._memory.put(self, identifier, Held(kept, until_ms, size, cells))

    def changed(self, identifier: str) -> None:
        """A value changed."""
        self._memory.drop(self, identifier)
        for ticket in self._reading.pop(identifier, ()):
            ticket.valid = False

    def clear(self) -> None:
        """Every value of the kind changed."""
        for identifier in list(self.held):
            self._memory.drop(self, identifier)
        self.spoil()

    def spoil(self) -> None:
        """Let no read that is under way be taken in."""
        for tickets in self._reading.values():
            for ticket in tickets:
                ticket.valid = False
        self._reading.clear()


class NearMemory:
    """All kinds together, at most `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self.active = False
        """Whether changes are heard of."""
        self.bytes = 0
        self.kinds: dict[str, NearKind] = {}
        self._most_bytes = most_bytes
        self._order: deque[tuple[NearKind, str, Held]] = deque()
        self._cells: WeakValueDictionary[bytes, TagCell] = WeakValueDictionary()

    def add(self, kind: str) -> NearKind:
        """The memory of one more kind."""
        return self.kinds.setdefault(kind, NearKind(self))

    def cell(self, tag: bytes) -> TagCell:
        """The cell of a tag, shared by all that carry it."""
        cell = self._cells.get(tag)
        if cell is None:
            cell = self._cells[tag] = TagCell()
        return cell

    def put(self, kind: NearKind, identifier: str, held: Held) -> None:
        """Take an entry in, and evict what is too much."""
        self.drop(kind, identifier)
        if not self.active or held.size > self._most_bytes:
            return
        kind.held[identifier] = held
        self.bytes += held.size
        self._order.append((kind, identifier, held))
        while self.bytes > self._most_bytes:
            self._evict()
        if len(self._order) > 2 * sum(len(each.held) for each in self.kinds.values()) + _SLACK:
            self._order = deque(item for item in self._order if item[0].held.get(item[1]) is item[2])

    def drop(self, kind: NearKind, identifier: str) -> None:
        """Forget an entry, if there is one."""
        held = kind.held.pop(identifier, None)
        if held is not None:
            self.bytes -= held.size
            held.kept = None  # its place in the order may stay for a while, its bytes not

    def tag_changed(self, tag: bytes) -> None:
        """A tag was cleared: nothing that carries it counts, nor what is being read."""
        cell = self._cells.pop(tag, None)
        if cell is not None:
            cell.valid = False
        for kind in self.kinds.values():
            kind.spoil()

    def flush(self) -> None:
        """Forget everything, and take in no read that is under way."""
        for kind in self.kinds.values():
            kind.held.clear()
            kind.spoil()
        self.bytes = 0
        self._order.clear()

    def _evict(self) -> None:
        kind, identifier, held = self._order.popleft()
        if kind.held.get(identifier) is not held:
            return
        if held.asked:
            held.asked = False
            self._order.append((kind, identifier, held))
        else:
            self.drop(kind, identifier)
