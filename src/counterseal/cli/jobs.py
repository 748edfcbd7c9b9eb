"""Jobs: what the commands `counterseal jobs …` do. Each answers its exit code: 1 when something was not found."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress

from counterseal.app import Counterseal
from counterseal.cli.application import open_application
from counterseal.cli.faults import naming_settings
from counterseal.cli.job_tables import (
    count_of,
    moment_text,
    print_job,
    print_jobs,
    print_json,
    print_schedules,
    print_stats,
    schedule_json,
    to_json,
)
from counterseal.cli.logs import configure_logs
from counterseal.core.errors import CarrierUnavailable, ConfigurationError, UnknownName
from counterseal.jobs.job import Job, State
from counterseal.jobs.schedule_carrying import ScheduleCarrying
from counterseal.jobs.schedules import ScheduleStatus

FOUND: Final = 0
NOT_FOUND: Final = 1

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which dead letters are meant: those of these ids, or all that fit."""

    ids: Sequence[str]
    every: bool
    queue: str | None
    type: str | None
    error: str | None

    def check(self) -> None:
        """Raises `ConfigurationError` when nothing is chosen, or twice."""
        filters = any((self.queue, self.type, self.error))
        if bool(self.ids) == self.every or (self.ids and filters):
            raise ConfigurationError(
                "--all: expected ids, or --all with --type, --queue or --error if need be; neither or both came"
            )


def run_jobs(
    ask: Callable[[Counterseal], Awaitable[int]], *, data_dir: Path | None, app: str | None = None
) -> int:
    """Connect to the Redis of the settings, and ask. Raises `ConfigurationError` when it can't be reached."""
    seal = open_application(app, data_dir=data_dir)
    configure_logs(seal.settings)

    async def connected() -> int:
        async with seal.store, seal.carriage:
            try:
                return await ask(seal)
            finally:
                await seal.jobs.close()

    with naming_settings(seal.settings), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(connected())


