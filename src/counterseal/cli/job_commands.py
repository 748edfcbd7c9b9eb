"""JobCommands: the options and the help of `counterseal jobs …`."""

# ruff: noqa: PLR0917 - the options of a command are its parameters
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where data is kept; else COUNTERSEAL_DATA_DIR, else ./.counterseal.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of jobs, as they are listed.")]
SomeIds = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="Ids of dead letters.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The id of a schedule.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Ids of schedules.")]
Kind = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Of this type.", show_default=False)]
QueueName = Annotated[
    str | None, typer.Option("--queue", metavar="QUEUE", help="Of this queue.", show_default=False)
]
Wrong = Annotated[
    str | None,
    typer.Option("--error", metavar="TEXT", help="Whose error has this text in it.", show_default=False),
]
Every = Annotated[bool, typer.Option("--all", help="All that fit, in place of ids.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")]

_HELP = """\
Look at jobs, and rule them: in the Redis that is configured, the embedded one too.

Exit codes: 0 all went well; 1 something that was asked for is not there; 2 it could not start.
"""


def job_commands() -> typer.Typer:
    """The commands below `counterseal jobs`."""
    program = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode="markdown")
    program.command("list")(list_)
    for command in (show, cancel, retry, dead, purge, stats):
        program.command()(command)
    schedules = typer.Typer(
        help="List the schedules, show their next runs, pause, resume and remove them, or run one now.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    schedules.command("list")(list_schedules)
    for command in (preview, pause, resume, remove, run, reconcile):
        schedules.command()(command)
    program.add_typer(schedules, name="schedules")
    return program


def list_(
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            help="scheduled, queued, running, retrying, completed, failed or cancelled.",
            show_default=False,
        ),
    ] = None,
    kind: Kind = None,
    tag: Annotated[str | None, typer.Option("--tag", help="With this tag.", show_default=False)] = None,
    queue: QueueName = None,
    limit: Limit = 100,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List jobs: those that run, then those that wait, then those that ended lately."""
    from counterseal.cli.jobs import list_jobs, run_jobs

    raise typer.Exit(
        run_jobs(
            lambda seal: list_jobs(
                seal, state=state, kind=kind, tag=tag, queue=queue, limit=limit, as_json=as_json
            ),
            data_dir=data_dir,
        )
    )


def show(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The id of a job.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show all that is known of a job: its arguments, progress, log, result or failure."""
    from counterseal.cli.jobs import run_jobs, show_job

    raise typer.Exit(run_jobs(lambda seal: show_job(seal, identifier, as_json=as_json), data_dir=data_dir))


def cancel(
    identifiers: Ids,
    reason: Annotated[
        str, typer.Option("--reason", help="Why; it is kept with the job.")
    ] = "cancelled by an operator",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """End jobs: those that have not begun at once; those that run are asked to."""
    from counterseal.cli.jobs import cancel_jobs, run_jobs

    raise typer.Exit(
        run_jobs(
            lambda seal: cancel_jobs(seal, identifiers, reason=reason, as_json=as_json), data_dir=data_dir
        )
    )


def retry(
    identifiers: SomeIds = None,
    every: Every = False,
    kind: Kind = None,
    error: Wrong = None,
    queue: QueueName = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Run dead letters again: of each a new job is made. A parked job goes back to its queue itself.

    With --all, those that are there now; what fails again meanwhile stays.
    """
    from counterseal.cli.jobs import Chosen, retry_dead, run_jobs

    chosen = Chosen(identifiers or (), every=every, queue=queue, type=kind, error=error)
    chosen.check()
    raise typer.Exit(run_jobs(lambda seal: retry_dead(seal, chosen, as_json=as_json), data_dir=data_dir))


def dead(
    kind: Kind = None,
    error: Wrong = None,
    queue: QueueName = None,
    limit: Limit = 100,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List dead letters and parked jobs, newest first, with the reason."""
    from counterseal.cli.jobs import list_dead, run_jobs

    raise typer.Exit(
        run_jobs(
            lambda seal: list_dead(seal, queue=queue, kind=kind, error=error, limit=limit, as_json=as_json),
            data_dir=data_dir,
        )
    )


def purge(
    identifiers: SomeIds = None,
    every: Every = False,
    kind: Kind = None,
    error: Wrong = None,
    queue: QueueName = None,
    sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Delete dead letters for good; parked jobs are cancelled. It asks before, unless --yes is given."""
    from counterseal.cli.jobs import Chosen, purge_dead, run_jobs

    chosen = Chosen(identifiers or (), every=every, queue=queue, type=kind, error=error)
    chosen.check()
    raise typer.Exit(
        run_jobs(lambda seal: purge_dead(seal, chosen, sure=sure, as_json=as_json), data_dir=data_dir)
    )


def stats(
    app: Annotated[
        str | None,
        typer.Option(
            "--app",
            metavar="MODULE:FUNCTION",
            help="The application, so that its idle types are listed too.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show every known type, also the idle ones: counts, waiting and run times, throughput; then the queues."""
    from counterseal.cli.jobs import run_jobs, show_stats

    raise typer.Exit(run_jobs(lambda seal: show_stats(seal, as_json=as_json), data_dir=data_dir, app=app))


def list_schedules(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the schedules, with their next and their last run."""
    from counterseal.cli import jobs

    raise typer.Exit(
        jobs.run_jobs(lambda seal: jobs.list_schedules(seal, as_json=as_json), data_dir=data_dir)
    )


def preview(
    name: Name,
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="How many.")] = 10,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show when a schedule runs next."""
    from counterseal.cli.jobs import preview_schedule, run_jobs

    raise typer.Exit(
        run_jobs(lambda seal: preview_schedule(seal, name, count=count, as_json=as_json), data_dir=data_dir)
    )


def pause(names: Names, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Make no more jobs of schedules until they are resumed. A deploy does not end the pause."""
    _change(names, paused=True, as_json=as_json, data_dir=data_dir)


def resume(names: Names, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Go on with the next run; nothing is made up for the pause."""
    _change(names, paused=False, as_json=as_json, data_dir=data_dir)


def remove(names: Names, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Remove schedules. Jobs that they have made stay. One of the code comes back with the next start: pause it."""
    from counterseal.cli.jobs import remove_schedules, run_jobs

    raise typer.Exit(run_jobs(lambda seal: remove_schedules(seal, names, as_json=as_json), data_dir=data_dir))


def reconcile(
    app: Annotated[
        str | None,
        typer.Option(
            "--app",
            metavar="MODULE:FUNCTION",
            help="The application whose code declares schedules.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Bring the schedules of the code to Redis and, when QStash carries jobs, to QStash. For deploys.

    Processes that serve do the same when they start. Exit code 1: QStash was not told of all.
    """
    from counterseal.cli.jobs import reconcile_schedules, run_jobs

    raise typer.Exit(
        run_jobs(lambda seal: reconcile_schedules(seal, as_json=as_json), data_dir=data_dir, app=app)
    )


def run(name: Name, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Make a job of a schedule now, besides those of its times."""
    from counterseal.cli.jobs import run_jobs, run_schedule

    raise typer.Exit(run_jobs(lambda seal: run_schedule(seal, name, as_json=as_json), data_dir=data_dir))


def _change(names: list[str], *, paused: bool, as_json: bool, data_dir: Path | None) -> None:
    from counterseal.cli.jobs import change_schedules, run_jobs

    raise typer.Exit(
        run_jobs(
            lambda seal: change_schedules(seal, names, paused=paused, as_json=as_json), data_dir=data_dir
        )
    )
