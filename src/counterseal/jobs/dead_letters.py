"""Dead letters: run again, or deleted, in calls of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from counterseal.jobs.options import Extra, read_extra, write_extra
from counterseal.jobs.scripts import Queue
from counterseal.store.keys import JOB_DEAD_TTL
from counterseal.store.scripts import load_script
from counterseal.store.wire import Reply, raised

AT_ONCE: Final = 200
"""So many letters one call takes: Redis serves nobody else meanwhile."""

_RETRY: Final = load_script("counterseal.jobs", "retry")
_MS_DEAD: Final = round(JOB_DEAD_TTL.total_seconds() * 1000)
_HEAD_BYTES: Final = 2**16
"""Longer than all that stands before the arguments of a record: options are texts of 512 bytes at most."""
_FIELDS: Final = 6


async def retry_letters(
    queue: Queue, parts: Sequence[str], *, new_part: Callable[[], str], min_replicas: int = 0
) -> list[tuple[str, str]]:
    """Make new jobs of dead letters and put parked jobs back. For each the letter and the part that runs now.

    Those that are no dead letters, or whose options can't be read, are left out. Two round trips for every 200.
    With `min_replicas` one more, in which so many replicas confirm them, else `NotReplicated` is raised.
    """
    made: list[tuple[str, str]] = []
    for first in range(0, len(parts), AT_ONCE):
        page = parts[first : first + AT_ONCE]
        heads = await queue.store.pipeline(
            [("GETRANGE", f"{queue.prefix}:job:{part}", 0, _HEAD_BYTES - 1) for part in page]
        )
        letters: list[tuple[str, str, bytes]] = []
        for part, head in zip(page, heads, strict=True):
            extra = _extra(raised(head))
            if extra is not None:
                text = write_extra(_again(queue.name, part, extra, now_ms=queue.store.now_ms()))
                letters.append((part, new_part(), text))
        if not letters:
            continue
        reply = await queue.store.run(
            _RETRY,
            queue=queue.keys.jobs_queue(queue.name),
            prefix=queue.prefix,
            now_ms=queue.store.now_ms(),
            keep_ms=_MS_DEAD,
            letters=[item for letter in letters for item in letter],
        )
        for (part, _, _), now in zip(letters, reply if isinstance(reply, list) else [], strict=True):
            if isinstance(now, bytes) and now:
                made.append((part, now.decode()))
        if min_replicas and made:
            await queue.confirm(made[-1][1], replicas=min_replicas)
    return made


async def delete_letters(queue: Queue, parts: Sequence[str], reason: str, *, keep_ms: int) -> int:
    """Delete dead letters and cancel parked jobs; how many there were. A round trip for every 200."""
    gone = 0
    for first in range(0, len(parts), AT_ONCE):
        gone += await queue.discard(parts[first : first + AT_ONCE], reason, keep_ms=keep_ms)
    return gone


def _extra(head: Reply) -> Extra | None:
    """The options in the head of a record; None when there is no record, or they can't be read."""
    fields = head.split(b"\n", _FIELDS) if isinstance(head, bytes) else []
    if len(fields) <= _FIELDS:
        return None
    try:
        return read_extra(fields[5] or b"{}")
    except (msgspec.MsgspecError, ValueError):
        return None


def _again(queue: str, part: str, extra: Extra, *, now_ms: int) -> Extra:
    """The options of the new job: those of the letter, but for what was about its own beginning."""
    return msgspec.structs.replace(
        extra,
        given=False,
        due=None,
        dedup=None,
        deadline=extra.deadline if extra.deadline and extra.deadline > now_ms else None,
        key=extra.key or f"{queue}.{part}",
        retry_of=part,
    )
