"""Tour 2: keep what is read often.

The cache has kinds, each with its own lifetime. A value is a JSON object and comes back exactly as it went in.
"""

from datetime import timedelta

import pytest

from counterseal import CodecError, Counterseal, Kind


async def test_set_get_and_invalidate(seal: Counterseal) -> None:
    profiles = seal.cache.user_profiles
    assert await profiles.get("ada") is None  # absence is None, never an error

    await profiles.set("ada", {"name": "Ada", "id": 12345678901234567890, "score": 1.0})
    assert await profiles.get("ada") == {"name": "Ada", "id": 12345678901234567890, "score": 1.0}

    await profiles.invalidate("ada")
    assert await profiles.get("ada") is None


async def test_clearing_costs_the_same_however_much_there_is(seal: Counterseal) -> None:
    for number in range(100):
        await seal.cache.documents.set(str(number), {"number": number})

    await seal.cache.clear("document")  # or clear() for every kind

    assert await seal.cache.documents.get("7") is None


async def test_what_is_not_json_is_refused_with_the_place(seal: Counterseal) -> None:
    with pytest.raises(CodecError, match=r"at \$\.tags"):
        await seal.cache.documents.set(
            "1", {"title": "Lease", "tags": ("a", "b")}
        )  # a tuple would come back a list


async def test_an_application_adds_a_kind_in_one_line(seal: Counterseal) -> None:
    async with Counterseal.open(seal.settings, kinds=[Kind("teams", timedelta(minutes=10))]) as own:
        await own.cache.kind("teams").set("t1", {"members": 3})
        assert await own.cache.kind("teams").get("t1") == {"members": 3}
