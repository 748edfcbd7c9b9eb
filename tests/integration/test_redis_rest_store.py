"""The REST store against the REST server: round trips, batching, bounds, failures, subscriptions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import SecretStr

from counterseal.core.errors import (
    CommandError,
    ConfigurationError,
    ReplyTooLarge,
    ScriptMissing,
    StoreBusy,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    SubscriberTooSlow,
    TransactionAborted,
)
from counterseal.store.base import Gap, Message
from counterseal.store.breaker import BreakerPolicy
from counterseal.store.feed import Inbox
from counterseal.store.rest.client import RestBounds
from counterseal.store.rest.store import RestStore
from counterseal.store.scripts import parse_script
from support.gateway import Gateway, gateway_on, serving
from support.relay import Relay
from support.servers import Server
from support.waiting import eventually

pytestmark = pytest.mark.leaves_keys(
    "the keys have names of the test's own, and the server is emptied afterwards"
)

SCRIPT = parse_script(
    "pair", "-- pair: sets and tells\n-- keys: key\n-- args: value more...\n-- returns: all\n-- ttl: none\n"
    "redis.call('SET', KEYS[1], ARGV[1])\nreturn {'OK', ARGV[1], ARGV, {1, false}}\n",
)  # fmt: skip


@pytest.fixture
async def gateway(valkey: Server) -> AsyncIterator[Gateway]:
    async with gateway_on(valkey) as gateway:
        yield gateway


@pytest.fixture
async def store(gateway: Gateway) -> AsyncIterator[RestStore]:
    async with gateway.rest_store(bounds=RestBounds(timeout=timedelta(seconds=10))) as store:
        yield store


class Service:
    """A service that answers as a test tells it to; counts and keeps the requests."""

    def __init__(self, answer: Callable[[bytes], Awaitable[tuple[int, bytes]]]) -> None:
        self.answer = answer
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["path"], headers, body))
        status, answer = await self.answer(body)
        length = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": length})
        await send({"type": "http.response.body", "body": answer})


async def well(body: bytes) -> tuple[int, bytes]:
    """The answer of a service in which every command is answered by `OK`, and TIME by a time."""
    rows = json.loads(body)
    single = not isinstance(rows[0], list)
    answers: list[dict[str, Any]] = [
        {"result": ["MTcwMDAwMDAwMA==", "MA=="] if row[0] == "TIME" else None if row[0] == "INFO" else "OK"}
        for row in ([rows] if single else rows)
    ]
    return 200, json.dumps(answers[0] if single else answers).encode()


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"", b"OK", b"null", b"1e3", b"007", b"12345678901234567890", str(2**63).encode(), b"a\x00b", "😀".encode(),
     b"\xff\x00\xfe", b'{"a":1}', b"x" * 1_000_000, b"\xff" * 1_000_000],
    ids=repr,
)  # fmt: skip
async def test_a_value_comes_back_as_it_was(store: RestStore, valkey: Server, value: bytes) -> None:
    assert await store.command("SET", "k", value, "EX", 100) == b"OK"
    assert valkey.execute("GET", "k") == value
    assert valkey.execute("TTL", "k") == 100
    assert await store.command("GET", "k") == value
    assert await store.pipeline([("GET", "k"), ("STRLEN", "k")]) == [value, len(value)]
    assert await store.run(SCRIPT, key="k2", value=value, more=[]) == [b"OK", value, [value], [1, None]]


async def test_replies_have_the_shapes_of_resp2(store: RestStore) -> None:
    await store.command("HSET", "h", "a", 1, "b", 2.5)
    assert await store.command("HGETALL", "h") == [b"a", b"1", b"b", b"2.5"]
    assert await store.command("GET", "none") is None
    assert await store.command("INCRBY", "n", 2**62) == 2**62
    assert await store.command("LRANGE", "none", 0, -1) == []


async def test_an_error_is_raised_and_inside_a_pipeline_it_stands_in_its_place(store: RestStore) -> None:
    await store.command("SET", "k", "v")
    with pytest.raises(CommandError) as failure:
        await store.command("INCR", "k")
    assert failure.value.kind == "ERR"
    replies = await store.pipeline(
        [("GET", "k"), ("LPUSH", "k", "x"), ("NOPE",), ("LPUSH", "k", b"\xff"), ("GET", "k")]
    )
    assert replies[0] == replies[4] == b"v"
    kinds = [reply.kind for reply in replies if isinstance(reply, CommandError)]
    assert kinds == ["WRONGTYPE", "ERR", "WRONGTYPE"]


async def test_a_transaction_is_all_or_nothing(store: RestStore, valkey: Server) -> None:
    replies = await store.transaction([("INCR", "n"), ("LPUSH", "n", "x"), ("GET", "n")])
    assert (replies[0], replies[2]) == (1, b"1")
    assert isinstance(replies[1], CommandError)
    with pytest.raises(TransactionAborted, match="wrong number of arguments"):
        await store.transaction([("INCR", "n"), ("INCR",)])
    with pytest.raises(TransactionAborted, match="not UTF-8"):
        await store.transaction([("INCR", "n"), ("SET", "k", b"\xff")])
    assert valkey.execute("GET", "n") == b"1"
    assert await store.transaction([]) == []


async def test_nobody_gets_between_the_commands_of_a_transaction(store: RestStore) -> None:
    async def one() -> None:
        first, second = await store.transaction([("INCR", "n"), ("INCR", "n")])
        assert second == int(str(first)) + 1

    await asyncio.gather(*(one() for _ in range(50)), *(store.command("INCR", "n") for _ in range(50)))
    assert await store.command("GET", "n") == b"150"


async def test_a_script_is_sent_whole_once_and_then_by_its_sum(store: RestStore, valkey: Server) -> None:
    results = await asyncio.gather(*(store.run(SCRIPT, key=f"k{n}", value=n, more=["m"]) for n in range(20)))
    assert results == [[b"OK", b"%d" % n, [b"%d" % n, b"m"], [1, None]] for n in range(20)]
    valkey.execute("SCRIPT", "FLUSH")
    batches = store.counts.batches
    assert await store.run(SCRIPT, key="k", value="v", more=[]) == [b"OK", b"v", [b"v"], [1, None]]
    assert store.counts.batches == batches + 2
    assert await store.run(SCRIPT, key="k", value="v", more=[])
    assert store.counts.batches == batches + 3
    with pytest.raises(ScriptMissing):
        await store.command("EVALSHA", "0" * 40, 0)


# -- batching --------------------------------------------------------------------------------------------------------


async def test_what_is_issued_in_one_turn_leaves_in_one_request(store: RestStore) -> None:
    before = store.counts.batches
    replies = await asyncio.gather(
        *(store.command("ECHO", str(number)) for number in range(500)),
        store.pipeline([("ECHO", "a"), ("ECHO", "b")]),
        *(store.command("ECHO", str(number)) for number in range(400)),
    )
    assert store.counts.batches == before + 1
    assert replies[:500] == [str(number).encode() for number in range(500)]
    assert replies[500] == [b"a", b"b"]
    assert replies[501:] == [str(number).encode() for number in range(400)]


async def test_pipelines_of_any_length_keep_their_order(store: RestStore) -> None:
    commands = [
        ("RPUSH", "l", number) if number % 700 else ("RPUSH", "l", b"\xff%d" % number)
        for number in range(2500)
    ]
    assert await store.pipeline(commands) == list(range(1, 2501))
    assert await store.command("LINDEX", "l", 1400) == b"\xff1400"
    assert await store.pipeline([]) == []


async def test_more_than_may_be_under_way_gathers_for_the_next_request(
    gateway: Gateway, valkey: Server
) -> None:
    bounds = RestBounds(timeout=timedelta(seconds=10), max_requests=1)
    async with gateway.rest_store(bounds=bounds) as store:
        valkey.freeze()
        first = asyncio.ensure_future(store.command("ECHO", "first"))
        before = store.counts.batches
        await eventually(lambda: store.counts.batches == before + 1)
        others: list[asyncio.Future[Any]] = []
        for number in range(20):
            others.append(asyncio.ensure_future(store.command("ECHO", str(number))))
            await asyncio.sleep(0)
        valkey.thaw()
        assert await first == b"first"
        assert await asyncio.gather(*others) == [str(number).encode() for number in range(20)]
        assert store.counts.batches == before + 2


async def test_a_cancelled_caller_moves_nobodys_reply(store: RestStore) -> None:
    for turn in range(30):
        tasks = [asyncio.ensure_future(store.command("ECHO", f"{turn} {number}")) for number in range(30)]
        for _ in range(turn % 6):
            await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        for number, reply in enumerate(replies):
            if number % 3 == 0:
                assert isinstance(reply, asyncio.CancelledError) or reply == f"{turn} {number}".encode()
            else:
                assert reply == f"{turn} {number}".encode()


async def test_a_caller_that_gave_up_before_the_request_left_is_not_sent(
    store: RestStore, valkey: Server
) -> None:
    given_up = asyncio.ensure_future(store.command("SET", "given-up", "x"))
    kept = asyncio.ensure_future(store.command("SET", "kept", "x"))
    given_up.cancel()
    assert await kept == b"OK"
    assert valkey.execute("EXISTS", "given-up", "kept") == 1


# -- what is refused -------------------------------------------------------------------------------------------------


async def test_what_rest_cannot_do_is_refused_and_nothing_is_sent(store: RestStore) -> None:
    before = store.counts.batches
    with pytest.raises(CommandError, match="BLPOP waits on the server"):
        await store.block("BLPOP", "q", 1, timeout=timedelta(seconds=2))
    for command in (
        ("BLPOP", "q", 0),
        ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"),
        ("SUBSCRIBE", "c"),
        ("MULTI",),
    ):
        with pytest.raises(CommandError):
            await store.command(*command)
        with pytest.raises(CommandError):
            await store.pipeline([command])
    with pytest.raises(TypeError):
        await store.command("SET", "k", None)  # type: ignore[arg-type]
    with pytest.raises(CommandError, match="only one binary argument may be long"):
        await store.command("MSET", "a", b"\xff" * 10_000, "b", b"\xff" * 10_000)
    assert store.counts.batches == before


async def test_more_bytes_than_may_be_under_way_wait_and_then_are_busy(valkey: Server) -> None:
    bounds = RestBounds(timeout=timedelta(milliseconds=300), max_inflight_bytes=100_000, max_requests=4)
    async with gateway_on(valkey) as gateway, gateway.rest_store(bounds=bounds) as store:
        value = "x" * 60_000
        assert (
            await asyncio.gather(*(store.command("SET", f"k{n}", value) for n in range(20))) == [b"OK"] * 20
        )
        valkey.freeze()
        calls = [asyncio.ensure_future(store.command("SET", f"k{n}", value)) for n in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        valkey.thaw()
        assert [type(result) for result in results[:2]] == [StoreTimeout, StoreTimeout]
        assert isinstance(results[2], (StoreBusy, StoreUnavailable))


async def test_an_answer_larger_than_allowed_is_refused_while_it_arrives(
    gateway: Gateway, valkey: Server
) -> None:
    valkey.execute("SET", "large", "x" * 200_000)
    bounds = RestBounds(timeout=timedelta(seconds=10), max_reply_bytes=100_000)
    async with gateway.rest_store(bounds=bounds) as store:
        with pytest.raises(ReplyTooLarge):
            await store.command("GET", "large")
        assert await store.command("GETRANGE", "large", 0, 2) == b"xxx"


# -- opening ---------------------------------------------------------------------------------------------------------


async def test_opening_learns_what_answers_and_what_time_it_is(gateway: Gateway, valkey: Server) -> None:
    async with gateway.rest_store() as store:
        assert (store.kind, store.server.product, store.server.mode) == ("rest", "valkey", "standalone")
        assert store.server.version >= (9, 1)
        assert store.description == gateway.url
        assert gateway.token not in repr(store) + store.description
        seconds, micros = valkey.execute("TIME")
        assert abs(store.now_ms() - (int(seconds) * 1000 + int(micros) // 1000)) < 250
        assert store.available
    assert not store.available
    with pytest.raises(StoreUnavailable):
        await store.command("PING")


async def test_a_wrong_token_is_a_configuration_error_that_names_the_setting(gateway: Gateway) -> None:
    store = RestStore(gateway.url, SecretStr("wrong-token"), bounds=RestBounds(timeout=timedelta(seconds=10)))
    with pytest.raises(ConfigurationError, match="UPSTASH_REDIS_REST_TOKEN: expected a token") as refusal:
        await store.open()
    assert "wrong-token" not in str(refusal.value)
    assert not store.available


async def test_a_service_that_is_not_there_is_unavailable_and_its_address_is_not_told(valkey: Server) -> None:
    store = RestStore(
        f"http://127.0.0.1:{valkey.port}",
        SecretStr("secret"),
        bounds=RestBounds(timeout=timedelta(seconds=10)),
    )
    await asyncio.to_thread(valkey.stop)
    with pytest.raises(StoreUnavailable) as refusal:
        await store.open()
    for hidden in (str(valkey.port), "127.0.0.1", "secret"):
        assert hidden not in str(refusal.value)


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (200, b"<html>hello</html>", StoreUnavailable, "can't be understood"),
        (200, b'{"result":"not encoded"}', StoreUnavailable, "can't be understood"),
        (200, b'[{"result":1}]', StoreUnavailable, "can't be understood"),
        (302, b"", StoreUnavailable, "status 302"),
        (404, b"<html>", StoreUnavailable, "status 404"),
        (500, b'{"error":"ERR x"}', StoreUnavailable, "status 500"),
        (503, b'{"error":"ERR down"}', StoreUnavailable, "status 503"),
        (401, b'{"error":"WRONGPASS"}', StoreError, "refused the token"),
        (400, b'{"error":"WRONGTYPE x"}', CommandError, "WRONGTYPE x"),
        (429, b'{"error":"ERR max requests limit exceeded"}', CommandError, "max requests limit"),
    ],
)
async def test_every_answer_that_is_none_has_its_error(
    status: int, body: bytes, error: type[StoreError], text: str
) -> None:
    service = Service(well)
    async with serving(service) as url, RestStore(url, SecretStr("secret")) as store:

        async def ill(_: bytes) -> tuple[int, bytes]:
            return status, body

        service.answer = ill
        with pytest.raises(error, match=text) as failure:
            await store.command("GET", "k")
        assert type(failure.value) is not StoreTimeout
        asked = [request[2] for request in service.requests if b"GET" in request[2]]
        assert len(asked) == 1, "nothing is sent twice"


async def test_a_refused_pipeline_fails_each_of_its_commands(valkey: Server) -> None:
    service = Service(well)
    async with serving(service) as url, RestStore(url, SecretStr("secret")) as store:

        async def refuse(_: bytes) -> tuple[int, bytes]:
            return 400, b'{"error":"ERR max request size exceeded"}'

        service.answer = refuse
        replies = await store.pipeline([("GET", "a"), ("GET", "b")])
        assert [str(reply) for reply in replies] == ["ERR max request size exceeded"] * 2
        with pytest.raises(CommandError, match="max request size"):
            await asyncio.gather(store.command("GET", "a"), store.command("GET", "b"))


async def test_requests_carry_the_token_the_encoding_and_the_last_sync_token(gateway: Gateway) -> None:
    service = Service(well)
    async with serving(service) as url, RestStore(f"{url}/base/", SecretStr("secret-token")) as store:
        await store.command("GET", "k")
        await store.pipeline([("GET", "k"), ("GET", "k")])
        await store.transaction([("GET", "k")])
    paths = [path for path, _, _ in service.requests]
    assert paths == ["/base/", "/base/", "/base/", "/base/pipeline", "/base/multi-exec"]
    for _, headers, _ in service.requests:
        assert headers["authorization"] == "Bearer secret-token"
        assert headers["upstash-encoding"] == "base64"
        assert headers["upstash-sync-token"] == ""


# -- time-outs and outages -------------------------------------------------------------------------------------------


async def test_a_late_answer_is_a_timeout_and_nothing_is_sent_again() -> None:
    service = Service(well)
    released = asyncio.Event()
    bounds = RestBounds(timeout=timedelta(milliseconds=100))
    async with serving(service) as url, RestStore(url, SecretStr("secret"), bounds=bounds) as store:

        async def late(body: bytes) -> tuple[int, bytes]:
            await released.wait()
            return await well(body)

        service.answer = late
        started = time.monotonic()
        with pytest.raises(StoreTimeout, match="within 100 ms"):
            await store.command("SET", "k", "v")
        assert time.monotonic() - started < 2
        released.set()
        service.answer = well
        assert await store.command("GET", "k") == b"OK"
        assert [json.loads(body)[0] for _, _, body in service.requests].count("SET") == 1
        assert store.counts.timeouts == 1


async def test_a_loop_that_stood_still_is_not_held_against_the_service(gateway: Gateway) -> None:
    async with gateway.rest_store(bounds=RestBounds(timeout=timedelta(milliseconds=150))) as store:
        for _ in range(3):
            call = asyncio.ensure_future(store.command("ECHO", "x"))
            for _ in range(5):
                await asyncio.sleep(0)
            time.sleep(0.3)  # noqa: ASYNC251 - the loop is what has to stand still
            assert await call == b"x"
        assert store.counts.timeouts == 0


async def test_after_failures_calls_are_refused_at_once_until_a_probe_succeeds() -> None:
    service = Service(well)
    policy = BreakerPolicy(first_wait=timedelta(milliseconds=20), longest_wait=timedelta(milliseconds=40))
    async with serving(service) as url, RestStore(url, SecretStr("secret"), breaker=policy) as store:

        async def down(_: bytes) -> tuple[int, bytes]:
            return 503, b'{"error":"ERR down"}'

        service.answer = down
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="status 503"):
                await store.command("GET", "k")
        assert not store.available
        with pytest.raises(StoreUnavailable, match="calls are refused"):
            await store.command("GET", "k")
        service.answer = well
        await eventually(lambda: store.available)
        assert await store.command("GET", "k") == b"OK"


async def test_a_connection_that_is_cut_in_the_middle_of_an_answer_fails_only_its_request(
    gateway: Gateway, valkey: Server, relays: Callable[..., Awaitable[Relay]]
) -> None:
    valkey.execute("SET", "k", "x" * 10_000)
    relay = await relays(int(gateway.url.split(":")[2].split("/")[0]))
    url = f"http://127.0.0.1:{relay.port}/redis"
    patient = BreakerPolicy(failures=100)
    async with RestStore(
        url, SecretStr(gateway.token), bounds=RestBounds(timeout=timedelta(seconds=10)), breaker=patient
    ) as store:
        for place in (0, 10, 400, 5000):
            relay.cut_after(place)
            with pytest.raises(StoreUnavailable):
                await store.command("GET", "k")
            assert len(str(await store.command("GET", "k"))) == 10_003


async def test_closing_fails_what_is_under_way(gateway: Gateway, valkey: Server) -> None:
    store = gateway.rest_store(bounds=RestBounds(timeout=timedelta(seconds=10)))
    await store.open()
    valkey.freeze()
    before = store.counts.batches
    calls = [asyncio.ensure_future(store.command("ECHO", str(number))) for number in range(10)]
    calls.append(asyncio.ensure_future(store.transaction([("PING",)])))
    await eventually(lambda: store.counts.batches == before + 2)
    await store.close()
    await store.close()
    valkey.thaw()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}


async def test_a_store_can_be_opened_again(gateway: Gateway) -> None:
    store = gateway.rest_store(bounds=RestBounds(timeout=timedelta(seconds=10)))
    for _ in range(2):
        async with store:
            assert await store.command("PING") == b"PONG"


async def test_the_server_behind_the_gateway_dies_and_comes_back(servers: Callable[..., Server]) -> None:
    server = servers()
    async with (
        gateway_on(server) as gateway,
        gateway.rest_store(bounds=RestBounds(timeout=timedelta(seconds=10))) as store,
    ):
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not gateway.store.available)
        with pytest.raises(StoreUnavailable, match="status 503"):
            await store.command("ECHO", "x")
        await asyncio.to_thread(server.start)

        async def works() -> bool:
            try:
                return await store.command("ECHO", "x") == b"x"
            except StoreUnavailable:
                return False

        await eventually(works, within=15)


# -- subscriptions ---------------------------------------------------------------------------------------------------


async def test_a_subscription_delivers_what_is_published_after_it_began(
    store: RestStore, valkey: Server
) -> None:
    async with store.subscribe("a", "b,c", "d/é ..") as messages:
        valkey.execute("PUBLISH", "a", b"\x00\xff\nx\r\n")
        valkey.execute("PUBLISH", "b,c", "y,z")
        valkey.execute("PUBLISH", "d/é ..", "")
        await store.command("PUBLISH", "a", "last")
        assert [await anext(messages) for _ in range(4)] == [
            Message("a", b"\x00\xff\nx\r\n"), Message("b,c", b"y,z"), Message("d/é ..", b""), Message("a", b"last"),
        ]  # fmt: skip


async def test_leaving_a_subscription_lets_it_go(store: RestStore, gateway: Gateway) -> None:
    async with store.subscribe("c"), store.subscribe("c"):
        assert gateway.app.stream_count == 2
    await eventually(lambda: gateway.app.stream_count == 0)


async def test_a_slow_subscriber_is_cut_off_after_what_it_had_room_for(
    store: RestStore, valkey: Server
) -> None:
    slow = cast("Inbox", store.subscribe("c", limit=3))
    async with slow as messages:
        for number in range(10):
            valkey.execute("PUBLISH", "c", str(number))
        await eventually(lambda: slow._end is not None)
        received = [await anext(messages) for _ in range(3)]
        assert received == [Message("c", str(number).encode()) for number in range(3)]
        with pytest.raises(SubscriberTooSlow):
            await anext(messages)


async def test_a_lost_stream_is_replaced_and_the_gap_told(
    gateway: Gateway, valkey: Server, relays: Callable[..., Awaitable[Relay]]
) -> None:
    relay = await relays(int(gateway.url.split(":")[2].split("/")[0]))
    url = f"http://127.0.0.1:{relay.port}/redis"
    async with RestStore(
        url, SecretStr(gateway.token), bounds=RestBounds(timeout=timedelta(seconds=10))
    ) as store:
        losses: list[int] = []
        async with store.subscribe("c", on_loss=lambda: losses.append(1)) as messages:
            valkey.execute("PUBLISH", "c", "before")
            assert await anext(messages) == Message("c", b"before")
            relay.refuse()
            relay.cut()
            await eventually(lambda: losses)
            await relay.accept()
            assert await anext(messages) == Gap(("c",))
            valkey.execute("PUBLISH", "c", "after")
            assert await anext(messages) == Message("c", b"after")
            assert losses == [1]
        assert store.counts.reconnects == 1


async def test_a_connection_lost_behind_the_gateway_is_a_gap_too(store: RestStore, valkey: Server) -> None:
    async with store.subscribe("c") as messages:
        valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")
        assert await anext(messages) == Gap(("c",))
        await eventually(lambda: valkey.execute("PUBLISH", "c", "after") == 1)
        assert await anext(messages) == Message("c", b"after")


async def test_a_subscription_that_is_refused_says_so(valkey: Server) -> None:
    async with gateway_on(valkey, reserved="cs:") as gateway, gateway.rest_store() as store:
        with pytest.raises(StoreError, match="NOPERM"):
            async with store.subscribe("cs:x"):
                pass
        gateway.app.close()
        with pytest.raises(StoreUnavailable):
            async with store.subscribe("x"):
                pass


async def test_closing_the_store_ends_its_subscriptions(gateway: Gateway) -> None:
    store = gateway.rest_store(bounds=RestBounds(timeout=timedelta(seconds=10)))
    await store.open()
    async with store.subscribe("c") as messages:
        await store.close()
        with pytest.raises(StoreUnavailable):
            await anext(messages)
