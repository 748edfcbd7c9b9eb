"""Tour 2: keep what is read often.

The cache has kinds, each with its own lifetime. A value is a JSON object, or of a type that you name, and comes back
exactly as it went in.
"""

import asyncio
from datetime import timedelta

import msgspec
import pytest

from counterseal import CodecError, Counterseal, Kind


class Team(msgspec.Struct, frozen=True):
    name: str
    members: tuple[str, ...]


TEAM = Kind("team", timedelta(minutes=10), type=Team)


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


async def test_what_is_missing_is_loaded_once_however_many_ask(seal: Counterseal) -> None:
    loads: list[str] = []

    async def load(document_id: str) -> dict[str, str]:
        loads.append(document_id)
        return {"title": "Lease"}

    documents = seal.cache.documents
    answers = await asyncio.gather(*(documents.get_or_load("1", load) for _ in range(100)))

    assert answers == [{"title": "Lease"}] * 100
    assert loads == ["1"]
    found = await documents.find_or_load("1", load)
    assert (found.source, found.value) == ("hit", {"title": "Lease"})


async def test_everything_of_a_domain_is_forgotten_in_one_round_trip(seal: Counterseal) -> None:
    await seal.cache.domain_settings.set("a.example", {"theme": "dark"})
    await seal.cache.documents.set("1", {"title": "Lease"}, tags=["domain:a.example"])

    await seal.cache.invalidate_domain("a.example")

    assert await seal.cache.domain_settings.get("a.example") is None
    assert await seal.cache.documents.get("1") is None


async def test_an_application_adds_a_kind_in_one_line(seal: Counterseal) -> None:
    async with Counterseal.open(seal.settings, kinds=[TEAM]) as own:
        teams = own.cache.of(TEAM)  # typed
        await teams.set("t1", Team("Legal", ("ada", "bob")))
        assert await teams.get("t1") == Team("Legal", ("ada", "bob"))


async def test_a_function_whose_answers_are_kept(seal: Counterseal) -> None:
    @seal.cache.user_profiles.cached
    async def profile(user_id: str) -> dict[str, str]:
        return {"name": user_id.title()}

    assert await profile("ada") == {"name": "Ada"}
    assert await seal.cache.user_profiles.get("ada") == {"name": "Ada"}
    assert await profile.invalidate("ada")
