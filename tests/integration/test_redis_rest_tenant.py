"""The user of the Redis REST server: kept inside one database, by the server itself, also inside scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hiredis import ReplyError

from counterseal.core.errors import CommandError, ConfigurationError
from counterseal.store.base import Store
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import Target
from counterseal.store.valkey import NativeStore
from counterseal.upstash.open import ConfinedRoute
from counterseal.upstash.policy import SESSION, SUBCOMMANDS, TREATMENTS
from counterseal.upstash.tenant import Credentials, confine
from support.client import Client
from support.gateway import Gateway, gateway_for
from support.servers import Server
from support.stores import native_store, store_on
from support.waiting import eventually

pytestmark = pytest.mark.leaves_keys("the keys are the clients' own, as on the service")

DATABASE = 7


@dataclass
class Tenant:
    """A confined user with a store of its own."""

    server: Server
    admin: Store
    store: Store
    credentials: Credentials

    async def refused(self, *arguments: str | int) -> str:
        with pytest.raises(CommandError) as refusal:
            await self.store.command(*arguments)
        return str(refusal.value)


@asynccontextmanager
async def confined(server: Server) -> AsyncIterator[Tenant]:
    async with store_on(server) as admin:
        credentials = await confine(admin, database=DATABASE)
        try:
            route = ConfinedRoute(FixedRoute(Target(path=str(server.socket))), credentials, admin=admin)
            patient = LinkOptions(command_timeout=timedelta(seconds=5), connect_timeout=timedelta(seconds=5))
            async with NativeStore(route, patient) as store:
                yield Tenant(server, admin, store, credentials)
        finally:
            await admin.command("ACL", "DELUSER", credentials.username)


@pytest.fixture(params=["valkey", "redis7"])
async def tenant(request: pytest.FixtureRequest) -> AsyncIterator[Tenant]:
    async with confined(request.getfixturevalue(request.param)) as tenant:
        yield tenant


def in_database(server: Server, database: int, *arguments: str) -> object:
    client = Client(server.socket)
    try:
        client.execute("SELECT", database)
        return client.execute(*arguments)
    finally:
        client.close()


async def test_valkey_has_a_rule_for_databases_and_redis_is_confined_without_copy(tenant: Tenant) -> None:
    assert tenant.credentials.may_copy is ("valkey" in tenant.server.program.name)
    assert tenant.credentials.username == f"counterseal-rest-{DATABASE}"
    assert tenant.credentials.password.get_secret_value() not in repr(tenant.credentials)


async def test_the_user_works_in_its_own_database(tenant: Tenant) -> None:
    assert await tenant.store.command("SET", "k", "v") == b"OK"
    assert in_database(tenant.server, DATABASE, "GET", "k") == b"v"
    assert await tenant.store.transaction([("INCR", "n"), ("GET", "k")]) == [1, b"v"]
    assert await tenant.store.command("EVAL", "return redis.call('GET', KEYS[1])", 1, "k") == b"v"
    async with tenant.store.subscribe("c") as messages:
        await tenant.store.command("PUBLISH", "c", "x")
        assert (await anext(messages)).data == b"x"


ESCAPES = [
    "redis.call('SELECT', 0)",
    "redis.call('SELECT', '00')",
    "redis.call('FLUSHALL')",
    "redis.call('SWAPDB', 0, 7)",
    "redis.call('MOVE', 'k', 0)",
    "redis.call('COPY', 'k', 'stolen', 'DB', 0)",
    "redis.call('CONFIG', 'GET', 'dir')",
    "redis.call('ACL', 'SETUSER', 'x')",
    "redis.call('INFO')",
    "redis.call('OBJECT', 'ENCODING', 'k')",
    "redis.call('CLIENT', 'LIST')",
]


@pytest.mark.parametrize("call", ESCAPES)
async def test_no_script_leaves_the_database(tenant: Tenant, call: str) -> None:
    in_database(tenant.server, 0, "SET", "kept", "v")
    await tenant.store.command("SET", "k", "v")
    for script in (f"return {call}", f"return {call.replace('.call', '.pcall')}"):
        await tenant.refused("EVAL", script, 0)
    assert await tenant.store.command("GET", "k") == b"v"
    assert in_database(tenant.server, 0, "KEYS", "*") == [b"kept"]


async def test_no_function_leaves_the_database(tenant: Tenant) -> None:
    code = "#!lua name=l\nredis.register_function('f', function() return redis.call('SELECT', 0) end)"
    await tenant.store.command("FUNCTION", "LOAD", "REPLACE", code)
    text = await tenant.refused("FCALL", "f", 0)
    assert "permission" in text or "can't run this command" in text, text
    await tenant.store.command("FUNCTION", "FLUSH")


async def open_commands(tenant: Tenant) -> set[str]:
    """What the user may run, of all that the server knows, each tried with as many arguments as it takes."""
    client = Client(tenant.server.socket)
    client.execute("SELECT", DATABASE)
    every: list[bytes] = client.execute("COMMAND", "LIST")
    containers = {name.partition(b"|")[0] for name in every if b"|" in name}
    names = [name for name in every if name not in containers]
    infos = client.execute("COMMAND", "INFO", *names)
    trials = [
        ("ACL", "DRYRUN", tenant.credentials.username, *name.decode().split("|"), *["1"] * 9)[
            : 3 + max(abs(info[1]), 1)
        ]
        for name, info in zip(names, infos, strict=True)
    ]
    replies = client.pipeline(trials)
    client.close()
    return {name.decode().upper() for name, reply in zip(names, replies, strict=True) if reply == b"OK"}


async def test_nothing_that_the_server_calls_administrative_is_open(tenant: Tenant) -> None:
    found = await open_commands(tenant)
    for category in ("admin", "dangerous"):
        closed = {name.decode().upper() for name in tenant.server.execute("ACL", "CAT", category)}
        assert found & closed <= {"KEYS", "FLUSHDB", "RESTORE"}, category


async def test_what_is_open_is_what_is_served(tenant: Tenant) -> None:
    names: list[bytes] = tenant.server.execute("COMMAND", "LIST")
    known = {name.decode().upper() for name in names}
    found = await open_commands(tenant)
    own = {"CONFIG", "INFO", "COMMAND", "COPY", "SELECT", "FLUSHALL"}
    served = {name for name in TREATMENTS if name not in SESSION | SUBCOMMANDS.keys() | own} & known
    assert served - {"XGROUP", "XINFO"} <= found
    plain = {name for name in found if "|" not in name}
    assert plain - served <= {
        "AUTH", "HELLO", "QUIT", "MULTI", "EXEC", "DISCARD", "SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE",
        "SELECT", "COPY", "RESET",
    }  # fmt: skip
    assert {name for name in found if "|" in name} <= {
        *(f"{name}|{word}" for name, words in SUBCOMMANDS.items() for word in words),
        *(f"CLIENT|{word}" for word in ("SETNAME", "SETINFO", "GETNAME", "ID")),
        *(name for name in known if name.startswith(("XGROUP|", "XINFO|"))),
    }


async def test_the_gateway_serves_confined_users_all_that_the_policy_opens(tenant: Tenant) -> None:
    async with confined_gateway(tenant) as gateway, gateway.client() as http:

        async def run(*arguments: str | int) -> object:
            answer = await http.post(gateway.url, json=arguments)
            assert answer.status_code == 200, answer.text
            return answer.json()["result"]

        assert await run("SET", "a", "1", "PX", 60_000) == "OK"
        assert await run("SET", "taken", "2") == "OK"
        assert await run("COPY", "a", "b") == 1
        assert await run("COPY", "a", "taken") == 0
        assert await run("COPY", "a", "taken", "DB", 0, "REPLACE") == 1
        assert await run("COPY", "none", "c") == 0
        assert await run("MGET", "b", "taken") == ["1", "1"]
        assert 0 < int(str(await run("PTTL", "b"))) <= 60_000
        info = str(await run("INFO"))
        assert "db0:keys=3" in info
        assert "config_file" not in info
        assert await run("CONFIG", "GET", "notify-keyspace-events") == ["notify-keyspace-events", ""]
        assert await run("SCRIPT", "EXISTS", "x") == [0]
        assert await run("FUNCTION", "LIST") == []
        assert await run("MEMORY", "USAGE", "a")
        assert await run("PUBSUB", "NUMPAT") == 0
        assert await run("ACL", "CAT")
        assert await run("WAIT", 0, 0) == 0
        assert await run("FLUSHALL") == "OK"
        assert await run("DBSIZE") == 0


@asynccontextmanager
async def confined_gateway(tenant: Tenant) -> AsyncIterator[Gateway]:
    async with gateway_for(
        tenant.store,
        admin=tenant.admin,
        database=DATABASE,
        may_copy=tenant.credentials.may_copy,
    ) as gateway:
        yield gateway


async def test_a_refusal_by_the_server_does_not_name_the_user(tenant: Tenant) -> None:
    async with gateway_for(tenant.store) as gateway, gateway.client() as http:
        answer = await http.post(gateway.url, json=["INFO"])
        assert answer.json() == {
            "error": "NOPERM this user has no permissions to run the 'info' command or its subcommand"
        }
        answer = await http.post(gateway.url, json=["EVAL", "return redis.call('SELECT', 0)", 0])
        assert answer.status_code == 400
        assert "counterseal" not in answer.text


async def test_confining_again_keeps_the_passwords_of_others_and_drops_the_oldest(valkey: Server) -> None:
    async with store_on(valkey) as admin:
        made = [await confine(admin, database=DATABASE) for _ in range(20)]
        username = made[0].username

        def accepted(credentials: Credentials) -> bool:
            return _logs_in(valkey, username, credentials.password.get_secret_value())

        assert [accepted(credentials) for credentials in made] == [False] * 4 + [True] * 16
        again = await confine(admin, database=DATABASE, credentials=made[-1])
        assert again == made[-1]
        assert accepted(made[-1])
        await admin.command("ACL", "DELUSER", username)


def _logs_in(server: Server, user: str, password: str) -> bool:
    client = Client(server.socket, user=user, password=password)
    try:
        client.execute("PING")
    except ReplyError as refusal:
        return not str(refusal).startswith("WRONGPASS")
    finally:
        client.close()
    return True


async def test_an_admin_who_may_not_make_users_is_told_so(servers: Callable[..., Server]) -> None:
    server = servers(acl=["weak on >pw ~* &* +@all -acl"])
    async with native_store(server, user="weak", password="pw") as admin:
        with pytest.raises(ConfigurationError, match="expected a Redis whose user may run ACL SETUSER"):
            await confine(admin, database=1)


async def test_after_a_restart_the_forgotten_user_is_made_again(servers: Callable[..., Server]) -> None:
    server = servers()
    async with confined(server) as tenant, confined_gateway(tenant) as gateway, gateway.client() as http:
        assert (await http.get(f"{gateway.url}/ping")).json() == {"result": "PONG"}
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not tenant.store.available)
        down = await http.get(f"{gateway.url}/ping")
        assert (down.status_code, down.json()) == (503, {"error": "ERR the database is not available"})
        await asyncio.to_thread(server.start)
        await eventually(lambda: tenant.store.available, within=15)  # without any request
        assert (await http.get(f"{gateway.url}/ping")).json() == {"result": "PONG"}
