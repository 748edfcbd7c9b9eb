"""Processes killed between any two steps of what they do with sessions: what ended stays, and all can be repeated."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from counterseal.core.tokens import hash_token
from counterseal.sessions import SessionReuseDetected
from counterseal.sessions.session import Created
from support.databases import Place
from support.forking import start_script
from support.processes import kill_process
from support.servers import Server
from support.session_faults import (
    FORGIVING,
    Removable,
    is_dead,
    later,
    live_copies,
    processes,
    removable,
    rows,
)
from support.sessions import KEYS, Process
from support.waiting import eventually

PROGRAM = Path(__file__).with_name("session_victim.py")
MOST_STEPS = {
    "revoke": 6,
    "revoke_others": 7,
    "revoke_all": 8,
    "rotate": 5,
    "rotate_late": 5,
    "reissue": 5,
    "create": 8,
}


@pytest.fixture
async def apps(valkey: Server, place: Place) -> AsyncIterator[list[Process]]:
    """Two processes that live on."""
    async with processes(valkey, place) as apps:
        yield apps


@dataclass
class Victim:
    """What a killed process was about to do, and with what."""

    step: str | None
    made: Created
    kept: Created


async def kill_everywhere(
    apps: list[Process], server: Server, place: Place, folder: Path, *operations: str
) -> dict[str, list[Victim]]:
    """Let processes die before each step of some operations, one after another, and the last one after all steps."""
    pairs = {operation: await prepare(apps, operation) for operation in operations}
    subjects = {
        operation: [
            {
                "user_id": made.session.user_id,
                "session_id": made.session_id,
                "refresh_token": made.refresh_token,
                "kept_id": kept.session_id,
            }
            for made, kept in pairs[operation]
        ]
        for operation in operations
    }
    plan = write_plan(folder, server, place, subjects)
    log = folder / "victim.log"
    program = start_script(PROGRAM, [str(plan)], log, folder)
    try:
        await eventually(lambda: program.poll() is not None, within=120)
    finally:
        kill_process(program)
    told = log.read_text()
    assert program.returncode == 0, told[-3000:]
    victims: dict[str, list[Victim]] = {operation: [] for operation in operations}
    for line in told.splitlines():
        if line.startswith("{"):
            one = json.loads(line)
            made, kept = pairs[one["operation"]][one["number"]]
            victims[one["operation"]].append(Victim(one["step"], made, kept))
    for operation, found in victims.items():
        assert found[-1].step is None, f"{operation} has more steps than there are sessions"
        assert len(found) >= 4, operation
    return victims


async def prepare(apps: list[Process], operation: str) -> list[tuple[Created, Created]]:
    """Two sessions for each process that dies."""
    users = [f"{operation}-{number}" for number in range(MOST_STEPS[operation])]
    return [(await apps[0].log_in(user), await apps[1].log_in(user)) for user in users]


def write_plan(
    folder: Path, server: Server, place: Place, subjects: dict[str, list[dict[str, str]]], **more: str
) -> Path:
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "redis": server.url,
                "kind": place.kind,
                "data_dir": str(place.data_dir),
                "database": place.url,
                "subjects": subjects,
                **more,
            }
        )
    )
    plan.chmod(0o600)
    return plan


async def test_a_process_killed_while_it_revokes_leaves_no_ended_session_alive(
    apps: list[Process], valkey: Server, place: Place, tmp_path: Path
) -> None:
    operations = ("revoke", "revoke_others", "revoke_all")
    killed = await kill_everywhere(apps, valkey, place, tmp_path, *operations)
    for operation, victim in ((name, victim) for name in operations for victim in killed[name]):
        made, kept = victim.made, victim.kept
        where = f"{operation}, {victim.step}"
        row = (await rows(apps[0].database))[made.session_id]
        for app in apps:
            found = await app.sessions.get(made.session_id)
            assert found is None or row.state == "active", where
        if victim.step is None:
            assert row.state == "revoked", where
        match operation:
            case "revoke":
                await apps[1].sessions.revoke(made.session_id)
            case "revoke_others":
                await apps[1].sessions.revoke_others(kept.session_id)
            case _:
                await apps[1].sessions.revoke_all(made.session.user_id)
        assert (await rows(apps[0].database))[made.session_id].state == "revoked", where
        for app in apps:
            assert await is_dead(app, made.session_id, made.access_token, made.refresh_token), where
            assert (await app.sessions.get(kept.session_id) is not None) == (operation != "revoke_all"), where


async def test_a_process_killed_while_it_refreshes_leaves_the_client_a_token_that_is_good(
    apps: list[Process], valkey: Server, place: Place, tmp_path: Path
) -> None:
    killed = await kill_everywhere(apps, valkey, place, tmp_path, "rotate", "reissue", "rotate_late")
    for victim in killed["rotate"]:
        made = victim.made
        for app in apps:
            assert await app.sessions.get(made.session_id) is not None, victim.step
        repeated = [await app.sessions.rotate(made.refresh_token) for app in apps]
        tokens = {rotated and rotated.tokens.refresh_token for rotated in repeated}
        assert len(tokens) == 1, victim.step
        (token,) = tokens
        assert token is not None, victim.step
        assert await apps[1].sessions.rotate(token) is not None, victim.step
    for victim in killed["reissue"]:
        reissued = await apps[1].sessions.reissue(victim.made.session_id)
        assert reissued is not None, victim.step
        assert await apps[0].sessions.rotate(reissued.tokens.refresh_token) is not None, victim.step
    assert [app.told(SessionReuseDetected) for app in apps] == [[], []]
    later(apps, timedelta(seconds=11))
    good = 0
    for victim in killed["rotate_late"]:
        made = victim.made
        row = (await rows(apps[0].database))[made.session_id]
        rotated = await apps[1].sessions.rotate(made.refresh_token)
        if row.rt_hash == hash_token(made.refresh_token):
            good += 1
            assert rotated is not None, victim.step
            assert await apps[0].sessions.rotate(rotated.tokens.refresh_token) is not None, victim.step
        else:  # who loses the answer for so long logs in again
            assert rotated is None, victim.step
            for app in apps:
                assert await app.sessions.get(made.session_id) is None, victim.step
    assert 0 < good < len(killed["rotate_late"])


async def test_a_process_killed_while_somebody_logs_in_leaves_five_sessions_in_both_stores(
    apps: list[Process], valkey: Server, place: Place, tmp_path: Path
) -> None:
    for number in range(MOST_STEPS["create"]):
        for _ in range(3):
            await apps[0].log_in(f"create-{number}")
    evicted = 0
    for victim in (await kill_everywhere(apps, valkey, place, tmp_path, "create"))["create"]:
        user_id = victim.made.session.user_id
        of_user = {
            name: row for name, row in (await rows(apps[0].database)).items() if row.user_id == user_id
        }
        active = [name for name, row in of_user.items() if row.state == "active"]
        revoked = [name for name, row in of_user.items() if row.state == "revoked"]
        assert len(active) == 5, victim.step
        evicted += len(revoked)
        for app in apps:
            for name in revoked:  # the outbox tells Redis what the killed process did not
                await eventually(partial(is_gone, app, name), within=20)
            for name in active:
                assert await app.sessions.get(name) is not None, victim.step
        assert live_copies(valkey, user_id) == 5, victim.step
        again = await apps[1].log_in(user_id)
        assert await apps[0].sessions.rotate(again.refresh_token) is not None, victim.step
        assert len(await apps[0].sessions.list(user_id)) == live_copies(valkey, user_id) == 5, victim.step
    assert evicted


async def is_gone(app: Process, session_id: str) -> bool:
    return await app.sessions.get(session_id) is None


async def test_a_revocation_that_was_accepted_without_the_database_outlives_its_process_and_its_redis(
    servers: Callable[..., Server], databases: Any, tmp_path: Path
) -> None:
    server = servers(appendonly=True, config=["appendfsync everysec"])
    lost: Removable
    async with removable(databases, tmp_path / "data") as lost:
        async with processes(server, lost.through, 1, options=FORGIVING) as apps:
            made = [await apps[0].log_in(user) for user in ("ada", "bob", "cy", "cy")]
        subjects = [
            {"operation": operation, "user_id": one.session.user_id, "session_id": one.session_id,
             "kept_id": made[3].session_id}
            for operation, one in zip(("revoke", "revoke_all", "revoke_others"), made, strict=False)
        ]  # fmt: skip
        go = tmp_path / "go"
        plan = write_plan(tmp_path, server, lost.through, {"pending": subjects}, go=str(go))
        log = tmp_path / "victim.log"
        victim = start_script(PROGRAM, [str(plan)], log, tmp_path)
        try:
            await eventually(lambda: "open" in log.read_text(), within=30)
            lost.take_away()
            go.touch()
            await eventually(lambda: "accepted" in log.read_text(), within=30)
        finally:
            kill_process(victim)
        server.kill()
        await lost.give_back()
        server.start()
        async with processes(server, lost.through, 2, options=FORGIVING) as apps:
            for app in apps:
                for one in made[:3]:
                    assert await is_dead(app, one.session_id, one.access_token, one.refresh_token)
                assert await app.sessions.get(made[3].session_id) is not None
            found = await rows(apps[0].database)
            assert [found[one.session_id].state for one in made] == ["revoked"] * 3 + ["active"]
            assert server.execute("XLEN", KEYS.sessions_pending()) == 0