async def list_jobs(
    seal: Counterseal,
    *,
    state: str | None,
    kind: str | None,
    tag: str | None,
    queue: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """Jobs that fit."""
    if state is not None and state not in {*State}:
        raise ConfigurationError(
            f"--state: expected one of {', '.join(State)}; came: {ascii(state[:60])[1:-1]}"
        )
    chosen = None if state is None else State(state)
    found = await seal.jobs.list(queue=queue, state=chosen, type=kind, tag=tag, limit=limit)
    return _print_all(found, as_json=as_json)


async def show_job(seal: Counterseal, identifier: str, *, as_json: bool) -> int:
    """All that is known of one job."""
    job = await seal.jobs.get(identifier)
    if job is None:
        return _missing("job", [identifier])
    logs = await seal.jobs.logs(identifier)
    if as_json:
        print_json({**to_json(job), "logs": [{"at_ms": at_ms, "text": text} for at_ms, text in logs]})
    else:
        print_job(job, logs)
    return FOUND


async def cancel_jobs(seal: Counterseal, identifiers: Sequence[str], *, reason: str, as_json: bool) -> int:
    """End jobs that have not ended."""
    outcomes: dict[str, State | None] = {one: await seal.jobs.cancel(one, reason) for one in identifiers}
    if as_json:
        print_json([{"id": one, "state": state} for one, state in outcomes.items() if state is not None])
    else:
        for one, state in outcomes.items():
            if state is not None:
                print(f"{one}  {_CANCELLED.get(state, f'had ended already: {state}')}")
    return _missing("job", [one for one, state in outcomes.items() if state is None])


async def list_dead(
    seal: Counterseal, *, queue: str | None, kind: str | None, error: str | None, limit: int, as_json: bool
) -> int:
    """Dead letters and parked jobs that fit."""
    return _print_all(await seal.jobs.dead(queue=queue, type=kind, error=error, limit=limit), as_json=as_json)


async def retry_dead(seal: Counterseal, chosen: Chosen, *, as_json: bool) -> int:
    """Run dead letters again."""
    made: list[dict[str, str]] = []
    missing: list[str] = []
    count = 0
    if not chosen.every:
        for one in chosen.ids:
            answer = await seal.jobs.retry_dead(one)
            if answer:
                made.append({"id": answer[0].id, "retry_of": one})
            else:
                missing.append(one)
        if as_json:
            print_json(made)
        else:
            for pair in made:
                print(f"{pair['retry_of']}  runs again as {pair['id']}")
        return _missing("dead letter", missing)
    with _progress("Running again", await _total(seal, chosen)) as advance:
        async for page in _pages(seal, chosen):
            again = len(await seal.jobs.retry_dead(*page))
            count += again
            advance(again)
    print_json({"retried": count}) if as_json else print(f"{count_of(count, 'dead letter')} run again")
    return FOUND


async def purge_dead(seal: Counterseal, chosen: Chosen, *, sure: bool, as_json: bool) -> int:
    """Delete dead letters; parked jobs are cancelled."""
    if not sure and not await _is_sure(seal, chosen):
        print("Nothing was deleted")
        return FOUND
    count = 0
    missing: list[str] = []
    if chosen.every:
        with _progress("Deleting", await _total(seal, chosen)) as advance:
            async for page in _pages(seal, chosen):
                gone = await seal.jobs.delete_dead(*page)
                count += gone
                advance(gone)
    else:
        for one in chosen.ids:
            if await seal.jobs.delete_dead(one):
                count += 1
            else:
                missing.append(one)
    print_json({"deleted": count}) if as_json else print(f"{count_of(count, 'dead letter')} deleted")
    return _missing("dead letter", missing)


async def show_stats(seal: Counterseal, *, as_json: bool) -> int:
    """What types have done and what queues hold."""
    stats = await seal.jobs.stats()
    times = await asyncio.gather(*(seal.jobs.times(kind) for kind in stats))
    throughput = await asyncio.gather(*(seal.jobs.throughput(kind) for kind in stats))
    queues = await seal.jobs.queues()
    if not as_json:
        print_stats(
            stats, dict(zip(stats, times, strict=True)), dict(zip(stats, throughput, strict=True)), queues
        )
        return FOUND
    print_json(
        {
            "types": {
                kind: {
                    **to_json(stats[kind]),
                    "wait": to_json(wait),
                    "run": to_json(run),
                    **to_json(lately),
                }
                for kind, (wait, run), lately in zip(stats, times, throughput, strict=True)
            },
            "queues": [to_json(queue) for queue in queues],
        }
    )
    return FOUND


async def list_schedules(seal: Counterseal, *, as_json: bool) -> int:
    """All schedules."""
    found = await seal.schedules.list()
    print_json([schedule_json(status) for status in found]) if as_json else print_schedules(found)
    return FOUND


async def preview_schedule(seal: Counterseal, identifier: str, *, count: int, as_json: bool) -> int:
    """The next runs of a schedule."""
    try:
        ticks = await seal.schedules.preview(identifier, count)
    except UnknownName:
        return _missing("schedule", [identifier])
    if as_json:
        print_json([tick.isoformat() for tick in ticks])
    else:
        for tick in ticks:
            print(moment_text(tick))
    return FOUND


async def change_schedules(
    seal: Counterseal, identifiers: Sequence[str], *, paused: bool, as_json: bool
) -> int:
    """Pause schedules, or resume them."""
    changed: list[ScheduleStatus] = []
    missing: list[str] = []
    for one in identifiers:
        try:
            changed.append(await (seal.schedules.pause(one) if paused else seal.schedules.resume(one)))
        except UnknownName:
            missing.append(one)
    print_json([schedule_json(status) for status in changed]) if as_json else print_schedules(changed)
    return _missing("schedule", missing)


async def remove_schedules(seal: Counterseal, identifiers: Sequence[str], *, as_json: bool) -> int:
    """Remove schedules."""
    missing = [one for one in identifiers if not await seal.schedules.remove(one)]
    removed = len(identifiers) - len(missing)
    print_json({"removed": removed}) if as_json else print(f"{count_of(removed, 'schedule')} removed")
    return _missing("schedule", missing)


async def reconcile_schedules(seal: Counterseal, *, as_json: bool) -> int:
    """Bring the schedules of the code to Redis, and to QStash."""
    try:
        await ScheduleCarrying(seal.store, schedules=seal.schedules).look(full=True)
    except CarrierUnavailable as fault:
        print(f"counterseal: {fault}", file=sys.stderr)
        return NOT_FOUND
    return await list_schedules(seal, as_json=as_json)


async def run_schedule(seal: Counterseal, identifier: str, *, as_json: bool) -> int:
    """Make a job of a schedule now."""
    try:
        made = await seal.schedules.run_now(identifier)
    except UnknownName:
        return _missing("schedule", [identifier])
    print_json({"id": made.id}) if as_json else print(made.id)
    return FOUND


def _print_all(jobs: Sequence[Job], *, as_json: bool) -> int:
    if as_json:
        print_json([to_json(job) for job in jobs])
    else:
        print_jobs(jobs)
    return FOUND


async def _pages(seal: Counterseal, chosen: Chosen) -> AsyncIterator[list[str]]:
    """The ids of those dead letters that fit and are there now, page by page; who takes a page removes it.

    What fails again meanwhile is not among them, nor what is parked again.
    """
    begun = seal.store.now_ms()
    seen: set[str] = set()
    limit = _PAGE
    while True:
        found = await seal.jobs.dead(queue=chosen.queue, type=chosen.type, error=chosen.error, limit=limit)
        page = [
            job.id
            for job in found
            if job.id not in seen and (job.ended_at is None or job.ended_at.timestamp() * 1000 <= begun)
        ]
        if page:
            seen.update(page)
            yield page
        elif len(found) < limit:
            return
        else:
            limit += _PAGE  # newer ones lie above


async def _total(seal: Counterseal, chosen: Chosen) -> int | None:
    """How many there are; None when only looking at each would tell."""
    if chosen.type is not None or chosen.error is not None:
        return None
    queues = await seal.jobs.queues()
    return sum(queue.dead + queue.parked for queue in queues if chosen.queue in (None, queue.queue))


async def _is_sure(seal: Counterseal, chosen: Chosen) -> bool:
    if not sys.stdin.isatty():
        raise ConfigurationError("--yes: expected where nobody can be asked whether to delete")
    total = len(chosen.ids) if chosen.ids else await _total(seal, chosen)
    what = "the dead letters that fit" if total is None else count_of(total, "dead letter")
    return await asyncio.to_thread(typer.confirm, f"Delete {what} for good?", err=True)


@contextmanager
def _progress(what: str, total: int | None) -> Generator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda count: progress.advance(bar, count)


def _missing(what: str, identifiers: Sequence[str]) -> int:
    for one in identifiers:
        print(f"counterseal: there is no {what} {ascii(one[:120])[1:-1]}", file=sys.stderr)
    return NOT_FOUND if identifiers else FOUND


_CANCELLED: Final = {State.CANCELLED: "cancelled", State.RUNNING: "runs, and is asked to end"}
