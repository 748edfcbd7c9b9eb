"""Travel: lets time pass at once, for what is judged by the clock of a store."""

from __future__ import annotations

from datetime import timedelta

from counterseal.app import Counterseal
from counterseal.store.base import Store
from counterseal.store.cluster import ClusterStore
from counterseal.store.rest.store import RestStore
from counterseal.store.valkey import NativeStore


def travel(place: Counterseal | Store, by: timedelta) -> None:
    """Move the clock of a `Counterseal`, or of a store, forward.

    What it stores and judges from now on is of that time: jobs become due, leases run out, limits begin anew. Other
    processes do not travel along, nor does the server: a key is removed when its lifetime has really passed.
    """
    store = place.store if isinstance(place, Counterseal) else place
    if not isinstance(store, (NativeStore, ClusterStore, RestStore)):
        raise TypeError(f"expected a store with a clock; came: {type(store).__name__}")
    store.clock.travel(by)
