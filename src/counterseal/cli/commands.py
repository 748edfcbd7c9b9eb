"""Commands: their options and help, and what becomes of an error.

What a command needs is imported inside it, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from counterseal.cli.job_commands import DataDir, job_commands
from counterseal.core.errors import ConfigurationError, CountersealError

CANNOT_START = 2
INTERRUPTED = 130

_HELP = """\
The Redis layer of a document-signing web application: sessions, cache, jobs, analytics, real time, rate limits, health.

It runs on Upstash, on any Valkey or Redis, or on a Valkey server that it starts by itself. With nothing configured,
`counterseal serve` starts all of it. Settings come from the environment and from a `.env` file in the current folder.

Exit codes: 0 all went well; 1 `doctor` found a fault, `worker --check` no worker that consumes, `jobs` not what it was
asked for; 2 it could not start, and one sentence on stderr says why.
"""

Port = Annotated[
    int, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; 0 takes any free one.")
]
Host = Annotated[
    str,
    typer.Option(
        "--host",
        help="Address to listen on. In development only this machine's own are allowed: 127.0.0.1, ::1.",
    ),
]
App = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="MODULE:FUNCTION",
        help="A function that returns the application's Counterseal; found from the current folder, too.",
        show_default=False,
    ),
]


def run(arguments: Sequence[str]) -> int:
    """Run one command line. Returns the exit code; what went wrong stands on stderr, a sentence each."""
    command = typer.main.get_command(_program())
    try:
        ended = command.main(list(arguments), prog_name="counterseal", standalone_mode=False)
    except typer.TyperException as fault:
        # Without a message its help has been printed: no command was named.
        if message := fault.format_message().rstrip("."):
            _complain(f"{message}; counterseal --help tells more")
        return CANNOT_START
    except ConfigurationError as error:
        for fault in error.faults:
            _complain(fault)
        return CANNOT_START
    except CountersealError as error:
        _complain(str(error))
        return CANNOT_START
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return ended if isinstance(ended, int) else 0


def _program() -> typer.Typer:
    program = typer.Typer(
        name="counterseal",
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        rich_markup_mode="markdown",
    )
    program.callback()(_options)
    program.command()(serve)
    program.command()(worker)
    program.add_typer(job_commands(), name="jobs")
    program.command()(doctor)
    program.command()(migrate)
    return program


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"counterseal {version('counterseal')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """What stands before the name of a command."""


def serve(port: Port = 8787, host: Host = "127.0.0.1", app: App = None, data_dir: DataDir = None) -> None:
    """Start everything in one process: web server, worker, and the embedded Valkey when no Redis is configured.

    It prints where it listens, which Redis and database it uses and where the data is, then logs to stderr.

    Ctrl-C or SIGTERM ends it: requests and jobs that have begun are finished within COUNTERSEAL_GRACE (10 s), and
    the exit code is 0. A second signal ends it at once.
    """
    from counterseal.core.settings import Settings

    if app is None:
        Settings.load(data_dir=data_dir)  # a fault is told before the rest is loaded

    from counterseal.cli.application import open_application
    from counterseal.cli.serving import run_server

    run_server(open_application(app, data_dir=data_dir), host=host, port=port)


def worker(  # noqa: PLR0917 - the options of a command
    queues: Annotated[
        str | None,
        typer.Option(
            "--queues",
            metavar="NAME=WEIGHT,…",
            help="The queues to work off, as default=3,pdf=1; else those of the tasks.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            max=10_000,
            help="How many jobs run at once; else COUNTERSEAL_JOBS_CONCURRENCY, else 10.",
            show_default=False,
        ),
    ] = None,
    app: App = None,
    max_jobs: Annotated[
        int | None,
        typer.Option(
            "--max-jobs", min=1, help="Begin so many jobs, then replace the process.", show_default=False
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Replace the process when it takes more than this, such as 512MB.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say whether a worker of the data folder consumes, and end.")
    ] = False,
    max_age: Annotated[
        str,
        typer.Option("--max-age", metavar="DURATION", help="With --check: how old its last lease may be."),
    ] = "15s",
    data_dir: DataDir = None,
) -> None:
    """Run jobs, and make those of the schedules, in a process that does nothing else. It logs to stderr.

    Ctrl-C or SIGTERM ends it: no more jobs are begun, those under way have half of COUNTERSEAL_GRACE (10 s) to end, and
    what is not done by then goes back to its queue, uncounted. A second signal ends it at once. With --max-jobs or
    --max-memory it drains in the same way and begins anew in the same process.

    --check is for the probe of a container. Exit code 0: every worker of the data folder on this machine consumes.
    1: there is none, or one has not leased for longer than --max-age.
    """
    if check:
        from counterseal.cli.checking import run_check

        raise typer.Exit(run_check(data_dir, max_age=max_age))

    from counterseal.cli.application import open_application
    from counterseal.cli.working import Limits, parse_queues, parse_size, run_worker

    chosen = parse_queues(queues)
    limits = Limits(jobs=max_jobs, memory=parse_size(max_memory))
    seal = open_application(app, data_dir=data_dir)
    run_worker(seal, queues=chosen, concurrency=concurrency, limits=limits)


def doctor(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Examine the Redis that is configured, and say what is wrong with it and what to do.

    Looks at its version, persistence, eviction policy, memory and clock, at the state of a Cluster, at what the token
    or user may do, and at how fast it answers. It writes one key of its own and removes it.

    Exit code 0: nothing is wrong (there may be warnings). 1: at least one fault. 2: it could not be asked at all.
    """
    from counterseal.core.settings import Settings

    settings = Settings.load(data_dir=data_dir)

    from counterseal.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(settings, as_json=as_json))


def migrate(data_dir: DataDir = None) -> None:
    """Bring the tables of the database to those of this release: PostgreSQL, or SQLite in the data folder.

    It prints from which revision to which. It may be run again, and by several processes at once: they wait for each
    other, and it happens whole or not at all. Back the database up first; a newer release's tables are left alone.

    `serve` does the same for SQLite by itself, and does not start on a PostgreSQL that needs this.

    Exit code 0: the tables are those of this release. 2: they are as they were, and one sentence on stderr says why.
    """
    from counterseal.core.settings import Settings

    settings = Settings.load(data_dir=data_dir)

    from counterseal.cli.migrating import run_migrate

    run_migrate(settings)


def _complain(sentence: str) -> None:
    print(f"counterseal: {sentence}", file=sys.stderr)
