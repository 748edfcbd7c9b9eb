"""Tables of the outcome, and what is said while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.plan import BOUND, FASTEST, OURS
from benchmarks.results import Measured, Row


def show(console: Console, measured: Sequence[Measured]) -> None:
    """Print a table for each case: every contestant's median and spread, and how ours stands to it."""
    for area in dict.fromkeys(one.area for one in measured):
        console.print(f"[bold]{area.title}[/]")
        for case in area.cases:
            mine = [one for one in measured if one.area is area and one.case is case]
            if mine:
                console.print(_table(f"{case.title}, {case.unit}", mine))
    for one in measured:
        for contestant, reason in one.failures.items():
            console.print(
                f"{_place(one)}: {contestant} failed: {reason}", style="red", highlight=False, markup=False
            )


def line(one: Measured) -> str:
    """A finished case in one line."""
    figures = ", ".join(f"{name} {number(one.median(name))}" for name in one.samples)
    return f"{_place(one)}: {figures or 'nothing measured'} {one.case.unit}"


def number(value: float) -> str:
    """A figure as people read it: no more than three digits behind the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _place(one: Measured) -> str:
    return f"{one.area.name}/{one.case.name} on {one.cores} core{'s' if one.cores > 1 else ''}"


def _table(title: str, measured: Sequence[Measured]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in ("cores", "who", "median", "lowest to highest", "ours is", "floor", "aim", ""):
        table.add_column(heading, justify="left" if heading in {"who", ""} else "right", no_wrap=True)
    for one in measured:
        rows = {row.peer: row for row in one.rows()}
        for name in [*([OURS.name] if OURS.name in one.samples else []), *one.peers()]:
            samples = one.samples[name]
            spread = f"{number(min(samples))} to {number(max(samples))}"
            cores = str(one.cores)
            table.add_row(cores, name, number(one.median(name)), spread, *_standing(rows.get(name)))
        for group in one.groups():
            if group in rows:
                label = group if group == FASTEST else f"{FASTEST} {group}"
                table.add_row(
                    str(one.cores), f"{label}: {one.fastest(group)}", "", "", *_standing(rows[group])
                )
        if BOUND in rows:
            table.add_row(str(one.cores), BOUND, number(rows[BOUND].peer_value), "", *_standing(rows[BOUND]))
        table.add_section()
    return table


def _standing(row: Row | None) -> tuple[str, str, str, str]:
    """Ratio, floor, aim and verdict."""
    if row is None:
        return ("", "", "", "")
    return (_times(row.ratio), _times(row.floor), _times(row.aim), _verdict(row))


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} x"


def _verdict(row: Row) -> str:
    if row.floor is None and row.aim is None:
        return ""
    if row.missed:
        return "[red]below floor[/]"
    if row.aim is not None and row.ratio is not None and row.ratio >= row.aim:
        return "[green]aim reached[/]"
    return "[green]above floor[/]" if row.floor is not None else "short of the aim"
