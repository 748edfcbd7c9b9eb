"""The command `python -m benchmarks [NAME ...]`: measures, prints tables, writes `benchmarks/results.json`."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks import environment, report, results, runner
from benchmarks.plan import OURS, ROOT, Plan, areas, chosen
from benchmarks.results import Measured

_WIDTH = 110  # of a log or a pipe, which has none of its own

_QUIET = 0.5


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure counterseal beside its peers."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="an area, a case, or area/case; none measures all"
    )
    parser.add_argument("--list", action="store_true", help="show areas and cases and measure nothing")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: one short round, no judgement, nothing written"
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds for every case, instead of its own number"
    )
    parser.add_argument(
        "--cores", type=int, choices=(1, 2), action="append", help="only on this number of cores"
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="PEER", help="only this peer; nothing is written"
    )
    parser.add_argument(
        "--this-python", action="store_true", help="run peers by this Python instead of their environments"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="write here, also after --quick and --peer"
    )
    return parser.parse_args()


def main() -> int:
    """Run the command. 0 when all went well, 1 when a driver failed or a floor was missed, 2 when asked wrongly."""
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    try:
        plan = chosen(areas(), tuple(arguments.names), named=arguments.list)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    if arguments.list:
        for area, cases in plan:
            for case in cases:
                only = " (only when it is named)" if case.named else ""
                text = f"{area.name}/{case.name}: {case.title}, {case.unit}{only}"
                console.print(text, highlight=False, soft_wrap=True)
        return 0
    if not hasattr(os, "sched_setaffinity"):
        print("benchmarks pin client and server to cores, which needs Linux", file=sys.stderr)
        return 2
    options = _options(arguments)
    if options.second_core is None and 2 in options.cores:
        console.print("This machine gives one core only: nothing is measured on two.")
    load = os.getloadavg()[0]
    if load > _QUIET:
        console.print(f"The load average is {load:.1f}: others use this machine, which blurs the figures.")
    signal.signal(signal.SIGTERM, _terminate)

    path = arguments.results
    if path is None and not (options.quick or options.peers):
        path = ROOT / "results.json"
    started = time.monotonic()
    pythons = _pythons(console, plan, options, this_python=arguments.this_python)
    measured = _measure(console, plan, options, pythons, path)
    report.show(console, measured)
    console.print(
        f"{time.monotonic() - started:.0f} s. {f'Written to {path}.' if path else 'Nothing written.'}"
    )
    missed = not options.quick and any(row.missed for one in measured for row in one.rows())
    return 1 if missed or any(one.failures for one in measured) else 0


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """Leave by an exception, so that the server and the drivers are ended."""
    sys.exit(143)


def _options(arguments: argparse.Namespace) -> runner.Options:
    available = sorted(os.sched_getaffinity(0))
    return runner.Options(
        server_core=available[0],
        second_core=available[1] if len(available) > 1 else None,
        cores=tuple(sorted(set(arguments.cores or (1, 2)))),
        quick=arguments.quick,
        rounds=arguments.rounds,
        peers=tuple(arguments.peer),
    )


def _pythons(console: Console, plan: Plan, options: runner.Options, *, this_python: bool) -> dict[str, Path]:
    """The Python of every contestant, environments made where they are missing; one that can't be made is left out."""
    pythons = {OURS.name: Path(sys.executable)}
    for area, cases in plan:
        for peer in (peer for case in cases for peer in runner.peers_of(area, case, options)):
            if peer.name in pythons:
                continue
            try:
                if this_python:
                    pythons[peer.name] = Path(sys.executable)
                    continue
                if not environment.is_made(peer):
                    console.print(f"Making the environment of {peer.name}.", highlight=False)
                pythons[peer.name] = environment.python_of(peer)
            except environment.EnvironmentFailed as error:
                console.print(f"[red]The environment of {peer.name} failed: {error}[/]", highlight=False)
    return pythons


def _measure(
    console: Console, plan: Plan, options: runner.Options, pythons: dict[str, Path], path: Path | None
) -> list[Measured]:
    everything: list[Measured] = []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    # It is drawn between measurements only: a clock that redraws it would take time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=sum(runner.steps(area, cases, options) for area, cases in plan))
        before = itertools.count()
        for area, cases in plan:
            outcome = runner.run(
                area,
                cases,
                options,
                pythons=pythons,
                on_step=lambda what: progress.update(
                    task, completed=next(before), description=what, refresh=True
                ),
                on_case=lambda one: console.print(report.line(one), highlight=False, soft_wrap=True),
            )
            everything.extend(outcome)
            if path:
                results.write(path, outcome)
    return everything


if __name__ == "__main__":
    sys.exit(main())
