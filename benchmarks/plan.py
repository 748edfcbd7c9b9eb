"""What is measured: areas, their cases, who takes part and what is expected of the outcome.

An area is a package beside this module whose `__init__` declares `AREA`. Nothing else knows an area by its name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent
FASTEST = "fastest"
"""In a `Target`, whichever peer is fastest in this run."""

BOUND = "bound"
"""In a `Target`, the figure that the case itself sets as its bound."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Somebody who is measured: the product, or a peer.

    Its driver is `<name>_driver.py` in the area's package. A peer runs in the environment that
    `peers/<environment>.txt` pins, by default the one of its own name; the product runs in this one.
    """

    name: str
    environment: str = ""
    driver: str = ""

    @property
    def pins(self) -> Path:
        """The file with the exact versions of everything that the peer runs on."""
        return ROOT / "peers" / f"{self.environment or self.name}.txt"

    def script(self, area: str) -> Path:
        """The driver's file."""
        return ROOT / area / (self.driver or f"{self.name.replace('-', '_')}_driver.py")


OURS = Contestant("counterseal")


@dataclass(frozen=True, slots=True)
class Target:
    """What the ratio against a peer should be: the floor must be reached, the aim is hoped for.

    `peer` may also be `FASTEST`, `BOUND`, or the name of one of the area's groups, for the fastest peer of that group.
    """

    peer: str
    floor: float | None = None
    aim: float | None = None
    cores: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One figure. `handler` is the driver's function that measures it, by default the one of the case's name.

    `seconds` is how long one measurement lasts and `options` what the handler is told besides. `peers` names those
    that can do it, by default all. With `fresh` every measurement has a process of its own. With `postgres` there is
    a PostgreSQL beside the Valkey. With `alone` no peer is measured, and `bound` is a figure that ours is judged by.
    A case that is only `named` is left out of a run that does not ask for it by its own name.
    """

    name: str
    title: str
    unit: str
    better: Literal["more", "less"] = "more"
    handler: str = ""
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    targets: tuple[Target, ...] = ()
    cores: tuple[int, ...] = (1, 2)
    peers: tuple[str, ...] = ()
    rounds: int = 5
    seconds: float = 0.5
    fresh: bool = False
    postgres: bool = False
    alone: bool = False
    bound: float | None = None
    named: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """Cases that are measured together on one server, and the peers that they are measured against.

    `groups` are names for some of the peers, so that a target can speak of the fastest among them.
    """

    name: str
    title: str
    peers: tuple[Contestant, ...]
    cases: tuple[Case, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def peers_of(self, case: Case) -> tuple[Contestant, ...]:
        """Those that take part in a case."""
        if case.alone:
            return ()
        return tuple(peer for peer in self.peers if not case.peers or peer.name in case.peers)

    def group_of(self, case: Case, name: str) -> tuple[str, ...]:
        """The peers of a case that a group has: all for `FASTEST`, none for a name that is no group's."""
        names = tuple(peer.name for peer in self.peers_of(case))
        return names if name == FASTEST else tuple(one for one in names if one in self.groups.get(name, ()))


Plan = list[tuple[Area, tuple[Case, ...]]]


def areas() -> tuple[Area, ...]:
    """Every area, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(ROOT)]) if module.ispkg)
    return tuple(importlib.import_module(f"benchmarks.{name}").AREA for name in names)


def chosen(every: tuple[Area, ...], names: tuple[str, ...], *, named: bool = False) -> Plan:
    """The areas and cases that names ask for: `connection`, `sequential` or `connection/sequential`; none asks for all.

    A case that is only `named` is asked for by its own name alone, unless `named` says that those count as well.

    Raises `LookupError` with a sentence when a name is nobody's.
    """
    picked = {
        area.name: tuple(case for case in area.cases if _asked(area, case, names, named=named))
        for area in every
    }
    known = {name for area in every for case in area.cases for name in _names(area, case)}
    for name in names:
        if name not in known:
            raise LookupError(f"{name}: no area or case has this name; --list shows them all")
    return [(area, picked[area.name]) for area in every if picked[area.name]]


def _names(area: Area, case: Case) -> tuple[str, ...]:
    return (area.name, case.name, f"{area.name}/{case.name}")


def _asked(area: Area, case: Case, names: tuple[str, ...], *, named: bool) -> bool:
    if named or not case.named:
        return not names or any(name in names for name in _names(area, case))
    return any(name in names for name in _names(area, case)[1:])
