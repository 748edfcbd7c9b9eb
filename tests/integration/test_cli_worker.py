"""`counterseal worker` as a process: it consumes, tells whether it does, drains, and replaces itself."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from counterseal import Counterseal, Job, Settings, State
from support import job_application
from support.databases import Databases
from support.job_application import TASKS, block, greet, hang, swell
from support.processes import freeze_process
from support.program import Program, environment, run_program
from support.servers import Server
from support.waiting import eventually, wait_until

APPLICATION = Path(job_application.__file__)
WORKER = ("worker", "--app", "job_application:create", "--data-dir", "data")
CHECK = ("worker", "--check", "--data-dir", "data")


@pytest.fixture
async def folder(databases: Databases, tmp_path: Path) -> AsyncIterator[Path]:
    """Where the program runs: an application lies there, and the tables are in its data folder."""
    shutil.copy(APPLICATION, tmp_path)
    async with databases.place("sqlite", tmp_path / "data"):
        yield tmp_path


def opened(valkey: Server, folder: Path) -> Counterseal:
    """The application beside the worker's process."""
    settings = Settings.load(
        {"REDIS_URL": valkey.url, "COUNTERSEAL_COMMAND_TIMEOUT": "5s"}, data_dir=folder / "data"
    )
    return Counterseal.open(settings, tasks=TASKS)


def environment_of(valkey: Server, **more: str) -> dict[str, str]:
    return {"REDIS_URL": valkey.url, "COUNTERSEAL_COMMAND_TIMEOUT": "5s", **more}


def statuses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (folder / "data" / "workers").glob("*.json")]


def consumes(folder: Path) -> bool:
    return run_program(*CHECK, folder=folder).returncode == 0


async def ended(seal: Counterseal, identifier: str) -> Job:
    async def is_over() -> Job | None:
        job = await seal.jobs.get(identifier)
        return job if job is not None and job.state.terminal else None

    job = await eventually(is_over, within=20)
    assert job is not None
    return job


async def running(seal: Counterseal, identifier: str) -> bool:
    job = await seal.jobs.get(identifier)
    return job is not None and job.state is State.RUNNING


async def test_a_worker_warns_of_a_server_that_evicts(servers: Callable[..., Server], folder: Path) -> None:
    server = servers(config=["maxmemory 100mb", "maxmemory-policy allkeys-lru"])
    with Program(WORKER, folder=folder, settings=environment_of(server)) as worker:
        await eventually(lambda: "maxmemory-policy is allkeys-lru" in worker.errors, within=20)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0


async def test_it_runs_the_tasks_of_the_application_and_ends_with_exit_code_0(
    valkey: Server, folder: Path
) -> None:
    async with opened(valkey, folder) as seal:
        with Program(WORKER, folder=folder, settings=environment_of(valkey), fresh=True) as program:
            job = await ended(seal, (await seal.jobs.enqueue(greet, "Ada")).id)
            assert job.result == f"hello Ada, from process {program.pid}"
            wait_until(lambda: consumes(folder), within=20)
            said = run_program(*CHECK, folder=folder, fresh=True).stdout
            assert f"(process {program.pid}) consumes default: its last lease was" in said
            program.send(signal.SIGTERM)
            assert program.wait() == 0
            assert "runs up to 10 jobs at once of the queues default=1" in program.errors
            assert "Traceback" not in program.errors
        assert statuses(folder) == []
        assert run_program(*CHECK, folder=folder).returncode == 1


async def test_it_takes_jobs_of_the_queues_that_are_named_alone(valkey: Server, folder: Path) -> None:
    arguments = (*WORKER, "--queues", "default=3,pdf=1", "--concurrency", "2")
    async with opened(valkey, folder) as seal:
        other = (await seal.jobs.enqueue(greet.using(queue="other"), "nobody")).id
        with Program(arguments, folder=folder, settings=environment_of(valkey)) as program:
            job = await ended(seal, (await seal.jobs.enqueue(greet.using(queue="pdf"), "Ada")).id)
            assert job.state is State.COMPLETED
            wait_until(lambda: statuses(folder), within=20)
            assert [status["queues"] for status in statuses(folder)] == [{"default": 3, "pdf": 1}]
            assert "runs up to 2 jobs at once of the queues default=3, pdf=1" in program.errors
        found = await seal.jobs.get(other)
        assert found is not None
        assert found.state is State.QUEUED
        await seal.jobs.cancel(other)


