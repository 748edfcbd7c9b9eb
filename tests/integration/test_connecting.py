"""Connecting in vain: what each wrong setting and each wrong server gets, in one sentence, with nothing left behind."""

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from counterseal.core.errors import ConfigurationError, CountersealError, StoreTimeout, StoreUnavailable
from counterseal.core.settings import Settings
from counterseal.store.open import open_store
from support.certificates import Flavour
from support.cluster import Cluster
from support.gateway import gateway_on
from support.ports import free_port
from support.relay import TlsRelay
from support.sentinel import SentinelGroup
from support.servers import Server
from support.waiting import eventually

PATIENT = {
    "COUNTERSEAL_CONNECT_TIMEOUT": "5s",
    "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
    "COUNTERSEAL_REST_TIMEOUT": "5s",
}
SOUGHT = secrets.token_urlsafe(12)
"""A password that must not show."""


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server with a password."""
    with Server(password=secrets.token_urlsafe(12)) as server:
        yield server


def sockets() -> int:
    """How many sockets this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += str(entry.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


async def refusal(expected: type[CountersealError], **variables: str) -> str:
    """Open a store in vain: the error's text, after what must be true of every such error."""
    settings = Settings.load({**PATIENT, **variables})
    tasks, before = asyncio.all_tasks(), sockets()
    store = open_store(settings)
    with pytest.raises(CountersealError) as caught:
        await store.open()
    text = str(caught.value)
    assert type(caught.value) is expected, repr(caught.value)
    assert len(text) < 250
    for word in ("\n", "Traceback", "Error(", "errno", "0x", "127.0.0.1", SOUGHT):
        assert word not in text
    if expected is ConfigurationError:
        name, _, rest = text.partition(": ")
        assert name in variables
        assert rest.startswith("expected ")
    assert not store.available
    await eventually(lambda: asyncio.all_tasks() - tasks == set())
    del store
    gc.collect()  # a transport that nobody closed warns here
    await eventually(lambda: sockets() == before)
    return text


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[str]:
    """A server that gives these answers, one to each command, then ends the connection: its `REDIS_URL`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for answer in answers:
                await reader.readuntil(b"\r\n")
                writer.write(answer)
                await writer.drain()
            await reader.read(1)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield f"redis://:{SOUGHT}@127.0.0.1:{listener.sockets[0].getsockname()[1]}"


def hello(*fields: tuple[bytes, bytes]) -> bytes:
    """The answer to HELLO 2."""
    words = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for field in fields for word in field)
    return b"*%d\r\n%b" % (2 * len(fields), words)


# -- who one is ------------------------------------------------------------------------------------------------------


async def test_a_wrong_password(locked: Server):
    url = f"redis://:{SOUGHT}@127.0.0.1:{locked.port}"
    assert await refusal(ConfigurationError, REDIS_URL=url) == (
        "REDIS_URL: expected a user and password that the server accepts; it refused them"
    )


async def test_an_unknown_user(locked: Server):
    url = f"redis://nobody:{locked.password}@127.0.0.1:{locked.port}"
    assert "user and password that the server accepts" in await refusal(ConfigurationError, REDIS_URL=url)


async def test_no_password_where_one_is_set(locked: Server):
    text = await refusal(ConfigurationError, REDIS_URL=f"redis://127.0.0.1:{locked.port}")
    assert text == "REDIS_URL: expected the server's password; none is given"


async def test_a_password_where_none_is_set_is_no_hindrance(valkey: Server):
    url = f"redis://:{SOUGHT}@127.0.0.1:{valkey.port}"
    async with open_store(Settings.load({**PATIENT, "REDIS_URL": url})) as store:
        assert await store.command("ECHO", "x") == b"x"


async def test_a_user_without_a_right_that_every_store_needs(servers: Callable[..., Server]):
    server = servers(acl=[f"app on >{SOUGHT} ~* &* +@all -time"])
    text = await refusal(ConfigurationError, REDIS_URL=f"redis://app:{SOUGHT}@127.0.0.1:{server.port}")
    assert text == "REDIS_URL: expected a user who may run TIME; the server answered NOPERM"


# -- where it is -----------------------------------------------------------------------------------------------------


async def test_a_port_on_which_nobody_listens():
    text = await refusal(StoreUnavailable, REDIS_URL=f"redis://:{SOUGHT}@127.0.0.1:{free_port()}")
    assert text == "Redis can't be reached: connection refused"


async def test_a_name_with_several_addresses_of_which_none_answers():
    text = await refusal(StoreUnavailable, REDIS_URL=f"redis://:{SOUGHT}@localhost:{free_port()}")
    assert text.removeprefix("Redis can't be reached: ") in (
        "connection refused",
        "none of its addresses answers",
    )


async def test_a_host_that_nobody_knows():
    text = await refusal(StoreUnavailable, REDIS_URL=f"redis://:{SOUGHT}@no-such-host.invalid:6379")
    assert text == "Redis can't be reached: the host name can't be resolved"


async def test_a_socket_that_does_not_exist(tmp_path: Path):
    text = await refusal(StoreUnavailable, REDIS_URL=f"unix://:{SOUGHT}@{tmp_path}/none.sock")
    assert text == "Redis can't be reached: no such file or directory"


async def test_a_file_that_is_no_socket(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "can't be reached" in await refusal(StoreUnavailable, REDIS_URL=f"unix://{tmp_path}/file")


async def test_a_server_that_does_not_answer(servers: Callable[..., Server]):
    server = servers()
    server.freeze()
    text = await refusal(StoreTimeout, REDIS_URL=server.url, COUNTERSEAL_COMMAND_TIMEOUT="60ms")
    assert text == "Redis did not answer within 60 ms"
    server.thaw()


async def test_no_node_of_a_cluster():
    nodes = ",".join(f"127.0.0.1:{free_port()}" for _ in range(2))
    text = await refusal(StoreUnavailable, REDIS_URL=f"redis+cluster://:{SOUGHT}@{nodes}")
    assert text == "no node of the Cluster can be reached"


async def test_no_sentinel():
    url = f"redis+sentinel://:{SOUGHT}@127.0.0.1:{free_port()},127.0.0.1:{free_port()}/main"
    assert await refusal(StoreUnavailable, REDIS_URL=url) == "no sentinel can be reached"


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "trusted", "words"),
    [
        ("expired", True, "certificate has expired"),
        ("wrong_host", True, "not valid for 'localhost'"),
        ("good", False, "unable to get local issuer certificate"),
    ],
)
async def test_a_certificate_that_must_be_refused(
    valkey: Server, certificate: Flavour, trusted: bool, words: str
):
    async with TlsRelay(valkey, certificate=certificate) as relay:
        option = f"?ssl_ca_certs={relay.ca_file}" if trusted else ""
        text = await refusal(
            ConfigurationError, REDIS_URL=f"rediss://:{SOUGHT}@localhost:{relay.port}{option}"
        )
        assert "expected a TLS server with a valid certificate" in text
        assert words in text
        await eventually(lambda: relay.open_connections == 0)


async def test_tls_to_a_server_without_it(valkey: Server):
    url = f"rediss://:{SOUGHT}@localhost:{valkey.port}"
    store = open_store(Settings.load({"REDIS_URL": url, "COUNTERSEAL_CONNECT_TIMEOUT": "200ms"}))
    # Chance decides which: the bytes of a handshake may look like a command, and are answered, or like part of one.
    with pytest.raises((ConfigurationError, StoreTimeout), match="TLS"):
        await store.open()


async def test_no_tls_to_a_server_that_wants_it(valkey: Server):
    async with TlsRelay(valkey) as relay:
        text = await refusal(StoreUnavailable, REDIS_URL=f"redis://:{SOUGHT}@127.0.0.1:{relay.port}")
        assert text == (
            "Redis ended the connection without a word; if it expects TLS, REDIS_URL begins with rediss://"
        )


async def test_a_file_of_certificates_that_does_not_exist(tmp_path: Path):
    url = f"rediss://:{SOUGHT}@localhost:7000?ssl_ca_certs={tmp_path}/none.pem"
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL: expected readable certificate files"):
        open_store(Settings.load({"REDIS_URL": url}))


# -- what it is ------------------------------------------------------------------------------------------------------


async def test_a_sentinel_taken_for_a_server(sentinels: SentinelGroup):
    text = await refusal(ConfigurationError, REDIS_URL=f"redis://127.0.0.1:{sentinels.sentinels[0].port}")
    assert (
        text
        == "REDIS_URL: expected a Redis server; came: a Sentinel, whose URL begins with redis+sentinel://"
    )


async def test_a_server_taken_for_a_sentinel(valkey: Server):
    text = await refusal(ConfigurationError, REDIS_URL=f"redis+sentinel://127.0.0.1:{valkey.port}/main")
    assert text == "REDIS_URL: expected the addresses of sentinels; came: a server that is none"


async def test_a_node_of_a_cluster_taken_for_a_server(cluster: Cluster):
    text = await refusal(ConfigurationError, REDIS_URL=cluster.primaries()[0].url)
    assert text == "REDIS_URL: expected redis+cluster://host:port; came: one node of a Cluster alone"


async def test_a_server_taken_for_a_cluster(valkey: Server):
    text = await refusal(ConfigurationError, REDIS_URL=f"redis+cluster://127.0.0.1:{valkey.port}")
    assert (
        text
        == "REDIS_URL: expected the nodes of a Cluster; came: a server that is none, whose URL begins with redis://"
    )


async def test_a_wrong_password_for_a_cluster(servers: Callable[..., Server]):
    server = servers(
        config=["cluster-enabled yes", f"cluster-port {free_port()}"], password=secrets.token_urlsafe(12)
    )
    for login in ("", f":{SOUGHT}@"):
        text = await refusal(ConfigurationError, REDIS_URL=f"redis+cluster://{login}127.0.0.1:{server.port}")
        assert text == "REDIS_URL: expected a user and password that the Cluster accepts; it refused them"


async def test_a_user_of_a_cluster_who_may_not_ask_for_its_slots(servers: Callable[..., Server]):
    server = servers(
        config=["cluster-enabled yes", f"cluster-port {free_port()}"],
        acl=[f"app on >{SOUGHT} ~* &* +@all -cluster"],
    )
    text = await refusal(
        ConfigurationError, REDIS_URL=f"redis+cluster://app:{SOUGHT}@127.0.0.1:{server.port}"
    )
    assert text == "REDIS_URL: expected a user who may run CLUSTER SLOTS; the Cluster answered NOPERM"


async def test_a_database_that_the_server_does_not_have(valkey: Server):
    text = await refusal(ConfigurationError, REDIS_URL=f"redis://127.0.0.1:{valkey.port}/99")
    assert text == "REDIS_URL: expected a database that the server has; it refused number 99"


async def test_a_replica(servers: Callable[..., Server], valkey: Server):
    replica = servers(config=[f"replicaof 127.0.0.1 {valkey.port}"])
    await eventually(lambda: replica.info("replication")["master_link_status"] == "up")
    text = await refusal(StoreUnavailable, REDIS_URL=replica.url)
    assert text == "the server is a replica, which takes no writes"


async def test_a_server_with_no_room_for_another_connection(servers: Callable[..., Server]):
    server = servers(config=["maxclients 1"])
    text = await refusal(StoreUnavailable, REDIS_URL=f"redis://:{SOUGHT}@127.0.0.1:{server.port}")
    assert text == "Redis takes no more connections"


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (b"-ERR unknown command 'HELLO'\r\n", "Redis without HELLO"),
        (hello((b"server", b"redis"), (b"version", b"6.2.0"), (b"mode", b"standalone")), "Redis 6.2.0"),
        (hello((b"server", b"valkey"), (b"version", b"7.1.9"), (b"mode", b"standalone")), "Valkey 7.1.9"),
    ],
)
async def test_a_server_that_is_too_old(answer: bytes, came: str):
    async with answering(answer) as url:
        text = await refusal(ConfigurationError, REDIS_URL=url)
        assert text == f"REDIS_URL: expected Redis 7.0 or Valkey 7.2 or newer; came: {came}"


async def test_a_server_that_still_reads_its_data():
    async with answering(b"-LOADING Redis is loading the dataset in memory\r\n") as url:
        assert "loading" in (await refusal(StoreUnavailable, REDIS_URL=url)).lower()


async def test_a_server_that_speaks_something_else():
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        text = await refusal(StoreUnavailable, REDIS_URL=url)
        assert text == "Redis sent something that is not its protocol"


async def test_a_server_that_ends_the_connection_at_once():
    async with answering() as url:
        await refusal(StoreUnavailable, REDIS_URL=url, COUNTERSEAL_COMMAND_TIMEOUT="100ms")


# -- over REST -------------------------------------------------------------------------------------------------------


async def test_a_wrong_token(valkey: Server):
    async with gateway_on(valkey) as gateway:
        text = await refusal(
            ConfigurationError, UPSTASH_REDIS_REST_URL=gateway.url, UPSTASH_REDIS_REST_TOKEN=SOUGHT
        )
        assert text == (
            "UPSTASH_REDIS_REST_TOKEN: expected a token that the service accepts; it refused this one"
        )


async def test_a_service_that_does_not_listen():
    text = await refusal(
        StoreUnavailable,
        UPSTASH_REDIS_REST_URL=f"http://127.0.0.1:{free_port()}/redis",
        UPSTASH_REDIS_REST_TOKEN=SOUGHT,
    )
    assert text == "the Redis REST service can't be reached"


# -- cut short -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
async def test_opening_that_is_cancelled_leaves_nothing_behind(
    request: pytest.FixtureRequest, kind: str, turns: int
):
    target = {"single": "valkey", "sentinel": "sentinels", "cluster": "cluster"}[kind]
    url: str = request.getfixturevalue(target).url
    tasks, before = asyncio.all_tasks(), sockets()
    store = open_store(Settings.load({**PATIENT, "REDIS_URL": url}))
    opening = asyncio.create_task(store.open())
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await store.close()
    await eventually(lambda: asyncio.all_tasks() - tasks == set())
    gc.collect()
    await eventually(lambda: sockets() == before)
