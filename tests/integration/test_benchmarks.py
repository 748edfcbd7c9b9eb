"""What the benchmark harness promises: it measures real clients side by side, and its rows have their shape."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import select
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

ROOT = Path(__file__).parents[2]
_MEMBERS = ["area", "case", "cores", "ours", "peer", "peer_value", "ratio", "floor", "aim"]


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as `make bench` does."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def row(**members: object) -> dict[str, object]:
    """A row of `results.json`, as an earlier run would have left it."""
    made = dict.fromkeys(_MEMBERS, None) | {"area": "another", "case": "kept", "cores": 1, "ours": 1.0}
    return made | {"peer": "somebody", "peer_value": 2.0, "ratio": 0.5} | members


_DRIVER = """
import subprocess
from benchmarks.driver import Request, serve

async def figure(request: Request) -> float:
    return {figure}

serve(figure)
"""


def module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of the harness, which is not part of the package."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module(f"benchmarks.{name}")


def measured(monkeypatch: pytest.MonkeyPatch, better: str, **samples: list[float]) -> Any:
    """A case of two peers with a floor of 2 against the fastest, and what was measured of it."""
    plan, results = module(monkeypatch, "plan"), module(monkeypatch, "results")
    target = plan.Target(plan.FASTEST, floor=2.0)
    case = plan.Case("case", "a case", "unit", better=better, targets=(target,))
    area = plan.Area("area", "an area", (plan.Contestant("left"), plan.Contestant("right")), (case,))
    return results.Measured(area, case, 1, samples)


def ask(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> float:
    """The answer of a driver with this text, after which it is closed."""
    (folder / "driver.py").write_text(program)
    request = module(monkeypatch, "driver").Request(
        handler="figure", seconds=0.1, options={}, tcp_url="", unix_url="", server_core=0, client_core=0
    )
    core = min(os.sched_getaffinity(0))
    driver = module(monkeypatch, "process").DriverProcess(Path(sys.executable), folder / "driver.py", core)
    try:
        return driver.ask(request)
    finally:
        driver.close()


def test_a_run_measures_ours_beside_a_peer_and_keeps_the_rows_of_other_cases(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    stale = row(area="connection", case="sequential", peer="gone")
    path.write_text(json.dumps([row(), stale]))
    choice = ("sequential", "--quick", "--this-python", "--peer", "redis-py", "--results", str(path))

    done = benchmarks(*choice)

    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())
    assert rows[0] == row()
    cores = [1, 2] if len(os.sched_getaffinity(0)) > 1 else [1]
    assert [(one["area"], one["case"], one["cores"], one["peer"]) for one in rows[1:]] == [
        ("connection", "sequential", number, "redis-py") for number in cores
    ]
    for one in rows[1:]:
        assert list(one) == _MEMBERS
        assert one["ours"] > 0
        assert one["peer_value"] > 0
        assert one["ratio"] == pytest.approx(one["ours"] / one["peer_value"], rel=0.01)
        assert (one["floor"], one["aim"]) == {1: (1.3, 1.9), 2: (0.9, 1.3)}[one["cores"]]
    assert "one task, operations/s" in done.stdout


def test_an_unknown_name_is_answered_by_a_sentence() -> None:
    done = benchmarks("no-such-case")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "no-such-case: no area or case has this name; --list shows them all\n"


def test_every_peer_has_exact_pins_and_every_contestant_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = module(monkeypatch, "plan")
    for area in plan.areas():
        assert plan.OURS.script(area.name).is_file()
        for peer in area.peers:
            assert peer.script(area.name).is_file()
            lines = peer.pins.read_text().splitlines()
            assert lines
            assert [line for line in lines if "==" not in line] == []


def test_every_target_names_a_peer_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = module(monkeypatch, "plan")
    for area in plan.areas():
        for case in area.cases:
            names = {peer.name for peer in area.peers_of(case)} | {plan.FASTEST}
            names |= {plan.BOUND} if case.bound is not None else set()
            names |= {group for group in area.groups if area.group_of(case, group)}
            assert {target.peer for target in case.targets} <= names


def test_every_group_is_one_of_peers_of_its_area(monkeypatch: pytest.MonkeyPatch) -> None:
    for area in module(monkeypatch, "plan").areas():
        for members in area.groups.values():
            assert set(members) <= {peer.name for peer in area.peers}


@pytest.mark.parametrize("name", ["cache", "jobs", "ratelimit", "sessions"])
def test_ours_answers_every_case_of_a_service(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plan, runner, server = (module(monkeypatch, each) for each in ("plan", "runner", "server"))
    area = next(area for area in plan.areas() if area.name == name)
    core = min(os.sched_getaffinity(0))
    options = runner.Options(server_core=core, second_core=None)
    python = {plan.OURS.name: Path(sys.executable)}
    with ExitStack() as stack:
        running = stack.enter_context(server.running(core))
        postgres_url = ""
        if any(case.postgres for case in area.cases):
            postgres_url = stack.enter_context(module(monkeypatch, "postgres").running(core))
        bench = runner._Bench(area, 1, running, options, python, postgres_url)
        stack.callback(bench.close)
        for case in area.cases:
            if case.name.startswith("recovery"):  # it takes a lease's time, and the tests of faults show it
                continue
            figure = runner._patient(bench, dataclasses.replace(case, seconds=0.05), plan.OURS, [])
            assert figure == 1 if case.unit in ("loads", "round trips") else figure > 0, case.name


def test_a_creation_is_measured_beside_the_databases_own_commit(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    choice = ("create_sqlite_1", "--quick", "--this-python", "--results", str(path))

    done = benchmarks(*choice)

    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())
    cores = [2] if len(os.sched_getaffinity(0)) > 1 else []
    assert [(one["case"], one["cores"], one["peer"]) for one in rows] == [
        ("create_sqlite_1", number, "aiosqlite") for number in cores
    ]
    assert all(one["ours"] > 0 and one["peer_value"] > 0 for one in rows)


async def test_postgresql_waits_for_the_disk_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with module(monkeypatch, "postgres").running(min(os.sched_getaffinity(0))) as url:
        connection = await asyncpg.connect(url)
        try:
            settings = ("fsync", "synchronous_commit", "full_page_writes")
            assert [await connection.fetchval(f"SHOW {name}") for name in settings] == ["on"] * 3
            data = Path(await connection.fetchval("SHOW data_directory"))
        finally:
            await connection.close()
        assert data.is_relative_to(module(monkeypatch, "driver").DISK)
        assert data.exists()
    assert not data.parent.exists()


@pytest.mark.parametrize(("better", "fastest", "ratio"), [("more", 10.0, 4.0), ("less", 5.0, 0.125)])
def test_the_ratio_says_how_many_times_better_ours_is(
    monkeypatch: pytest.MonkeyPatch, better: str, fastest: float, ratio: float
) -> None:
    outcome = measured(monkeypatch, better, counterseal=[1.0, 40.0, 90.0], left=[10.0], right=[5.0])
    assert [one.peer for one in outcome.rows()] == ["left", "right", "fastest"]
    last = outcome.rows()[-1]
    assert (last.ours, last.peer_value, last.ratio) == (40.0, fastest, ratio)


@pytest.mark.parametrize(("ours", "missed"), [(19.9, True), (20.0, False)])
def test_a_floor_is_missed_below_it_only(monkeypatch: pytest.MonkeyPatch, ours: float, missed: bool) -> None:
    outcome = measured(monkeypatch, "more", counterseal=[ours], left=[10.0], right=[5.0])
    assert [one.missed for one in outcome.rows()] == [False, False, missed]


def test_no_peer_is_called_the_fastest_when_one_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = measured(monkeypatch, "more", counterseal=[40.0], left=[10.0])
    assert [one.peer for one in outcome.rows()] == ["left"]


def test_the_fastest_of_a_group_is_looked_for_among_its_members_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, results = module(monkeypatch, "plan"), module(monkeypatch, "results")
    peers = tuple(map(plan.Contestant, ("left", "right", "faster")))
    case = plan.Case(
        "case", "a case", "unit", targets=(plan.Target("safe", floor=7.0), plan.Target("fastest"))
    )
    area = plan.Area("area", "an area", peers, (case,), groups={"safe": ("left", "right")})
    samples = {"counterseal": [40.0], "left": [4.0], "right": [5.0], "faster": [20.0]}

    rows = {row.peer: row for row in results.Measured(area, case, 1, samples).rows()}
    assert (rows["safe"].peer_value, rows["safe"].ratio, rows["safe"].floor) == (5.0, 8.0, 7.0)
    assert rows["fastest"].peer_value == 20.0

    del samples["right"]
    assert {"safe", "fastest"} & {
        row.peer for row in results.Measured(area, case, 1, samples).rows()
    } == set()


@pytest.mark.parametrize(("ours", "missed"), [(15.0, False), (15.1, True)])
def test_a_case_without_peers_is_judged_by_its_bound(
    monkeypatch: pytest.MonkeyPatch, ours: float, missed: bool
) -> None:
    plan, results, runner = (module(monkeypatch, name) for name in ("plan", "results", "runner"))
    target = plan.Target(plan.BOUND, floor=1.0)
    case = plan.Case("case", "a case", "s", better="less", targets=(target,), alone=True, bound=15.0)
    area = plan.Area("area", "an area", (plan.Contestant("left"),), (case,))
    options = runner.Options(server_core=0, second_core=1)
    assert list(runner.order(runner.peers_of(area, case, options), options, 2)) == [
        (0, plan.OURS),
        (1, plan.OURS),
    ]

    [row] = results.Measured(area, case, 1, {"counterseal": [ours]}).rows()
    assert (row.peer, row.peer_value, row.missed) == ("bound", 15.0, missed)


@pytest.mark.parametrize(
    ("names", "cases"),
    [((), ["usual"]), (("area",), ["usual"]), (("area/long",), ["long"]), (("long",), ["long"])],
)
def test_a_case_that_is_only_named_is_measured_when_its_own_name_is_given(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], cases: list[str]
) -> None:
    plan = module(monkeypatch, "plan")
    both = (plan.Case("usual", "usual", "s"), plan.Case("long", "long", "s", named=True))
    area = plan.Area("area", "an area", (), both)
    assert [case.name for _, chosen in plan.chosen((area,), names) for case in chosen] == cases
    assert [case.name for _, chosen in plan.chosen((area,), (), named=True) for case in chosen] == [
        "usual",
        "long",
    ]


def test_a_case_without_a_figure_of_ours_has_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, "more", left=[10.0], right=[5.0]).rows() == []


def test_rounds_are_interleaved_and_begin_with_another_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, runner = module(monkeypatch, "plan"), module(monkeypatch, "runner")
    peers = (plan.Contestant("left"), plan.Contestant("right"))
    options = runner.Options(server_core=0, second_core=1)
    names = [contestant.name for _, contestant in runner.order(peers, options, 2)]
    assert names == [
        *("left", "counterseal", "right", "counterseal"),
        *("counterseal", "right", "counterseal", "left"),
    ]


def test_a_driver_that_dies_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = module(monkeypatch, "process").DriverFailed
    with pytest.raises(failed, match=r"^it died: no such library$"):
        ask(monkeypatch, tmp_path, "raise SystemExit('no such library')")


def test_a_driver_that_raises_says_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = module(monkeypatch, "process").DriverFailed
    with pytest.raises(failed, match=r"^ZeroDivisionError: float division by zero$"):
        ask(monkeypatch, tmp_path, _DRIVER.format(figure="request.seconds / 0.0"))


def test_what_a_library_prints_does_not_reach_the_harness(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ask(monkeypatch, tmp_path, _DRIVER.format(figure="print('hello') or 7.5")) == 7.5


def test_what_a_driver_started_ends_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    figure = f"subprocess.Popen(['sleep', '60'], stdout=open({str(held)!r}, 'w')).pid"
    try:
        assert ask(monkeypatch, tmp_path, _DRIVER.format(figure=figure)) > 0
        # The pipe ends when nobody holds its other end any more.
        assert select.select([reader], [], [], 10)[0]
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
