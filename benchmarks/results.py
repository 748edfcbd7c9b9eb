"""What came out: samples, their medians, the rows of `results.json` and what the targets say of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.plan import BOUND, FASTEST, OURS, Area, Case, Target


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, as `results.json` has it.

    `ours` and `peer_value` are medians in the case's unit. `ratio` says how many times better ours is, whether more
    or less of the unit is better; it is null when it can't be formed. `floor` and `aim` are null where none is set.
    """

    area: str
    case: str
    cores: int
    ours: float
    peer: str
    peer_value: float
    ratio: float | None
    floor: float | None
    aim: float | None

    @property
    def missed(self) -> bool:
        """Whether there is a floor and it was not reached."""
        return self.floor is not None and (self.ratio is None or self.ratio < self.floor)


@dataclass(slots=True)
class Measured:
    """All samples of one case on one number of cores, by contestant, and why a contestant has none.

    `repeats` tells which measurements failed once and were made again.
    """

    area: Area
    case: Case
    cores: int
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    repeats: list[str] = field(default_factory=list[str])

    def median(self, name: str) -> float:
        """The middle of a contestant's samples."""
        return statistics.median(self.samples[name])

    def peers(self) -> list[str]:
        """The peers that have a figure, in the area's order."""
        return [peer.name for peer in self.area.peers_of(self.case) if peer.name in self.samples]

    def fastest(self, group: str = FASTEST) -> str | None:
        """The best peer of a group, by default of all. None when one is missing: then nobody knows which was best."""
        names = self.area.group_of(self.case, group)
        if not names or any(name not in self.samples for name in names):
            return None
        return (max if self.case.better == "more" else min)(names, key=self.median)

    def groups(self) -> list[str]:
        """The groups that have a fastest and that a target speaks of."""
        return [name for name in (*self.area.groups, FASTEST) if self._target(name) and self.fastest(name)]

    def rows(self) -> list[Row]:
        """A row for each peer, one for the fastest of each group that a target speaks of, and one for a bound.

        None without a figure of ours.
        """
        if OURS.name not in self.samples:
            return []
        rows = [self._row(name, self.median(name)) for name in self.peers()]
        rows += [self._row(group, self.median(self.fastest(group) or "")) for group in self.groups()]
        if self.case.bound is not None:
            rows.append(self._row(BOUND, self.case.bound))
        return rows

    def _target(self, name: str) -> Target | None:
        fitting = (
            target for target in self.case.targets if target.peer == name and self.cores in target.cores
        )
        return next(fitting, None)

    def _row(self, label: str, theirs: float) -> Row:
        ours = self.median(OURS.name)
        over, under = (ours, theirs) if self.case.better == "more" else (theirs, ours)
        target = self._target(label) or Target(label)
        return Row(
            area=self.area.name,
            case=self.case.name,
            cores=self.cores,
            ours=_short(ours),
            peer=label,
            peer_value=_short(theirs),
            ratio=_short(over / under) if under > 0 else None,
            floor=target.floor,
            aim=target.aim,
        )


def write(path: Path, measured: Sequence[Measured]) -> None:
    """Put the rows of a run into the file. Cases that the run did not measure keep theirs."""
    old: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    again = {(one.area.name, one.case.name, one.cores) for one in measured}
    kept = [row for row in old if (row["area"], row["case"], row["cores"]) not in again]
    rows = kept + [asdict(row) for one in measured for row in one.rows()]
    rows.sort(key=lambda row: (row["area"], row["case"], row["cores"]))
    # One row a line, so that a diff shows which figures moved.
    body = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{body}\n]\n" if rows else "[]\n", encoding="utf-8")


def _short(value: float) -> float:
    return float(f"{value:.4g}")
