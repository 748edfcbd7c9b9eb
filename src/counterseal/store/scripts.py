"""Script: one Lua file, read whole, with a parsed header, called by the names of its arguments.

A file begins with a header of comment lines; each entry may go on in the next lines, indented::

    -- enqueue: puts a job where a worker can see it
    -- keys: record ready
    -- args: id now_ms fields...
    -- returns: 1, or 0 when the id is taken
    -- ttl: record by ttl_ms; ready as long as jobs wait

A name that ends in `...` takes a sequence and must be the last of its line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from counterseal.store.wire import Argument

_ENTRY = re.compile(r"^--\s?(?P<name>[a-z_]+):\s*(?P<text>.*)$")
_CONTINUED = re.compile(r"^--\s\s+(?P<text>.+)$")
_NAME = re.compile(r"^[a-z_][a-z0-9_]*(\.\.\.)?$")
_REQUIRED = ("keys", "args", "returns", "ttl")


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic operation: its Lua text, the SHA-1 by which the server knows it, and the names it is called with."""

    name: str
    source: str
    sha: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    _plan: tuple[tuple[str, bool], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # It is run for every call, so the names are taken apart once.
        plan = tuple((name.removesuffix("..."), name.endswith("...")) for name in (*self.keys, *self.args))
        object.__setattr__(self, "_plan", plan)

    def bind(self, arguments: Mapping[str, Argument | Sequence[Argument]]) -> tuple[int, list[Argument]]:
        """The number of keys, then keys and arguments in the order of the header.

        Raises `TypeError` naming what is missing or unknown, as a Python call would.
        """
        bound: list[Argument] = []
        own = len(self.keys)
        count = 0
        for position, (name, many) in enumerate(self._plan):
            if name not in arguments:
                raise TypeError(f"script {self.name} needs the argument {name}")
            value = arguments[name]
            plain = isinstance(value, (str, bytes, int, float))
            if many:
                if plain:
                    raise TypeError(f"script {self.name} takes a sequence as {name}")
                bound += value
            elif plain:
                bound.append(value)
            else:
                raise TypeError(f"script {self.name} takes one value as {name}")
            if position < own:
                count = len(bound)
        if len(arguments) != len(self._plan):
            known = {name for name, _ in self._plan}
            unknown = ", ".join(sorted(set(arguments) - known))
            raise TypeError(f"script {self.name} takes no argument named {unknown}")
        return count, bound


def parse_script(name: str, source: str) -> Script:
    """Read the header of a Lua file. Raises `ValueError` naming the file and what its header lacks."""
    entries: dict[str, str] = {}
    last: str | None = None
    for line in source.splitlines():
        if not line.startswith("--"):
            break
        if found := _ENTRY.match(line):
            last = str(found["name"])
            entries[last] = str(found["text"]).strip()
        elif last and (more := _CONTINUED.match(line)):
            entries[last] = f"{entries[last]} {str(more['text']).strip()}"
    missing = [entry for entry in _REQUIRED if entry not in entries]
    if missing:
        raise ValueError(f"{name}.lua: its header has no line for {', '.join(missing)}")
    keys = _names(name, entries["keys"])
    args = _names(name, entries["args"])
    if len(set(keys + args)) != len(keys) + len(args):
        raise ValueError(f"{name}.lua: a name stands twice in its header")
    return Script(name, source, hashlib.sha1(source.encode()).hexdigest(), keys, args)  # noqa: S324 - Redis' own name for a script


def load_script(package: str, name: str) -> Script:
    """The script in `lua/<name>.lua` of a package."""
    source = files(package).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return parse_script(name, source)


def _names(script: str, text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split())
    for position, name in enumerate(names):
        if not _NAME.match(name):
            raise ValueError(f"{script}.lua: {name!r} in its header is not a name")
        if name.endswith("...") and position != len(names) - 1:
            raise ValueError(f"{script}.lua: {name} must be the last of its line")
    return names