async def test_a_job_that_is_not_done_in_time_goes_back_uncounted_when_it_drains(
    valkey: Server, folder: Path
) -> None:
    async with opened(valkey, folder) as seal:
        with Program(
            WORKER, folder=folder, settings=environment_of(valkey, COUNTERSEAL_GRACE="1s")
        ) as program:
            identifier = (await seal.jobs.enqueue(hang)).id
            await eventually(lambda: running(seal, identifier), within=20)
            program.send(signal.SIGINT)
            assert program.wait() == 0
            job = await seal.jobs.get(identifier)
            assert job is not None
            assert (job.state, job.attempt, job.lost) == (State.QUEUED, 0, 0)
        await seal.jobs.cancel(identifier)


async def test_a_second_signal_ends_it_at_once(valkey: Server, folder: Path) -> None:
    async with opened(valkey, folder) as seal:
        with Program(
            WORKER, folder=folder, settings=environment_of(valkey, COUNTERSEAL_GRACE="1h")
        ) as program:
            identifier = (await seal.jobs.enqueue(block)).id
            await eventually(lambda: running(seal, identifier), within=20)
            program.send(signal.SIGTERM)

            def ended_by_another() -> bool:
                program.send(signal.SIGTERM)
                return program._process.poll() is not None

            wait_until(ended_by_another)
            assert program.wait() == 128 + signal.SIGTERM
        await seal.jobs.cancel(identifier)


async def test_after_so_many_jobs_it_begins_anew_in_the_same_process(valkey: Server, folder: Path) -> None:
    arguments = (*WORKER, "--max-jobs", "3", "--concurrency", "1")
    async with opened(valkey, folder) as seal:
        with Program(arguments, folder=folder, settings=environment_of(valkey)) as program:
            made = await seal.jobs.enqueue_many([greet.call(str(number)) for number in range(7)])
            jobs = [await ended(seal, one.id) for one in made]
            assert [job.state for job in jobs] == [State.COMPLETED] * 7
            assert all(str(job.result).endswith(f"process {program.pid}") for job in jobs)
            assert (
                program.errors.count("drains and is replaced: it has begun as many jobs as --max-jobs says")
                >= 2
            )
            wait_until(lambda: len(statuses(folder)) == 1, within=20)
            assert statuses(folder)[0]["pid"] == program.pid
            program.send(signal.SIGTERM)
            assert program.wait() == 0
        assert statuses(folder) == []


async def test_above_its_memory_it_begins_anew(valkey: Server, folder: Path) -> None:
    arguments = (*WORKER, "--max-memory", "400MB")
    async with opened(valkey, folder) as seal:
        with Program(arguments, folder=folder, settings=environment_of(valkey)) as program:
            job = await ended(seal, (await seal.jobs.enqueue(swell, 500)).id)
            assert job.state is State.COMPLETED
            wait_until(lambda: "it takes more memory than --max-memory says" in program.errors, within=20)
            job = await ended(seal, (await seal.jobs.enqueue(greet, "Ada")).id)
            assert str(job.result).endswith(f"process {program.pid}")
            program.send(signal.SIGTERM)
            assert program.wait() == 0


def test_a_memory_limit_at_which_it_would_begin_anew_for_ever_is_refused(
    valkey: Server, folder: Path
) -> None:
    ended = run_program(*WORKER, "--max-memory", "10MB", folder=folder, settings=environment_of(valkey))
    assert ended.returncode == 2
    assert ended.stderr.startswith("counterseal: --max-memory: expected more than the ")


async def test_a_worker_that_stands_still_or_was_killed_does_not_pass_the_check(
    valkey: Server, folder: Path
) -> None:
    with Program(WORKER, folder=folder, settings=environment_of(valkey)) as program:
        wait_until(lambda: consumes(folder), within=20)
        freeze_process(program._process)
        late = wait_until(
            lambda: (
                found
                if (found := run_program(*CHECK, "--max-age", "100ms", folder=folder)).returncode
                else None
            )
        )
        assert late.returncode == 1
        assert f"(process {program.pid}) does not consume: its last lease was" in late.stdout
    dead = run_program(*CHECK, folder=folder)
    assert dead.returncode == 1
    assert f"ended without saying so: its process {program.pid} is dead" in dead.stdout
    with Program(WORKER, folder=folder, settings=environment_of(valkey)) as another:
        wait_until(lambda: consumes(folder), within=20)
        wait_until(lambda: [status["pid"] for status in statuses(folder)] == [another.pid])


