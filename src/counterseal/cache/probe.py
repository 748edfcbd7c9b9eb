"""CacheProbe: what a cache did with a value of its own, for the health check."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from counterseal.cache.entry import pack, unpack
from counterseal.cache.generations import Generations
from counterseal.core.codec import to_text
from counterseal.core.errors import CodecError, CommandError, StoreError
from counterseal.store.base import Store
from counterseal.store.keys import Keys

_KIND: Final = "probe"
_TTL_MS: Final = timedelta(seconds=10) // timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class CacheProbe:
    """What a cache did with a value of its own: each is true when that operation ran and had its effect.

    `fault` is the first thing that went wrong, None when all three are true.
    """

    set: bool
    get: bool
    delete: bool
    fault: StoreError | CodecError | None = None


async def exercise(store: Store, *, keys: Keys, generations: Generations) -> CacheProbe:
    """Write a value under a new identifier, read it back, compare, delete it and see that it is gone.

    Two round trips. Never raises for what Redis answers: each operation is judged for itself.
    """
    key = keys.cache_value(_KIND, secrets.token_hex(8))
    text = to_text({"token": secrets.token_hex(16)})
    try:
        (generation,) = await generations.ensure([keys.cache_generation(_KIND)])
        data = pack(text, generation=generation, fresh_ms=store.now_ms() + _TTL_MS, load_ms=0, tags=())
        written, read, deleted, left = await store.pipeline(
            [("SET", key, data, "PX", _TTL_MS), ("GET", key), ("UNLINK", key), ("EXISTS", key)]
        )
    except StoreError as fault:
        return CacheProbe(set=False, get=False, delete=False, fault=fault)
    faults = [reply for reply in (written, read, deleted, left) if isinstance(reply, CommandError)]
    was_set = written == b"OK"
    expected = text if was_set else None
    found: bytes | None = None
    unreadable: CodecError | None = None
    if isinstance(read, bytes):
        try:
            entry = unpack(read, key=key)
            found = entry.text if entry is not None and entry.generation == generation else None
        except CodecError as fault:
            unreadable = fault
    return CacheProbe(
        set=was_set,
        get=not isinstance(read, CommandError) and unreadable is None and found == expected,
        delete=deleted == int(was_set) and left == 0,
        fault=faults[0] if faults else unreadable,
    )
