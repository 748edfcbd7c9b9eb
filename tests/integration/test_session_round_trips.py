"""What every call of sessions costs in round trips to Redis, counted and held against its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from counterseal.sessions import Context, Created
from counterseal.sessions.refresh_token import new_refresh_token
from counterseal.sessions.service import Sessions
from support.databases import Databases
from support.round_trips import come_to_rest, costs_of
from support.servers import Server
from support.session_rows import parts_of, set_policy
from support.sessions import KEYS, Process, process
from support.stores import store_on, travel

TRIES = 3
"""What runs beside a call only ever adds to its count."""

LATE = timedelta(seconds=11)


@dataclass
class House:
    """A process whose scripts are known, and a session in it."""

    app: Process
    server: Server
    made: Created
    token: str
    kept: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def sessions(self) -> Sessions:
        return self.app.sessions

    @property
    def id(self) -> str:
        return self.made.session_id


Step = Callable[[House], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """A call, what it costs, and what has to be done before it."""

    method: Callable[..., Any]
    what: str
    cost: int
    call: Step
    before: Step | None = None


async def five(house: House) -> None:
    for _ in range(4):
        await house.app.log_in()


async def five_of_two(house: House) -> None:
    await five(house)
    await set_policy(house.app, max_sessions=2)


async def old(house: House) -> None:
    travel(house.app.store, timedelta(minutes=2))


async def ended(house: House) -> None:
    await house.sessions.revoke(house.id)


async def empty(house: House) -> None:
    keys = house.server.execute("KEYS", "cs:*")
    house.server.execute("DEL", *keys)
    travel(house.app.store, timedelta(seconds=1))


async def empty_of_ada(house: House) -> None:
    keys = house.server.execute("KEYS", "cs:{u:ada}:*")
    house.server.execute("DEL", *keys)


async def used(house: House) -> None:
    await house.sessions.rotate(house.token)


async def stolen(house: House) -> None:
    await used(house)
    travel(house.app.store, LATE)


async def behind(house: House) -> None:
    key = KEYS.session(*parts_of(house.id))
    dumped = house.server.execute("DUMP", key)
    answer = await house.sessions.rotate(house.token)
    assert answer is not None
    house.token = answer.tokens.refresh_token
    house.server.execute("RESTORE", key, 86_400_000, dumped, "REPLACE")


async def behind_and_stolen(house: House) -> None:
    key = KEYS.session(*parts_of(house.id))
    dumped = house.server.execute("DUMP", key)
    first = await house.sessions.rotate(house.token)
    assert first is not None
    await house.sessions.rotate(first.tokens.refresh_token)
    house.server.execute("RESTORE", key, 86_400_000, dumped, "REPLACE")


async def shown(house: House) -> None:
    await house.sessions.set_totp_verified(house.id, Context.SIGNING, "r")


async def forge(house: House) -> object:
    return await house.sessions.rotate(f"v1.{house.id}." + "A" * 59)


async def invent(house: House) -> object:
    keyring = house.sessions._backing.keyring
    return await house.sessions.rotate(new_refresh_token(*parts_of(house.id), keyring).text)


async def note_within(house: House) -> None:
    async with house.app.database.begin() as connection:
        await house.sessions.set_totp_verified(house.id, Context.SIGNING, "r", within=connection)


async def take_within(house: House) -> None:
    async with house.app.database.begin() as connection:
        await house.sessions.require_step_up(house.id, Context.SIGNING, "r", within=connection)


async def nothing_written(_: Any) -> None:
    return None


CASES = [
    Case(Sessions.create, "one", 1, lambda h: h.app.log_in()),
    Case(Sessions.create, "of a new user", 1, lambda h: h.app.log_in("bob")),
    Case(Sessions.create, "one too many", 2, lambda h: h.app.log_in(), five),
    Case(Sessions.create, "in place of one", 2, lambda h: h.app.log_in(replacing=h.id), five),
    Case(Sessions.create, "in place of one, and too many", 3, lambda h: h.app.log_in(replacing=h.id), five_of_two),
    Case(Sessions.get, "a hit", 1, lambda h: h.sessions.get(h.id)),
    Case(Sessions.get, "a tombstone", 1, lambda h: h.sessions.get(h.id), ended),
    Case(Sessions.get, "nobody's", 1, lambda h: h.sessions.get("ada.none")),
    Case(Sessions.get, "no id", 0, lambda h: h.sessions.get("none")),
    Case(Sessions.get, "fresh", 2, lambda h: h.sessions.get(h.id, fresh=True)),
    Case(Sessions.get, "checked long ago", 2, lambda h: h.sessions.get(h.id), old),
    Case(Sessions.get, "of a user Redis has lost", 2, lambda h: h.sessions.get(h.id), empty_of_ada),
    Case(Sessions.get, "Redis has lost all", 3, lambda h: h.sessions.get(h.id), empty),
    Case(Sessions.authenticate, "a hit", 1, lambda h: h.sessions.authenticate(h.made.access_token)),
    Case(Sessions.authenticate, "forged", 0, lambda h: h.sessions.authenticate(h.made.access_token + "A")),
    Case(Sessions.touch, "lately used", 1, lambda h: h.sessions.touch(h.id)),
    Case(Sessions.touch, "not lately used", 2, lambda h: h.sessions.touch(h.id), old),
    Case(Sessions.rotate, "good", 1, lambda h: h.sessions.rotate(h.token)),
    Case(Sessions.rotate, "in the grace", 1, lambda h: h.sessions.rotate(h.token), used),
    Case(Sessions.rotate, "ended", 1, lambda h: h.sessions.rotate(h.token), ended),
    Case(Sessions.rotate, "no token", 0, lambda h: h.sessions.rotate("none")),
    Case(Sessions.rotate, "forged", 1, forge),
    Case(Sessions.rotate, "reused", 4, lambda h: h.sessions.rotate(h.token), stolen),
    Case(Sessions.rotate, "issued and never stored", 4, invent),
    Case(Sessions.rotate, "Redis has lost all", 3, lambda h: h.sessions.rotate(h.token), empty),
    Case(Sessions.rotate, "Redis is behind", 4, lambda h: h.sessions.rotate(h.token), behind),
    Case(Sessions.rotate, "Redis is behind, reused", 7, lambda h: h.sessions.rotate(h.token), behind_and_stolen),
    Case(Sessions.reissue, "one", 1, lambda h: h.sessions.reissue(h.id)),
    Case(Sessions.reissue, "one with more", 1, lambda h: h.sessions.reissue(h.id, also=nothing_written)),
    Case(Sessions.renew, "one", 1, lambda h: h.sessions.renew(h.id)),
    Case(Sessions.renew, "one with more", 1, lambda h: h.sessions.renew(h.id, also=nothing_written)),
    Case(Sessions.revoke, "one", 2, lambda h: h.sessions.revoke(h.id)),
    Case(Sessions.revoke, "again", 1, lambda h: h.sessions.revoke(h.id), ended),
    Case(Sessions.revoke, "nobody's", 2, lambda h: h.sessions.revoke("ada.none2")),
    Case(Sessions.revoke_others, "four", 3, lambda h: h.sessions.revoke_others(h.id), five),
    Case(Sessions.revoke_others, "none", 1, lambda h: h.sessions.revoke_others(h.id)),
    Case(Sessions.revoke_others, "with more", 2, lambda h: h.sessions.revoke_others(h.id, also=nothing_written), five),
    Case(Sessions.revoke_all, "five", 4, lambda h: h.sessions.revoke_all("ada"), five),
    Case(Sessions.revoke_all, "nobody's", 1, lambda h: h.sessions.revoke_all("nobody")),
    Case(Sessions.revoke_everybody, "once", 2, lambda h: h.sessions.revoke_everybody()),
    Case(Sessions.list, "one", 0, lambda h: h.sessions.list("ada")),
    Case(Sessions.set_totp_verified, "one", 1, shown),
    Case(Sessions.set_totp_verified, "within", 0, note_within),
    Case(Sessions.require_step_up, "there", 1, lambda h: h.sessions.require_step_up(h.id, Context.SIGNING, "r"), shown),
    Case(Sessions.require_step_up, "not there", 0, lambda h: h.sessions.require_step_up(h.id, Context.LOGIN)),
    Case(Sessions.require_step_up, "within", 0, take_within, shown),
    Case(Sessions.cleanup_expired, "some", 0, lambda h: h.sessions.cleanup_expired()),
    Case(Sessions.close, "a use to write", 0, lambda h: h.sessions.close()),
]  # fmt: skip


@asynccontextmanager
async def open_house(server: Server, databases: Databases, folder: Path) -> AsyncIterator[House]:
    async with (
        databases.place("sqlite", folder) as place,
        store_on(server) as store,
        place.database() as database,
        process(store, database, relay=False) as app,
    ):
        server.flush()
        await come_to_rest(store)
        made = await app.log_in("ada")
        await app.sessions.get(made.session_id)
        yield House(app, server, made, made.refresh_token)


async def warm(house: House, case: Case) -> None:
    """Have the server know every script of a call, on another session and user."""
    sessions = house.sessions
    made = [await house.app.log_in("warm") for _ in range(2)]
    await sessions.get(made[0].session_id, fresh=True)
    await sessions.rotate(made[0].refresh_token)
    await sessions.set_totp_verified(made[0].session_id, Context.LOGIN)
    await sessions.revoke_others(made[0].session_id)
    await sessions.revoke(made[0].session_id)
    await sessions.revoke_all("warm")
    if case.method is not Sessions.revoke_everybody:
        await house.app.sessions._backing.copies.raise_global(0, house.app.store.now_ms())


async def counted(house: House, case: Case) -> int:
    await warm(house, case)
    if case.before is not None:
        await case.before(house)
    before = house.app.store.counts.batches
    await case.call(house)
    return house.app.store.counts.batches - before


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method.__name__} {case.what}")
async def test_a_call_costs_what_its_docstring_says(
    valkey: Server, databases: Databases, tmp_path: Path, case: Case
) -> None:
    costs: list[int] = []
    while len(costs) < TRIES and case.cost not in costs:
        async with open_house(valkey, databases, tmp_path / f"data{len(costs)}") as house:
            costs.append(await counted(house, case))
    assert case.cost == min(costs)
    stated, most = said_of(case.method)
    assert case.cost in stated or (most is not None and case.cost <= most)


def test_every_public_call_says_what_it_costs_and_is_counted_here() -> None:
    calls = {
        name: member
        for name, member in vars(Sessions).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_")
    }
    assert len(calls) > 12
    assert set(calls) == {case.method.__name__ for case in CASES}
    assert [name for name, call in calls.items() if said_of(call) == (set(), None)] == []


def said_of(method: Callable[..., Any]) -> tuple[set[int], int | None]:
    """What a docstring says of the cost; `Costs as x` is what that of `x` says."""
    other = re.search(r"Costs as `(\w+)`", method.__doc__ or "")
    exact, most = costs_of(method)
    if other is None:
        return exact, most
    exact_there, most_there = costs_of(getattr(Sessions, other[1]))
    return exact | exact_there, most if most_there is None else max(most or 0, most_there)