async def test_a_handler_that_blocks_everything_is_found_by_the_check(valkey: Server, folder: Path) -> None:
    async with opened(valkey, folder) as seal:
        with Program(
            (*WORKER, "--concurrency", "1"), folder=folder, settings=environment_of(valkey)
        ) as program:
            wait_until(lambda: consumes(folder), within=20)
            identifier = (await seal.jobs.enqueue(block)).id
            await eventually(lambda: running(seal, identifier), within=20)
            wait_until(lambda: run_program(*CHECK, "--max-age", "100ms", folder=folder).returncode == 1)
            assert program.pid
        await seal.jobs.cancel(identifier)


async def test_a_worker_with_all_hands_full_passes_the_check_although_it_leases_nothing(
    valkey: Server, folder: Path
) -> None:
    async with opened(valkey, folder) as seal:
        settings = environment_of(valkey, COUNTERSEAL_GRACE="1s")
        with Program((*WORKER, "--concurrency", "1"), folder=folder, settings=settings) as program:
            identifier = (await seal.jobs.enqueue(hang)).id
            wait_until(lambda: any(status["full"] for status in statuses(folder)), within=20)
            leased_at = statuses(folder)[0]["leased_at"]
            wait_until(lambda: statuses(folder)[0]["written_at"] > leased_at + 2, within=20)
            said = run_program(*CHECK, "--max-age", "1.9s", folder=folder)
            assert (said.returncode, "it runs 1 jobs, as many as it may" in said.stdout) == (0, True)
            program.send(signal.SIGTERM)
            assert program.wait() == 0
        await seal.jobs.cancel(identifier)


def test_serve_is_found_by_the_check_too(valkey: Server, folder: Path) -> None:
    arguments = ("serve", "--port", "0", "--app", "job_application:create", "--data-dir", "data")
    with Program(arguments, folder=folder, settings=environment_of(valkey)) as program:
        program.url()
        wait_until(lambda: consumes(folder), within=20)


def test_the_check_loads_neither_the_application_nor_any_large_library(tmp_path: Path) -> None:
    program = (
        "import sys, counterseal.cli; sys.argv = ['counterseal', 'worker', '--check']\n"
        "try: counterseal.cli.main()\n"
        "except SystemExit as end: print(end.code)\n"
        "print(sorted(sys.modules))"
    )
    (tmp_path / ".env").write_text("COUNTERSEAL_DATA_DIR=elsewhere\n")
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    sentence, code, modules = ended.stdout.splitlines()
    assert sentence.endswith(f"(data folder {tmp_path / 'elsewhere'})")
    assert code == "1"
    loaded = {name.partition(".")[0] for name in json.loads(modules.replace("'", '"'))}
    assert not loaded & {
        "sqlalchemy", "redis", "fastapi", "pydantic", "typer", "rich", "msgspec", "uvicorn", "httpx", "structlog",
        "asyncio",
    }  # fmt: skip
    assert "counterseal.app" not in modules


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("job_application", "expected package.module:create"),
        ("nowhere.application:create", "there is no nowhere in"),
        ("job_application:creat", "the module job_application has no creat"),
        ("job_application:TASKS", "is of type tuple"),
        ("job_application:something_else", "returned a str"),
        ("job_application:create_later", "returned a coroutine"),
        (
            "job_application:broken",
            "job_application:broken raised RuntimeError in job_application.py, line",
        ),
        (
            "faulty:create",
            "the module faulty raised ModuleNotFoundError in faulty.py, line 1: No module",
        ),
    ],
)
def test_an_application_that_can_not_be_used_is_one_sentence(app: str, words: str, tmp_path: Path) -> None:
    shutil.copy(APPLICATION, tmp_path)
    (tmp_path / "faulty.py").write_text("import absent\n")
    ended = run_program("worker", "--app", app, folder=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("counterseal: --app: ")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "s3cret" not in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--queues", "default=0"), ("--queues", "a b"), ("--queues", "a,a"), ("--queues", ""), ("--max-memory", "much"),
        ("--max-jobs", "0"), ("--concurrency", "0"), ("--check", "--max-age", "0s"),
    ],
)  # fmt: skip
def test_an_option_that_can_not_be_is_one_sentence_that_names_it(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    ended = run_program("worker", *arguments, folder=tmp_path)
    assert ended.returncode == 2
    assert arguments[-2] in ended.stderr
    assert ended.stderr.count("\n") == 1
