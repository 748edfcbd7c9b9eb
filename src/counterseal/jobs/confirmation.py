"""Confirmation: what was written is on replicas, as `COUNTERSEAL_MIN_REPLICAS` asks for, or the caller hears of it."""

from __future__ import annotations

from counterseal.core.errors import NotReplicated, StoreError
from counterseal.store.base import Store


async def confirm(store: Store, prefix: str, *, part: str = "", replicas: int) -> None:
    """Wait until what was written below a prefix is on so many replicas; `part` is a job that it made, '' for none.

    One round trip, shared with all who ask meanwhile. A job is looked for too, so a new primary that has lost it does
    not confirm it. Raises `NotReplicated` when it takes longer than twice the time-out of commands, or can't be known.
    """
    witnesses = [f"{prefix}:job:{part}"] if part else []
    why: StoreError | None = None
    try:
        if await store.replicated(f"{prefix}:mark", witnesses=witnesses, replicas=replicas):
            return
    except StoreError as fault:
        why = fault
    raise NotReplicated(
        f"what was written is not known to be on {replicas} replicas, as COUNTERSEAL_MIN_REPLICAS asks for"
    ) from why
