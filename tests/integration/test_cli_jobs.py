"""`counterseal jobs`: looks at jobs and rules them, as an operator does, in Redis and in the embedded server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from counterseal import Counterseal, Settings, State
from counterseal.jobs.types import TYPES
from support.databases import Databases
from support.job_application import TASKS, fail, greet, hang
from support.program import run_program
from support.servers import Server
from support.waiting import eventually


@pytest.fixture
async def seal(valkey: Server, data_dir: Path) -> AsyncIterator[Counterseal]:
    """The application beside the commands."""
    settings = Settings.load(
        {"REDIS_URL": valkey.url, "COUNTERSEAL_COMMAND_TIMEOUT": "5s"}, data_dir=data_dir
    )
    async with Counterseal.open(settings, tasks=TASKS) as seal:
        yield seal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run, with a folder of data of their own."""
    path = tmp_path / "operator"
    path.mkdir()
    return path


class Operator:
    """Runs `counterseal jobs …`."""

    def __init__(self, valkey: Server, folder: Path) -> None:
        self._settings = {"REDIS_URL": valkey.url, "COUNTERSEAL_COMMAND_TIMEOUT": "5s"}
        self._folder = folder

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        ended = run_program("jobs", *arguments, folder=self._folder, settings=self._settings)
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    def ask(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def operator(valkey: Server, folder: Path) -> Operator:
    return Operator(valkey, folder)


async def failed(seal: Counterseal, *reasons: str) -> list[str]:
    """Dead letters."""
    made = await seal.jobs.enqueue_many([fail.call(reason) for reason in reasons])
    async with seal.worker():
        for one in made:
            job = await seal.jobs.wait(one.id)
            assert job is not None
            assert job.state is State.FAILED
    return [one.id for one in made]


async def test_jobs_are_listed_by_state_type_tag_and_queue(seal: Counterseal, operator: Operator) -> None:
    first = (await seal.jobs.enqueue(greet.using(tags=("vip",)), "Ada")).id
    second = (await seal.jobs.enqueue(hang.using(queue="slow"))).id
    assert {job["id"] for job in operator.ask("list")} == {first, second}
    assert [job["id"] for job in operator.ask("list", "--tag", "vip", "--state", "queued")] == [first]
    assert [job["id"] for job in operator.ask("list", "--type", "hang", "--queue", "slow")] == [second]
    assert operator.ask("list", "--state", "running") == []
    assert len(operator.ask("list", "--limit", "1")) == 1
    (line,) = [line for line in operator.run("list").stdout.splitlines() if first in line]
    assert line.split()[1:4] == ["greet", "queued", "0"]


async def test_a_job_is_shown_with_its_arguments_log_progress_and_result(
    seal: Counterseal, operator: Operator
) -> None:
    identifier = (await seal.jobs.enqueue(greet, "Ada")).id
    async with seal.worker():
        await seal.jobs.wait(identifier)
    job = operator.ask("show", identifier)
    assert (job["state"], job["args"], job["attempt"]) == ("completed", {"name": "Ada"}, 1)
    assert job["result"].startswith("hello Ada")
    assert [line["text"] for line in job["logs"]] == ["greeting Ada"]
    assert job["run_time_ms"] >= 0
    shown = operator.run("show", identifier).stdout
    assert "greeting Ada" in shown
    assert '{"name": "Ada"}' in shown
    missing = operator.run("show", "default.absent", code=1)
    assert missing.stderr == "counterseal: there is no job default.absent\n"


async def test_jobs_are_cancelled_with_a_reason(seal: Counterseal, operator: Operator) -> None:
    waits = (await seal.jobs.enqueue(greet, "Ada")).id
    ended = operator.run("cancel", waits, "default.absent", "--reason", "not wanted", code=1)
    assert ended.stdout == f"{waits}  cancelled\n"
    assert "there is no job default.absent" in ended.stderr
    job = await seal.jobs.get(waits)
    assert job is not None
    assert (job.state, job.reason) == (State.CANCELLED, "not wanted")
    runs = (await seal.jobs.enqueue(hang)).id
    async with seal.worker():

        async def is_running() -> bool:
            job = await seal.jobs.get(runs)
            return job is not None and job.state is State.RUNNING

        await eventually(is_running)
        assert operator.ask("cancel", runs) == [{"id": runs, "state": "running"}]
        job = await seal.jobs.wait(runs)
        assert job is not None
        assert job.state is State.CANCELLED


async def test_dead_letters_are_listed_and_run_again_by_id(seal: Counterseal, operator: Operator) -> None:
    (letter,) = await failed(seal, "no reason")
    (listed,) = operator.ask("dead")
    assert (listed["id"], listed["failure"]["error"]) == (letter, "LookupError")
    (made,) = operator.ask("retry", letter)
    assert made["retry_of"] == letter
    job = await seal.jobs.get(made["id"])
    assert job is not None
    assert (job.state, job.retry_of) == (State.QUEUED, letter)
    assert operator.ask("dead") == []
    assert operator.run("retry", letter, code=1).stderr == f"counterseal: there is no dead letter {letter}\n"


async def test_all_dead_letters_that_fit_run_again_page_by_page(
    seal: Counterseal, operator: Operator
) -> None:
    await failed(seal, *("no reason" for _ in range(1100)))
    parked = (await seal.jobs.enqueue_json("email", {})).id
    async with seal.worker():

        async def is_parked() -> bool:
            job = await seal.jobs.get(parked)
            return job is not None and job.parked

        await eventually(is_parked)
    assert operator.ask("retry", "--all", "--type", "hang") == {"retried": 0}
    assert operator.ask("retry", "--all", "--error", "lookuperror") == {"retried": 1100}
    assert [job["id"] for job in operator.ask("dead")] == [parked]
    stats = (await seal.jobs.stats())["fail"]
    assert (stats.queued, stats.failed) == (1100, 1100)


async def test_dead_letters_are_deleted_when_somebody_is_sure(seal: Counterseal, operator: Operator) -> None:
    first, second, third = await failed(seal, "a", "b", "c")
    refused = operator.run("purge", first, code=2)
    assert refused.stderr.startswith("counterseal: --yes: expected")
    assert len(operator.ask("dead")) == 3
    assert operator.run("purge", first, "--yes").stdout == "1 dead letter deleted\n"
    assert operator.ask("purge", first, "--yes", code=1) == {"deleted": 0}
    assert operator.ask("purge", "--all", "--type", "fail", "--yes") == {"deleted": 2}
    assert [await seal.jobs.get(one) for one in (first, second, third)] == [None] * 3


async def test_statistics_have_every_known_type_also_the_idle_ones(
    seal: Counterseal, operator: Operator
) -> None:
    identifier = (await seal.jobs.enqueue(greet, "Ada")).id
    async with seal.worker():
        await seal.jobs.wait(identifier)
    await seal.jobs.enqueue(hang.using(queue="slow"))
    told = operator.ask("stats")
    assert {*TYPES, "greet", "hang"} <= set(told["types"])
    greeted = told["types"]["greet"]
    assert (greeted["total"], greeted["completed"], greeted["success_rate"]) == (1, 1, 100.0)
    assert greeted["run"]["count"] == greeted["wait"]["count"] == 1
    assert greeted["run"]["p99_ms"] > 0
    # The minute that is under way does not count yet, so how many there are depends on when this runs.
    assert greeted["completed_last_hour"] in (0, 1)
    assert greeted["failed_last_hour"] == 0
    assert told["types"]["email"]["total"] == 0
    (slow,) = [queue for queue in told["queues"] if queue["queue"] == "slow"]
    assert slow["queued"] == 1
    assert slow["oldest_age_ms"] >= 0
    lines = operator.run("stats").stdout.splitlines()
    assert {line.split()[0] for line in lines if line} >= {*TYPES, "greet", "hang", "slow", "default"}


async def test_schedules_are_listed_paused_resumed_previewed_and_run(
    seal: Counterseal, operator: Operator
) -> None:
    async with seal.scheduler():

        async def is_there() -> bool:
            return await seal.schedules.get("cleanup-expired") is not None

        await eventually(is_there)
    (listed,) = operator.ask("schedules", "list")
    assert (listed["id"], listed["when"], listed["paused"]) == ("cleanup-expired", "H * * * * UTC", False)
    assert [one["paused"] for one in operator.ask("schedules", "pause", "cleanup-expired")] == [True]
    assert "paused" in operator.run("schedules", "list").stdout
    assert [one["next"] is None for one in operator.ask("schedules", "resume", "cleanup-expired")] == [False]
    assert len(operator.ask("schedules", "preview", "cleanup-expired", "--count", "3")) == 3
    made = operator.ask("schedules", "run", "cleanup-expired")
    job = await seal.jobs.get(made["id"])
    assert job is not None
    assert (job.type, job.schedule) == ("cleanup-expired", "cleanup-expired")
    assert operator.ask("schedules", "remove", "cleanup-expired") == {"removed": 1}
    assert operator.ask("schedules", "list") == []
    assert [one["id"] for one in operator.ask("schedules", "reconcile")] == ["cleanup-expired"]
    for order in ("pause", "resume", "preview", "run", "remove"):
        missing = operator.run("schedules", order, "absent", code=1)
        assert missing.stderr == "counterseal: there is no schedule absent\n"


async def test_an_embedded_server_is_shared_with_the_process_that_runs_on_it(
    databases: Databases, tmp_path: Path
) -> None:
    async with databases.place("sqlite", tmp_path / "data"):
        settings = Settings.load({}, data_dir=tmp_path / "data")
        async with Counterseal.open(settings, tasks=TASKS) as seal:
            identifier = (await seal.jobs.enqueue(greet, "Ada")).id
            ended = run_program("jobs", "list", "--json", "--data-dir", "data", folder=tmp_path, fresh=True)
            assert [job["id"] for job in json.loads(ended.stdout)] == [identifier]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "--state", "lost"), "--state: expected one of scheduled"),
        (("retry",), "--all: expected ids"),
        (("retry", "default.a", "--all"), "--all: expected ids"),
        (("purge", "default.a", "--type", "fail"), "--all: expected ids"),
    ],
)
def test_bad_input_is_one_sentence(operator: Operator, arguments: tuple[str, ...], words: str) -> None:
    assert operator.run(*arguments, code=2).stderr.startswith(f"counterseal: {words}")


def test_a_redis_that_is_not_there_is_one_sentence(folder: Path) -> None:
    ended = run_program(
        "jobs", "list", folder=folder, settings={"REDIS_URL": "redis://127.0.0.1:1"}, fresh=True
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("counterseal: REDIS_URL: ")
    assert ended.stderr.count("\n") == 1
