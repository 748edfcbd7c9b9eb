"""Many values and large ones, over every connection."""

from __future__ import annotations

from datetime import timedelta

import pytest

from counterseal.cache.kind import MAX_VALUE_BYTES, Kind
from counterseal.cache.service import Cache
from counterseal.core.errors import ValueTooLarge
from counterseal.store.base import Store
from counterseal.store.keys import Keys

KEYS = Keys()
MINUTE = timedelta(minutes=1)
MANY = 5_000


async def test_five_thousand_values_are_written_read_and_forgotten_together(store: Store) -> None:
    async with Cache(store, keys=KEYS) as cache:
        values = {f"{{{number}}} é": {"n": number} for number in range(MANY)}
        await cache.documents.set_many(values)
        assert await cache.documents.get_many([*values, "absent"]) == values
        last = list(values)[-1:]
        await cache.documents.set_many({last[0]: {"n": 0}}, tags=["t"])
        assert (await cache.documents.get_many(values))[last[0]] == {"n": 0}
        assert await cache.documents.invalidate_many([*list(values)[:1000], "absent"]) == 1000
        assert len(await cache.documents.get_many(values)) == MANY - 1000
        await cache.invalidate_tags("t")
        assert len(await cache.documents.get_many(values)) == MANY - 1001
        assert await cache.documents.get_many([]) == {}
        await cache.documents.set_many({})
        assert await cache.documents.invalidate_many([]) == 0


async def test_each_of_many_ends_at_a_time_of_its_own_within_a_tenth(store: Store) -> None:
    async with Cache(store, keys=KEYS) as cache:
        await cache.documents.set_many({str(number): {"n": number} for number in range(500)})
        keys = [KEYS.cache_value("document", str(number)) for number in range(500)]
        left = await store.pipeline([("PTTL", key) for key in keys])
        lifetimes = [ms - 120_000 for ms in left if isinstance(ms, int)]
    assert len(lifetimes) == 500
    assert all(0.9 * 300_000 - 10_000 < ms <= 1.1 * 300_000 for ms in lifetimes)
    assert min(lifetimes) < 0.95 * 300_000
    assert max(lifetimes) > 1.05 * 300_000
    assert len({ms // 1000 for ms in lifetimes}) > 30


async def test_a_value_of_a_megabyte_is_kept_whole_or_refused_by_its_kind(store: Store) -> None:
    text = "é" * (MAX_VALUE_BYTES // 2 - 20)
    wide = Kind("wide", MINUTE, max_value_bytes=4 * MAX_VALUE_BYTES)
    async with Cache(store, keys=KEYS, kinds=[wide]) as cache:
        await cache.documents.set("d", {"text": text})
        assert await cache.documents.get("d") == {"text": text}
        larger = {"text": text + "x" * 100}
        with pytest.raises(
            ValueTooLarge, match="document takes values of at most 1048576 bytes of JSON; this one"
        ):
            await cache.documents.set("d", larger)
        with pytest.raises(ValueTooLarge):
            await cache.documents.set_many({"new": {"n": 1}, "e": larger})
        assert await cache.documents.get_many(["d", "new", "e"]) == {"d": {"text": text}}
        much = {"text": text * 3, "list": list(range(1000))}
        await cache.of(wide).set("w", much)
        assert await cache.of(wide).get("w") == much
